//! Lists the flags of federated training, of how data are dealt, and of what is emulated.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use windlass_common::plan::{LinkRate, Partition, Sampler, SlowPattern, StepTime};

/// To whom the data belong.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClientFlags {
    /// Owners of data; a worker trains those that fall to it [default: one per worker]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    pub(crate) clients: Option<u32>,
    /// How examples are dealt to clients: iid, shards:2 (sorted by label, 2 shards each), dirichlet:ALPHA (per client, total
    /// concentration), dirichlet-class:BETA (per class), lognormal:SIGMA (sizes), labels:K, column:NAME (of a CSV), or own
    /// (each worker's own data)
    #[arg(long, value_name = "RULE", default_value = "iid", help_heading = "Clients")]
    pub(crate) partition: Partition,
    /// Share of each client's examples that it is judged by and does not train on
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Clients")]
    pub(crate) client_holdout: f64,
    /// Variance of Gaussian noise on the features of the last client's examples; that of the others grows up to it
    #[arg(long, value_name = "VARIANCE", default_value_t = 0.0, help_heading = "Clients")]
    pub(crate) feature_noise: f64,
    /// Hold out this many training examples and judge by them, in place of the test data
    #[arg(long, value_name = "EXAMPLES", default_value_t = 0, help_heading = "Clients")]
    pub(crate) validation: u64,
}

/// Rounds, cohorts and local work.
#[derive(Args, Clone, Debug)]
pub(crate) struct FederatedFlags {
    /// fedavg: the training ends after so many rounds [default: as many as --passes give]
    #[arg(long, value_name = "ROUNDS", help_heading = "Federated")]
    pub(crate) rounds: Option<u64>,
    /// fedavg: share of the clients in a round's cohort; 0 is one client [default: 0.1]
    #[arg(long, value_name = "SHARE", conflicts_with = "cohort", help_heading = "Federated")]
    pub(crate) fraction: Option<f64>,
    /// fedavg: clients in a round's cohort
    #[arg(long, value_name = "COUNT", help_heading = "Federated")]
    pub(crate) cohort: Option<u32>,
    /// fedavg: clients asked in a round, of which the first to push make the cohort [default: the cohort]
    #[arg(long, value_name = "COUNT", help_heading = "Federated")]
    pub(crate) ask: Option<u32>,
    /// fedavg: a round that ends early counts with so many pushes, else it is abandoned [default: the cohort; with
    /// --round-deadline, --dropout or --straggler-work dropped half of it]
    #[arg(long, value_name = "COUNT", help_heading = "Federated")]
    pub(crate) quorum: Option<u32>,
    /// fedavg: a round ends after this time, such as 500ms or 2s, whatever has come; the first one's time begins with its
    /// first push [default: none]
    #[arg(long, value_name = "TIME", help_heading = "Federated")]
    pub(crate) round_deadline: Option<Time>,
    /// fedavg: who is asked: uniform, by-size, round-robin, or list:0,1,2/3,4,5 (one list per round, repeated)
    #[arg(long, value_name = "RULE", default_value = "uniform", help_heading = "Federated")]
    pub(crate) sampler: SamplerFlag,
    /// fedavg: what a client counts in the mean
    #[arg(long, value_enum, default_value_t = WeightsName::Examples, help_heading = "Federated")]
    pub(crate) weights: WeightsName,
    /// fedavg: balanced deals each round's clients evenly to the workers, which all have all data; fixed leaves client c
    /// to worker c mod n [default: balanced; fixed with --slow-workers or --partition own]
    #[arg(long, value_enum, help_heading = "Federated")]
    pub(crate) hosting: Option<HostingName>,
    /// Passes of a client over its examples
    #[arg(
        long,
        value_name = "PASSES",
        default_value_t = 1,
        conflicts_with = "local_steps",
        help_heading = "Federated"
    )]
    pub(crate) local_passes: u32,
    /// Steps of a client, instead of passes
    #[arg(long, value_name = "STEPS", help_heading = "Federated")]
    pub(crate) local_steps: Option<u64>,
    /// Learning rate of a client
    #[arg(long, value_name = "RATE", default_value_t = 0.1, help_heading = "Federated")]
    pub(crate) local_rate: f64,
    /// What a client's rate is multiplied by with each round
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, help_heading = "Federated")]
    pub(crate) local_rate_decay: f64,
    /// Momentum of a client's steps
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Federated")]
    pub(crate) local_momentum: f64,
    /// Weight decay of a client's steps
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, help_heading = "Federated")]
    pub(crate) local_weight_decay: f64,
    /// Longest gradient of a client's step (L2 norm) [default: any]
    #[arg(long, value_name = "NORM", help_heading = "Federated")]
    pub(crate) clip_norm: Option<f64>,
    /// FedProx: mu, the pull of a client's values towards those it began with
    #[arg(long, value_name = "MU", default_value_t = 0.0, help_heading = "Federated")]
    pub(crate) proximal: f64,
    /// Share of a round's clients that manage only 1 to E - 1 passes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Federated")]
    pub(crate) stragglers: f64,
    /// What becomes of the work of those
    #[arg(long, value_enum, default_value_t = StragglerWorkName::Kept, help_heading = "Federated")]
    pub(crate) straggler_work: StragglerWorkName,
    /// fedbuff, softsync and batchsync: pushes that make one step [default: the workers]
    #[arg(long, value_name = "COUNT", help_heading = "Federated")]
    pub(crate) buffer: Option<u32>,
}

