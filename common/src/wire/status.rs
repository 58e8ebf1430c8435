//! Says how a run stands, for people and programs that watch it.

#![allow(missing_docs, missing_debug_implementations)]

use rkyv::{Archive, Deserialize, Serialize};

use super::message::Meter;
use crate::ids::{Examples, Incarnation, Step, Term, WorkerId};

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
    /// What the run waits for, in a sentence; empty when it moves.
    pub waiting: String,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: WorkerId,
    pub state: WorkerState,
    pub incarnation: Incarnation,
    /// Steps settled on shard 0.
    pub clock: Step,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum WorkerState {
    /// It has not joined yet.
    Expected,
    /// It takes part.
    Active,
    /// Its connection is gone and it may come back.
    Lost,
    /// It has finished.
    Left,
}
