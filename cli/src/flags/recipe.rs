//! Lists the flags that say what is trained and how.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use windlass_common::codec::Codec;
use windlass_common::layout::{Initial, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::plan::{LEASE_S, Membership, STALL_DEADLINE_S, StalenessScaling};
use windlass_common::schedule::Shape;

use super::federated::{ClientFlags, FederatedFlags, HeterogeneityFlags};
use super::keeping::KeepingFlags;

/// Whether workers may come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MembershipFlag {
    /// The cohort never changes: a worker that dies is restarted and goes on where it stood
    Fixed,
    /// Workers join and leave at any time, and the training goes on with those who are there
    Elastic,
}

impl RecipeFlags {
    /// The membership of the plan.
    pub(crate) fn membership(&self) -> Membership {
        match self.membership {
            MembershipFlag::Fixed => Membership::Fixed,
            MembershipFlag::Elastic => {
                Membership::Elastic { workers_max: self.workers_max.unwrap_or(self.workers) }
            }
        }
    }
}

/// Where a plan comes from: a file, or flags.
#[derive(Args, Clone, Debug)]
pub(crate) struct SourceFlags {
    /// Repeat the run of this plan.toml, under a new name; the flags that would change the plan are not possible then
    #[arg(long, value_name = "FILE", help_heading = "This run")]
    pub(crate) plan: Option<PathBuf>,
    /// Name of the run [default: model and mode with a number, such as 2nn-sync-1]
    #[arg(long, value_name = "NAME", help_heading = "This run")]
    pub(crate) name: Option<String>,
    /// Folder of four IDX files (gzip or not), folder with train.csv and test.csv, or one CSV file [default:
    /// what the environment variable WINDLASS_DATA says, or else data/mnist; with --plan, where the plan says]
    #[arg(long, value_name = "PATH", help_heading = "Model and data")]
    pub(crate) data: Option<PathBuf>,
    /// Start this program instead of windlass-worker. It is given --identity FILE and --coordinator HOST:PORT
    #[arg(long, value_name = "FILE", help_heading = "A worker of your own")]
    pub(crate) worker_program: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) checkpoints: KeepingFlags,
    #[command(flatten)]
    pub(crate) recipe: RecipeFlags,
}

