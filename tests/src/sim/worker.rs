//! Plays the part of the worker processes: join, ask, compute, join again, leave, as the real client does.

use windlass_common::ids::{Incarnation, Sequence, ServerId, ShardId, WorkerId};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{Body, Resume, WorkerReport};
use windlass_ps_core::shard::{self, Reply};
use windlass_ps_core::{SessionId, coordinator};

use super::delivery::How;
use super::network::{Kind, Place, UP};
use super::server::CONNECT;
use super::{Happening, World};
use crate::cluster::driver::{Driver, State, Wish};
use crate::cluster::links::Message;

/// A peer that says nothing for so long is given up.
const SILENCE: u64 = 30_000_000;
/// How often one request is taken up again over new connections.
const REJOINS_MAX: u32 = 5;
/// The pause before the first time; it grows with each.
const REJOIN_PAUSE: u64 = 100_000;
/// How long the last word may take to arrive.
const FAREWELL: u64 = 2_000_000;

/// Where a worker's process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no process.
    Off,
    /// It tries to reach the coordinator.
    Connecting,
    /// It has asked to take part.
    Joining,
    /// It tries to reach the other servers.
    Reaching,
    /// It computes, or waits for answers.
    Working,
    /// It has lost a connection, and is about to join again.
    Pausing,
    /// It has said its last word.
    Leaving,
}

/// A worker's place in the cluster; its lives follow one another.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) life: u32,
    phase: Phase,
    driver: Option<Driver>,
    control: Option<usize>,
    /// To each server, as far as it has been reached.
    connections: Vec<Option<usize>>,
    /// To each shard.
    streams: Vec<usize>,
    welcome: Option<(Resume, Incarnation)>,
    /// What the coordinator has said to end it.
    stopped: Option<String>,
    rejoins: u32,
    /// Until when it tries to reach who it has to.
    pub(super) deadline: u64,
    /// Requests made, by which one knows whether an old one has been answered.
    request: u64,
    /// When each shard was heard last, and the coordinator.
    heard: Vec<u64>,
    heard_control: u64,
    pub(super) last_push: Option<Sequence>,
    computed: u64,
    restarts: u32,
    /// Whether it is about to be started again.
    pub(super) is_due: bool,
}

impl Seat {
    pub(super) fn new(restarts: u32) -> Self {
        Self {
            life: 0,
            phase: Phase::Off,
            driver: None,
            control: None,
            connections: Vec::new(),
            streams: Vec::new(),
            welcome: None,
            stopped: None,
            rejoins: 0,
            deadline: 0,
            request: 0,
            heard: Vec::new(),
            heard_control: 0,
            last_push: None,
            computed: 0,
            restarts,
            is_due: false,
        }
    }

    /// Whether this life still tries to reach that server.
    pub(super) fn reaches(&self, life: u32, to: ServerId) -> bool {
        self.life == life
            && match self.phase {
                Phase::Connecting => to == ServerId(0),
                Phase::Reaching => self.connections[to.index()].is_none(),
                _ => false,
            }
    }

    fn is_waiting(&self) -> bool {
        self.phase == Phase::Working && self.driver.as_ref().is_some_and(Driver::is_busy)
    }

    /// What it is about, in words.
    pub(super) fn in_words(&self) -> String {
        let driver = self.driver.as_ref().map_or_else(String::new, Driver::waits_for);
        format!("{:?} {driver}", self.phase)
    }
}

