//! Accepts and opens connections between processes of one run.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{ClientConfig, ServerConfig};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use windlass_common::plan::LinkRate;

use crate::bare::{self, Path};
use crate::connection::Connection;
use crate::error::{ConnectionLost, TransportError, alert, objection};
use crate::identity::Identity;
use crate::lanes::{Lanes, Template};
use crate::limits::Limits;
use crate::pacing::Link;
use crate::role::Role;
use crate::turns::Turns;

/// An attempt that nothing has answered for this long is given up for a new one.
const UNANSWERED_MAX: Duration = Duration::from_secs(1);
/// The pause after an attempt that failed at once: it begins with the first and doubles up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// One UDP socket on which a process accepts and opens connections. Clones share it.
///
/// One endpoint is driven by one task of the tokio runtime that it was made in, and each connection by another. Peers on
/// this machine may be given a socket and a thread each: see [`set_lanes`](Self::set_lanes).
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    limits: Limits,
    role: Role,
    link: Arc<Link>,
    /// How peers on other machines are met; quinn's endpoint meets those on this one.
    far: (ClientConfig, Arc<ServerConfig>),
    lanes: Option<Arc<Lanes>>,
    /// From where it connects once there may be lanes: what is sent to an address of a lane's peer would be answered to that
    /// lane.
    outgoing: Arc<OnceLock<quinn::Endpoint>>,
    identity: Identity,
}

impl Endpoint {
    /// Listens on an address; port 0 lets the system choose. It may open connections, too.
    ///
    /// # Errors
    /// When the limits contradict each other, the address cannot be bound, or there is no tokio runtime.
    pub fn bind(address: SocketAddr, identity: &Identity, limits: &Limits) -> Result<Self, TransportError> {
        let socket = bare::bound(address, limits)?;
        let own = socket.try_clone().map_err(TransportError::Socket)?;
        let config = bare::own_config(identity, limits)?;
        let server = bare::server_config(identity, limits, Path::Local)?;
        let inner = bare::with_socket(socket, address, config.clone(), server.clone(), identity, limits)?;
        let mut endpoint = Self::from_quinn(inner, identity, limits)?;
        let (limits, link) = (limits.clone(), Arc::clone(&endpoint.link));
        let template = Template { socket: own, config, server, limits, link };
        endpoint.lanes = Some(Arc::new(Lanes::new(template)));
        Ok(endpoint)
    }

    /// Takes any free port, for a process that only opens connections. It reaches peers of IPv4 and, where this
    /// machine has it, IPv6.
    ///
    /// # Errors
    /// When the limits contradict each other, no port can be had, or there is no tokio runtime.
    pub fn client(identity: &Identity, limits: &Limits) -> Result<Self, TransportError> {
        Self::from_quinn(bare::anywhere(identity, limits)?, identity, limits)
    }

    /// Another that only opens connections, as the same process: of this identity, with these limits and over the same
    /// emulated link. It is driven by the runtime it is made in, which may be that of a thread of its own.
    ///
    /// # Errors
    /// When no port can be had, or there is no tokio runtime.
    pub fn apart(&self) -> Result<Self, TransportError> {
        let inner = bare::anywhere(&self.identity, &self.limits)?;
        Ok(Self { inner, lanes: None, outgoing: Arc::default(), ..self.clone() })
    }

