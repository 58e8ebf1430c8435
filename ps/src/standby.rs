//! Keeps a copy of another server's shard: takes what its primary tells, and confirms it.
//!
//! The task that reads the stream does what it has read, and confirms it: handing it to another thread, and the confirmation
//! back, would take longer than the work, and whoever has pushed waits for all of it.

use std::sync::Arc;

use bytemuck::cast_slice_mut;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use windlass_common::ids::ShardId;
use windlass_common::plan::{Plan, PlanError};
use windlass_common::wire::{Body, Envelope, Feed, HEADER_BYTES_MAX, Header, Reject};
use windlass_ps_core::replica::{Refused, Standby};
use windlass_ps_core::rules::rules;
use windlass_ps_core::store::Shape;
use windlass_transport::{Connection, FrameReceiver, FrameSender, Pool};

use crate::gradient::{Gradient, Intake};
use crate::server::at_length;
use crate::session::SessionError;
use crate::shard::AT_ONCE_MAX;

/// A standby and who feeds it.
struct Copy {
    /// Nothing once it has been given back.
    standby: Option<Standby<Gradient>>,
    /// The feed that counts: the newest that the primary has begun. It may come on several streams.
    feed: u64,
}

/// The way to a standby.
#[derive(Clone)]
pub(crate) struct StandbyLink {
    plan: Arc<Plan>,
    copy: Arc<Mutex<Copy>>,
    intake: Intake,
}

impl StandbyLink {
    /// For a standby that has nothing yet.
    ///
    /// # Errors
    /// If the plan cannot be placed; a checked plan can.
    pub(crate) fn new(
        plan: Arc<Plan>,
        shard: ShardId,
        standby: Standby<Gradient>,
    ) -> Result<Self, PlanError> {
        let shape = Arc::new(Shape::new(&plan.placement()?, shard, plan.codecs));
        let copy = Arc::new(Mutex::new(Copy { standby: Some(standby), feed: 0 }));
        // If it goes on in the primary's place it has a standby of its own.
        let decodes = rules(&plan).0.decodes(plan.codecs.push);
        Ok(Self { plan, copy, intake: Intake { shape, keeps: true, decodes } })
    }

    /// Gives the copy back, and takes nothing more.
    pub(crate) fn stop(&self) -> Option<Standby<Gradient>> {
        self.copy.lock().standby.take()
    }

    /// Most floats that come at once: those of the whole shard, which are its values, the optimizer's vectors and the values
    /// before.
    fn floats_max(&self) -> u64 {
        self.intake.shape.values() * (2 + self.plan.optimizer.state_names().len() as u64)
    }

    /// A stream of this feed has been opened, beside another or as the first; false if it is not the newest.
    fn open(&self, (feed, is_beside): (u64, bool)) -> bool {
        let mut copy = self.copy.lock();
        if !is_beside {
            copy.feed = copy.feed.max(feed);
        }
        copy.feed == feed
    }

    /// Takes what has come on a stream of a feed. `None` says that nobody needs to hear of it: there is a newer feed, or the copy
    /// has been given back.
    fn take(&self, of: u64, header: Header, floats: Gradient) -> Option<Result<Option<u64>, Refused>> {
        let Header { lineage, body: Body::Feed { number, feed }, .. } = header else { return None };
        let mut copy = self.copy.lock();
        if copy.feed != of {
            return None;
        }
        Some(copy.standby.as_mut()?.take(&self.plan, lineage, number, feed, floats))
    }
}

/// Serves the stream of a primary until it ends or the standby goes no further. Its first frame has been read.
pub(crate) async fn serve(
    envelope: Envelope,
    connection: &Connection,
    (mut sender, mut receiver): (FrameSender, FrameReceiver),
    feed: (u64, bool),
    link: StandbyLink,
    pool: Arc<Pool>,
) -> Result<(), SessionError> {
    if !link.open(feed) {
        return Ok(());
    }
    let (mut buffer, mut answer) = (AlignedVec::new(), AlignedVec::new());
    while let Some(bytes) = receiver.header(HEADER_BYTES_MAX, &mut buffer).await? {
        let mut header = Header::decode(bytes).map_err(|e| malformed(e.to_string()))?;
        let Body::Feed { feed: told, .. } = &mut header.body else {
            return Err(malformed("a primary says nothing but what happens".into()));
        };
        let floats = told_floats(&link, told, &mut receiver, &pool).await?;
        let take = || link.take(feed.0, header, floats);
        if feed.1 {
            connection.stay_with_peer();
        }
        let taken = if link.intake.shape.values() > AT_ONCE_MAX { at_length(take) } else { take() };
        let Some(taken) = taken else { return Ok(()) };
        let is_last = taken.is_err();
        let body = match taken {
            // It waits for what another stream brings.
            Ok(None) => continue,
            Ok(Some(number)) => Body::Confirmed { number },
            Err(refused) => {
                tracing::warn!(%refused, "a standby is of no use any more");
                Body::Refused(Reject::Malformed { reason: refused.to_string() })
            }
        };
        envelope.header(body).encode(&mut answer).map_err(|e| malformed(e.to_string()))?;
        sender.send(&answer, []).await?;
        if is_last {
            let _ = sender.finish();
            return Ok(());
        }
    }
    Ok(())
}

/// Reads what comes with what a primary tells.
async fn told_floats(
    link: &StandbyLink,
    told: &mut Feed,
    receiver: &mut FrameReceiver,
    pool: &Pool,
) -> Result<Gradient, SessionError> {
    if let Some(push) = told.written() {
        link.intake.shape.check_push(push).map_err(SessionError::Refused)?;
        let decoded = link.intake.read(receiver, pool, push).await?;
        return decoded.map_err(|e| malformed(e.to_string()));
    }
    let (found, most) = (told.payload_bytes() / 4, link.floats_max());
    if found > most {
        return Err(malformed(format!("{found} floats, where the shard has {most} at most")));
    }
    let mut floats = pool.take(found as usize);
    if !floats.is_empty() {
        receiver.payload(cast_slice_mut(&mut floats)).await?;
    }
    Ok(floats.into())
}

fn malformed(reason: String) -> SessionError {
    SessionError::Refused(Reject::Malformed { reason })
}
