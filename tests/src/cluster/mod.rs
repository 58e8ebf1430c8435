//! Runs a whole cluster in one thread: the real cores, messages in memory, virtual time, one seed.
//!
//! A [`Config`] says what takes part and [`run`] plays it to its end. What goes wrong on the way is decided here and
//! nowhere in the cores: a new kind of fault is a field of [`Config`] and a branch between delivery and handling.

mod config;
mod driver;
mod history;
mod links;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use windlass_common::ids::{Incarnation, Lineage, RunId, ServerId, ShardId, Version, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Order, Outcome, Record, Report, Stop, WorkerReport};
use windlass_ps_core::coordinator::{self, Coordinator};
use windlass_ps_core::shard::{self, Reply, Shard};
use windlass_ps_core::store::Snapshot;
use windlass_ps_core::{SessionId, Time};

pub use config::{Config, JOIN_DEADLINE_S, Kill, REJOIN_DEADLINE_S, constant};
pub use driver::{Gradients, Pushed};
pub use history::{Entry, History};
pub use links::{Link, Node, Pace};

use crate::problem::Problem;
use driver::{Driver, State, Wish};
use links::{Links, Message};

/// No run may take more deliveries than this.
pub const DELIVERIES_MAX: u64 = 1_000_000;
/// Each delivery takes this long.
const DELIVERY_US: u64 = 1000;
/// The coordinator hears that time has passed after so many deliveries, the shards after four times as many.
const DELIVERIES_PER_TICK: u64 = 250;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub plan: Plan,
    /// How it ended.
    pub stop: Stop,
    /// The result, in layout order; empty if the run failed.
    pub values: Vec<f32>,
    /// What each shard did.
    pub histories: Vec<History>,
    /// Every gradient that was computed.
    pub gradients: Gradients,
    /// For each shard the pushes that count elsewhere and not on it.
    pub partial: Vec<u64>,
    /// Messages delivered.
    pub deliveries: u64,
    /// Workers that died.
    pub deaths: u64,
}

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
            eprintln!("{}={} replays this: {:?} on {problem}", crate::seeds::SEED_VARIABLE, self.0.seed, self.0);
        }
    }
}

/// A worker's place in the cluster; its lives follow one another.
#[derive(Debug)]
struct Seat {
    life: u32,
    /// `None` while it is dead.
    driver: Option<Driver>,
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
    links: Links,
    coordinator: Coordinator,
    shards: Vec<Shard<Vec<f32>>>,
    histories: Vec<History>,
    /// Records that the coordinator has not been told of.
    unreported: Vec<Vec<Record>>,
    seats: BTreeMap<WorkerId, Seat>,
    /// Where an answer to a session goes.
    sessions: BTreeMap<SessionId, Link>,
    next_session: u64,
    kills: Vec<Kill>,
    /// When a dead worker is started again.
    restarts: Vec<(u64, WorkerId)>,
    gradients: Gradients,
    results: BTreeMap<ShardId, (Snapshot, u64)>,
    stop: Option<Stop>,
}