    /// Puts roles, retries, frames and meters on a bare quinn endpoint, which the module `bare` made from the same
    /// identity and limits.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn from_quinn(
        inner: quinn::Endpoint,
        identity: &Identity,
        limits: &Limits,
    ) -> Result<Self, TransportError> {
        let far = (
            bare::client_config(identity, limits, Path::Far)?,
            Arc::new(bare::server_config(identity, limits, Path::Far)?),
        );
        Ok(Self {
            inner,
            limits: limits.clone(),
            role: identity.role(),
            link: Link::shared(),
            far,
            lanes: None,
            outgoing: Arc::default(),
            identity: identity.clone(),
        })
    }

    /// The role that this endpoint's certificate states.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Emulates a link of this rate between this process and all its peers together, in each direction by itself;
    /// `None`, as at first, lifts it. It holds at once for every connection and stream of this endpoint and its
    /// clones, whenever they were made.
    ///
    /// A frame is then sent and read in pieces of at most 16 KiB, each when the link would have carried it, and streams
    /// take turns. What waits is this side alone: the peer is slowed by what it waits for, and by a rate of its own.
    /// Where both have one, bytes pass both links at once and the slower one counts. After a pause the first 2 ms
    /// worth of bytes pass at once.
    ///
    /// The bytes of frames count: prefix, header and payload. Handshakes, acknowledgements, retransmissions and the
    /// overhead of QUIC and UDP, about 2 % of large frames, do not; nor do priorities order what waits for the link.
    pub fn set_link_rate(&self, rate: Option<LinkRate>) {
        self.link.set_rate(rate);
    }

    /// From now on so many peers that come from this machine get a socket and a thread each; at first none
    /// does. It is for servers with few peers. What is connected from then on comes from another port than the endpoint's own.
    ///
    /// If they `stay`, a thread can be moved to the core of its peer ([`Connection::stay_with_peer`]).
    ///
    /// What an endpoint over a socket of another kind accepts stays on that.
    pub fn set_lanes(&self, most: usize, stay: bool) {
        if let Some(lanes) = &self.lanes {
            lanes.set(most, stay);
        }
    }

    /// The address that was bound, with the port that the system chose.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// The next handshake that somebody began, or `None` once the endpoint is shut down; by design it waits as long as
    /// nobody comes. May be dropped and called again.
    ///
    /// Finish each [`Incoming`] in a task of its own ([`Incoming::spawn`]), so that a slow one keeps nobody waiting.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = match &self.lanes {
                None => self.inner.accept().await?,
                Some(lanes) => tokio::select! {
                    incoming = self.inner.accept() => incoming?,
                    Some(incoming) = lanes.accept() => return Some(incoming),
                },
            };
            let (address, limit) = (canonical(incoming.remote_address()), self.limits.connections);
            let on_lanes = self.lanes.as_ref().map_or(0, |lanes| lanes.connections());
            let open = self.inner.open_connections() + on_lanes;
            if open >= limit {
                tracing::warn!(%address, limit, "refused a connection: as many are open as the limit allows");
                incoming.refuse();
                continue;
            }
            if open > limit / 2 && incoming.may_retry() {
                // The second half is for those who have shown that they receive at the address they claim, so that
                // forged packets cannot fill it. The peer answers by itself and comes back here.
                let _ = incoming.retry();
                continue;
            }
            if is_local(address) && incoming.may_retry() && self.open_lane(&incoming) {
                let _ = incoming.retry();
                continue;
            }
            // It counts as an open connection from here on. What fails already is told by finishing it.
            let inner = match is_local(address) {
                true => incoming.accept(),
                false => incoming.accept_with(Arc::clone(&self.far.1)),
            };
            let (within, link) = (self.limits.handshake, Arc::clone(&self.link));
            let (place, turns) = (Handle::current(), None);
            return Some(Incoming { inner, address, within, link, place, turns });
        }
    }

    fn open_lane(&self, incoming: &quinn::Incoming) -> bool {
        let Some(lanes) = &self.lanes else { return false };
        let Ok(mut own) = self.inner.local_addr() else { return false };
        // What a peer sends comes from one of its addresses to one of ours.
        if let Some(ip) = incoming.local_ip() {
            own.set_ip(ip);
        }
        !own.ip().is_unspecified() && lanes.open(incoming.remote_address(), own)
    }

    /// Opens a connection to the process of that role, and returns when both sides have accepted each other.
    ///
    /// Since processes start in any order, it tries again until `within` has passed when nobody answers or the
    /// peer refuses connections for now. May be dropped; the attempt is then given up.
    ///
    /// # Errors
    /// At once when a certificate is objected to on either side, or another role than expected answers; at the
    /// deadline when nobody answers.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: Role,
        within: Duration,
    ) -> Result<Connection, TransportError> {
        let deadline = Instant::now() + within;
        let mut pause = PAUSE.0;
        let mut last = "nothing answered".to_owned();
        let attempts = async {
            loop {
                match self.attempt(address, expected).await {
                    Ok(connection) => return Ok(connection),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::NoAnswer) => pause = PAUSE.0,
                    Err(Failure::Passing(reason)) => {
                        tracing::debug!(%address, %expected, reason, "trying again to connect");
                        last = reason;
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSE.1);
                    }
                }
            }
        };
        match timeout_at(deadline, attempts).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Unreachable { expected, address, within, reason: last }),
        }
    }

    async fn attempt(&self, address: SocketAddr, expected: Role) -> Result<Connection, Failure> {
        let judge = |error| Failure::judge(error, address, expected);
        let name = expected.dns_name();
        let from = self.outgoing().map_err(Failure::Final)?;
        let connecting = match is_local(address) {
            true => from.connect(address, &name),
            false => from.connect_with(self.far.0.clone(), address, &name),
        };
        let mut connecting = connecting.map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => Failure::Final(TransportError::Closed),
            quinn::ConnectError::CidsExhausted => Failure::Passing(error.to_string()),
            other => Failure::refused(address, expected, other.to_string()),
        })?;
        // Only an attempt that nothing answered is replaced; a peer that is alive but slow is given its time.
        timeout(UNANSWERED_MAX, connecting.handshake_data())
            .await
            .map_err(|_| Failure::NoAnswer)?
            .map_err(judge)?;
        let connection = connecting.await.map_err(judge)?;
        // In TLS 1.3 the connecting side is done before the other has seen its certificate. The acceptor's welcome,
        // an empty one-way stream, says that it was good, so that a refusal is known here and not at first use.
        connection.accept_uni().await.map_err(judge)?;
        let connection = Connection::new(connection, Arc::clone(&self.link))
            .map_err(|reason| Failure::refused(address, expected, reason.to_string()))?;
        if connection.peer() != expected {
            let reason = format!("its certificate is that of {}", connection.peer());
            return Err(Failure::refused(address, expected, reason));
        }
        Ok(connection)
    }

    /// What connections to others are made from.
    fn outgoing(&self) -> Result<&quinn::Endpoint, TransportError> {
        if let Some(outgoing) = self.outgoing.get() {
            return Ok(outgoing);
        }
        if !self.lanes.as_ref().is_some_and(|lanes| lanes.are_used()) {
            return Ok(&self.inner);
        }
        let made = bare::anywhere(&self.identity, &self.limits)?;
        // If somebody else has made one meanwhile, that is as good.
        Ok(self.outgoing.get_or_init(|| made))
    }

    /// Closes every connection and waits until the peers have been told, but no longer than `within`.
    ///
    /// What was not acknowledged by then is lost: let streams end and answers arrive before.
    pub async fn shutdown(&self, within: Duration) {
        let lanes = self.lanes.as_ref().map(|lanes| lanes.close()).unwrap_or_default();
        let others: Vec<_> = self.outgoing.get().cloned().into_iter().chain(lanes).collect();
        let idle = async {
            for endpoint in std::iter::once(&self.inner).chain(&others) {
                endpoint.close(0u32.into(), bare::SHUTTING_DOWN);
            }
            for endpoint in std::iter::once(&self.inner).chain(&others) {
                endpoint.wait_idle().await;
            }
        };
        if timeout(within, idle).await.is_err() {
            tracing::debug!(?within, "left connections behind that had not ended in time");
        }
    }
}

