//! Runs a whole cluster in one thread: the real cores, messages in memory, virtual time, one seed.
//!
//! A [`Config`] says what takes part and [`run`] plays it to its end. What goes wrong on the way is decided here and
//! nowhere in the cores: a new kind of fault is a field of [`Config`] and a branch between delivery and handling.

mod brought;
mod config;
pub(crate) mod driver;
mod faults;
mod history;
mod kept;
pub(crate) mod links;
pub(crate) mod result;

use std::collections::{BTreeMap, VecDeque};

use windlass_common::ids::{Incarnation, Lineage, RunId, ServerId, ShardId, Step, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::wire::{self, Body, Order, Record, Report, Stop, Task, WorkerReport};
use windlass_ps_core::coordinator::{self, Coordinator};
use windlass_ps_core::shard::{self, Shard};
use windlass_ps_core::store::Snapshot;
use windlass_ps_core::{SessionId, Time};

pub use brought::Brought;
pub use config::{Config, JOIN_DEADLINE_S, Kill, REJOIN_DEADLINE_S, constant, fedavg, local};
pub use driver::{Gradients, Pushed};
pub use history::{Asked, Entry, History, Source, Told};
pub use kept::Kept;
pub use links::{Link, Node, Pace};
pub use result::Run;

use crate::problem::Problem;
use driver::{Driver, State, Wish};
use links::{Links, Message};

/// No run may take more deliveries than this.
pub const DELIVERIES_MAX: u64 = 1_000_000;
/// Each delivery takes this long.
const DELIVERY_US: u64 = 1000;
/// The coordinator hears that time has passed after so many deliveries, the shards after four times as many.
const DELIVERIES_PER_TICK: u64 = 250;

/// Plays a run to its end.
///
/// # Panics
/// If the run cannot end, or does what no run may do. The message is preceded by the line that replays it.
pub fn run(config: &Config, problem: &dyn Problem) -> Run {
    let _replay = Replay(config, problem);
    let mut cluster = Cluster::new(config, problem);
    cluster.play();
    cluster.into_run()
}

/// Shows what was running when a test fails.
struct Replay<'a>(&'a Config, &'a dyn Problem);

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut problem = format!("{:?}", self.1);
            problem.truncate(80);
            eprintln!(
                "{}={} replays this: {:?} on {problem}",
                crate::seeds::SEED_VARIABLE,
                self.0.seed,
                self.0
            );
        }
    }
}

/// A worker's place in the cluster; its lives follow one another.
#[derive(Debug)]
struct Seat {
    life: u32,
    /// `None` while it is dead.
    driver: Option<Driver>,
    /// A worker that has lost its connections.
    away: Option<Driver>,
    session: SessionId,
}

#[derive(Debug)]
struct Cluster<'a> {
    config: &'a Config,
    problem: &'a dyn Problem,
    plan: Plan,
    layout: Layout,
    placement: Placement,
    run: RunId,
    now: Time,
    deliveries: u64,
    deaths: u64,
    losses: u64,
    links: Links,
    coordinator: Coordinator,
    shards: Vec<Shard<Brought>>,
    histories: Vec<History>,
    /// Records that the coordinator has not been told of.
    unreported: Vec<Vec<Record>>,
    seats: BTreeMap<WorkerId, Seat>,
    /// Where an answer to a session goes.
    sessions: BTreeMap<SessionId, Link>,
    next_session: u64,
    kills: Vec<Kill>,
    cuts: Vec<Kill>,
    /// When a dead worker is started again, or one that is cut off joins again.
    restarts: Vec<(u64, WorkerId)>,
    gradients: Gradients,
    opened: Vec<(Step, Vec<Task>)>,
    closed: Vec<(Step, Vec<wire::Entry>)>,
    results: BTreeMap<ShardId, (Snapshot, u64)>,
    stop: Option<Stop>,
}

impl<'a> Cluster<'a> {
    fn new(config: &'a Config, problem: &'a dyn Problem) -> Self {
        let plan = config.plan(problem);
        let run = RunId(7);
        let shard =
            |id| Shard::new(&plan, run, Lineage(0), ShardId(id)).expect("a checked plan can be placed");
        let shards: Vec<_> = (0..config.shards).map(shard).collect();
        Self {
            config,
            problem,
            layout: plan.layout().expect("a checked plan has a layout"),
            placement: plan.placement().expect("a checked plan can be placed"),
            run,
            now: Time(1_000_000_000),
            deliveries: 0,
            deaths: 0,
            losses: 0,
            links: Links::new(config.seed, config.pace),
            coordinator: Coordinator::new(plan.clone(), run, Time(1_000_000_000)),
            histories: vec![History::default(); shards.len()],
            unreported: vec![Vec::new(); shards.len()],
            shards,
            seats: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 0,
            kills: config.kills.clone(),
            cuts: config.cuts.clone(),
            restarts: Vec::new(),
            gradients: Gradients::new(),
            opened: Vec::new(),
            closed: Vec::new(),
            results: BTreeMap::new(),
            stop: None,
            plan,
        }
    }

