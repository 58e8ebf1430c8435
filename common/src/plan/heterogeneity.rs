//! Says how fast and how reliable the emulated machines are.
//!
//! On one machine every worker is as fast as the others and the network is the memory. What a cluster of unequal ones
//! would do to a mode can be seen all the same: a step is made to last as long as a draw says, some workers are slow,
//! clients drop out, links have a rate. All draws are keyed by the seed, the worker and its step, so a repeated run has
//! the same ones whatever happens in between.

mod text;

#[cfg(test)]
mod tests;

use std::f64::consts::PI;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use self::text::Time;
use super::PlanError;
use crate::ids::{Step, WorkerId};
use crate::rng::{Purpose, Rng};

/// Longest mean of an emulated step, in microseconds: ten minutes.
pub const STEP_TIME_MAX_US: u64 = 600_000_000;
/// Largest deviation of the logarithm of a step's time; beyond it hardly any draw is near the mean.
pub const SIGMA_MAX: f64 = 3.0;
/// Largest factor by which a slow worker is slower.
pub const SLOW_FACTOR_MAX: f64 = 1000.0;
/// Slowest and fastest emulated link, in bits per second.
pub const LINK_RATE_RANGE: RangeInclusive<u64> = 100_000..=1_000_000_000_000;

/// What is emulated of a cluster of unequal machines; by default nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heterogeneity {
    /// How long a step takes at least; `None` is as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_time: Option<StepTime>,
    /// How many workers are slow at a time.
    pub slow_workers: u32,
    /// How many times longer a slow worker's step takes.
    pub slow_factor: f64,
    /// Which workers are the slow ones.
    pub slow_pattern: SlowPattern,
    /// The share of a round's clients that drop out; in [0, 1).
    pub dropout: f64,
    /// The rate of each process's link in each direction; `None` is as fast as it goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_rate: Option<LinkRate>,
}

impl Default for Heterogeneity {
    fn default() -> Self {
        Self {
            step_time: None,
            slow_workers: 0,
            slow_factor: 4.0,
            slow_pattern: SlowPattern::Permanent,
            dropout: 0.0,
            link_rate: None,
        }
    }
}

/// How long an emulated step takes, before slowness. As a flag and in TOML it is a text such as `exp:20ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepTime {
    /// `const:20ms`: always the same.
    Const {
        /// The time in microseconds.
        mean_us: u64,
    },
    /// `exp:20ms`: exponentially distributed (Dutta et al. 2018, "Slow and Stale Gradients Can Win the Race").
    Exp {
        /// The mean in microseconds.
        mean_us: u64,
    },
    /// `lognormal:20ms:0.5`: its logarithm is normally distributed.
    Lognormal {
        /// The mean in microseconds, that of the time and not of its logarithm.
        mean_us: u64,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
}

/// Which workers are slow. As a flag and in TOML it is `permanent` or `rotate:5`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowPattern {
    /// The last ones by rank, always.
    #[default]
    Permanent,
    /// `rotate:5`: one set in turn, for 5 steps each, counted by each worker's own steps.
    Rotate {
        /// Steps for which a set is slow.
        steps: u64,
    },
}

/// The rate of a link in bits per second. As a flag and in TOML it is a text such as `100mbit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRate(pub u64);

impl Heterogeneity {
    /// Whether everything is in its range, for so many workers.
    ///
    /// # Errors
    /// Names the first flag that is not, what was found and what would be right.
    pub fn check(&self, workers: u32) -> Result<(), PlanError> {
        let wrong = |flag, found: String, possible: String| Err(PlanError::Range { flag, found, possible });
        if let Some(Err(possible)) = self.step_time.map(StepTime::check) {
            return wrong("--step-time", "not possible".into(), possible);
        }
        if self.slow_workers > workers {
            return wrong(
                "--slow-workers",
                self.slow_workers.to_string(),
                format!("at most the {workers} workers there are can be slow"),
            );
        }
        if self.slow_workers > 0 && self.step_time.is_none() {
            return wrong(
                "--slow-workers",
                self.slow_workers.to_string(),
                "slowness multiplies the emulated time of a step: give --step-time, too".into(),
            );
        }
        if !(1.0..=SLOW_FACTOR_MAX).contains(&self.slow_factor) {
            let possible = format!("1 to {SLOW_FACTOR_MAX} is possible");
            return wrong("--slow-factor", self.slow_factor.to_string(), possible);
        }
        if let Err(possible) = self.slow_pattern.check() {
            return wrong("--slow-pattern", self.slow_pattern.to_string(), possible);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let possible = "0 to below 1, the share of a round's clients, is possible".into();
            return wrong("--dropout", self.dropout.to_string(), possible);
        }
        if let Some(Err(possible)) = self.link_rate.map(LinkRate::check) {
            return wrong("--link-rate", "not possible".into(), possible);
        }
        Ok(())
    }

