//! Starts a server's shards, and its coordinator if it is the first, and serves until the run ends.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use crossbeam::channel::{self, Sender};
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use windlass_common::exit::Exit;
use windlass_common::ids::{Lineage, RunId, ServerId, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Reject, Report, Stop};
use windlass_process::{Failure, OrExit};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::Event;
use windlass_ps_core::shard::Shard;
use windlass_ps_core::store::Snapshot;
use windlass_transport::{
    Connection, Endpoint, FrameError, FrameReceiver, FrameSender, Identity, Incoming, Limits, Pool, Priority,
    Role, bytes_of, resolve,
};

use crate::coordinator::{self, Control, Input};
use crate::meter::Meters;
use crate::run_directory::RunDirectory;
use crate::session;
use crate::shard::{self, ShardLink, ShardMessage};

/// Gradient buffers kept for use again, in bytes.
const POOL_BYTES_MAX: usize = 1 << 30;
/// A stream that says nothing for this long after it was opened is given up.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// A peer that says nothing for so long where a word is due, or takes nothing of a frame or sends nothing more of one, is
/// given up. The coordinator says every other second that it lives.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often a server tells the coordinator how many bytes it has exchanged.
const METER_EVERY: Duration = Duration::from_millis(200);
/// How long the last messages may take.
const FAREWELL: Duration = Duration::from_secs(3);
/// Longest first message of a stream.
const FIRST_BYTES_MAX: usize = 64 << 10;
const MIB: u64 = 1 << 20;

/// What a server is told at its start.
#[derive(Debug)]
pub struct Options {
    /// Who it is.
    pub identity: Identity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it, if not at the address it is seen at.
    pub advertise: Option<String>,
    /// What it does.
    pub part: Part,
    /// How long it tries to reach the coordinator.
    pub connect_deadline: Duration,
}

/// What a server does beside holding shards.
#[derive(Debug)]
pub enum Part {
    /// It coordinates the run.
    Coordinator {
        /// The run's plan.
        plan: Box<Plan>,
        /// Where the run leaves what it made.
        run_directory: PathBuf,
    },
    /// It follows the coordinator at this address.
    Follower {
        /// `host:port`.
        coordinator: String,
    },
}

/// The limits of a server's endpoint: windows for as many workers as a plan may have.
pub fn limits() -> Limits {
    Limits {
        connections: 1200,
        stream_window: 4 * MIB,
        receive_window: 8 * MIB,
        send_window: 8 * MIB,
        window_memory: 20 * 1024 * MIB,
        ..Limits::default()
    }
}

/// Serves until the run has ended. A coordinator waits no longer than the plan says for anybody; a follower no longer than
/// [`SILENCE_MAX`] for the coordinator's next word. `ready` is told the address once it listens; when `interrupted` resolves, the run
/// is ended in good order.
///
/// # Errors
/// Says why the run could not begin or go on, with the exit code for it.
pub async fn serve(
    options: Options,
    ready: impl FnOnce(SocketAddr),
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    serve_within(options, SILENCE_MAX, ready, interrupted).await
}

/// As [`serve`], with another limit to the silence of peers.
///
/// # Errors
/// As [`serve`].
pub async fn serve_within(
    options: Options,
    silence: Duration,
    ready: impl FnOnce(SocketAddr),
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let endpoint = Endpoint::bind(options.listen, &options.identity, &limits()).or_exit(Exit::Network)?;
    let address = endpoint.local_address().or_exit(Exit::Network)?;
    ready(address);
    let stop = match (options.identity.role(), options.part) {
        (Role::Server(ServerId(0)), Part::Coordinator { plan, run_directory }) => {
            let advertise = options.advertise.unwrap_or_else(|| address.to_string());
            coordinate(&endpoint, *plan, run_directory, advertise, silence, interrupted).await?
        }
        (Role::Server(id), Part::Follower { coordinator }) if id != ServerId(0) => {
            let joining = Body::JoinServer { address: options.advertise, port: address.port() };
            let waits = Waits { connect: options.connect_deadline, silence };
            follow(&endpoint, id, &coordinator, joining, waits, interrupted).await?
        }
        (role, part) => {
            let needed = match part {
                Part::Coordinator { .. } => "--plan makes this server the coordinator, which is server 0",
                Part::Follower { .. } => {
                    "--coordinator makes this server a follower, which is server 1 or higher"
                }
            };
            return Err(anyhow::anyhow!("{needed}; this identity is that of {role}")).or_exit(Exit::Usage);
        }
    };
    endpoint.shutdown(FAREWELL).await;
    match stop {
        Stop::Completed => Ok(()),
        Stop::Failed { reason } => Err(anyhow::anyhow!(reason)).or_exit(Exit::Run),
    }
}

