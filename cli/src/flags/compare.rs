//! Lists the flags of comparisons and of reproductions.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::{RecipeFlags, Time};
use crate::compare::ModeSpec;

/// `windlass compare`
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareFlags {
    /// The modes: sync, sync:BACKUP, async, ssp:BOUND, softsync:BUFFER, batchsync:BUFFER, fedavg, fedbuff:BUFFER, fedasync
    #[arg(
        long,
        value_name = "MODES",
        value_delimiter = ',',
        default_value = "sync,async,ssp:4,fedavg,fedbuff",
        help_heading = "Comparison"
    )]
    pub(crate) modes: Vec<ModeSpec>,
    /// Test accuracy to reach, from 0 to 1; what it took is reported beside what the whole budget gave
    #[arg(long, value_name = "ACCURACY", help_heading = "Comparison")]
    pub(crate) target: Option<f64>,
    /// Rates that --rate auto tries for each mode; if the best is the first or last, the grid grows
    #[arg(
        long,
        value_name = "RATES",
        value_delimiter = ',',
        default_value = "0.0464,0.1,0.215,0.464",
        help_heading = "Comparison"
    )]
    pub(crate) grid: Vec<f64>,
    /// Passes over the data that each rate is tried for
    #[arg(long, value_name = "PASSES", default_value_t = 1.0, help_heading = "Comparison")]
    pub(crate) grid_passes: f64,
    /// Rates chosen before, such as sync=0.464,async=0.1; shown beside the common rate
    #[arg(long, value_name = "MODE=RATE", value_delimiter = ',', help_heading = "Comparison")]
    pub(crate) mode_rates: Vec<ModeRate>,
    /// Runs of each mode, with the seeds from --seed on; more than one give intervals
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "Comparison",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) seeds: u32,
    /// A run that takes longer is stopped, and is in the table as such
    #[arg(long, value_name = "TIME", default_value = "30min", help_heading = "Comparison")]
    pub(crate) time_limit: Time,
    /// Leave out the baselines: pooled SGD, one client alone, the mean of clients alone
    #[arg(long, help_heading = "Comparison")]
    pub(crate) no_baselines: bool,
    /// Folder of the results; an interrupted comparison goes on where it was [default: runs/compare-MODEL-PARTITION]
    #[arg(long, value_name = "DIR", help_heading = "Comparison")]
    pub(crate) out: Option<PathBuf>,
    /// Folder of four IDX files (gzip or not), folder with train.csv and test.csv, or one CSV file [default: what the
    /// environment variable WINDLASS_DATA says, or else data/mnist]
    #[arg(long, value_name = "PATH", help_heading = "Model and data")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) recipe: RecipeFlags,
}

/// A mode and its rate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModeRate(pub(crate) ModeSpec, pub(crate) f64);

impl FromStr for ModeRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a mode with a rate; write sync=0.1");
        let (mode, rate) = text.split_once('=').ok_or_else(wrong)?;
        let rate =
            rate.parse::<f64>().ok().filter(|rate| *rate > 0.0 && rate.is_finite()).ok_or_else(wrong)?;
        Ok(Self(mode.parse()?, rate))
    }
}

/// `windlass reproduce`
#[derive(Clone, Debug, Args)]
pub(crate) struct ReproduceFlags {
    /// The paper: mcmahan (McMahan et al. 2017, the rounds that federated averaging takes on MNIST)
    #[arg(value_enum, value_name = "PAPER")]
    pub(crate) paper: Paper,
    /// Its table: 1 (share of clients), 2 (CNN: local work) or 4 (2NN: local work)
    #[arg(long, value_name = "TABLE", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    pub(crate) table: u32,
    /// Table 1: the rows of this model
    #[arg(long, value_enum, value_name = "MODEL", default_value_t = Rows::TwoNn)]
    pub(crate) rows: Rows,
    /// Only the cells that fit, such as C=0.1,B=10,partition=iid; known are C, E, B and partition (iid or shards:2)
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub(crate) cell: Vec<String>,
    /// Learning rates of a client to choose from, a ratio of 10^(1/3) apart
    #[arg(long, value_name = "RATES", value_delimiter = ',', default_value = "0.0464,0.1,0.215,0.464")]
    pub(crate) grid: Vec<f64>,
    /// Runs of each cell at each rate, with the seeds 1, 2 and so on
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) seeds: u32,
    /// A run without its target after so many rounds has failed [default: 1.5 times the paper's, at least 100]
    #[arg(long, value_name = "ROUNDS")]
    pub(crate) rounds_max: Option<u64>,
    /// Worker processes
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(crate) workers: u32,
    /// Folder of the results; finished runs are not repeated [default: runs/mcmahan]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Folder with MNIST [default: what the environment variable WINDLASS_DATA says, or else data/mnist]
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
}

/// A paper whose figures can be reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Paper {
    Mcmahan,
}

/// The model of a table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rows {
    #[value(name = "2nn")]
    TwoNn,
    Cnn,
}
