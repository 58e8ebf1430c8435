//! Lists every message that two processes of a run exchange; docs/protocol.md explains each.

// What the archive macros derive (archived twins, resolvers) cannot carry docs or Debug of its own.
#![allow(missing_docs, missing_debug_implementations)]

use rkyv::{Archive, Deserialize, Serialize};

use super::reject::Reject;
use super::replica::{Feed, Seats};
use super::status::Status;
use crate::codec::Codec;
use crate::ids::{
    ClientId, Examples, Incarnation, Lineage, RunId, Sequence, ServerId, ShardId, Step, Term, Version,
    WorkerId,
};

/// The header of a frame: whose it is and what it says. A payload, where the body announces one, follows raw.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Header {
    /// The protocol that the body is written in, [`super::PROTOCOL`].
    pub protocol: u16,
    /// The run it belongs to; 0 before the coordinator has named it.
    pub run: RunId,
    /// The history it belongs to.
    pub lineage: Lineage,
    /// The membership the sender knows of.
    pub term: Term,
    /// The worker it is from or for; its certificate must say the same.
    pub worker: WorkerId,
    /// The life of that worker.
    pub incarnation: Incarnation,
    /// What it says.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Body {
    // To the coordinator, on the control stream.
    /// A worker asks to take part; the number of its process, by which whoever started it can say that it has ended.
    JoinWorker { process: u32 },
    /// A server offers itself; others reach it at this port of the address it is seen at, or at `address`. Of the shards
    /// that it has from an earlier lineage of the run it says, in JSON, how far they are.
    JoinServer { address: Option<String>, port: u16, copies: Vec<String> },
    /// An observer asks for the plan and then for a status every so often.
    Observe,
    /// A worker lives, and is at this step; bytes that it has exchanged with all servers.
    Heartbeat { step: Step, bytes_up: u64, bytes_down: u64 },
    /// A worker has finished, or goes before the end, with what it measured.
    Leave(WorkerReport),
    /// A worker or server ends the run, and says why.
    Abort { reason: String },
    /// A client of this worker has gone from a round: nobody need wait for it.
    Dropped { client: ClientId, step: Step },
    /// An observer has seen enough: the open round is the last.
    Conclude,
    /// An observer asks for a checkpoint; what becomes of it is in the status.
    Checkpoint,
    /// An observer asks that a server shall have no shards any more.
    Drain { server: ServerId },
    /// An observer that started a worker's process says that this process has ended, and how.
    Exited { worker: WorkerId, process: u32, how: String },
    /// What a shard of another server tells the coordinator.
    Report { shard: ShardId, report: Report },
    /// What a server has measured so far.
    ServerReport(Meter),

    // From the coordinator, on the control stream.
    /// The sender takes part; the plan and where everyone is.
    Welcome(Welcome),
    /// From this term on the worker has the data of these clients.
    Hosts { clients: Vec<ClientId> },
    /// The run is not ready yet.
    NotYet { missing: String },
    /// What the coordinator tells a shard of another server.
    Order { shard: ShardId, order: Order },
    /// The coordinator lives; said every other second to servers and workers that take part, since it may have nothing
    /// else to say to them for long.
    Alive,
    /// The run has ended; everyone goes.
    Stop(Stop),
    /// How the run stands.
    Status(Box<Status>),
    /// The request is refused.
    Refused(Reject),

    // To a shard, on a stream of its own.
    /// The first frame of the stream: which shard it is for.
    Open { shard: ShardId },
    /// A gradient; its payload follows. With `pull`, the values for the next step are asked for as well.
    Push { push: Push, pull: Option<Pull> },
    /// The values for a step are asked for.
    Pull(Pull),
    /// The values at an evaluation point are asked for.
    PullSnapshot { point: u64 },
    /// For a checkpoint, what a codec has left out of the pushes of a client; its payload follows, every slice of the shard in
    /// order as f32.
    Residual { checkpoint: u64, client: ClientId, payload_bytes: u64 },
    /// All that was asked for has been given for this checkpoint; or the worker has gone on, and has it no more.
    Given { checkpoint: u64, has_gone_on: bool },

    // From the primary of a shard to its standby, on a stream of its own, and back.
    /// The first frame of the stream: which shard it is, and for the so many-th time in this lineage. A stream that `is_beside`
    /// joins the one that has the number, and carries some of what goes to the standby.
    Replicate { shard: ShardId, feed: u64, is_beside: bool },
    /// What has happened on the primary; a payload may follow. They are numbered.
    Feed { number: u64, feed: Feed },
    /// The standby has done everything up to this number.
    Confirmed { number: u64 },

    // From a shard.
    /// A receipt: the push has arrived and waits for others. In sync the worker keeps the gradient; in rounds and buffers it
    /// may free it, and makes it again if it has to join again before the push is settled.
    Held { sequence: Sequence, step: Step },
    /// An acknowledgement: what became of the push. The worker may free the gradient.
    Settled { sequence: Sequence, outcome: Outcome },
    /// Values; their payload follows.
    Values(Values),
    /// A checkpoint holds this worker's pushes before `next`, and none in a round from its step on: the worker gives what its
    /// codec had left out of these by then, and with `all` also what it has given before.
    Keep { checkpoint: u64, next: Resume, all: bool },
    /// What a codec had left out of the pushes of a client, for a life of a worker that may not know it; its payload follows,
    /// every slice of the shard in order as f32.
    Recall { client: ClientId, payload_bytes: u64 },
    /// There is nothing more to do: the training has all its examples.
    Finished { examples: Examples },
    /// A pull is parked, and this is whom it waits for.
    Waiting { step: Step, wait: Wait },
    /// An observer waits for an evaluation point; the shard has come this far, in examples or rounds.
    NotReached { point: u64, position: u64 },
    /// The request has had no effect.
    Rejected { sequence: Option<Sequence>, reason: Reject },
    /// The snapshot asked for is gone, or will never be; the next one there is.
    NoSnapshot { next: Option<u64> },
}