/// How long a follower waits for the coordinator: to be reached, and for its next word.
#[derive(Clone, Copy)]
struct Waits {
    connect: Duration,
    silence: Duration,
}

/// What every connection task shares.
struct Shared {
    /// How long a peer may stand still in the middle of a frame.
    silence: Duration,
    envelope: Envelope,
    shards: Vec<(ShardId, ShardLink)>,
    pool: Arc<Pool>,
    meters: Meters,
    sessions: Arc<AtomicU64>,
    control: Option<Arc<Control>>,
}

async fn coordinate(
    endpoint: &Endpoint,
    plan: Plan,
    run_directory: PathBuf,
    advertise: String,
    silence: Duration,
    interrupted: impl Future<Output = ()>,
) -> Result<Stop, Failure> {
    let directory = RunDirectory::create(&run_directory, &plan).or_exit(Exit::System)?;
    let run = RunId(crate::clock::now().0.rotate_left(20) ^ u64::from(std::process::id()));
    let envelope = envelope_of(run);
    let (inputs, receiver) = channel::bounded(coordinator::MESSAGES_MAX);
    let (ended, mut end) = oneshot::channel();
    coordinator::spawn(plan.clone(), run, directory, receiver, ended).or_exit(Exit::System)?;
    let served = Arc::new(std::sync::OnceLock::<Arc<Shared>>::new());
    let mut shards = Vec::new();
    for shard in plan.cluster.shards_of(ServerId(0)) {
        let (to_coordinator, shared) = (inputs.clone(), Arc::clone(&served));
        let tell = move |message| {
            let input = match message {
                ShardMessage::Report(report) => Input::Event(Event::Report { shard, report }),
                ShardMessage::Final { snapshot, partial } => {
                    if let Some(shared) = shared.get() {
                        measure(&to_coordinator, shared);
                    }
                    let (report, values) = result(&snapshot, partial);
                    Input::Result {
                        shard,
                        report,
                        values: values.iter().flat_map(|v| v.iter().copied()).collect(),
                    }
                }
            };
            let _ = to_coordinator.send(input);
        };
        let link = start_shard(&plan, run, shard, tell)?;
        coordinator::tell(&inputs, Input::LocalShard { shard, link: link.clone() }).await;
        shards.push((shard, link));
    }
    let sessions = Arc::new(AtomicU64::new(1));
    let (alive, mut all_written) = mpsc::channel(1);
    let control = Control {
        plan,
        inputs: inputs.clone(),
        alive: Mutex::new(Some(alive)),
        sessions: Arc::clone(&sessions),
    };
    let control = Arc::new(control);
    let shared = Arc::new(Shared {
        silence,
        envelope,
        shards,
        pool: Arc::new(Pool::new(POOL_BYTES_MAX)),
        meters: Meters::default(),
        sessions,
        control: Some(Arc::clone(&control)),
    });
    let _ = served.set(Arc::clone(&shared));
    let joined = Event::ServerJoined { session: SessionId(0), server: ServerId(0), address: advertise };
    coordinator::tell(&inputs, Input::Event(joined)).await;

    let mut interrupted = std::pin::pin!(interrupted);
    let mut is_interrupted = false;
    let mut every = tokio::time::interval(METER_EVERY);
    let stop = loop {
        tokio::select! {
            stop = &mut end => break stop.unwrap_or(Stop::Failed { reason: "the coordinator's thread is gone".into() }),
            () = &mut interrupted, if !is_interrupted => {
                is_interrupted = true;
                let reason = "server 0 was told to end".into();
                coordinator::tell(&inputs, Input::Event(Event::Abort { session: None, reason })).await;
            }
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    tokio::spawn(connection(incoming, Arc::clone(&shared)));
                }
                None => break Stop::Failed { reason: "the socket of server 0 is gone".into() },
            },
            _ = every.tick() => {
                let meter = shared.meters.total();
                let measured = Event::Measured { server: ServerId(0), meter };
                coordinator::tell(&inputs, Input::Event(measured)).await;
            }
        }
    };
    for (_, link) in &shared.shards {
        link.stop();
    }
    // The last messages are on their way; each control stream holds a token until its peer has them.
    control.alive.lock().take();
    let _ = timeout(FAREWELL, async { while all_written.recv().await.is_some() {} }).await;
    Ok(stop)
}

