//! Tells the standbys of a server's shards what happens on their primaries, over connections that are made again as long as a
//! standby has not all.
//!
//! One thread does it for all of them, with a socket of its own: whoever has pushed waits for the standby, and each thread
//! between the two that has to be woken makes it wait longer.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use rkyv::util::AlignedVec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use windlass_common::ids::{ServerId, ShardId};
use windlass_common::wire::{Body, Envelope, Feed, HEADER_BYTES_MAX, Header};
use windlass_ps_core::shard::Floats;
use windlass_transport::{Aside, Endpoint, FrameReceiver, FrameSender, Priority, Role, bytes_of, resolve};

use crate::server::FAREWELL;
use crate::shard::{Gradient, ShardLink};

/// The pause before a standby is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long to try to reach a standby's server before it is tried anew.
const CONNECT: Duration = Duration::from_secs(5);

/// What a shard's thread tells its standby.
pub(crate) struct Told {
    pub(crate) number: u64,
    pub(crate) feed: Feed,
    pub(crate) floats: Floats<Gradient>,
}

/// Who feeds whom.
pub(crate) struct Route {
    pub(crate) envelope: Envelope,
    pub(crate) shard: ShardId,
    pub(crate) standby: ServerId,
    pub(crate) address: String,
    /// How long the standby may stand still in the middle of a frame.
    pub(crate) silence: Duration,
}

/// Feeds the standby of a shard until the shard's thread has ended, or no longer wants it.
async fn replicate(endpoint: Endpoint, route: Route, link: ShardLink) {
    loop {
        let why = match once(&endpoint, &route, &link).await {
            Ok(()) => return,
            Err(why) => format!("{why:#}"),
        };
        tracing::debug!(shard = %route.shard, standby = %route.standby, why, "the standby is not fed");
        if !link.standby_gone(why) {
            return;
        }
        sleep(AGAIN).await;
    }
}

async fn once(endpoint: &Endpoint, route: &Route, link: &ShardLink) -> anyhow::Result<()> {
    let Route { envelope, shard, standby, address, silence } = route;
    let at = || format!("{standby} at {address}");
    let address = resolve(address, CONNECT).await.with_context(at)?;
    let connection = endpoint.connect(address, Role::Server(*standby), CONNECT).await.with_context(at)?;
    let opened = timeout(CONNECT, connection.open_stream(Priority::Normal)).await;
    let (mut sender, mut receiver) = opened.map_err(|_| anyhow!("it takes no stream")).with_context(at)??;
    sender.set_patience(*silence);
    receiver.set_patience(*silence);
    let mut buffer = AlignedVec::new();
    envelope.header(Body::Replicate { shard: *shard }).encode(&mut buffer)?;
    sender.send(&buffer, []).await.with_context(at)?;
    let (tell, told) = mpsc::unbounded_channel();
    if !link.replicate(tell) {
        return Ok(());
    }
    let done = tokio::select! {
        done = feed(*envelope, sender, told) => done.with_context(at),
        gone = confirmations(receiver, link) => gone.with_context(at),
    };
    connection.close(0, "replication has ended");
    done
}

/// Writes what the shard's thread tells, until that tells nothing more.
async fn feed(
    envelope: Envelope,
    mut sender: FrameSender,
    mut told: mpsc::UnboundedReceiver<Told>,
) -> anyhow::Result<()> {
    let mut buffer = AlignedVec::new();
    while let Some(Told { number, feed, floats }) = told.recv().await {
        let payload: Vec<Bytes> = match floats {
            Floats::None => Vec::new(),
            Floats::Gradient(gradient) => vec![gradient.into_bytes()],
            Floats::Pieces(pieces) => pieces.into_iter().map(bytes_of).collect(),
        };
        envelope.header(Body::Feed { number, feed }).encode(&mut buffer)?;
        sender.send(&buffer, payload).await?;
    }
    bail!("the shard tells it nothing more")
}

async fn confirmations(mut receiver: FrameReceiver, link: &ShardLink) -> anyhow::Result<()> {
    let mut buffer = AlignedVec::new();
    while let Some(bytes) = receiver.header(HEADER_BYTES_MAX, &mut buffer).await? {
        match Header::decode(bytes)?.body {
            Body::Confirmed { number } => link.confirmed(number),
            Body::Refused(reason) => bail!("it refuses to go on: {reason}"),
            _ => bail!("it says what is not understood"),
        }
    }
    bail!("it has ended the stream")
}

/// Starts to feed these standbys, as the process that has this endpoint, until what is returned is dropped.
///
/// # Errors
/// If the system gives no thread or no socket.
pub(crate) fn start(endpoint: &Endpoint, routes: Vec<(Route, ShardLink)>) -> anyhow::Result<Aside> {
    let beside = endpoint.clone();
    let ((), feeding) = Aside::start("feed", move || async move {
        let endpoint = beside.apart()?;
        let mut feeds = JoinSet::new();
        for (route, link) in routes {
            feeds.spawn(replicate(endpoint.clone(), route, link));
        }
        let end = async move {
            // First, so that none says that its standby is gone.
            feeds.shutdown().await;
            endpoint.shutdown(FAREWELL).await;
        };
        anyhow::Ok(((), end))
    })?;
    Ok(feeding)
}
