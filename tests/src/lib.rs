//! Shows that a cluster trains what a single process would train, without a socket, a thread or a clock.
//!
//! [`cluster`] runs the real cores with messages in memory; [`oracle`] says what must come out; [`scenario`] plays
//! text files against one core. The tests themselves are in `tests/tests`, the text files in `tests/scenarios`, and
//! patches that each break one rule in `tests/mutations`.
//!
//! `WINDLASS_SEED=17` replays one seed, `WINDLASS_SEED_TIMES=20` searches twenty times as many, and `UPDATE_SCENARIOS=1`
//! rewrites the text files with what came out.

pub mod audit;
pub mod check;
pub mod cluster;
pub mod oracle;
pub mod problem;
pub mod scenario;
pub mod seeds;
pub mod sim;
