//! Names the ways of training: how pushes are combined and how far workers may drift apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Fedavg, Hosting, LocalWork, PlanError};

/// How pushes are combined and how far workers may drift apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
        /// How much of what has changed since a gradient's values is made up for: the lambda of
        /// [`compensate`](crate::compensate::compensate), finite and not negative. `None`, as 0, is nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        compensation: Option<f32>,
        /// Gradients of one worker under way: with 2 it computes the next on the values at hand while the last is on its
        /// way and the pull with it is answered, with 1 it waits. 1 or 2.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        in_flight: u32,
    },
    /// As async, but no worker is more than `staleness` steps ahead of the slowest (Ho et al. 2013).
    Ssp {
        /// Bound in steps; `None` is no bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        staleness: Option<u64>,
        /// What staleness does to the learning rate.
        #[serde(default)]
        scaling: StalenessScaling,
        /// As in async.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        compensation: Option<f32>,
        /// As in async; 2 takes a bound of at least 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        in_flight: u32,
    },
    /// Every so many gradients make one step, whoever computed them, and nobody waits (Zhang et al. 2016,
    /// "Staleness-aware Async-SGD", n-softsync; Dutta et al. 2018, "Slow and Stale Gradients Can Win the Race",
    /// K-batch-async).
    Softsync {
        /// Gradients that make one step.
        buffer: u32,
        /// What staleness does to a gradient.
        #[serde(default)]
        scaling: StalenessScaling,
        /// What becomes of a gradient that was computed on values which are no longer the newest.
        #[serde(default)]
        stale: Stale,
    },
    /// Federated averaging: in each round some clients train on their own data, and the weighted mean of how their
    /// values have changed is a pseudo-gradient (McMahan et al. 2017; Reddi et al. 2021).
    Fedavg(Fedavg),
    /// Every so many clients' pseudo-gradients make one step, and nobody waits (Nguyen et al. 2022, "Federated Learning
    /// with Buffered Asynchronous Aggregation").
    Fedbuff {
        /// Pseudo-gradients that make one step (K).
        buffer: u32,
        /// What staleness does to a pseudo-gradient.
        #[serde(default)]
        scaling: StalenessScaling,
        /// What a client does.
        local: LocalWork,
    },
    /// Each client's values are mixed with the newest ones at once (Xie et al. 2019, "Asynchronous Federated
    /// Optimization"); the learning rate is the share of the client's values.
    Fedasync {
        /// What staleness does to that share.
        #[serde(default)]
        scaling: StalenessScaling,
        /// What a client does.
        local: LocalWork,
    },
}

fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

/// What becomes of a gradient that was computed on values which are no longer the newest, where several make one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stale {
    /// It counts like any other.
    #[default]
    Kept,
    /// It is late (Dutta et al. 2018, K-batch-sync).
    Late,
}

/// What the staleness tau of a push does to the learning rate it is applied with.
///
/// As a flag and in TOML it is `none`, `inverse`, `polynomial`, `polynomial:0.5` or `hinge:10:4`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum StalenessScaling {
    /// Nothing.
    #[default]
    None,
    /// Divides it by max(1, tau) (Zhang et al. 2015, "Staleness-aware Async-SGD").
    Inverse,
    /// Multiplies it by (1 + tau)^(-exponent) (Xie et al. 2019, "Asynchronous Federated Optimization", section 5.2; with
    /// 1/2 also Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation").
    Polynomial {
        /// The paper's a, by default [`POLYNOMIAL_EXPONENT`]; from 0 to 100.
        exponent: f64,
    },
    /// Multiplies it by 1 up to a staleness of b, and by 1 / (a (tau - b) + 1) beyond (Xie et al. 2019).
    Hinge {
        /// How fast it falls; from 0 to 1e6.
        a: f64,
        /// The staleness that does nothing; from 0 to 1e6.
        b: f64,
    },
}

/// The exponent of [`StalenessScaling::Polynomial`] where none is given.
pub const POLYNOMIAL_EXPONENT: f64 = 0.5;

