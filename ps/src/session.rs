//! Serves one stream of a worker or observer to one shard.

use std::sync::Arc;

use bytemuck::cast_slice_mut;
use bytes::Bytes;
use rkyv::util::AlignedVec;
use tokio::sync::{mpsc, oneshot};
use windlass_common::codec::Patch;
use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::wire::{Body, Codec, Envelope, Header, Push, Reject, Values};
use windlass_ps_core::SessionId;
use windlass_ps_core::residuals::Residual;
use windlass_ps_core::shard::{Event, Given, Part, Reply, Request};
use windlass_ps_core::store::{Encoded, OnWire, Sent};
use windlass_transport::{
    Connection, ConnectionLost, FrameError, FrameReceiver, FrameSender, Pool, Role, bytes_of,
};

use crate::gradient::Gradient;
use crate::replication::OwnWay;
use crate::server::is_apart;
use crate::shard::{Answer, ShardLink};

/// Bytes at the end of values that are sent when a standby has confirmed what they are made of.
const END_BYTES: usize = 4;
/// Answers that may wait for a session's stream. A request gives at most three.
const ANSWERS_MAX: usize = 64;

/// Longest header on a stream to a shard, beside its slices.
const HEADER_BYTES: usize = 1024;
/// Bytes of a header for each slice: one of a push and one of a pull.
const SLICE_BYTES: usize = 32;

/// Why a session ended other than by the end of its stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Refused(Reject),
}

impl SessionError {
    /// Whether it ended because nothing was heard of the peer.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Frame(FrameError::Lost(ConnectionLost::Silent)))
    }
}

/// Serves a stream until it ends. Its first frame, which names the shard, has been read.
pub(crate) async fn serve(
    session: SessionId,
    envelope: Envelope,
    connection: Connection,
    (sender, receiver): (FrameSender, FrameReceiver),
    shard: ShardLink,
    pool: Arc<Pool>,
) -> Result<(), SessionError> {
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    let peer = connection.peer();
    shard.attach(session, answers.clone(), connection.clone());
    // Observers get values as they are.
    let codec = if matches!(peer, Role::Worker(_)) { shard.intake.shape.codecs.pull } else { Codec::F32 };
    tokio::spawn(write(envelope, codec, sender, outgoing));
    // What a thread of its own serves finds its own way to the standby, too.
    let (header, is_apart, own) = (AlignedVec::new(), is_apart(), None);
    let mut reader =
        Reader { session, connection, peer, receiver, shard, pool, answers, header, is_apart, own };
    let result = reader.run().await;
    reader.shard.closed(session);
    result
}

struct Reader {
    session: SessionId,
    connection: Connection,
    peer: Role,
    receiver: FrameReceiver,
    shard: ShardLink,
    pool: Arc<Pool>,
    answers: mpsc::Sender<Answer>,
    header: AlignedVec<16>,
    is_apart: bool,
    own: Option<OwnWay>,
}

impl Reader {
    async fn run(&mut self) -> Result<(), SessionError> {
        // What a worker may say names each slice once at most.
        let limit = HEADER_BYTES + SLICE_BYTES * self.shard.intake.shape.parts.len();
        while let Some(bytes) = self.receiver.header(limit, &mut self.header).await? {
            let header = match Header::decode(bytes) {
                Ok(header) => header,
                Err(error) => {
                    // Where the next frame begins is not known, so the stream ends here.
                    return self.refuse_and_end(Reject::Malformed { reason: error.to_string() }).await;
                }
            };
            self.take(header).await?;
        }
        Ok(())
    }

