//! Starts a server's shards, and its coordinator if it is the first, and serves until the run ends.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, ShardId};
use windlass_common::plan::{Cluster, Plan};
use windlass_common::wire::{Body, Envelope, HEADER_BYTES_MAX, Header, Reject, Report, Stop};
use windlass_process::{Failure, OrExit};
use windlass_ps_core::SessionId;
use windlass_ps_core::store::Snapshot;
use windlass_transport::{
    Connection, Endpoint, FrameReceiver, FrameSender, Identity, Incoming, Limits, Pool, Role, own_cores,
};

use crate::coordinator::{self, Control};
use crate::crew::Crew;
use crate::follower::{self, Joining, Waits};
use crate::host::{Host, Hosted};
use crate::leader::{self, Lead};
use crate::meter::Meters;
use crate::session;
use crate::shard::ShardLink;
use crate::standby::{self, StandbyLink};

/// The folder of a run directory where checkpoints are kept, unless it is said where.
pub const CHECKPOINTS: &str = "checkpoints";
/// Gradient buffers kept for use again, in bytes.
const POOL_BYTES_MAX: usize = 1 << 30;
/// Gradient buffers that nobody has needed for so long are given back.
const SHED_EVERY: Duration = Duration::from_secs(1);
/// A stream that says nothing for this long after it was opened is given up.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// A peer that says nothing for so long where a word is due, or takes nothing of a frame or sends nothing more of one, is
/// given up. The coordinator says every other second that it lives.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often a server tells the coordinator how many bytes it has exchanged.
pub(crate) const METER_EVERY: Duration = Duration::from_millis(200);
/// How long the last messages may take.
pub(crate) const FAREWELL: Duration = Duration::from_secs(3);
/// Longest first message of a stream.
const FIRST_BYTES_MAX: usize = 64 << 10;
const MIB: u64 = 1 << 20;
/// Connections from this machine up to which each may send as far ahead as [`limits`] says.
const UNDIVIDED: usize = 8;
/// Peers from this machine that get a lane each: as many workers, and whoever else there is: other servers and observers.
const LANES: usize = 2 * UNDIVIDED;
/// Bytes that more of them may send ahead together: what the socket holds. Their datagrams are so large that congestion
/// control, which lets two be on their way whatever happens, cannot keep hundreds of senders from overrunning it.
const AHEAD: usize = 4 << 20;
/// Bytes that each may send ahead all the same.
const AHEAD_LEAST: usize = 16 << 10;

/// What a server is told at its start.
#[derive(Debug)]
pub struct Options {
    /// Who it is.
    pub identity: Identity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others reach it, if not at the address it is seen at.
    pub advertise: Option<String>,
    /// What it does.
    pub part: Part,
    /// How long it tries to reach the coordinator.
    pub connect_deadline: Duration,
    /// With how many threads its shards apply large slices; with 1, each on its own.
    pub apply_threads: usize,
}

/// What a server does beside holding shards.
#[derive(Debug)]
pub enum Part {
    /// It coordinates the run.
    Coordinator {
        /// The run's plan.
        plan: Box<Plan>,
        /// Where the run leaves what it made.
        run_directory: PathBuf,
        /// Whether the run that the directory holds is gone on with.
        resume: bool,
        /// Where checkpoints are kept, if not in the run directory: a folder that every server can reach, or the address of an
        /// object store.
        checkpoints: Option<String>,
    },
    /// It follows the coordinator at this address.
    Follower {
        /// `host:port`.
        coordinator: String,
    },
}

/// The limits of a server's endpoint: windows for as many workers as a plan may have.
pub fn limits() -> Limits {
    Limits {
        connections: 1200,
        stream_window: 4 * MIB,
        receive_window: 8 * MIB,
        send_window: 8 * MIB,
        window_memory: 20 * 1024 * MIB,
        ..Limits::default()
    }
}

/// Gives peers of this machine a lane each: none where there are so many workers that some would go without, for those would
/// be served less. A primary comes with a way for each of its sessions.
pub(crate) fn open_lanes(endpoint: &Endpoint, plan: &Plan) {
    let Cluster { workers, replicas, shards_per_server, .. } = plan.cluster;
    let ways = workers.saturating_mul(shards_per_server).saturating_mul(replicas) as usize;
    let most = if workers as usize <= UNDIVIDED { LANES + ways } else { 0 };
    endpoint.set_lanes(most, own_cores().is_some_and(|cores| plan.keeps_to_cores(cores)));
}

/// Serves until the run has ended. A coordinator waits no longer than the plan says for anybody; a follower no longer than
/// [`SILENCE_MAX`] for the coordinator's next word. `ready` is told the address once it listens; when `interrupted` resolves, the run
/// is ended in good order.
///
/// # Errors
/// Says why the run could not begin or go on, with the exit code for it.
pub async fn serve(
    options: Options,
    ready: impl FnOnce(SocketAddr),
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    serve_within(options, SILENCE_MAX, ready, interrupted).await
}

