//! Decides what goes wrong in a simulated run, and notices when nothing can go on.

use std::fmt::Write as _;

use windlass_common::ids::WorkerId;
use windlass_ps_core::{Time, coordinator, shard};

use super::config::{JOIN_DEADLINE_S, REJOIN_DEADLINE_S};
use super::driver::{Driver, State};
use super::links::{Link, Message, Node};
use super::{Cluster, DELIVERY_US, Seat};

impl Cluster<'_> {
    pub(super) fn kill_who_is_due(&mut self) {
        let deliveries = self.deliveries;
        for kill in self.kills.extract_if(.., |kill| kill.at <= deliveries).collect::<Vec<_>>() {
            self.kill(kill.worker);
            if let Some(after) = kill.back_after {
                self.restarts.push((deliveries + after, kill.worker));
            }
        }
        for cut in self.cuts.extract_if(.., |cut| cut.at <= deliveries).collect::<Vec<_>>() {
            self.cut_off(cut.worker);
            if let Some(after) = cut.back_after {
                self.restarts.push((deliveries + after, cut.worker));
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
    pub(super) fn kill(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        if seat.driver.take_if(|driver| driver.state != State::Done).is_some() {
            self.deaths += 1;
            self.sever(worker);
        }
    }

    /// A worker at work loses every connection, and keeps what it has.
    fn cut_off(&mut self, worker: WorkerId) {
        let Some(seat) = self.seats.get_mut(&worker) else { return };
        let is_silent = self.config.silent.contains(&worker);
        let at_work = |driver: &mut Driver| driver.state == State::Training && !is_silent;
        if let Some(driver) = seat.driver.take_if(at_work) {
            seat.away = Some(driver);
            self.losses += 1;
            self.sever(worker);
        }
    }

    /// What a worker has sent gets out in part, and nothing reaches it any more.
    fn sever(&mut self, worker: WorkerId) {
        let seat = &self.seats[&worker];
        let (node, control) = (Node::Worker(worker, seat.life), seat.session);
        self.links.cut(node);
        for link in self.links.from(node) {
            let ended = match link.to {
                Node::Shard(_) => {
                    let answers = Link { from: link.to, to: node };
                    let session = self.sessions.iter().find(|(_, l)| **l == answers).map(|(s, _)| *s);
                    Message::Shard(shard::Event::Closed {
                        session: session.expect("a link to a shard has a session"),
                    })
                }
                _ => Message::Coordinator(coordinator::Event::Lost {
                    session: control,
                    why: "it is gone".into(),
                    silent: false,
                }),
            };
            self.links.send(link, ended);
        }
    }

    /// Nothing is on its way: the next thing that was planned happens, or time passes until a deadline.
    pub(super) fn idle(&mut self) {
        let restart = self.restarts.iter().map(|(at, _)| (*at).max(self.deliveries)).min();
        let restart = restart.map(|at| (at, Time(self.now.0 + (at - self.deliveries) * DELIVERY_US)));
        if let Some(deadline) = self.coordinator.deadline()
            && restart.is_none_or(|(_, at)| deadline <= at)
        {
            self.now = self.now.max(deadline);
            self.coordinate(coordinator::Event::Tick);
            let next = self.coordinator.deadline();
            assert!(
                next != Some(deadline),
                "a round goes on after its deadline: {}",
                self.who_waits_for_whom()
            );
            return;
        }
        if let Some((deliveries, now)) = restart {
            (self.deliveries, self.now) = (deliveries, now);
            return;
        }
        let done = |seat: &Seat| seat.driver.as_ref().is_none_or(|d| d.state == State::Done);
        let others_done =
            self.seats.iter().all(|(worker, seat)| self.config.silent.contains(worker) || done(seat));
        let silent: Vec<WorkerId> =
            self.config.silent.iter().copied().filter(|w| !done(&self.seats[w])).collect();
        if others_done && !silent.is_empty() {
            // A process that hangs is ended by whoever started it.
            silent.into_iter().for_each(|worker| self.kill(worker));
            return;
        }
        self.now = self.now.plus_seconds(JOIN_DEADLINE_S.max(REJOIN_DEADLINE_S) + 1);
        self.coordinate(coordinator::Event::Tick);
        assert!(
            self.stop.is_some(),
            "nothing is on its way and nobody gives up: {}",
            self.who_waits_for_whom()
        );
    }

    pub(super) fn who_waits_for_whom(&mut self) -> String {
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
                if let shard::Effect::Reply { session, reply: shard::Reply::Waiting { step, wait } } = effect
                {
                    let _ = write!(
                        text,
                        "shard {id} has parked {:?} for step {step}: {wait:?}; ",
                        self.sessions[&session].to
                    );
                }
            }
        }
        let status = self.coordinator.status();
        let _ = write!(text, "the coordinator is {:?}, {}", status.phase, status.waiting);
        text
    }
}
