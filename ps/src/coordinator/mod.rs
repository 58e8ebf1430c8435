//! Runs the coordinator on a thread of its own, carrying its orders and writing down what it decides.

mod control;
mod counted;
mod decisions;
mod event_log;
mod summary;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::{mpsc, oneshot};
use windlass_checkpoint::Manifest;
use windlass_common::ids::{RunId, ServerId, ShardId, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Begins, Body, Envelope, Order, Record, Report, Seats, Stop};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::{Complete, Coordinator, Effect, Event, Placed};
use windlass_transport::{Connection, Role};

pub(crate) use control::{Control, serve};
pub(crate) use counted::{Counted, recount};
pub use decisions::DECISIONS_FILE;
pub(crate) use decisions::{Decided, Decisions};
pub use event_log::EVENTS_FILE;

use crate::clock;
use crate::coordinator::event_log::EventLog;
use crate::coordinator::summary::Tally;
use crate::keeper::{Keeper, Part, Remembered};
use crate::leader::Beginning;
use crate::run_directory::RunDirectory;
use crate::shard::ShardLink;

/// Messages that may wait for the coordinator; whoever finds no place waits.
pub(crate) const MESSAGES_MAX: usize = 4096;
/// Messages that may wait for a control stream. One that does not take them is cut off.
pub(crate) const OUTGOING_MAX: usize = 1024;
const TICK: Duration = Duration::from_millis(200);
/// In a run with standbys the log is synced so often, and shards are told.
const LOGGED_EVERY: Duration = Duration::from_secs(1);
/// Servers and workers that take part are told this often that the coordinator lives.
const ALIVE_EVERY: Duration = Duration::from_secs(2);

/// A message for a control stream with its envelope.
pub(crate) type Outgoing = (Envelope, Body);

/// What the coordinator's thread is told.
pub(crate) enum Input {
    /// Somebody has connected, and messages go there; if they are not taken, the connection is closed.
    Attach { session: SessionId, outgoing: mpsc::Sender<Outgoing>, connection: Connection },
    /// Tell whoever is at this control stream.
    Send { session: SessionId, body: Body },
    /// Something has happened.
    Event(Event),
    /// A shard's part of the result, slice by slice in order.
    Result { shard: ShardId, report: Report, values: Vec<f32> },
    /// The shard is in this process.
    LocalShard { shard: ShardId, link: ShardLink },
}

/// A control stream.
struct Session {
    outgoing: mpsc::Sender<Outgoing>,
    connection: Connection,
    /// Whether its peer has been told that it takes part.
    is_welcome: bool,
}

/// How a life of the run ended.
#[derive(Debug)]
pub(crate) enum End {
    Stop(Stop),
    /// It goes on in a new lineage: with what has been counted from the copies that servers have, without it from its last
    /// checkpoint.
    RollBack(Option<Box<Counted>>),
}

/// Where the shards are in this life of the run, and what they begin with.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) seats: Vec<Seats>,
    pub(crate) begins: Begins,
    pub(crate) addresses: Vec<String>,
}

/// Which server has each shard, for whoever checks what servers say. Set before any is told.
pub(crate) type SeatsOnce = Arc<OnceLock<Vec<Seats>>>;

/// Where checkpoints are kept, and by whom.
pub(crate) struct Kept {
    pub(crate) keeper: Keeper,
    pub(crate) location: String,
}

/// Starts the coordinator's thread. What it is told comes by `inputs`; how this life of the run ended is sent to `ended`.
///
/// # Errors
/// If the system gives no thread, or the log cannot be written.
pub(crate) fn spawn(
    plan: Plan,
    beginning: Beginning,
    directory: RunDirectory,
    kept: Kept,
    (to_itself, inputs): (Sender<Input>, Receiver<Input>),
    (settle, seats, ended): (mpsc::Sender<Settled>, SeatsOnce, oneshot::Sender<End>),
) -> std::io::Result<()> {
    let Beginning { run, lineage, restore, counted, decisions } = beginning;
    let now = clock::now();
    let mut log = EventLog::open(&directory, restore.is_some())?;
    let core = match restore {
        Some(restore) => {
            if restore.placed.is_none() {
                log.restored(now, lineage, restore.checkpoint);
                log.flush();
            } else {
                // Shards are about to be told what it holds.
                log.sync();
            }
            Coordinator::restored(plan.clone(), run, lineage, restore, now)
        }
        None => Coordinator::new(plan.clone(), run, now),
    };
    let Counted { mut tally, logged } = counted;
    tally.open_again();
    let thread = Thread {
        tally,
        told: logged.clone(),
        told_at: Instant::now(),
        logged,
        settle,
        seats,
        links: BTreeMap::new(),
        early: Vec::new(),
        at_cut: AtCut::default(),
        plan,
        run,
        core,
        directory,
        log,
        decisions,
        kept,
        to_itself,
        sessions: HashMap::new(),
        results: BTreeMap::new(),
        effects: Vec::new(),
        ended: Some(ended),
    };
    std::thread::Builder::new().name("coordinator".into()).spawn(move || thread.run(&inputs))?;
    Ok(())
}

