//! Joins a run: the control stream to the coordinator, and a connection to every server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rkyv::util::AlignedVec;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use windlass_common::ids::{ClientId, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Reject, Status, Stop, Welcome};
use windlass_transport::{Connection, Endpoint, FrameReceiver, FrameSender, Priority, Role, resolve};

use super::error::ClientError;
use super::patience::Patience;

/// Who is at the other end of a control stream.
pub(crate) const COORDINATOR: &str = "the coordinator";
/// A worker says at least this often that it lives, and four times in each lease.
const HEARTBEAT_MAX: Duration = Duration::from_secs(2);

/// What has come on the control stream since joining.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Nothing,
    Status(Box<Status>),
    Stop(Stop),
    /// This life takes no part any more; the next may.
    GivenUp(Reject),
    /// The coordinator is connected, and has said nothing for so long.
    Silent(Duration),
    Lost(String),
}

/// Whose data a worker has, from some term on.
#[derive(Clone, Debug)]
pub(crate) struct Hosted {
    pub(crate) term: Term,
    pub(crate) clients: Arc<[ClientId]>,
}

/// Membership in a run.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) envelope: Envelope,
    pub(crate) plan: Plan,
    pub(crate) welcome: Welcome,
    pub(crate) told: watch::Receiver<Told>,
    pub(crate) hosted: watch::Receiver<Hosted>,
    /// For the coordinator.
    pub(crate) patience: Patience,
    coordinator: Connection,
    control: Arc<Mutex<FrameSender>>,
    /// The step that is told with each sign of life.
    step: Arc<AtomicU64>,
    heart: Option<AbortHandle>,
}

impl Session {
    /// Joins the run at this address by the request `joining`. Whoever joins before the run begins is told so every other
    /// second, for as long as the coordinator's own deadline for joining lets it wait.
    pub(crate) async fn join(
        endpoint: &Endpoint,
        coordinator: &str,
        joining: Body,
        within: Duration,
        patience: Patience,
    ) -> Result<Self, ClientError> {
        let address = resolve(coordinator, within).await?;
        let who = Role::Server(ServerId(0));
        let connection = endpoint.connect(address, who, within).await?;
        // An observer is told how the run stands from the first moment.
        let silence = if let Body::Observe = joining { patience.status } else { patience.silence };
        let (mut control, mut receiver) =
            open_stream(&connection, Priority::High, COORDINATOR, silence).await?;
        let mut buffer = AlignedVec::new();
        let worker = if let Role::Worker(worker) = endpoint.role() { worker } else { WorkerId(0) };
        let none = Envelope { worker, ..Envelope::default() };
        send(&mut control, &mut buffer, none.header(joining), COORDINATOR).await?;
        let (envelope, welcome) = welcome(&mut receiver, &mut buffer, silence).await?;
        let plan = Plan::parse(&welcome.plan)?;
        if plan.hash() != welcome.plan_hash {
            return Err(ClientError::PlanHash);
        }
        let (tell, told) = watch::channel(Told::Nothing);
        let clients = welcome.clients.as_slice().into();
        let (host, hosted) = watch::channel(Hosted { term: envelope.term, clients });
        tokio::spawn(listen(receiver, buffer, silence, tell, host));
        let step = Arc::new(AtomicU64::new(welcome.next.step.0));
        let control = Arc::new(Mutex::new(control));
        Ok(Self {
            envelope,
            plan,
            welcome,
            told,
            hosted,
            patience: Patience { silence, ..patience },
            coordinator: connection,
            control,
            step,
            heart: None,
        })
    }

    /// Says from now on that this worker lives, as long as this session does.
    pub(crate) fn beat(&mut self, connections: &[Connection]) {
        let every = (Duration::from_secs(self.plan.cluster.lease_s) / 4).min(HEARTBEAT_MAX);
        let (control, step, envelope) = (Arc::clone(&self.control), Arc::clone(&self.step), self.envelope);
        let connections = connections.to_vec();
        let heart = tokio::spawn(async move {
            let mut buffer = AlignedVec::new();
            loop {
                tokio::time::sleep(every).await;
                let meters = connections.iter().map(Connection::stats);
                let (bytes_up, bytes_down) = meters
                    .fold((0, 0), |(up, down), meter| (up + meter.wire_sent, down + meter.wire_received));
                let step = Step(step.load(Ordering::Relaxed));
                let header = envelope.header(Body::Heartbeat { step, bytes_up, bytes_down });
                let sent = send(&mut *control.lock().await, &mut buffer, header, COORDINATOR).await;
                if let Err(error) = sent {
                    // Whoever waits for the coordinator learns it from what the coordinator does not say.
                    tracing::debug!(%error, "signs of life are no longer sent");
                    return;
                }
            }
        });
        self.heart = Some(heart.abort_handle());
    }

