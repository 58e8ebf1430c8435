//! Says what a simulated run consists of, in one line that replays it.

use windlass_common::ids::WorkerId;
use windlass_common::optimizer::{Optimizer, Sgd};
use windlass_common::plan::{Cluster, Data, FORMAT, Membership, Mode, Model, Plan, Training};
use windlass_common::schedule::{Schedule, Shape};

use super::links::Pace;
use crate::problem::Problem;

/// Seconds that a lost worker is waited for.
pub const REJOIN_DEADLINE_S: u64 = 600;
/// Seconds that step 0 waits for everyone.
pub const JOIN_DEADLINE_S: u64 = 600;

/// A simulated run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Decides in which order messages arrive, and what else is left to chance.
    pub seed: u64,
    /// The way of training.
    pub mode: Mode,
    /// Workers.
    pub workers: u32,
    /// Server processes, each with one shard.
    pub shards: u32,
    /// What the shards do with a gradient.
    pub optimizer: Optimizer,
    /// The learning rate.
    pub schedule: Schedule,
    /// Examples at which the training ends.
    pub target: u64,
    /// How the links share the deliveries.
    pub pace: Pace,
    /// Workers that join, pull for step 0 and are never heard of again.
    pub silent: Vec<WorkerId>,
    /// Workers that die.
    pub kills: Vec<Kill>,
}

/// The death of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Who dies.
    pub worker: WorkerId,
    /// After so many deliveries since the start of the run.
    pub at: u64,
    /// It is started again after so many more, or when nothing else can happen; `None` is never.
    pub back_after: Option<u64>,
}

/// A rate that never changes.
pub fn constant(rate: f64) -> Schedule {
    Schedule { rate, warm_up: 0.0, shape: Shape::Constant }
}

impl Config {
    /// A run with plain SGD at a constant rate of 0.1 on one shard.
    pub fn new(seed: u64, mode: Mode, workers: u32, target: u64) -> Self {
        Self {
            seed,
            mode,
            workers,
            shards: 1,
            optimizer: Optimizer::Sgd(Sgd::default()),
            schedule: constant(0.1),
            target,
            pace: if seed.is_multiple_of(2) { Pace::Even } else { Pace::Skewed },
            silent: Vec::new(),
            kills: Vec::new(),
        }
    }

    /// The plan of this run.
    ///
    /// # Panics
    /// If the plan is not possible: then the test is wrong.
    pub fn plan(&self, problem: &dyn Problem) -> Plan {
        let plan = Plan {
            format: FORMAT,
            name: "simulated".into(),
            // The initial values are the same whatever the order of delivery.
            seed: 1,
            mode: self.mode,
            cluster: Cluster {
                servers: self.shards,
                shards_per_server: 1,
                workers: self.workers,
                membership: Membership::Fixed,
                join_deadline_s: JOIN_DEADLINE_S,
                rejoin_deadline_s: REJOIN_DEADLINE_S,
            },
            training: Training { batch: 1, passes: 1.0, compute_threads: 1, evaluate_every: 1 << 40 },
            optimizer: self.optimizer,
            schedule: self.schedule.clone(),
            data: Data {
                path: String::new(),
                label_column: String::new(),
                train_examples: self.target,
                fingerprint: "0".repeat(16),
            },
            model: Model { name: "simulated".into(), variables: problem.variables() },
        };
        plan.check().unwrap_or_else(|e| panic!("{e}"));
        plan
    }
}
