//! The checked, complete configuration of a run, the same text for every process.

mod check;
mod checkpoints;
mod cluster;
mod federated;
mod heterogeneity;
mod mode;
mod partition;

use serde::{Deserialize, Serialize};

pub use checkpoints::{Checkpoints, EVERY_SECONDS_MAX, Every, EveryError, KEEP_MAX};
pub use cluster::{Cluster, LEASE_S, STALL_DEADLINE_S};
pub use federated::{
    CLIENTS_MAX, COHORT_MAX, Fedavg, Hosting, LocalWork, ROUNDS_MAX, Sampler, StragglerWork, Weights,
};
pub use heterogeneity::{
    Heterogeneity, LINK_RATE_RANGE, LinkRate, SIGMA_MAX, SLOW_FACTOR_MAX, STEP_TIME_MAX_US, SlowPattern,
    StepTime,
};
pub use mode::{COMPENSATED_MAX, Membership, Mode, POLYNOMIAL_EXPONENT, Stale, StalenessScaling};
pub use partition::{DIRICHLET_CLASS_DRAWS_MAX, DIRICHLET_CLASS_EXAMPLES_MIN, Partition, PartitionError};

use crate::codec::{Codec, Patch};
use crate::cohort::Hosts;
use crate::ids::{Examples, Step, WorkerId};
use crate::layout::{Layout, LayoutError, Variable};
use crate::optimizer::Optimizer;
use crate::placement::{Placement, PlacementError};
use crate::schedule::Schedule;

/// The version of the plan's text; a file of another version is refused.
pub const FORMAT: u32 = 2;
/// Longest text of a plan, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Most workers of one run; every server has a connection to each.
pub const WORKERS_MAX: u32 = 1024;
/// Most servers of one run.
pub const SERVERS_MAX: u32 = 128;
/// Most shards of one server: a worker has a stream to each.
pub const SHARDS_PER_SERVER_MAX: u32 = 32;
/// Most examples of one batch of one worker; counts up to here are exact in f32.
pub const BATCH_MAX: u32 = 1 << 24;
/// Most examples computed for one push, counted with repetition.
pub const WORK_MAX: u64 = 1 << 40;
/// Most bytes of pushes that one server process holds for one step.
pub const HELD_BYTES_MAX: u64 = 64 << 30;

/// Most bytes of what codecs have left out that one server process keeps for checkpoints.
pub const LEFT_OUT_BYTES_MAX: u64 = 64 << 30;

/// The checked, complete configuration of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this text, [`FORMAT`].
    pub format: u32,
    /// The run's name, which is also the name of its directory.
    pub name: String,
    /// All randomness of the run follows from it. At most 2^63 - 1, for TOML's sake.
    pub seed: u64,
    /// The way of training.
    pub mode: Mode,
    /// Who takes part.
    pub cluster: Cluster,
    /// To whom the data belong.
    pub clients: Clients,
    /// What is emulated of a cluster of unequal machines.
    #[serde(default)]
    pub heterogeneity: Heterogeneity,
    /// How much is trained on, and in what portions.
    pub training: Training,
    /// How values are written on the wire.
    #[serde(default, skip_serializing_if = "Codecs::is_default")]
    pub codecs: Codecs,
    /// What the shards do with a mean gradient.
    pub optimizer: Optimizer,
    /// The learning rate as a function of the examples applied.
    pub schedule: Schedule,
    /// How often a checkpoint is kept.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// What is trained on.
    pub data: Data,
    /// What is trained.
    pub model: Model,
}

/// To whom the data belong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// Owners of data.
    pub count: u32,
    /// How the examples are dealt to them.
    pub partition: Partition,
    /// The share of each one's examples that it is judged by and does not train on; 0 to below 1.
    #[serde(default)]
    pub held_out: f64,
    /// Variance of the noise on the features of the last client's examples; that of the others grows up to it.
    #[serde(default)]
    pub feature_noise: f64,
    /// The number of each one's examples; empty where whoever made the plan does not know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<u32>,
}

