//! Decides who takes part in a run, when steps close for all shards, and when the run is over.

mod closing;
mod event;
mod progress;
mod rounds;

use std::collections::BTreeMap;

use windlass_common::ids::{ClientId, Incarnation, RunId, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::plan::{Mode, Plan, Stale};
use windlass_common::wire::{
    Body, Member, Order, Phase, Reject, Report, Resume, Status, Stop, Welcome, WorkerReport, WorkerState,
    WorkerStatus,
};

pub use event::{Effect, Event};

use crate::coordinator::closing::{Closing, Rest};
use crate::coordinator::progress::Progress;
use crate::coordinator::rounds::Rounds;
use crate::rules::{self, Apply};
use crate::{SessionId, Time};

/// Observers that may be connected at once.
pub const OBSERVERS_MAX: usize = 64;
/// Once a worker was told that the training has all its examples, the coordinator hears the same within this many seconds.
pub const FINISHED_WITHIN_S: u64 = 10;
/// The shards deliver the result within this many seconds.
pub const RESULT_WITHIN_S: u64 = 120;
/// Who has joined is told what is still missing each time this many seconds have passed.
pub const NOT_YET_NOTICE_S: u64 = 2;

/// The one who decides for the whole run.
#[derive(Debug)]
pub struct Coordinator {
    plan: Plan,
    run: RunId,
    phase: Phase,
    term: Term,
    began: Time,
    told: Time,
    servers: BTreeMap<ServerId, Server>,
    workers: BTreeMap<WorkerId, Worker>,
    observers: Vec<SessionId>,
    closing: Closing,
    /// Pushes that close a step, where no rounds are opened.
    cohort: usize,
    rounds: Option<Rounds>,
    progress: Progress,
    results: BTreeMap<ShardId, ()>,
    failure: Option<String>,
    /// When the first worker left, and since when the result is being collected.
    ending: Option<Time>,
    finishing: Option<Time>,
}

#[derive(Debug)]
struct Server {
    session: SessionId,
    address: String,
}

#[derive(Debug)]
struct Worker {
    state: WorkerState,
    session: Option<SessionId>,
    incarnation: Incarnation,
    /// While it is being admitted, what each shard would take next of it.
    admitted: BTreeMap<ShardId, Resume>,
    settled: BTreeMap<ShardId, ()>,
    next: Option<Resume>,
    lost_at: Time,
    why_lost: String,
    report: WorkerReport,
}

impl Coordinator {
    /// A coordinator that waits for the planned servers and workers.
    pub fn new(plan: Plan, run: RunId, now: Time) -> Self {
        let worker = || Worker {
            state: WorkerState::Expected,
            session: None,
            incarnation: Incarnation(0),
            admitted: BTreeMap::new(),
            settled: BTreeMap::new(),
            next: None,
            lost_at: now,
            why_lost: String::new(),
            report: WorkerReport::default(),
        };
        let (cohort, rest) = match rules::rules(&plan.mode).0 {
            Apply::Hold { backup } => (plan.cluster.workers - backup, Rest::Late),
            Apply::Buffer { size, stale: Stale::Kept, .. } => (size, Rest::Kept),
            Apply::Buffer { size, stale: Stale::Late, .. } => (size, Rest::Late),
            Apply::Round { .. } | Apply::Immediate { .. } | Apply::Mix { .. } => (u32::MAX, Rest::Late),
        };
        let rounds = match &plan.mode {
            Mode::Fedavg(fedavg) => Some(Rounds::new(&plan, fedavg)),
            _ => None,
        };
        Self {
            run,
            phase: Phase::Gathering,
            term: Term(0),
            began: now,
            told: now,
            servers: BTreeMap::new(),
            workers: plan.cluster.worker_ids().map(|w| (w, worker())).collect(),
            observers: Vec::new(),
            closing: Closing::new(plan.cluster.shards(), rest),
            cohort: cohort as usize,
            rounds,
            progress: Progress::default(),
            results: BTreeMap::new(),
            failure: None,
            ending: None,
            finishing: None,
            plan,
        }
    }

    /// Which run this is.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The membership now.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The incarnation of a worker.
    pub fn incarnation(&self, worker: WorkerId) -> Incarnation {
        self.workers.get(&worker).map_or(Incarnation(0), |w| w.incarnation)
    }

    /// What each worker measured of itself; zero for one that has not left.
    pub fn worker_reports(&self) -> impl Iterator<Item = (WorkerId, WorkerReport)> + '_ {
        self.workers.iter().map(|(&id, w)| (id, w.report))
    }

    /// When the coordinator has to be told the time at the latest, beside its usual ticks.
    pub fn deadline(&self) -> Option<Time> {
        self.rounds.as_ref()?.deadline()
    }

    /// Takes in what has happened and adds what is to be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::ServerJoined { session, server, address } => {
                self.server_joined(session, server, address, out)
            }
            Event::WorkerJoined { session, worker } => self.worker_joined(now, session, worker, out),
            Event::ObserverJoined { session } => self.observer_joined(session, out),
            Event::WorkerLeft { session, report } => self.worker_left(session, report, out),
            Event::Lost { session, why } => self.lost(now, session, &why, out),
            Event::Abort { session, reason } => {
                if session.is_none_or(|s| self.is_current(s)) {
                    self.fail(reason, out);
                }
            }
            Event::Dropped { session, client, step } => self.dropped(now, session, client, step, out),
            Event::Conclude { session } => self.conclude(now, session, out),
            Event::Report { shard, report } => self.report(now, shard, report, out),
            Event::Measured { server, meter } => self.progress.measured(server, meter),
            // A run that has failed meanwhile stays failed.
            Event::Stored(Ok(())) if self.phase == Phase::Finishing => {
                self.end(Phase::Done, Stop::Completed, out)
            }
            Event::Stored(Ok(())) => {}
            Event::Stored(Err(why)) => self.fail(format!("the result could not be written: {why}"), out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn server_joined(
        &mut self,
        session: SessionId,
        server: ServerId,
        address: String,
        out: &mut Vec<Effect>,
    ) {
        if self.has_ended() {
            out.push(Effect::Send { session, body: Body::Refused(Reject::Ended) });
            return;
        }
        let servers = self.plan.cluster.servers;
        if server.0 >= servers {
            let reason = Reject::UnknownServer { server: server.0, servers };
            out.push(Effect::Send { session, body: Body::Refused(reason) });
            return;
        }
        if let Some(before) = self.servers.get(&server) {
            let reason = format!("{server} joined a second time, from {address} after {}", before.address);
            self.fail(reason, out);
            return;
        }
        self.servers.insert(server, Server { session, address });
        out.push(Effect::Send { session, body: self.welcome(Vec::new(), Resume::default()) });
        if self.servers.len() == servers as usize {
            self.admit(out);
            for &session in &self.observers {
                self.welcome_observer(session, out);
            }
        }
    }

    fn worker_joined(&mut self, now: Time, session: SessionId, id: WorkerId, out: &mut Vec<Effect>) {
        if self.is_over() {
            out.push(Effect::Send { session, body: Body::Refused(Reject::Ended) });
            return;
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            out.push(Effect::Send { session, body: Body::Refused(Reject::UnknownWorker { worker: id }) });
            return;
        };
        let incarnation = worker.incarnation.next();
        if rules::rules(&self.plan.mode).0.redoes() {
            self.closing.forget(id);
        }
        if let Some(rounds) = &mut self.rounds {
            rounds.take_back(id);
        }
        if let Some(earlier) = worker.session.replace(session) {
            let reason =
                Reject::StaleIncarnation { worker: id, found: worker.incarnation, current: incarnation };
            out.push(Effect::Send { session: earlier, body: Body::Refused(reason) });
        }
        *worker = Worker {
            state: WorkerState::Active,
            session: Some(session),
            incarnation,
            admitted: BTreeMap::new(),
            settled: BTreeMap::new(),
            next: None,
            lost_at: now,
            why_lost: String::new(),
            report: worker.report,
        };
        out.push(Effect::Membership { worker: id, what: format!("joined as incarnation {incarnation}") });
        if self.servers.len() == self.plan.cluster.servers as usize {
            self.admit(out);
        }
    }

    /// Tells every shard who takes part now; they answer for those whom they did not know.
    fn admit(&mut self, out: &mut Vec<Effect>) {
        let members: Vec<Member> = self
            .workers
            .iter()
            .filter(|(_, w)| w.incarnation > Incarnation(0) && w.state != WorkerState::Left)
            .map(|(&worker, w)| Member { worker, incarnation: w.incarnation })
            .collect();
        if members.is_empty() {
            return;
        }
        self.term = self.term.next();
        let term = self.term;
        self.to_all_shards(&Order::Membership { term, members }, out);
    }

    fn report(&mut self, now: Time, shard: ShardId, report: Report, out: &mut Vec<Effect>) {
        match report {
            Report::Admitted { worker, incarnation, next } => {
                self.admitted(shard, worker, incarnation, next, out)
            }
            Report::Settled { worker, incarnation } => self.settled(now, shard, worker, incarnation, out),
            Report::Arrived { entry, incarnation, step } => {
                // Where pushes are made again, those of an earlier life are void by now.
                let is_void =
                    rules::rules(&self.plan.mode).0.redoes() && self.incarnation(entry.worker) != incarnation;
                if !is_void {
                    if let Some(rounds) = &mut self.rounds {
                        rounds.heard(now);
                    }
                    self.closing.arrived(shard, entry, step);
                    self.close_if_due(now, out);
                }
            }
            Report::Records(records) => self.progress.records(shard, &records),
            Report::Final { .. } => {
                self.results.insert(shard, ());
                if self.phase == Phase::Finishing && self.results.len() == self.plan.cluster.shards() as usize
                {
                    out.push(Effect::Store);
                }
            }
        }
    }

    fn admitted(
        &mut self,
        shard: ShardId,
        id: WorkerId,
        incarnation: Incarnation,
        next: Resume,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let holds = rules::rules(&self.plan.mode).0.resumes_at_first();
        let Some(worker) = self.workers.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        worker.admitted.insert(shard, next);
        if worker.admitted.len() < shards || worker.next.is_some() {
            return;
        }
        // Where a push is held until its step closes, the worker computes again what some shard lacks. Where it is
        // applied at once, a push that reached only some shards counts there, and is void on the others.
        let resumes = worker.admitted.values().copied();
        let next = if holds { resumes.min() } else { resumes.max() }.expect("there is a shard");
        worker.next = Some(next);
        let order = Order::Settle { worker: id, incarnation, next, void_missing: !holds };
        self.to_all_shards(&order, out);
    }

    fn settled(
        &mut self,
        now: Time,
        shard: ShardId,
        id: WorkerId,
        incarnation: Incarnation,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let Some(worker) = self.workers.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        worker.settled.insert(shard, ());
        if self.phase == Phase::Finishing {
            self.finalize_if_settled(out);
            return;
        }
        let (Some(session), Some(next), true) = (worker.session, worker.next, worker.settled.len() == shards)
        else {
            return;
        };
        let servers = self.servers.values().map(|s| s.address.clone()).collect();
        out.push(Effect::Send { session, body: self.welcome(servers, next) });
        let ready = |w: &Worker| w.state == WorkerState::Active && w.settled.len() == shards;
        if self.phase == Phase::Gathering && self.workers.values().all(ready) {
            self.phase = Phase::Training;
            out.push(Effect::Started);
            self.to_all_shards(&Order::Start, out);
            self.open_round(now, out);
        }
    }

    /// Opens the next round, if the run has rounds.
    fn open_round(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(rounds) = &mut self.rounds else { return };
        if let Some((step, tasks)) = rounds.open(now) {
            out.push(Effect::Opened { step, tasks: tasks.clone() });
            self.to_all_shards(&Order::Open { step, tasks }, out);
        } else if rounds.ended_early() {
            // Shards see the planned end by themselves.
            self.to_all_shards(&Order::Conclude, out);
        }
    }

    /// Closes the open step if its cohort is complete, or the round is over without.
    fn close_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        let complete = self.closing.complete();
        let is_lost = |id| self.workers.get(&id).is_none_or(|w| w.state != WorkerState::Active);
        let cohort = match &self.rounds {
            Some(rounds) => rounds.verdict(now, complete, is_lost),
            None => (complete.len() >= self.cohort).then_some(complete),
        };
        let Some(cohort) = cohort else { return };
        let step = self.closing.open();
        self.closing.close(&cohort);
        if let Some(rounds) = &mut self.rounds {
            rounds.close();
            out.push(Effect::Closed { step, cohort: cohort.clone() });
        }
        self.to_all_shards(&Order::Close { step, cohort }, out);
        self.open_round(now, out);
    }

    fn dropped(
        &mut self,
        now: Time,
        session: SessionId,
        client: ClientId,
        step: Step,
        out: &mut Vec<Effect>,
    ) {
        let Some((&worker, _)) = self.workers.iter().find(|(_, w)| w.session == Some(session)) else {
            return;
        };
        let Some(rounds) = &mut self.rounds else { return };
        if rounds.dropped(client, worker, step) {
            rounds.heard(now);
            out.push(Effect::Dropped { step, client });
            self.close_if_due(now, out);
        }
    }

    fn conclude(&mut self, now: Time, session: SessionId, out: &mut Vec<Effect>) {
        if self.phase != Phase::Training || !self.observers.contains(&session) {
            return;
        }
        let Some(rounds) = &mut self.rounds else {
            let reason = Reject::NotAllowed { role: "an observer of a run without rounds".into() };
            out.push(Effect::Send { session, body: Body::Refused(reason) });
            return;
        };
        rounds.conclude();
        self.close_if_due(now, out);
    }

    fn observer_joined(&mut self, session: SessionId, out: &mut Vec<Effect>) {
        if self.has_ended() {
            out.push(Effect::Send { session, body: Body::Refused(Reject::Ended) });
            return;
        }
        if self.observers.len() >= OBSERVERS_MAX {
            let reason = Reject::TooManyObservers { most: OBSERVERS_MAX as u32 };
            out.push(Effect::Send { session, body: Body::Refused(reason) });
            return;
        }
        self.observers.push(session);
        if self.servers.len() == self.plan.cluster.servers as usize {
            self.welcome_observer(session, out);
        }
    }

    fn welcome_observer(&self, session: SessionId, out: &mut Vec<Effect>) {
        let servers = self.servers.values().map(|s| s.address.clone()).collect();
        out.push(Effect::Send { session, body: self.welcome(servers, Resume::default()) });
    }

    fn welcome(&self, servers: Vec<String>, next: Resume) -> Body {
        Body::Welcome(Welcome { plan: self.plan.to_text(), plan_hash: self.plan.hash(), servers, next })
    }

    fn worker_left(&mut self, session: SessionId, report: WorkerReport, out: &mut Vec<Effect>) {
        let Some((&id, worker)) = self.workers.iter_mut().find(|(_, w)| w.session == Some(session)) else {
            return;
        };
        worker.report = report;
        worker.session = None;
        worker.state = WorkerState::Left;
        out.push(Effect::Membership { worker: id, what: "left".into() });
        if !report.finished && !self.is_over() {
            self.fail(format!("{id} left before the training was over"), out);
            return;
        }
        self.finish_if_all_gone(out);
        if self.phase == Phase::Training {
            // A shard that has fewer examples than another need not wait for whoever has gone.
            self.admit(out);
        }
    }

    fn lost(&mut self, now: Time, session: SessionId, why: &str, out: &mut Vec<Effect>) {
        self.observers.retain(|&s| s != session);
        if let Some((&id, worker)) = self.workers.iter_mut().find(|(_, w)| w.session == Some(session)) {
            worker.session = None;
            worker.state = WorkerState::Lost;
            worker.lost_at = now;
            worker.why_lost = why.to_owned();
            out.push(Effect::Membership { worker: id, what: format!("lost: {why}") });
            self.finish_if_all_gone(out);
            if self.phase == Phase::Training {
                self.close_if_due(now, out);
            }
        }
        let server =
            self.servers.iter().find(|(_, s)| s.session == session).map(|(id, s)| (*id, s.address.clone()));
        if let Some((id, address)) = server
            && (!self.is_over() || self.lacks_result_of(id))
        {
            self.fail(format!("{id} at {address} is gone: {why}"), out);
        }
    }

    /// Whether a shard of this server has not delivered its part of the result.
    fn lacks_result_of(&self, server: ServerId) -> bool {
        self.plan.cluster.shards_of(server).any(|shard| !self.results.contains_key(&shard))
    }

    /// Once a worker was told that the training has all its examples, nobody needs to come back.
    fn finish_if_all_gone(&mut self, out: &mut Vec<Effect>) {
        let gone = |w: &Worker| matches!(w.state, WorkerState::Left | WorkerState::Lost);
        let any_left = self.workers.values().any(|w| w.state == WorkerState::Left);
        if self.phase == Phase::Training && any_left && self.workers.values().all(gone) {
            self.phase = Phase::Finishing;
            self.settle_the_lost(out);
            self.finalize_if_settled(out);
        }
    }

    /// Shuts out what the lost workers have sent and has not arrived yet: it would count on some shards only, and after
    /// the result was taken. They are given an incarnation that nobody has, and settled like one who came back.
    fn settle_the_lost(&mut self, out: &mut Vec<Effect>) {
        let mut any = false;
        for worker in self.workers.values_mut().filter(|w| w.state == WorkerState::Lost) {
            worker.incarnation = worker.incarnation.next();
            worker.admitted.clear();
            worker.settled.clear();
            worker.next = None;
            any = true;
        }
        if any {
            self.admit(out);
        }
    }

    fn finalize_if_settled(&self, out: &mut Vec<Effect>) {
        let shards = self.plan.cluster.shards() as usize;
        if self.workers.values().all(|w| w.state == WorkerState::Left || w.settled.len() == shards) {
            self.to_all_shards(&Order::Finalize, out);
        }
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Gathering => self.gather(now, out),
            Phase::Training => {
                self.watch(now, out);
                if self.rounds.is_some() && self.phase == Phase::Training {
                    self.close_if_due(now, out);
                }
            }
            Phase::Finishing => {
                let since = *self.finishing.get_or_insert(now);
                if now >= since.plus_seconds(RESULT_WITHIN_S) {
                    let reason = format!("{} for {RESULT_WITHIN_S} s", self.status().waiting);
                    self.fail(reason, out);
                }
            }
            Phase::Done | Phase::Failed => {}
        }
        if !self.observers.is_empty() {
            let status = self.status();
            for &session in &self.observers {
                out.push(Effect::Send { session, body: Body::Status(status.clone()) });
            }
        }
    }

    /// Gives up who is away for too long, while the training goes on and when it is over.
    fn watch(&mut self, now: Time, out: &mut Vec<Effect>) {
        let deadline = self.plan.cluster.rejoin_deadline_s;
        let late = |w: &Worker| w.state == WorkerState::Lost && now >= w.lost_at.plus_seconds(deadline);
        let anyone = self.workers.values().any(|w| w.state == WorkerState::Active);
        if let Some(rounds) = self.rounds.as_mut().filter(|_| anyone && self.plan.goes_on_without_workers()) {
            for (&id, _) in self.workers.iter().filter(|(_, w)| late(w)) {
                rounds.give_up(id);
            }
        } else if let Some((id, worker)) = self.workers.iter().find(|(_, w)| late(w)) {
            let why = &worker.why_lost;
            self.fail(format!("{id} was lost ({why}) and did not come back within {deadline} s"), out);
            return;
        }
        let Some((&left, _)) = self.workers.iter().find(|(_, w)| w.state == WorkerState::Left) else {
            return;
        };
        let since = *self.ending.get_or_insert(now);
        let is_finished = match &self.rounds {
            Some(rounds) => rounds.are_over(),
            None => self.progress.examples_most() >= self.plan.examples_target(),
        };
        if !is_finished && now >= since.plus_seconds(FINISHED_WITHIN_S) {
            self.fail(format!("{left} left before the training was over"), out);
        } else if now >= since.plus_seconds(deadline.max(FINISHED_WITHIN_S)) {
            // It is connected and does not go; the result need not wait for it.
            for (id, worker) in self.workers.iter_mut().filter(|(_, w)| w.state == WorkerState::Active) {
                worker.state = WorkerState::Lost;
                worker.session = None;
                worker.lost_at = now;
                worker.why_lost = "it did not leave at the end".into();
                out.push(Effect::Membership {
                    worker: *id,
                    what: "lost: it did not leave at the end".into(),
                });
            }
            self.finish_if_all_gone(out);
        }
    }

    fn gather(&mut self, now: Time, out: &mut Vec<Effect>) {
        let missing = match self.missing() {
            missing if missing.is_empty() => "a shard is not ready: not all servers".to_owned(),
            missing => missing,
        };
        let deadline = self.plan.cluster.join_deadline_s;
        if now >= self.began.plus_seconds(deadline) {
            self.fail(format!("{missing} did not join within {deadline} s"), out);
            return;
        }
        if now.seconds_since(self.told) >= NOT_YET_NOTICE_S {
            self.told = now;
            for session in self.workers.values().filter_map(|w| w.session) {
                out.push(Effect::Send { session, body: Body::NotYet { missing: missing.clone() } });
            }
        }
    }

    /// The planned servers and workers that are not there, in words.
    fn missing(&self) -> String {
        let servers = (0..self.plan.cluster.servers).map(ServerId).filter(|s| !self.servers.contains_key(s));
        let workers = self.workers.iter().filter(|(_, w)| w.state != WorkerState::Active).map(|(id, _)| *id);
        let names: Vec<String> =
            servers.map(|s| s.to_string()).chain(workers.map(|w| w.to_string())).collect();
        names.join(", ")
    }

    /// How the run stands.
    pub fn status(&self) -> Status {
        let waiting = match (self.phase, &self.failure) {
            (_, Some(reason)) => reason.clone(),
            (Phase::Gathering, _) => match self.missing() {
                missing if missing.is_empty() => "the shards are being told who takes part".into(),
                missing => format!("waiting for {missing} to join"),
            },
            (Phase::Finishing, _) => {
                let shards = (0..self.plan.cluster.shards()).map(ShardId);
                let missing = shards.filter(|shard| !self.results.contains_key(shard));
                let names: Vec<String> = missing.map(|shard| shard.to_string()).collect();
                match names.is_empty() {
                    true => "the result is being written".into(),
                    false => format!("waiting for the result of {}", names.join(", ")),
                }
            }
            (Phase::Done, _) => String::new(),
            (Phase::Training | Phase::Failed, _) => {
                let lost = self.workers.iter().filter(|(_, w)| w.state == WorkerState::Lost);
                let names: Vec<String> = lost.map(|(id, w)| format!("{id} ({})", w.why_lost)).collect();
                if names.is_empty() {
                    String::new()
                } else {
                    format!("waiting for {} to come back", names.join(", "))
                }
            }
        };
        let workers = self.workers.iter().map(|(&worker, w)| WorkerStatus {
            worker,
            state: w.state,
            incarnation: w.incarnation,
            clock: self.progress.clock(worker),
        });
        let phase = self.phase;
        let rounds = self.rounds.as_ref().map_or(0, Rounds::closed);
        self.progress.status(phase, self.term, &self.plan, rounds, workers.collect(), waiting)
    }

    /// Whether a session is that of somebody who takes part now, and not of an earlier life.
    fn is_current(&self, session: SessionId) -> bool {
        self.workers.values().any(|w| w.session == Some(session))
            || self.servers.values().any(|s| s.session == session)
            || self.observers.contains(&session)
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Finishing | Phase::Done | Phase::Failed)
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }

    fn fail(&mut self, reason: String, out: &mut Vec<Effect>) {
        if self.has_ended() {
            return;
        }
        self.failure = Some(reason.clone());
        self.end(Phase::Failed, Stop::Failed { reason }, out);
    }

    fn end(&mut self, phase: Phase, stop: Stop, out: &mut Vec<Effect>) {
        self.phase = phase;
        let status = self.status();
        for &session in &self.observers {
            out.push(Effect::Send { session, body: Body::Status(status.clone()) });
        }
        let sessions = self.workers.values().filter_map(|w| w.session).chain(self.observers.iter().copied());
        for session in sessions.chain(self.servers.values().map(|s| s.session)) {
            out.push(Effect::Send { session, body: Body::Stop(stop.clone()) });
        }
        out.push(Effect::End(stop));
    }

    fn to_all_shards(&self, order: &Order, out: &mut Vec<Effect>) {
        let shards = (0..self.plan.cluster.shards()).map(ShardId);
        out.extend(shards.map(|shard| Effect::Order { shard, order: order.clone() }));
    }
}