    fn play(&mut self) {
        for server in (0..self.plan.cluster.servers).map(ServerId) {
            let node = Node::Server(server);
            let session = self.open(Node::Coordinator, node);
            let (address, copies) = (format!("{server}"), Vec::new());
            let joined = coordinator::Event::ServerJoined { session, server, address, copies };
            self.tell_coordinator(node, joined);
        }
        for worker in self.plan.cluster.worker_ids() {
            self.start(worker);
        }
        while self.stop.is_none() {
            assert!(self.deliveries < DELIVERIES_MAX, "the run does not end: {}", self.who_waits_for_whom());
            self.kill_who_is_due();
            match self.links.deliver() {
                Some((link, message)) => self.handle(link, message),
                None => self.idle(),
            }
        }
    }

    /// Starts a worker, or starts it again.
    fn start(&mut self, worker: WorkerId) {
        let seat = self.seats.remove(&worker);
        let life = seat.as_ref().map_or(0, |seat| seat.life + 1);
        let node = Node::Worker(worker, life);
        let shards = 0..self.config.shards;
        let sessions: Vec<_> = shards.map(|shard| self.open(Node::Shard(ShardId(shard)), node)).collect();
        let session = self.open(Node::Coordinator, node);
        let silent = self.config.silent.contains(&worker);
        let driver = match seat.and_then(|seat| seat.away) {
            Some(away) => away.again(sessions),
            None => Driver::new((worker, life), self.run, &self.plan, sessions, silent),
        };
        self.seats.insert(worker, Seat { life, driver: Some(driver), away: None, session });
        self.tell_coordinator(node, coordinator::Event::WorkerJoined { session, worker, process: 0 });
    }

    /// A new session: what is answered there goes from one node to the other.
    fn open(&mut self, from: Node, to: Node) -> SessionId {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(session, Link { from, to });
        session
    }

    fn handle(&mut self, link: Link, message: Message) {
        self.deliveries += 1;
        self.now.0 += DELIVERY_US;
        match (link.to, message) {
            (Node::Coordinator, Message::Coordinator(event)) => self.coordinate(event),
            (Node::Shard(shard), Message::Shard(event)) => self.shard(shard, event),
            // What was sent to the dead is gone.
            (node @ Node::Worker(..), _) if !self.is_alive(node) => {}
            (Node::Worker(worker, _), message) => self.worker(worker, link, message),
            // A server's own part is to join.
            (Node::Server(_), Message::Control(..)) => {}
            (to, message) => panic!("{to:?} takes no {message:?}"),
        }
        if self.coordinator.deadline().is_some_and(|deadline| self.now >= deadline) {
            self.coordinate(coordinator::Event::Tick);
        }
        if self.deliveries.is_multiple_of(DELIVERIES_PER_TICK) {
            self.report_records();
            self.coordinate(coordinator::Event::Tick);
            if self.deliveries.is_multiple_of(4 * DELIVERIES_PER_TICK) {
                (0..self.config.shards).for_each(|shard| self.shard(ShardId(shard), shard::Event::Tick));
            }
        }
    }

    fn worker(&mut self, worker: WorkerId, link: Link, message: Message) {
        let node = link.to;
        let Some(driver) = self.seats.get_mut(&worker).and_then(|seat| seat.driver.as_mut()) else { return };
        let mut wishes = Vec::new();
        match (link.from, message) {
            (Node::Shard(shard), Message::Reply(reply)) => {
                driver.reply(shard, reply, &mut self.gradients, &mut wishes);
            }
            (_, Message::Control(body, incarnation, _)) => {
                driver.control(body, incarnation, &mut self.gradients, &mut wishes);
            }
            (from, message) => panic!("{worker} takes no {message:?} from {from:?}"),
        }
        if driver.state == State::Succeeded {
            self.restarts.push((self.deliveries, worker));
            self.kill(worker);
            return;
        }
        let mut wishes = VecDeque::from(wishes);
        while let Some(wish) = wishes.pop_front() {
            match wish {
                Wish::Compute => {
                    let Some(driver) = self.seats.get_mut(&worker).and_then(|seat| seat.driver.as_mut())
                    else {
                        return;
                    };
                    let mut further = Vec::new();
                    driver.compute(self.problem, &mut self.gradients, &mut further);
                    wishes.extend(further);
                }
                Wish::ThrownAway => {}
                Wish::Give(shard, given) => {
                    panic!("{worker} gives {shard} something for no checkpoint: {given:?}")
                }
                Wish::Request(shard, request) => {
                    let link = Link { from: node, to: Node::Shard(shard) };
                    self.links.send(link, Message::Shard(shard::Event::Request(request)));
                }
                Wish::Dropped(client, step) => {
                    let session = self.seats[&worker].session;
                    self.tell_coordinator(node, coordinator::Event::Dropped { session, client, step });
                }
                Wish::Leave { steps } => {
                    let session = self.seats[&worker].session;
                    let report = WorkerReport { finished: true, steps, ..WorkerReport::default() };
                    self.tell_coordinator(node, coordinator::Event::WorkerLeft { session, report });
                }
            }
        }
    }

