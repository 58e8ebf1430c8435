//! Names the ways of training: how pushes are combined and how far workers may drift apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How pushes are combined and how far workers may drift apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Mode {
    /// Every step averages one gradient per worker.
    Sync {
        /// The k slowest workers of each step are left out (Chen et al. 2016, "Revisiting Distributed Synchronous
        /// SGD"). 0 waits for all.
        #[serde(default)]
        backup: u32,
    },
    /// Every gradient is applied at once, whatever it was computed on.
    Async {
        /// What staleness does to the learning rate.
        #[serde(default)]
        scaling: StalenessScaling,
    },
    /// As async, but no worker is more than `staleness` steps ahead of the slowest (Ho et al. 2013).
    Ssp {
        /// Bound in steps; `None` is no bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        staleness: Option<u64>,
        /// What staleness does to the learning rate.
        #[serde(default)]
        scaling: StalenessScaling,
    },
}

/// What the staleness tau of a push does to the learning rate it is applied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StalenessScaling {
    /// Nothing.
    #[default]
    None,
    /// Divides it by max(1, tau) (Zhang et al. 2015, "Staleness-aware Async-SGD").
    Inverse,
}

impl Mode {
    /// The mode's name without its parameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync { .. } => "sync",
            Self::Async { .. } => "async",
            Self::Ssp { .. } => "ssp",
        }
    }

    /// Whether all shards always show the values of one and the same step.
    pub fn has_common_steps(&self) -> bool {
        matches!(self, Self::Sync { .. })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync { backup: 0 } | Self::Async { .. } => f.write_str(self.name()),
            Self::Sync { backup } => write!(f, "sync with {backup} backup workers"),
            Self::Ssp { staleness: Some(bound), .. } => write!(f, "ssp:{bound}"),
            Self::Ssp { staleness: None, .. } => f.write_str("ssp without bound"),
        }
    }
}

/// The membership of a run over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Membership {
    /// The cohort never changes; a dead worker is restarted and goes on where it stood.
    #[default]
    Fixed,
}

impl FromStr for Membership {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed),
            other => Err(format!("unknown membership {other}; possible is fixed")),
        }
    }
}
