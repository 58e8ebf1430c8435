//! Sets up the QUIC endpoint itself: configuration, socket and tuning in one place.
//!
//! [`Endpoint`](crate::Endpoint) is built from this, and so are the benchmark of quinn without Windlass and the
//! simulated network, which need quinn's own types. Everything else uses [`Endpoint`](crate::Endpoint).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

pub use quinn;

use aws_lc_rs::hmac;
use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    Runtime, ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::error::TransportError;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::{socket, tls};

/// The round-trip time assumed before the first measurement. A third of a second, quinn's default, would send the
/// second packet to a peer that is just starting after a whole second; this sends it after 0.1 s.
const INITIAL_RTT: Duration = Duration::from_millis(33);
/// Whoever has connected and hears nothing sends a packet after so long: a peer that has been started again says then that it
/// does not know the connection.
const SIGN_OF_LIFE: Duration = Duration::from_millis(250);
/// Packets that a peer on this machine takes before it acknowledges them by a packet of its own. Within [`LOCAL_ACK_DELAY`] there
/// mostly is an answer that does so by the way, and nobody is woken for nothing.
const LOCAL_UNACKNOWLEDGED: u32 = 20;
/// See [`LOCAL_UNACKNOWLEDGED`].
const LOCAL_ACK_DELAY: Duration = Duration::from_millis(2);
/// Bytes kept of one handshake that waits to be taken up. Without 0-RTT it needs a few packets.
const INCOMING_BUFFER: u64 = 64 * 1024;
/// The one-way streams a peer may open: the acceptor's welcome is the only one there is.
const WELCOMES: u32 = 1;

/// What peers are told when an endpoint is shut down.
pub(crate) const SHUTTING_DOWN: &[u8] = b"the process is shutting down";

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// On this machine, reached at a loopback address.
    Local,
    /// Anywhere else.
    Far,
}

/// Binds a socket and makes a quinn endpoint that accepts and connects just as Windlass does with peers on this machine,
/// but without its roles, retries, frames and meters.
///
/// # Errors
/// When the limits contradict each other, the address cannot be bound, or there is no tokio runtime.
pub fn endpoint(
    address: SocketAddr,
    identity: &Identity,
    limits: &Limits,
) -> Result<quinn::Endpoint, TransportError> {
    let socket = bound(address, limits)?;
    let (config, server) = (own_config(identity, limits)?, server_config(identity, limits, Path::Local)?);
    let socket =
        socket::of_few(&*runtime()?, socket).map_err(|source| TransportError::Bind { address, source })?;
    assemble(socket, config, server, identity, limits)
}

/// As [`endpoint`], at any free port. It reaches peers of IPv4 and, where this machine has it, IPv6.
pub(crate) fn anywhere(identity: &Identity, limits: &Limits) -> Result<quinn::Endpoint, TransportError> {
    match endpoint((Ipv6Addr::UNSPECIFIED, 0).into(), identity, limits) {
        Err(TransportError::Bind { .. }) => endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), identity, limits),
        done => done,
    }
}

/// A socket bound to this address.
pub(crate) fn bound(address: SocketAddr, limits: &Limits) -> Result<UdpSocket, TransportError> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = unbound(address, limits)?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket.into())
    };
    bind().map_err(|source| TransportError::Bind { address, source })
}

/// How the endpoint of this process is set up.
pub(crate) fn own_config(identity: &Identity, limits: &Limits) -> Result<EndpointConfig, TransportError> {
    let mut config = endpoint_config(limits)?;
    recognise_after_restart(&mut config, identity);
    Ok(config)
}

/// An endpoint with many peers over a socket that was bound to this address.
pub(crate) fn with_socket(
    socket: UdpSocket,
    address: SocketAddr,
    config: EndpointConfig,
    server: ServerConfig,
    identity: &Identity,
    limits: &Limits,
) -> Result<quinn::Endpoint, TransportError> {
    let wrapped = runtime()?.wrap_udp_socket(socket);
    let socket = wrapped.map_err(|source| TransportError::Bind { address, source })?;
    assemble(socket, config, server, identity, limits)
}

/// A process that was restarted on the same port with the same identity tells peers of its earlier life at once that their
/// connections are gone (RFC 9000, section 10.3), instead of letting them wait for the idle timeout: it makes the same reset
/// tokens, and recognises the connection ids it has given out.
fn recognise_after_restart(config: &mut EndpointConfig, identity: &Identity) {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, identity.key().secret_der());
    let derived = |label: &str| hmac::sign(&secret, label.as_bytes());
    let reset = hmac::Key::new(hmac::HMAC_SHA256, derived("windlass stateless reset").as_ref());
    config.reset_key(Arc::new(reset));
    let ids = derived("windlass connection ids");
    let ids = u64::from_le_bytes(ids.as_ref()[..8].try_into().expect("a hash of 32 bytes has 8"));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
}

/// The same over any socket, such as one end of a simulated network, with the configuration that [`endpoint_config`]
/// gives or one that draws its random numbers elsewhere. Time is that of tokio, also where a test has paused it.
///
/// # Errors
/// When the limits contradict each other, the socket has no address, or there is no tokio runtime.
pub fn over(
    socket: Arc<dyn AsyncUdpSocket>,
    config: EndpointConfig,
    identity: &Identity,
    limits: &Limits,
) -> Result<quinn::Endpoint, TransportError> {
    limits.check()?;
    assemble(socket, config, server_config(identity, limits, Path::Local)?, identity, limits)
}