/// What is trained and how, as it goes into the plan.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecipeFlags {
    /// softmax (784-10), 2nn (784-200-200-10), cnn, or mlp:IN-HIDDEN-...-OUT such as mlp:784-300-100-10
    #[arg(long, value_name = "NAME", default_value = "2nn", help_heading = "Model and data")]
    pub(crate) model: String,
    /// Name of the column that holds the labels, for CSV
    #[arg(long, value_name = "NAME", default_value = windlass_worker::data::LABEL_COLUMN, help_heading = "Model and data")]
    pub(crate) label_column: String,

    /// How pushes are combined: sync averages one gradient per worker and step; async applies each at once; ssp too,
    /// but no worker may run far ahead of the slowest; softsync averages the next few, whoever computed them, and
    /// batchsync those of them that are not stale; fedavg averages what clients have learned in a round; fedbuff the next
    /// few of those; fedasync mixes each in at once
    #[arg(long, value_enum, default_value_t = ModeName::Sync, help_heading = "Mode")]
    pub(crate) mode: ModeName,
    /// ssp: how many steps a worker may be ahead of the slowest; inf is no bound [default: 4]
    #[arg(long, value_name = "STEPS", help_heading = "Mode")]
    pub(crate) staleness: Option<Bound>,
    /// sync: how many workers, the slowest of each step, are left out [default: 0]
    #[arg(long, value_name = "COUNT", help_heading = "Mode")]
    pub(crate) backup: Option<u32>,
    /// All but sync and fedavg: what the staleness t of a push does to its rate: none; inverse divides it by max(1, t);
    /// polynomial:E multiplies it by (1 + t)^-E, E = 0.5 unless given; hinge:A:B by 1 / (A (t - B) + 1) beyond B
    /// [default: none; fedbuff and fedasync polynomial]
    #[arg(long, value_name = "RULE", help_heading = "Mode")]
    pub(crate) staleness_rate: Option<StalenessScaling>,
    /// async and ssp: add LAMBDA g g (w - v) to a gradient g that was computed on v, where the values are w by now; each
    /// shard then keeps a version for each worker [default: none]
    #[arg(long, value_name = "LAMBDA", allow_negative_numbers = true, help_heading = "Mode")]
    pub(crate) compensate: Option<f32>,
    /// async and ssp: gradients of each worker under way, 1 or 2: with 2 it computes the next one on the values that it has
    /// while one is on its way and is answered; ssp takes a bound of at least 1 then [default: 1]
    #[arg(long, value_name = "COUNT", help_heading = "Mode")]
    pub(crate) in_flight: Option<u32>,

    /// Number of server processes
    #[arg(long, value_name = "COUNT", default_value_t = 2, help_heading = "Cluster")]
    pub(crate) servers: u32,
    /// Shards in each server process, each with a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "Cluster")]
    pub(crate) shards_per_server: u32,
    /// Copies of each shard, on other servers, that are kept equal to it, so that nothing is lost with a server: 0 or 1
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = "Cluster",
          value_parser = clap::value_parser!(u32).range(0..=1))]
    pub(crate) replicas: u32,
    /// Number of worker processes
    #[arg(long, value_name = "COUNT", default_value_t = 3, help_heading = "Cluster")]
    pub(crate) workers: u32,
    /// Threads that compute one gradient in each worker
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "Cluster")]
    pub(crate) compute_threads: u32,
    /// Whether workers may come and go while the training goes on
    #[arg(long, value_name = "RULE", value_enum, default_value_t = MembershipFlag::Fixed, help_heading = "Cluster")]
    pub(crate) membership: MembershipFlag,
    /// elastic: most workers that may take part; --workers of them begin [default: --workers]
    #[arg(long, value_name = "COUNT", help_heading = "Cluster")]
    pub(crate) workers_max: Option<u32>,
    /// How long step 0 waits for all servers and workers, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Cluster")]
    pub(crate) join_deadline: u64,
    /// How long a worker that was lost is waited for, in seconds; with elastic membership, how long the training waits for
    /// somebody when no worker is left
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Cluster")]
    pub(crate) rejoin_deadline: u64,
    /// A worker of which nothing is heard for so long is silent, and given up with elastic membership, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = LEASE_S, help_heading = "Cluster")]
    pub(crate) lease: u64,
    /// A worker that others wait for and that makes no step for so long is given up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = STALL_DEADLINE_S, help_heading = "Cluster")]
    pub(crate) stall_deadline: u64,

    /// Examples per step of a worker or client; inf is all of a client's [default: 64; 10 for a client]
    #[arg(long, value_name = "EXAMPLES", help_heading = "Training")]
    pub(crate) batch: Option<BatchFlag>,
    /// Passes over the data, counted in examples over all workers; may be a fraction [default: 8]
    #[arg(long, allow_negative_numbers = true, value_name = "PASSES", help_heading = "Training")]
    pub(crate) passes: Option<f64>,
    /// All randomness of the run follows from this number
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Training")]
    pub(crate) seed: u64,
    /// Take the test accuracy each time this many more examples have been applied, or rounds in fedavg [default: one pass;
    /// one round]
    #[arg(long, value_name = "COUNT", help_heading = "Training")]
    pub(crate) evaluate_every: Option<u64>,

    /// How workers write what they push: f32, bf16, f16, int8 (a byte for each value), int8-stochastic, topk:SHARE (the
    /// largest of each variable, such as topk:1%) or sign. What int8, topk and sign leave out goes into the next push
    #[arg(long, value_name = "CODEC", default_value_t = Codec::F32, help_heading = "Wire")]
    pub(crate) push_codec: Codec,
    /// How servers write the values that workers pull: f32, bf16, f16, int8 or topk:SHARE (of each 64 those that have changed
    /// most, from topk:1.5625% on; the others come later). They keep and evaluate all of f32
    #[arg(long, value_name = "CODEC", default_value_t = Codec::F32, help_heading = "Wire")]
    pub(crate) pull_codec: Codec,
    /// Push a gradient when all of it is made, and compute the next when all values have come, rather than layer by layer.
    /// The values are the same either way
    #[arg(long, help_heading = "Wire")]
    pub(crate) no_overlap: bool,

    /// What the servers do: sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, fedadagrad, fedadam or fedyogi, with settings if need be:
    /// adam:beta1=0.9,epsilon=1e-8
    #[arg(long, value_name = "NAME", default_value = "sgd", help_heading = "Optimizer")]
    pub(crate) optimizer: Optimizer,
    /// Weight decay, added to the gradient as decay x value (adamw: taken from the value itself; fedadagrad, fedadam and
    /// fedyogi have none) [default: 0, adamw 0.01]
    #[arg(long, allow_negative_numbers = true, value_name = "DECAY", help_heading = "Optimizer")]
    pub(crate) weight_decay: Option<f64>,
    /// Peak learning rate of the servers; in fedasync the share of a client's values [default: fedavg and fedbuff 1,
    /// fedasync 0.6; otherwise sgd 0.1; momentum and nesterov 0.01; these three in sync times the gradients
    /// averaged per step, at most 4 times; adagrad 0.01; rmsprop, adam and adamw 0.001; fedadagrad, fedadam and fedyogi
    /// 0.03]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE", help_heading = "Optimizer")]
    pub(crate) rate: Option<RateFlag>,
    /// How the rate goes on after the warm-up: constant, cosine (to 1 % of the peak), cosine:SHARE, step (a tenth at
    /// 50 and 75 % of the run) or step:AT,AT:FACTOR [default: cosine; constant where clients train by themselves]
    #[arg(long, value_name = "SHAPE", help_heading = "Optimizer")]
    pub(crate) schedule: Option<Shape>,
    /// Share of the run over which the rate rises to its peak, from 0 to below 1 [default: 0.03; 0 where clients train by
    /// themselves]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Optimizer")]
    pub(crate) warm_up: Option<f64>,

    #[command(flatten)]
    pub(crate) clients: ClientFlags,
    #[command(flatten)]
    pub(crate) federated: FederatedFlags,
    #[command(flatten)]
    pub(crate) heterogeneity: HeterogeneityFlags,

    /// A variable of a model of your own, such as weight:8x1 or dense/weight:8x4:he-normal; INIT is zeros (default),
    /// he-normal (fan-in: all dimensions but the last) or he-normal=FAN_IN. Repeat it for each, in order. Nothing is
    /// evaluated then
    #[arg(long = "variable", value_name = "NAME:SHAPE[:INIT]", requires_all = ["worker_program", "examples"],
          conflicts_with = "model", help_heading = "A worker of your own")]
    pub(crate) variables: Vec<OwnVariable>,
    /// Training examples in one pass, for a model of your own
    #[arg(long, value_name = "COUNT", requires = "variables", help_heading = "A worker of your own")]
    pub(crate) examples: Option<u64>,
}