/// The counts of the run at the cut of the checkpoint that is being taken: what the coordinator has decided by then, and
/// what has been settled on shard 0.
#[derive(Default)]
struct AtCut {
    decided: Tally,
    settled: Tally,
}

struct Thread {
    plan: Plan,
    run: RunId,
    core: Coordinator,
    directory: RunDirectory,
    log: EventLog,
    decisions: Decisions,
    kept: Kept,
    /// For what comes of keeping a checkpoint.
    to_itself: Sender<Input>,
    tally: Tally,
    at_cut: AtCut,
    sessions: HashMap<SessionId, Session>,
    /// Shards of this process, and orders for them before they are there.
    links: BTreeMap<ShardId, ShardLink>,
    early: Vec<(ShardId, Order)>,
    /// Tells whoever starts them where the shards are.
    settle: mpsc::Sender<Settled>,
    seats: SeatsOnce,
    /// Of each shard the last record that is in the log, and up to which its shard has been told so.
    logged: BTreeMap<ShardId, u64>,
    told: BTreeMap<ShardId, u64>,
    told_at: Instant,
    results: BTreeMap<ShardId, Vec<f32>>,
    effects: Vec<Effect>,
    /// Taken when this life of the run ends.
    ended: Option<oneshot::Sender<End>>,
}

impl Thread {
    fn run(mut self, inputs: &Receiver<Input>) {
        let mut next_tick = Instant::now() + TICK;
        let mut next_alive = Instant::now() + ALIVE_EVERY;
        while self.ended.is_some() {
            match inputs.recv_deadline(next_tick.min(self.deadline(next_tick))) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next_tick || now >= self.deadline(next_tick) {
                next_tick = now + TICK;
                self.handle(Event::Tick);
                self.log.flush();
                self.tell_logged();
            }
            if now >= next_alive {
                next_alive = now + ALIVE_EVERY;
                self.tell_alive();
            }
        }
    }