    async fn take(&mut self, header: Header) -> Result<(), SessionError> {
        let is_given = matches!(header.body, Body::Residual { .. } | Body::Given { .. });
        if is_given && matches!(self.peer, Role::Worker(_)) && self.shard.intake.shape.codecs.push.is_biased()
        {
            return self.given(&header).await;
        }
        let (push, pull) = match (header.body, self.peer) {
            (Body::PullSnapshot { point }, Role::Observer) => {
                let session = self.session;
                self.shard.request(Event::PullSnapshot { session, point }, None).await;
                return Ok(());
            }
            (Body::Push { push, pull }, Role::Worker(_)) => (Some(push), pull),
            (Body::Pull(pull), Role::Worker(_)) => (None, Some(pull)),
            (_, peer) => return self.refuse_and_end(Reject::NotAllowed { role: peer.to_string() }).await,
        };
        if let Err(reason) = self.check_identity(header.worker) {
            return self.refuse_and_end(reason).await;
        }
        if let Some(Err(reason)) = pull.as_ref().map(|pull| self.shard.intake.shape.check_pull(pull)) {
            return self.refuse_and_end(reason).await;
        }
        let push = match push {
            Some(push) => match self.gradient(push).await? {
                Some(push) => Some(push),
                None => return Ok(()),
            },
            None => None,
        };
        let Header { run, lineage, term, worker, incarnation, .. } = header;
        let request = Request { session: self.session, run, lineage, worker, term, incarnation, push, pull };
        if self.is_apart && request.push.is_some() {
            self.connection.stay_with_peer();
            self.own = self.shard.own_way(self.own.take());
        }
        self.shard.request(Event::Request(request), self.own.as_ref()).await;
        Ok(())
    }

    fn check_identity(&self, worker: WorkerId) -> Result<(), Reject> {
        let (claimed, certified) = (Role::Worker(worker), self.peer);
        match claimed == certified {
            true => Ok(()),
            false => {
                let [certified, claimed] = [certified, claimed].map(|role| role.to_string());
                Err(Reject::WrongIdentity { certified, claimed })
            }
        }
    }

    /// Takes in what a worker gives for a checkpoint.
    async fn given(&mut self, header: &Header) -> Result<(), SessionError> {
        if let Err(reason) = self.check_identity(header.worker) {
            return self.refuse_and_end(reason).await;
        }
        let values =
            usize::try_from(self.shard.intake.shape.values()).expect("a shard's values are in memory");
        let (checkpoint, part) = match header.body {
            Body::Residual { checkpoint, client, payload_bytes } => {
                let expected = 4 * values as u64;
                if payload_bytes != expected {
                    let reason = Reject::WrongPayload { expected, found: payload_bytes };
                    return self.refuse_and_end(reason).await;
                }
                // It is kept for long, so that it is not one of the pool's.
                let mut residual = vec![0.0; values];
                self.receiver.payload(cast_slice_mut(&mut residual)).await?;
                (checkpoint, Part::Residual { client, residual: Arc::new(residual) })
            }
            Body::Given { checkpoint, has_gone_on: false } => (checkpoint, Part::All),
            Body::Given { checkpoint, has_gone_on: true } => (checkpoint, Part::GoneOn),
            _ => return Ok(()),
        };
        let &Header { run, lineage, worker, incarnation, .. } = header;
        let session = self.session;
        let given = Given { session, run, lineage, worker, incarnation, checkpoint, part };
        self.shard.request(Event::Given(given), None).await;
        Ok(())
    }

    /// Reads a push's payload; one that is not right is skipped and refused.
    async fn gradient(&mut self, mut push: Push) -> Result<Option<(Push, Gradient)>, SessionError> {
        if let Err(reason) = self.shard.intake.shape.check_push(&push) {
            let limit = Codec::F32.bytes_max(self.shard.intake.shape.values()).saturating_mul(2);
            if push.payload_bytes > limit {
                return self.refuse_and_end(reason).await.map(|()| None);
            }
            let bytes = usize::try_from(push.payload_bytes).expect("no more than twice a shard's bytes");
            self.receiver.skip_payload(bytes).await?;
            let _ = self.answers.send(Reply::Rejected { sequence: Some(push.sequence), reason }.into()).await;
            return Ok(None);
        }
        match self.shard.intake.read(&mut self.receiver, &self.pool, &mut push).await? {
            Ok(gradient) => Ok(Some((push, gradient))),
            Err(error) => {
                let reason = Reject::Undecodable { reason: error.to_string() };
                let _ =
                    self.answers.send(Reply::Rejected { sequence: Some(push.sequence), reason }.into()).await;
                Ok(None)
            }
        }
    }

    async fn refuse_and_end(&self, reason: Reject) -> Result<(), SessionError> {
        let _ = self.answers.send(Reply::Rejected { sequence: None, reason: reason.clone() }.into()).await;
        Err(SessionError::Refused(reason))
    }
}

