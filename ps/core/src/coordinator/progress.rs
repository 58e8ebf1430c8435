//! Adds up what the shards report into how far the run has come.

use std::collections::BTreeMap;

use windlass_common::ids::{Examples, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::plan::{Goal, Plan};
use windlass_common::wire::{CheckpointStatus, Meter, Outcome, Phase, Record, Status};

/// The loss shown is a mean over about this many pushes.
const LOSS_PUSHES: f32 = 50.0;
/// The staleness shown is a mean over about this many pushes of a worker.
const STALENESS_PUSHES: f32 = 20.0;

/// How far the run has come. Counts are those of shard 0; every push goes to every shard.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    examples: Examples,
    /// Those of the shard that has most. Where shards apply by themselves, what is void on some is missing there.
    examples_most: Examples,
    steps: u64,
    pushes: u64,
    loss: Option<f32>,
    first_applied_us: Option<u64>,
    clocks: BTreeMap<WorkerId, Step>,
    /// Of each worker's pushes, a mean over about [`STALENESS_PUSHES`].
    staleness: BTreeMap<WorkerId, f32>,
    meters: BTreeMap<ServerId, Meter>,
}

impl Progress {
    /// Of a run that has come so far already.
    pub(crate) fn from(examples: Examples, steps: u64) -> Self {
        Self { examples, examples_most: examples, steps, ..Self::default() }
    }

    /// Examples applied on shard 0.
    pub(crate) fn examples(&self) -> Examples {
        self.examples
    }

    /// Optimizer steps of shard 0.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn records(&mut self, shard: ShardId, records: &[Record]) {
        let applied = records.iter().map(|r| r.examples_applied).max().unwrap_or_default();
        self.examples_most = self.examples_most.max(applied);
        if shard != ShardId(0) {
            return;
        }
        for record in records {
            self.pushes += 1;
            let clock = match record.outcome {
                Outcome::Late { step } => step,
                Outcome::Applied { .. } | Outcome::Void => record.step.next(),
            };
            self.clocks.insert(record.worker, clock);
            self.examples = self.examples.max(record.examples_applied);
            if let Outcome::Applied { version, staleness } = record.outcome {
                let newest = staleness as f32;
                let mean = self.staleness.entry(record.worker).or_insert(newest);
                *mean += (newest - *mean) / STALENESS_PUSHES;
                self.steps = self.steps.max(version.0);
                self.first_applied_us.get_or_insert(record.at_us);
                self.loss = Some(match self.loss {
                    Some(mean) if mean.is_finite() => mean + (record.loss - mean) / LOSS_PUSHES,
                    _ => record.loss,
                });
            }
        }
    }

    /// The examples of the shard that is furthest: it is the first to tell workers of the end.
    pub(crate) fn examples_most(&self) -> Examples {
        self.examples_most
    }

    pub(crate) fn measured(&mut self, server: ServerId, meter: Meter) {
        self.meters.insert(server, meter);
    }

    pub(crate) fn clock(&self, worker: WorkerId) -> Step {
        self.clocks.get(&worker).copied().unwrap_or_default()
    }

    /// Mean staleness of a worker's last pushes, if there were any.
    pub(crate) fn staleness(&self, worker: WorkerId) -> Option<f32> {
        self.staleness.get(&worker).copied()
    }

    /// How far the run has come; of workers and shards it says nothing.
    pub(crate) fn status(&self, phase: Phase, term: Term, plan: &Plan, rounds: u64) -> Status {
        let sum = |part: fn(&Meter) -> u64| self.meters.values().map(part).sum();
        Status {
            phase,
            term,
            examples: self.examples,
            examples_target: plan.examples_target(),
            rounds,
            rounds_target: match plan.goal() {
                Goal::Rounds(total) => total,
                Goal::Examples(_) => 0,
            },
            steps: self.steps,
            pushes: self.pushes,
            loss: self.loss,
            first_applied_us: self.first_applied_us,
            meter: Meter {
                payload_up: sum(|m| m.payload_up),
                payload_down: sum(|m| m.payload_down),
                wire_up: sum(|m| m.wire_up),
                wire_down: sum(|m| m.wire_down),
                shards_us: sum(|m| m.shards_us),
            },
            workers: Vec::new(),
            shards: Vec::new(),
            blocked: Vec::new(),
            seats: Vec::new(),
            checkpoints: CheckpointStatus::default(),
            waiting: String::new(),
            advice: Vec::new(),
        }
    }
}
