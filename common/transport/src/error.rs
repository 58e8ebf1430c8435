//! Says in sentences why an endpoint, an attempt to connect or a connection failed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::limits::LimitsError;
use crate::role::Role;

/// Why an endpoint could not be made, or a peer not be reached.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The local address could not be bound.
    #[error("could not listen on {address}: {}", bind_reason(source))]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The limits contradict each other.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The identity cannot be used for TLS.
    #[error("the TLS identity cannot be used: {0}")]
    Tls(String),
    /// A socket that was handed over cannot be used.
    #[error("the socket cannot be used: {0}")]
    Socket(#[source] io::Error),
    /// There is no tokio runtime here.
    #[error("an endpoint must be made inside a tokio runtime")]
    NoRuntime,
    /// A text is not an address.
    #[error("\"{text}\" is not an address: write host:port, such as 127.0.0.1:7171")]
    Address {
        /// The text.
        text: String,
    },
    /// A name could not be resolved.
    #[error("could not find the address of \"{text}\" within {} s: {reason}", within.as_secs_f64())]
    Resolve {
        /// The text.
        text: String,
        /// The deadline that passed.
        within: Duration,
        /// What the resolver says.
        reason: String,
    },
    /// Nobody answered in time, or not to the end.
    #[error("could not reach {expected} at {address} within {} s: {reason}", within.as_secs_f64())]
    Unreachable {
        /// Who was expected.
        expected: Role,
        /// Where.
        address: SocketAddr,
        /// The deadline that passed.
        within: Duration,
        /// What the last attempt met.
        reason: String,
    },
    /// Somebody answered who is not the peer expected, or who does not take us for one; trying again is no use.
    #[error("{expected} at {address}: {reason}")]
    Refused {
        /// Who was expected.
        expected: Role,
        /// Where.
        address: SocketAddr,
        /// Who refused whom, and why.
        reason: String,
    },
    /// An incoming handshake failed.
    #[error("the handshake with {address} failed: {reason}")]
    Handshake {
        /// Who tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// The endpoint was shut down meanwhile.
    #[error("the endpoint has been shut down")]
    Closed,
}

impl TransportError {
    pub(crate) fn tls(reason: impl fmt::Display) -> Self {
        Self::Tls(reason.to_string())
    }
}

fn bind_reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "another process has this port; choose another or end that process".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "no permission; ports below 1024 are the administrator's".to_owned()
        }
        _ => source.to_string(),
    }
}

/// Why a connection is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionLost {
    /// The peer closed it and said why.
    #[error("the peer closed the connection: {reason} (code {code})")]
    ClosedByPeer {
        /// The peer's number for the reason.
        code: u64,
        /// The peer's words.
        reason: String,
    },
    /// This process closed it.
    #[error("this process closed the connection")]
    ClosedHere,
    /// Nothing came from the peer for the idle timeout.
    #[error("nothing has come from the peer for the idle timeout; its process or the network is down")]
    Silent,
    /// The peer does not know the connection.
    #[error("the peer has restarted and does not know the connection")]
    Restarted,
    /// The peer refused this process's certificate.
    #[error("the peer refused this process: {0}")]
    Refused(String),
    /// The QUIC protocol was violated or could not go on.
    #[error("the connection failed: {0}")]
    Failed(String),
}

impl From<quinn::ConnectionError> for ConnectionLost {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                Self::ClosedByPeer { code: close.error_code.into_inner(), reason: printable(&close.reason) }
            }
            E::LocallyClosed => Self::ClosedHere,
            E::TimedOut => Self::Silent,
            E::Reset => Self::Restarted,
            E::ConnectionClosed(close) => match alert(close.error_code) {
                Some(number) => Self::Refused(objection(number, "this process's certificate")),
                None => Self::Failed(close.to_string()),
            },
            other => Self::Failed(other.to_string()),
        }
    }
}

/// A peer's words, without what could disturb a terminal or a log.
fn printable(words: &[u8]) -> String {
    String::from_utf8_lossy(words).replace(char::is_control, " ")
}

/// The TLS alert that a QUIC error code stands for, if it does (RFC 9001, section 4.8).
pub(crate) fn alert(code: quinn::TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(0x100).and_then(|number| u8::try_from(number).ok())
}

/// What a TLS alert means here (RFC 8446, section 6.2), said of the certificate that was objected to.
pub(crate) fn objection(alert: u8, whose: &str) -> String {
    match alert {
        48 | 51 => {
            format!("{whose} was issued by another run's authority; do both belong to the same run?")
        }
        45 => format!("{whose} has expired or is not valid yet; are the clocks of both machines right?"),
        42 | 43 | 46 => format!("{whose} is not one for this peer and purpose"),
        116 => "no certificate was shown".to_owned(),
        120 => "the other side speaks another protocol version".to_owned(),
        other => format!("the TLS handshake failed with alert {other}"),
    }
}