/// As [`serve`], with another limit to the silence of peers.
///
/// # Errors
/// As [`serve`].
pub async fn serve_within(
    options: Options,
    silence: Duration,
    ready: impl FnOnce(SocketAddr),
    interrupted: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let endpoint = Endpoint::bind(options.listen, &options.identity, &limits()).or_exit(Exit::Network)?;
    let address = endpoint.local_address().or_exit(Exit::Network)?;
    ready(address);
    let crew = match options.apply_threads {
        0 | 1 => None,
        threads => Some(Arc::new(Crew::new(threads).or_exit(Exit::System)?)),
    };
    let stop = match (options.identity.role(), options.part) {
        (Role::Server(ServerId(0)), Part::Coordinator { plan, run_directory, resume, checkpoints }) => {
            let advertise = options.advertise.unwrap_or_else(|| address.to_string());
            let checkpoints = match checkpoints {
                Some(location) => location,
                None => std::path::absolute(run_directory.join(CHECKPOINTS))
                    .or_exit(Exit::System)?
                    .display()
                    .to_string(),
            };
            let run_directory = &run_directory;
            let lead = Lead { plan: *plan, run_directory, resume, checkpoints, advertise, silence };
            leader::lead(&endpoint, Host::new(ServerId(0), crew), lead, interrupted).await?
        }
        (Role::Server(id), Part::Follower { coordinator }) if id != ServerId(0) => {
            let joining = Joining { address: options.advertise, port: address.port() };
            let waits = Waits { connect: options.connect_deadline, silence };
            follower::follow(&endpoint, (id, Host::new(id, crew)), &coordinator, joining, waits, interrupted)
                .await?
        }
        (role, part) => {
            let needed = match part {
                Part::Coordinator { .. } => "--plan makes this server the coordinator, which is server 0",
                Part::Follower { .. } => {
                    "--coordinator makes this server a follower, which is server 1 or higher"
                }
            };
            return Err(anyhow::anyhow!("{needed}; this identity is that of {role}")).or_exit(Exit::Usage);
        }
    };
    endpoint.shutdown(FAREWELL).await;
    match stop {
        Stop::Completed => Ok(()),
        Stop::Failed { reason } => Err(anyhow::anyhow!(reason)).or_exit(Exit::Run),
    }
}

/// What every connection task shares.
pub(crate) struct Shared {
    /// How long a peer may stand still in the middle of a frame.
    pub(crate) silence: Duration,
    pub(crate) envelope: Envelope,
    /// Once it is known which shards this server has.
    pub(crate) hosted: OnceLock<Hosted>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) guests: Guests,
    pub(crate) sessions: Arc<AtomicU64>,
    pub(crate) control: Option<Arc<Control>>,
}

impl Shared {
    /// The shards that this server is the primary of.
    pub(crate) fn shards(&self) -> &[(ShardId, ShardLink)] {
        self.hosted.get().map(|hosted| hosted.shards.as_slice()).unwrap_or_default()
    }

    /// The standby of a shard, if this peer is the one that feeds it.
    fn standby_of(&self, shard: ShardId, peer: Role, from: Envelope) -> Result<StandbyLink, Reject> {
        if from.run != self.envelope.run {
            return Err(Reject::WrongRun { expected: self.envelope.run, found: from.run });
        }
        if from.lineage != self.envelope.lineage {
            return Err(Reject::WrongLineage { expected: self.envelope.lineage, found: from.lineage });
        }
        let hosted = self.hosted.get().ok_or(Reject::UnknownShard { shard })?;
        let primary = hosted.seats.get(shard.index()).map(|seats| Role::Server(seats.primary));
        if primary != Some(peer) {
            return Err(Reject::NotAllowed { role: peer.to_string() });
        }
        let standby = hosted.standbys.iter().find(|(id, _)| *id == shard);
        standby.map(|(_, link)| link.clone()).ok_or(Reject::UnknownShard { shard })
    }
}

/// Whoever is connected in one life of the run: when it goes back, they all have to come again.
#[derive(Default)]
pub(crate) struct Guests(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    open: Vec<Connection>,
    /// Those of other servers that have sockets of their own.
    servers: Vec<Connection>,
    /// Why nobody is a guest any more.
    closed: Option<&'static str>,
}

impl Guests {
    fn add(&self, connection: &Connection) {
        let mut inner = self.0.lock();
        if let Some(why) = inner.closed {
            connection.close(0, why);
            return;
        }
        let Inner { open, servers, .. } = &mut *inner;
        for connections in [open, servers] {
            if connections.len() == connections.capacity() {
                connections.retain(|c| !c.is_closed());
            }
        }
        if matches!(connection.peer(), Role::Server(_)) && is_apart() {
            // Its ways to a standby have sockets of their own, so that they take nothing of what the others share.
            inner.servers.push(connection.clone());
            return;
        }
        inner.open.push(connection.clone());
        let open = inner.open.len();
        if open > UNDIVIDED {
            let share = (AHEAD / open.next_power_of_two()).max(AHEAD_LEAST) as u32;
            // What each has changes when their number has doubled.
            let first = if (open - 1).is_power_of_two() { 0 } else { open - 1 };
            inner.open[first..].iter().filter(|c| c.is_local()).for_each(|c| c.set_receive_window(share));
        }
    }

