//! Watches a run: how it stands, and what its values were at evaluation points.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::watch;
use windlass_common::ids::{Examples, ServerId, ShardId, Step, WorkerId};
use windlass_common::plan::{Codecs, Plan, PlanError};
use windlass_common::wire::{Body, Envelope, Status, Stop, Values};
use windlass_transport::{Connection, Endpoint, Identity, Limits, Role};

use crate::client::Buffer;
use crate::client::link::{Cuts, Link, Place};
use crate::client::session::{COORDINATOR, Session, Told, brief};
use crate::client::{ClientError, Patience};

/// Watches a run without taking part in it.
#[derive(Debug)]
pub struct Observer;

/// How the run stands, again and again.
#[derive(Debug)]
pub struct StatusStream {
    session: Session,
    _endpoint: Endpoint,
}

/// What is seen of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// How it stands now.
    Status(Box<Status>),
    /// It has ended; this is the last that is seen.
    Stopped(Stop),
}

/// Fetches the values at evaluation points.
#[derive(Debug)]
pub struct SnapshotReader {
    envelope: Envelope,
    total: usize,
    cuts: Cuts,
    links: Vec<Link>,
    told: watch::Receiver<Told>,
    _connections: Vec<Connection>,
}

/// What there is at an evaluation point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotSeen {
    /// The values are there. In sync all shards had applied the same examples, and the two counts are equal; in
    /// async and ssp each shard's are the newest it had when it passed the point.
    Values {
        /// The step the values are for, on the shard that is furthest.
        step: Step,
        /// Fewest examples applied on a shard.
        examples_min: Examples,
        /// Most examples applied on a shard.
        examples_max: Examples,
        /// Fewest pushes settled on a shard.
        pushes_min: u64,
        /// When the last shard made its values, in microseconds since 1970 by the clock of its server.
        at_us: u64,
    },
    /// The values are there no more, or will never be.
    Skipped {
        /// The next point to ask for; without one there will be no further.
        next: Option<u64>,
    },
}

impl Observer {
    /// Connects to a run. Resolves when all planned servers have joined: at the latest when the plan's deadline for joining
    /// is over, at which the coordinator ends the run.
    ///
    /// # Errors
    /// If the coordinator or a server cannot be reached within the time, says nothing, or refuses this observer.
    pub async fn connect(
        coordinator: &str,
        identity: &Identity,
        within: Duration,
    ) -> Result<(StatusStream, SnapshotReader), ClientError> {
        Self::connect_with(coordinator, identity, within, Patience::default()).await
    }

    /// As [`connect`](Self::connect), with another patience for those who are connected and silent.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        coordinator: &str,
        identity: &Identity,
        within: Duration,
        patience: Patience,
    ) -> Result<(StatusStream, SnapshotReader), ClientError> {
        let (endpoint, session) = join(coordinator, identity, within, patience).await?;
        let layout = session.plan.layout().map_err(PlanError::from)?;
        let placement = session.plan.placement()?;
        let shards = placement.shards();
        let (connections, of_shards) = session.connect_to_servers(&endpoint, shards, within).await?;
        let links = (0..).map(ShardId).zip(&of_shards);
        let links = links.map(|(shard, connection)| {
            Link::open(connection, shard, session.envelope, Codecs::default(), patience.silence)
        });
        let links = try_join_all(links).await?;
        let envelope = session.envelope;
        let cuts = Cuts::new(&layout, &placement);
        let total = layout.total() as usize;
        let told = session.told.clone();
        let snapshots = SnapshotReader { envelope, total, cuts, links, told, _connections: connections };
        Ok((StatusStream { session, _endpoint: endpoint }, snapshots))
    }

    /// Connects to the coordinator alone, so that also a run is seen whose other servers do not answer. Resolves when all
    /// planned servers have joined.
    ///
    /// # Errors
    /// If the coordinator cannot be reached within the time, says nothing within it, or refuses this observer.
    pub async fn watch(
        coordinator: &str,
        identity: &Identity,
        within: Duration,
    ) -> Result<StatusStream, ClientError> {
        // The connection itself has as long, and says better why it failed.
        let longer = within.saturating_add(Duration::from_secs(1));
        let joining = join(coordinator, identity, within, Patience::default());
        let joined = tokio::time::timeout(longer, joining).await;
        let (endpoint, session) = joined.map_err(|_| {
            let who = "the coordinator, which answers when all planned servers have joined,".to_owned();
            ClientError::Silent { who, after: within }
        })??;
        Ok(StatusStream { session, _endpoint: endpoint })
    }
}

impl StatusStream {
    /// Ends a run of federated rounds: the one that is open is the last.
    ///
    /// # Errors
    /// If the coordinator is gone, or takes nothing for too long.
    pub async fn conclude(&mut self) -> Result<(), ClientError> {
        self.session.say(Body::Conclude).await
    }

    /// Asks for a checkpoint now. What comes of it is in the status: a newer one, or one more that came to nothing.
    ///
    /// # Errors
    /// If the coordinator is gone, or takes nothing for too long.
    pub async fn checkpoint(&mut self) -> Result<(), ClientError> {
        self.session.say(Body::Checkpoint).await
    }

    /// Asks that a server shall have no shards any more. What comes of it is in the status.
    ///
    /// # Errors
    /// If the coordinator is gone, or takes nothing for too long.
    pub async fn drain(&mut self, server: ServerId) -> Result<(), ClientError> {
        self.session.say(Body::Drain { server }).await
    }

