//! Decides who takes part in a run, when steps close for all shards, and when the run is over.

mod checkpoints;
mod closing;
mod ending;
mod event;
mod explain;
mod members;
mod progress;
mod rounds;
mod seats;
mod standing;

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::cohort::Hosts;
use windlass_common::ids::{ClientId, Incarnation, Lineage, RunId, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{
    Body, Entry, Order, Phase, Reject, Report, Resume, Seats, Stop, Welcome, WorkerReport,
};

pub use checkpoints::{AGAIN_AFTER_S, Complete, GRACE_S, RunState, TAKEN_WITHIN_S};
pub use event::{Effect, Event};
pub use seats::{Copy, Placed, SEATED_WITHIN_S};

use crate::coordinator::checkpoints::Checkpoints;
use crate::coordinator::closing::Closing;
use crate::coordinator::members::Worker;
use crate::coordinator::progress::Progress;
use crate::coordinator::rounds::Rounds;
use crate::coordinator::standing::Standings;
use crate::rules::{self, Rejoin};
use crate::shard::ShardState;
use crate::{SessionId, Time};

/// Observers that may be connected at once.
pub const OBSERVERS_MAX: usize = 64;
/// Once a worker was told that the training has all its examples, the coordinator hears the same within this many seconds.
pub const FINISHED_WITHIN_S: u64 = 10;
/// The shards deliver the result within this many seconds.
pub const RESULT_WITHIN_S: u64 = 120;
/// Pushes that are held for a step are complete within this many seconds after somebody waits for that alone; otherwise
/// they never will be, and the step is abandoned.
pub const CLOSED_WITHIN_S: u64 = 3;
/// Who has joined is told what is still missing each time this many seconds have passed.
pub const NOT_YET_NOTICE_S: u64 = 2;

/// The one who decides for the whole run.
#[derive(Debug)]
pub struct Coordinator {
    plan: Plan,
    run: RunId,
    lineage: Lineage,
    /// What the run goes on from, if not from its beginning.
    restore: Option<Restore>,
    phase: Phase,
    term: Term,
    /// When it was told something last.
    now: Time,
    began: Time,
    told: Time,
    servers: BTreeMap<ServerId, Server>,
    /// The servers of each shard, once that has been decided, and the shards whose standby has all.
    seats: Vec<Seats>,
    full: BTreeSet<ShardId>,
    /// Servers that shall have no shards.
    drained: Vec<ServerId>,
    workers: BTreeMap<WorkerId, Worker>,
    rejoin: Rejoin,
    /// Who has whose data.
    hosts: Hosts,
    observers: Vec<SessionId>,
    closing: Closing,
    rounds: Option<Rounds>,
    progress: Progress,
    standings: Standings,
    checkpoints: Checkpoints,
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
    /// The copies of shards that it has of earlier lineages.
    copies: Vec<Copy>,
}

/// What a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Where the shards were, if it goes on with the copies that servers have of them.
    pub placed: Option<Placed>,
    /// The checkpoint, or the last before the copies; without one it begins with the initial values.
    pub checkpoint: Option<u64>,
    /// When it was written, in microseconds since 1970, if that is known.
    pub at_us: u64,
    /// What the coordinator remembered in it.
    pub state: RunState,
    /// Who took part then.
    pub members: BTreeSet<WorkerId>,
    /// The slowest clock of those.
    pub slowest: Step,
    /// The number of the next checkpoint: above that of any that was begun.
    pub next: u64,
}

impl Restore {
    /// From this checkpoint; `shards` is what each of its shards knew of the workers.
    pub fn new(checkpoint: u64, mut state: RunState, shards: &[ShardState], next: u64) -> Self {
        let mut members = BTreeSet::new();
        // A shard may have learned of a life after the coordinator's part was taken.
        for row in shards.iter().flat_map(|shard| &shard.workers) {
            let incarnation = state.incarnations.entry(row.worker).or_default();
            *incarnation = row.incarnation.max(*incarnation);
            if row.member {
                members.insert(row.worker);
            }
        }
        let then = shards.first().into_iter().flat_map(|shard| &shard.workers).filter(|row| row.member);
        let slowest = then.map(|row| row.clock).min().unwrap_or_default();
        for shard in shards {
            state.examples = state.examples.max(shard.examples);
        }
        if let Some(first) = shards.first() {
            state.steps = first.version.0;
        }
        Self { placed: None, checkpoint: Some(checkpoint), at_us: 0, state, members, slowest, next }
    }