/// A slice in a payload: its number within the run's placement, and how many values of it follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Part {
    pub slice: u32,
    pub values: u64,
}

/// The mean gradient of a batch, or a client's pseudo-gradient (start minus end of its local training); of it, the part
/// that one shard owns.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Push {
    /// The running number of the worker's pushes.
    pub sequence: Sequence,
    /// The step the gradient is for.
    pub step: Step,
    /// The version of this shard's values that it was computed on.
    pub base: Version,
    /// Whose data it was computed on; a worker that computes on the union of its clients' gives its own number.
    pub client: ClientId,
    /// Its weight: size of the batch, or number of the client's examples.
    pub examples: u32,
    /// Examples whose gradients were computed for it, counted with repetition.
    pub work: u64,
    /// Mean loss over that work, for the log.
    pub loss: f32,
    pub codec: Codec,
    /// What the payload holds, in this order: every slice of the shard once, in any order.
    pub parts: Vec<Part>,
    /// Length of the payload.
    pub payload_bytes: u64,
}

/// A request for values.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Pull {
    /// The step that will use the values.
    pub step: Step,
    /// The version that the worker has; slices unchanged since then are not sent.
    pub have: Option<Version>,
    /// Slices asked for; empty means every slice of the shard.
    pub slices: Vec<u32>,
    pub codec: Codec,
}

/// Fresh values.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Values {
    /// The step they are for.
    pub step: Step,
    /// Their version on this shard.
    pub version: Version,
    /// Examples applied to them.
    pub examples: Examples,
    /// Pushes settled before them.
    pub pushes: u64,
    /// When they were made, in microseconds since 1970 by the clock of the shard's server.
    pub at_us: u64,
    /// In a federated round, the clients of the asking worker whose pushes this shard lacks; empty otherwise.
    pub clients: Vec<ClientId>,
    pub codec: Codec,
    /// What the payload holds, in this order.
    pub parts: Vec<Part>,
    /// Length of the payload.
    pub payload_bytes: u64,
}

