//! Runs a whole cluster on a virtual clock: the real cores, a seeded network, and faults of every role.
//!
//! A [`Config`] says what takes part and what goes wrong, [`Config::drawn`] draws one from a seed, and [`play`] plays it
//! until every process has ended. What the shells around the cores do (connect, join again, give up, leave) is modelled
//! here; what may not happen is said by [`crate::check`].

mod acts;
mod config;
mod delivery;
mod draw;
mod faults;
mod happening;
mod hosted;
mod log;
mod network;
mod played;
mod promote;
mod queue;
mod replicas;
mod request;
mod restore;
mod resume;
mod server;
mod store;
mod strays;
mod watch;
mod worker;

use std::collections::BTreeMap;

use windlass_common::ids::{Lineage, RunId, ServerId, ShardId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{self, Begins, Seats, Stop};
use windlass_ps_core::Time;
use windlass_ps_core::coordinator::{self, Coordinator, RunState};
use windlass_ps_core::shard::{Image, Shard, ShardState};
use windlass_ps_core::store::Snapshot;

pub use config::{Compute, Config, Disk, Fault, Launcher, Network, What};
pub use draw::{KINDS, kind};
pub use log::Counts;
pub use network::Place;
pub(crate) use replicas::Told;
pub use resume::{Whole, play_from};

use crate::cluster::Run;
use crate::cluster::links::Message;
use happening::{Happening, Process};
use hosted::Hosted;
use log::Log;
use network::{Kind, Net};
use promote::Written;
use queue::Queue;
use restore::Era;
use store::Store;
use worker::Seat;

/// A connection on which nothing can be heard for so long is lost.
const IDLE: u64 = 10_000_000;
/// No run may have more happenings than this.
const HAPPENINGS_MAX: u64 = 20_000_000;
/// At sessions from here on nobody listens.
const STRAY: u64 = 1 << 40;
/// Sessions from here on are those of requests that nobody in the cluster has made.
pub(crate) const FORGED: u64 = 1 << 41;

/// What a simulated run came to.
#[derive(Debug)]
pub struct Played {
    /// What the shards did, and what came of it.
    pub run: Run,
    /// What they did before the run was taken back to a checkpoint, for each time that it was.
    pub before: Vec<Run>,
    /// The checkpoints that there are at the end, the oldest first.
    pub kept: Vec<Whole>,
    /// What happened, by kind.
    pub counts: Counts,
    /// What happened, line by line, if that was asked for.
    pub log: Vec<String>,
    /// How each process ended: when, and why.
    pub ends: BTreeMap<Place, (u64, String)>,
    /// When the run was over, or its coordinator gone.
    pub over_at: u64,
    /// When the first and the last push was settled.
    pub settled: Option<(u64, u64)>,
}

#[derive(Debug)]
struct World<'a> {
    config: &'a Config,
    plan: Plan,
    layout: Layout,
    placement: Placement,
    run: RunId,
    now: u64,
    happenings: u64,
    /// Messages delivered, by which faults are timed.
    delivered: u64,
    queue: Queue<Happening>,
    rng: Rng,
    net: Net,
    processes: BTreeMap<Place, Process>,
    seats: Vec<Seat>,
    followers: Vec<server::Follower>,
    coordinator: Coordinator,
    /// That of the coordinator.
    lineage: Lineage,
    /// There is no coordinator: it goes on from what has been kept, or its process is away.
    is_restoring: bool,
    /// Until then it is tried to write down that the run goes on.
    writes_until: u64,
    /// A run that goes on from a checkpoint of another begins with this.
    resumed: Option<Era>,
    deadline: Option<Time>,
    /// The shards that servers have as their primaries.
    hosted: BTreeMap<(ServerId, ShardId), Hosted>,
    /// The copies that they have of those of others.
    standbys: BTreeMap<(ServerId, ShardId), replicas::Second>,
    /// What each server was told when it was welcomed last.
    welcomes: Vec<(Vec<Seats>, Begins)>,
    written: Written,
    /// Copies that are no more: how far they were, and what those of standbys had been told.
    ghosts: BTreeMap<(ServerId, ShardId, Lineage), (ShardState, Option<u64>)>,
    /// The copies that there are do not hold all.
    gives_copies_up: bool,
    /// Since the run began, or went back, not every standby has had all; or a server's process has ended before each had.
    is_endangered: bool,
    /// The last term and lives that were written down.
    lives: RunState,
    /// What the first server's shards begin with when it is welcomed.
    first_images: Option<Vec<Image>>,
    eras: BTreeMap<Lineage, Era>,
    store: Store,
    /// The streams between the coordinator and the shards of its own process.
    locals: Vec<usize>,
    /// Those on which the coordinator gives orders to the other servers.
    orders_to: Vec<Option<usize>>,
    /// Orders for shards that are yet to be made.
    backlog: Vec<Vec<(ShardId, wire::Order)>>,
    next_fault: usize,
    is_disk_full: bool,
    strays: u64,
    /// For how long processes were stopped, and links cut, altogether.
    paused: u64,
    results: BTreeMap<ShardId, (Snapshot, u64)>,
    stop: Option<Stop>,
    over_at: Option<u64>,
    progress_at: u64,
    settled: Option<(u64, u64)>,
    ends: BTreeMap<Place, (u64, String)>,
    log: Log,
    counts: Counts,
}

