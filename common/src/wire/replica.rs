//! Lists what the primary of a shard tells its standby, and what a server says of the copies that it has.

// What the archive macros derive (archived twins, resolvers) cannot carry docs or Debug of its own.
#![allow(missing_docs, missing_debug_implementations)]

use rkyv::{Archive, Deserialize, Serialize};

use super::message::{Entry, Order, Outcome, Push, Record, Resume, Task};
use crate::ids::{Examples, Incarnation, ServerId, Step, Term, Version, WorkerId};

/// What has happened on the primary, in order; the standby does the same. Floats, where there are any, follow as payload.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Feed {
    /// All that the shard is. Its payload: of each slice the values and the optimizer's vectors, then the values before, if
    /// those are kept.
    Whole(Box<Whole>),
    /// A push that was held then; its payload is the push's own, as the worker wrote it.
    Held(Fed),
    /// A push has been taken. Its payload is the push's own, as the worker wrote it, or, where it `is_compensated`, the gradient
    /// that it comes to.
    Push { at_us: u64, fed: Fed, is_compensated: bool },
    /// A step has been made of these pushes; its payload is their mean.
    Step { at_us: u64, pushes: Vec<Fed>, payload_bytes: u64 },
    /// The coordinator has told the shard something.
    Order { at_us: u64, order: Order },
    /// The shard's values, optimizer state and clocks have this digest.
    Digest { version: Version, digest: u64 },
    /// From here on the primary shows nothing that the standby has not confirmed.
    Full,
}

impl Feed {
    /// The push whose payload follows as its worker wrote it, if one does.
    pub fn written(&mut self) -> Option<&mut Push> {
        match self {
            Self::Held(fed) | Self::Push { fed, is_compensated: false, .. } => Some(&mut fed.push),
            _ => None,
        }
    }

    /// Bytes of payload that follow.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Whole(whole) => whole.payload_bytes,
            Self::Push { fed, is_compensated: true, .. } => {
                let values = fed.push.parts.iter().map(|part| part.values);
                values.fold(0, u64::saturating_add).saturating_mul(4)
            }
            Self::Held(fed) | Self::Push { fed, .. } => fed.push.payload_bytes,
            Self::Step { payload_bytes, .. } => *payload_bytes,
            Self::Order { .. } | Self::Digest { .. } | Self::Full => 0,
        }
    }
}

/// A push, and in which life its worker made it.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Fed {
    pub worker: WorkerId,
    pub term: Term,
    pub incarnation: Incarnation,
    pub push: Push,
}

/// A shard at one moment, but for its floats.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Whole {
    pub version: Version,
    /// The first step that has not been applied.
    pub open: Step,
    /// Examples applied.
    pub examples: Examples,
    /// Pushes settled.
    pub pushes: u64,
    /// When the values were made, in microseconds since 1970.
    pub made_us: u64,
    /// Pushes that count on other shards and not on this one.
    pub partial: u64,
    /// Whether the training has begun, and whether no further round is opened.
    pub started: bool,
    pub concluded: bool,
    pub term: Term,
    /// Whom the open round asks.
    pub tasks: Vec<Task>,
    /// With which pushes the coordinator closed the last step.
    pub closed: Vec<Entry>,
    pub workers: Vec<Clock>,
    /// What the log of the run is not known to hold.
    pub records: Vec<Record>,
    /// How often the optimizer has updated each slice.
    pub updates: Vec<u64>,
    /// Of which step and version the values before are, if they are kept.
    pub previous: Option<Previous>,
    pub payload_bytes: u64,
}

/// The values before, but for their floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Previous {
    pub version: Version,
    pub step: Step,
    pub examples: Examples,
    pub pushes: u64,
    pub made_us: u64,
}

/// How far a worker has come on a shard.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Clock {
    pub worker: WorkerId,
    /// Whether it takes part.
    pub member: bool,
    pub incarnation: Incarnation,
    /// The push that it would make next.
    pub next: Resume,
    /// Steps settled.
    pub clock: Step,
    /// What became of its last pushes, the newest last; none while one is held.
    pub outcomes: Vec<Option<Outcome>>,
}

/// Which servers have a shard.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Seats {
    /// Workers push to its copy, and pull from it.
    pub primary: ServerId,
    /// Its copy is fed by the primary.
    pub standby: Option<ServerId>,
}