    fn shard(&mut self, id: ShardId, event: shard::Event<Brought>) {
        let mut effects = Vec::new();
        self.histories[id.index()].begin(&event);
        self.shards[id.index()].handle(self.now, event, &mut effects);
        let newest = self.shards[id.index()].snapshot().version;
        self.histories[id.index()].end(self.now, &effects, newest);
        for effect in effects {
            match effect {
                shard::Effect::Record(record) => self.unreported[id.index()].push(record),
                shard::Effect::Reply { reply: shard::Reply::Held { .. }, .. }
                    if !self.shards[id.index()].receipts_matter() => {}
                shard::Effect::Reply { session, reply } => {
                    self.links.send(self.sessions[&session], Message::Reply(reply));
                }
                shard::Effect::Report(report) => self.report(id, report),
                shard::Effect::Fed => panic!("{id} tells a standby that the plan does not have"),
                shard::Effect::Image { .. } => panic!("{id} takes a checkpoint of which nobody has asked"),
                shard::Effect::Final { snapshot, partial } => {
                    let (version, examples) = (snapshot.version, snapshot.examples);
                    let payload_bytes = self.placement.values_of(id) * 4;
                    self.results.insert(id, (snapshot, partial));
                    self.report(id, Report::Final { version, examples, partial, payload_bytes });
                }
            }
        }
    }

    fn is_alive(&self, node: Node) -> bool {
        let Node::Worker(worker, life) = node else { return true };
        self.seats.get(&worker).is_some_and(|seat| seat.life == life && seat.driver.is_some())
    }

    fn report(&mut self, shard: ShardId, report: Report) {
        self.tell_coordinator(Node::Shard(shard), coordinator::Event::Report { shard, report });
    }

    fn report_records(&mut self) {
        for shard in (0..self.config.shards).map(ShardId) {
            let records = std::mem::take(&mut self.unreported[shard.index()]);
            if !records.is_empty() {
                self.report(shard, Report::Records(records));
            }
        }
    }

    fn tell_coordinator(&mut self, from: Node, event: coordinator::Event) {
        self.links.send(Link { from, to: Node::Coordinator }, Message::Coordinator(event));
    }

    fn coordinate(&mut self, event: coordinator::Event) {
        let mut effects = Vec::new();
        self.coordinator.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                coordinator::Effect::Order { shard, order } => {
                    if let (ShardId(0), Order::Close { step, cohort }) = (shard, &order) {
                        self.closed.push((*step, cohort.clone()));
                    }
                    let link = Link { from: Node::Coordinator, to: Node::Shard(shard) };
                    self.links.send(link, Message::Shard(shard::Event::Order(order)));
                }
                coordinator::Effect::Send { session, body } => self.send(session, body),
                coordinator::Effect::Opened { step, tasks } => self.opened.push((step, tasks)),
                coordinator::Effect::Membership { .. }
                | coordinator::Effect::Term { .. }
                | coordinator::Effect::Dealt { .. }
                | coordinator::Effect::Started
                | coordinator::Effect::Dropped { .. }
                | coordinator::Effect::Closed { .. } => {}
                coordinator::Effect::Store => {
                    self.tell_coordinator(Node::Coordinator, coordinator::Event::Stored(Ok(())));
                }
                other @ (coordinator::Effect::CheckpointCut { .. }
                | coordinator::Effect::KeepCheckpoint(_)
                | coordinator::Effect::Checkpointed { .. }
                | coordinator::Effect::RollBack { .. }
                | coordinator::Effect::Placed(_)
                | coordinator::Effect::Replicated { .. }) => {
                    panic!("the plan keeps no checkpoints and no copies: {other:?}")
                }
                coordinator::Effect::End(stop) => {
                    assert_eq!(self.stop, None, "a run ends once");
                    self.stop = Some(stop);
                }
            }
        }
    }

    fn send(&mut self, session: SessionId, body: Body) {
        let link = self.sessions[&session];
        let incarnation = match link.to {
            // The dead hear nothing any more.
            node if !self.is_alive(node) => return,
            Node::Worker(worker, _) => self.coordinator.incarnation(worker),
            _ => Incarnation(0),
        };
        self.links.send(link, Message::Control(body, incarnation, Lineage(0)));
    }
}