fn assemble(
    socket: Arc<dyn AsyncUdpSocket>,
    config: EndpointConfig,
    server: ServerConfig,
    identity: &Identity,
    limits: &Limits,
) -> Result<quinn::Endpoint, TransportError> {
    let mut endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime()?)
        .map_err(TransportError::Socket)?;
    endpoint.set_default_client_config(client_config(identity, limits, Path::Local)?);
    Ok(endpoint)
}

fn runtime() -> Result<Arc<dyn Runtime>, TransportError> {
    quinn::default_runtime().ok_or(TransportError::NoRuntime)
}

/// How every endpoint with these limits is set up, apart from TLS and what concerns single connections.
///
/// # Errors
/// When the limits contradict each other.
pub fn endpoint_config(limits: &Limits) -> Result<EndpointConfig, TransportError> {
    limits.check()?;
    let mut config = EndpointConfig::default();
    // What a peer's MTU discovery may find depends on this, the *receiver's* setting.
    config.max_udp_payload_size(limits.mtu.max(limits.local_mtu)).map_err(TransportError::tls)?;
    Ok(config)
}

/// How connections from such peers are accepted.
pub(crate) fn server_config(
    identity: &Identity,
    limits: &Limits,
    path: Path,
) -> Result<ServerConfig, TransportError> {
    let mut config = ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
    config
        .transport_config(Arc::new(transport_config(limits, limits.idle / 3, path)?))
        .max_incoming(limits.incoming)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER.saturating_mul(limits.incoming as u64));
    Ok(config)
}

/// How connections to such peers are made.
pub(crate) fn client_config(
    identity: &Identity,
    limits: &Limits,
    path: Path,
) -> Result<ClientConfig, TransportError> {
    let mut config = ClientConfig::new(Arc::new(tls::client(identity)?));
    let keep_alive = SIGN_OF_LIFE.min(limits.idle / 3);
    config.transport_config(Arc::new(transport_config(limits, keep_alive, path)?));
    Ok(config)
}

fn transport_config(
    limits: &Limits,
    keep_alive: Duration,
    path: Path,
) -> Result<TransportConfig, TransportError> {
    // Quinn sends batches of 10 datagrams; 10 times the MTU must stay below 65,507 bytes (Limits checks it). Within a
    // machine one datagram may be as large as such a batch: the kernel does as little for it, and quinn has a ninth of the
    // packets to make, encrypt and acknowledge. Then each goes by itself.
    // The *initial* MTU stays at 1,200: a larger one fails silently on a path that cannot carry it.
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(match path {
        Path::Local => limits.local_mtu,
        Path::Far => limits.mtu,
    });
    let mut config = TransportConfig::default();
    config
        .enable_segmentation_offload(path == Path::Far)
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(varint(limits.stream_window)?)
        .receive_window(varint(limits.receive_window)?)
        .send_window(limits.send_window)
        .max_concurrent_bidi_streams(limits.streams.into())
        .max_concurrent_uni_streams(WELCOMES.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(limits.idle).map_err(TransportError::tls)?))
        .keep_alive_interval(Some(keep_alive))
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    if path == Path::Local {
        let mut seldom = AckFrequencyConfig::default();
        seldom.ack_eliciting_threshold(LOCAL_UNACKNOWLEDGED.into()).max_ack_delay(Some(LOCAL_ACK_DELAY));
        config.ack_frequency_config(Some(seldom));
    }
    Ok(config)
}

fn varint(value: u64) -> Result<VarInt, TransportError> {
    VarInt::from_u64(value).map_err(TransportError::tls)
}

/// Another socket at the address of one of this process, for what this peer sends. The kernel allows the address to others
/// only if each socket there does, and the first does so only while this is done: for some microseconds.
pub(crate) fn connected(
    beside: &UdpSocket,
    own: SocketAddr,
    peer: SocketAddr,
    limits: &Limits,
) -> io::Result<UdpSocket> {
    let (socket, beside) = (unbound(own, limits)?, SockRef::from(beside));
    beside.set_reuse_address(true)?;
    let bound = socket.set_reuse_address(true).and_then(|()| socket.bind(&SockAddr::from(own)));
    beside.set_reuse_address(false)?;
    bound?;
    socket.connect(&SockAddr::from(peer))?;
    let socket = UdpSocket::from(socket);
    // Until then it got what others sent, too, and they send it again. What comes even now is dropped when it is read.
    while socket.recv(&mut [0]).is_ok() {}
    Ok(socket)
}

/// A UDP socket for addresses like this one; it asks for large buffers, which the kernel may grant in part.
fn unbound(address: SocketAddr, limits: &Limits) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && (address.ip().is_unspecified() || address.ip().to_canonical().is_ipv4()) {
        // [::] means every address of the machine, those of IPv4 too.
        socket.set_only_v6(false)?;
    }
    let asked = limits.socket_buffer;
    let buffers = socket.set_recv_buffer_size(asked).and_then(|()| socket.set_send_buffer_size(asked));
    let (receive, send) = (socket.recv_buffer_size().unwrap_or(0), socket.send_buffer_size().unwrap_or(0));
    if buffers.is_err() || receive.min(send) < asked {
        tracing::debug!(%address, asked, receive, send, "the kernel gave smaller socket buffers than asked for");
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}
