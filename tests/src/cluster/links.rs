//! Carries messages first-in first-out on each link, and lets a seed decide which link delivers next.

use std::collections::{BTreeMap, VecDeque};

use windlass_common::ids::{Incarnation, Lineage, ServerId, ShardId, WorkerId};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::Body;
use windlass_ps_core::{coordinator, shard};

use super::brought::Brought;
use crate::sim::Told;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// The coordinator.
    Coordinator,
    /// A server as such: it only joins.
    Server(ServerId),
    /// A shard.
    Shard(ShardId),
    /// A worker, in its so many-th life.
    Worker(WorkerId, u32),
}

/// One direction of one connection. A worker's next life has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Who sends.
    pub from: Node,
    /// Who receives.
    pub to: Node,
}

/// What travels on a link.
#[derive(Debug)]
pub(crate) enum Message {
    /// To the coordinator.
    Coordinator(coordinator::Event),
    /// To a shard.
    Shard(shard::Event<Brought>),
    /// From the coordinator to a worker, with the incarnation it has issued, in its lineage.
    Control(Body, Incarnation, Lineage),
    /// From a shard to a worker.
    Reply(shard::Reply),
    /// From a primary to its standby.
    Told(Box<Told>),
    /// The standby has done everything up to this number.
    Confirmed(u64),
}

/// How the links share the deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each link that has something is as likely as any other.
    Even,
    /// Some links are up to 64 times as likely as others, the same ones throughout.
    Skewed,
}

#[derive(Debug)]
struct Queue {
    weight: u64,
    messages: VecDeque<Message>,
}

/// All links, with what is on its way.
#[derive(Debug)]
pub(super) struct Links {
    pace: Pace,
    rng: Rng,
    queues: BTreeMap<Link, Queue>,
}

impl Links {
    pub(super) fn new(seed: u64, pace: Pace) -> Self {
        Self { pace, rng: Rng::new(seed, Purpose::Delivery), queues: BTreeMap::new() }
    }

    pub(super) fn send(&mut self, link: Link, message: Message) {
        let (rng, pace) = (&mut self.rng, self.pace);
        let mut weight = || match pace {
            Pace::Even => 1,
            Pace::Skewed => 1 << (2 * rng.below(4)),
        };
        let queue =
            self.queues.entry(link).or_insert_with(|| Queue { weight: weight(), messages: VecDeque::new() });
        queue.messages.push_back(message);
    }

    /// Takes the next message off a link that the seed chooses.
    pub(super) fn deliver(&mut self) -> Option<(Link, Message)> {
        let waiting = || self.queues.iter().filter(|(_, q)| !q.messages.is_empty());
        let total: u64 = waiting().map(|(_, q)| q.weight).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.rng.below(total);
        let (&link, _) = waiting().find(|(_, q)| match at.checked_sub(q.weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })?;
        let message = self.queues.get_mut(&link)?.messages.pop_front()?;
        Some((link, message))
    }

    /// A process has died: what was on its way to it is gone, and of what it had sent, the seed says how much gets
    /// out on each link.
    pub(super) fn cut(&mut self, node: Node) {
        self.queues.retain(|link, _| link.to != node);
        for queue in self.queues.iter_mut().filter(|(link, _)| link.from == node).map(|(_, q)| q) {
            let kept = self.rng.below(queue.messages.len() as u64 + 1);
            queue.messages.truncate(kept as usize);
        }
    }

    /// Those to whom this node has a link.
    pub(super) fn from(&self, node: Node) -> Vec<Link> {
        self.queues.keys().filter(|link| link.from == node).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::Step;
    use windlass_common::wire::{Order, Report};
    use windlass_ps_core::shard::Event;

    use super::*;

    fn link(shard: u32) -> Link {
        Link { from: Node::Coordinator, to: Node::Shard(ShardId(shard)) }
    }

    fn numbered(step: u64) -> Message {
        Message::Shard(Event::Order(Order::Close { step: Step(step), cohort: Vec::new() }))
    }

    fn delivered(seed: u64, pace: Pace) -> Vec<(Link, u64)> {
        let mut links = Links::new(seed, pace);
        for step in 0..20 {
            (0..3).for_each(|shard| links.send(link(shard), numbered(step)));
        }
        let step = |message| match message {
            Message::Shard(Event::Order(Order::Close { step, .. })) => step.0,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| links.deliver()).map(|(link, message)| (link, step(message))).collect()
    }

    #[test]
    fn each_link_keeps_its_order_and_the_seed_mixes_them() {
        for pace in [Pace::Even, Pace::Skewed] {
            let order = delivered(1, pace);
            assert_eq!(order, delivered(1, pace), "the seed decides");
            assert_ne!(order, delivered(2, pace), "and nothing else");
            for shard in 0..3 {
                let steps: Vec<u64> =
                    order.iter().filter(|(l, _)| *l == link(shard)).map(|(_, s)| *s).collect();
                assert_eq!(steps, (0..20).collect::<Vec<_>>());
            }
            assert!(order.chunks(3).any(|c| c.iter().any(|(l, _)| *l == c[0].0 && *l != c[1].0)));
        }
    }

    #[test]
    fn of_what_a_dead_process_sent_a_beginning_gets_out() {
        let (dead, shard) = (Node::Worker(WorkerId(0), 0), Node::Shard(ShardId(0)));
        let mut kept = Vec::new();
        for seed in 0..50 {
            let mut links = Links::new(seed, Pace::Even);
            for step in 0..3 {
                links.send(Link { from: dead, to: shard }, numbered(step));
                let report = Message::Coordinator(coordinator::Event::Report {
                    shard: ShardId(0),
                    report: Report::Records(Vec::new()),
                });
                links.send(Link { from: shard, to: dead }, report);
            }
            links.cut(dead);
            let left: Vec<_> = std::iter::from_fn(|| links.deliver()).collect();
            assert!(left.iter().all(|(link, _)| link.from == dead));
            kept.push(left.len());
        }
        assert!((0..=3).all(|n| kept.contains(&n)), "{kept:?}");
    }
}