/// The name of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    Sync,
    Async,
    Ssp,
    Softsync,
    Batchsync,
    Fedavg,
    Fedbuff,
    Fedasync,
}

impl ModeName {
    /// Every mode.
    pub(crate) const ALL: [Self; 8] = [
        Self::Sync,
        Self::Async,
        Self::Ssp,
        Self::Softsync,
        Self::Batchsync,
        Self::Fedavg,
        Self::Fedbuff,
        Self::Fedasync,
    ];

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
            Self::Ssp => "ssp",
            Self::Softsync => "softsync",
            Self::Batchsync => "batchsync",
            Self::Fedavg => "fedavg",
            Self::Fedbuff => "fedbuff",
            Self::Fedasync => "fedasync",
        }
    }

    /// Whether clients train by themselves.
    pub(crate) fn is_federated(self) -> bool {
        matches!(self, Self::Fedavg | Self::Fedbuff | Self::Fedasync)
    }
}

/// A learning rate, or that one is to be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RateFlag {
    Value(f64),
    /// `windlass compare` lets each mode choose.
    Auto,
}

impl FromStr for RateFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Value).map_err(|_| "write a number, or auto".into()),
        }
    }
}

/// A whole number of something; `None` is infinity.
fn or_inf<T: FromStr>(text: &str, what: &str) -> Result<Option<T>, String> {
    match text {
        "inf" => Ok(None),
        number => number.parse().map(Some).map_err(|_| format!("write a whole number of {what}, or inf")),
    }
}