    /// Says that a worker's process, which whoever observes has started, has ended, and how: nobody then waits until its
    /// silence is noticed.
    ///
    /// # Errors
    /// If the coordinator is gone, or takes nothing for too long.
    pub async fn exited(&mut self, worker: WorkerId, process: u32, how: String) -> Result<(), ClientError> {
        self.session.say(Body::Exited { worker, process, how }).await
    }

    /// The run's configuration.
    pub fn plan(&self) -> &Plan {
        &self.session.plan
    }

    /// Waits for the next status; one comes about five times a second. May be dropped and called again.
    ///
    /// # Errors
    /// If the coordinator is gone, or lives and has said nothing for [`Patience::status`].
    pub async fn next(&mut self) -> Result<Seen, ClientError> {
        loop {
            let changed = self.session.told.changed().await;
            let told = self.session.told.borrow_and_update().clone();
            match told {
                Told::Status(status) => return Ok(Seen::Status(status)),
                Told::Stop(stop) => return Ok(Seen::Stopped(stop)),
                Told::GivenUp(reason) => return Err(ClientError::GivenUp(reason)),
                Told::Silent(after) => return Err(ClientError::silent(COORDINATOR, after)),
                Told::Lost(why) => return Err(ClientError::Gone(why)),
                Told::Nothing if changed.is_err() => {
                    return Err(ClientError::Gone("its stream has ended".into()));
                }
                Told::Nothing => {}
            }
        }
    }
}

impl SnapshotReader {
    /// Waits until evaluation point `point` is reached and fetches the values of the whole model, in the order of the
    /// layout. That may rightly take long: each shard says every other second how far it has come. Ends with an error when
    /// the run ends first. Not to be dropped midway: afterwards, and after an error, it is of no use.
    ///
    /// # Errors
    /// If a server is gone or has said nothing for [`Patience::silence`], or the coordinator for [`Patience::status`].
    pub async fn pull(&mut self, point: u64, values: &mut Vec<f32>) -> Result<SnapshotSeen, ClientError> {
        values.resize(self.total, 0.0);
        let places = self.cuts.places(Buffer::Floats(values));
        let envelope = self.envelope;
        let pulls = self.links.iter_mut().zip(places).map(|(link, mut places)| async move {
            link.send(envelope, Body::PullSnapshot { point }).await?;
            pulled(link, &mut places).await
        });
        let pulled = tokio::select! {
            pulled = try_join_all(pulls) => pulled?,
            // Shards may live on without anybody who closes their steps.
            error = silent(&mut self.told) => return Err(error),
        };
        let mut seen: Option<SnapshotSeen> = None;
        let mut skipped: Option<Option<u64>> = None;
        for one in pulled {
            match one {
                Ok(one) => seen = Some(both(seen, one)),
                // The shard that has dropped most says where to go on.
                Err(next) => skipped = Some(skipped.flatten().max(next)),
            }
        }
        Ok(match (skipped, seen) {
            (None, Some(seen)) => seen,
            (next, _) => SnapshotSeen::Skipped { next: next.flatten() },
        })
    }
}

async fn join(
    coordinator: &str,
    identity: &Identity,
    within: Duration,
    patience: Patience,
) -> Result<(Endpoint, Session), ClientError> {
    if identity.role() != Role::Observer {
        return Err(ClientError::WrongRole { expected: "an observer's", found: identity.role() });
    }
    let endpoint = Endpoint::client(identity, &Limits::default())?;
    let session = Session::join(&endpoint, coordinator, Body::Observe, within, patience).await?;
    Ok((endpoint, session))
}

/// What one more shard adds to what was seen of others.
fn both(seen: Option<SnapshotSeen>, one: Values) -> SnapshotSeen {
    let (mut most, mut least) = ((one.step, one.examples, one.at_us), (one.examples, one.pushes));
    if let Some(SnapshotSeen::Values { step, examples_min, examples_max, pushes_min, at_us }) = seen {
        most = (most.0.max(step), most.1.max(examples_max), most.2.max(at_us));
        least = (least.0.min(examples_min), least.1.min(pushes_min));
    }
    let ((step, examples_max, at_us), (examples_min, pushes_min)) = (most, least);
    SnapshotSeen::Values { step, examples_min, examples_max, pushes_min, at_us }
}

/// Resolves when the coordinator lives and says nothing any more.
async fn silent(told: &mut watch::Receiver<Told>) -> ClientError {
    let last = told.wait_for(|told| matches!(told, Told::Silent(_))).await.map(|told| told.clone());
    match last {
        Ok(Told::Silent(after)) => ClientError::silent(COORDINATOR, after),
        // It has ended otherwise, and the servers end with it.
        _ => std::future::pending().await,
    }
}

type Pulled = Result<Values, Option<u64>>;

async fn pulled(link: &mut Link, places: &mut [Place<'_>]) -> Result<Pulled, ClientError> {
    loop {
        match link.next().await? {
            Body::Values(values) => {
                link.receive(&values, places, true).await?;
                return Ok(Ok(values));
            }
            Body::NoSnapshot { next } => return Ok(Err(next)),
            Body::NotReached { point, position } => {
                tracing::debug!(point, position, "waiting for an evaluation point");
            }
            Body::Rejected { reason, .. } | Body::Refused(reason) => {
                return Err(ClientError::Rejected(reason));
            }
            other => return Err(ClientError::protocol("a shard", brief(&other))),
        }
    }
}
