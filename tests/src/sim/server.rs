//! Plays the part of the server processes: the shards' threads, the coordinator's, and what each says to whom.

use windlass_common::ids::{Lineage, ServerId, ShardId};
use windlass_common::wire::{Body, Report, Stop};
use windlass_ps_core::coordinator::{self, Effect, Event};
use windlass_ps_core::{SessionId, Time};

use super::network::{DOWN, Kind, Place, UP};
use super::{Happening, STRAY, World};
use crate::cluster::links::Message;

/// The server that has the coordinator.
pub(super) const FIRST: Place = Place::Server(ServerId(0));
/// How often the coordinator is told the time.
const TICK: u64 = 200_000;
/// Whoever has started the processes.
pub(super) const LAUNCHER: SessionId = SessionId(STRAY - 3);
/// How long the last words may take to get out.
pub(super) const FAREWELL: u64 = 3_000_000;
/// A follower tries to reach the coordinator for so long.
pub(super) const CONNECT: u64 = 10_000_000;
/// The same, where servers that have ended come back.
pub(super) const PATIENCE: u64 = 40_000_000;
/// Between two attempts to reach a server.
const RETRY: u64 = 200_000;

/// What a server other than the first knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Follower {
    /// Its stream to the coordinator.
    pub(super) control: Option<usize>,
    /// Whether it has been welcomed, so that workers reach it.
    pub(super) is_welcome: bool,
    /// Until when it tries to reach the coordinator.
    pub(super) deadline: u64,
    /// How often its process has been started.
    pub(super) life: u32,
    /// How often it has tried to join.
    pub(super) tries: u32,
    /// That of its shards.
    pub(super) lineage: Lineage,
    /// Whether it has been told which shards it has, and takes requests for them.
    pub(super) serves: bool,
    /// It has been welcomed in this lineage, and reads what its shards begin with.
    pub(super) joins: Option<Lineage>,
}

impl Follower {
    /// Whether its stream to the coordinator is on this connection.
    pub(super) fn is_at(&self, net: &super::network::Net, connection: usize) -> bool {
        self.control.is_some_and(|stream| net.streams[stream].connection == Some(connection))
    }
}