/// Whether a peer at this address is on this machine.
pub(crate) fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Why an attempt failed, and with it whether to try again.
enum Failure {
    NoAnswer,
    Passing(String),
    Final(TransportError),
}

impl Failure {
    fn refused(address: SocketAddr, expected: Role, reason: String) -> Self {
        Self::Final(TransportError::Refused { expected, address, reason })
    }

    fn judge(error: quinn::ConnectionError, address: SocketAddr, expected: Role) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::TransportError(error) => match alert(error.code) {
                Some(number) => {
                    let reason = format!("{} ({})", objection(number, "its certificate"), error.reason);
                    Self::refused(address, expected, reason)
                }
                None => Self::Passing(error.to_string()),
            },
            E::ConnectionClosed(close) => match alert(close.error_code) {
                Some(number) => {
                    let reason = format!(
                        "it refused this process: {}",
                        objection(number, "this process's certificate")
                    );
                    Self::refused(address, expected, reason)
                }
                None => Self::Passing("it refuses connections for now".to_owned()),
            },
            E::VersionMismatch => {
                Self::refused(address, expected, "it speaks another version of QUIC".to_owned())
            }
            E::LocallyClosed => Self::Final(TransportError::Closed),
            E::TimedOut => Self::NoAnswer,
            other => Self::Passing(ConnectionLost::from(other).to_string()),
        }
    }
}

/// A handshake that somebody began and that waits to be finished. Dropping it ends the attempt.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) inner: Result<quinn::Connecting, quinn::ConnectionError>,
    pub(crate) address: SocketAddr,
    pub(crate) within: Duration,
    pub(crate) link: Arc<Link>,
    /// What drives its socket.
    pub(crate) place: Handle,
    /// With whom a thread that has it alone takes turns.
    pub(crate) turns: Option<Arc<Turns>>,
}

