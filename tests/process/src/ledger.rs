//! Checks by a run's log that every push counted once on every shard, or not at all as the log says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::{events, lines, summary};

/// What the log says about pushes.
#[derive(Debug)]
pub struct Ledger {
    /// What became of each push: by shard, worker and sequence.
    outcomes: BTreeMap<(u64, u64, u64), Settled>,
    shards: u64,
    workers: u64,
}

/// What a checkpoint of a run remembers of its shards.
fn checkpoint(run: &Path, number: u64) -> Value {
    let file = run.join(format!("checkpoints/checkpoint-{number:08}/manifest"));
    let text = std::fs::read_to_string(file).expect("the checkpoint is still there");
    let (_, body) = text.split_once('\n').expect("a line comes before the body");
    serde_json::from_str::<Value>(body).expect("the body is JSON")["state"]["shards"].take()
}

/// Cuts off what a checkpoint does not hold, and checks that the log has all that it does.
fn truncate(kept: &mut Vec<Value>, shards: &Value) {
    let next = |event: &Value| {
        let rows = shards[event["shard"].as_u64().unwrap_or(0) as usize]["workers"].as_array();
        let row = rows.into_iter().flatten().find(|row| row["worker"] == event["worker"]);
        row.and_then(|row| row["sequence"].as_u64()).unwrap_or(0)
    };
    kept.retain(|event| event["sequence"].as_u64() < Some(next(event)));
    for (shard, state) in shards.as_array().into_iter().flatten().enumerate() {
        let of_shard = kept.iter().filter(|event| event["shard"] == shard).count() as u64;
        assert_eq!(
            Some(of_shard),
            state["pushes"].as_u64(),
            "the log of shard {shard} lacks pushes of a checkpoint"
        );
    }
}

#[derive(Debug, PartialEq)]
struct Settled {
    outcome: String,
    version: Option<u64>,
}

impl Ledger {
    /// Reads the log of a run that is complete, in a mode in which each push is a step.
    ///
    /// # Panics
    /// If a push is settled twice on a shard, or not at all on one, or if numbers are missing; if a shard's versions do not
    /// count its applied pushes; if the summary adds up to something else.
    pub fn read(run: &Path) -> Self {
        Self::of(run, &events(run))
    }

    /// The same for a run that has gone back to checkpoints, which are all still there: what came after one that it went back
    /// to is cut off.
    ///
    /// # Panics
    /// As [`Ledger::read`].
    pub fn read_truncated(run: &Path) -> Self {
        let mut kept: Vec<Value> = Vec::new();
        for line in lines(run) {
            if line["event"] == "restored" {
                match line["checkpoint"].as_u64() {
                    None => kept.clear(),
                    Some(number) => truncate(&mut kept, &checkpoint(run, number)),
                }
            } else if line["sequence"].is_u64() {
                kept.push(line);
            }
        }
        Self::of(run, &kept)
    }

    fn of(run: &Path, events: &[Value]) -> Self {
        let number = |value: &serde_json::Value| value.as_u64().expect("every push has all its numbers");
        let summary = summary(run);
        assert_eq!(summary["completed"], true);
        let mut outcomes = BTreeMap::new();
        for event in events {
            let key = (number(&event["shard"]), number(&event["worker"]), number(&event["sequence"]));
            let outcome = event["event"].as_str().expect("every line says what it is about").to_owned();
            let settled = Settled { outcome, version: event["version"].as_u64() };
            assert_eq!(outcomes.insert(key, settled), None, "push {key:?} is settled twice");
        }
        let (shards, workers) = (number(&summary["shards"]), number(&summary["workers"]));
        let this = Self { outcomes, shards, workers };
        this.check_numbers();
        this.check_versions();
        let on_first = |outcome: &str| this.count(0, outcome);
        assert_eq!(number(&summary["steps"]), on_first("applied"));
        assert_eq!(number(&summary["pushes"]), on_first("applied") + on_first("void"));
        assert_eq!(number(&summary["pushes_partial"]), this.void());
        this
    }

    fn count(&self, shard: u64, outcome: &str) -> u64 {
        self.outcomes.iter().filter(|(key, settled)| key.0 == shard && settled.outcome == outcome).count()
            as u64
    }

    /// Pushes of a worker, which are as many on each shard.
    pub fn pushes(&self, worker: u64) -> u64 {
        self.outcomes.keys().filter(|key| key.0 == 0 && key.1 == worker).count() as u64
    }

    /// Pushes that are void on a shard, over all shards.
    pub fn void(&self) -> u64 {
        (0..self.shards).map(|shard| self.count(shard, "void")).sum()
    }

    fn check_numbers(&self) {
        for worker in 0..self.workers {
            let of = |shard| -> BTreeSet<u64> {
                self.outcomes
                    .keys()
                    .filter(|key| key.0 == shard && key.1 == worker)
                    .map(|key| key.2)
                    .collect()
            };
            let first = of(0);
            let gap = (0..first.len() as u64).find(|sequence| !first.contains(sequence));
            assert_eq!(gap, None, "of worker {worker} the push of this number is lost");
            for shard in 1..self.shards {
                let differing: Vec<u64> = of(shard).symmetric_difference(&first).copied().collect();
                assert!(
                    differing.is_empty(),
                    "worker {worker}, on one of shards 0 and {shard}: {differing:?}"
                );
            }
            for sequence in first {
                let applied =
                    (0..self.shards).any(|s| self.outcomes[&(s, worker, sequence)].outcome == "applied");
                assert!(applied, "push {sequence} of worker {worker} is void on every shard");
            }
        }
    }

    /// Each version of a shard is made by one applied push.
    fn check_versions(&self) {
        for shard in 0..self.shards {
            let of_shard = self.outcomes.iter().filter(|(key, _)| key.0 == shard).map(|(_, settled)| settled);
            let mut versions: Vec<u64> = Vec::new();
            for settled in of_shard {
                match (settled.outcome.as_str(), settled.version) {
                    ("applied", Some(version)) => versions.push(version),
                    ("void", None) => {}
                    _ => panic!("in this mode a push is applied or void, and not {settled:?}"),
                }
            }
            versions.sort_unstable();
            assert!(versions.iter().copied().eq(1..=versions.len() as u64), "shard {shard}: {versions:?}");
        }
    }
}
