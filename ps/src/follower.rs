//! Runs a server that follows the coordinator, and joins it again when the run goes back to a checkpoint.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rkyv::util::AlignedVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, ShardId};
use windlass_common::plan::{Every, Plan};
use windlass_common::wire::{Begins, Body, Envelope, HEADER_BYTES_MAX, Header, Report, Seats, Stop, Welcome};
use windlass_process::{Failure, OrExit};
use windlass_transport::{
    Connection, Endpoint, FrameError, FrameReceiver, FrameSender, Priority, Role, bytes_of, resolve,
};

use crate::coordinator;
use crate::host::{Host, Life as Beginning};
use crate::keeper::Keeper;
use crate::meter::Meters;
use crate::server::{FAREWELL, Guests, METER_EVERY, Shared, at_length, connection, open_lanes, pool, result};
use crate::shard::ShardMessage;

/// The pause before the coordinator is looked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a follower waits for the coordinator: to be reached, and for its next word.
#[derive(Clone, Copy)]
pub(crate) struct Waits {
    pub(crate) connect: Duration,
    pub(crate) silence: Duration,
}

/// Where others reach this server: at this port of the address it is seen at, or at `address`.
#[derive(Clone, Debug)]
pub(crate) struct Joining {
    pub(crate) address: Option<String>,
    pub(crate) port: u16,
}

/// How one life of a follower ended.
enum Life {
    Stop(Stop),
    /// The coordinator is gone for this reason, and may come back: the run has checkpoints, or has gone on from one. It is
    /// looked for as long as the plan says.
    Lost(Failure, Duration),
    /// The connection was lost before the coordinator had answered: the run may just be going back.
    NotAnswered(Failure),
}

/// What outlasts one life.
struct Lasting<'a, F> {
    endpoint: &'a Endpoint,
    id: ServerId,
    coordinator: &'a str,
    joining: Joining,
    host: Host,
    silence: Duration,
    meters: Arc<Meters>,
    sessions: Arc<AtomicU64>,
    interrupted: Pin<&'a mut F>,
}

/// Serves until the run has ended.
///
/// # Errors
/// Says why it could not begin or go on.
pub(crate) async fn follow(
    endpoint: &Endpoint,
    (id, host): (ServerId, Host),
    coordinator: &str,
    joining: Joining,
    Waits { connect, silence }: Waits,
    interrupted: impl Future<Output = ()>,
) -> Result<Stop, Failure> {
    let mut lasting = Lasting {
        endpoint,
        id,
        coordinator,
        joining,
        meters: Arc::clone(&host.meters),
        host,
        silence,
        sessions: Arc::new(AtomicU64::new(1)),
        interrupted: std::pin::pin!(interrupted),
    };
    let mut within = connect;
    // Since when the coordinator is gone, and why.
    let mut lost: Option<(Instant, Failure)> = None;
    loop {
        match (life(&mut lasting, within).await, &mut lost) {
            (Ok(Life::Stop(stop)), _) => return Ok(stop),
            (Ok(Life::Lost(why, wait)), _) => {
                tracing::warn!(%why, "joining again");
                within = wait.max(connect);
                lost = Some((Instant::now(), why));
            }
            (Ok(Life::NotAnswered(why)), None) => lost = Some((Instant::now(), why)),
            (Ok(Life::NotAnswered(why)), Some((since, _))) if since.elapsed() >= within => return Err(why),
            (Ok(Life::NotAnswered(_)), Some(_)) => {}
            (Err(failure), None) => return Err(failure),
            // While it is started again it may answer and be gone in the next moment.
            (Err(failure), Some((since, _))) if since.elapsed() < within => {
                tracing::debug!(%failure, "the coordinator is not back");
            }
            (Err(failure), Some(_)) => return Err(failure),
        }
        sleep(AGAIN).await;
    }
}

impl<F> Lasting<'_, F> {
    /// What this server says of itself to the coordinator.
    fn introduction(&self) -> Body {
        let Joining { address, port } = self.joining.clone();
        let json =
            |copy| serde_json::to_string(&copy).expect("what is known of a shard can be written as JSON");
        Body::JoinServer { address, port, copies: self.host.copies().into_iter().map(json).collect() }
    }
}