    pub(crate) fn close(&self, why: &'static str) {
        let mut inner = self.0.lock();
        inner.closed = Some(why);
        let Inner { open, servers, .. } = &mut *inner;
        for connection in open.drain(..).chain(servers.drain(..)) {
            connection.close(0, why);
        }
    }
}

/// The gradient buffers of one life, which are given back when they idle.
pub(crate) fn pool() -> Arc<Pool> {
    let pool = Arc::new(Pool::new(POOL_BYTES_MAX));
    let weak = Arc::downgrade(&pool);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SHED_EVERY).await;
            let Some(pool) = weak.upgrade() else { return };
            pool.shed();
        }
    });
    pool
}

/// Whether what runs here has a thread of its own, as on a lane.
pub(crate) fn is_apart() -> bool {
    Handle::current().runtime_flavor() != RuntimeFlavor::MultiThread
}

/// Does what takes long and waits for the disk; where the runtime has several threads, the others go on meanwhile.
pub(crate) fn at_length<T>(work: impl FnOnce() -> T) -> T {
    if is_apart() { work() } else { tokio::task::block_in_place(work) }
}

/// A shard's part of the result, slice by slice in order.
pub(crate) fn result(snapshot: &Snapshot, partial: u64) -> (Report, Vec<Arc<Vec<f32>>>) {
    let values: Vec<_> = snapshot.changed_since(None, &[]).map(|(_, values)| values).collect();
    let payload_bytes = values.iter().map(|v| v.len() as u64 * 4).sum();
    let (version, examples) = (snapshot.version, snapshot.examples);
    (Report::Final { version, examples, partial, payload_bytes }, values)
}

/// Serves all streams of one connection.
pub(crate) async fn connection(incoming: Incoming, shared: Arc<Shared>) {
    let Ok(connection) = incoming.finish().await else { return };
    tracing::debug!(peer = %connection.peer(), address = %connection.remote_address(), "connected");
    shared.meters.watch(&connection);
    shared.guests.add(&connection);
    loop {
        match connection.accept_stream().await {
            Ok(stream) => {
                tokio::spawn(stream_task(connection.clone(), stream, Arc::clone(&shared)));
            }
            Err(lost) => {
                tracing::debug!(peer = %connection.peer(), %lost, "disconnected");
                return;
            }
        }
    }
}

async fn stream_task(connection: Connection, mut stream: (FrameSender, FrameReceiver), shared: Arc<Shared>) {
    let mut buffer = AlignedVec::new();
    let peer = connection.peer();
    stream.0.set_patience(shared.silence);
    stream.1.set_patience(shared.silence);
    // What a server says of its copies takes a line for each worker.
    let limit = if let Role::Server(_) = peer { HEADER_BYTES_MAX } else { FIRST_BYTES_MAX };
    let first = match timeout(FIRST_FRAME, stream.1.header(limit, &mut buffer)).await {
        Ok(Ok(Some(bytes))) => Header::decode(bytes),
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "a stream is given up");
            return;
        }
    };
    let reason = match first {
        Err(error) => Reject::Malformed { reason: error.to_string() },
        Ok(Header { run, lineage, term, worker, incarnation, body: Body::Open { shard }, .. }) => {
            match shared.shards().iter().find(|(id, _)| *id == shard) {
                Some((_, link)) => {
                    let envelope = Envelope { run, lineage, term, worker, incarnation };
                    let session = SessionId(shared.sessions.fetch_add(1, Ordering::Relaxed));
                    let (link, pool) = (link.clone(), Arc::clone(&shared.pool));
                    if let Err(error) =
                        session::serve(session, envelope, connection, stream, link, pool).await
                    {
                        tracing::debug!(%peer, %error, "a session has ended");
                    }
                    return;
                }
                None => Reject::UnknownShard { shard },
            }
        }
        Ok(Header { run, lineage, body: Body::Replicate { shard, feed, is_beside }, .. }) => {
            let from = Envelope { run, lineage, ..shared.envelope };
            match shared.standby_of(shard, peer, from) {
                Ok(link) => {
                    let pool = Arc::clone(&shared.pool);
                    let feed = (feed, is_beside);
                    if let Err(error) =
                        standby::serve(shared.envelope, &connection, stream, feed, link, pool).await
                    {
                        tracing::debug!(%peer, %shard, %error, "a standby is no longer fed");
                    }
                    return;
                }
                Err(reason) => reason,
            }
        }
        Ok(header) => match &shared.control {
            Some(control) => {
                let control = Arc::clone(control);
                drop(shared);
                if let Err(error) = coordinator::serve(control, connection, stream, header).await {
                    tracing::debug!(%peer, %error, "a control session has ended");
                }
                return;
            }
            None => Reject::NotAllowed { role: peer.to_string() },
        },
    };
    let refused = shared.envelope.header(Body::Refused(reason));
    if refused.encode(&mut buffer).is_ok() && stream.0.send(&buffer, []).await.is_ok() {
        let _ = stream.0.finish();
    }
}
