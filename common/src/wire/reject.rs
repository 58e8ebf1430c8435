//! Lists the reasons for which a request is refused, each with what the sender needs in order to act.

#![allow(missing_docs, missing_debug_implementations)]

use rkyv::{Archive, Deserialize, Serialize};

use crate::ids::{ClientId, Incarnation, Lineage, RunId, Sequence, ServerId, ShardId, Step, Term, WorkerId};

/// Why a request has had no effect.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, thiserror::Error)]
pub enum Reject {
    #[error("the request belongs to run {found}, this is run {expected}")]
    WrongRun { expected: RunId, found: RunId },
    #[error("the request belongs to lineage {found}, the run is in lineage {expected}")]
    WrongLineage { expected: Lineage, found: Lineage },
    #[error("the request says it is from {claimed}, its certificate says {certified}")]
    WrongIdentity { certified: String, claimed: String },
    #[error("{role} may not send this message here")]
    NotAllowed { role: String },
    #[error("{worker} is not in the plan")]
    UnknownWorker { worker: WorkerId },
    #[error("server {server} is not in the plan, which has {servers} servers")]
    UnknownServer { server: u32, servers: u32 },
    #[error("{shard} is not on this server")]
    UnknownShard { shard: ShardId },
    #[error("{worker} has not been admitted in term {term}")]
    NotAdmitted { worker: WorkerId, term: Term },
    #[error("{worker} was given up: nothing was heard of it for {silent_s} s")]
    LeaseExpired { worker: WorkerId, silent_s: u64 },
    #[error("{worker} was given up: others waited for it, and it made no step for {still_s} s")]
    Stalled { worker: WorkerId, still_s: u64 },
    #[error("incarnation {found} of {worker} has been succeeded by incarnation {current}")]
    StaleIncarnation { worker: WorkerId, found: Incarnation, current: Incarnation },
    #[error("push {found} leaves a gap: push {expected} comes first")]
    SequenceGap { expected: Sequence, found: Sequence },
    #[error("the outcome of push {found} is no longer remembered: the oldest is {oldest}")]
    Forgotten { found: Sequence, oldest: Sequence },
    #[error("the push is for step {found}, and step {open} is open")]
    StepNotOpen { open: Step, found: Step },
    #[error("the push was computed on version {found}, and version {newest} is the newest")]
    UnknownVersion { newest: u64, found: u64 },
    #[error("the push was computed on version {found}; this worker was given version {given} last")]
    OtherBase { given: u64, found: u64 },
    #[error("slice {slice} is not on {shard}: no such variable here")]
    UnknownSlice { shard: ShardId, slice: u32 },
    #[error("slice {slice} has {expected} values, the request says {found}")]
    WrongLength { slice: u32, expected: u64, found: u64 },
    #[error("the push holds {found} slices, {shard} has {expected}: each is needed once")]
    Incomplete { shard: ShardId, expected: u64, found: u64 },
    #[error("{client} of {worker} is not in the cohort of round {step}")]
    NotInCohort { client: ClientId, worker: WorkerId, step: Step },
    #[error("the push says it is of {client}; in this mode {worker} pushes for itself alone")]
    WrongClient { client: ClientId, worker: WorkerId },
    #[error("the payload has {found} bytes, its slices take {expected}")]
    WrongPayload { expected: u64, found: u64 },
    #[error("the payload has {found} bytes; its slices take {least} to {most}")]
    PayloadRange { least: u64, most: u64, found: u64 },
    #[error("the message is for values as {found}; in this run they are {expected}")]
    WrongCodec { expected: String, found: String },
    #[error("the payload cannot be decoded: {reason}")]
    Undecodable { reason: String },
    #[error("the push counts no examples")]
    NoExamples,
    #[error("the push counts {found} examples; at most {most} are possible")]
    TooManyExamples { found: u32, most: u32 },
    #[error("the push counts {found} examples computed; 1 to {most} are possible")]
    WrongWork { found: u64, most: u64 },
    #[error("step 0 waits until everyone has joined")]
    NotStarted,
    #[error("{worker} has pushed for step {step} already")]
    AlreadyPushed { worker: WorkerId, step: Step },
    #[error(
        "of the last {most} pushes of {worker} the first is still held; the next may follow when it is settled"
    )]
    TooManyHeld { worker: WorkerId, most: u64 },
    #[error("{most} observers are connected, and no more are possible")]
    TooManyObservers { most: u32 },
    #[error("{server} cannot be drained: {reason}")]
    CannotDrain { server: ServerId, reason: String },
    #[error("the message cannot be read: {reason}")]
    Malformed { reason: String },
    #[error("the run has ended")]
    Ended,
}