/// Plays a run until every process has ended. With `is_logged`, every message is written down.
///
/// # Panics
/// If the run does what no run may do, with a sentence that says what.
pub fn play(config: &Config, is_logged: bool) -> Played {
    finished(World::new(config, is_logged), is_logged)
}

fn finished(mut world: World<'_>, is_logged: bool) -> Played {
    let _log = PrintedInPanic(is_logged);
    world.begin();
    while let Some((at, happening)) = world.queue.pop() {
        world.happenings += 1;
        assert!(world.happenings < HAPPENINGS_MAX, "the run does not end: {}", world.who_waits());
        assert!(at >= world.now, "time goes back for {happening:?}");
        world.now = at;
        world.happen(happening);
        if is_logged {
            LINES.with_borrow_mut(|lines| lines.append(&mut world.log.lines));
        }
        if world.is_done() {
            break;
        }
    }
    world.played()
}

thread_local! {
    static LINES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Shows what has happened so far when a run that is written down fails.
struct PrintedInPanic(bool);

impl Drop for PrintedInPanic {
    fn drop(&mut self) {
        if self.0 && std::thread::panicking() {
            LINES.with_borrow_mut(|lines| lines.drain(..).for_each(|line| println!("{line}")));
        }
    }
}

impl<'a> World<'a> {
    fn new(config: &'a Config, is_logged: bool) -> Self {
        let plan = config.plan();
        let run = RunId(7);
        let mut rng = Rng::new(config.seed, Purpose::Simulation(3));
        let mut process = |_| Process {
            is_running: false,
            paused: (0, 0),
            drift: rng.below(2 * config.drift as u64 + 1) as i64 - config.drift,
            offset: 1_000_000_000 + rng.below(10_000_000),
        };
        let servers = (0..config.servers).map(|s| Place::Server(ServerId(s)));
        let workers = (0..config.workers_max()).map(|w| Place::Worker(WorkerId(w)));
        let processes: BTreeMap<_, _> = servers.chain(workers).map(|p| (p, process(p))).collect();
        let began = Time(processes[&server::FIRST].local(0));
        let shard =
            |id| Shard::new(&plan, run, Lineage(0), ShardId(id)).expect("a checked plan can be placed");
        let mut hosted = BTreeMap::new();
        for id in (0..config.shards()).map(ShardId).filter(|_| config.replicas == 0) {
            hosted.insert((plan.cluster.server_of(id), id), Hosted::new(shard(id.0), Lineage(0), None));
        }
        let follower = server::Follower { serves: config.replicas == 0, ..server::Follower::default() };
        let mut store = Store::new(config.seed, config.disk);
        store.begin_lineage(0, Lineage(0)).expect("the disk is not full yet");
        let mut net = Net::new(config);
        let locals = (0..config.shards()).map(|s| net.stream(Kind::Local(ShardId(s)), None));
        let locals = locals.collect();
        Self {
            config,
            layout: plan.layout().expect("a checked plan has a layout"),
            placement: plan.placement().expect("a checked plan can be placed"),
            run,
            now: 0,
            happenings: 0,
            delivered: 0,
            queue: Queue::new(),
            rng,
            net,
            processes,
            seats: (0..config.workers_max()).map(|_| Seat::new(config.launcher.restarts)).collect(),
            followers: vec![follower; config.servers as usize],
            coordinator: Coordinator::new(plan.clone(), run, began),
            lineage: Lineage(0),
            is_restoring: false,
            writes_until: 0,
            resumed: None,
            deadline: None,
            eras: BTreeMap::from([(Lineage(0), Era::new(config.shards()))]),
            store,
            orders_to: vec![None; config.servers as usize],
            backlog: vec![Vec::new(); config.servers as usize],
            hosted,
            standbys: BTreeMap::new(),
            welcomes: vec![(Vec::new(), Begins::Anew); config.servers as usize],
            written: Written::new(config.shards()),
            ghosts: BTreeMap::new(),
            gives_copies_up: false,
            is_endangered: true,
            lives: RunState::default(),
            first_images: None,
            locals,
            next_fault: 0,
            is_disk_full: false,
            strays: 0,
            paused: 0,
            results: BTreeMap::new(),
            stop: None,
            over_at: None,
            progress_at: 0,
            settled: None,
            ends: BTreeMap::new(),
            log: Log::new(is_logged),
            counts: Counts::default(),
            plan,
        }
    }

    /// Everybody is started, server 0 not always first.
    fn begin(&mut self) {
        let places: Vec<Place> = self.processes.keys().copied().collect();
        let spread = if self.rng.below(4) == 0 { 4_000_000 } else { 200_000 };
        let is_there = |place: &Place| !matches!(place, Place::Worker(w) if w.0 >= self.config.workers);
        for place in places.into_iter().filter(is_there) {
            let at = self.rng.below(spread);
            self.queue.push(at, Happening::Start(place));
        }
        self.queue.push(watch::EVERY, Happening::Watch);
    }

    /// Whose doing it is, if it waits while that process is stopped.
    fn owner(&self, happening: &Happening) -> Option<Place> {
        Some(match happening {
            Happening::Arrival { stream, way } => self.net.ends_of(*stream, *way).1,
            Happening::Reach { from, .. } => *from,
            Happening::Idle { connection, end, .. } | Happening::Closed { connection, end, .. } => {
                self.net.connections[*connection].place(*end)
            }
            Happening::StreamEnded { stream } => self.net.ends_of(*stream, network::UP).1,
            Happening::ShardTick(server, ..)
            | Happening::Again(server, ..)
            | Happening::Dial { server, .. }
            | Happening::Late { server, .. }
            | Happening::PartWritten { server, .. } => Place::Server(*server),
            Happening::Tick(_)
            | Happening::Deadline(_)
            | Happening::Stored(_)
            | Happening::Restore { .. }
            | Happening::ManifestWritten { .. }
            | Happening::Exited { .. } => server::FIRST,
            Happening::Made { server, .. } => Place::Server(*server),
            Happening::Farewell { server, .. } => Place::Server(*server),
            Happening::Computed { worker, .. }
            | Happening::JoinAgain { worker, .. }
            | Happening::Silence { worker, .. }
            | Happening::Heard { worker, .. }
            | Happening::Beat { worker, .. }
            | Happening::Word { worker, .. }
            | Happening::Unheard { worker, .. } => Place::Worker(*worker),
            Happening::Start(_) | Happening::Healed { .. } | Happening::Resumed(_) | Happening::Watch => {
                return None;
            }
        })
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(owner) = self.owner(&happening) {
            let process = self.processes[&owner];
            if process.is_running && process.is_paused(self.now) {
                self.queue.push(process.paused.1, happening);
                return;
            }
        }
        match happening {
            Happening::Arrival { stream, way } => self.arrival(stream, way),
            Happening::Start(place) => self.start(place),
            Happening::Reach { from, life, to, is_done } => self.reach(from, life, to, is_done),
            Happening::Idle { connection, end, since } => self.idle(connection, end, since),
            Happening::Closed { connection, end, is_word } => self.closed(connection, end, is_word),
            Happening::StreamEnded { stream } => self.stream_ended(stream),
            Happening::Healed { from, to } => self.healed(from, to),
            Happening::Resumed(place) => self.resumed(place),
            Happening::ShardTick(server, shard, life) => self.shard_tick(server, shard, life),
            Happening::Dial { server, shard, lineage, is_done } => self.dial(server, shard, lineage, is_done),
            Happening::Late { server, shard, told } => self.late(server, shard, *told),
            Happening::Tick(life) => self.tick(life),
            Happening::Deadline(at) => self.at_deadline(at),
            Happening::Stored(lineage) => self.stored(lineage),
            Happening::PartWritten { lineage, checkpoint, server, shard, life } => {
                self.part_written((lineage, checkpoint), server, shard, life)
            }
            Happening::ManifestWritten { lineage, number, life } => {
                self.manifest_written(lineage, number, life)
            }
            Happening::Restore { life } => self.restore(life),
            Happening::Made { server, life, lineage } => self.made(server, life, lineage),
            Happening::Farewell { server, until } => self.farewell(server, until),
            Happening::Computed { worker, life } => self.computed(worker, life),
            Happening::JoinAgain { worker, life } => self.join_again(worker, life),
            Happening::Silence { worker, life, request } => self.silence(worker, life, request),
            Happening::Heard { worker, life } => self.heard(worker, life),
            Happening::Unheard { worker, life } => self.unheard(worker, life),
            Happening::Beat { worker, life, control } => self.beat(worker, life, control),
            Happening::Word { worker, life, request } => self.unheard_by_shards(worker, life, request),
            Happening::Exited { worker, life } => {
                let (session, how) = (server::LAUNCHER, "its process ended".into());
                self.coordinate(coordinator::Event::Exited { session, worker, process: life, how });
            }
            Happening::Again(server, shard, request) => self.again(server, shard, *request),
            Happening::Watch => self.watch(),
        }
    }

    /// Sends a message on a stream.
    fn send(&mut self, stream: usize, way: usize, message: Message) {
        if let Some(arrives) = self.net.send(self.now, stream, way, message) {
            self.queue.push(arrives, Happening::Arrival { stream, way });
        }
    }

    fn process(&self, place: Place) -> Process {
        self.processes[&place]
    }

    fn process_mut(&mut self, place: Place) -> &mut Process {
        self.processes.get_mut(&place).expect("every place has a process")
    }

    /// The time by the clock of a process.
    fn local(&self, place: Place) -> Time {
        Time(self.processes[&place].local(self.now))
    }

    /// When so much has passed by the clock of a process.
    fn after(&self, place: Place, local: u64) -> u64 {
        self.now + self.processes[&place].until(local)
    }

    fn is_running(&self, place: Place) -> bool {
        self.processes[&place].is_running
    }

    fn is_done(&self) -> bool {
        self.over_at.is_some()
            && self.processes.values().all(|p| !p.is_running)
            && self.seats.iter().all(|seat| !seat.is_due)
    }
}

/// Plays a run and verifies everything that must hold in it, however it ends.
///
/// # Panics
/// With a sentence that says what did not hold.
pub fn verified(config: &Config, is_logged: bool) -> Played {
    let mut played = play(config, is_logged);
    LINES.set(std::mem::take(&mut played.log));
    let log = PrintedInPanic(is_logged);
    for run in &played.before {
        played.counts.merge(&crate::check::verify(run, &config.problem));
    }
    let counts = crate::check::verify(&played.run, &config.problem);
    played.counts.merge(&counts);
    match &played.run.stop {
        Stop::Completed => played.counts.add("completed", 1),
        Stop::Failed { reason } => {
            assert!(!config.must_complete(), "the run had to get over what went wrong, and ended: {reason}");
            assert!(!reason.is_empty(), "a run that fails says why");
            played.counts.add("failed by name", 1);
        }
    }
    drop(log);
    played.log = LINES.take();
    played
}
