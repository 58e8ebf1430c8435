//! Joins a run: the control stream to the coordinator, and a connection to every server.

use std::time::Duration;

use rkyv::util::AlignedVec;
use tokio::sync::watch;
use tokio::time::timeout;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Status, Stop, Welcome};
use windlass_transport::{Connection, Endpoint, FrameReceiver, FrameSender, Priority, Role, resolve};

use super::error::ClientError;

/// A peer that says nothing for so long is given up. Whoever makes us wait longer says so every other second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the last message may take to arrive, where nobody depends on it.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);
/// How long the word that a worker leaves may take to arrive: the run waits for it. Longer than a silent connection lasts.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(12);

/// What has come on the control stream since joining.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Nothing,
    Status(Box<Status>),
    Stop(Stop),
    Lost(String),
}

/// Membership in a run.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) envelope: Envelope,
    pub(crate) plan: Plan,
    pub(crate) welcome: Welcome,
    pub(crate) told: watch::Receiver<Told>,
    coordinator: Connection,
    control: FrameSender,
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
        tokio::spawn(listen(receiver, buffer, tell));
        Ok(Self { envelope, plan, welcome, told, coordinator: connection, control })
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
        let last = told.wait_for(|t| matches!(t, Told::Stop(_) | Told::Lost(_))).await;
        match last.as_deref() {
            Ok(Told::Stop(stop)) => ClientError::ended(stop),
            _ => ClientError::lost("the coordinator", self.coordinator.closed().await),
        }
    }

    /// Tells the coordinator something that has no answer.
    pub(crate) async fn say(&mut self, body: Body) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        send(&mut self.control, &mut AlignedVec::new(), header).await
    }

    /// Sends the last message and waits until the coordinator has it, but no longer than `within`.
    pub(crate) async fn say_last(&mut self, body: Body, within: Duration) -> Result<(), ClientError> {
        let header = self.envelope.header(body);
        send(&mut self.control, &mut AlignedVec::new(), header).await?;
        let sent = self.control.finish();
        sent.map_err(|e| ClientError::lost("the coordinator", e))?;
        self.control.received(within).await.map_err(|e| ClientError::lost("the coordinator", e))
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
async fn listen(mut receiver: FrameReceiver, mut buffer: AlignedVec<16>, tell: watch::Sender<Told>) {
    loop {
        let told = match read(&mut receiver, &mut buffer).await {
            Ok(Some(header)) => match header.body {
                Body::Status(status) => Told::Status(Box::new(status)),
                Body::Stop(stop) => Told::Stop(stop),
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
