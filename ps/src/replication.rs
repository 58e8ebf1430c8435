//! Tells the standbys of a server's shards what happens on their primaries, over connections that are made again as long as a
//! standby has not all.
//!
//! One thread does it for all of them, with a socket of its own: whoever has pushed waits for the standby, and each thread
//! between the two that has to be woken makes it wait longer. Where a session has a thread of its own and each push is told by
//! itself, what the session brings goes its [`OwnWay`], from that thread.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use rkyv::util::AlignedVec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use windlass_common::ids::{ServerId, ShardId};
use windlass_common::wire::{Body, Envelope, Feed, HEADER_BYTES_MAX, Header};
use windlass_ps_core::shard::Floats;
use windlass_transport::{
    Aside, Connection, Endpoint, FrameReceiver, FrameSender, Priority, Role, bytes_of, resolve,
};

use crate::gradient::Gradient;
use crate::server::FAREWELL;
use crate::shard::ShardLink;

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
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) envelope: Envelope,
    pub(crate) shard: ShardId,
    pub(crate) standby: ServerId,
    pub(crate) address: String,
    /// How long the standby may stand still in the middle of a frame.
    pub(crate) silence: Duration,
}

/// One attempt to feed a standby.
#[derive(Clone)]
pub(crate) struct Way {
    /// Whom the process is to the standby.
    endpoint: Endpoint,
    route: Route,
    /// Its number.
    pub(crate) feed: u64,
}

/// A session's own way to the standby, beside that of the shard.
pub(crate) struct OwnWay {
    pub(crate) feed: u64,
    /// Once the standby is reached.
    pub(crate) tell: Arc<OnceLock<mpsc::UnboundedSender<Told>>>,
}

impl Way {
    /// Begins to reach the standby from this thread. What is told then is written, and the way ends, when this is dropped.
    pub(crate) fn beside(&self, link: &ShardLink) -> OwnWay {
        let own = OwnWay { feed: self.feed, tell: Arc::default() };
        let (way, link, tell) = (self.clone(), link.clone(), Arc::clone(&own.tell));
        tokio::spawn(async move {
            let Route { shard, standby, .. } = way.route;
            let ended = match way.open(true).await {
                Ok(opened) => way.tell_beside(opened, &link, tell).await,
                // All goes the shard's way, as before.
                Err(why) => return tracing::debug!(%shard, %standby, "no way beside to the standby: {why:#}"),
            };
            if let Err(why) = ended {
                link.standby_gone(format!("{why:#}"));
            }
        });
        own
    }

    /// Writes what is told until nothing more is, and waits until the standby has heard it.
    async fn tell_beside(
        &self,
        (connection, mut sender, receiver): (Connection, FrameSender, FrameReceiver),
        link: &ShardLink,
        tell: Arc<OnceLock<mpsc::UnboundedSender<Told>>>,
    ) -> anyhow::Result<()> {
        let (told, telling) = mpsc::unbounded_channel();
        let _ = tell.set(told);
        drop(tell);
        let mut hearing = pin!(confirmations(receiver, link));
        tokio::select! {
            fed = feed(self.route.envelope, &mut sender, telling) => fed?,
            ended = &mut hearing => {
                ended?;
                bail!("it has ended the stream");
            }
        }
        sender.finish()?;
        // It ends the stream when it has heard all of it.
        hearing.await?;
        connection.close(0, "what was to be told beside has been told");
        Ok(())
    }

    async fn open(&self, is_beside: bool) -> anyhow::Result<(Connection, FrameSender, FrameReceiver)> {
        let Route { envelope, shard, standby, address, silence, .. } = &self.route;
        let address = resolve(address, CONNECT).await?;
        let endpoint = if is_beside { self.endpoint.apart()? } else { self.endpoint.clone() };
        let connection = endpoint.connect(address, Role::Server(*standby), CONNECT).await?;
        let opened = timeout(CONNECT, connection.open_stream(Priority::Normal)).await;
        let (mut sender, mut receiver) = opened.map_err(|_| anyhow!("it takes no stream"))??;
        sender.set_patience(*silence);
        receiver.set_patience(*silence);
        let mut buffer = AlignedVec::new();
        let first = Body::Replicate { shard: *shard, feed: self.feed, is_beside };
        envelope.header(first).encode(&mut buffer)?;
        sender.send(&buffer, []).await?;
        Ok((connection, sender, receiver))
    }
}

/// Feeds the standby of a shard until the shard's thread has ended, or no longer wants it.
async fn replicate(endpoint: Endpoint, route: Route, link: ShardLink) {
    let mut way = Way { endpoint, route, feed: 0 };
    loop {
        way.feed += 1;
        let route = &way.route;
        let why = match once(&way, &link).await {
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

async fn once(way: &Way, link: &ShardLink) -> anyhow::Result<()> {
    let at = || format!("{} at {}", way.route.standby, way.route.address);
    let (connection, mut sender, receiver) = way.open(false).await.with_context(at)?;
    let (tell, told) = mpsc::unbounded_channel();
    if !link.replicate(tell, way.clone()) {
        return Ok(());
    }
    let done = tokio::select! {
        done = feed(way.route.envelope, &mut sender, told) => {
            done.and_then(|()| bail!("the shard tells it nothing more")).with_context(at)
        }
        gone = confirmations(receiver, link) => {
            gone.and_then(|()| bail!("it has ended the stream")).with_context(at)
        }
    };
    connection.close(0, "replication has ended");
    done
}

/// Writes what is told, until nothing more is.
async fn feed(
    envelope: Envelope,
    sender: &mut FrameSender,
    mut told: mpsc::UnboundedReceiver<Told>,
) -> anyhow::Result<()> {
    let mut buffer = AlignedVec::new();
    while let Some(Told { number, feed, floats }) = told.recv().await {
        let payload: Vec<Bytes> = match floats {
            Floats::None => Vec::new(),
            Floats::Gradient(gradient) => vec![gradient.into_written()],
            Floats::Pieces(pieces) => pieces.into_iter().map(bytes_of).collect(),
        };
        let (expected, found) = (feed.payload_bytes(), payload.iter().map(Bytes::len).sum::<usize>() as u64);
        ensure!(expected == found, "{found} bytes were to go with what says that {expected} do");
        envelope.header(Body::Feed { number, feed }).encode(&mut buffer)?;
        sender.send(&buffer, payload).await?;
    }
    Ok(())
}

/// Hands on what the standby confirms, until it ends the stream.
async fn confirmations(mut receiver: FrameReceiver, link: &ShardLink) -> anyhow::Result<()> {
    let mut buffer = AlignedVec::new();
    while let Some(bytes) = receiver.header(HEADER_BYTES_MAX, &mut buffer).await? {
        match Header::decode(bytes)?.body {
            Body::Confirmed { number } => link.confirmed(number),
            Body::Refused(reason) => bail!("it refuses to go on: {reason}"),
            _ => bail!("it says what is not understood"),
        }
    }
    Ok(())
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