async fn follow(
    endpoint: &Endpoint,
    id: ServerId,
    coordinator: &str,
    joining: Body,
    Waits { connect, silence }: Waits,
    interrupted: impl Future<Output = ()>,
) -> Result<Stop, Failure> {
    let address = resolve(coordinator, connect).await.or_exit(Exit::Network)?;
    let connection =
        endpoint.connect(address, Role::Server(ServerId(0)), connect).await.or_exit(Exit::Network)?;
    let silent = || {
        let silence = silence.as_secs_f64();
        anyhow::anyhow!("the coordinator at {address} has said nothing for {silence} s")
    };
    let opened = timeout(silence, connection.open_stream(Priority::High)).await;
    let (mut sender, mut receiver) =
        opened.map_err(|_| silent()).or_exit(Exit::Network)?.or_exit(Exit::Network)?;
    sender.set_patience(silence);
    receiver.set_patience(silence);
    let mut buffer = AlignedVec::new();
    envelope_of(RunId(0)).header(joining).encode(&mut buffer).or_exit(Exit::Run)?;
    sender.send(&buffer, []).await.or_exit(Exit::Network)?;
    let answer = timeout(silence, next(&mut receiver, &mut buffer)).await;
    let (envelope, plan) = match answer.map_err(|_| silent()).or_exit(Exit::Network)?? {
        Header { run, lineage, term, worker, incarnation, body: Body::Welcome(welcome), .. } => {
            let plan = Plan::parse(&welcome.plan).or_exit(Exit::Input)?;
            if plan.hash() != welcome.plan_hash {
                let reason = anyhow::anyhow!(
                    "this program reads the plan differently from the coordinator; use one build"
                );
                return Err(reason).or_exit(Exit::Run);
            }
            (Envelope { run, lineage, term, worker, incarnation }, plan)
        }
        Header { body: Body::Refused(reason), .. } => return Err(reason).or_exit(Exit::Run),
        Header { body: Body::Stop(stop), .. } => return Ok(stop),
        other => return Err(unexpected(&other)).or_exit(Exit::Run),
    };

    let (outgoing, queue) = mpsc::channel(coordinator::OUTGOING_MAX);
    let mut shards = Vec::new();
    for shard in plan.cluster.shards_of(id) {
        let outgoing = outgoing.clone();
        // The shard's thread is not a task of the runtime, so that it may wait for a place.
        let tell = move |message| {
            let _ = outgoing.blocking_send((shard, message));
        };
        shards.push((shard, start_shard(&plan, envelope.run, shard, tell)?));
    }
    let shared = Arc::new(Shared {
        silence,
        envelope,
        shards,
        pool: Arc::new(Pool::new(POOL_BYTES_MAX)),
        meters: Meters::default(),
        sessions: Arc::new(AtomicU64::new(1)),
        control: None,
    });
    let (abort, aborted) = oneshot::channel();
    let mut writer = tokio::spawn(report(sender, queue, Arc::clone(&shared), aborted));
    let mut abort = Some(abort);
    let mut is_written = true;
    // Each word moves it on.
    let mut heard = std::pin::pin!(sleep(silence));
    // Once told to end, for as long as the coordinator may take to end the run.
    let mut ending = std::pin::pin!(sleep(Duration::MAX));

    let mut interrupted = std::pin::pin!(interrupted);
    let stop = loop {
        tokio::select! {
            () = &mut interrupted, if abort.is_some() => {
                ending.as_mut().reset(Instant::now() + FAREWELL);
                if let Some(abort) = abort.take() {
                    let _ = abort.send(());
                }
            }
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    tokio::spawn(self::connection(incoming, Arc::clone(&shared)));
                }
                None => break Stop::Failed { reason: format!("the socket of {id} is gone") },
            },
            () = &mut ending, if abort.is_none() => {
                break Stop::Failed { reason: format!("{id} was told to end") };
            }
            () = &mut heard => break Stop::Failed { reason: silent().to_string() },
            written = &mut writer, if is_written => {
                is_written = false;
                if let Ok(Some(not_taken)) = written {
                    break Stop::Failed { reason: format!("the coordinator at {address}: {not_taken}") };
                }
            }
            message = next(&mut receiver, &mut buffer) => match message {
                Ok(Header { body: Body::Alive, .. }) => heard.as_mut().reset(Instant::now() + silence),
                Ok(Header { body: Body::Order { shard, order }, .. }) => {
                    heard.as_mut().reset(Instant::now() + silence);
                    if let Some((_, link)) = shared.shards.iter().find(|(id, _)| *id == shard) {
                        link.order(order);
                    }
                }
                Ok(Header { body: Body::Stop(stop), .. }) => break stop,
                Ok(Header { body: Body::Refused(reason), .. }) => break Stop::Failed { reason: reason.to_string() },
                Ok(other) => return Err(unexpected(&other)).or_exit(Exit::Run),
                Err(lost) => {
                    let reason = format!("the coordinator at {address} is gone: {}", lost.error);
                    break Stop::Failed { reason };
                }
            },
        }
    };
    for (_, link) in &shared.shards {
        link.stop();
    }
    writer.abort();
    Ok(stop)
}

