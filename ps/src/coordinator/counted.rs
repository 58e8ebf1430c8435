//! Carries the counts of a run from one life of its coordinator to the next, or counts again what its log says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use windlass_common::ids::{
    ClientId, Examples, Incarnation, Sequence, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::plan::Plan;
use windlass_common::wire::{Entry, Outcome, Record, Task};
use windlass_ps_core::Time;

use super::event_log::EVENTS_FILE;
use super::summary::Tally;

/// What has been counted of a run.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    pub(crate) tally: Tally,
    /// Of each shard the last record that is in the log.
    pub(crate) logged: BTreeMap<ShardId, u64>,
}

/// A line of the log, as far as it counts.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    at_us: u64,
    event: String,
    checkpoint: Option<u64>,
    #[serde(default)]
    number: u64,
    #[serde(default)]
    shard: u32,
    #[serde(default)]
    worker: u32,
    #[serde(default)]
    incarnation: u32,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    base: u64,
    version: Option<u64>,
    staleness: Option<u64>,
    #[serde(default)]
    client: u32,
    #[serde(default)]
    examples: u32,
    #[serde(default)]
    work: u64,
    #[serde(default)]
    examples_applied: u64,
    #[serde(default)]
    loss: Option<f32>,
    #[serde(default)]
    clients: Vec<u32>,
    #[serde(default)]
    workers: Vec<u32>,
}

impl Counted {
    /// Nothing has been counted.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { tally: Tally::new(plan), logged: BTreeMap::new() }
    }

    /// What had been counted when a checkpoint was taken; without one the counts begin anew.
    pub(crate) fn until_checkpoint(plan: &Plan, tally: Option<Value>) -> Self {
        let tally = match tally.map(serde_json::from_value::<Tally>) {
            Some(Ok(tally)) => tally,
            Some(Err(error)) => {
                tracing::warn!(%error, "the counts of the checkpoint cannot be read; they begin anew");
                Tally::new(plan)
            }
            None => Tally::new(plan),
        };
        Self { tally, logged: BTreeMap::new() }
    }

    fn take(&mut self, line: &Line) {
        let entries = || line.clients.iter().zip(&line.workers);
        let outcome = match (line.event.as_str(), line.version, line.staleness) {
            ("applied", Some(version), Some(staleness)) => {
                Outcome::Applied { version: Version(version), staleness }
            }
            ("late", ..) => Outcome::Late { step: Step(line.step) },
            ("void", ..) => Outcome::Void,
            ("started", ..) => return self.tally.started(Time(line.at_us)),
            ("opened", ..) => {
                let tasks = entries().map(|(&c, &w)| Task { client: ClientId(c), worker: WorkerId(w) });
                return self.tally.opened(&tasks.collect::<Vec<_>>());
            }
            ("dropped", ..) => return self.tally.dropped(ClientId(line.client)),
            ("closed" | "abandoned", ..) => {
                let entry = |(&client, &worker)| {
                    let (client, worker) = (ClientId(client), WorkerId(worker));
                    Entry { client, worker, sequence: Sequence(0) }
                };
                return self.tally.closed(&entries().map(entry).collect::<Vec<_>>());
            }
            ("went on", ..) => return self.tally.open_again(),
            _ => return,
        };
        let shard = ShardId(line.shard);
        self.logged.insert(shard, line.number);
        let record = Record {
            number: line.number,
            at_us: line.at_us,
            term: Term(line.term),
            worker: WorkerId(line.worker),
            incarnation: Incarnation(line.incarnation),
            sequence: Sequence(line.sequence),
            step: Step(line.step),
            base: Version(line.base),
            client: ClientId(line.client),
            examples: line.examples,
            work: line.work,
            examples_applied: Examples(line.examples_applied),
            loss: line.loss.unwrap_or(f32::NAN),
            outcome,
        };
        self.tally.add(shard, &record);
    }
}

/// Counts what the log in a run directory says since the run last went back to a checkpoint; `tally` gives what had been
/// counted until that. A last line that is not whole says nothing.
///
/// # Errors
/// If the log or the counts of the checkpoint cannot be read.
pub(crate) fn recount(
    directory: &Path,
    plan: &Plan,
    tally: impl FnOnce(u64) -> anyhow::Result<Value>,
) -> anyhow::Result<Counted> {
    let path = directory.join(EVENTS_FILE);
    let of = || format!("could not read {}", path.display());
    let mut lines = Vec::new();
    let mut restored: Option<Option<u64>> = None;
    let mut reader = BufReader::new(File::open(&path).with_context(of)?);
    let mut text = String::new();
    while reader.read_line(&mut text).with_context(of)? > 0 {
        if text.ends_with('\n') {
            let line: Line = serde_json::from_str(&text).with_context(of)?;
            if line.event == "restored" {
                restored = Some(line.checkpoint);
                lines.clear();
            } else {
                lines.push(line);
            }
        }
        text.clear();
    }
    let before = restored.flatten().map(tally).transpose()?;
    let mut counted = Counted::until_checkpoint(plan, before);
    lines.iter().for_each(|line| counted.take(line));
    Ok(counted)
}
