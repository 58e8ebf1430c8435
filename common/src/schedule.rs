//! Says what the learning rate is after so many examples.
//!
//! A schedule is a function of the examples applied, over all workers and passes, not of steps: so runs in different
//! modes, or with different numbers of workers, go through the same rates over the same work. It is evaluated in f64
//! with `libm`, which gives the same bits on every machine, and rounded to f32 once.

#[cfg(test)]
mod tests;

use std::f64::consts::PI;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most drops of a step schedule.
pub const DROPS_MAX: usize = 64;

/// The share of the peak rate that a warm-up starts at.
///
/// Goyal et al. start at the rate of one worker, 1/n of the peak; a schedule knows no n, so the start is fixed.
pub const WARM_UP_START: f64 = 0.1;

const RATE_RANGE: RangeInclusive<f64> = 1e-30..=1e6;

/// The learning rate over a run.
///
/// The rate rises linearly from [`WARM_UP_START`] of the peak to the peak over the warm-up (Goyal et al. 2017,
/// "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", section 2.2, "gradual warmup"), without a jump, and
/// then follows the shape.
///
/// Reading TOML does not check ranges: call [`Schedule::check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The peak, reached when the warm-up ends.
    pub rate: f64,
    /// The share of all examples over which the rate rises to the peak; in [0, 1).
    pub warm_up: f64,
    /// How the rate falls afterwards.
    pub shape: Shape,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { rate: 0.1, warm_up: 0.03, shape: Shape::default() }
    }
}

/// How the rate goes on after the warm-up.
///
/// In TOML it is a table whose `name` chooses the shape. As a flag it is `constant`, `cosine`, `cosine:0.01`, `step` or
/// `step:0.5,0.75:0.1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", from = "Written")]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Drops at given shares of all examples; by default as He et al. 2016, "Deep Residual Learning for Image
    /// Recognition", section 4.2, do: to a tenth at a half and at three quarters.
    Step {
        /// The shares of all examples at which the rate drops, rising, each beyond the warm-up and below 1.
        at: Vec<f64>,
        /// What the rate is multiplied by at each; in (0, 1].
        factor: f64,
    },
    /// Falls along half a cosine from the end of the warm-up to the end of the run (Loshchilov and Hutter 2017, "SGDR:
    /// Stochastic Gradient Descent with Warm Restarts", equation 5, with one period and no restart).
    Cosine {
        /// The share of the peak that it ends at; in [0, 1].
        final_share: f64,
    },
}

impl Default for Shape {
    fn default() -> Self {
        Self::Cosine { final_share: cosine_final_share() }
    }
}

fn cosine_final_share() -> f64 {
    0.01
}

fn step_at() -> Vec<f64> {
    vec![0.5, 0.75]
}

fn step_factor() -> f64 {
    0.1
}

/// A shape as it stands in a file. It is a type of its own because serde accepts any field beside a unit variant.
#[derive(Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
enum Written {
    Constant(Nothing),
    Step(Step),
    Cosine(Cosine),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default = "step_at")]
    at: Vec<f64>,
    #[serde(default = "step_factor")]
    factor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cosine {
    #[serde(default = "cosine_final_share")]
    final_share: f64,
}

impl From<Written> for Shape {
    fn from(written: Written) -> Self {
        match written {
            Written::Constant(Nothing {}) => Self::Constant,
            Written::Step(Step { at, factor }) => Self::Step { at, factor },
            Written::Cosine(Cosine { final_share }) => Self::Cosine { final_share },
        }
    }
}

/// Why a text or a set of numbers is not a schedule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ScheduleError {
    #[error("there is no schedule {text:?}; write constant, cosine, cosine:0.01, step or step:0.5,0.75:0.1")]
    Unknown { text: String },
    #[error("schedule {text:?} has {part:?} where a number should be; write it as {example}")]
    Number { text: String, part: String, example: &'static str },
    #[error("the learning rate is {found:?}; its peak must lie between 1e-30 and 1e6")]
    Rate { found: f64 },
    #[error("the warm-up is {found:?} of the run; it must be at least 0 and below 1")]
    WarmUp { found: f64 },
    #[error("the cosine schedule ends at {found:?} of the peak rate; it must lie between 0 and 1")]
    FinalShare { found: f64 },
    #[error("the step schedule multiplies the rate by {found:?}; it must be above 0 and at most 1")]
    Factor { found: f64 },
    #[error("the step schedule has {found} drops; 1 to {DROPS_MAX} are possible")]
    Drops { found: usize },
    #[error(
        "the step schedule drops at {found:?} of the run; each drop must come after {after:?} and before 1"
    )]
    At { found: f64, after: f64 },
}