fn envelope_of(run: RunId) -> Envelope {
    Envelope { run, ..Envelope::default() }
}

fn unexpected(header: &Header) -> anyhow::Error {
    let body = format!("{:?}", header.body);
    anyhow::anyhow!(
        "the coordinator sent what a server does not expect: {}",
        body.chars().take(80).collect::<String>()
    )
}

async fn next(receiver: &mut FrameReceiver, buffer: &mut AlignedVec<16>) -> Result<Header, Failure> {
    let bytes = receiver.header(HEADER_BYTES_MAX, buffer).await.or_exit(Exit::Run)?;
    let bytes = bytes.context("it closed the control stream").or_exit(Exit::Run)?;
    Header::decode(bytes).or_exit(Exit::Run)
}

fn start_shard(
    plan: &Plan,
    run: RunId,
    id: ShardId,
    tell: impl FnMut(ShardMessage) + Send + 'static,
) -> Result<ShardLink, Failure> {
    let shard = Shard::new(plan, run, Lineage(0), id).or_exit(Exit::Input)?;
    shard::spawn(id, shard, tell).or_exit(Exit::System)
}

/// A shard's part of the result, slice by slice in order.
fn result(snapshot: &Snapshot, partial: u64) -> (Report, Vec<Arc<Vec<f32>>>) {
    let values: Vec<_> = snapshot.changed_since(None, &[]).map(|(_, values)| values).collect();
    let payload_bytes = values.iter().map(|v| v.len() as u64 * 4).sum();
    let (version, examples) = (snapshot.version, snapshot.examples);
    (Report::Final { version, examples, partial, payload_bytes }, values)
}

fn measure(inputs: &Sender<Input>, shared: &Shared) {
    let measured = Event::Measured { server: ServerId(0), meter: shared.meters.total() };
    let _ = inputs.send(Input::Event(measured));
}

