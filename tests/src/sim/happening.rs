//! Lists everything that is going to happen in a simulated run, and the processes to which it does.

use windlass_common::ids::{Lineage, ServerId, ShardId, WorkerId};
use windlass_ps_core::{Time, shard};

use super::network::Place;
use super::replicas::Told;
use crate::cluster::Brought;

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum Happening {
    /// The first message of a way of a stream arrives.
    Arrival { stream: usize, way: usize },
    /// A process starts.
    Start(Place),
    /// A process tries to reach a server, or finds that it has.
    Reach { from: Place, life: u32, to: ServerId, is_done: bool },
    /// Nothing has been heard at an end of a connection for the idle timeout, if that began then.
    Idle { connection: usize, end: usize, since: u64 },
    /// An end of a connection learns that the other has closed it, by a word or by being told that there is none.
    Closed { connection: usize, end: usize, is_word: bool },
    /// A server's part of a stream has ended.
    StreamEnded { stream: usize },
    /// Those who could not be heard can be.
    Healed { from: Place, to: Place },
    /// A process goes on.
    Resumed(Place),
    /// A shard is told the time.
    ShardTick(ServerId, ShardId, u32),
    /// The coordinator is told the time.
    Tick(u32),
    /// The coordinator wants to be told that it is this time by its clock.
    Deadline(Time),
    /// The result has been written, or could not be.
    Stored(Lineage),
    /// A server has written its shard's part of a checkpoint, or could not.
    PartWritten { lineage: Lineage, checkpoint: u64, server: ServerId, shard: ShardId, life: u32 },
    /// The coordinator's process has written a manifest, or could not.
    ManifestWritten { lineage: Lineage, number: u64, life: u32 },
    /// The coordinator's process looks at what has been kept and goes on from it.
    Restore { life: u32 },
    /// A server has read what its shards begin with.
    Made { server: ServerId, life: u32, lineage: Lineage },
    /// A server whose run is over goes when its last words are out, or then.
    Farewell { server: ServerId, until: u64 },
    /// A worker has computed what it was about.
    Computed { worker: WorkerId, life: u32 },
    /// A worker joins again over new connections.
    JoinAgain { worker: WorkerId, life: u32 },
    /// Has a worker been answered for too long by nobody?
    Silence { worker: WorkerId, life: u32, request: u64 },
    /// The coordinator has a worker's last word.
    Heard { worker: WorkerId, life: u32 },
    /// A worker no longer waits for its last word to be heard.
    Unheard { worker: WorkerId, life: u32 },
    /// A worker says that it lives, on this stream.
    Beat { worker: WorkerId, life: u32, control: Option<usize> },
    /// A worker that shards do not hear any more has waited for the coordinator to say why.
    Word { worker: WorkerId, life: u32, request: u64 },
    /// The coordinator is told that a worker's process has ended.
    Exited { worker: WorkerId, life: u32 },
    /// A request is delivered a second time.
    Again(ServerId, ShardId, Box<shard::Request<Brought>>),
    /// A primary tries to reach its standby, or finds that it has.
    Dial { server: ServerId, shard: ShardId, lineage: Lineage, is_done: bool },
    /// What a primary has told a standby is delivered again.
    Late { server: ServerId, shard: ShardId, told: Box<Told> },
    /// Has the run stood still, or somebody not ended in time?
    Watch,
}

/// A process, whatever it does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) is_running: bool,
    /// It was stopped, from then until then.
    pub(super) paused: (u64, u64),
    /// How fast its clock is, in millionths too fast.
    pub(super) drift: i64,
    pub(super) offset: u64,
}

impl Process {
    pub(super) fn is_paused(&self, now: u64) -> bool {
        now < self.paused.1
    }

    pub(super) fn local(&self, now: u64) -> u64 {
        let gained = i128::from(now) * i128::from(self.drift) / 1_000_000;
        (i128::from(self.offset) + i128::from(now) + gained) as u64
    }

    /// How long it takes until so much has passed by its clock.
    pub(super) fn until(&self, local: u64) -> u64 {
        (i128::from(local) * 1_000_000 / i128::from(1_000_000 + self.drift)) as u64 + 1
    }
}
