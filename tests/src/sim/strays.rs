//! Lets requests come twice, and sends those that must be refused and those of observers.

use windlass_common::ids::{Incarnation, Lineage, RunId, Sequence, ServerId, ShardId, WorkerId};
use windlass_ps_core::SessionId;
use windlass_ps_core::shard::{self, Request};

use super::network::{DOWN, Place};
use super::{FORGED, Happening, STRAY, World};
use crate::cluster::Brought;

impl World<'_> {
    /// A worker's request has arrived; now and then it comes again, or is followed by one that must be refused.
    pub(super) fn requested(&mut self, server: ServerId, shard: ShardId, request: Request<Brought>) {
        if self.net.below(1_000_000) < self.config.probes {
            // An observer asks as well, for a point that has been or is about to be.
            let session = self.next_stray(STRAY);
            let Some(hosted) = self.hosted(server, shard) else { return };
            let snapshot = hosted.shard.snapshot();
            let position = self.plan.goal().position(snapshot.step, snapshot.examples);
            let point = self.net.below(position / self.config.evaluate_every + 3);
            self.shard(server, shard, shard::Event::PullSnapshot { session, point });
        }
        let mut copy = None;
        let is_pausing = self.hosted(server, shard).is_some_and(|hosted| hosted.is_pausing);
        let Request { session, run, lineage, term, worker, incarnation, .. } = request;
        if let Some((push, gradient)) = &request.push {
            // A shard that pauses has more that can go wrong.
            let often = if is_pausing { 5 } else { 1 };
            let duplicated = self.net.below(1_000_000) < self.config.duplicates * often;
            let probed = self.net.below(1_000_000) < self.config.probes * often;
            if duplicated || probed {
                let push = Some((push.clone(), gradient.clone()));
                copy = Some(Request { session, run, lineage, term, worker, incarnation, push, pull: None });
            }
            if probed && let Some(copy) = copy.take() {
                self.shard(server, shard, shard::Event::Request(request));
                self.probe(server, shard, copy);
                return;
            }
        }
        self.shard(server, shard, shard::Event::Request(request));
        if let Some(copy) = copy {
            let within = if is_pausing { 5_000 } else { 2_000_000 };
            let at = self.now + 1 + self.net.below(within);
            self.queue.push(at, Happening::Again(server, shard, Box::new(copy)));
        }
    }

    pub(super) fn again(&mut self, server: ServerId, shard: ShardId, request: Request<Brought>) {
        let place = Place::Server(server);
        if self.is_running(place) {
            self.counts.add("duplicates", 1);
            let number = request.push.as_ref().map(|(p, _)| p.sequence);
            self.log.note(self.now, || format!("{} sends push {number:?} to {shard} again", request.worker));
            let is_heard = {
                let session = &self.net.streams[request.session.0 as usize];
                session.connection.is_some_and(|c| self.net.connections[c].ends[DOWN].is_open())
            };
            // The answer to one who has been succeeded, or has forgotten it, goes nowhere.
            let is_current = self.coordinator.incarnation(request.worker) == request.incarnation;
            if request.lineage != self.followers[server.index()].lineage {
                // It comes from a history that is no more.
                self.counts.add("late copies", 1);
                let session = self.next_stray(FORGED);
                self.shard(server, shard, shard::Event::Request(Request { session, ..request }));
                return;
            }
            let is_recent = number.is_some_and(|n| self.is_recent(request.worker, n));
            let session = match is_heard && is_current && is_recent {
                true => request.session,
                false => self.next_stray(STRAY),
            };
            if session != request.session && is_current {
                return;
            }
            self.shard(server, shard, shard::Event::Request(Request { session, ..request }));
        }
    }

    fn is_recent(&self, worker: WorkerId, number: Sequence) -> bool {
        self.seats[worker.index()].last_push.is_some_and(|last| last.0 <= number.0 + 4)
    }

    fn next_stray(&mut self, first: u64) -> SessionId {
        self.strays += 1;
        SessionId(first + self.strays)
    }

    /// Sends what must have no effect.
    fn probe(&mut self, server: ServerId, shard: ShardId, mut request: Request<Brought>) {
        let place = Place::Server(server);
        if !self.is_running(place) {
            return;
        }
        self.counts.add("probes", 1);
        request.session = self.next_stray(FORGED);
        let which = self.net.below(4);
        match which {
            0 => {
                let more = 2 + self.net.below(3);
                if let Some((push, _)) = &mut request.push {
                    push.sequence.0 += more;
                }
            }
            1 => request.incarnation = Incarnation(request.incarnation.0 - 1),
            2 => request.run = RunId(request.run.0 + 1),
            _ => request.lineage = Lineage(request.lineage.0 + 1),
        }
        self.shard(server, shard, shard::Event::Request(request));
    }
}