/// Writes what the shards of this server tell the coordinator, until the stream ends. The error is that the coordinator
/// lives and takes nothing of it; any other is told by what is read.
async fn report(
    mut sender: FrameSender,
    mut queue: mpsc::Receiver<(ShardId, ShardMessage)>,
    shared: Arc<Shared>,
    mut aborted: oneshot::Receiver<()>,
) -> Option<FrameError> {
    let mut buffer = AlignedVec::new();
    let mut every = tokio::time::interval(METER_EVERY);
    let mut may_abort = true;
    loop {
        let message = tokio::select! {
            message = queue.recv() => match message {
                Some(message) => Some(message),
                None => return None,
            },
            _ = every.tick() => None,
            told = &mut aborted, if may_abort => {
                may_abort = false;
                if told.is_err() {
                    continue;
                }
                let reason = "was told to end".into();
                let abort = send(&mut sender, &shared, &mut buffer, Body::Abort { reason }, Vec::new());
                if let Err(error) = abort.await {
                    return not_taken(error);
                }
                continue;
            }
        };
        let mut bodies = Vec::new();
        if !matches!(message, Some((_, ShardMessage::Report(_)))) {
            bodies.push((Body::ServerReport(shared.meters.total()), Vec::new()));
        }
        match message {
            Some((shard, ShardMessage::Report(report))) => {
                bodies.push((Body::Report { shard, report }, Vec::new()))
            }
            Some((shard, ShardMessage::Final { snapshot, partial })) => {
                let (report, values) = result(&snapshot, partial);
                bodies.push((Body::Report { shard, report }, values.into_iter().map(bytes_of).collect()));
            }
            None => {}
        }
        for (body, payload) in bodies {
            if let Err(error) = send(&mut sender, &shared, &mut buffer, body, payload).await {
                tracing::debug!(%error, "the control stream has ended");
                return not_taken(error);
            }
        }
    }
}

fn not_taken(error: anyhow::Error) -> Option<FrameError> {
    error.downcast().ok().filter(|error| matches!(error, FrameError::NotTaken { .. }))
}

async fn send(
    sender: &mut FrameSender,
    shared: &Shared,
    buffer: &mut AlignedVec<16>,
    body: Body,
    payload: Vec<Bytes>,
) -> anyhow::Result<()> {
    shared.envelope.header(body).encode(buffer)?;
    Ok(sender.send(buffer, payload).await?)
}

/// Serves all streams of one connection.
async fn connection(incoming: Incoming, shared: Arc<Shared>) {
    let Ok(connection) = incoming.finish().await else { return };
    tracing::debug!(peer = %connection.peer(), address = %connection.remote_address(), "connected");
    shared.meters.watch(&connection);
    loop {
        match connection.accept_stream().await {
            Ok(stream) => {
                tokio::spawn(stream_task(connection.clone(), stream, Arc::clone(&shared)));
            }
            Err(lost) => {
                tracing::debug!(peer = %connection.peer(), %lost, "disconnected");
                return;
            }
        }
    }
}

async fn stream_task(connection: Connection, mut stream: (FrameSender, FrameReceiver), shared: Arc<Shared>) {
    let mut buffer = AlignedVec::new();
    let peer = connection.peer();
    stream.0.set_patience(shared.silence);
    stream.1.set_patience(shared.silence);
    let first = match timeout(FIRST_FRAME, stream.1.header(FIRST_BYTES_MAX, &mut buffer)).await {
        Ok(Ok(Some(bytes))) => Header::decode(bytes),
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "a stream is given up");
            return;
        }
    };
    let reason = match first {
        Err(error) => Reject::Malformed { reason: error.to_string() },
        Ok(Header { run, lineage, term, worker, incarnation, body: Body::Open { shard }, .. }) => {
            match shared.shards.iter().find(|(id, _)| *id == shard) {
                Some((_, link)) => {
                    let envelope = Envelope { run, lineage, term, worker, incarnation };
                    let session = SessionId(shared.sessions.fetch_add(1, Ordering::Relaxed));
                    let (link, pool) = (link.clone(), Arc::clone(&shared.pool));
                    if let Err(error) =
                        session::serve(session, envelope, connection, stream, link, pool).await
                    {
                        tracing::debug!(%peer, %error, "a session has ended");
                    }
                    return;
                }
                None => Reject::UnknownShard { shard },
            }
        }
        Ok(header) => match &shared.control {
            Some(control) => {
                let control = Arc::clone(control);
                drop(shared);
                if let Err(error) = coordinator::serve(control, connection, stream, header).await {
                    tracing::debug!(%peer, %error, "a control session has ended");
                }
                return;
            }
            None => Reject::NotAllowed { role: peer.to_string() },
        },
    };
    let refused = shared.envelope.header(Body::Refused(reason));
    if refused.encode(&mut buffer).is_ok() && stream.0.send(&buffer, []).await.is_ok() {
        let _ = stream.0.finish();
    }
}
