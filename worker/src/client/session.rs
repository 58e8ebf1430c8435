//! Joins a run: the control stream to the coordinator, and a connection to every server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rkyv::util::AlignedVec;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use windlass_common::ids::{ClientId, ServerId, Step, Term, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Reject, Status, Stop, Welcome};
use windlass_transport::{Connection, Endpoint, FrameReceiver, FrameSender, Priority, Role, resolve};

use super::error::ClientError;

/// A peer that says nothing for so long is given up. Whoever makes us wait longer says so every other second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the last message may take to arrive, where nobody depends on it.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);
/// How long the word that a worker leaves may take to arrive: the run waits for it. Longer than a silent connection lasts.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(12);

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
    coordinator: Connection,
    control: Arc<Mutex<FrameSender>>,
    /// The step that is told with each sign of life.
    step: Arc<AtomicU64>,
    heart: Option<AbortHandle>,
}

impl Session {
    /// Joins the run at this address by the request `joining`.
    pub(crate) async fn join(
        endpoint: &Endpoint,
        coordinator: &str,
        joining: Body,
        within: Duration,
    ) -> Result<Self, ClientError> {
        let address = resolve(coordinator, within).await?;
        let who = Role::Server(ServerId(0));
        let connection = endpoint.connect(address, who, within).await?;
        let stream = connection.open_stream(Priority::High).await;
        let (mut control, mut receiver) = stream.map_err(|lost| ClientError::from((who, lost)))?;
        let mut buffer = AlignedVec::new();
        let worker = if let Role::Worker(worker) = endpoint.role() { worker } else { WorkerId(0) };
        let none = Envelope { worker, ..Envelope::default() };
        send(&mut control, &mut buffer, none.header(joining)).await?;
        let (envelope, welcome) = welcome(&mut receiver, &mut buffer).await?;
        let plan = Plan::parse(&welcome.plan)?;
        if plan.hash() != welcome.plan_hash {
            return Err(ClientError::PlanHash);
        }
        let (tell, told) = watch::channel(Told::Nothing);
        let clients = welcome.clients.as_slice().into();
        let (host, hosted) = watch::channel(Hosted { term: envelope.term, clients });
        tokio::spawn(listen(receiver, buffer, tell, host));
        let step = Arc::new(AtomicU64::new(welcome.next.step.0));
        let control = Arc::new(Mutex::new(control));
        Ok(Self {
            envelope,
            plan,
            welcome,
            told,
            hosted,
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
                if send(&mut *control.lock().await, &mut buffer, header).await.is_err() {
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

    /// A connection to every server, in order. The coordinator is server 0.
    pub(crate) async fn connect_to_servers(
        &self,
        endpoint: &Endpoint,
        within: Duration,
    ) -> Result<Vec<Connection>, ClientError> {
        let others = self.welcome.servers.iter().enumerate().skip(1).map(|(number, address)| async move {
            let address = resolve(address, within).await?;
            endpoint.connect(address, Role::Server(ServerId(number as u32)), within).await
        });
        let others = futures_util::future::try_join_all(others).await?;
        Ok(std::iter::once(self.coordinator.clone()).chain(others).collect())
    }

    /// Resolves when the coordinator has ended the run, or is gone.
    pub(crate) async fn ended(&self) -> ClientError {
        let mut told = self.told.clone();
        let is_last = |t: &Told| matches!(t, Told::Stop(_) | Told::GivenUp(_) | Told::Lost(_));
        let last = told.wait_for(is_last).await;
        match last.as_deref() {
            Ok(Told::Stop(stop)) => ClientError::ended(stop),
            Ok(Told::GivenUp(reason)) => ClientError::GivenUp(reason.clone()),
            _ => ClientError::lost("the coordinator", self.coordinator.closed().await),
        }
    }

    /// Tells the coordinator something that has no answer.
    pub(crate) async fn say(&mut self, body: Body) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        send(&mut *self.control.lock().await, &mut AlignedVec::new(), header).await
    }

    /// Sends the last message and waits until the coordinator has it, but no longer than `within`.
    pub(crate) async fn say_last(&mut self, body: Body, within: Duration) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        let mut control = self.control.lock().await;
        send(&mut control, &mut AlignedVec::new(), header).await?;
        control.finish().map_err(|e| ClientError::lost("the coordinator", e))?;
        control.received(within).await.map_err(|e| ClientError::lost("the coordinator", e))
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
) -> Result<(Envelope, Welcome), ClientError> {
    loop {
        let header = next(receiver, buffer).await?;
        let envelope = header.envelope();
        match header.body {
            Body::Welcome(welcome) => return Ok((envelope, welcome)),
            Body::NotYet { missing } => tracing::info!(missing, "waiting for the run to begin"),
            Body::Refused(reason) => return Err(ClientError::Rejected(reason)),
            Body::Stop(stop) => return Err(ClientError::ended(&stop)),
            Body::Status(_) => {}
            other => return Err(ClientError::protocol("the coordinator", brief(&other))),
        }
    }
}

/// Follows the control stream until it ends.
async fn listen(
    mut receiver: FrameReceiver,
    mut buffer: AlignedVec<16>,
    tell: watch::Sender<Told>,
    host: watch::Sender<Hosted>,
) {
    loop {
        let told = match read(&mut receiver, &mut buffer).await {
            Ok(Some(header)) => match header.body {
                Body::Status(status) => Told::Status(Box::new(status)),
                Body::Stop(stop) => Told::Stop(stop),
                Body::Hosts { clients } => {
                    host.send_replace(Hosted { term: header.term, clients: clients.into() });
                    continue;
                }
                Body::Refused(reason @ (Reject::LeaseExpired { .. } | Reject::Stalled { .. })) => {
                    Told::GivenUp(reason)
                }
                Body::Refused(reason) => Told::Stop(Stop::Failed { reason: reason.to_string() }),
                Body::NotYet { .. } => continue,
                other => Told::Lost(format!("it sent what is not understood: {}", brief(&other))),
            },
            Ok(None) => Told::Lost("it closed the control stream".into()),
            Err(error) => Told::Lost(error.to_string()),
        };
        let last = !matches!(told, Told::Status(_));
        // Nobody may be listening any more, and then nobody needs to be told.
        if tell.send(told).is_err() || last {
            return;
        }
    }
}

pub(crate) async fn send(
    sender: &mut FrameSender,
    buffer: &mut AlignedVec<16>,
    header: Header,
) -> Result<(), ClientError> {
    header.encode(buffer).map_err(|e| ClientError::wire("this process", &e))?;
    sender.send(buffer, []).await.map_err(|e| ClientError::lost("a server", e))
}

async fn read(
    receiver: &mut FrameReceiver,
    buffer: &mut AlignedVec<16>,
) -> Result<Option<Header>, ClientError> {
    let bytes = receiver.header(HEADER_BYTES_MAX, buffer).await;
    let Some(bytes) = bytes.map_err(|e| ClientError::lost("a server", e))? else { return Ok(None) };
    Header::decode(bytes).map(Some).map_err(|e| ClientError::wire("a server", &e))
}

/// The next frame's header; a peer that is silent for too long is an error.
pub(crate) async fn next(
    receiver: &mut FrameReceiver,
    buffer: &mut AlignedVec<16>,
) -> Result<Header, ClientError> {
    match timeout(SILENCE_MAX, read(receiver, buffer)).await {
        Ok(Ok(Some(header))) => Ok(header),
        Ok(Ok(None)) => Err(ClientError::protocol("a server", "it closed the stream")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ClientError::Silent { who: "a server".into(), after: SILENCE_MAX }),
    }
}

pub(crate) fn brief(body: &Body) -> String {
    format!("{body:?}").chars().take(80).collect()
}
