//! Keeps a copy of another server's shard: takes what its primary tells, and confirms it.
//!
//! The task that reads the stream does what it has read, and confirms it: handing it to another thread, and the confirmation
//! back, would take longer than the work, and whoever has pushed waits for all of it.

use std::sync::Arc;

use bytemuck::cast_slice_mut;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use windlass_common::ids::ShardId;
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Reject};
use windlass_ps_core::replica::{Refused, Standby};
use windlass_transport::{FrameReceiver, FrameSender, Pool};

use crate::server::at_length;
use crate::session::SessionError;
use crate::shard::{AT_ONCE_MAX, Gradient};

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
    /// Values of the shard.
    values: u64,
}

impl StandbyLink {
    /// For a standby that has nothing yet.
    pub(crate) fn new(plan: Arc<Plan>, shard: ShardId, standby: Standby<Gradient>) -> Self {
        let values = plan.placement().map_or(0, |placement| placement.values_of(shard));
        Self { plan, copy: Arc::new(Mutex::new(Copy { standby: Some(standby), feed: 0 })), values }
    }

    /// Gives the copy back, and takes nothing more.
    pub(crate) fn stop(&self) -> Option<Standby<Gradient>> {
        self.copy.lock().standby.take()
    }

    /// Most floats that come at once: those of the whole shard, which are its values, the optimizer's vectors and the values
    /// before.
    fn floats_max(&self) -> u64 {
        self.values * (2 + self.plan.optimizer.state_names().len() as u64)
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
        let malformed = |reason: String| SessionError::Refused(Reject::Malformed { reason });
        let header = Header::decode(bytes).map_err(|e| malformed(e.to_string()))?;
        let Body::Feed { feed: told, .. } = &header.body else {
            return Err(malformed("a primary says nothing but what happens".into()));
        };
        let (found, most) = (told.payload_bytes() / 4, link.floats_max());
        if found > most {
            return Err(malformed(format!("{found} floats, where the shard has {most} at most")));
        }
        let mut floats = pool.take(found as usize);
        if !floats.is_empty() {
            receiver.payload(cast_slice_mut(&mut floats)).await?;
        }
        let take = || link.take(feed.0, header, floats.into());
        let taken = if link.values > AT_ONCE_MAX { at_length(take) } else { take() };
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
        let answer_malformed = |e: windlass_common::wire::WireError| malformed(e.to_string());
        envelope.header(body).encode(&mut answer).map_err(answer_malformed)?;
        sender.send(&answer, []).await?;
        if is_last {
            let _ = sender.finish();
            return Ok(());
        }
    }
    Ok(())
}