impl World<'_> {
    pub(super) fn start(&mut self, place: Place) {
        match place {
            Place::Worker(worker) => self.start_worker(worker),
            Place::Server(server) => {
                if self.over_at.is_some() && self.followers[server.index()].life > 0 {
                    return;
                }
                let process = self.process_mut(place);
                (process.is_running, process.paused) = (true, (0, 0));
                self.progress_at = self.now;
                let follower = &mut self.followers[server.index()];
                follower.life += 1;
                let life = follower.life;
                self.log.note(self.now, || format!("{place} starts"));
                let is_here =
                    |id: &ShardId| self.has_replicas() || self.plan.cluster.server_of(*id) == server;
                let shards: Vec<ShardId> = (0..self.config.shards()).map(ShardId).filter(is_here).collect();
                for shard in shards {
                    let at = self.after(place, 1 + self.config.shard_tick * u64::from(shard.0 % 7) / 7);
                    self.queue.push(at, Happening::ShardTick(server, shard, life));
                }
                if life > 1 {
                    self.counts.add("servers started again", 1);
                    self.forget_connections(server);
                }
                if place == FIRST {
                    // A process that nobody waits for yet says at once what is wrong, and is started again.
                    self.writes_until = 0;
                    let at = self.after(FIRST, TICK);
                    self.queue.push(at, Happening::Tick(life));
                    if life == 1 && self.resumed.is_none() {
                        self.begin_coordinator();
                    } else {
                        let at = self.now + self.store.takes();
                        self.queue.push(at, Happening::Restore { life });
                    }
                } else {
                    self.connect_follower(server);
                }
            }
        }
    }

    /// A server tries to reach the coordinator, in order to join.
    pub(super) fn connect_follower(&mut self, server: ServerId) {
        let place = Place::Server(server);
        let patience = if self.config.survives_servers() { PATIENCE } else { CONNECT };
        let deadline = self.after(place, patience);
        self.backlog[server.index()].clear();
        let follower = &mut self.followers[server.index()];
        follower.tries += 1;
        (follower.control, follower.joins, follower.is_welcome) = (None, None, false);
        follower.deadline = deadline;
        let tries = follower.tries;
        self.reach(place, tries, ServerId(0), false);
    }

    /// Whether a process gets through to a server, there and back.
    pub(super) fn gets_through(&mut self, from: Place, to: ServerId) -> bool {
        let place = Place::Server(to);
        let process = self.process(place);
        process.is_running
            && !process.is_paused(self.now)
            && self.followers[to.index()].is_welcome
            && self.net.is_up(self.now, from, place)
            && self.net.is_up(self.now, place, from)
    }

    /// A process tries to reach a server; with `is_done` the handshake has been made.
    pub(super) fn reach(&mut self, from: Place, life: u32, to: ServerId, is_done: bool) {
        if !self.is_running(from) || !self.still_reaches(from, life, to) {
            return;
        }
        if self.gets_through(from, to) {
            if is_done {
                let connection = self.net.connect(from, to);
                self.reached(from, connection);
            } else {
                let at = self.now + self.net.round_trip(from, Place::Server(to)) * 3 / 2;
                self.queue.push(at, Happening::Reach { from, life, to, is_done: true });
            }
            return;
        }
        if self.now >= self.deadline_of(from) {
            let sentence = format!("{} cannot be reached in time", Place::Server(to));
            self.end(from, sentence, false);
            return;
        }
        let at = self.now + RETRY / 2 + self.rng.below(RETRY);
        self.queue.push(at, Happening::Reach { from, life, to, is_done: false });
    }

    fn still_reaches(&self, from: Place, life: u32, to: ServerId) -> bool {
        match from {
            Place::Worker(worker) => self.seats[worker.index()].reaches(life, to),
            Place::Server(server) => {
                let follower = self.followers[server.index()];
                follower.tries == life && follower.control.is_none()
            }
        }
    }

    fn deadline_of(&self, from: Place) -> u64 {
        match from {
            Place::Worker(worker) => self.seats[worker.index()].deadline,
            Place::Server(server) => self.followers[server.index()].deadline,
        }
    }

    fn reached(&mut self, from: Place, connection: usize) {
        match from {
            Place::Worker(worker) => self.worker_reached(worker, connection),
            Place::Server(server) => {
                let control = self.net.stream(Kind::Server(server), Some(connection));
                self.followers[server.index()].control = Some(control);
                let (session, address) = (SessionId(control as u64), from.to_string());
                let copies = self.copies_of(server);
                let joined = Event::ServerJoined { session, server, address, copies };
                self.send(control, UP, Message::Coordinator(joined));
            }
        }
    }

    /// The coordinator says something to a server.
    pub(super) fn follower_told(&mut self, server: ServerId, stream: usize, body: Body, lineage: Lineage) {
        let place = Place::Server(server);
        if self.followers[server.index()].control != Some(stream) {
            return;
        }
        match body {
            Body::Welcome(_) if !self.config.survives_servers() => {
                self.followers[server.index()].is_welcome = true;
            }
            Body::Welcome(welcome) => {
                self.welcomes[server.index()] = (welcome.seats, welcome.begins);
                let follower = &mut self.followers[server.index()];
                follower.joins = Some(lineage);
                let life = follower.life;
                let at = self.now + self.store.takes();
                self.queue.push(at, Happening::Made { server, life, lineage });
            }
            Body::Order { shard, order } => self.follower_ordered(server, shard, order),
            Body::Stop(stop) => self.end(place, format!("the run has ended: {stop:?}"), true),
            Body::Refused(reason) => self.end(place, reason.to_string(), false),
            other => panic!("{place} is told {other:?}"),
        }
    }

    pub(super) fn tick(&mut self, life: u32) {
        if self.is_running(FIRST) && self.followers[0].life == life {
            self.coordinate(Event::Tick);
            if self.has_replicas() && !self.is_restoring {
                self.tell_logged_if_due();
            }
            let at = self.after(FIRST, TICK);
            self.queue.push(at, Happening::Tick(life));
        }
    }

    pub(super) fn at_deadline(&mut self, at: Time) {
        let is_there = self.is_running(FIRST) && !self.is_restoring;
        if is_there && self.stop.is_none() && self.coordinator.deadline() == Some(at) {
            self.coordinate(Event::Tick);
            let goes_on = self.stop.is_none() && self.coordinator.deadline() == Some(at);
            assert!(!goes_on, "a round goes on after its deadline");
        }
    }

    pub(super) fn coordinate(&mut self, event: Event) {
        if !self.is_running(FIRST) || self.is_restoring {
            return;
        }
        let event = match event {
            Event::Report { shard, report: Report::Records(records) } if self.has_replicas() => {
                let report = Report::Records(self.written.take(shard, records));
                Event::Report { shard, report }
            }
            event => event,
        };
        let mut effects = Vec::new();
        let now = self.local(FIRST);
        self.coordinator.handle(now, event, &mut effects);
        for effect in effects {
            if let Effect::RollBack { why, keeps } = effect {
                self.roll_back(&why, keeps);
                return;
            }
            self.act(effect);
            if !self.is_running(FIRST) || self.is_restoring {
                return;
            }
        }
        let deadline = self.coordinator.deadline();
        if deadline != self.deadline {
            self.deadline = deadline;
            if let Some(deadline) = deadline {
                let at = self.after(FIRST, deadline.0.saturating_sub(now.0) + 1);
                self.queue.push(at, Happening::Deadline(deadline));
            }
        }
    }

    /// What has been recorded of this lineage.
    pub(super) fn era(&mut self) -> &mut super::restore::Era {
        self.eras.get_mut(&self.lineage).expect("every lineage has a history")
    }

    pub(super) fn stored(&mut self, lineage: Lineage) {
        if lineage != self.lineage {
            return;
        }
        let result = if self.is_disk_full { Err("the disk is full".into()) } else { Ok(()) };
        self.coordinate(coordinator::Event::Stored(result));
    }

    /// The coordinator's process goes when its last words are out, and at the latest then.
    pub(super) fn farewell(&mut self, server: ServerId, until: u64) {
        let place = Place::Server(server);
        if !self.is_running(place) {
            return;
        }
        let is_written = |stream: &super::network::Stream| {
            stream.ways[DOWN].queue.is_empty() || !matches!(stream.kind, Kind::Worker(_) | Kind::Server(_))
        };
        let open = self.net.open.iter().flat_map(|&c| &self.net.connections[c].streams);
        if self.now >= until || open.into_iter().all(|&s| is_written(&self.net.streams[s])) {
            let is_good = self.stop == Some(Stop::Completed);
            self.end(place, format!("the run has ended: {:?}", self.stop), is_good);
        } else {
            self.queue.push(self.now + 20_000, Happening::Farewell { server, until });
        }
    }
}
