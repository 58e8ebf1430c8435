//! Sets the scene for the tests: runs, endpoints and connected pairs.

use std::net::SocketAddr;
use std::time::Duration;

use windlass_common::ids::{ServerId, WorkerId};
use windlass_transport::{Connection, Endpoint, Identity, Limits, Role, RunAuthority, TransportError};

pub(crate) const SERVER: Role = Role::Server(ServerId(0));
pub(crate) const WORKER: Role = Role::Worker(WorkerId(3));
/// Longer than any test: what is given this much time must end for a better reason.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// Bounds a test in time.
pub(crate) async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test must end within a minute")
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server and a worker of one run.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) server: Identity,
    pub(crate) worker: Identity,
    pub(crate) limits: Limits,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let authority = RunAuthority::new("test").unwrap();
        Self { server: authority.issue(SERVER).unwrap(), worker: authority.issue(WORKER).unwrap(), limits }
    }

    pub(crate) fn listen(&self) -> (Endpoint, SocketAddr) {
        let endpoint = Endpoint::bind(loopback(), &self.server, &self.limits).unwrap();
        let address = endpoint.local_address().unwrap();
        (endpoint, address)
    }

    pub(crate) fn client(&self) -> Endpoint {
        Endpoint::client(&self.worker, &self.limits).unwrap()
    }
}

/// Finishes every handshake in its own task, as a server does, and hands over what became of each.
pub(crate) fn accept_all(
    endpoint: &Endpoint,
) -> tokio::sync::mpsc::Receiver<Result<Connection, TransportError>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(100);
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move { sender.send(incoming.finish().await).await });
        }
    });
    receiver
}

/// A connected pair with the endpoints that keep it alive.
pub(crate) struct Pair {
    pub(crate) server: Endpoint,
    pub(crate) client: Endpoint,
    /// The server's side.
    pub(crate) accepted: Connection,
    /// The worker's side.
    pub(crate) opened: Connection,
}

pub(crate) async fn pair(limits: Limits) -> Pair {
    let run = Run::with(limits);
    let (server, address) = run.listen();
    let client = run.client();
    let (accepted, opened) =
        tokio::join!(async { server.accept().await.unwrap().finish().await.unwrap() }, async {
            client.connect(address, SERVER, LONG).await.unwrap()
        },);
    Pair { server, client, accepted, opened }
}

/// A runtime that stands still, like a stopped process, whenever it is not inside `block_on`.
pub(crate) fn standing_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