impl Clients {
    /// Each worker is the one client of its own, and the data are dealt at random.
    pub fn one_per_worker(workers: u32) -> Self {
        let (partition, sizes) = (Partition::Iid, Vec::new());
        Self { count: workers, partition, held_out: 0.0, feature_noise: 0.0, sizes }
    }
}

/// When a training is over, and by what it is told how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// When so many examples have been applied.
    Examples(u64),
    /// When so many rounds have been closed.
    Rounds(u64),
}

impl Goal {
    /// How far a training is that has closed `open` steps and applied `examples`, in the unit of the goal.
    pub fn position(self, open: Step, examples: Examples) -> u64 {
        match self {
            Self::Examples(_) => examples.0,
            Self::Rounds(_) => open.0,
        }
    }

    /// Where it is over.
    pub fn total(self) -> u64 {
        match self {
            Self::Examples(total) | Self::Rounds(total) => total,
        }
    }
}

/// How much is trained on, and in what portions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Examples per worker and step.
    pub batch: u32,
    /// Passes over the data, counted in examples over all workers; may be a fraction.
    pub passes: f64,
    /// Threads that share the computation of one gradient in each worker.
    pub compute_threads: u32,
    /// The test accuracy is taken each time so much more has been done: examples applied, or rounds in fedavg.
    pub evaluate_every: u64,
    /// Whether gradients leave layer by layer as they are made, and values are used as they come, in modes whose workers
    /// push gradients. It changes no value.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub overlap: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(is: &bool) -> bool {
    *is
}

/// How values are written on the wire, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codecs {
    /// What workers push. What a biased codec leaves out of a push is added to the next one of the same client.
    pub push: Codec,
    /// What workers pull: each value by itself, so that whoever misses a version misses nothing; or, with top-k, in patches to
    /// a reference that all workers share.
    pub pull: Codec,
}

impl Codecs {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn check(self) -> Result<(), PlanError> {
        if self.pull.is_for_values_alone() || Patch::of(self.pull).is_some() {
            return Ok(());
        }
        let possible = "f32, bf16, f16, int8 and topk from 1.5625%, one of 64 values, are possible".into();
        Err(PlanError::Range { flag: "--pull-codec", found: self.pull.to_string(), possible })
    }
}

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Where the launching machine has it; a worker elsewhere may name its own copy.
    pub path: String,
    /// Name of the label column, for CSV.
    pub label_column: String,
    /// Examples of the training part that are held out to judge by, in place of the test part.
    #[serde(default)]
    pub validation: u64,
    /// Examples to train on, over all clients.
    pub train_examples: u64,
    /// A hash of the whole data, 16 hexadecimal digits, by which every worker knows that it has the same. Empty where
    /// whoever made the plan does not have the data.
    pub fingerprint: String,
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What the workers know it by, for example `2nn`.
    pub name: String,
    /// Its variables, in the order in which they are computed.
    pub variables: Vec<Variable>,
}