impl<'a> Cluster<'a> {
    fn new(config: &'a Config, problem: &'a dyn Problem) -> Self {
        let plan = config.plan(problem);
        let run = RunId(7);
        let shard = |id| Shard::new(&plan, run, Lineage(0), ShardId(id)).expect("a checked plan can be placed");
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
            links: Links::new(config.seed, config.pace),
            coordinator: Coordinator::new(plan.clone(), run, Time(1_000_000_000)),
            histories: vec![History::default(); shards.len()],
            unreported: vec![Vec::new(); shards.len()],
            shards,
            seats: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 0,
            kills: config.kills.clone(),
            restarts: Vec::new(),
            gradients: Gradients::new(),
            results: BTreeMap::new(),
            stop: None,
            plan,
        }
    }

    fn play(&mut self) {
        for server in (0..self.plan.cluster.servers).map(ServerId) {
            let node = Node::Server(server);
            let session = self.open(Node::Coordinator, node);
            let joined = coordinator::Event::ServerJoined { session, server, address: format!("{server}") };
            self.to_coordinator(node, joined);
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
        let life = self.seats.get(&worker).map_or(0, |seat| seat.life + 1);
        let node = Node::Worker(worker, life);
        let shards = 0..self.config.shards;
        let sessions = shards.map(|shard| self.open(Node::Shard(ShardId(shard)), node)).collect();
        let session = self.open(Node::Coordinator, node);
        let silent = self.config.silent.contains(&worker);
        let driver = Some(Driver::new(worker, self.run, &self.plan, sessions, silent));
        self.seats.insert(worker, Seat { life, driver, session });
        self.to_coordinator(node, coordinator::Event::WorkerJoined { session, worker });
    }

    /// A new session: what is answered there goes from one node to the other.
    fn open(&mut self, from: Node, to: Node) -> SessionId {
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(session, Link { from, to });
        session
    }

    fn kill_who_is_due(&mut self) {
        let deliveries = self.deliveries;
        for kill in self.kills.extract_if(.., |kill| kill.at <= deliveries).collect::<Vec<_>>() {
            self.kill(kill.worker);
            if let Some(after) = kill.back_after {
                self.restarts.push((deliveries + after, kill.worker));
            }
        }
        for (_, worker) in self.restarts.extract_if(.., |(at, _)| *at <= deliveries).collect::<Vec<_>>() {
            // Two deaths in a row may ask for it twice.
            if self.seats[&worker].driver.is_none() {
                self.start(worker);
            }
        }
    }

    /// A worker dies. One that has nothing more to do is left in peace.
    fn kill(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        if seat.driver.take_if(|driver| driver.state != State::Done).is_none() {
            return;
        }
        self.deaths += 1;
        let (node, control) = (Node::Worker(worker, seat.life), seat.session);
        self.links.cut(node);
        self.histories.iter_mut().for_each(|history| history.push(Entry::Gone { worker }));
        for link in self.links.from(node) {
            let ended = match link.to {
                Node::Shard(_) => {
                    let answers = Link { from: link.to, to: node };
                    let session = self.sessions.iter().find(|(_, l)| **l == answers).map(|(s, _)| *s);
                    Message::Shard(shard::Event::Closed { session: session.expect("a link to a shard has a session") })
                }
                _ => Message::Coordinator(coordinator::Event::Lost { session: control, why: "it was killed".into() }),
            };
            self.links.send(link, ended);
        }
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
                driver.reply(shard, reply, self.problem, &mut self.gradients, &mut wishes);
            }
            (_, Message::Control(body, incarnation)) => driver.control(body, incarnation, &mut wishes),
            (from, message) => panic!("{worker} takes no {message:?} from {from:?}"),
        }
        if driver.state == State::Succeeded {
            self.restarts.push((self.deliveries, worker));
            self.kill(worker);
            return;
        }
        for wish in wishes {
            match wish {
                Wish::Request(shard, request) => {
                    let link = Link { from: node, to: Node::Shard(shard) };
                    self.links.send(link, Message::Shard(shard::Event::Request(request)));
                }
                Wish::Leave { steps } => {
                    let session = self.seats[&worker].session;
                    let report = WorkerReport { finished: true, steps, ..WorkerReport::default() };
                    self.to_coordinator(node, coordinator::Event::WorkerLeft { session, report });
                }
            }
        }
    }

    fn shard(&mut self, id: ShardId, event: shard::Event<Vec<f32>>) {
        let pull = match &event {
            shard::Event::Request(request) if self.is_alive(self.sessions[&request.session].to) => {
                request.pull.as_ref().map(|p| (request.worker, p.step))
            }
            shard::Event::Order(Order::Membership { members, .. }) => {
                let members = members.iter().map(|m| m.worker).collect();
                self.histories[id.index()].push(Entry::Members(members));
                None
            }
            _ => None,
        };
        let mut effects = Vec::new();
        self.shards[id.index()].handle(self.now, event, &mut effects);
        let newest = self.shards[id.index()].snapshot().version;
        if let Some((worker, step)) = pull {
            self.histories[id.index()].push(Entry::Pull { worker, step });
        }
        for effect in effects {
            match effect {
                shard::Effect::Record(record) => {
                    self.histories[id.index()].push(Entry::Record(record));
                    self.unreported[id.index()].push(record);
                }
                shard::Effect::Reply { session, reply } => {
                    let link = self.sessions[&session];
                    self.note(id, link.to, &reply, newest);
                    self.links.send(link, Message::Reply(reply));
                }
                shard::Effect::Report(report) => self.report(id, report),
                shard::Effect::Final { snapshot, partial } => {
                    let (version, examples) = (snapshot.version, snapshot.examples);
                    let payload_bytes = self.placement.values_of(id) * 4;
                    self.results.insert(id, (snapshot, partial));
                    self.report(id, Report::Final { version, examples, partial, payload_bytes });
                }
            }
        }
        self.histories[id.index()].push(Entry::Handled);
    }

    fn note(&mut self, id: ShardId, to: Node, reply: &Reply, newest: Version) {
        let Node::Worker(worker, _) = to else { panic!("{id} answers {to:?}") };
        let alive = self.is_alive(to);
        let history = &mut self.histories[id.index()];
        match reply {
            Reply::Settled { sequence, outcome } => history.acknowledge(worker, *sequence, *outcome, newest),
            Reply::Values { step, snapshot, .. } if alive => {
                history.push(Entry::Values { worker, step: *step, version: snapshot.version });
            }
            Reply::Finished { .. } | Reply::Rejected { .. } if alive => history.push(Entry::Gone { worker }),
            _ => {}
        }
    }

    fn is_alive(&self, node: Node) -> bool {
        let Node::Worker(worker, life) = node else { return true };
        self.seats.get(&worker).is_some_and(|seat| seat.life == life && seat.driver.is_some())
    }

    fn report(&mut self, shard: ShardId, report: Report) {
        self.to_coordinator(Node::Shard(shard), coordinator::Event::Report { shard, report });
    }

    fn report_records(&mut self) {
        for shard in (0..self.config.shards).map(ShardId) {
            let records = std::mem::take(&mut self.unreported[shard.index()]);
            if !records.is_empty() {
                self.report(shard, Report::Records(records));
            }
        }
    }

    fn to_coordinator(&mut self, from: Node, event: coordinator::Event) {
        self.links.send(Link { from, to: Node::Coordinator }, Message::Coordinator(event));
    }

    fn coordinate(&mut self, event: coordinator::Event) {
        let mut effects = Vec::new();
        self.coordinator.handle(self.now, event, &mut effects);
        for effect in effects {
            match effect {
                coordinator::Effect::Order { shard, order } => {
                    let link = Link { from: Node::Coordinator, to: Node::Shard(shard) };
                    self.links.send(link, Message::Shard(shard::Event::Order(order)));
                }
                coordinator::Effect::Send { session, body } => self.send(session, body),
                coordinator::Effect::Membership { .. } => {}
                coordinator::Effect::Store => {
                    self.to_coordinator(Node::Coordinator, coordinator::Event::Stored(Ok(())));
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
        self.links.send(link, Message::Control(body, incarnation));
    }

    /// Nothing is on its way: the next thing that was planned happens, or time passes until a deadline.
    fn idle(&mut self) {
        if let Some(next) = self.restarts.iter().map(|(at, _)| *at).min() {
            self.deliveries = self.deliveries.max(next);
            return;
        }
        let done = |seat: &Seat| seat.driver.as_ref().is_none_or(|d| d.state == State::Done);
        let others_done =
            self.seats.iter().all(|(worker, seat)| self.config.silent.contains(worker) || done(seat));
        let silent: Vec<WorkerId> = self.config.silent.iter().copied().filter(|w| !done(&self.seats[w])).collect();
        if others_done && !silent.is_empty() {
            // A process that hangs is ended by whoever started it.
            silent.into_iter().for_each(|worker| self.kill(worker));
            return;
        }
        self.now = self.now.plus_seconds(JOIN_DEADLINE_S.max(REJOIN_DEADLINE_S) + 1);
        self.coordinate(coordinator::Event::Tick);
        assert!(self.stop.is_some(), "nothing is on its way and nobody gives up: {}", self.who_waits_for_whom());
    }

    fn who_waits_for_whom(&mut self) -> String {
        let mut text = String::new();
        for (worker, seat) in &self.seats {
            let state = seat.driver.as_ref().map_or_else(|| "is dead".into(), Driver::waits_for);
            let _ = write!(text, "{worker} {state}; ");
        }
        let now = self.now.plus_seconds(100);
        for (id, shard) in self.shards.iter_mut().enumerate() {
            let mut effects = Vec::new();
            shard.handle(now, shard::Event::Tick, &mut effects);
            for effect in effects {
                if let shard::Effect::Reply { session, reply: Reply::Waiting { step, wait } } = effect {
                    let _ = write!(text, "shard {id} has parked {:?} for step {step}: {wait:?}; ", self.sessions[&session].to);
                }
            }
        }
        let status = self.coordinator.status();
        let _ = write!(text, "the coordinator is {:?}, {}", status.phase, status.waiting);
        text
    }

    fn into_run(self) -> Run {
        let mut values = Vec::new();
        let mut partial = Vec::new();
        if self.stop == Some(Stop::Completed) {
            values = vec![f32::NAN; self.layout.total() as usize];
            for (snapshot, missing) in self.results.values() {
                for (part, floats) in snapshot.changed_since(None, &[]) {
                    let slice = self.placement.slices()[part.slice as usize];
                    let start = self.layout.range(slice.variable).start + slice.start as usize;
                    values[start..start + floats.len()].copy_from_slice(&floats);
                }
                partial.push(*missing);
            }
        }
        Run {
            plan: self.plan,
            stop: self.stop.expect("a run is over when it is handed out"),
            values,
            histories: self.histories,
            gradients: self.gradients,
            partial,
            deliveries: self.deliveries,
            deaths: self.deaths,
        }
    }
}

impl Run {
    /// The values that one shard owns, out of those of the whole model.
    pub fn part_of(&self, shard: ShardId, whole: &[f32]) -> Vec<f32> {
        let layout = self.plan.layout().expect("a checked plan has a layout");
        let placement = self.plan.placement().expect("a checked plan can be placed");
        let slices = placement.of_shard(shard).iter();
        slices
            .flat_map(|slice| {
                let start = layout.range(slice.variable).start + slice.start as usize;
                whole[start..start + slice.len as usize].to_vec()
            })
            .collect()
    }

    /// Pushes that changed the model, on one shard.
    pub fn applied(&self, shard: ShardId) -> usize {
        let applied = |r: &&Record| matches!(r.outcome, Outcome::Applied { .. });
        self.histories[shard.index()].records().filter(applied).count()
    }
}
