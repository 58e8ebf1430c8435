//! Writes down what happens in a simulated run, and counts it.

use std::collections::BTreeMap;
use std::fmt;

use windlass_common::wire::{Body, Order, Report};
use windlass_ps_core::{coordinator, shard};

use super::network::Place;
use crate::cluster::links::Message;

/// Longest word on one message.
const WORD_MAX: usize = 160;

/// What happened, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// Adds what happened elsewhere.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, count)| self.add(what, *count));
    }

    /// How often this happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, count)| format!("{what} {count}")).collect();
        f.write_str(&parts.join(", "))
    }
}

/// The lines of a run; empty where nobody wants to read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    is_wanted: bool,
    pub(super) lines: Vec<String>,
}

impl Log {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { is_wanted, lines: Vec::new() }
    }

    pub(super) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        if self.is_wanted {
            self.lines.push(format!("{:>12.6} {}", now as f64 / 1e6, line()));
        }
    }

    pub(super) fn message(&mut self, now: u64, (from, to): (Place, Place), message: &Message) {
        self.note(now, || format!("{from} -> {to} {}", word(message)));
    }
}

/// A message in short.
pub(super) fn word(message: &Message) -> String {
    let text = match message {
        Message::Shard(shard::Event::Request(request)) => {
            let push = request.push.as_ref().map_or(String::new(), |(p, _)| {
                format!("push {} step {} base {} client {} ", p.sequence, p.step, p.base, p.client.0)
            });
            let pull = request.pull.as_ref().map_or(String::new(), |p| format!("pull step {}", p.step));
            format!("{push}{pull} (incarnation {})", request.incarnation)
        }
        Message::Shard(shard::Event::Order(order)) => order_in_short(order),
        Message::Shard(event) => format!("{event:?}"),
        Message::Coordinator(coordinator::Event::Report { shard, report }) => match report {
            Report::Records(records) => format!("{shard}: {} records", records.len()),
            other => format!("{shard}: {other:?}"),
        },
        Message::Coordinator(event) => format!("{event:?}"),
        Message::Control(Body::Welcome(welcome), incarnation, lineage) => {
            format!("welcome, next {:?}, incarnation {incarnation}, lineage {lineage}", welcome.next)
        }
        Message::Control(Body::Order { shard, order }, ..) => format!("{shard}: {}", order_in_short(order)),
        Message::Control(body, ..) => format!("{body:?}"),
        Message::Reply(shard::Reply::Values { step, snapshot, clients, .. }) => {
            format!("values step {step} version {} clients {clients:?}", snapshot.version)
        }
        Message::Reply(reply) => format!("{reply:?}"),
        Message::Told(told) => format!("lineage {} number {}: {:?}", told.lineage, told.number, told.feed),
        Message::Confirmed(number) => format!("confirmed {number}"),
    };
    text.chars().take(WORD_MAX).collect()
}

fn order_in_short(order: &Order) -> String {
    match order {
        Order::Membership { term, members, .. } => {
            let members: Vec<String> =
                members.iter().map(|m| format!("w{}.{}", m.worker.0, m.incarnation)).collect();
            format!("membership {term}: {}", members.join(" "))
        }
        other => format!("{other:?}"),
    }
}