/// Examples per step; `None` is all that a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFlag(pub(crate) Option<u32>);

impl FromStr for BatchFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        or_inf(text, "examples").map(Self)
    }
}

/// The bound of ssp; `None` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound(pub(crate) Option<u64>);

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        or_inf(text, "steps").map(Self)
    }
}

/// A variable of a model that is not built in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnVariable(pub(crate) Variable);

impl FromStr for OwnVariable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (name, sizes, initial) = match parts[..] {
            [name, sizes] => (name, sizes, "zeros"),
            [name, sizes, initial] => (name, sizes, initial),
            _ => return Err("write NAME:SHAPE or NAME:SHAPE:INIT, such as weight:8x1:zeros".into()),
        };
        let size = |size: &str| {
            let wrong = || format!("{size:?} is not a size; write the shape as 8x1, or 10 for one dimension");
            size.parse::<u64>().map_err(|_| wrong())
        };
        let shape: Vec<u64> = sizes.split('x').map(size).collect::<Result<_, _>>()?;
        let initial = match initial.split_once('=') {
            None if initial == "zeros" => Initial::Zeros,
            None if initial == "he-normal" => {
                let mut inputs = shape[..shape.len() - 1].iter();
                let fan_in = inputs.try_fold(1_u64, |product, &d| product.checked_mul(d));
                Initial::HeNormal { fan_in: fan_in.ok_or("the shape has too many values")? }
            }
            Some(("he-normal", fan_in)) => Initial::HeNormal {
                fan_in: fan_in.parse().map_err(|_| format!("fan-in {fan_in:?} is not a whole number"))?,
            },
            _ => {
                return Err(format!(
                    "there are no initial values {initial:?}; write zeros, he-normal or he-normal=FAN_IN"
                ));
            }
        };
        Ok(Self(Variable { name: name.to_owned(), shape, initial }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read() {
        let read = |text: &str| text.parse::<OwnVariable>().map(|v| v.0);
        assert_eq!(read("weight:8x1:zeros"), Ok(Variable::new("weight", &[8, 1], Initial::Zeros)));
        assert_eq!(read("bias:1"), Ok(Variable::new("bias", &[1], Initial::Zeros)));
        let he = |fan_in| Initial::HeNormal { fan_in };
        assert_eq!(read("a/w:5x5x3x8:he-normal"), Ok(Variable::new("a/w", &[5, 5, 3, 8], he(75))));
        assert_eq!(read("w:10:he-normal"), Ok(Variable::new("w", &[10], he(1))));
        assert_eq!(read("w:10:he-normal=7"), Ok(Variable::new("w", &[10], he(7))));
        for text in
            ["", "w", "w:", "w:8x", "w:-1", "w:8:ones", "w:8:zeros:more", "w:8:he-normal=x", "w:8:zeros=1"]
        {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_read() {
        assert_eq!("inf".parse(), Ok(Bound(None)));
        assert_eq!("0".parse(), Ok(Bound(Some(0))));
        assert!("-1".parse::<Bound>().is_err() && "".parse::<Bound>().is_err());
    }
}
