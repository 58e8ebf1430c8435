//! Lets go wrong what the configuration says, when its time has come.

use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::wire::Phase;
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::Event;

use super::config::What;
use super::delivery::How;
use super::network::{Place, UP};
use super::server::FIRST;
use super::{Happening, STRAY, World};

impl World<'_> {
    pub(super) fn fail_what_is_due(&mut self) {
        while let Some(&fault) = self.config.faults.get(self.next_fault)
            && fault.at <= self.delivered
        {
            self.next_fault += 1;
            let is_deadly =
                matches!(fault.what, What::Crash(_) | What::CrashServer(_) | What::CrashMachine(_));
            if self.over_at.is_none() || !is_deadly {
                self.log.note(self.now, || format!("fault: {fault}"));
                self.progress_at = self.now;
                self.fail(fault.what);
            }
        }
    }

    fn fail(&mut self, what: What) {
        match what {
            What::Pause(place, lasts) => self.pause(place, lasts),
            What::Crash(worker) => self.crash(worker),
            What::Join(worker) => {
                if !self.is_running(Place::Worker(worker)) && !self.seat(worker).is_due {
                    self.counts.add("joins", 1);
                    self.start_worker(worker);
                }
            }
            // Before everybody is there, the run would wait for another in vain.
            What::Leave(_) if self.coordinator.status().phase != Phase::Training => {}
            What::Leave(worker) => self.leave_early(worker),
            What::Cut(worker, server) => self.cut(worker, server),
            What::Partition { from, to, is_both_ways, lasts } => {
                self.counts.add("partitions", 1);
                self.part(from, to, lasts);
                if is_both_ways {
                    self.part(to, from, lasts);
                }
            }
            What::CrashServer(server) => self.crash_server(server),
            What::CrashMachine(server) => {
                self.counts.add("machine crashes", 1);
                self.store.crashed(self.now, server, true);
                if server == ServerId(0) {
                    self.written.crashed();
                }
                self.crash_server(server);
            }
            What::StuckDisk(lasts) => {
                self.counts.add("stuck disks", 1);
                self.store.stick(self.now + lasts);
            }
            What::DiskFull => self.is_disk_full = true,
            What::Abort(worker) => self.abort(worker),
            What::Conclude => {
                // Whoever watches has a session of its own, at which nobody listens here.
                let session = SessionId(STRAY - 2);
                self.counts.add("concluded", 1);
                self.coordinate(Event::ObserverJoined { session });
                self.coordinate(Event::Conclude { session });
            }
        }
    }

    fn crash_server(&mut self, server: ServerId) {
        let place = Place::Server(server);
        if self.is_running(place) {
            self.counts.add("server crashes", 1);
            self.depart(place, "it was killed".into(), How::ByDeath);
            self.server_ended(server);
            if place == FIRST && !self.config.survives_servers() {
                self.over_at = Some(self.now);
            }
        }
    }

    fn pause(&mut self, place: Place, lasts: u64) {
        let now = self.now;
        let process = self.process_mut(place);
        if process.is_running && !process.is_paused(now) {
            process.paused = (now, now + lasts);
            self.paused += lasts;
            self.counts.add("pauses", 1);
            self.queue.push(now + lasts, Happening::Resumed(place));
            self.refresh_all(place);
        }
    }

    pub(super) fn resumed(&mut self, place: Place) {
        if self.is_running(place) {
            self.log.note(self.now, || format!("{place} goes on"));
            self.progress_at = self.now;
            self.worker_resumed(place);
            self.refresh_all(place);
        }
    }

    fn crash(&mut self, worker: WorkerId) {
        let place = Place::Worker(worker);
        if self.is_running(place) {
            self.counts.add("crashes", 1);
            self.depart(place, "it was killed".into(), How::ByDeath);
            self.worker_ended(worker, false);
        }
    }

    fn cut(&mut self, worker: WorkerId, server: ServerId) {
        let place = Place::Worker(worker);
        for connection in self.connections_of(place) {
            if self.net.connections[connection].server == server {
                self.counts.add("cuts", 1);
                self.lose(connection, UP);
            }
        }
    }

    fn part(&mut self, from: Place, to: Place, lasts: u64) {
        let until = self.now + lasts;
        self.paused += lasts;
        let link = self.net.link(from, to);
        link.cut_until = link.cut_until.max(until);
        self.queue.push(until, Happening::Healed { from, to });
        self.refresh_between(from, to);
    }

    pub(super) fn healed(&mut self, from: Place, to: Place) {
        self.refresh_between(from, to);
    }

    fn refresh_between(&mut self, from: Place, to: Place) {
        for connection in self.connections_of(from) {
            let this = &self.net.connections[connection];
            if this.client == to || Place::Server(this.server) == to {
                self.refresh(connection);
            }
        }
    }
}
