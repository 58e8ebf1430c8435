//! Gives peers on this machine a lane each: a socket of their own, and a thread that serves it and nothing else.
//!
//! What comes to a socket that many share is read by whichever thread waits for it, and the kernel, which knows only that
//! one thread wakes another, places that one behind a peer that computes although another core has nothing to do. A lane's
//! thread is woken by one peer alone, and so the kernel keeps the two beside each other: one waits whenever the other works.
//! Where workers and a server share the cores, a training makes a third more steps (docs/performance.md).
//!
//! A lane's socket has the address of the endpoint's own and is connected to the peer, so that the kernel gives it what
//! that peer sends and the endpoint's own everything else. It is there before the peer is asked to come again with a token
//! (RFC 9000, section 8.1.2), and so its connection is made on it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quinn::{EndpointConfig, ServerConfig, TokioRuntime};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::aside::Aside;
use crate::bare;
use crate::endpoint::{Incoming, canonical};
use crate::limits::Limits;
use crate::pacing::Link;
use crate::socket;
use crate::turns::Turns;

/// Connections that one peer may have open on its lane.
const CONNECTIONS_MAX: usize = 16;
/// How long a lane waits for the first connection of its peer, who was asked to come again at once.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// How long peers may take to hear that their lanes are closed.
const FAREWELL: Duration = Duration::from_secs(1);
/// What runs on a lane when nobody is connected: the endpoint's driver and [`serve`].
const TASKS_AT_REST: usize = 2;

/// What each lane is made like.
#[derive(Debug)]
pub(crate) struct Template {
    /// The endpoint's own socket.
    pub(crate) socket: UdpSocket,
    pub(crate) config: EndpointConfig,
    pub(crate) server: ServerConfig,
    pub(crate) limits: Limits,
    pub(crate) link: Arc<Link>,
}

/// The lanes of an endpoint, and the threads that serve them.
#[derive(Debug)]
pub(crate) struct Lanes {
    template: Template,
    most: AtomicUsize,
    /// Whether those that are opened can be moved to their peers' cores.
    stay: AtomicBool,
    open: Mutex<Vec<Lane>>,
    accepted: mpsc::Sender<Incoming>,
    waiting: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
}

#[derive(Debug)]
struct Lane {
    peer: SocketAddr,
    endpoint: quinn::Endpoint,
    /// Its thread, which closes it when this is dropped, and ends.
    _aside: Aside,
}

impl Lanes {
    /// None yet, and none is opened before [`set`](Self::set) allows any.
    pub(crate) fn new(template: Template) -> Self {
        let (accepted, waiting) = mpsc::channel(template.limits.incoming);
        let (most, stay, open) = Default::default();
        Self { template, most, stay, open, accepted, waiting: waiting.into() }
    }

    /// So many peers may have one at once, and those opened from now on can be moved to their peers' cores or not.
    pub(crate) fn set(&self, most: usize, stay: bool) {
        self.stay.store(stay, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
    }

    /// The next connection that is made on a lane. May be dropped.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        self.waiting.lock().await.recv().await
    }

    /// Whether any may be open.
    pub(crate) fn are_used(&self) -> bool {
        self.most.load(Ordering::Relaxed) > 0
    }

    /// Connections on all lanes.
    pub(crate) fn connections(&self) -> usize {
        self.lock().iter().map(|lane| lane.endpoint.open_connections()).sum()
    }

    /// Opens a lane for a peer that has none, who is then to come again; false if it gets none.
    pub(crate) fn open(self: &Arc<Self>, peer: SocketAddr, own: SocketAddr) -> bool {
        let mut open = self.lock();
        let most = self.most.load(Ordering::Relaxed);
        if open.iter().any(|lane| lane.peer == peer) {
            // It has not heard yet that it is to come again.
            return true;
        }
        if open.len() >= most {
            return false;
        }
        match self.template.open(peer, own, self) {
            Ok(lane) => {
                open.push(lane);
                true
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "no socket of its own for this peer");
                false
            }
        }
    }

    /// No further lane is opened. Returns what is to be closed and to become idle.
    pub(crate) fn close(&self) -> Vec<quinn::Endpoint> {
        self.set(0, false);
        self.lock().iter().map(|lane| lane.endpoint.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Template {
    fn open(&self, peer: SocketAddr, own: SocketAddr, lanes: &Arc<Lanes>) -> io::Result<Lane> {
        let socket = bare::connected(&self.socket, own, peer, &self.limits)?;
        let stays = lanes.stay.load(Ordering::Relaxed);
        let turns = if stays { Some(Arc::new(Turns::with_peer_of(&socket)?)) } else { None };
        let (config, server, lanes) = (self.config.clone(), self.server.clone(), Arc::downgrade(lanes));
        let (endpoint, aside) = Aside::start("lane", move || async move {
            let runtime = Arc::new(TokioRuntime);
            let socket = socket::of_one(&*runtime, socket, peer)?;
            let endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?;
            tokio::spawn(serve(lanes, endpoint.clone(), peer, turns));
            let closed = endpoint.clone();
            let end = async move {
                closed.close(0u32.into(), bare::SHUTTING_DOWN);
                let _ = timeout(FAREWELL, closed.wait_idle()).await;
            };
            io::Result::Ok((endpoint, end))
        })?;
        Ok(Lane { peer, endpoint, _aside: aside })
    }
}

/// Takes up what comes on a lane until its peer has had no connection for as long as a handshake may take.
async fn serve(lanes: Weak<Lanes>, endpoint: quinn::Endpoint, peer: SocketAddr, turns: Option<Arc<Turns>>) {
    let Some((accepted, link, within)) = lanes.upgrade().map(|lanes| {
        let Template { limits, link, .. } = &lanes.template;
        (lanes.accepted.clone(), Arc::clone(link), limits.handshake)
    }) else {
        return;
    };
    let mut patience = FIRST_WITHIN;
    while let Some(incoming) = next(&endpoint, patience).await {
        if incoming.remote_address() != peer {
            // It came before the socket was connected.
            incoming.ignore();
            continue;
        }
        if endpoint.open_connections() >= CONNECTIONS_MAX {
            incoming.refuse();
            continue;
        }
        patience = within;
        let (inner, address) = (incoming.accept(), canonical(peer));
        let (link, place, turns) = (Arc::clone(&link), Handle::current(), turns.clone());
        if accepted.send(Incoming { inner, address, within, link, place, turns }).await.is_err() {
            break;
        }
    }
    if let Some(lanes) = lanes.upgrade() {
        lanes.lock().retain(|lane| lane.peer != peer);
    }
}

/// The next handshake on a lane, or nothing when there is no connection any more, nor a task that has one to see to its end.
async fn next(endpoint: &quinn::Endpoint, patience: Duration) -> Option<quinn::Incoming> {
    loop {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        match timeout(patience, endpoint.accept()).await {
            Ok(incoming) => return incoming,
            Err(_) if endpoint.open_connections() == 0 && tasks() <= TASKS_AT_REST => return None,
            Err(_) => {}
        }
    }
}
