//! Says in sentences why a client could not join, pull or push.

use std::time::Duration;

use windlass_common::exit::Exit;
use windlass_common::plan::PlanError;
use windlass_common::wire::{Reject, Stop, WireError};
use windlass_transport::{FrameError, Role, TransportError};

/// Why a client could not go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClientError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the connection to {server} is gone: {source}")]
    Lost { server: String, source: FrameError },
    #[error("the coordinator is gone: {0}")]
    Gone(String),
    #[error("{who} has said nothing for {} s", after.as_secs_f64())]
    Silent { who: String, after: Duration },
    #[error("{who} has taken nothing of what was sent to it for {} s", after.as_secs_f64())]
    NotTaken { who: String, after: Duration },
    #[error("the request was refused: {0}")]
    Rejected(Reject),
    #[error("this worker takes no part any more: {0}")]
    GivenUp(Reject),
    #[error("the run has ended: {0}")]
    Ended(String),
    #[error("the plan that the coordinator sent cannot be used: {0}")]
    Plan(#[from] PlanError),
    #[error("told to end")]
    Interrupted,
    #[error("the thread that moves the bytes could not be started: {0}")]
    Thread(std::io::Error),
    #[error("this program reads the plan differently from the coordinator; both must be of one build")]
    PlanHash,
    #[error("{who} sent what cannot be understood: {what}")]
    Protocol { who: String, what: String },
    #[error("this identity is that of {found}; {expected} is needed here")]
    WrongRole { expected: &'static str, found: Role },
    #[error("the buffer has {found} values, the model has {expected}")]
    Length { expected: usize, found: usize },
    #[error("variable {name} has {found} values, the plan says {expected}")]
    VariableLength { name: String, expected: usize, found: usize },
    #[error("the model has no variable {name}; it has {known}")]
    UnknownVariable { name: String, known: String },
}

impl ClientError {
    /// The exit code for a program that ends because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Transport(_)
            | Self::Silent { .. }
            | Self::NotTaken { .. }
            | Self::Lost { .. }
            | Self::Gone(_) => Exit::Network,
            Self::Plan(_) => Exit::Input,
            Self::WrongRole { .. } => Exit::Usage,
            Self::Interrupted => Exit::Interrupted,
            Self::Thread(_) => Exit::System,
            _ => Exit::Run,
        }
    }

    /// Whether the same request may succeed over a new connection.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::GivenUp(_))
    }

    /// Whether a shard has said that this life takes no part any more, or belongs to another history.
    pub(crate) fn is_unheard(&self) -> bool {
        matches!(
            self,
            Self::Rejected(
                Reject::StaleIncarnation { .. } | Reject::NotAdmitted { .. } | Reject::WrongLineage { .. }
            )
        )
    }

    /// What a stream that cannot go on means: its peer is gone, or silent.
    pub(crate) fn lost(server: impl ToString, source: impl Into<FrameError>) -> Self {
        let who = server.to_string();
        match source.into() {
            FrameError::NotTaken { within } => Self::NotTaken { who, after: within },
            FrameError::Halted { within, .. } => Self::Silent { who, after: within },
            source => Self::Lost { server: who, source },
        }
    }

    pub(crate) fn silent(who: impl ToString, after: Duration) -> Self {
        Self::Silent { who: who.to_string(), after }
    }

    pub(crate) fn protocol(who: impl ToString, what: impl ToString) -> Self {
        Self::Protocol { who: who.to_string(), what: what.to_string() }
    }

    pub(crate) fn wire(who: impl ToString, error: &WireError) -> Self {
        Self::protocol(who, error)
    }

    pub(crate) fn ended(stop: &Stop) -> Self {
        match stop {
            Stop::Completed => Self::Ended("it is complete".into()),
            Stop::Failed { reason } => Self::Ended(reason.clone()),
        }
    }
}