    /// How long this worker's step lasts, in microseconds; `None` where no time is emulated. It depends on nothing but
    /// the arguments.
    pub fn step_time_us(&self, seed: u64, worker: WorkerId, workers: u32, step: Step) -> Option<u64> {
        let drawn = self.step_time?.draw(seed, worker, step);
        let factor = if self.is_slow(worker, workers, step) { self.slow_factor } else { 1.0 };
        // A time beyond u64, which takes more than 500,000 years, is cut off by the conversion.
        Some(libm::round(drawn * factor) as u64)
    }

    /// The mean of this worker's steps such as this one, in microseconds; `None` where no time is emulated.
    pub fn mean_step_time_us(&self, worker: WorkerId, workers: u32, step: Step) -> Option<u64> {
        let factor = if self.is_slow(worker, workers, step) { self.slow_factor } else { 1.0 };
        Some(libm::round(self.step_time?.mean_us() as f64 * factor) as u64)
    }

    /// Whether this worker is slow at this step of its own.
    pub fn is_slow(&self, worker: WorkerId, workers: u32, step: Step) -> bool {
        let [rank, workers, slow] = [worker.0, workers, self.slow_workers].map(u64::from);
        if rank >= workers {
            return false;
        }
        let first = match self.slow_pattern {
            SlowPattern::Permanent => workers.saturating_sub(slow),
            SlowPattern::Rotate { steps } => (step.0 / steps.max(1)) % workers * slow % workers,
        };
        (rank + workers - first) % workers < slow
    }
}

impl StepTime {
    /// The mean over all steps, in microseconds.
    pub fn mean_us(self) -> u64 {
        match self {
            Self::Const { mean_us } | Self::Exp { mean_us } | Self::Lognormal { mean_us, .. } => mean_us,
        }
    }

    fn draw(self, seed: u64, worker: WorkerId, step: Step) -> f64 {
        let mut rng = Rng::new(seed, Purpose::StepTime { worker: worker.0, step: step.0 });
        let mean = self.mean_us() as f64;
        match self {
            Self::Const { .. } => mean,
            Self::Exp { .. } => -mean * libm::log(rng.unit()),
            Self::Lognormal { sigma, .. } => {
                // Box and Muller 1958. The mean of exp(sigma z) is exp(sigma^2 / 2), which is taken out.
                let radius = libm::sqrt(-2.0 * libm::log(rng.unit()));
                let normal = radius * libm::cos(2.0 * PI * rng.unit());
                mean * libm::exp(sigma * normal - sigma * sigma / 2.0)
            }
        }
    }

    fn check(self) -> Result<(), String> {
        if !(1..=STEP_TIME_MAX_US).contains(&self.mean_us()) {
            return Err(format!("a step's mean time of 1us to {} is possible", Time(STEP_TIME_MAX_US)));
        }
        match self {
            Self::Lognormal { sigma, .. } if !(0.0..=SIGMA_MAX).contains(&sigma) => {
                Err(format!("a deviation of the logarithm from 0 to {SIGMA_MAX} is possible"))
            }
            _ => Ok(()),
        }
    }
}

impl SlowPattern {
    fn check(self) -> Result<(), String> {
        match self {
            Self::Rotate { steps: 0 } => Err("a turn lasts at least 1 step".into()),
            _ => Ok(()),
        }
    }
}

impl LinkRate {
    fn check(self) -> Result<(), String> {
        let (least, most) = LINK_RATE_RANGE.into_inner();
        match LINK_RATE_RANGE.contains(&self.0) {
            true => Ok(()),
            false => Err(format!("a rate of {} to {} is possible", Self(least), Self(most))),
        }
    }
}
