//! Serves the control stream of one worker, server or observer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::cast_slice_mut;
use crossbeam::channel::Sender;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use tokio::sync::mpsc;
use windlass_common::ids::ServerId;
use windlass_common::ids::ShardId;
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Header, Reject, Report};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::{Copy, Event};
use windlass_transport::{Connection, FrameReceiver, FrameSender, Priority, Role};

use super::{Input, OUTGOING_MAX, Outgoing, SeatsOnce, tell};
use crate::session::SessionError;

/// Longest message to the coordinator; the records of a shard come in batches far below it.
const CONTROL_BYTES_MAX: usize = 1 << 20;

/// What every control session needs to know.
pub(crate) struct Control {
    pub(crate) plan: Plan,
    pub(crate) inputs: Sender<Input>,
    /// Each control stream that is still written to holds a copy. Taken when the run has ended.
    pub(crate) alive: Mutex<Option<mpsc::Sender<()>>>,
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) seats: SeatsOnce,
}

/// Serves a control stream until it ends. Its first frame has been read and is `first`.
pub(crate) async fn serve(
    control: Arc<Control>,
    connection: Connection,
    (sender, receiver): (FrameSender, FrameReceiver),
    first: Header,
) -> Result<(), SessionError> {
    let session = SessionId(control.sessions.fetch_add(1, Ordering::Relaxed));
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    sender.set_priority(Priority::High);
    tokio::spawn(write(sender, queue, control.alive.lock().clone()));
    let peer = connection.peer();
    tell(&control.inputs, Input::Attach { session, outgoing, connection: connection.clone() }).await;
    let mut reader = Reader { control, session, peer, connection, receiver, header: AlignedVec::new() };
    let result = reader.run(first).await;
    let why = match &result {
        Ok(()) => "it closed its control stream".to_owned(),
        Err(error) => error.to_string(),
    };
    if let Err(SessionError::Refused(reason)) = &result {
        let body = Body::Refused(reason.clone());
        tell(&reader.control.inputs, Input::Send { session, body }).await;
    }
    let silent = result.as_ref().is_err_and(SessionError::is_silence);
    tell(&reader.control.inputs, Input::Event(Event::Lost { session, why, silent })).await;
    result
}

struct Reader {
    control: Arc<Control>,
    session: SessionId,
    peer: Role,
    connection: Connection,
    receiver: FrameReceiver,
    header: AlignedVec<16>,
}

impl Reader {
    async fn run(&mut self, first: Header) -> Result<(), SessionError> {
        self.take(first.body).await?;
        while let Some(bytes) = self.receiver.header(CONTROL_BYTES_MAX, &mut self.header).await? {
            let header = Header::decode(bytes)
                .map_err(|e| SessionError::Refused(Reject::Malformed { reason: e.to_string() }))?;
            self.take(header.body).await?;
        }
        Ok(())
    }

    /// What the peer's certificate allows it to say, and nothing else.
    async fn take(&mut self, body: Body) -> Result<(), SessionError> {
        let session = self.session;
        let event = match (body, self.peer) {
            (Body::JoinWorker { process }, Role::Worker(worker)) => {
                Event::WorkerJoined { session, worker, process }
            }
            (Body::Heartbeat { step, bytes_up, bytes_down }, Role::Worker(_)) => {
                Event::Heartbeat { session, step, bytes_up, bytes_down }
            }
            (Body::Exited { worker, process, how }, Role::Observer) => {
                Event::Exited { session, worker, process, how }
            }
            (Body::Leave(report), Role::Worker(_)) => Event::WorkerLeft { session, report },
            (Body::Dropped { client, step }, Role::Worker(_)) => Event::Dropped { session, client, step },
            (Body::Checkpoint, Role::Observer) => Event::Checkpoint { session },
            (Body::Drain { server }, Role::Observer) => Event::Drain { session, server },
            (Body::Conclude, Role::Observer) => Event::Conclude { session },
            (Body::Observe, Role::Observer) => Event::ObserverJoined { session },
            (Body::JoinServer { address, port, copies }, Role::Server(server)) => {
                return self.server_joined(server, address, port, &copies).await;
            }
            (Body::Report { shard, report }, Role::Server(server)) => {
                return self.report(server, shard, report).await;
            }
            (Body::ServerReport(meter), Role::Server(server)) => Event::Measured { server, meter },
            (Body::Abort { reason }, Role::Worker(worker)) => {
                Event::Abort { session: Some(session), reason: format!("{worker}: {reason}") }
            }
            (Body::Abort { reason }, Role::Server(server)) => {
                Event::Abort { session: Some(session), reason: format!("{server}: {reason}") }
            }
            (_, peer) => return Err(SessionError::Refused(Reject::NotAllowed { role: peer.to_string() })),
        };
        tell(&self.control.inputs, Input::Event(event)).await;
        Ok(())
    }

    async fn server_joined(
        &self,
        server: ServerId,
        address: Option<String>,
        port: u16,
        copies: &[String],
    ) -> Result<(), SessionError> {
        let session = self.session;
        let copies: Result<Vec<Copy>, _> = copies.iter().map(|copy| serde_json::from_str(copy)).collect();
        let copies = copies.map_err(|error| {
            SessionError::Refused(Reject::Malformed { reason: format!("of a copy: {error}") })
        })?;
        let seen = std::net::SocketAddr::new(self.connection.remote_address().ip(), port);
        let address = address.unwrap_or_else(|| seen.to_string());
        tell(&self.control.inputs, Input::Event(Event::ServerJoined { session, server, address, copies }))
            .await;
        Ok(())
    }

    async fn report(&mut self, server: ServerId, shard: ShardId, report: Report) -> Result<(), SessionError> {
        let plan = &self.control.plan;
        let primary = match self.control.seats.get() {
            Some(seats) => seats.get(shard.index()).map(|seats| seats.primary),
            None => Some(plan.cluster.server_of(shard)),
        };
        if shard.0 >= plan.cluster.shards() || primary != Some(server) {
            return Err(SessionError::Refused(Reject::UnknownShard { shard }));
        }
        let input = match report {
            Report::Final { payload_bytes, .. } => {
                let values = plan.placement().map_or(0, |p| p.values_of(shard));
                if payload_bytes != values * 4 {
                    let (expected, found) = (values * 4, payload_bytes);
                    return Err(SessionError::Refused(Reject::WrongPayload { expected, found }));
                }
                let mut values = vec![0.0_f32; values as usize];
                self.receiver.payload(cast_slice_mut(&mut values)).await?;
                Input::Result { shard, report, values }
            }
            report => Input::Event(Event::Report { shard, report }),
        };
        tell(&self.control.inputs, input).await;
        Ok(())
    }
}

async fn write(
    mut sender: FrameSender,
    mut queue: mpsc::Receiver<Outgoing>,
    _alive: Option<mpsc::Sender<()>>,
) {
    let mut header = AlignedVec::new();
    while let Some((envelope, body)) = queue.recv().await {
        if let Err(error) = envelope.header(body).encode(&mut header) {
            tracing::error!(%error, "a message could not be written");
            return;
        }
        if let Err(error) = sender.send(&header, []).await {
            tracing::debug!(%error, "a control stream has ended");
            return;
        }
    }
    // The last message is often why everything ends: it is waited for until the peer has it.
    if sender.finish().is_ok() {
        let _ = sender.received(std::time::Duration::from_secs(2)).await;
    }
}