    /// The step that is told with the next sign of life.
    pub(crate) fn at(&self, step: Step) {
        self.step.store(step.0, Ordering::Relaxed);
    }

    /// A connection to every server that has a shard, and one to the coordinator: all of them, and for each shard the one to
    /// its primary.
    pub(crate) async fn connect_to_servers(
        &self,
        endpoint: &Endpoint,
        shards: u32,
        within: Duration,
    ) -> Result<(Vec<Connection>, Vec<Connection>), ClientError> {
        let primary = |shard: u32| match self.welcome.seats.get(shard as usize) {
            Some(seats) => seats.primary,
            None => self.plan.cluster.server_of(ShardId(shard)),
        };
        let servers: BTreeSet<ServerId> = (0..shards).map(primary).filter(|s| *s != ServerId(0)).collect();
        let connecting = servers.iter().map(|&server| async move {
            let address = self.welcome.servers.get(server.index()).map_or("", String::as_str);
            let address = resolve(address, within).await?;
            let connection = endpoint.connect(address, Role::Server(server), within).await?;
            Ok::<_, ClientError>((server, connection))
        });
        let others = futures_util::future::try_join_all(connecting).await?;
        let all = others.into_iter().chain([(ServerId(0), self.coordinator.clone())]);
        let all: BTreeMap<ServerId, Connection> = all.collect();
        let of_shards = (0..shards).map(|shard| all[&primary(shard)].clone()).collect();
        Ok((all.into_values().collect(), of_shards))
    }

    /// Resolves when the coordinator has ended the run, is gone, or lives and has said nothing for too long.
    pub(crate) async fn ended(&self) -> ClientError {
        let mut told = self.told.clone();
        let is_last = |t: &Told| !matches!(t, Told::Nothing | Told::Status(_));
        let last = told.wait_for(is_last).await.map(|told| told.clone());
        match last {
            Ok(Told::Stop(stop)) => ClientError::ended(&stop),
            Ok(Told::GivenUp(reason)) => ClientError::GivenUp(reason),
            Ok(Told::Silent(after)) => ClientError::silent(COORDINATOR, after),
            // A stream may end without its connection, and then nobody may come to end that.
            Ok(Told::Lost(why)) => match timeout(self.patience.farewell, self.coordinator.closed()).await {
                Ok(lost) => ClientError::lost(COORDINATOR, lost),
                Err(_) => ClientError::protocol(COORDINATOR, why),
            },
            _ => ClientError::lost(COORDINATOR, self.coordinator.closed().await),
        }
    }

    /// Tells the coordinator something that has no answer.
    pub(crate) async fn say(&mut self, body: Body) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        // A sign of life that is not taken either may be before it.
        let silence = self.patience.silence;
        let not_taken = |_| ClientError::NotTaken { who: COORDINATOR.into(), after: silence };
        let mut control = timeout(silence, self.control.lock()).await.map_err(not_taken)?;
        send(&mut control, &mut AlignedVec::new(), header, COORDINATOR).await
    }

    /// Sends the last message and waits until the coordinator has it, but no longer than `within`.
    pub(crate) async fn say_last(&mut self, body: Body, within: Duration) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        let said = timeout(within, async {
            let mut control = self.control.lock().await;
            send(&mut control, &mut AlignedVec::new(), header, COORDINATOR).await?;
            control.finish().map_err(|e| ClientError::lost(COORDINATOR, e))?;
            Ok::<_, ClientError>(control)
        });
        let not_taken = |_| ClientError::NotTaken { who: COORDINATOR.into(), after: within };
        let mut control = said.await.map_err(not_taken)??;
        control.received(within).await.map_err(|e| ClientError::lost(COORDINATOR, e))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(heart) = &self.heart {
            heart.abort();
        }
    }
}