    /// That this thread goes on is news only from this thread.
    fn tell_alive(&mut self) {
        let waits = |s: &Session| s.is_welcome && !matches!(s.connection.peer(), Role::Observer);
        let waiting: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| waits(s)).map(|(id, _)| *id).collect();
        for session in waiting {
            self.send(session, Body::Alive);
        }
    }

    /// When the core wants to be told the time; `usual` if it does not mind.
    fn deadline(&self, usual: Instant) -> Instant {
        let Some(deadline) = self.core.deadline() else { return usual };
        Instant::now() + Duration::from_micros(deadline.0.saturating_sub(clock::now().0))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Attach { session, outgoing, connection } => {
                let attached = Session { outgoing, connection, is_welcome: false };
                self.sessions.insert(session, attached);
            }
            Input::Send { session, body } => self.send(session, body),
            Input::Event(event) => {
                if let Event::Report { shard, report: Report::Records(records) } = &event {
                    self.note(*shard, records);
                }
                if let Event::Report { shard: ShardId(0), report: Report::Taken { .. } } = &event {
                    self.at_cut.settled = self.tally.clone();
                }
                let lost = if let Event::Lost { session, .. } = &event { Some(*session) } else { None };
                self.handle(event);
                if let Some(session) = lost {
                    self.sessions.remove(&session);
                }
            }
            Input::Result { shard, report, values } => {
                if let Report::Final { partial, .. } = report {
                    self.tally.partial(partial);
                }
                self.results.insert(shard, values);
                self.handle(Event::Report { shard, report });
            }
            Input::LocalShard { shard, link } => {
                for (_, order) in self.early.extract_if(.., |(of, _)| *of == shard) {
                    link.order(order);
                }
                self.links.insert(shard, link);
            }
        }
    }

    fn note(&mut self, shard: ShardId, records: &[Record]) {
        for record in records {
            // One that is told again after somebody has died may be in the log.
            let last = self.logged.entry(shard).or_default();
            if record.number <= *last {
                continue;
            }
            *last = record.number;
            self.tally.add(shard, record);
            self.log.push(shard, record);
        }
    }

    fn handle(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(clock::now(), event, &mut effects);
        let is_done = effects.drain(..).all(|effect| self.act(effect));
        self.effects = effects;
        if !is_done {
            let reason = "what has been decided could not be made durable".into();
            self.handle(Event::Abort { session: None, reason });
        }
    }

    /// False if nothing that was decided after it may be acted upon.
    fn act(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Order { shard, order } => self.order(shard, order),
            Effect::Placed(placed) => return self.place(&placed),
            Effect::Replicated { shard, standby } => {
                tracing::info!(%shard, %standby, "the standby has all");
                self.log.replicated(clock::now(), shard, standby);
            }
            Effect::Send { session, body } => self.send(session, body),
            Effect::Membership { worker, what } => {
                tracing::info!(%worker, what, term = self.core.term().0, "membership");
                self.log.membership(clock::now(), worker, &what);
            }
            Effect::Started => {
                self.tally.started(clock::now());
                self.log.started(clock::now());
            }
            Effect::Term { term, members, moved } => {
                // Before the shards are told, who come after this.
                if let Err(error) = self.decisions.term(clock::now(), term, &members) {
                    tracing::error!(%error, "a change of membership could not be made durable");
                }
                self.log.term(clock::now(), term, &members, &moved);
            }
            Effect::CheckpointCut { .. } => self.at_cut.decided = self.tally.clone(),
            Effect::KeepCheckpoint(complete) => self.keep(*complete),
            Effect::Checkpointed { number, failure } => {
                match &failure {
                    None => tracing::info!(number, "a checkpoint is complete"),
                    Some(why) => tracing::warn!(number, why, "no checkpoint"),
                }
                self.log.checkpoint(clock::now(), number, failure.as_deref());
            }
            Effect::RollBack { why, keeps } => {
                match keeps {
                    true => {
                        tracing::warn!(why, "the run goes on from what the other servers have");
                        self.log.interrupted(clock::now(), &why);
                    }
                    false => {
                        tracing::warn!(why, "the run goes back to its last checkpoint");
                        self.log.rolled_back(clock::now(), &why);
                    }
                }
                self.log.flush();
                for (_, session) in self.sessions.drain() {
                    session.connection.close(0, in_words(keeps));
                }
                if let Some(ended) = self.ended.take() {
                    let counted = || Counted { tally: self.tally.clone(), logged: self.logged.clone() };
                    let _ = ended.send(End::RollBack(keeps.then(|| Box::new(counted()))));
                }
            }
            Effect::Dealt { step, tasks } => self.log.dealt(clock::now(), step, &tasks),
            Effect::Opened { step, tasks } => {
                self.tally.opened(&tasks);
                self.log.opened(clock::now(), step, &tasks);
            }
            Effect::Dropped { step, client } => {
                self.tally.dropped(client);
                self.log.dropped(clock::now(), step, client);
            }
            Effect::Closed { step, cohort } => {
                self.tally.closed(&cohort);
                self.log.closed(clock::now(), step, &cohort);
                if self.plan.cluster.replicas > 0 {
                    // A coordinator that is started again counts by the log.
                    self.log.flush();
                }
            }
            Effect::Store => {
                let result = self.store();
                self.handle(Event::Stored(result));
            }
            Effect::End(stop) => {
                self.log.ended(clock::now(), &stop);
                if let Err(error) = self.write_summary(&stop) {
                    tracing::error!(%error, "the summary could not be written");
                }
                self.log.flush();
                // Sessions end when their senders are dropped, after what was sent last.
                self.sessions.clear();
                if let Some(ended) = self.ended.take() {
                    let _ = ended.send(End::Stop(stop));
                }
            }
        }
        true
    }

    fn order(&mut self, shard: ShardId, order: Order) {
        match self.core.primary(shard) {
            ServerId(0) => match self.links.get(&shard) {
                Some(link) => link.order(order),
                None => self.early.push((shard, order)),
            },
            server => match self.core.session_of(server) {
                Some(session) => self.send(session, Body::Order { shard, order }),
                None => {
                    tracing::error!(%shard, %server, "an order for a shard of a server that is not there")
                }
            },
        }
    }

    /// Writes down which servers have the shards, before any of them is told.
    fn place(&mut self, placed: &Placed) -> bool {
        if let Err(error) = self.decisions.placed(clock::now(), placed) {
            tracing::error!(%error, "where the shards are could not be made durable");
            return false;
        }
        if placed.from.iter().any(Option::is_some) {
            self.log.went_on(clock::now(), placed);
            self.log.flush();
        }
        if self.seats.set(placed.seats.clone()).is_err() {
            // Of these nobody is told before the next life.
            return true;
        }
        let begins = with_logged(self.core.begins(), &self.told, &self.plan);
        let addresses = self.core.addresses();
        let _ = self.settle.try_send(Settled { seats: placed.seats.clone(), begins, addresses });
        true
    }

    /// Shards forget what the log holds for good.
    fn tell_logged(&mut self) {
        let is_due = self.plan.cluster.replicas > 0 && self.told_at.elapsed() >= LOGGED_EVERY;
        if !is_due || self.told == self.logged || self.ended.is_none() {
            return;
        }
        self.told_at = Instant::now();
        if !self.log.sync() {
            return;
        }
        for (&shard, &records) in &self.logged.clone() {
            if self.told.insert(shard, records) != Some(records) {
                self.order(shard, Order::Logged { records });
            }
        }
    }

    /// Every shard's part is in the store: the manifest makes a checkpoint of them.
    fn keep(&mut self, Complete { number, parts, state }: Complete) {
        let parts: Result<Vec<Part>, _> = parts.iter().map(|part| serde_json::from_str(part)).collect();
        let to_itself = self.to_itself.clone();
        let done = Box::new(move |kept| {
            let _ = to_itself.send(Input::Event(Event::CheckpointKept { number, kept }));
        });
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => {
                let why = format!("a shard described its part in a way that cannot be read: {error}");
                self.handle(Event::CheckpointKept { number, kept: Err(why) });
                return;
            }
        };
        let (files, shards): (Vec<_>, Vec<_>) = parts.into_iter().map(|p| (p.file, p.state)).unzip();
        let first = shards.first().cloned().unwrap_or_default();
        let AtCut { decided, settled } = std::mem::take(&mut self.at_cut);
        let tally = serde_json::to_value(settled.with_decisions_of(&decided)).unwrap_or_default();
        let rounds = state.rounds;
        let remembered = Remembered { run: state, shards, tally };
        let manifest = Manifest {
            number,
            run: self.run.to_string(),
            lineage: u64::from(self.core.lineage().0),
            at_us: clock::now().0,
            plan: self.plan.to_text(),
            examples: first.examples.0,
            steps: first.version.0,
            rounds,
            files,
            state: serde_json::to_value(remembered).expect("what is remembered can be written as JSON"),
        };
        self.kept.keeper.manifest(manifest, self.plan.checkpoints.keep, self.log.for_sync(), done);
    }

    fn send(&mut self, session: SessionId, mut body: Body) {
        let Some(Session { outgoing, connection, is_welcome }) = self.sessions.get_mut(&session) else {
            return;
        };
        *is_welcome |= matches!(body, Body::Welcome(_));
        if let (Body::Welcome(welcome), Role::Server(_)) = (&mut body, connection.peer()) {
            welcome.checkpoints.clone_from(&self.kept.location);
            welcome.begins = with_logged(welcome.begins.clone(), &self.told, &self.plan);
        }
        let worker = if let Role::Worker(worker) = connection.peer() { worker } else { WorkerId(0) };
        let envelope = Envelope {
            run: self.run,
            lineage: self.core.lineage(),
            term: self.core.term(),
            worker,
            incarnation: self.core.incarnation(worker),
        };
        if let Err(error) = outgoing.try_send((envelope, body)) {
            tracing::warn!(peer = %connection.peer(), %error, "a connection is closed: its peer does not take messages");
            connection.close(1, "messages were not taken");
            self.sessions.remove(&session);
        }
    }

    fn store(&mut self) -> Result<(), String> {
        let shards = std::mem::take(&mut self.results);
        self.directory.write_model(&self.plan, &shards).map_err(|e| format!("{e:#}"))
    }

    fn write_summary(&self, stop: &Stop) -> std::io::Result<()> {
        let reports: Vec<_> = self.core.worker_reports().collect();
        let summary = self.tally.summary(&self.plan, self.run, stop, &self.core.status(), &reports);
        self.directory.write_summary(&summary)
    }
}

/// Hands something to the coordinator's thread from an async task, waiting for a place.
pub(crate) async fn tell(inputs: &Sender<Input>, mut input: Input) {
    use crossbeam::channel::TrySendError;
    loop {
        match inputs.try_send(input) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => return,
            Err(TrySendError::Full(back)) => input = back,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Why nobody is connected any more.
pub(crate) fn in_words(keeps: bool) -> &'static str {
    match keeps {
        true => "the run goes on from what the servers have",
        false => "the run goes back to its last checkpoint",
    }
}

fn with_logged(begins: Begins, logged: &BTreeMap<ShardId, u64>, plan: &Plan) -> Begins {
    let of = |shard| logged.get(&ShardId(shard)).copied().unwrap_or_default();
    match begins {
        Begins::Copies { .. } => Begins::Copies { logged: (0..plan.cluster.shards()).map(of).collect() },
        begins => begins,
    }
}