impl Schedule {
    /// The learning rate of an update when `applied` of `total` examples have been applied before it.
    ///
    /// It is above 0 at 0, at the peak when the warm-up ends, and at or beyond `total` it stays at its final value. The
    /// schedule must have passed [`Schedule::check`].
    pub fn rate(&self, applied: u64, total: u64) -> f32 {
        // Beyond 2^53 examples f64 rounds them, by less than one part in 10^15.
        let (applied, total) = (applied as f64, total as f64);
        let warm_up = self.warm_up * total;
        let share = if applied < warm_up {
            WARM_UP_START + (1.0 - WARM_UP_START) * (applied / warm_up)
        } else {
            self.shape.share(applied, warm_up, total)
        };
        (self.rate * share) as f32
    }

    /// Whether every number is in its range.
    ///
    /// # Errors
    /// Names the first that is not, with what was found and what would be right.
    pub fn check(&self) -> Result<(), ScheduleError> {
        if !RATE_RANGE.contains(&self.rate) {
            return Err(ScheduleError::Rate { found: self.rate });
        }
        if !(0.0..1.0).contains(&self.warm_up) {
            return Err(ScheduleError::WarmUp { found: self.warm_up });
        }
        self.shape.check(self.warm_up)
    }
}

impl Shape {
    /// The share of the peak rate, once the warm-up is over.
    fn share(&self, applied: f64, warm_up: f64, total: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Step { at, factor } => {
                let passed = at.iter().take_while(|&&at| applied >= at * total);
                passed.fold(1.0, |share, _| share * factor)
            }
            Self::Cosine { final_share } if applied >= total => *final_share,
            Self::Cosine { final_share } => {
                let progress = (applied - warm_up) / (total - warm_up);
                final_share + (1.0 - final_share) * 0.5 * (1.0 + libm::cos(PI * progress))
            }
        }
    }

    fn check(&self, warm_up: f64) -> Result<(), ScheduleError> {
        match self {
            Self::Constant => Ok(()),
            Self::Cosine { final_share } if (0.0..=1.0).contains(final_share) => Ok(()),
            Self::Cosine { final_share } => Err(ScheduleError::FinalShare { found: *final_share }),
            Self::Step { at, factor } => {
                if !(*factor > 0.0 && *factor <= 1.0) {
                    return Err(ScheduleError::Factor { found: *factor });
                }
                if at.is_empty() || at.len() > DROPS_MAX {
                    return Err(ScheduleError::Drops { found: at.len() });
                }
                let mut after = warm_up;
                for &found in at {
                    if !(found > after && found < 1.0) {
                        return Err(ScheduleError::At { found, after });
                    }
                    after = found;
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Shape {
    type Err = ScheduleError;

    /// Reads `constant`, `cosine`, `cosine:0.01`, `step`, `step:0.5,0.75` or `step:0.5,0.75:0.1`; ranges are checked.
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let number = |part: &str, example| {
            let error = || ScheduleError::Number { text: text.to_owned(), part: part.to_owned(), example };
            part.trim().parse::<f64>().map_err(|_| error())
        };
        let shares = |parts: &str| -> Result<Vec<f64>, ScheduleError> {
            parts.split(',').map(|part| number(part, "step:0.5,0.75:0.1")).collect()
        };
        let parts: Vec<&str> = text.trim().split(':').collect();
        let shape = match parts[..] {
            ["constant"] => Self::Constant,
            ["cosine"] => Self::Cosine { final_share: cosine_final_share() },
            ["cosine", share] => Self::Cosine { final_share: number(share, "cosine:0.01")? },
            ["step"] => Self::Step { at: step_at(), factor: step_factor() },
            ["step", at] => Self::Step { at: shares(at)?, factor: step_factor() },
            ["step", at, factor] => {
                Self::Step { at: shares(at)?, factor: number(factor, "step:0.5,0.75:0.1")? }
            }
            _ => {
                return Err(ScheduleError::Unknown { text: text.to_owned() });
            }
        };
        shape.check(0.0)?;
        Ok(shape)
    }
}

impl fmt::Display for Shape {
    /// Writes the form that [`FromStr`] reads, with every number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Cosine { final_share } => write!(f, "cosine:{final_share:?}"),
            Self::Step { at, factor } => {
                let at: Vec<String> = at.iter().map(|at| format!("{at:?}")).collect();
                write!(f, "step:{}:{factor:?}", at.join(","))
            }
        }
    }
}
