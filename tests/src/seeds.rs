//! Gives each test its seeds, or the one that a person wants to see again.

/// Replays one seed of every test that is run.
pub const SEED_VARIABLE: &str = "WINDLASS_SEED";

/// The first `count` seeds, or the only one named by the environment variable [`SEED_VARIABLE`].
///
/// # Panics
/// If the variable is set to something that is not a number.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => {
            let seed: u64 = text.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE} is {text:?}; it takes a number"));
            seed..seed + 1
        }
        Err(_) => 0..count,
    }
}