/// What became of a push.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has changed the model.
    Applied { version: Version, staleness: u64 },
    /// Its step had been closed without it; the step now open.
    Late { step: Step },
    /// It never counts: its worker was settled without it.
    Void,
}

/// Whom a parked pull waits for.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Wait {
    /// The planned servers and workers have not all joined.
    Start,
    /// The step before has not been applied: these workers' pushes are missing.
    Pushes { step: Step, missing: Vec<WorkerId> },
    /// The step is complete here, and the coordinator has not closed it yet.
    Close { step: Step },
    /// None of the worker's clients is in the cohort of the open round.
    Cohort { step: Step },
    /// The slowest worker is too far behind.
    Slowest { worker: WorkerId, clock: Step, needed: Step },
}

/// What the coordinator tells a shard.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Order {
    /// Who takes part from now on, by rank, and who did and has gone; pushes of earlier incarnations are refused.
    Membership { term: Term, members: Vec<Member>, departed: Vec<Member> },
    /// A worker that came back goes on from here, or one that has gone has come so far; pushes of it that the shard lacks
    /// are void.
    Settle { worker: WorkerId, incarnation: Incarnation, next: Resume, void_missing: bool },
    /// Everyone is there: step 0 may begin.
    Start,
    /// A federated round is open for these clients; said again when they are dealt anew.
    Open { step: Step, tasks: Vec<Task> },
    /// The step is closed with these pushes, the same on every shard. With none it is abandoned: the values stay.
    Close { step: Step, cohort: Vec<Entry> },
    /// No further round is opened: there is nothing more to do.
    Conclude,
    /// All workers have gone: the values now are the result.
    Finalize,
    /// So many of the shard's records are in the log of the run.
    Logged { records: u64 },
    /// A checkpoint is about to be taken: no further push is applied until it is known which belong to it.
    Pause { checkpoint: u64 },
    /// The checkpoint consists of each worker's pushes before these; it is taken when the shard has settled those. Of workers
    /// that are not named it consists of what has been settled.
    Cut { checkpoint: u64, before: Vec<(WorkerId, Sequence)> },
    /// The checkpoint is not taken: the shard goes on.
    GoOn { checkpoint: u64 },
}

/// A worker that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Member {
    pub worker: WorkerId,
    pub incarnation: Incarnation,
}

/// A client that takes part in a round, and the worker that trains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub struct Task {
    pub client: ClientId,
    pub worker: WorkerId,
}

/// A push that is held. The order is that of every reduction: by client, whoever computed it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Entry {
    pub client: ClientId,
    pub worker: WorkerId,
    pub sequence: Sequence,
}

/// Where a worker goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub struct Resume {
    /// The number of its next push.
    pub sequence: Sequence,
    /// The step of its next push.
    pub step: Step,
}

/// What a shard tells the coordinator.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Report {
    /// The shard has learned of this incarnation, and this would be the worker's next push to it. With the slowest clock of
    /// the other members.
    Admitted { worker: WorkerId, incarnation: Incarnation, next: Resume, slowest: Option<Step> },
    /// The worker that came back, or has gone, has been settled here; so many of its pushes are void by that.
    Settled { worker: WorkerId, incarnation: Incarnation, void: u64 },
    /// A push for the open step is complete here.
    Arrived { entry: Entry, incarnation: Incarnation, step: Step },
    /// What has happened to pushes since the last such report, in order.
    Records(Vec<Record>),
    /// How the shard stands; sent about once a second.
    Standing(Standing),
    /// No further push is applied; of each worker the first that has not been settled here.
    Paused { checkpoint: u64, next: Vec<(WorkerId, Sequence)> },
    /// The checkpoint has been taken, and the shard goes on.
    Taken { checkpoint: u64 },
    /// The shard's part of the checkpoint is in the store, described in JSON, or why it is not.
    Kept { checkpoint: u64, part: Result<String, String> },
    /// The standby of the shard has all of it from now on.
    Replicated,
    /// The standby of the shard is lost after it had all, or has become another: why.
    StandbyLost { why: String },
    /// The result; its payload follows, every slice of the shard in order.
    Final { version: Version, examples: Examples, partial: u64, payload_bytes: u64 },
}

