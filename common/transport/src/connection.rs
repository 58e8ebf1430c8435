//! A connection to one authenticated peer: its streams, its end and its byte meter.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use crate::endpoint::{canonical, is_local};
use crate::error::ConnectionLost;
use crate::frame::{FrameReceiver, FrameSender};
use crate::identity::{IdentityError, role_of};
use crate::pacing::Link;
use crate::role::Role;
use crate::turns::Turns;

/// Which streams go first when several have something to send. It is strict: a lower one waits for a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Before all others: few and small messages, such as control.
    High,
    /// The usual one.
    #[default]
    Normal,
    /// What may wait for everything else.
    Low,
}

impl Priority {
    pub(crate) fn level(self) -> i32 {
        match self {
            Self::High => 1,
            Self::Normal => 0,
            Self::Low => -1,
        }
    }
}

/// What a connection has carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meter {
    /// Bytes of UDP payload sent: everything, with headers, acknowledgements, retransmissions and the handshake.
    pub wire_sent: u64,
    /// Bytes of UDP payload received.
    pub wire_received: u64,
    /// Bytes of frame payload that were given to quinn to send, without prefixes and headers.
    pub payload_sent: u64,
    /// Bytes of frame payload that were read, without prefixes and headers.
    pub payload_received: u64,
    /// Frames whose sending was completed.
    pub frames_sent: u64,
    /// Frames whose header was read.
    pub frames_received: u64,
    /// Packets that were sent and declared lost.
    pub packets_lost: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// UDP payload bytes that a packet may have at present.
    pub mtu: u16,
    /// The round-trip time as currently estimated.
    pub round_trip: Duration,
}

/// What the frame streams of a connection count.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) payload_sent: AtomicU64,
    pub(crate) payload_received: AtomicU64,
    pub(crate) frames_sent: AtomicU64,
    pub(crate) frames_received: AtomicU64,
}

/// A connection to one authenticated peer. Clones share it; it closes when the last clone and stream are dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
    peer: Role,
    counters: Arc<Counters>,
    link: Arc<Link>,
    turns: Option<Arc<Turns>>,
}

impl Connection {
    pub(crate) fn new(inner: quinn::Connection, link: Arc<Link>) -> Result<Self, IdentityError> {
        let certificates =
            inner.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let certificate = certificates.as_deref().and_then(|chain| chain.first());
        let peer = role_of(certificate.ok_or(IdentityError::NoCertificate)?)?;
        Ok(Self { inner, peer, counters: Arc::default(), link, turns: None })
    }

    /// The same, on a lane whose turns with its peer are these, if it has any.
    pub(crate) fn on_lane(self, turns: Option<Arc<Turns>>) -> Self {
        Self { turns, ..self }
    }

    /// Tells the connecting side that its certificate has been accepted, and waits until it knows; otherwise a
    /// program that closes the connection at once would look like a peer that cannot be reached.
    pub(crate) async fn welcome(&self) -> Result<(), ConnectionLost> {
        let mut stream = self.inner.open_uni().await?;
        stream.finish().map_err(|error| ConnectionLost::Failed(error.to_string()))?;
        match stream.stopped().await {
            Err(quinn::StoppedError::ConnectionLost(lost)) => Err(lost.into()),
            _ => Ok(()),
        }
    }

    /// What the peer is, by its verified certificate.
    pub fn peer(&self) -> Role {
        self.peer
    }

    /// Where the peer is at present.
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.inner.remote_address())
    }

    /// Whether the peer is on this machine, where datagrams are large.
    pub fn is_local(&self) -> bool {
        is_local(self.remote_address())
    }

    /// If the peer has a socket and a thread of its own here that is to stay with it
    /// ([`Endpoint::set_lanes`](crate::Endpoint::set_lanes)) and the calling one is that: moves it to the core that the peer runs
    /// on, and keeps it there. Where the two take turns, and others have all cores otherwise, the system need not move either then.
    pub fn stay_with_peer(&self) {
        if let Some(turns) = &self.turns {
            turns.follow();
        }
    }

    /// From now on the peer may send so many bytes ahead of this connection's readers; what it has been allowed before it may
    /// still send. At first it is [`Limits::receive_window`](crate::Limits::receive_window).
    pub fn set_receive_window(&self, bytes: u32) {
        self.inner.set_receive_window(bytes.into());
    }

    /// Opens a stream in both directions. The peer sees it with the first frame sent on it. It waits while the peer
    /// allows no further stream ([`Limits::streams`](crate::Limits::streams)), by design until the connection ends: put a
    /// deadline around it. May be dropped.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open_stream(
        &self,
        priority: Priority,
    ) -> Result<(FrameSender, FrameReceiver), ConnectionLost> {
        let (send, receive) = self.inner.open_bi().await?;
        let (sender, receiver) = self.framed(send, receive);
        sender.set_priority(priority);
        Ok((sender, receiver))
    }

    /// The next stream that the peer opened and sent something on, with normal priority for what is sent back. By design
    /// it waits until there is one or the connection ends, after [`Limits::idle`](crate::Limits::idle) with a peer that is
    /// gone. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept_stream(&self) -> Result<(FrameSender, FrameReceiver), ConnectionLost> {
        let (send, receive) = self.inner.accept_bi().await?;
        Ok(self.framed(send, receive))
    }

    fn framed(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> (FrameSender, FrameReceiver) {
        let sender = FrameSender::new(send, Arc::clone(&self.counters), Arc::clone(&self.link));
        (sender, FrameReceiver::new(receive, Arc::clone(&self.counters), Arc::clone(&self.link)))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Waits for the connection's end, by design as long as the peer lives, and says why; the peer's own end is noticed
    /// after [`Limits::idle`](crate::Limits::idle) at the latest. May be dropped and called again.
    pub async fn closed(&self) -> ConnectionLost {
        self.inner.closed().await.into()
    }

    /// Closes the connection at once and tells the peer why; at most the first 1,000 bytes or so of the reason
    /// travel. What the peer has not read is lost, so the side that *receives* the last frame should be the one
    /// that closes.
    pub fn close(&self, code: u32, reason: &str) {
        self.inner.close(code.into(), reason.as_bytes());
    }

    /// What the connection has carried so far; also after its end.
    pub fn stats(&self) -> Meter {
        let stats = self.inner.stats();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Meter {
            wire_sent: stats.udp_tx.bytes,
            wire_received: stats.udp_rx.bytes,
            payload_sent: read(&self.counters.payload_sent),
            payload_received: read(&self.counters.payload_received),
            frames_sent: read(&self.counters.frames_sent),
            frames_received: read(&self.counters.frames_received),
            packets_lost: stats.path.lost_packets,
            packets_sent: stats.path.sent_packets,
            mtu: stats.path.current_mtu,
            round_trip: stats.path.rtt,
        }
    }
}
