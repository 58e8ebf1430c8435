//! Delivers what arrives, and ends connections on which nothing does.

use windlass_common::ids::ServerId;
use windlass_ps_core::{SessionId, coordinator, shard};

use super::network::{DOWN, End, Kind, Place, UP};
use super::{Happening, IDLE, World};
use crate::cluster::links::Message;

/// A peer is heard at least so often while it lives.
const KEEP_ALIVE: u64 = IDLE / 3;

/// How an end of a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// With a word to the peer.
    ByWord,
    /// By itself: the peer is told that there is no such connection when it speaks next.
    Silently,
    /// The process is no more: nobody tells the peer anything.
    ByDeath,
}

impl World<'_> {
    /// The first message of a way of a stream arrives, unless something is in its way.
    pub(super) fn arrival(&mut self, stream: usize, way: usize) {
        let (from, to) = self.net.ends_of(stream, way);
        let connection = self.net.streams[stream].connection;
        let this = &mut self.net.streams[stream].ways[way];
        let Some(first) = this.queue.front_mut() else { return };
        let mut is_gone = this.is_broken;
        if let Some(connection) = connection {
            let ends = &self.net.connections[connection].ends;
            is_gone |= ends[way].closed_at < first.departs || !ends[1 - way].is_open();
            let (stopped, resumed) = self.processes[&from].paused;
            if !is_gone && (stopped..resumed).contains(&first.departs) {
                let delay = first.arrives - first.departs;
                (first.departs, first.arrives) = (resumed, resumed + delay);
                let at = first.arrives.max(self.now);
                self.queue.push(at, Happening::Arrival { stream, way });
                return;
            }
        } else {
            is_gone |= !self.processes[&to].is_running;
        }
        if is_gone {
            this.is_broken = true;
            this.queue.clear();
            return;
        }
        if connection.is_some() && !self.net.is_up(self.now, from, to) {
            let at = self.net.again(self.now, stream, way);
            self.queue.push(at, Happening::Arrival { stream, way });
            return;
        }
        let this = &mut self.net.streams[stream].ways[way];
        let Some(first) = this.queue.pop_front() else { return };
        if let Some(next) = this.queue.front() {
            let at = next.arrives.max(self.now);
            self.queue.push(at, Happening::Arrival { stream, way });
        }
        if connection.is_some() {
            self.delivered += 1;
        }
        self.log.message(self.now, (from, to), &first.message);
        self.deliver(stream, way, first.message);
        self.fail_what_is_due();
    }

    fn deliver(&mut self, stream: usize, way: usize, message: Message) {
        if way == UP {
            self.net.streams[stream].is_known = true;
        }
        let kind = self.net.streams[stream].kind;
        match (kind, message) {
            (Kind::Worker(worker), Message::Coordinator(event)) => {
                let is_last = matches!(event, coordinator::Event::WorkerLeft { .. });
                self.coordinate(event);
                if is_last {
                    // The stream has been closed behind it, and its sender hears that all has come.
                    self.queue.push(self.now + 1, Happening::StreamEnded { stream });
                    let life = self.seats[worker.index()].life;
                    if self.net.is_up(self.now, super::server::FIRST, Place::Worker(worker)) {
                        let at = self.now + self.net.link(super::server::FIRST, Place::Worker(worker)).delay;
                        self.queue.push(at, Happening::Heard { worker, life });
                    }
                }
            }
            // A coordinator that is no more has no streams to its own shards.
            (Kind::Local(_), _) if !self.locals.contains(&stream) => {}
            (Kind::Server(server), Message::Coordinator(event)) => {
                if let coordinator::Event::ServerJoined { .. } = event {
                    self.orders_to[server.index()] = Some(stream);
                }
                self.coordinate(event);
            }
            (Kind::Local(_), Message::Coordinator(event)) => self.coordinate(event),
            (Kind::Local(shard), Message::Shard(event)) => self.shard(ServerId(0), shard, event),
            (Kind::Shard(_, shard), Message::Shard(shard::Event::Request(request))) => {
                if let Place::Server(server) = self.net.ends_of(stream, way).1 {
                    self.requested(server, shard, request);
                }
            }
            (Kind::Shard(_, shard), Message::Shard(event @ shard::Event::Given(_))) => {
                if let Place::Server(server) = self.net.ends_of(stream, way).1 {
                    self.shard(server, shard, event);
                }
            }
            (Kind::Feed(shard), message) => match (self.net.ends_of(stream, way).1, message) {
                (Place::Server(server), Message::Told(told)) => {
                    self.standby_told(server, shard, stream, *told)
                }
                (Place::Server(server), Message::Confirmed(number)) => {
                    self.feed_confirmed(server, shard, stream, number);
                }
                (place, message) => panic!("{place} takes no {message:?}"),
            },
            (Kind::Worker(worker), Message::Control(body, incarnation, lineage)) => {
                self.worker_told(worker, stream, body, (incarnation, lineage));
            }
            (Kind::Server(server), Message::Control(body, _, lineage)) => {
                self.follower_told(server, stream, body, lineage);
            }
            (Kind::Shard(worker, shard), Message::Reply(reply)) => {
                self.worker_answered(worker, shard, stream, reply);
            }
            (kind, message) => panic!("{kind:?} takes no {message:?}"),
        }
    }

    /// A server's part of a stream has ended.
    pub(super) fn stream_ended(&mut self, stream: usize) {
        let session = SessionId(stream as u64);
        match self.net.streams[stream].kind {
            Kind::Shard(_, shard) => {
                if let Place::Server(server) = self.net.ends_of(stream, UP).1 {
                    self.shard(server, shard, shard::Event::Closed { session });
                }
            }
            Kind::Worker(_) | Kind::Server(_) => {
                let why = "its connection is gone".into();
                self.coordinate(coordinator::Event::Lost { session, why, silent: false });
            }
            Kind::Local(_) | Kind::Feed(_) => {}
        }
    }

    /// Closes an end of a connection: what was on its way to it is gone.
    pub(super) fn close(&mut self, connection: usize, end: usize, how: How) {
        let this = &mut self.net.connections[connection];
        if !this.ends[end].is_open() {
            return;
        }
        this.ends[end] = End { closed_at: self.now, quiet: None };
        let (place, other) = (this.place(end), this.place(1 - end));
        if this.ends.iter().all(|e| !e.is_open()) {
            self.net.open.retain(|&c| c != connection);
        }
        if end == DOWN && how != How::ByDeath {
            for stream in self.net.connections[connection].streams.clone() {
                if self.net.streams[stream].is_known {
                    let at = self.now + self.rng.below(1000);
                    self.queue.push(at, Happening::StreamEnded { stream });
                }
            }
        }
        let delay = self.net.link(place, other).delay;
        let (end, at) = match how {
            How::ByDeath => {
                self.refresh(connection);
                return;
            }
            How::ByWord => (1 - end, self.now + delay),
            How::Silently => (1 - end, self.now + 2 * delay + self.rng.below(KEEP_ALIVE)),
        };
        self.queue.push(at, Happening::Closed { connection, end, is_word: how == How::ByWord });
        self.refresh(connection);
    }

    /// An end of a connection is to learn that the other is closed.
    pub(super) fn closed(&mut self, connection: usize, end: usize, is_word: bool) {
        let (place, other) =
            (self.net.connections[connection].place(end), self.net.connections[connection].place(1 - end));
        let gets_here = self.net.is_up(self.now, other, place);
        let gets_there = self.net.is_up(self.now, place, other);
        let process = self.processes[&other];
        let is_told = is_word || (gets_there && process.is_running && !process.is_paused(self.now));
        if gets_here && is_told {
            self.lose(connection, end);
        }
    }

    /// Nothing has been heard at this end for the idle timeout.
    pub(super) fn idle(&mut self, connection: usize, end: usize, since: u64) {
        let quiet = self.net.connections[connection].ends[end].quiet;
        if quiet.is_some_and(|(began, heard_at)| began == since && heard_at > self.now) {
            self.counts.add("idle", 1);
            self.lose(connection, end);
        }
    }

    /// An end of a connection finds that it is lost.
    pub(super) fn lose(&mut self, connection: usize, end: usize) {
        if !self.net.connections[connection].ends[end].is_open() {
            return;
        }
        let place = self.net.connections[connection].place(end);
        self.log.note(self.now, || {
            let other = self.net.connections[connection].place(1 - end);
            format!("{place} loses its connection to {other}")
        });
        self.close(connection, end, How::Silently);
        if end == UP {
            match place {
                Place::Worker(worker) => self.worker_lost(worker, connection),
                Place::Server(server) => {
                    if self.followers[server.index()].is_at(&self.net, connection) {
                        self.follower_cut(server);
                    } else {
                        self.feed_lost(server, connection);
                    }
                }
            }
        }
    }

    /// What can be heard at each end of a connection may have changed.
    pub(super) fn refresh(&mut self, connection: usize) {
        for end in [UP, DOWN] {
            let this = &self.net.connections[connection];
            let (here, there) = (this.ends[end], this.ends[1 - end]);
            let (place, other) = (this.place(end), this.place(1 - end));
            if !here.is_open() {
                continue;
            }
            let process = self.processes[&other];
            let speaks = there.is_open() && process.is_running && !process.is_paused(self.now);
            let hears = speaks && self.net.is_up(self.now, other, place);
            // One who is heard again has been heard.
            let quiet = here.quiet.filter(|&(_, heard_at)| heard_at > self.now);
            let quiet = match (hears, quiet) {
                (false, None) => {
                    let since = self.now.saturating_sub(self.rng.below(KEEP_ALIVE));
                    let at = (since + self.processes[&place].until(IDLE)).max(self.now + 1);
                    self.queue.push(at, Happening::Idle { connection, end, since });
                    Some((since, u64::MAX))
                }
                (false, Some((since, _))) => Some((since, u64::MAX)),
                (true, Some((since, u64::MAX))) => {
                    // What a process has to say when it goes on comes at once, what is lost is sent again when that is due.
                    let is_resumed = process.paused.1 == self.now;
                    let within = if is_resumed { 100_000 } else { KEEP_ALIVE.min(self.now - since + 1) };
                    Some((since, self.now + self.rng.below(within)))
                }
                (true, quiet) => quiet,
            };
            self.net.connections[connection].ends[end].quiet = quiet;
        }
    }

    /// As [`refresh`](Self::refresh), for every connection of a process.
    pub(super) fn refresh_all(&mut self, place: Place) {
        for connection in self.connections_of(place) {
            self.refresh(connection);
        }
    }

    pub(super) fn connections_of(&self, place: Place) -> Vec<usize> {
        let has = |c: &usize| {
            let connection = &self.net.connections[*c];
            connection.client == place || Place::Server(connection.server) == place
        };
        self.net.open.iter().copied().filter(has).collect()
    }

    /// A process ends: its connections are closed as it goes.
    pub(super) fn depart(&mut self, place: Place, why: String, how: How) {
        self.log.note(self.now, || format!("{place} ends: {why}"));
        if let Place::Server(_) = place {
            self.is_endangered_by_an_end();
        }
        self.process_mut(place).is_running = false;
        self.progress_at = self.now;
        self.ends.insert(place, (self.now, why));
        if let Place::Server(server) = place {
            self.store.crashed(self.now, server, false);
        }
        for connection in self.connections_of(place) {
            let end = if self.net.connections[connection].client == place { UP } else { DOWN };
            self.close(connection, end, how);
        }
    }

    /// A process ends by itself.
    pub(super) fn end(&mut self, place: Place, why: String, is_good: bool) {
        if !self.is_running(place) {
            return;
        }
        self.depart(place, why, How::ByWord);
        match place {
            Place::Worker(worker) => self.worker_ended(worker, is_good),
            Place::Server(server) if !is_good => self.server_ended(server),
            Place::Server(_) => {}
        }
    }
}
