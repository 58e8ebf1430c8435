//! Turns messages into bytes and back, trusting nothing that comes in.

mod message;
mod reject;
mod replica;
mod status;

use rkyv::rancor;
use rkyv::util::AlignedVec;

use crate::ids::{Incarnation, Lineage, RunId, Term, WorkerId};

pub use crate::codec::Codec;
pub use message::{
    Begins, Body, Entry, Header, Member, Meter, Order, Outcome, Part, Pull, Push, Record, Report, Resume,
    Standing, Stop, Task, Values, Wait, Welcome, WorkerReport,
};
pub use reject::Reject;
pub use replica::{Clock, Fed, Feed, Previous, Seats, Whole};
pub use status::{
    Blocked, CheckpointStatus, Checkpointed, Phase, SeatStatus, ShardStatus, Status, WorkerState,
    WorkerStatus,
};

/// The version of the messages; another one is refused by name.
pub const PROTOCOL: u16 = 10;
/// Longest header, in bytes: a plan with the most variables fits.
pub const HEADER_BYTES_MAX: usize = 32 << 20;

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("the header has {found} bytes; at most {HEADER_BYTES_MAX} are possible")]
    TooLong { found: usize },
    #[error("the header is not a valid message: {0}")]
    Invalid(String),
    #[error("the peer speaks protocol {found}, this program speaks {PROTOCOL}")]
    Protocol { found: u16 },
}

/// What all frames of a session have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The run they belong to; 0 before the coordinator has named it.
    pub run: RunId,
    /// The history they belong to.
    pub lineage: Lineage,
    /// The membership the sender knows of.
    pub term: Term,
    /// The worker they are from or for.
    pub worker: WorkerId,
    /// The life of that worker.
    pub incarnation: Incarnation,
}

impl Envelope {
    /// The header of a frame that says this.
    pub fn header(self, body: Body) -> Header {
        let Self { run, lineage, term, worker, incarnation } = self;
        Header { protocol: PROTOCOL, run, lineage, term, worker, incarnation, body }
    }
}

impl Header {
    /// What it has in common with the other frames of its session.
    pub fn envelope(&self) -> Envelope {
        let &Self { run, lineage, term, worker, incarnation, .. } = self;
        Envelope { run, lineage, term, worker, incarnation }
    }

    /// Writes the header into `bytes`, replacing what was there and keeping the allocation.
    ///
    /// # Errors
    /// If the header would be longer than [`HEADER_BYTES_MAX`].
    pub fn encode(&self, bytes: &mut AlignedVec) -> Result<(), WireError> {
        bytes.clear();
        let taken = std::mem::take(bytes);
        *bytes = rkyv::api::high::to_bytes_in::<_, rancor::Error>(self, taken)
            .map_err(|e| WireError::Invalid(e.to_string()))?;
        if bytes.len() > HEADER_BYTES_MAX {
            return Err(WireError::TooLong { found: bytes.len() });
        }
        Ok(())
    }