/// How a shard stands.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Standing {
    /// The newest version of its values.
    pub version: Version,
    /// The first step that has not been applied.
    pub open: Step,
    /// Requests that wait for the shard's thread.
    pub queue: u32,
    /// Pushes held for a step.
    pub held: u32,
    /// Bytes of its values, optimizer state, held pushes and snapshots.
    pub bytes: u64,
    /// Pulls that are parked.
    pub parked: u32,
    /// The first of those: whose, for which step, and whom they wait for.
    pub blocked: Vec<(WorkerId, Step, Wait)>,
}

/// What happened to one push on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Record {
    /// Which of the shard's records it is; the first is 1.
    pub number: u64,
    /// Microseconds since 1970, by the clock of the shard's server.
    pub at_us: u64,
    /// The term whose dealing of clients it was computed under.
    pub term: Term,
    pub worker: WorkerId,
    pub incarnation: Incarnation,
    pub sequence: Sequence,
    pub step: Step,
    /// The version that the gradient was computed on.
    pub base: Version,
    pub client: ClientId,
    pub examples: u32,
    /// Examples whose gradients were computed for it.
    pub work: u64,
    /// Work applied on the shard, this push included.
    pub examples_applied: Examples,
    pub loss: f32,
    pub outcome: Outcome,
}

/// The coordinator's answer to who joins.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Welcome {
    /// The plan's text.
    pub plan: String,
    /// [`crate::plan::Plan::hash`] by the coordinator's reckoning.
    pub plan_hash: u64,
    /// Addresses of all servers, in order; that of one that is away is empty.
    pub servers: Vec<String>,
    /// Which of them have each shard.
    pub seats: Vec<Seats>,
    /// Where a worker goes on; for others the beginning.
    pub next: Resume,
    /// Whose data the worker has; for others nobody's.
    pub clients: Vec<ClientId>,
    /// For a server, where checkpoints are kept; empty where there are none.
    pub checkpoints: String,
    /// For a server, what its shards begin with.
    pub begins: Begins,
}

/// What shards begin with when a run begins, or goes on in a new lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Begins {
    /// The initial values.
    #[default]
    Anew,
    /// Those of a checkpoint.
    Checkpoint(u64),
    /// The copies that servers have of them; of each shard so many records are in the log of the run.
    Copies { logged: Vec<u64> },
}

/// What a worker measured of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Whether it was told that the training has all its examples.
    pub finished: bool,
    /// Steps computed: batches, or local trainings of clients.
    pub steps: u64,
    /// Examples whose gradients were computed.
    pub work: u64,
    /// Microseconds in computation, from the first values to the last acknowledgement.
    pub compute_us: u64,
    /// Microseconds of that time in which it encoded what it pushed, or copied parts of it, and computed nothing.
    pub encode_us: u64,
    /// Microseconds of that time in which it waited for shards: for the wire, for them, and for others.
    pub exchange_us: u64,
    /// Microseconds in all of that time.
    pub active_us: u64,
}

/// Bytes that a server has exchanged with workers and observers, and how much its shards have worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Meter {
    /// Gradient bytes received, after the codec.
    pub payload_up: u64,
    /// Value bytes sent, after the codec.
    pub payload_down: u64,
    /// UDP payload bytes received.
    pub wire_up: u64,
    /// UDP payload bytes sent.
    pub wire_down: u64,
    /// Microseconds in which its shards took in pushes, updated values and answered.
    pub shards_us: u64,
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Stop {
    /// It has all its examples and the result is written.
    Completed,
    /// It could not go on.
    Failed { reason: String },
}