impl StalenessScaling {
    /// What a push of this staleness counts, from 0 to 1; computed in f64 and rounded once.
    pub fn factor(self, staleness: u64) -> f32 {
        let tau = staleness as f64;
        let factor = match self {
            Self::None => 1.0,
            Self::Inverse => 1.0 / tau.max(1.0),
            Self::Polynomial { exponent } => libm::pow(1.0 + tau, -exponent),
            Self::Hinge { b, .. } if tau <= b => 1.0,
            Self::Hinge { a, b } => 1.0 / (a * (tau - b) + 1.0),
        };
        factor as f32
    }
}

impl FromStr for StalenessScaling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str, most: f64| {
            let number = part.parse().ok().filter(|number| (0.0..=most).contains(number));
            number.ok_or_else(|| format!("{part:?} in {text:?} must be a number from 0 to {most}"))
        };
        let parts: Vec<&str> = text.trim().split(':').collect();
        match parts[..] {
            ["none"] => Ok(Self::None),
            ["inverse"] => Ok(Self::Inverse),
            ["polynomial"] => Ok(Self::Polynomial { exponent: POLYNOMIAL_EXPONENT }),
            ["polynomial", exponent] => Ok(Self::Polynomial { exponent: number(exponent, 100.0)? }),
            ["hinge", a, b] => Ok(Self::Hinge { a: number(a, 1e6)?, b: number(b, 1e6)? }),
            _ => Err(format!("{text:?} is unknown; write none, inverse, polynomial:0.5 or hinge:10:4")),
        }
    }
}

impl fmt::Display for StalenessScaling {
    /// Writes the form that [`FromStr`] reads, with every number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Inverse => f.write_str("inverse"),
            Self::Polynomial { exponent } => write!(f, "polynomial:{exponent}"),
            Self::Hinge { a, b } => write!(f, "hinge:{a}:{b}"),
        }
    }
}

impl Serialize for StalenessScaling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StalenessScaling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Most workers of a run with compensation: each shard keeps the version that it sent each of them last.
pub const COMPENSATED_MAX: u32 = 256;

impl Mode {
    /// The lambda of a run that makes up for what has changed since a gradient's values; 0 makes up for nothing.
    pub fn compensation(&self) -> Option<f32> {
        match self {
            Self::Async { compensation, .. } | Self::Ssp { compensation, .. } => {
                compensation.filter(|lambda| *lambda != 0.0)
            }
            _ => None,
        }
    }

    /// Gradients of one worker that may be under way: one that is computed is one of them.
    pub fn in_flight(&self) -> u32 {
        match self {
            Self::Async { in_flight, .. } | Self::Ssp { in_flight, .. } => *in_flight,
            _ => 1,
        }
    }

    /// Whether so many gradients may be under way in this mode.
    pub(super) fn check_in_flight(&self) -> Result<(), PlanError> {
        let possible = match (self, self.in_flight()) {
            // What is computed ahead is a step further: a bound of 0 would have its worker wait for itself.
            (Self::Ssp { staleness: Some(0), .. }, 2) => {
                "in ssp it takes a bound of 1 at least: --staleness 1, or --in-flight 1"
            }
            (_, 1 | 2) => return Ok(()),
            _ => "1 or 2 is possible",
        };
        let found = self.in_flight().to_string();
        Err(PlanError::Range { flag: "--in-flight", found, possible: possible.into() })
    }