/// Waits to be admitted.
async fn welcome(
    receiver: &mut FrameReceiver,
    buffer: &mut AlignedVec<16>,
    silence: Duration,
) -> Result<(Envelope, Welcome), ClientError> {
    loop {
        let header = next(receiver, buffer, COORDINATOR, silence).await?;
        let envelope = header.envelope();
        match header.body {
            Body::Welcome(welcome) => return Ok((envelope, welcome)),
            Body::NotYet { missing } => tracing::info!(missing, "waiting for the run to begin"),
            Body::Refused(reason) => return Err(ClientError::Rejected(reason)),
            Body::Stop(stop) => return Err(ClientError::ended(&stop)),
            Body::Status(_) => {}
            other => return Err(ClientError::protocol(COORDINATOR, brief(&other))),
        }
    }
}

/// Follows the control stream until it ends, or nothing comes on it for too long.
async fn listen(
    mut receiver: FrameReceiver,
    mut buffer: AlignedVec<16>,
    silence: Duration,
    tell: watch::Sender<Told>,
    host: watch::Sender<Hosted>,
) {
    loop {
        let told = match next(&mut receiver, &mut buffer, COORDINATOR, silence).await {
            Ok(header) => match header.body {
                Body::Status(status) => Told::Status(status),
                Body::Stop(stop) => Told::Stop(stop),
                Body::Hosts { clients } => {
                    host.send_replace(Hosted { term: header.term, clients: clients.into() });
                    continue;
                }
                Body::Refused(reason @ (Reject::LeaseExpired { .. } | Reject::Stalled { .. })) => {
                    Told::GivenUp(reason)
                }
                Body::Refused(reason) => Told::Stop(Stop::Failed { reason: reason.to_string() }),
                Body::NotYet { .. } | Body::Alive => continue,
                other => Told::Lost(format!("it sent what is not understood: {}", brief(&other))),
            },
            Err(ClientError::Silent { after, .. }) => Told::Silent(after),
            Err(ClientError::Protocol { what, .. }) => Told::Lost(what),
            Err(error) => Told::Lost(error.to_string()),
        };
        let last = !matches!(told, Told::Status(_));
        // Nobody may be listening any more, and then nobody needs to be told.
        if tell.send(told).is_err() || last {
            return;
        }
    }
}

/// A stream on which both sides have to go on with what they have begun.
pub(crate) async fn open_stream(
    connection: &Connection,
    priority: Priority,
    who: impl ToString,
    silence: Duration,
) -> Result<(FrameSender, FrameReceiver), ClientError> {
    match timeout(silence, connection.open_stream(priority)).await {
        Ok(Ok((mut sender, mut receiver))) => {
            sender.set_patience(silence);
            receiver.set_patience(silence);
            Ok((sender, receiver))
        }
        Ok(Err(lost)) => Err(ClientError::lost(who, lost)),
        Err(_) => Err(ClientError::silent(who, silence)),
    }
}

pub(crate) async fn send(
    sender: &mut FrameSender,
    buffer: &mut AlignedVec<16>,
    header: Header,
    who: impl ToString,
) -> Result<(), ClientError> {
    header.encode(buffer).map_err(|e| ClientError::wire("this process", &e))?;
    sender.send(buffer, []).await.map_err(|e| ClientError::lost(who, e))
}

/// The next frame's header; a peer that says nothing for too long is an error.
pub(crate) async fn next(
    receiver: &mut FrameReceiver,
    buffer: &mut AlignedVec<16>,
    who: impl ToString,
    silence: Duration,
) -> Result<Header, ClientError> {
    match timeout(silence, receiver.header(HEADER_BYTES_MAX, buffer)).await {
        Ok(Ok(Some(bytes))) => Header::decode(bytes).map_err(|e| ClientError::wire(who, &e)),
        Ok(Ok(None)) => Err(ClientError::protocol(who, "it closed the stream")),
        Ok(Err(error)) => Err(ClientError::lost(who, error)),
        Err(_) => Err(ClientError::silent(who, silence)),
    }
}

pub(crate) fn brief(body: &Body) -> String {
    format!("{body:?}").chars().take(80).collect()
}
