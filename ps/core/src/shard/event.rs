//! Lists everything that can happen to a shard, and everything it can ask for.

use windlass_common::ids::{
    ClientId, Examples, Incarnation, Lineage, RunId, Sequence, Step, Term, Version, WorkerId,
};
use windlass_common::wire::{Order, Outcome, Pull, Push, Record, Reject, Report, Resume, Wait};

use crate::SessionId;
use crate::residuals::Residual;
use crate::shard::Image;
use crate::store::Snapshot;

/// What can happen to a shard. `B` holds the floats of a gradient.
#[derive(Debug)]
pub enum Event<B> {
    /// A worker asks for something.
    Request(Request<B>),
    /// A worker gives something for a checkpoint.
    Given(Given),
    /// An observer asks for the values at an evaluation point.
    PullSnapshot {
        /// Where the answer goes.
        session: SessionId,
        /// The number of the evaluation point.
        point: u64,
    },
    /// A stream has ended: nothing more can be answered there.
    Closed {
        /// The stream.
        session: SessionId,
    },
    /// The coordinator has decided something.
    Order(Order),
    /// Time has passed; sent about once a second.
    Tick,
}

/// A worker's request.
#[derive(Debug)]
pub struct Request<B> {
    /// Where the answer goes.
    pub session: SessionId,
    /// The run that the worker takes part in.
    pub run: RunId,
    /// The history it knows.
    pub lineage: Lineage,
    /// Who it is, as its certificate says.
    pub worker: WorkerId,
    /// The term whose dealing of clients it goes by.
    pub term: Term,
    /// Its life.
    pub incarnation: Incarnation,
    /// A gradient and its floats: the shard's slices end to end.
    pub push: Option<(Push, B)>,
    /// The values it asks for.
    pub pull: Option<Pull>,
}

/// What a worker gives for a checkpoint.
#[derive(Clone, Debug)]
pub struct Given {
    /// Where it was asked.
    pub session: SessionId,
    /// The run that the worker takes part in.
    pub run: RunId,
    /// The history it knows.
    pub lineage: Lineage,
    /// Who it is, as its certificate says.
    pub worker: WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The checkpoint.
    pub checkpoint: u64,
    /// What it gives.
    pub part: Part,
}

/// A part of what a worker gives.
#[derive(Clone, Debug)]
pub enum Part {
    /// What its codec has left out of the pushes of this client.
    Residual {
        /// Whose.
        client: ClientId,
        /// A value for each of the shard's.
        residual: Residual,
    },
    /// That was all.
    All,
    /// It does not know any more what had been left out then.
    GoneOn,
}

/// What a shard asks for.
#[derive(Debug)]
pub enum Effect {
    /// Send this to a worker or observer.
    Reply {
        /// Where to.
        session: SessionId,
        /// What.
        reply: Reply,
    },
    /// Tell the coordinator.
    Report(Report),
    /// Tell the standby what [`next_feed`](super::Shard::next_feed) gives, before anything that comes after this is shown.
    Fed,
    /// Write to the log of the run.
    Record(Record),
    /// The shard's part of a checkpoint: keep it, and tell the coordinator whether it is kept.
    Image {
        /// Its number.
        checkpoint: u64,
        /// What it holds.
        image: Box<Image>,
    },
    /// The result: the values after everybody has gone. Tell the coordinator.
    Final {
        /// The values.
        snapshot: Snapshot,
        /// Pushes that count on other shards and not on this one.
        partial: u64,
    },
}

/// What a shard tells a worker or an observer.
#[derive(Debug)]
pub enum Reply {
    /// A receipt.
    Held {
        /// The push.
        sequence: Sequence,
        /// The step it is held for.
        step: Step,
    },
    /// An acknowledgement.
    Settled {
        /// The push.
        sequence: Sequence,
        /// What became of it.
        outcome: Outcome,
    },
    /// Values: what has changed in `snapshot` since `have`, of the slices asked for.
    Values {
        /// The step they are for.
        step: Step,
        /// The values.
        snapshot: Snapshot,
        /// The version that the asker has.
        have: Option<Version>,
        /// What was asked for; empty for all.
        slices: Vec<u32>,
        /// In a federated round, whom the asking worker is to train.
        clients: Vec<ClientId>,
    },
    /// A checkpoint has been cut: what had been left out is wanted of the worker's pushes before `next`, and of a round before
    /// its step.
    Keep {
        /// The checkpoint.
        checkpoint: u64,
        /// The first that is not in it.
        next: Resume,
        /// Whether what was given before is wanted again.
        all: bool,
    },
    /// What has been left out of the pushes of these clients, for a life that may not know it.
    Recall {
        /// By client.
        residuals: Vec<(ClientId, Residual)>,
    },
    /// The training has all its examples.
    Finished {
        /// How many.
        examples: Examples,
    },
    /// The pull is parked.
    Waiting {
        /// The step it asked for.
        step: Step,
        /// Whom it waits for.
        wait: Wait,
    },
    /// The request has had no effect.
    Rejected {
        /// The push, if it was one.
        sequence: Option<Sequence>,
        /// Why.
        reason: Reject,
    },
    /// The evaluation point asked for has not been reached.
    NotReached {
        /// Its number.
        point: u64,
        /// How far the shard has come, in examples or rounds.
        position: u64,
    },
    /// There is no such snapshot.
    NoSnapshot {
        /// The next one there is.
        next: Option<u64>,
    },
}
