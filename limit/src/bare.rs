//! The same bytes over bare quinn: the same endpoints, windows and MTU, and nothing of Windlass above them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use windlass_common::ids::ServerId;
use windlass_transport::bare::{self, quinn};
use windlass_transport::{Identity, Limits, Role};

use crate::processor::processor_time;

/// What a series of exchanges took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// By the clock on the wall.
    pub wall: Duration,
    /// Processor time of this process, servers and clients together.
    pub processor: Duration,
    /// Exchanges of all clients together.
    pub exchanges: u64,
}

impl Took {
    /// Exchanges per second, all clients together.
    pub fn per_second(&self) -> f64 {
        self.exchanges as f64 / self.wall.as_secs_f64()
    }

    /// Processor seconds of one exchange, both ends together.
    pub fn core_seconds(&self) -> f64 {
        self.processor.as_secs_f64() / self.exchanges as f64
    }
}

/// Bytes of a push and of what is pulled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// From the worker.
    pub up: usize,
    /// To the worker.
    pub down: usize,
}

/// Starts a server that takes the bytes of a push on each stream and gives those of a pull back, again and again. As in a
/// run, clients do not share a thread unless there are more of them than cores: client i is to use address i, and those
/// behind the last one begin again with the first.
///
/// # Errors
/// If an endpoint cannot be made.
pub fn serve(
    identity: &Identity,
    limits: &Limits,
    payload: Payload,
    clients: usize,
) -> anyhow::Result<Vec<SocketAddr>> {
    let threads = std::thread::available_parallelism()?.get().min(clients);
    let (tell, told) = std::sync::mpsc::channel();
    for _ in 0..threads {
        let (identity, limits, tell) = (identity.clone(), limits.clone(), tell.clone());
        std::thread::spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let endpoint = bare::endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), &identity, &limits)?;
                tell.send(endpoint.local_addr()?)?;
                while let Some(incoming) = endpoint.accept().await {
                    tokio::spawn(async move { echo(incoming.await?, payload).await });
                }
                Ok(())
            })
        });
    }
    let address = |_| told.recv_timeout(Duration::from_secs(10)).context("the bare server did not start");
    (0..threads).map(address).collect()
}

async fn echo(connection: quinn::Connection, payload: Payload) -> anyhow::Result<()> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    let mut gradient = vec![0; payload.up];
    let fresh = Bytes::from(vec![0; payload.down]);
    loop {
        receive.read_exact(&mut gradient).await?;
        send.write_chunk(fresh.clone()).await?;
    }
}

/// Runs `exchanges` push-pulls on each of several clients at once, each with a thread and a runtime as a worker has.
///
/// # Errors
/// If a client cannot connect or loses its connection.
pub fn exchange(
    servers: &[SocketAddr],
    identities: &[Identity],
    payload: Payload,
    exchanges: u64,
) -> anyhow::Result<Took> {
    at_once(identities.len(), exchanges, |client| {
        let server = servers[client % servers.len()];
        let mut client = Client::connect(server, &identities[client], payload)?;
        Ok(move || client.exchange())
    })
}

/// A client with a runtime as a worker has.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    gradient: Bytes,
    fresh: Vec<u8>,
    _open: quinn::Endpoint,
}

impl Client {
    /// Connects to a server that takes and gives as much.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn connect(server: SocketAddr, identity: &Identity, payload: Payload) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (endpoint, send, receive) = runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let endpoint = bare::endpoint(any, identity, &Limits::default())?;
            let name = Role::Server(ServerId(0)).dns_name();
            let connection = endpoint.connect(server, &name)?.await?;
            let (send, receive) = connection.open_bi().await?;
            anyhow::Ok((endpoint, send, receive))
        })?;
        let (gradient, fresh) = (Bytes::from(vec![0; payload.up]), vec![0; payload.down]);
        Ok(Self { runtime, send, receive, gradient, fresh, _open: endpoint })
    }

    /// One push-pull.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn exchange(&mut self) -> anyhow::Result<()> {
        let Self { runtime, send, receive, gradient, fresh, .. } = self;
        runtime.block_on(async {
            send.write_chunk(gradient.clone()).await?;
            receive.read_exact(fresh).await?;
            anyhow::Ok(())
        })
    }
}

/// Prepares each client on a thread of its own, warms it up, and then lets all run `exchanges` times at once.
///
/// # Errors
/// If one of them fails.
pub fn at_once<E: FnMut() -> anyhow::Result<()>>(
    clients: usize,
    exchanges: u64,
    prepare: impl Fn(usize) -> anyhow::Result<E> + Sync,
) -> anyhow::Result<Took> {
    const WARM_UP: u64 = 50;
    let ready = std::sync::Barrier::new(clients + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let (prepare, ready) = (&prepare, &ready);
                scope.spawn(move || -> anyhow::Result<()> {
                    let prepared = prepare(client).and_then(|mut exchange| {
                        (0..WARM_UP).try_for_each(|_| exchange())?;
                        Ok(exchange)
                    });
                    ready.wait();
                    let mut exchange = prepared?;
                    (0..exchanges).try_for_each(|_| exchange())
                })
            })
            .collect();
        ready.wait();
        let (start, before) = (Instant::now(), processor_time());
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let (wall, processor) = (start.elapsed(), processor_time() - before);
        Ok(Took { wall, processor, exchanges: exchanges * clients as u64 })
    })
}
