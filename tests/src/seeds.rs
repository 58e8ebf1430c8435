//! Gives each test its seeds, more of them, or the one that a person wants to see again.

use std::str::FromStr;

/// Replays one seed of every test that is run.
pub const SEED_VARIABLE: &str = "WINDLASS_SEED";
/// Takes so many times as many seeds: 10 for a long search, 0.25 for a quick look.
pub const TIMES_VARIABLE: &str = "WINDLASS_SEED_TIMES";

/// The first `count` seeds, times [`TIMES_VARIABLE`] from the environment, or only the one named by
/// [`SEED_VARIABLE`].
///
/// # Panics
/// If a variable is set to something that is not a number.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match number(SEED_VARIABLE) {
        Some(seed) => seed..seed + 1,
        None => 0..((count as f64 * times()) as u64).max(1),
    }
}

/// Whether all seeds are run: then a test may ask for how often something has happened over all of them.
pub fn all_seeds() -> bool {
    number::<u64>(SEED_VARIABLE).is_none() && times() >= 1.0
}

fn times() -> f64 {
    number(TIMES_VARIABLE).unwrap_or(1.0)
}

fn number<T: FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it takes a number")))
}