    /// Reads a header, validating every byte of it.
    ///
    /// # Errors
    /// If it is too long, not a valid message, or of another protocol.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > HEADER_BYTES_MAX {
            return Err(WireError::TooLong { found: bytes.len() });
        }
        let archived = rkyv::access::<message::ArchivedHeader, rancor::Error>(bytes)
            .map_err(|e| WireError::Invalid(first_line(&e.to_string())))?;
        let protocol = archived.protocol.to_native();
        if protocol != PROTOCOL {
            return Err(WireError::Protocol { found: protocol });
        }
        rkyv::deserialize::<Self, rancor::Error>(archived)
            .map_err(|e| WireError::Invalid(first_line(&e.to_string())))
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Body {
    /// Bytes of payload that follow the header.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Push { push, .. } => push.payload_bytes,
            Self::Values(values) => values.payload_bytes,
            Self::Residual { payload_bytes, .. } | Self::Recall { payload_bytes, .. } => *payload_bytes,
            Self::Feed { feed, .. } => feed.payload_bytes(),
            Self::Report { report: Report::Final { payload_bytes, .. }, .. } => *payload_bytes,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::*;

    fn header(body: Body) -> Header {
        Header {
            protocol: PROTOCOL,
            run: RunId(0x0123_4567_89ab_cdef),
            lineage: Lineage(1),
            term: Term(2),
            worker: WorkerId(3),
            incarnation: Incarnation(4),
            body,
        }
    }

    fn push() -> Body {
        let push = Push {
            sequence: Sequence(9),
            step: Step(9),
            base: Version(9),
            client: ClientId(3),
            examples: 64,
            work: 64,
            loss: 0.25,
            codec: Codec::F32,
            parts: vec![Part { slice: 0, values: 640 }, Part { slice: 1, values: 10 }],
            payload_bytes: 2600,
        };
        let pull = Pull { step: Step(10), have: Some(Version(9)), slices: vec![], codec: Codec::F32 };
        Body::Push { push, pull: Some(pull) }
    }

    fn encoded(header: &Header) -> AlignedVec {
        let mut bytes = AlignedVec::new();
        header.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_standby_is_sent_a_push_as_it_was_written_but_for_one_that_is_compensated() {
        let Body::Push { push, .. } = push() else { unreachable!() };
        let push = Push { codec: Codec::Bf16, payload_bytes: 1300, ..push };
        let fed = Fed { worker: WorkerId(3), term: Term(2), incarnation: Incarnation(4), push };
        let told = |is_compensated| Feed::Push { at_us: 5, fed: fed.clone(), is_compensated };
        for (mut feed, bytes, is_written) in
            [(Feed::Held(fed.clone()), 1300, true), (told(false), 1300, true), (told(true), 2600, false)]
        {
            assert_eq!((feed.payload_bytes(), feed.written().is_some()), (bytes, is_written), "{feed:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let missing = vec![WorkerId(1), WorkerId(2)];
        for body in [
            push(),
            Body::JoinWorker { process: 9 },
            Body::JoinServer { address: Some("ps1:7171".into()), port: 7171, copies: Vec::new() },
            Body::Waiting { step: Step(3), wait: Wait::Pushes { step: Step(2), missing } },
            Body::Rejected { sequence: Some(Sequence(1)), reason: Reject::NoExamples },
            Body::Keep { checkpoint: 5, next: Resume { sequence: Sequence(7), step: Step(3) }, all: true },
            Body::Residual { checkpoint: 5, client: ClientId(9), payload_bytes: 2600 },
            Body::Given { checkpoint: 5, has_gone_on: false },
            Body::Recall { client: ClientId(9), payload_bytes: 2600 },
            Body::Stop(Stop::Failed { reason: "worker 1 is gone".into() }),
            Body::Order {
                shard: ShardId(1),
                order: Order::Open {
                    step: Step(4),
                    tasks: vec![Task { client: ClientId(9), worker: WorkerId(1) }],
                },
            },
        ] {
            let header = header(body);
            assert_eq!(Header::decode(&encoded(&header)).unwrap(), header);
        }
    }

    #[test]
    fn another_protocol_is_refused_by_name() {
        let mut other = header(Body::JoinWorker { process: 9 });
        other.protocol = 1;
        let error = Header::decode(&encoded(&other)).unwrap_err().to_string();
        assert_eq!(error, format!("the peer speaks protocol 1, this program speaks {PROTOCOL}"));
    }

    /// The root of an archive is at its end, so that a part may read as some other message; frames carry lengths.
    #[test]
    fn a_truncated_header_is_never_taken_for_the_whole() {
        let whole = header(push());
        let bytes = encoded(&whole);
        for len in 0..bytes.len() {
            assert!(
                Header::decode(&bytes[..len]).ok().as_ref() != Some(&whole),
                "{len} of {} bytes",
                bytes.len()
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Header::decode(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_makes_the_decoder_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = encoded(&header(push()));
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = Header::decode(&bytes);
        }
    }
}
