//! Says how a run stands, for people and programs that watch it.

#![allow(missing_docs, missing_debug_implementations)]

use rkyv::{Archive, Deserialize, Serialize};

use super::message::{Meter, Wait};
use crate::ids::{Examples, Incarnation, Lineage, ServerId, ShardId, Step, Term, Version, WorkerId};

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Status {
    pub phase: Phase,
    pub term: Term,
    /// Examples applied on shard 0.
    pub examples: Examples,
    /// Examples at which the training ends; 0 where it ends after rounds.
    pub examples_target: Examples,
    /// Federated rounds closed.
    pub rounds: u64,
    /// Federated rounds at which the training ends; 0 where it ends after examples.
    pub rounds_target: u64,
    /// Applications on shard 0: optimizer steps.
    pub steps: u64,
    /// Pushes settled on shard 0.
    pub pushes: u64,
    /// Mean loss of the last pushes, if there were any.
    pub loss: Option<f32>,
    /// Microseconds since 1970 at which the first push was applied.
    pub first_applied_us: Option<u64>,
    pub meter: Meter,
    /// Ordered by worker.
    pub workers: Vec<WorkerStatus>,
    /// Ordered by shard; those that have reported.
    pub shards: Vec<ShardStatus>,
    /// Requests that have waited for others for a second or more, ordered by shard and worker.
    pub blocked: Vec<Blocked>,
    pub checkpoints: CheckpointStatus,
    /// Which servers have each shard, ordered by shard, where they are kept more than once.
    pub seats: Vec<SeatStatus>,
    /// What the run waits for, in a sentence; empty when it moves.
    pub waiting: String,
    /// What is wrong and what to do, in sentences; empty when nothing is.
    pub advice: Vec<String>,
}

/// Which servers have a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SeatStatus {
    pub shard: ShardId,
    pub primary: ServerId,
    pub standby: Option<ServerId>,
    /// Whether the standby has all, so that nothing is lost with the primary.
    pub is_full: bool,
}

/// How a run's checkpoints stand.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// How often the run has been restored.
    pub lineage: Lineage,
    /// Whether it has gone on with the copies that servers had, the last time, and lost nothing.
    pub is_kept: bool,
    /// The newest that is complete.
    pub newest: Option<Checkpointed>,
    /// Those that were begun since the coordinator's process was started, and how many of them came to nothing.
    pub begun: u64,
    pub failed: u64,
    /// Why the last one came to nothing; empty when it did not.
    pub failure: String,
}

/// A checkpoint that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Checkpointed {
    pub number: u64,
    /// Microseconds since 1970.
    pub at_us: u64,
    /// Examples applied, and federated rounds closed.
    pub examples: Examples,
    pub rounds: u64,
}

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Phase {
    /// Waiting for the planned servers and workers.
    Gathering,
    Training,
    /// The last step is done and the result is being collected.
    Finishing,
    Done,
    Failed,
}

/// How a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: WorkerId,
    pub state: WorkerState,
    pub incarnation: Incarnation,
    /// Whether steps and rounds count on it.
    pub member: bool,
    /// Steps settled on shard 0.
    pub clock: Step,
    /// The step that it says it is at.
    pub step: Step,
    /// Microseconds since its last word; `None` if there was none.
    pub silent_us: Option<u64>,
    /// Mean staleness of its last pushes on shard 0.
    pub staleness: Option<f32>,
    /// Bytes that it says it has sent and received, by UDP payload.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Clients whose data it has.
    pub clients: u32,
}

/// How a shard stands, by its last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ShardStatus {
    pub shard: ShardId,
    pub version: Version,
    /// The first step that has not been applied.
    pub open: Step,
    /// Requests that wait for its thread.
    pub queue: u32,
    /// Pushes held for a step.
    pub held: u32,
    /// Pulls that wait for others.
    pub parked: u32,
    /// Memory of its values, optimizer state, held pushes and snapshots.
    pub bytes: u64,
    /// Microseconds since the report.
    pub silent_us: u64,
}

/// A request that waits for others.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Blocked {
    pub shard: ShardId,
    pub worker: WorkerId,
    /// The step that it asks values for.
    pub step: Step,
    /// Whom it waits for.
    pub wait: Wait,
    /// Microseconds since it was first seen waiting for this.
    pub since_us: u64,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum WorkerState {
    /// It has not joined yet.
    Expected,
    /// It takes part.
    Active,
    /// Nothing has been heard of it for a lease.
    Silent,
    /// Its process has ended, or its connection is closed.
    Dead,
    /// It has finished, or has gone before the end of its own will.
    Left,
}
