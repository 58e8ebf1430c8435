//! Keeps a copy of another server's shard: takes what its primary tells, and confirms it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytemuck::cast_slice_mut;
use crossbeam::channel::{self, Receiver, Sender};
use rkyv::util::AlignedVec;
use tokio::sync::{Semaphore, watch};
use windlass_common::ids::{Lineage, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Envelope, Feed, HEADER_BYTES_MAX, Header, Reject};
use windlass_ps_core::replica::{Refused, Standby};
use windlass_transport::{FrameReceiver, FrameSender, Pool};

use crate::session::SessionError;
use crate::shard::Gradient;

/// Feeds that may wait for a standby's thread; a primary that finds no place waits.
const FEEDS_MAX: usize = 64;

/// How far a standby has come for one stream of its primary, or why it goes no further.
#[derive(Clone, Debug, Default)]
struct Progress {
    confirmed: u64,
    refused: Option<Refused>,
}

/// What has come on a stream of the primary.
struct Fed {
    /// Which stream: the newest counts.
    stream: u64,
    lineage: Lineage,
    number: u64,
    feed: Feed,
    floats: Gradient,
    told: watch::Sender<Progress>,
}

enum Input {
    Feed(Box<Fed>),
    Stop,
}

/// The way to a standby's thread.
#[derive(Clone)]
pub(crate) struct StandbyLink {
    inputs: Sender<Input>,
    places: Arc<Semaphore>,
    /// Streams that the primary has opened.
    streams: Arc<AtomicU64>,
    /// Most floats that come at once: those of the whole shard.
    floats_max: u64,
}

impl StandbyLink {
    /// Ends the thread, which gives the copy back.
    pub(crate) fn stop(&self) {
        let _ = self.inputs.send(Input::Stop);
    }
}

/// Starts the thread of a standby.
///
/// # Errors
/// If the system gives no thread.
pub(crate) fn spawn(
    plan: Arc<Plan>,
    shard: ShardId,
    standby: Standby<Gradient>,
) -> std::io::Result<(StandbyLink, JoinHandle<Standby<Gradient>>)> {
    // Values, the optimizer's vectors, and the values before.
    let copies = 2 + plan.optimizer.state_names().len() as u64;
    let floats_max = plan.placement().map_or(0, |placement| placement.values_of(shard)) * copies;
    let (inputs, receiver) = channel::bounded(FEEDS_MAX + 1);
    let places = Arc::new(Semaphore::new(FEEDS_MAX));
    let freed = Arc::clone(&places);
    let thread = std::thread::Builder::new()
        .name(format!("standby-{}", shard.0))
        .spawn(move || run(&plan, standby, &receiver, &freed))?;
    Ok((StandbyLink { inputs, places, streams: Arc::default(), floats_max }, thread))
}

fn run(
    plan: &Plan,
    mut standby: Standby<Gradient>,
    inputs: &Receiver<Input>,
    places: &Semaphore,
) -> Standby<Gradient> {
    let mut newest = 0;
    while let Ok(Input::Feed(fed)) = inputs.recv() {
        let Fed { stream, lineage, number, feed, floats, told } = *fed;
        places.add_permits(1);
        if stream < newest {
            continue;
        }
        newest = stream;
        let taken = standby.take(plan, lineage, number, feed, floats);
        told.send_modify(|progress| match taken {
            Ok(number) => progress.confirmed = number,
            Err(refused) => progress.refused = Some(refused),
        });
    }
    standby
}

/// Serves the stream of a primary until it ends. Its first frame has been read.
pub(crate) async fn serve(
    envelope: Envelope,
    (sender, mut receiver): (FrameSender, FrameReceiver),
    link: StandbyLink,
    pool: Arc<Pool>,
) -> Result<(), SessionError> {
    let stream = link.streams.fetch_add(1, Ordering::Relaxed);
    let (told, progress) = watch::channel(Progress::default());
    let confirming = tokio::spawn(confirm(envelope, sender, progress));
    let mut buffer = AlignedVec::new();
    while let Some(bytes) = receiver.header(HEADER_BYTES_MAX, &mut buffer).await? {
        let malformed = |reason: String| SessionError::Refused(Reject::Malformed { reason });
        let header = Header::decode(bytes).map_err(|e| malformed(e.to_string()))?;
        let Header { lineage, body: Body::Feed { number, feed }, .. } = header else {
            return Err(malformed("a primary says nothing but what happens".into()));
        };
        let floats = feed.payload_bytes() / 4;
        if floats > link.floats_max {
            return Err(malformed(format!(
                "{floats} floats, where the shard has {} at most",
                link.floats_max
            )));
        }
        let mut floats = pool.take(floats as usize);
        if !floats.is_empty() {
            receiver.payload(cast_slice_mut(&mut floats)).await?;
        }
        let place = link.places.acquire().await.expect("the semaphore is never closed");
        place.forget();
        let floats = Gradient::from(floats);
        let told = told.clone();
        let fed = Fed { stream, lineage, number, feed, floats, told };
        if link.inputs.send(Input::Feed(Box::new(fed))).is_err() {
            break;
        }
    }
    drop(told);
    let _ = confirming.await;
    Ok(())
}

/// Says how far the standby has come, each time that it has come further.
async fn confirm(envelope: Envelope, mut sender: FrameSender, mut progress: watch::Receiver<Progress>) {
    let mut buffer = AlignedVec::new();
    while progress.changed().await.is_ok() {
        let Progress { confirmed, refused } = progress.borrow_and_update().clone();
        let body = match refused {
            None => Body::Confirmed { number: confirmed },
            Some(refused) => {
                tracing::warn!(%refused, "a standby is of no use any more");
                Body::Refused(Reject::Malformed { reason: refused.to_string() })
            }
        };
        let is_last = matches!(body, Body::Refused(_));
        let sent = envelope.header(body).encode(&mut buffer);
        if sent.is_err() || sender.send(&buffer, []).await.is_err() {
            return;
        }
        if is_last {
            let _ = sender.finish();
            return;
        }
    }
}
