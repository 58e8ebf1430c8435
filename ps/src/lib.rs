//! The parameter server: threads, sessions and disk around the cores that decide.

pub mod clock;
mod coordinator;
mod crew;
mod follower;
mod gradient;
mod host;
mod keeper;
mod leader;
mod meter;
mod replication;
mod restore;
mod run_directory;
mod server;
mod session;
mod shard;
mod standby;

pub use coordinator::{DECISIONS_FILE, EVENTS_FILE};
pub use crew::Crew;
pub use run_directory::{MODEL_FILE, PLAN_FILE, SUMMARY_FILE};
pub use server::{CHECKPOINTS, Options, Part, SILENCE_MAX, limits, serve, serve_within};