impl World<'_> {
    fn seat(&mut self, worker: WorkerId) -> &mut Seat {
        &mut self.seats[worker.index()]
    }

    pub(super) fn start_worker(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        self.seat(worker).is_due = false;
        if self.over_at.is_some() {
            return;
        }
        self.log.note(self.now, || format!("{place} starts"));
        self.progress_at = self.now;
        let process = self.process_mut(place);
        process.is_running = true;
        process.paused = (0, 0);
        let seat = self.seat(worker);
        *seat = Seat { life: seat.life + 1, request: seat.request + 1, ..Seat::new(seat.restarts) };
        self.connect_worker(worker);
    }

    fn connect_worker(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        let deadline = self.after(place, CONNECT);
        let servers = self.config.servers as usize;
        let seat = self.seat(worker);
        seat.phase = Phase::Connecting;
        seat.control = None;
        seat.stopped = None;
        seat.connections = vec![None; servers];
        seat.streams.clear();
        seat.deadline = deadline;
        let life = seat.life;
        self.reach(place, life, ServerId(0), false);
    }

    pub(super) fn worker_reached(&mut self, worker: WorkerId, connection: usize) {
        let server = self.net.connections[connection].server;
        self.seat(worker).connections[server.index()] = Some(connection);
        if self.seat(worker).phase == Phase::Connecting {
            let control = self.net.stream(Kind::Worker(worker), Some(connection));
            let session = SessionId(control as u64);
            let now = self.now;
            let seat = self.seat(worker);
            seat.control = Some(control);
            seat.phase = Phase::Joining;
            seat.heard_control = now;
            self.expect_answer(worker);
            let joined = coordinator::Event::WorkerJoined { session, worker };
            self.send(control, UP, Message::Coordinator(joined));
        } else if self.seat(worker).connections.iter().all(Option::is_some) {
            self.take_up_work(worker);
        }
    }

    /// From now on somebody has to say something every now and then.
    fn expect_answer(&mut self, worker: WorkerId) {
        let at = self.after(Place::Worker(worker), SILENCE);
        let seat = self.seat(worker);
        seat.request += 1;
        let (life, request) = (seat.life, seat.request);
        self.queue.push(at, Happening::Silence { worker, life, request });
    }

    pub(super) fn worker_told(
        &mut self,
        worker: WorkerId,
        stream: usize,
        body: Body,
        incarnation: Incarnation,
    ) {
        let now = self.now;
        let place = Place::Worker(worker);
        let seat = self.seat(worker);
        if seat.control != Some(stream) {
            return;
        }
        seat.heard_control = now;
        match body {
            Body::NotYet { .. } => {}
            Body::Welcome(welcome) => {
                assert_eq!(seat.phase, Phase::Joining, "{worker} is welcomed when it has asked");
                seat.welcome = Some((welcome.next, incarnation));
                seat.phase = Phase::Reaching;
                let life = seat.life;
                self.seat(worker).deadline = self.after(place, CONNECT);
                if self.config.servers == 1 {
                    self.take_up_work(worker);
                }
                for server in (1..self.config.servers).map(ServerId) {
                    self.reach(place, life, server, false);
                }
            }
            Body::Stop(stop) => self.worker_stopped(worker, format!("the run has ended: {stop:?}")),
            Body::Refused(reason) => self.worker_stopped(worker, reason.to_string()),
            other => panic!("{worker} is told {other:?}"),
        }
    }

    fn worker_stopped(&mut self, worker: WorkerId, why: String) {
        let seat = self.seat(worker);
        let notices = seat.phase == Phase::Joining || seat.is_waiting();
        seat.stopped = Some(why.clone());
        if notices {
            self.end(Place::Worker(worker), why, false);
        }
    }

    /// It has reached everyone, and asks for what it needs next.
    fn take_up_work(&mut self, worker: WorkerId) {
        let connections = self.seat(worker).connections.clone();
        let shards = (0..self.config.shards()).map(ShardId);
        let streams: Vec<usize> = shards
            .map(|shard| {
                let server = self.plan.cluster.server_of(shard);
                self.net.stream(Kind::Shard(worker, shard), connections[server.index()])
            })
            .collect();
        let sessions: Vec<SessionId> = streams.iter().map(|&s| SessionId(s as u64)).collect();
        let seat = &mut self.seats[worker.index()];
        seat.streams = streams;
        seat.phase = Phase::Working;
        seat.heard = vec![self.now; sessions.len()];
        if let Some(why) = seat.stopped.take() {
            self.end(Place::Worker(worker), why, false);
            return;
        }
        let (next, incarnation) = seat.welcome.expect("it has been welcomed");
        let mut driver = match seat.driver.take() {
            Some(driver) => {
                self.counts.add("joined again", 1);
                driver.again(sessions)
            }
            None => Driver::new(worker, self.run, &self.plan, sessions, false),
        };
        let mut wishes = Vec::new();
        driver.welcome(next, incarnation, &mut self.gradients, &mut wishes);
        seat.driver = Some(driver);
        self.grant(worker, wishes);
    }

    pub(super) fn worker_answered(&mut self, worker: WorkerId, shard: ShardId, stream: usize, reply: Reply) {
        let now = self.now;
        let seat = self.seat(worker);
        if seat.phase != Phase::Working || seat.streams.get(shard.index()) != Some(&stream) {
            return;
        }
        seat.heard[shard.index()] = now;
        let mut wishes = Vec::new();
        if let Some(driver) = &mut seat.driver {
            driver.reply(shard, reply, &mut wishes);
            if driver.state == State::Succeeded {
                self.end(Place::Worker(worker), "it has been succeeded".into(), false);
                return;
            }
        }
        self.grant(worker, wishes);
    }

    /// Does what a worker's driver wants.
    fn grant(&mut self, worker: WorkerId, wishes: Vec<Wish>) {
        let place = Place::Worker(worker);
        let (mut has_asked, mut is_broken) = (false, false);
        for wish in wishes {
            match wish {
                Wish::Request(shard, request) => {
                    let stream = self.seat(worker).streams[shard.index()];
                    if let Some((push, _)) = &request.push {
                        self.seat(worker).last_push = Some(push.sequence);
                    }
                    let now = self.now;
                    self.seat(worker).heard[shard.index()] = now;
                    has_asked = true;
                    if self.is_open(stream) {
                        self.send(stream, UP, Message::Shard(shard::Event::Request(request)));
                    } else {
                        is_broken = true;
                    }
                }
                Wish::Compute => {
                    let at = self.now + self.computing(worker);
                    let seat = self.seat(worker);
                    seat.rejoins = 0;
                    let life = seat.life;
                    self.queue.push(at, Happening::Computed { worker, life });
                }
                Wish::Dropped(client, step) => {
                    let control = self.seat(worker).control.filter(|&c| self.is_open(c));
                    let Some(control) = control else {
                        self.end(place, "it could not say that a client has gone".into(), false);
                        return;
                    };
                    self.counts.add("dropped out", 1);
                    let session = SessionId(control as u64);
                    let dropped = coordinator::Event::Dropped { session, client, step };
                    self.send(control, UP, Message::Coordinator(dropped));
                }
                Wish::Leave { steps } => {
                    let control = self.seat(worker).control.filter(|&c| self.is_open(c));
                    let Some(control) = control else {
                        self.end(place, "it could not leave in good order".into(), false);
                        return;
                    };
                    let at = self.after(place, FAREWELL);
                    let seat = self.seat(worker);
                    seat.phase = Phase::Leaving;
                    let life = seat.life;
                    self.queue.push(at, Happening::Unheard { worker, life });
                    let session = SessionId(control as u64);
                    let report = WorkerReport { finished: true, steps, ..WorkerReport::default() };
                    let left = coordinator::Event::WorkerLeft { session, report };
                    self.send(control, UP, Message::Coordinator(left));
                }
            }
        }
        if !has_asked {
            return;
        }
        self.expect_answer(worker);
        if let Some(why) = self.seat(worker).stopped.take() {
            self.end(place, why, false);
        } else if is_broken || !self.seat(worker).control.is_some_and(|c| self.is_open(c)) {
            self.broken(worker);
        }
    }

    fn is_open(&self, stream: usize) -> bool {
        let connection = self.net.streams[stream].connection;
        connection.is_some_and(|c| self.net.connections[c].ends[UP].is_open())
    }

    /// How long the next step takes.
    fn computing(&mut self, worker: WorkerId) -> u64 {
        let compute = self.config.compute;
        let seat = self.seat(worker);
        seat.computed += 1;
        let key = u64::from(worker.0) << 40 | u64::from(seat.life) << 24 | seat.computed;
        let slow = compute.slow.filter(|(slow, _)| *slow == worker).map_or(1, |(_, factor)| factor);
        let mean = (compute.mean * slow) as f64;
        if compute.is_exponential {
            let unit = Rng::new(self.config.seed, Purpose::Simulation(1 << 60 | key)).unit();
            (-mean * libm::log(unit)).min(20.0 * mean) as u64
        } else {
            mean as u64
        }
    }

    pub(super) fn computed(&mut self, worker: WorkerId, life: u32) {
        let seat = &mut self.seats[worker.index()];
        if seat.life != life || seat.phase != Phase::Working {
            return;
        }
        if let Some(why) = seat.stopped.take() {
            self.end(Place::Worker(worker), why, false);
            return;
        }
        let driver = seat.driver.as_mut().expect("who computes has values");
        let mut wishes = Vec::new();
        driver.compute(&self.config.problem, &mut self.gradients, &mut wishes);
        self.log.note(self.now, || format!("{worker} has computed {}", driver.steps()));
        self.grant(worker, wishes);
    }

    /// A worker finds a fault of its own, and ends the run for all.
    pub(super) fn abort(&mut self, worker: WorkerId) {
        let seat = self.seat(worker);
        let control = seat.control.filter(|_| seat.phase == Phase::Working);
        if let Some(control) = control.filter(|&c| self.is_open(c) && self.is_running(Place::Worker(worker)))
        {
            let session = Some(SessionId(control as u64));
            let reason = format!("{worker}: the loss is no number");
            self.send(control, UP, Message::Coordinator(coordinator::Event::Abort { session, reason }));
        }
    }

    /// A connection of a worker is gone.
    pub(super) fn worker_lost(&mut self, worker: WorkerId, connection: usize) {
        let seat = self.seat(worker);
        if !seat.connections.contains(&Some(connection)) {
            return;
        }
        let why = match seat.phase {
            Phase::Joining | Phase::Reaching => "a connection was lost while it joined",
            Phase::Leaving => "a connection was lost before its last word was heard",
            Phase::Working if seat.is_waiting() => return self.broken(worker),
            // It notices when it asks for something next.
            _ => return,
        };
        self.end(Place::Worker(worker), why.into(), false);
    }

    /// A request cannot be answered any more: it is taken up again.
    fn broken(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        let seat = self.seat(worker);
        seat.rejoins += 1;
        if seat.rejoins > REJOINS_MAX {
            self.end(place, "its connections broke too often".into(), false);
            return;
        }
        seat.phase = Phase::Pausing;
        let (life, pause) = (seat.life, REJOIN_PAUSE * u64::from(seat.rejoins));
        let at = self.after(place, pause);
        self.queue.push(at, Happening::JoinAgain { worker, life });
    }

    pub(super) fn join_again(&mut self, worker: WorkerId, life: u32) {
        let seat = self.seat(worker);
        if seat.life != life || seat.phase != Phase::Pausing {
            return;
        }
        for connection in self.seat(worker).connections.clone().into_iter().flatten() {
            self.close(connection, UP, How::ByWord);
        }
        self.connect_worker(worker);
    }

    /// Nobody has said anything for too long: in a run in which nobody was stopped that may not happen.
    pub(super) fn silence(&mut self, worker: WorkerId, life: u32, request: u64) {
        let place = Place::Worker(worker);
        let patience = self.processes[&place].until(SILENCE) - 1;
        let seat = &self.seats[worker.index()];
        if seat.life != life || seat.request != request || !self.is_running(place) {
            return;
        }
        let heard = match seat.phase {
            Phase::Joining => seat.heard_control,
            Phase::Working => {
                let Some(driver) = &seat.driver else { return };
                let awaited = (0..seat.heard.len()).filter(|&shard| driver.awaits(shard));
                let Some(heard) = awaited.map(|shard| seat.heard[shard]).min() else { return };
                heard
            }
            _ => return,
        };
        if self.now >= heard + patience {
            let was_stopped = self.processes.values().any(|p| p.paused.1 > heard);
            assert!(was_stopped, "nobody says anything to {worker} for 30 s: {}", self.who_waits());
            self.counts.add("silent", 1);
            self.end(place, "nothing was said for 30 s".into(), false);
            return;
        }
        self.queue.push(heard + patience, Happening::Silence { worker, life, request });
    }

    /// It has gone on after it was stopped; what was said meanwhile is yet to be read.
    pub(super) fn worker_resumed(&mut self, place: Place) {
        let Place::Worker(worker) = place else { return };
        let now = self.now;
        let seat = self.seat(worker);
        seat.heard_control = now;
        seat.heard.iter_mut().for_each(|heard| *heard = now);
    }

    pub(super) fn heard(&mut self, worker: WorkerId, life: u32) {
        if self.seat(worker).life == life && self.seat(worker).phase == Phase::Leaving {
            self.end(Place::Worker(worker), "it has left".into(), true);
        }
    }

    pub(super) fn unheard(&mut self, worker: WorkerId, life: u32) {
        if self.seat(worker).life == life && self.seat(worker).phase == Phase::Leaving {
            self.end(Place::Worker(worker), "its last word was not heard within 2 s".into(), false);
        }
    }

    /// Its process has ended; whoever has started it may do so again.
    pub(super) fn worker_ended(&mut self, worker: WorkerId, is_good: bool) {
        let (least, most) = self.config.launcher.after;
        let at = self.now + least + self.rng.below(most - least);
        let is_over = self.over_at.is_some();
        let seat = self.seat(worker);
        seat.phase = Phase::Off;
        seat.driver = None;
        if !is_good && seat.restarts > 0 && !is_over {
            seat.restarts -= 1;
            seat.is_due = true;
            self.counts.add("restarts", 1);
            self.queue.push(at, Happening::Start(Place::Worker(worker)));
        }
    }
}