async fn life<F: Future<Output = ()>>(
    lasting: &mut Lasting<'_, F>,
    within: Duration,
) -> Result<Life, Failure> {
    let address = resolve(lasting.coordinator, within).await.or_exit(Exit::Network)?;
    let (silence, id) = (lasting.silence, lasting.id);
    let connecting = lasting.endpoint.connect(address, Role::Server(ServerId(0)), within);
    let connection = tokio::select! {
        connection = connecting => connection.or_exit(Exit::Network)?,
        () = &mut lasting.interrupted => {
            return Ok(Life::Stop(Stop::Failed { reason: format!("{id} was told to end") }));
        }
    };
    let silent = || {
        let silence = silence.as_secs_f64();
        anyhow::anyhow!("the coordinator at {address} has said nothing for {silence} s")
    };
    // The run may be going back at this very moment, and then the connection is closed; who is silent is not asked again.
    let introduction = lasting.introduction();
    let introduced = tokio::select! {
        introduced = introduce(&connection, introduction, silence) => introduced,
        () = &mut lasting.interrupted => {
            return Ok(Life::Stop(Stop::Failed { reason: format!("{id} was told to end") }));
        }
    };
    let Some(introduced) = introduced else { return Err(silent()).or_exit(Exit::Network) };
    let (sender, mut receiver, answer) = match introduced {
        Ok(introduced) => introduced,
        Err(lost) => return Ok(Life::NotAnswered(lost)),
    };
    let mut buffer = AlignedVec::new();
    let (envelope, plan, welcome) = match answer {
        Header { run, lineage, term, worker, incarnation, body: Body::Welcome(welcome), .. } => {
            let plan = Plan::parse(&welcome.plan).or_exit(Exit::Input)?;
            if plan.hash() != welcome.plan_hash {
                let reason = anyhow::anyhow!(
                    "this program reads the plan differently from the coordinator; use one build"
                );
                return Err(reason).or_exit(Exit::Run);
            }
            (Envelope { run, lineage, term, worker, incarnation }, plan, welcome)
        }
        Header { body: Body::Refused(reason), .. } => return Err(reason).or_exit(Exit::Run),
        Header { body: Body::Stop(stop), .. } => return Ok(Life::Stop(stop)),
        other => return Err(unexpected(&other)).or_exit(Exit::Run),
    };

    let goes_back =
        plan.checkpoints.every != Every::Never || plan.cluster.replicas > 0 || welcome.begins != Begins::Anew;
    let store = windlass_checkpoint::open(&welcome.checkpoints).or_exit(Exit::Input)?;
    let begins = Beginning {
        plan: &plan,
        envelope,
        seats: seats(&plan, &welcome),
        begins: &welcome.begins,
        store: &store,
    };
    open_lanes(lasting.endpoint, &plan);
    let keeper = Keeper::start(Arc::clone(&store), &plan, begins.of(id).len()).or_exit(Exit::System)?;
    let (outgoing, queue) = mpsc::channel(coordinator::OUTGOING_MAX);
    let tell = |shard: ShardId| {
        let (outgoing, keeper) = (outgoing.clone(), keeper.clone());
        // The threads of shards and keeper are no tasks of the runtime, so that they may wait for a place.
        move |message| match message {
            ShardMessage::Image { checkpoint, image } => {
                let outgoing = outgoing.clone();
                let done = Box::new(move |part| {
                    let report = Report::Kept { checkpoint, part };
                    let _ = outgoing.blocking_send((shard, ShardMessage::Report(report)));
                });
                keeper.part(checkpoint, shard, image, done);
            }
            message => {
                let _ = outgoing.blocking_send((shard, message));
            }
        }
    };
    let hosted = at_length(|| lasting.host.start(&begins, tell))?;
    lasting.host.feed(&hosted, &welcome.servers, (lasting.endpoint, envelope), silence)?;
    let shared = Arc::new(Shared {
        silence,
        envelope,
        hosted: hosted.into(),
        pool: pool(),
        meters: Arc::clone(&lasting.meters),
        guests: Guests::default(),
        sessions: Arc::clone(&lasting.sessions),
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

    let failed = |reason: String| Life::Stop(Stop::Failed { reason });
    // Who has gone may come back.
    let lost = |reason: String| match goes_back {
        true => {
            let why = Failure { exit: Exit::Run, error: anyhow::anyhow!(reason) };
            Life::Lost(why, Duration::from_secs(plan.cluster.rejoin_deadline_s))
        }
        false => failed(reason),
    };
    let end = loop {
        tokio::select! {
            () = &mut lasting.interrupted, if abort.is_some() => {
                ending.as_mut().reset(Instant::now() + FAREWELL);
                if let Some(abort) = abort.take() {
                    let _ = abort.send(());
                }
            }
            incoming = lasting.endpoint.accept() => match incoming {
                Some(incoming) => {
                    incoming.spawn(|incoming| self::connection(incoming, Arc::clone(&shared)));
                }
                None => break failed(format!("the socket of {id} is gone")),
            },
            () = &mut ending, if abort.is_none() => {
                break failed(format!("{id} was told to end"));
            }
            () = &mut heard => break lost(silent().to_string()),
            written = &mut writer, if is_written => {
                is_written = false;
                if let Ok(Some(not_taken)) = written {
                    break lost(format!("the coordinator at {address}: {not_taken}"));
                }
            }
            message = next(&mut receiver, &mut buffer) => match message {
                Ok(Header { body: Body::Alive, .. }) => heard.as_mut().reset(Instant::now() + silence),
                Ok(Header { body: Body::Order { shard, order }, .. }) => {
                    heard.as_mut().reset(Instant::now() + silence);
                    if let Some((_, link)) = shared.shards().iter().find(|(id, _)| *id == shard) {
                        link.order(order);
                    }
                }
                Ok(Header { body: Body::Stop(stop), .. }) => break Life::Stop(stop),
                Ok(Header { body: Body::Refused(reason), .. }) => break failed(reason.to_string()),
                Ok(other) => return Err(unexpected(&other)).or_exit(Exit::Run),
                Err(gone) => {
                    let reason = format!("the coordinator at {address} is gone: {}", gone.error);
                    break if abort.is_none() { failed(reason) } else { lost(reason) };
                }
            },
        }
    };
    writer.abort();
    if is_written {
        // A thread that has something to tell finds nobody then, and ends.
        let _ = writer.await;
    }
    drop(outgoing);
    if let Some(hosted) = shared.hosted.get() {
        at_length(|| lasting.host.stop(hosted));
    }
    if let Life::Lost(..) = end {
        shared.guests.close("the coordinator is gone");
    }
    Ok(end)
}

/// The servers of each shard; one that has no standbys is told at once, and before that is decided.
fn seats(plan: &Plan, welcome: &Welcome) -> Vec<Seats> {
    match welcome.seats.is_empty() {
        true => plan.cluster.seats(),
        false => welcome.seats.clone(),
    }
}

/// Asks to be let in, and waits for the answer; `None` if there is none in time.
async fn introduce(
    connection: &Connection,
    joining: Body,
    silence: Duration,
) -> Option<Result<(FrameSender, FrameReceiver, Header), Failure>> {
    let asked = async {
        let (mut sender, mut receiver) =
            connection.open_stream(Priority::High).await.or_exit(Exit::Network)?;
        sender.set_patience(silence);
        receiver.set_patience(silence);
        let mut buffer = AlignedVec::new();
        Envelope::default().header(joining).encode(&mut buffer).or_exit(Exit::Run)?;
        sender.send(&buffer, []).await.or_exit(Exit::Network)?;
        Ok((sender, receiver, buffer))
    };
    let (sender, mut receiver, mut buffer) = match timeout(silence, asked).await.ok()? {
        Ok(asked) => asked,
        Err(lost) => return Some(Err(lost)),
    };
    loop {
        match timeout(silence, next(&mut receiver, &mut buffer)).await.ok()? {
            Ok(Header { body: Body::NotYet { missing }, .. }) => {
                tracing::info!(missing, "waiting for the run to begin");
            }
            Ok(answer) => return Some(Ok((sender, receiver, answer))),
            Err(lost) => return Some(Err(lost)),
        }
    }
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
            // Those are kept here, and not told.
            Some((_, ShardMessage::Image { .. })) | None => {}
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
