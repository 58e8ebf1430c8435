//! Says what a simulated run consists of, in one line that replays it.

use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::optimizer::{Optimizer, Sgd};
use windlass_common::plan::{
    Clients, Cluster, Codecs, Data, FORMAT, Fedavg, Heterogeneity, Hosting, LocalWork, Membership, Mode,
    Model, Partition, Plan, Sampler, Training, Weights,
};
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
    /// Owners of data; without a number there is one for each worker.
    pub clients: Option<u32>,
    /// The chance of a client to drop out of a round.
    pub dropout: f64,
    /// Server processes, each with one shard.
    pub shards: u32,
    /// How values are written on the wire.
    pub codecs: Codecs,
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
    /// Workers that lose every connection and join again as what they are, with what they have at hand.
    pub cuts: Vec<Kill>,
}

/// The death of a worker, or the loss of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Whose.
    pub worker: WorkerId,
    /// After so many deliveries since the start of the run.
    pub at: u64,
    /// It is started again after so many more, or when nothing else can happen; `None` is never.
    pub back_after: Option<u64>,
}

/// The work of a client with this learning rate; how many steps it takes is up to the problem.
pub fn local(rate: f64) -> LocalWork {
    LocalWork { rate, ..LocalWork::default() }
}

/// Rounds that wait for all whom they ask, each an equal chance.
pub fn fedavg(rounds: u64, cohort: u32, rate: f64) -> Fedavg {
    Fedavg {
        rounds,
        cohort,
        asked: cohort,
        quorum: cohort,
        deadline_ms: None,
        sampler: Sampler::Uniform,
        weights: Weights::Examples,
        hosting: Hosting::Balanced,
        local: local(rate),
    }
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
            clients: None,
            dropout: 0.0,
            shards: 1,
            codecs: Codecs::default(),
            optimizer: Optimizer::Sgd(Sgd::default()),
            schedule: constant(0.1),
            target,
            pace: if seed.is_multiple_of(2) { Pace::Even } else { Pace::Skewed },
            silent: Vec::new(),
            kills: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Rounds of federated averaging over so many clients, whose mean is added as it is.
    pub fn federated(seed: u64, fedavg: Fedavg, workers: u32, clients: u32) -> Self {
        Self {
            clients: Some(clients),
            schedule: constant(1.0),
            ..Self::new(seed, Mode::Fedavg(fedavg), workers, 1)
        }
    }

    /// The plan of this run.
    ///
    /// # Panics
    /// If the plan is not possible: then the test is wrong.
    pub fn plan(&self, problem: &dyn Problem) -> Plan {
        let clients = self.clients.unwrap_or(self.workers);
        let plan = Plan {
            format: FORMAT,
            name: "simulated".into(),
            // The initial values are the same whatever the order of delivery.
            seed: 1,
            mode: self.mode.clone(),
            cluster: Cluster {
                servers: self.shards,
                shards_per_server: 1,
                replicas: 0,
                workers: self.workers,
                membership: Membership::Fixed,
                join_deadline_s: JOIN_DEADLINE_S,
                rejoin_deadline_s: REJOIN_DEADLINE_S,
                // Here nobody says that it lives.
                lease_s: 3600,
                stall_deadline_s: 86_400,
            },
            clients: Clients {
                count: clients,
                partition: Partition::Iid,
                held_out: 0.0,
                feature_noise: 0.0,
                sizes: (0..clients).map(|c| problem.client(ClientId(c)).examples).collect(),
            },
            heterogeneity: Heterogeneity { dropout: self.dropout, ..Heterogeneity::default() },
            training: Training {
                batch: 1,
                passes: 1.0,
                compute_threads: 1,
                evaluate_every: 1 << 40,
                overlap: true,
            },
            codecs: self.codecs,
            optimizer: self.optimizer,
            schedule: self.schedule.clone(),
            checkpoints: Default::default(),
            data: Data {
                path: String::new(),
                label_column: String::new(),
                validation: 0,
                train_examples: self.target,
                fingerprint: "0".repeat(16),
            },
            model: Model { name: "simulated".into(), variables: problem.variables() },
        };
        plan.check().unwrap_or_else(|e| panic!("{e}"));
        plan
    }
}