/// What is emulated of a cluster of unequal machines.
#[derive(Args, Clone, Debug)]
pub(crate) struct HeterogeneityFlags {
    /// How long a step of one batch lasts: const:20ms, exp:20ms (mean), lognormal:20ms:0.5 (mean, sigma of the logarithm);
    /// a worker sleeps for the rest, and computing longer is an error [default: as long as it takes]
    #[arg(long, value_name = "TIME", help_heading = "Emulated unequal machines")]
    pub(crate) step_time: Option<StepTime>,
    /// How many workers are slow, the last ones
    #[arg(long, value_name = "COUNT", default_value_t = 0, help_heading = "Emulated unequal machines")]
    pub(crate) slow_workers: u32,
    /// How many times longer a slow worker's step takes
    #[arg(long, value_name = "TIMES", default_value_t = 4.0, help_heading = "Emulated unequal machines")]
    pub(crate) slow_factor: f64,
    /// Whether the same ones are slow always (permanent) or one after the other, for so many steps (rotate:5)
    #[arg(
        long,
        value_name = "PATTERN",
        default_value = "permanent",
        help_heading = "Emulated unequal machines"
    )]
    pub(crate) slow_pattern: SlowPattern,
    /// Share of a round's clients that drop out
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = "Emulated unequal machines")]
    pub(crate) dropout: f64,
    /// Rate of each worker's link in each direction, such as 100mbit [default: as fast as it goes]
    #[arg(long, value_name = "RATE", help_heading = "Emulated unequal machines")]
    pub(crate) link_rate: Option<LinkRate>,
}

/// What a client counts in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsName {
    Examples,
    Uniform,
}

/// Which worker trains a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HostingName {
    Balanced,
    Fixed,
}

/// What becomes of the work of a client that did not manage all of its passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StragglerWorkName {
    Kept,
    Dropped,
}

/// A time with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time; write 500ms, 2s or 10min");
        let units = [("ms", 0.001), ("min", 60.0), ("s", 1.0)];
        let (number, factor) = units
            .into_iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, factor)))
            .ok_or_else(wrong)?;
        let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
        Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).map(Self).ok_or_else(wrong)
    }
}

/// Who is asked in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SamplerFlag(pub(crate) Sampler);

impl FromStr for SamplerFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("there is no sampler {text:?}; write uniform, by-size, round-robin or list:0,1/2,3");
        Ok(Self(match text {
            "uniform" => Sampler::Uniform,
            "by-size" => Sampler::BySize,
            "round-robin" => Sampler::RoundRobin,
            list => {
                let list = list.strip_prefix("list:").ok_or_else(wrong)?;
                let round =
                    |round: &str| round.split(',').map(|c| c.trim().parse().map_err(|_| wrong())).collect();
                Sampler::List { rounds: list.split('/').map(round).collect::<Result<_, _>>()? }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let ms = |text: &str| text.parse::<Time>().map(|t| t.0.as_millis());
        assert_eq!(
            [ms("500ms"), ms("2s"), ms("0.5 s"), ms("10min")],
            [Ok(500), Ok(2000), Ok(500), Ok(600_000)]
        );
        for text in ["", "5", "ms", "-1s", "0s", "1h"] {
            assert!(ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn samplers_are_read() {
        let read = |text: &str| text.parse::<SamplerFlag>().map(|s| s.0);
        assert_eq!(read("by-size"), Ok(Sampler::BySize));
        assert_eq!(read("list:0,1/2, 3"), Ok(Sampler::List { rounds: vec![vec![0, 1], vec![2, 3]] }));
        assert!(read("list:").is_err() && read("best").is_err());
    }
}
