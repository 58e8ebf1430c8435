//! Says which seeded schedules of faults a test goes through, and draws what happens in each.

use std::ops::Range;
use std::time::Duration;

use windlass_common::rng::{Purpose, Rng};

use crate::relay::Faults;

/// The environment variable that asks for more schedules: how many, or the seeds from one to before another, as `7..8`.
pub const TORTURE: &str = "WINDLASS_TORTURE";

/// The seeds to go through: `usual` many, or those that [`TORTURE`] names.
///
/// # Panics
/// If it names none.
pub fn seeds(usual: u64) -> Range<u64> {
    let Ok(text) = std::env::var(TORTURE) else { return 0..usual };
    let number = |text: &str| -> u64 {
        text.parse()
            .unwrap_or_else(|_| panic!("{TORTURE} is {text:?}; a number or a range such as 7..8 is needed"))
    };
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&text),
    }
}

/// Whether more than the usual schedules are asked for.
pub fn is_long() -> bool {
    std::env::var_os(TORTURE).is_some()
}

/// The random numbers of one schedule.
#[derive(Debug)]
pub struct Draws(Rng);

impl Draws {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed, Purpose::Disturbance))
    }

    /// A number from the range.
    pub fn number(&mut self, range: Range<u64>) -> u64 {
        range.start + self.0.below(range.end - range.start)
    }

    /// A time of so many milliseconds.
    pub fn milliseconds(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.number(range))
    }

    /// Faults between those that one hardly notices and those that one would complain about.
    pub fn faults(&mut self) -> Faults {
        let mut share = |most: f64| self.0.unit() * most + 0.005;
        let (loss, duplication, reordering) = (share(0.03), share(0.02), share(0.03));
        Faults {
            loss,
            duplication,
            reordering,
            held_back: self.milliseconds(2..12),
            delay: (Duration::from_millis(1), self.milliseconds(2..5)),
        }
    }
}