/// Why a text is not a plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("the plan cannot be read: {0}")]
    Text(String),
    #[error("the plan has {found} bytes; at most {TEXT_BYTES_MAX} are possible")]
    TooLong { found: usize },
    #[error("the plan has format {found}; this program reads format {FORMAT}")]
    Format { found: u32 },
    #[error("{flag} is {found}; {possible}")]
    Range { flag: &'static str, found: String, possible: String },
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// Says in one sentence what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(PlanError::TooLong { found: text.len() });
        }
        /// Only the version, so that a newer text is refused for what it is and not for a field nobody knows.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let unreadable = |e: toml::de::Error| PlanError::Text(e.to_string().trim_end().replace('\n', " "));
        let Versioned { format } = toml::from_str(text).map_err(unreadable)?;
        if format != FORMAT {
            return Err(PlanError::Format { found: format });
        }
        let plan: Self = toml::from_str(text).map_err(unreadable)?;
        plan.check()?;
        Ok(plan)
    }

    /// What would be another training in this plan than in `other`; `None` if a checkpoint of the one can be gone on with under
    /// the other. Names, sizes of the cluster and how often checkpoints are kept may differ.
    pub fn differs_in_training(&self, other: &Self) -> Option<&'static str> {
        let clients = |plan: &Self| {
            // Where workers train for themselves each deals the data among as many as there are.
            let is_own = plan.mode.local().is_none() && plan.clients.partition == Partition::Iid;
            (!is_own || plan.clients.count != plan.cluster.workers).then(|| plan.clients.clone())
        };
        let training = |plan: &Self| Training { overlap: true, ..plan.training };
        let differences = [
            ("its model", self.model != other.model),
            ("its mode", self.mode != other.mode),
            ("its optimizer", self.optimizer != other.optimizer),
            ("its codecs", self.codecs != other.codecs),
            ("its learning rate", self.schedule != other.schedule),
            ("its seed", self.seed != other.seed),
            ("how much is trained", training(self) != training(other)),
            (
                "its data",
                self.data.fingerprint != other.data.fingerprint
                    || self.data.train_examples != other.data.train_examples
                    || self.data.validation != other.data.validation,
            ),
            ("its clients", clients(self) != clients(other)),
        ];
        differences.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
    }

    /// The text that [`Plan::parse`] reads; equal plans have equal texts.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a checked plan has no value that TOML cannot hold")
    }

    /// A hash of the text, by which two processes know that they have the same plan.
    pub fn hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.to_text().as_bytes())
    }

    /// The model's variables end to end.
    ///
    /// # Errors
    /// If the variables are not a model; a checked plan has none of that.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        Layout::new(self.model.variables.clone())
    }

    /// Which shard owns which part of the model.
    ///
    /// # Errors
    /// If the model cannot be placed; a checked plan can.
    pub fn placement(&self) -> Result<Placement, PlanError> {
        Ok(Placement::new(&self.layout()?, self.cluster.shards())?)
    }

    /// When the training is over.
    pub fn goal(&self) -> Goal {
        match &self.mode {
            Mode::Fedavg(fedavg) => Goal::Rounds(fedavg.rounds),
            _ => {
                let examples = (self.training.passes * self.data.train_examples as f64).round();
                Goal::Examples((examples as u64).max(1))
            }
        }
    }

    /// The training ends when this many examples have been applied; 0 where it ends after rounds.
    pub fn examples_target(&self) -> Examples {
        match self.goal() {
            Goal::Examples(total) => Examples(total),
            Goal::Rounds(_) => Examples(0),
        }
    }

    /// Whether a run goes on when a worker does not come back: where a round has a quorum without some of its cohort.
    pub fn goes_on_without_workers(&self) -> bool {
        matches!(&self.mode, Mode::Fedavg(fedavg) if fedavg.quorum < fedavg.cohort)
    }

    /// Whether a worker and the threads that serve its pushes are to keep to one core where all of the run is on a machine with so
    /// many: each push passes several threads, one after the other, on its way to a standby and back, and each core has as many workers.
    pub fn keeps_to_cores(&self, cores: usize) -> bool {
        let Cluster { workers, replicas, membership, .. } = self.cluster;
        let passes_alone =
            matches!(self.mode, Mode::Async { .. } | Mode::Ssp { .. }) && self.mode.in_flight() == 1;
        replicas > 0
            && passes_alone
            && membership == Membership::Fixed
            && self.training.compute_threads == 1
            && (workers as usize).is_multiple_of(cores)
    }

    /// Who hosts whom when the training begins with these workers.
    pub fn hosts(&self, members: &[WorkerId]) -> Hosts {
        match self.clients.partition {
            Partition::Own => Hosts::own(self.clients.count),
            _ => Hosts::dealt(self.clients.count, members),
        }
    }
}
