//! Plays what a worker does between two answers: ask, compute, notice that a connection is gone or a peer silent.

use windlass_common::ids::{ShardId, WorkerId};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::WorkerReport;
use windlass_ps_core::shard::{self, Reply};
use windlass_ps_core::{SessionId, coordinator};

use super::network::{Place, UP};
use super::worker::Phase;
use super::{Happening, World};
use crate::cluster::driver::{State, Wish};
use crate::cluster::links::Message;

/// A peer that says nothing for so long is given up.
const SILENCE: u64 = 30_000_000;
/// How long the coordinator has to say why shards do not hear a worker any more.
const WORD: u64 = 2_000_000;
/// How long the last word may take to arrive.
const FAREWELL: u64 = 2_000_000;

impl World<'_> {
    pub(super) fn worker_answered(&mut self, worker: WorkerId, shard: ShardId, stream: usize, reply: Reply) {
        let now = self.now;
        let seat = &mut self.seats[worker.index()];
        if seat.phase != Phase::Working || seat.streams.get(shard.index()) != Some(&stream) {
            return;
        }
        seat.heard[shard.index()] = now;
        let mut wishes = Vec::new();
        if let Some(driver) = &mut seat.driver {
            let era = self.eras.get_mut(&driver.lineage()).expect("every lineage has a history");
            driver.reply(shard, reply, &mut era.gradients, &mut wishes);
            if driver.state == State::Succeeded {
                // The coordinator knows why, and is about to say so.
                driver.state = State::Training;
                let (life, request) = (seat.life, seat.request);
                let at = self.after(Place::Worker(worker), WORD);
                self.queue.push(at, Happening::Word { worker, life, request });
                return;
            }
        }
        self.grant(worker, wishes);
    }

    /// Does what a worker's driver wants.
    pub(super) fn grant(&mut self, worker: WorkerId, wishes: Vec<Wish>) {
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
                Wish::Give(shard, given) => {
                    let stream = self.seat(worker).streams[shard.index()];
                    self.counts.add("given for checkpoints", 1);
                    if self.is_open(stream) {
                        self.send(stream, UP, Message::Shard(shard::Event::Given(given)));
                    }
                }
                Wish::Compute => {
                    let at = self.now + self.computing(worker);
                    let seat = self.seat(worker);
                    seat.rejoins = 0;
                    let life = seat.life;
                    self.queue.push(at, Happening::Computed { worker, life });
                }
                Wish::ThrownAway => self.counts.add("thrown away", 1),
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
                Wish::Leave { steps } => self.leave(worker, true, steps),
            }
        }
        if !has_asked {
            return;
        }
        self.expect_answer(worker);
        if let Some(why) = self.seat(worker).stopped.take() {
            self.end(place, why, false);
        } else if is_broken
            || self.seat(worker).is_given_up
            || !self.seat(worker).control.is_some_and(|c| self.is_open(c))
        {
            self.broken(worker);
        }
    }

    fn leave(&mut self, worker: WorkerId, finished: bool, steps: u64) {
        let place = Place::Worker(worker);
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
        let report = WorkerReport { finished, steps, ..WorkerReport::default() };
        let left = coordinator::Event::WorkerLeft { session, report };
        self.send(control, UP, Message::Coordinator(left));
    }

    /// Somebody tells a worker to go: it does when it notices, which is when it waits, or is about to.
    pub(super) fn leave_early(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        let seat = self.seat(worker);
        seat.is_to_leave = true;
        let notices = seat.is_waiting();
        if notices && self.is_running(place) && !self.processes[&place].is_paused(self.now) {
            self.leave(worker, false, 0);
        }
    }

    pub(super) fn is_open(&self, stream: usize) -> bool {
        let connection = self.net.streams[stream].connection;
        connection.is_some_and(|c| self.net.connections[c].ends[UP].is_open())
    }

    /// How long the next step takes.
    pub(super) fn computing(&mut self, worker: WorkerId) -> u64 {
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
        if seat.life != life || !matches!(seat.phase, Phase::Working) && !seat.joins_again() {
            return;
        }
        if seat.joins_again() {
            let driver = seat.driver.as_mut().expect("who joins again has been at work");
            let (era, mut wishes) = (self.eras.get_mut(&driver.lineage()), Vec::new());
            let era = era.expect("every lineage has a history");
            driver.compute(&self.config.problem, &mut era.gradients, &mut wishes);
            assert!(wishes.is_empty(), "{worker} asks for nothing before it has joined again: {wishes:?}");
            return;
        }
        if let Some(why) = seat.stopped.take() {
            self.end(Place::Worker(worker), why, false);
            return;
        }
        let driver = seat.driver.as_mut().expect("who computes has values");
        if seat.is_to_leave {
            self.leave(worker, false, 0);
            return;
        }
        let mut wishes = Vec::new();
        let era = self.eras.get_mut(&driver.lineage()).expect("every lineage has a history");
        driver.compute(&self.config.problem, &mut era.gradients, &mut wishes);
        self.log.note(self.now, || format!("{worker} has computed {}", driver.steps()));
        self.grant(worker, wishes);
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

    /// From now on somebody has to say something every now and then.
    pub(super) fn expect_answer(&mut self, worker: WorkerId) {
        let at = self.after(Place::Worker(worker), SILENCE);
        let seat = self.seat(worker);
        seat.request += 1;
        let (life, request) = (seat.life, seat.request);
        self.queue.push(at, Happening::Silence { worker, life, request });
    }
}