    /// Where no checkpoint was complete.
    pub fn from_the_beginning(state: RunState, next: u64) -> Self {
        Self {
            placed: None,
            checkpoint: None,
            at_us: 0,
            state,
            members: BTreeSet::new(),
            slowest: Step(0),
            next,
        }
    }

    /// From the copies that servers have; how far those are is known when they have joined.
    pub fn from_copies(placed: Placed, lives: RunState, next: u64) -> Self {
        Self { placed: Some(placed), ..Self::from_the_beginning(lives, next) }
    }
}

impl Coordinator {
    /// A coordinator that waits for the planned servers and workers.
    pub fn new(plan: Plan, run: RunId, now: Time) -> Self {
        Self::in_lineage(plan, run, Lineage(0), None, now)
    }

    /// A coordinator that waits for the planned servers and workers in order to go on with a run in a new lineage.
    pub fn restored(plan: Plan, run: RunId, lineage: Lineage, restore: Restore, now: Time) -> Self {
        Self::in_lineage(plan, run, lineage, Some(restore), now)
    }

    fn in_lineage(plan: Plan, run: RunId, lineage: Lineage, restore: Option<Restore>, now: Time) -> Self {
        let state = restore.as_ref().map(|r| r.state.clone()).unwrap_or_default();
        let rounds = match &plan.mode {
            Mode::Fedavg(fedavg) => Some(Rounds::new(&plan, fedavg, state.rounds, state.concluded)),
            _ => None,
        };
        let planned: Vec<WorkerId> = plan.cluster.worker_ids().collect();
        let worker = |id: WorkerId| {
            let incarnation = state.incarnations.get(&id).copied().unwrap_or_default();
            (id, Worker::expected_again(now, incarnation))
        };
        let checkpoints = Checkpoints::new(&plan, lineage, restore.as_ref(), now);
        Self {
            run,
            lineage,
            phase: Phase::Gathering,
            term: state.term,
            now,
            began: now,
            told: now,
            servers: BTreeMap::new(),
            seats: Vec::new(),
            full: BTreeSet::new(),
            drained: Vec::new(),
            workers: plan.cluster.possible_workers().map(worker).collect(),
            rejoin: rules::rejoin(&plan),
            hosts: plan.hosts(&planned),
            observers: Vec::new(),
            closing: Closing::new(&plan, state.open),
            rounds,
            progress: Progress::from(state.examples, state.steps),
            standings: Standings::default(),
            checkpoints,
            restore,
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

    /// How often the run has been restored.
    pub fn lineage(&self) -> Lineage {
        self.lineage
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
        self.now = now;
        match event {
            Event::ServerJoined { session, server, address, copies } => {
                self.server_joined(session, server, (address, copies), out)
            }
            Event::WorkerJoined { session, worker, process } => {
                self.worker_joined(now, session, worker, process, out)
            }
            Event::ObserverJoined { session } => self.observer_joined(session, out),
            Event::WorkerLeft { session, report } => self.worker_left(now, session, report, out),
            Event::Heartbeat { session, step, bytes_up, bytes_down } => {
                self.heard(now, session, step, (bytes_up, bytes_down), out)
            }
            Event::Exited { session, worker, process, how } => {
                self.exited(now, session, worker, process, &how, out)
            }
            Event::Lost { session, why, silent } => self.lost(now, session, &why, silent, out),
            Event::Abort { session, reason } => {
                if session.is_none_or(|s| self.is_current(s)) {
                    self.fail(reason, out);
                }
            }
            Event::ShutDown { reason } => self.shut_down(now, reason, out),
            Event::Checkpoint { session } => self.checkpoint_asked(now, session, out),
            Event::Drain { session, server } => self.drain(session, server, out),
            Event::CheckpointKept { number, kept } => self.checkpoint_kept(now, number, kept, out),
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

    fn report(&mut self, now: Time, shard: ShardId, report: Report, out: &mut Vec<Effect>) {
        match report {
            Report::Admitted { worker, incarnation, next, slowest } => {
                self.admitted(shard, (worker, incarnation), next, slowest, out)
            }
            Report::Settled { worker, incarnation, void } => {
                self.settled(now, shard, (worker, incarnation), void, out)
            }
            Report::Arrived { entry, incarnation, step } => {
                // Where pushes are made again, those of an earlier life are void by now.
                let is_void = self.rejoin == Rejoin::Redo && self.incarnation(entry.worker) != incarnation;
                if !is_void {
                    if let Some(rounds) = &mut self.rounds {
                        rounds.heard(now);
                    }
                    self.closing.arrived(shard, entry, step);
                    self.has_moved(now, entry.worker);
                    self.close_if_due(now, out);
                }
            }
            Report::Records(records) => self.progress.records(shard, &records),
            Report::Paused { checkpoint, next } => self.paused(shard, checkpoint, next, out),
            Report::Taken { checkpoint } => self.taken(shard, checkpoint),
            Report::Kept { checkpoint, part } => self.kept(now, shard, checkpoint, part, out),
            Report::Standing(standing) => self.standings.report(now, shard, standing),
            Report::Replicated => self.replicated(shard, out),
            Report::StandbyLost { why } => self.standby_lost(shard, &why, out),
            Report::Final { .. } => {
                self.results.insert(shard, ());
                if self.phase == Phase::Finishing && self.results.len() == self.plan.cluster.shards() as usize
                {
                    out.push(Effect::Store);
                }
            }
        }
    }

    /// Opens the next round, if the run has rounds.
    fn open_round(&mut self, now: Time, out: &mut Vec<Effect>) {
        let members = self.members();
        let Some(rounds) = &mut self.rounds else { return };
        if let Some((step, tasks)) = rounds.open(now, &self.hosts, &members) {
            out.push(Effect::Opened { step, tasks: tasks.clone() });
            self.to_all_shards(&Order::Open { step, tasks }, out);
        } else if rounds.ended_early() {
            // Shards see the planned end by themselves.
            self.to_all_shards(&Order::Conclude, out);
        }
    }

    /// Closes the open step if its cohort is complete, or the round is over without.
    fn close_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        let ready = self.ready();
        let cohort = match &self.rounds {
            Some(rounds) => {
                let is_lost = |id| self.workers.get(&id).is_none_or(|w| !w.is_active());
                rounds.verdict(now, rounds.of_their_own(self.closing.complete()), is_lost)
            }
            None => self.closing.verdict(!ready.is_empty()),
        };
        if let Some(cohort) = cohort {
            self.close(now, cohort, &ready, out);
        }
    }

    /// Closes the open step with nobody if those who wait for it have waited in vain.
    fn abandon_if_stuck(&mut self, now: Time, out: &mut Vec<Effect>) {
        let since = self.standings.closing_since(self.closing.open());
        let is_stuck = since.is_some_and(|since| now >= since.plus_seconds(CLOSED_WITHIN_S));
        if is_stuck && self.phase == Phase::Training && self.closing.may_be_abandoned() {
            let ready = self.ready();
            self.close(now, Vec::new(), &ready, out);
        }
    }

    fn close(&mut self, now: Time, cohort: Vec<Entry>, ready: &[WorkerId], out: &mut Vec<Effect>) {
        let step = self.closing.open();
        self.closing.close(&cohort, ready);
        if let Some(rounds) = &mut self.rounds {
            rounds.close();
        }
        out.push(Effect::Closed { step, cohort: cohort.clone() });
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
        let Some(worker) = self.worker_at(session) else { return };
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
        if self.is_placed() {
            self.welcome_observer(session, out);
        }
    }

    fn welcome_observer(&self, session: SessionId, out: &mut Vec<Effect>) {
        out.push(Effect::Send { session, body: self.welcome(Resume::default(), Vec::new()) });
    }

    fn welcome(&self, next: Resume, clients: Vec<ClientId>) -> Body {
        Body::Welcome(Welcome {
            plan: self.plan.to_text(),
            plan_hash: self.plan.hash(),
            servers: if self.is_placed() { self.addresses() } else { Vec::new() },
            seats: self.seats.clone(),
            next,
            clients,
            checkpoints: String::new(),
            begins: self.begins(),
        })
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Gathering => self.gather(now, out),
            Phase::Training => {
                self.expire_leases(now, out);
                self.watch(now, out);
                if self.rounds.is_some() && self.phase == Phase::Training {
                    self.close_if_due(now, out);
                }
                self.abandon_if_stuck(now, out);
                self.checkpoint_if_due(now, out);
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
                out.push(Effect::Send { session, body: Body::Status(Box::new(status.clone())) });
            }
        }
    }

    fn gather(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.place_if_possible(now, out);
        if self.has_ended() {
            return;
        }
        let missing = match explain::missing(self) {
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
            out.push(Effect::Send { session, body: Body::Status(Box::new(status.clone())) });
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
