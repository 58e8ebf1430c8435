//! Plays the part of the worker processes: join, ask, compute, join again, leave, as the real client does.

use std::collections::BTreeSet;

use windlass_common::ids::{Incarnation, Lineage, Sequence, ServerId, ShardId, WorkerId};
use windlass_common::wire::{Begins, Body, Reject, Resume};
use windlass_ps_core::{SessionId, coordinator};

use super::delivery::How;
use super::network::{Kind, Place, UP};
use super::server::{CONNECT, PATIENCE};
use super::{Happening, World};
use crate::cluster::driver::Driver;
use crate::cluster::links::Message;

/// How often one request is taken up again over new connections.
const REJOINS_MAX: u32 = 5;
/// The pause before the first time; it grows with each.
const REJOIN_PAUSE: u64 = 100_000;
/// A worker says this often that it lives, and four times in each lease.
const HEARTBEAT: u64 = 2_000_000;
/// Where a worker's process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
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
    pub(super) phase: Phase,
    pub(super) driver: Option<Driver>,
    pub(super) control: Option<usize>,
    /// To each server, as far as it has been reached.
    pub(super) connections: Vec<Option<usize>>,
    /// To each shard.
    pub(super) streams: Vec<usize>,
    /// The server that has each shard.
    pub(super) primaries: Vec<ServerId>,
    pub(super) welcome: Option<(Resume, Incarnation, Lineage)>,
    /// Whether the lineage that it has been welcomed in began with copies.
    pub(super) from_copies: bool,
    /// What the coordinator has said to end it.
    pub(super) stopped: Option<String>,
    /// The coordinator has said that this life takes no part any more, and the next may.
    pub(super) is_given_up: bool,
    /// Somebody has told it to go.
    pub(super) is_to_leave: bool,
    pub(super) rejoins: u32,
    /// Until when it tries to reach who it has to.
    pub(super) deadline: u64,
    /// Requests made, by which one knows whether an old one has been answered.
    pub(super) request: u64,
    /// When each shard was heard last, and the coordinator.
    pub(super) heard: Vec<u64>,
    pub(super) heard_control: u64,
    pub(super) last_push: Option<Sequence>,
    pub(super) computed: u64,
    pub(super) restarts: u32,
    /// Whether it is about to be started again.
    pub(super) is_due: bool,
    /// It has ended in good order.
    pub(super) has_left: bool,
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
            primaries: Vec::new(),
            welcome: None,
            from_copies: false,
            stopped: None,
            is_given_up: false,
            is_to_leave: false,
            rejoins: 0,
            deadline: 0,
            request: 0,
            heard: Vec::new(),
            heard_control: 0,
            last_push: None,
            computed: 0,
            restarts,
            is_due: false,
            has_left: false,
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

    fn has_reached_all(&self) -> bool {
        self.primaries.iter().all(|server| self.connections[server.index()].is_some())
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.phase == Phase::Working && self.driver.as_ref().is_some_and(Driver::is_busy)
    }

    /// Whether it has been at work in this life, and is about to be again.
    pub(super) fn joins_again(&self) -> bool {
        let joins =
            matches!(self.phase, Phase::Pausing | Phase::Connecting | Phase::Joining | Phase::Reaching);
        joins && self.driver.is_some()
    }

    /// What it is about, in words.
    pub(super) fn in_words(&self) -> String {
        let driver = self.driver.as_ref().map_or_else(String::new, Driver::waits_for);
        format!("{:?} {driver}", self.phase)
    }
}

