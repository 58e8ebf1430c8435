//! Says how often a run keeps a checkpoint, and how many.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most checkpoints that a plan keeps.
pub const KEEP_MAX: u32 = 1000;
/// Seconds between two checkpoints at most.
pub const EVERY_SECONDS_MAX: u64 = 7 * 86_400;

/// How often a run keeps a checkpoint, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoints {
    /// How often.
    pub every: Every,
    /// So many of the newest stay; older ones are removed.
    pub keep: u32,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { every: Every::Never, keep: 2 }
    }
}

/// How often something is done. As a text it is `never`, `30s` or `500steps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Every {
    /// Only when it is asked for.
    #[default]
    Never,
    /// Each time so many seconds have passed.
    Seconds(u64),
    /// Each time so many optimizer steps, or rounds, have been made.
    Steps(u64),
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Seconds(seconds) => write!(f, "{seconds}s"),
            Self::Steps(steps) => write!(f, "{steps}steps"),
        }
    }
}

/// What is wrong with a text that should say how often.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} does not say how often: never, a number of seconds as 30s (1s to 604800s), or of steps as 500steps are possible"
)]
pub struct EveryError {
    found: String,
}

impl FromStr for Every {
    type Err = EveryError;

    fn from_str(text: &str) -> Result<Self, EveryError> {
        let error = || EveryError { found: text.to_owned() };
        if text == "never" {
            return Ok(Self::Never);
        }
        let number = |digits: &str, most: u64| {
            let number: u64 = digits.parse().map_err(|_| error())?;
            if (1..=most).contains(&number) { Ok(number) } else { Err(error()) }
        };
        if let Some(digits) = text.strip_suffix("steps") {
            return number(digits, i64::MAX as u64).map(Self::Steps);
        }
        let digits = text.strip_suffix('s').ok_or_else(error)?;
        number(digits, EVERY_SECONDS_MAX).map(Self::Seconds)
    }
}

impl TryFrom<String> for Every {
    type Error = EveryError;

    fn try_from(text: String) -> Result<Self, EveryError> {
        text.parse()
    }
}

impl From<Every> for String {
    fn from(every: Every) -> Self {
        every.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_how_often() {
        for (text, every) in
            [("never", Every::Never), ("30s", Every::Seconds(30)), ("500steps", Every::Steps(500))]
        {
            assert_eq!((text.parse(), every.to_string()), (Ok(every), text.to_owned()));
        }
        for wrong in ["", "30", "s", "0s", "0steps", "-1s", "1.5s", "700000s", "5 steps", "steps"] {
            assert!(wrong.parse::<Every>().is_err(), "{wrong:?}");
        }
    }
}