impl Incoming {
    /// Where it comes from. Nothing about it is verified yet.
    pub fn remote_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves it in a task of its own, on the thread that has its socket, if one has it.
    pub fn spawn<F>(self, serve: impl FnOnce(Self) -> F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let place = self.place.clone();
        place.spawn(serve(self))
    }

    /// Finishes the handshake within [`Limits::handshake`]; the peer is then known by its certificate. May be
    /// dropped; the attempt is then ended.
    ///
    /// # Errors
    /// When the peer shows no certificate of this run, does not go on in time or goes away. This concerns
    /// nobody else.
    pub async fn finish(self) -> Result<Connection, TransportError> {
        let Self { inner, address, within, link, turns, .. } = self;
        let done = match timeout(within, Self::handshake(inner, link)).await {
            Ok(done) => done.map(|connection| connection.on_lane(turns)),
            Err(_) => Err(format!("it was not finished within {} s", within.as_secs_f64())),
        };
        done.map_err(|reason| {
            tracing::debug!(%address, reason, "a handshake failed");
            TransportError::Handshake { address, reason }
        })
    }

    async fn handshake(
        begun: Result<quinn::Connecting, quinn::ConnectionError>,
        link: Arc<Link>,
    ) -> Result<Connection, String> {
        let connection = async { begun?.await }.await.map_err(|error| match error {
            quinn::ConnectionError::TransportError(error) => match alert(error.code) {
                Some(number) => format!("{} ({})", objection(number, "the peer's certificate"), error.reason),
                None => error.to_string(),
            },
            other => ConnectionLost::from(other).to_string(),
        })?;
        let connection = Connection::new(connection, link).map_err(|error| error.to_string())?;
        connection.welcome().await.map_err(|lost| lost.to_string())?;
        Ok(connection)
    }
}

/// An IPv4 address as such, also when the socket is one of IPv6.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address that `host:port` stands for; of several, the first of IPv4. Tries again until `within` has passed,
/// since the name of a machine that is just starting may not be known yet. May be dropped. A question that the system's
/// resolver has not answered by then goes on in the background for as long as the system lets it.
///
/// # Errors
/// At once when the text has no port; at the deadline when the name cannot be resolved.
pub async fn resolve(text: &str, within: Duration) -> Result<SocketAddr, TransportError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains([':', '/', ' ']) && port.parse::<u16>().is_ok()
    });
    if !well_formed {
        return Err(TransportError::Address { text: text.to_owned() });
    }
    let mut last = "the resolver did not answer".to_owned();
    let attempts = async {
        loop {
            match tokio::net::lookup_host(text).await {
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.collect();
                    if let Some(address) = found.iter().find(|a| a.is_ipv4()).or_else(|| found.first()) {
                        return *address;
                    }
                    last = "it has no address".to_owned();
                }
                Err(error) => last = error.to_string(),
            }
            sleep(PAUSE.1).await;
        }
    };
    match timeout(within, attempts).await {
        Ok(address) => Ok(address),
        Err(_) => Err(TransportError::Resolve { text: text.to_owned(), within, reason: last }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use windlass_common::ids::{ServerId, WorkerId};

    use super::*;
    use crate::authority::RunAuthority;

    const SERVER: Role = Role::Server(ServerId(0));
    const WORKER: Role = Role::Worker(WorkerId(0));

    /// The connecting side alone could not know: in TLS 1.3 its handshake ends before its certificate is judged.
    #[tokio::test]
    async fn a_worker_whose_own_certificate_is_of_another_run_learns_it_when_connecting() {
        let (run, other) = (RunAuthority::new("run").unwrap(), RunAuthority::new("other").unwrap());
        let limits = Limits::default();
        let identity = run.issue(SERVER).unwrap();
        let server = Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &identity, &limits).unwrap();
        let address = server.local_address().unwrap();
        let worker = Endpoint::client(&other.issue(WORKER).unwrap().trusting(&identity), &limits).unwrap();
        let (accepted, opened) = tokio::join!(
            async { server.accept().await.unwrap().finish().await },
            worker.connect(address, SERVER, Duration::from_secs(60)),
        );
        let text = opened.unwrap_err().to_string();
        let expected =
            "it refused this process: this process's certificate was issued by another run's authority";
        assert!(text.starts_with(&format!("server-0 at {address}: {expected}")), "{text}");
        let text = accepted.unwrap_err().to_string();
        assert!(text.contains("the peer's certificate was issued by another run's authority"), "{text}");
    }
}