    /// The mode's name without its parameters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync { .. } => "sync",
            Self::Async { .. } => "async",
            Self::Ssp { .. } => "ssp",
            Self::Softsync { .. } => "softsync",
            Self::Fedavg(_) => "fedavg",
            Self::Fedbuff { .. } => "fedbuff",
            Self::Fedasync { .. } => "fedasync",
        }
    }

    /// Whether all shards always show the values of one and the same step.
    pub fn has_common_steps(&self) -> bool {
        match self {
            Self::Sync { .. } | Self::Softsync { .. } | Self::Fedavg(_) | Self::Fedbuff { .. } => true,
            Self::Async { .. } | Self::Ssp { .. } | Self::Fedasync { .. } => false,
        }
    }

    /// Whether a client may be trained by another worker in each round, although none has come or gone.
    pub fn is_hosting_balanced(&self) -> bool {
        matches!(self, Self::Fedavg(Fedavg { hosting: Hosting::Balanced, .. }))
    }

    /// What a client does, where clients train by themselves.
    pub fn local(&self) -> Option<&LocalWork> {
        match self {
            Self::Fedavg(Fedavg { local, .. })
            | Self::Fedbuff { local, .. }
            | Self::Fedasync { local, .. } => Some(local),
            Self::Sync { .. } | Self::Async { .. } | Self::Ssp { .. } | Self::Softsync { .. } => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync { backup: 0 } | Self::Async { .. } => f.write_str(self.name()),
            Self::Sync { backup } => write!(f, "sync with {backup} backup workers"),
            Self::Ssp { staleness: Some(bound), .. } => write!(f, "ssp:{bound}"),
            Self::Ssp { staleness: None, .. } => f.write_str("ssp without bound"),
            Self::Softsync { buffer, stale: Stale::Kept, .. } => write!(f, "softsync:{buffer}"),
            Self::Softsync { buffer, stale: Stale::Late, .. } => write!(f, "batchsync:{buffer}"),
            Self::Fedavg(_) | Self::Fedasync { .. } => f.write_str(self.name()),
            Self::Fedbuff { buffer, .. } => write!(f, "fedbuff:{buffer}"),
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
    /// Workers come and go while the training goes on, and the log of the run says who took part when.
    Elastic {
        /// Ids of workers are below this number.
        workers_max: u32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HINGE: StalenessScaling = StalenessScaling::Hinge { a: 10.0, b: 4.0 };

    #[test]
    fn factors_are_those_of_the_papers() {
        let factors = |scaling: &str, staleness: [u64; 4]| {
            let scaling: StalenessScaling = scaling.parse().unwrap();
            staleness.map(|staleness| scaling.factor(staleness))
        };
        assert_eq!(factors("none", [0, 1, 7, u64::MAX]), [1.0; 4]);
        assert_eq!(factors("inverse", [0, 1, 2, 8]), [1.0, 1.0, 0.5, 0.125]);
        assert_eq!(factors("polynomial", [0, 3, 8, 99]), [1.0, 0.5, 1.0 / 3.0, 0.1]);
        assert_eq!(factors("polynomial:1", [0, 1, 3, 9]), [1.0, 0.5, 0.25, 0.1]);
        assert_eq!(factors("polynomial:0", [0, 1, 3, 9]), [1.0; 4]);
        assert_eq!(factors("hinge:10:4", [0, 4, 5, 14]), [1.0, 1.0, 1.0 / 11.0, 1.0 / 101.0]);
    }

    #[test]
    fn flags_are_read_and_written() {
        for text in ["none", "inverse", "polynomial:0.5", "polynomial:2", "hinge:10:4", "hinge:0.25:0"] {
            assert_eq!(text.parse::<StalenessScaling>().unwrap().to_string(), text);
        }
        assert_eq!("hinge:10:4".parse(), Ok(HINGE));
        assert_eq!("polynomial".parse(), Ok(StalenessScaling::Polynomial { exponent: 0.5 }));
        for text in ["", "None", "inverse:1", "polynomial:1:2", "hinge", "hinge:10"] {
            assert!(text.parse::<StalenessScaling>().unwrap_err().contains("write none, inverse"), "{text}");
        }
        for text in
            ["polynomial:", "polynomial:-1", "polynomial:nan", "polynomial:101", "hinge:x:1", "hinge:1:inf"]
        {
            assert!(text.parse::<StalenessScaling>().unwrap_err().contains("number from 0 to"), "{text}");
        }
    }

    #[test]
    fn files_are_read_and_written() {
        for scaling in ["none", "inverse", "polynomial:0.5", "hinge:10:4"] {
            let text = format!("name = \"async\"\nscaling = \"{scaling}\"\n");
            let mode: Mode = toml::from_str(&text).unwrap();
            assert_eq!(
                mode,
                Mode::Async { scaling: scaling.parse().unwrap(), compensation: None, in_flight: 1 }
            );
            assert_eq!(toml::to_string(&mode).unwrap(), text);
        }
        let none = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
        assert_eq!(toml::from_str("name = \"async\""), Ok(none));
        assert!(toml::from_str::<Mode>("name = \"async\"\nscaling = \"hinge\"").is_err());
    }

    #[test]
    fn a_second_gradient_in_flight_is_written_and_one_is_not() {
        for (text, in_flight) in [("", 1), ("in_flight = 2\n", 2)] {
            let text = format!("name = \"ssp\"\nstaleness = 3\nscaling = \"none\"\n{text}");
            let mode: Mode = toml::from_str(&text).unwrap();
            let (scaling, compensation) = (StalenessScaling::None, None);
            assert_eq!(mode, Mode::Ssp { staleness: Some(3), scaling, compensation, in_flight });
            assert_eq!((mode.in_flight(), toml::to_string(&mode).unwrap()), (in_flight, text));
        }
        assert!(toml::from_str::<Mode>("name = \"sync\"\nin_flight = 2").is_err());
    }

    #[test]
    fn two_in_flight_take_a_bound_of_one() {
        let (scaling, compensation) = (StalenessScaling::None, None);
        let ssp = |staleness, in_flight| Mode::Ssp { staleness, scaling, compensation, in_flight };
        for mode in [ssp(Some(0), 1), ssp(Some(1), 2), ssp(None, 2)] {
            assert_eq!(mode.check_in_flight(), Ok(()), "{mode:?}");
        }
        let sentence = |mode: Mode| mode.check_in_flight().unwrap_err().to_string();
        assert!(sentence(ssp(Some(0), 2)).starts_with("--in-flight is 2; in ssp it takes a bound of 1"));
        for in_flight in [0, 3] {
            let wrong = sentence(Mode::Async { scaling, compensation, in_flight });
            assert_eq!(wrong, format!("--in-flight is {in_flight}; 1 or 2 is possible"));
        }
    }

    proptest! {
        #[test]
        fn every_lambda_is_read_as_it_was_written(lambda in 0.0_f32..=f32::MAX, small in 0.0_f32..1.0, bound: Option<u32>) {
            for lambda in [lambda, small, small * 1e-38, 0.0, f32::MIN_POSITIVE] {
                let (scaling, compensation) = (StalenessScaling::Inverse, Some(lambda));
                let staleness = bound.map(u64::from);
                let in_flight = 1;
                let modes = [
                    Mode::Async { scaling, compensation, in_flight },
                    Mode::Ssp { staleness, scaling, compensation, in_flight },
                ];
                for mode in modes {
                    let text = toml::to_string(&mode).unwrap();
                    let read: Mode = toml::from_str(&text).unwrap();
                    prop_assert_eq!(&read, &mode, "{}", text);
                    prop_assert_eq!(read.compensation().is_some(), lambda != 0.0);
                }
            }
        }

        #[test]
        fn the_staler_the_less(exponent in 0.0..4.0_f64, a in 0.0..100.0_f64, b in 0.0..50.0_f64, staleness in 0_u64..1000) {
            use StalenessScaling as S;
            for scaling in [S::None, S::Inverse, S::Polynomial { exponent }, S::Hinge { a, b }] {
                let (now, later) = (scaling.factor(staleness), scaling.factor(staleness + 1));
                prop_assert!(later <= now && later > 0.0 && now <= 1.0, "{}: {} then {}", scaling, now, later);
                prop_assert_eq!(scaling.factor(0), 1.0);
                prop_assert_eq!(scaling.to_string().parse(), Ok(scaling));
            }
        }
    }
}
