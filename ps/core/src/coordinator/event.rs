//! Lists everything that can happen to the coordinator, and everything it can ask for.

use windlass_common::ids::{ClientId, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::wire::{Body, Entry, Member, Meter, Order, Report, Stop, Task, WorkerReport};

use super::checkpoints::Complete;
use super::seats::{Copy, Placed};
use crate::SessionId;

/// What can happen to the coordinator.
#[derive(Debug)]
pub enum Event {
    /// A server offers its shards.
    ServerJoined {
        /// Its control stream.
        session: SessionId,
        /// Which it is, as its certificate says.
        server: ServerId,
        /// Where workers reach it.
        address: String,
        /// What it has of shards from earlier lineages of the run.
        copies: Vec<Copy>,
    },
    /// A worker asks to take part.
    WorkerJoined {
        /// Its control stream.
        session: SessionId,
        /// Which it is, as its certificate says.
        worker: WorkerId,
        /// The number of its process, by its own account.
        process: u32,
    },
    /// An observer wants to be told how the run stands.
    ObserverJoined {
        /// Its control stream.
        session: SessionId,
    },
    /// A worker lives.
    Heartbeat {
        /// Its control stream.
        session: SessionId,
        /// The step that it is at.
        step: Step,
        /// Bytes that it has sent to all servers.
        bytes_up: u64,
        /// Bytes that it has received from them.
        bytes_down: u64,
    },
    /// The process of a worker has ended.
    Exited {
        /// The control stream of the observer that started it.
        session: SessionId,
        /// Whose process it was.
        worker: WorkerId,
        /// Its number.
        process: u32,
        /// In words.
        how: String,
    },
    /// A worker has gone of its own will.
    WorkerLeft {
        /// Its control stream.
        session: SessionId,
        /// What it measured.
        report: WorkerReport,
    },
    /// A control stream has ended.
    Lost {
        /// The stream.
        session: SessionId,
        /// In words.
        why: String,
        /// Whether it ended because nothing was heard; otherwise the other side, or an error, has ended it.
        silent: bool,
    },
    /// Somebody ends the run.
    Abort {
        /// Its control stream; none for the process itself.
        session: Option<SessionId>,
        /// In words.
        reason: String,
    },
    /// The process of the coordinator is to end.
    ShutDown {
        /// In words.
        reason: String,
    },
    /// Somebody wants a checkpoint now.
    Checkpoint {
        /// The control stream of an observer.
        session: SessionId,
    },
    /// Somebody wants a server to have no shards any more.
    Drain {
        /// The control stream of an observer.
        session: SessionId,
        /// Which.
        server: ServerId,
    },
    /// The manifest of a checkpoint is in the store, or could not be written.
    CheckpointKept {
        /// Its number.
        number: u64,
        /// Why it is not there.
        kept: Result<(), String>,
    },
    /// A client has gone from a round.
    Dropped {
        /// The control stream of its worker.
        session: SessionId,
        /// Which.
        client: ClientId,
        /// The round.
        step: Step,
    },
    /// An observer has seen enough: the open round is the last.
    Conclude {
        /// Its control stream.
        session: SessionId,
    },
    /// A shard has something to tell. Its result's values stay with whoever drives the core.
    Report {
        /// Which.
        shard: ShardId,
        /// What.
        report: Report,
    },
    /// A server has counted its bytes.
    Measured {
        /// Which.
        server: ServerId,
        /// Since its start.
        meter: Meter,
    },
    /// The result is on disk, or could not be written.
    Stored(Result<(), String>),
    /// Time has passed; sent several times a second.
    Tick,
}

/// What the coordinator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell a shard.
    Order {
        /// Which.
        shard: ShardId,
        /// What.
        order: Order,
    },
    /// Tell whoever is at this control stream.
    Send {
        /// Where to.
        session: SessionId,
        /// What.
        body: Body,
    },
    /// A worker takes part from now on, or has gone. For the log of the run.
    Membership {
        /// Which.
        worker: WorkerId,
        /// In words.
        what: String,
    },
    /// Others take part from now on. For the log of the run.
    Term {
        /// Which term it is.
        term: Term,
        /// Who takes part, in order of rank.
        members: Vec<Member>,
        /// The clients that another worker hosts from now on.
        moved: Vec<Task>,
    },
    /// Everyone is there, and step 0 begins. For the log of the run.
    Started,
    /// A round is open for these clients. For the log of the run.
    Opened {
        /// Which.
        step: Step,
        /// Who is asked, and who trains them.
        tasks: Vec<Task>,
    },
    /// Of the clients of the open round some have another worker now. For the log of the run.
    Dealt {
        /// Which round it is.
        step: Step,
        /// Who is asked, and who trains them.
        tasks: Vec<Task>,
    },
    /// A client has gone from a round. For the log of the run.
    Dropped {
        /// The round.
        step: Step,
        /// Which.
        client: ClientId,
    },
    /// A step or round is closed with these pushes; with none it is abandoned. For the log of the run.
    Closed {
        /// Which.
        step: Step,
        /// In the order of their reduction.
        cohort: Vec<Entry>,
    },
    /// Of what a checkpoint consists has been decided, and the shards are about to be told. For the counts of the run.
    CheckpointCut {
        /// Its number.
        number: u64,
    },
    /// Every shard's part of a checkpoint is in the store: write its manifest.
    KeepCheckpoint(Box<Complete>),
    /// A checkpoint is complete, or has come to nothing. For the log of the run.
    Checkpointed {
        /// Its number.
        number: u64,
        /// Why it has come to nothing.
        failure: Option<String>,
    },
    /// The run goes on in a new lineage, as a rule from its last checkpoint: this coordinator is done, and another one goes on in a new lineage with
    /// whoever joins again.
    RollBack {
        /// In words.
        why: String,
        /// Whether it goes on from the copies that servers have, and not from the checkpoint.
        keeps: bool,
    },
    /// It has been decided which servers have the shards: write it down before anybody is told.
    Placed(Placed),
    /// The standby of a shard has all of it. For the log of the run.
    Replicated {
        /// Which.
        shard: ShardId,
        /// Where it is.
        standby: ServerId,
    },
    /// Every shard has delivered its part of the result: write it.
    Store,
    /// The run has ended; everyone who is connected has been told.
    End(Stop),
}