impl World<'_> {
    pub(super) fn seat(&mut self, worker: WorkerId) -> &mut Seat {
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

    /// For how long it tries to reach a server.
    fn patience(&self) -> u64 {
        if self.config.survives_servers() { PATIENCE } else { CONNECT }
    }

    fn connect_worker(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        let deadline = self.after(place, self.patience());
        let servers = self.config.servers as usize;
        let seat = self.seat(worker);
        seat.phase = Phase::Connecting;
        seat.control = None;
        seat.stopped = None;
        seat.is_given_up = false;
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
            let life = seat.life;
            seat.control = Some(control);
            seat.phase = Phase::Joining;
            seat.heard_control = now;
            self.expect_answer(worker);
            let joined = coordinator::Event::WorkerJoined { session, worker, process: life };
            self.send(control, UP, Message::Coordinator(joined));
        } else if self.seat(worker).has_reached_all() {
            self.take_up_work(worker);
        }
    }

    pub(super) fn worker_told(
        &mut self,
        worker: WorkerId,
        stream: usize,
        body: Body,
        (incarnation, lineage): (Incarnation, Lineage),
    ) {
        let now = self.now;
        let place = Place::Worker(worker);
        let seat = self.seat(worker);
        if seat.control != Some(stream) {
            return;
        }
        seat.heard_control = now;
        match body {
            Body::NotYet { .. } | Body::Hosts { .. } => {}
            Body::Refused(Reject::LeaseExpired { .. } | Reject::Stalled { .. }) => {
                seat.is_given_up = true;
                if seat.is_waiting() {
                    self.broken(worker);
                }
            }
            Body::Welcome(welcome) => {
                assert_eq!(seat.phase, Phase::Joining, "{worker} is welcomed when it has asked");
                seat.welcome = Some((welcome.next, incarnation, lineage));
                seat.from_copies = matches!(welcome.begins, Begins::Copies { .. });
                seat.primaries = welcome.seats.iter().map(|seats| seats.primary).collect();
                seat.phase = Phase::Reaching;
                let life = seat.life;
                self.seat(worker).deadline = self.after(place, self.patience());
                if self.seat(worker).has_reached_all() {
                    self.take_up_work(worker);
                    return;
                }
                let primaries: BTreeSet<ServerId> = self.seat(worker).primaries.iter().copied().collect();
                for server in primaries.into_iter().filter(|server| server.0 > 0) {
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
        let (connections, primaries) =
            (self.seat(worker).connections.clone(), self.seat(worker).primaries.clone());
        let shards = (0..self.config.shards()).map(ShardId);
        let streams: Vec<usize> = shards
            .map(|shard| {
                let server = primaries[shard.index()];
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
        let (next, incarnation, lineage) = seat.welcome.expect("it has been welcomed");
        let from_copies = seat.from_copies;
        let mut driver = match seat.driver.take() {
            Some(driver) => {
                self.counts.add("joined again", 1);
                if driver.lineage() != lineage {
                    self.counts.add("workers went back", 1);
                }
                driver.again(sessions)
            }
            None => Driver::new((worker, seat.life), self.run, &self.plan, sessions, false),
        };
        let mut wishes = Vec::new();
        let era = self.eras.get_mut(&lineage).expect("every lineage has a history");
        driver.welcome((next, from_copies), incarnation, lineage, &mut era.gradients, &mut wishes);
        seat.driver = Some(driver);
        self.beat_next(worker);
        self.grant(worker, wishes);
    }

    fn beat_next(&mut self, worker: WorkerId) {
        let at = self.after(Place::Worker(worker), HEARTBEAT.min(self.config.lease_s * 250_000));
        let (life, control) = (self.seat(worker).life, self.seat(worker).control);
        self.queue.push(at, Happening::Beat { worker, life, control });
    }

    /// It says that it lives, as long as it has this stream.
    pub(super) fn beat(&mut self, worker: WorkerId, life: u32, control: Option<usize>) {
        let seat = &self.seats[worker.index()];
        let is_at_work = matches!(seat.phase, Phase::Working | Phase::Pausing);
        let (Some(stream), Some(driver)) = (control, &seat.driver) else { return };
        if seat.life == life && seat.control == control && is_at_work && self.is_open(stream) {
            let (session, step) = (SessionId(stream as u64), driver.step());
            let event = coordinator::Event::Heartbeat { session, step, bytes_up: 0, bytes_down: 0 };
            self.send(stream, UP, Message::Coordinator(event));
            self.beat_next(worker);
        }
    }

    /// Shards do not hear it any more, and the coordinator has not said why.
    pub(super) fn unheard_by_shards(&mut self, worker: WorkerId, life: u32, request: u64) {
        let seat = self.seat(worker);
        if seat.life == life && seat.request == request && seat.phase == Phase::Working {
            self.broken(worker);
        }
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
    pub(super) fn broken(&mut self, worker: WorkerId) {
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
        let was_in = seat.driver.take().map(|driver| driver.lineage());
        seat.has_left = is_good;
        let life = seat.life;
        if self.config.launcher.tells {
            let at = self.now + self.rng.below(50_000);
            self.queue.push(at, Happening::Exited { worker, life });
        }
        // What it has left is no more, or is about to be.
        let is_in_vain = self.is_restoring || was_in.is_some_and(|lineage| lineage < self.lineage);
        if is_good && is_in_vain && !is_over && worker.0 < self.config.workers {
            self.start_again(worker);
        }
        let seat = self.seat(worker);
        if !is_good && seat.restarts > 0 && !is_over {
            seat.restarts -= 1;
            seat.is_due = true;
            self.counts.add("restarts", 1);
            self.queue.push(at, Happening::Start(Place::Worker(worker)));
        }
    }
}