/// Writes answers in the order in which the shard gave them.
async fn write(
    envelope: Envelope,
    codec: Codec,
    mut sender: FrameSender,
    mut outgoing: mpsc::Receiver<Answer>,
) {
    let mut header = AlignedVec::new();
    while let Some(Answer { reply, mut ends }) = outgoing.recv().await {
        let frames = match reply {
            Reply::Recall { residuals } => residuals.into_iter().map(recall).collect(),
            reply => vec![encode(reply, codec)],
        };
        for (body, payload) in frames {
            if let Err(error) = envelope.header(body).encode(&mut header) {
                tracing::error!(%error, "an answer could not be written");
                return;
            }
            let sent = match ends.take() {
                None => sender.send(&header, payload).await,
                Some(ends) => send_in_two(&mut sender, &header, payload, ends).await,
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "a session's stream has ended");
                return;
            }
        }
    }
    let _ = sender.finish();
}

/// Sends a frame but for its end, which waits: without it the frame is nothing to whoever reads it. One without payload
/// waits as a whole.
async fn send_in_two(
    sender: &mut FrameSender,
    header: &[u8],
    mut payload: Vec<Bytes>,
    ends: oneshot::Receiver<()>,
) -> Result<(), FrameError> {
    let end = payload.iter_mut().rfind(|bytes| !bytes.is_empty());
    let Some(end) = end.map(|bytes| bytes.split_off(bytes.len().saturating_sub(END_BYTES))) else {
        ends.await.map_err(|_| FrameError::Interrupted)?;
        return sender.send(header, payload).await;
    };
    sender.begin(header, payload).await?;
    ends.await.map_err(|_| FrameError::Interrupted)?;
    sender.chunk(end).await?;
    sender.end()
}

/// What has been left out of a client's pushes, as it goes onto the wire: not copied either.
fn recall((client, residual): (ClientId, Residual)) -> (Body, Vec<Bytes>) {
    let payload_bytes = 4 * residual.len() as u64;
    (Body::Recall { client, payload_bytes }, vec![bytes_of(residual)])
}

/// What goes onto the wire. Values are not copied: their bytes are those that the shard holds, or those that were written as
/// the values were made or for whoever asked first.
fn encode(reply: Reply, codec: Codec) -> (Body, Vec<Bytes>) {
    let body = match reply {
        Reply::Held { sequence, step } => Body::Held { sequence, step },
        Reply::Settled { sequence, outcome } => Body::Settled { sequence, outcome },
        Reply::Keep { checkpoint, next, all } => Body::Keep { checkpoint, next, all },
        Reply::Recall { .. } => unreachable!("it is as many frames as there are clients"),
        Reply::Finished { examples } => Body::Finished { examples },
        Reply::Waiting { step, wait } => Body::Waiting { step, wait },
        Reply::Rejected { sequence, reason } => Body::Rejected { sequence, reason },
        Reply::NotReached { point, position } => Body::NotReached { point, position },
        Reply::NoSnapshot { next } => Body::NoSnapshot { next },
        Reply::Values { step, snapshot, have, slices, clients } => {
            let (mut parts, mut payload) = (Vec::new(), Vec::new());
            if Patch::of(codec).is_some() {
                let mut shared: Vec<Bytes> = Vec::new();
                for (part, sent) in snapshot.sent_since(have, &slices) {
                    parts.push(part);
                    match sent {
                        Sent::Whole(values) => payload.push(bytes_of(values)),
                        Sent::Patches(patches, place) => {
                            if shared.is_empty() {
                                let bytes = |patch: &Encoded| Bytes::from_owner(Shared(Arc::clone(patch)));
                                shared.extend(patches.iter().map(bytes));
                            }
                            payload.extend(shared.iter().map(|patch| patch.slice(place.clone())));
                        }
                    }
                }
            } else {
                for (part, values) in snapshot.on_wire_since(have, &slices, codec) {
                    parts.push(part);
                    payload.push(match values {
                        OnWire::Values(values) => bytes_of(values),
                        OnWire::Bytes(bytes) => Bytes::from_owner(Shared(bytes)),
                    });
                }
            }
            let payload_bytes = payload.iter().map(|b: &Bytes| b.len() as u64).sum();
            let values = Values {
                step,
                version: snapshot.version,
                examples: snapshot.examples,
                pushes: snapshot.pushes,
                at_us: snapshot.made.0,
                clients,
                codec,
                parts,
                payload_bytes,
            };
            return (Body::Values(values), payload);
        }
    };
    (body, Vec::new())
}

/// Encoded values, which outlast the version that they are of.
struct Shared(Encoded);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
