//! Reads emulated times and rates from the texts of flags, and writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{LinkRate, SlowPattern, StepTime};

impl FromStr for StepTime {
    type Err = String;

    /// Reads `const:20ms`, `exp:20ms` or `lognormal:20ms:0.5`; ranges are checked.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let time = match parts[..] {
            ["const", time] => Self::Const { mean_us: time.parse::<Time>()?.0 },
            ["exp", time] => Self::Exp { mean_us: time.parse::<Time>()?.0 },
            ["lognormal", time, sigma] => {
                let wrong = || format!("{sigma:?} is not a number; write it as in lognormal:20ms:0.5");
                let sigma = sigma.parse().map_err(|_| wrong())?;
                Self::Lognormal { mean_us: time.parse::<Time>()?.0, sigma }
            }
            _ => {
                return Err(format!(
                    "{text:?} is not a step's time; write const:20ms, exp:20ms or lognormal:20ms:0.5"
                ));
            }
        };
        time.check().map(|()| time)
    }
}

impl fmt::Display for StepTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Const { mean_us } => write!(f, "const:{}", Time(mean_us)),
            Self::Exp { mean_us } => write!(f, "exp:{}", Time(mean_us)),
            Self::Lognormal { mean_us, sigma } => write!(f, "lognormal:{}:{sigma:?}", Time(mean_us)),
        }
    }
}

impl FromStr for SlowPattern {
    type Err = String;

    /// Reads `permanent` or `rotate:5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a pattern of slowness; write permanent, or rotate:5");
        let pattern = match text.trim().split_once(':') {
            None if text.trim() == "permanent" => Self::Permanent,
            Some(("rotate", steps)) => Self::Rotate { steps: steps.parse().map_err(|_| wrong())? },
            _ => return Err(wrong()),
        };
        pattern.check().map(|()| pattern)
    }
}

impl fmt::Display for SlowPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permanent => f.write_str("permanent"),
            Self::Rotate { steps } => write!(f, "rotate:{steps}"),
        }
    }
}

const BITS: [(&str, u64); 4] = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
const MICROSECONDS: [(&str, u64); 3] = [("us", 1), ("ms", 1_000), ("s", 1_000_000)];

impl FromStr for LinkRate {
    type Err = String;

    /// Reads `500kbit`, `100mbit` or `1gbit`, each per second; the range is checked.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a rate; write a whole number, such as 500kbit, 100mbit or 1gbit");
        let rate = Self(with_unit(text, &BITS).ok_or_else(wrong)?);
        rate.check().map(|()| rate)
    }
}

impl fmt::Display for LinkRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BITS.iter().find(|(_, size)| self.0.is_multiple_of(*size));
        let (unit, size) = unit.expect("1 divides every number");
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// Microseconds, in their largest unit.
pub(super) struct Time(pub(super) u64);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time; write a whole number of us, ms or s, such as 20ms");
        with_unit(text, &MICROSECONDS).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = MICROSECONDS.iter().rev().find(|(_, size)| self.0.is_multiple_of(*size));
        let (unit, size) = unit.expect("1 divides every number");
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// A whole number and its unit. The first unit that the text ends with counts, so `bit` and `s` stand last.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let found = units.iter().find_map(|(unit, size)| Some((text.trim().strip_suffix(unit)?, size)));
    let (number, size) = found?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

/// In TOML a value is the text of its flag.
macro_rules! written_as_its_flag {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

written_as_its_flag!(StepTime, SlowPattern, LinkRate);
