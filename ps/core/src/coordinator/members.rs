//! Admits workers, notices that one has gone, and settles what it has pushed.
//!
//! Each life of a worker has an incarnation. Who takes part is told to all shards under a new term; each shard answers for
//! every worker that is new, came back or has gone what it would push next, and is then told where that worker is settled.
//! Only then may one that joins begin.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Incarnation, ShardId, Step, WorkerId};
use windlass_common::plan::Membership;
use windlass_common::wire::{Body, Member, Order, Phase, Reject, Resume, Task, WorkerReport, WorkerState};

use super::{Coordinator, Effect};
use crate::rules::{self, Apply, Rejoin};
use crate::{SessionId, Time};

/// A worker, as the coordinator knows it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) state: WorkerState,
    pub(super) session: Option<SessionId>,
    /// The number of its process, by its own account.
    process: u32,
    pub(super) incarnation: Incarnation,
    /// Whether steps and rounds count on it.
    pub(super) member: bool,
    /// While the shards are told of this incarnation.
    pub(super) pending: Option<Pending>,
    /// When something was heard of it last, once it has been welcomed.
    pub(super) heard: Option<Time>,
    /// The step that it says it is at, and since when.
    pub(super) step: Step,
    pub(super) stepped: Time,
    /// Bytes that it says it has sent and received.
    pub(super) bytes: (u64, u64),
    pub(super) lost_at: Time,
    pub(super) why_lost: String,
    pub(super) report: WorkerReport,
}

/// What the shards have said of an incarnation that is new to them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// What each would take next of the worker.
    admitted: BTreeMap<ShardId, Resume>,
    /// The slowest clock beside the worker's, on the shard where it is largest.
    slowest: Option<Step>,
    next: Option<Resume>,
    settled: BTreeSet<ShardId>,
    void: u64,
}

impl Worker {
    pub(super) fn expected(now: Time) -> Self {
        Self {
            state: WorkerState::Expected,
            session: None,
            process: 0,
            incarnation: Incarnation(0),
            member: false,
            pending: None,
            heard: None,
            step: Step(0),
            stepped: now,
            bytes: (0, 0),
            lost_at: now,
            why_lost: String::new(),
            report: WorkerReport::default(),
        }
    }

    /// One that has had lives before the run was restored.
    pub(super) fn expected_again(now: Time, incarnation: Incarnation) -> Self {
        Self { incarnation, ..Self::expected(now) }
    }

    pub(super) fn is_active(&self) -> bool {
        self.state == WorkerState::Active
    }

    /// Whether it takes part and every shard knows it.
    fn is_ready(&self) -> bool {
        self.is_active() && self.pending.is_none()
    }

    /// Nobody has this incarnation: what its last life has sent is refused from now on.
    pub(super) fn fence(&mut self) {
        self.incarnation = self.incarnation.next();
        self.pending = Some(Pending::default());
    }
}

impl Coordinator {
    pub(super) fn worker_at(&self, session: SessionId) -> Option<WorkerId> {
        self.workers.iter().find(|(_, w)| w.session == Some(session)).map(|(&id, _)| id)
    }

    pub(super) fn is_elastic(&self) -> bool {
        self.plan.cluster.membership != Membership::Fixed
    }

    /// Those that steps and rounds count on, in order of rank. With fixed membership these are all that are planned.
    pub(super) fn members(&self) -> Vec<WorkerId> {
        match self.is_elastic() {
            true => self.workers.iter().filter(|(_, w)| w.member).map(|(&id, _)| id).collect(),
            false => self.plan.cluster.worker_ids().collect(),
        }
    }

    /// Those that take part and that every shard knows, in order of rank.
    pub(super) fn ready(&self) -> Vec<WorkerId> {
        self.workers.iter().filter(|(_, w)| w.is_ready()).map(|(&id, _)| id).collect()
    }

    pub(super) fn worker_joined(
        &mut self,
        now: Time,
        session: SessionId,
        id: WorkerId,
        process: u32,
        out: &mut Vec<Effect>,
    ) {
        if self.is_over() {
            out.push(Effect::Send { session, body: Body::Refused(Reject::Ended) });
            return;
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            out.push(Effect::Send { session, body: Body::Refused(Reject::UnknownWorker { worker: id }) });
            return;
        };
        let incarnation = worker.incarnation.next();
        if let Some(earlier) = worker.session.take() {
            let found = worker.incarnation;
            let reason = Reject::StaleIncarnation { worker: id, found, current: incarnation };
            out.push(Effect::Send { session: earlier, body: Body::Refused(reason) });
        }
        *worker = Worker {
            state: WorkerState::Active,
            session: Some(session),
            process,
            incarnation,
            member: true,
            pending: Some(Pending::default()),
            report: worker.report,
            bytes: worker.bytes,
            ..Worker::expected(now)
        };
        self.closing.depart(id, self.rejoin == Rejoin::Redo);
        if let Some(rounds) = &mut self.rounds {
            rounds.take_back(id);
        }
        out.push(Effect::Membership { worker: id, what: format!("joined as incarnation {incarnation}") });
        let moved = self.deal_hosts();
        if self.is_placed() {
            self.admit(&moved, out);
        }
        self.tell_hosts(&moved, Some(id), out);
        self.deal_tasks(out);
    }

    /// Tells every shard who takes part now; they answer for those whom they did not know. `moved` are the clients that
    /// have another host by that.
    pub(super) fn admit(&mut self, moved: &[Task], out: &mut Vec<Effect>) {
        let known = self.workers.iter().filter(|(_, w)| w.incarnation > Incarnation(0));
        let (members, departed): (Vec<_>, Vec<_>) = match self.is_elastic() {
            true => known.partition(|(_, w)| w.member),
            false => known.filter(|(_, w)| w.state != WorkerState::Left).partition(|_| true),
        };
        if members.is_empty() && departed.is_empty() {
            return;
        }
        let named = |workers: Vec<(&WorkerId, &Worker)>| -> Vec<Member> {
            let member = |(&worker, w): (&WorkerId, &Worker)| Member { worker, incarnation: w.incarnation };
            workers.into_iter().map(member).collect()
        };
        let (members, departed) = (named(members), named(departed));
        self.term = self.term.next();
        let term = self.term;
        out.push(Effect::Term { term, members: members.clone(), moved: moved.to_vec() });
        self.to_all_shards(&Order::Membership { term, members, departed }, out);
    }

    pub(super) fn admitted(
        &mut self,
        shard: ShardId,
        (id, incarnation): (WorkerId, Incarnation),
        next: Resume,
        slowest: Option<Step>,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let is_open = self.phase == Phase::Training;
        // Who was not there at the checkpoint that the run goes on from begins with those who were.
        let slowest_then = self.restore.as_ref().filter(|r| !r.members.contains(&id)).map(|r| r.slowest);
        let (step, apply) = (self.closing.open(), rules::rules(&self.plan).0);
        let is_elastic = self.is_elastic();
        let Some(worker) = self.workers.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        let Some(pending) = &mut worker.pending else { return };
        pending.admitted.insert(shard, next);
        pending.slowest = pending.slowest.max(slowest);
        if pending.admitted.len() < shards || pending.next.is_some() {
            return;
        }
        let resumes = pending.admitted.values().copied();
        let is_first = self.rejoin == Rejoin::AtFirst;
        let mut next = if is_first { resumes.min() } else { resumes.max() }.expect("there is a shard");
        if is_elastic && worker.member && is_open {
            next.step = match apply {
                // The open step has its cohort.
                Apply::Hold { .. } => step.next(),
                // It begins with the others: nobody waits for steps that it was not there for.
                Apply::Immediate { .. } | Apply::Mix { .. } => {
                    next.step.max(pending.slowest.unwrap_or_default())
                }
                Apply::HoldAll | Apply::Round { .. } | Apply::Buffer { .. } => next.step,
            };
        }
        if let (Phase::Gathering, Apply::Hold { .. }) = (self.phase, apply) {
            // Who had joined for a step that is yet to come, in a run that has been restored since, is there when the open step
            // goes on, and takes part in it.
            next.step = step;
        }
        if let (Some(slowest), Apply::Immediate { .. } | Apply::Mix { .. }) = (slowest_then, apply) {
            next.step = next.step.max(slowest);
        }
        pending.next = Some(next);
        let order = Order::Settle { worker: id, incarnation, next, void_missing: !is_first };
        self.to_all_shards(&order, out);
    }

    pub(super) fn settled(
        &mut self,
        now: Time,
        shard: ShardId,
        (id, incarnation): (WorkerId, Incarnation),
        void: u64,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let Some(worker) = self.workers.get_mut(&id).filter(|w| w.incarnation == incarnation) else { return };
        let Some(pending) = &mut worker.pending else { return };
        let (Some(next), true) = (pending.next, pending.settled.insert(shard)) else { return };
        pending.void += void;
        if pending.settled.len() < shards {
            return;
        }
        let void = pending.void;
        worker.pending = None;
        if !worker.is_active() {
            let what =
                format!("settled at push {}; {void} of its pushes are void on some shard", next.sequence);
            out.push(Effect::Membership { worker: id, what });
        } else if let Some(session) = worker.session {
            (worker.heard, worker.step, worker.stepped) = (Some(now), next.step, now);
            let clients = self.hosts.clients_of(id);
            out.push(Effect::Send { session, body: self.welcome(next, clients) });
        }
        match self.phase {
            Phase::Gathering => self.start_if_ready(now, out),
            Phase::Training => {
                self.open_round_if_none(now, out);
                self.close_if_due(now, out);
            }
            Phase::Finishing => self.finalize_if_settled(out),
            Phase::Done | Phase::Failed => {}
        }
    }

    fn start_if_ready(&mut self, now: Time, out: &mut Vec<Effect>) {
        let ready = self.ready();
        if ready.len() < self.plan.cluster.workers as usize {
            return;
        }
        self.phase = Phase::Training;
        self.closing.begin(&ready);
        out.push(Effect::Started);
        let moved = self.deal_hosts();
        if !moved.is_empty() {
            self.admit(&moved, out);
            self.tell_hosts(&moved, None, out);
        }
        self.to_all_shards(&Order::Start, out);
        self.open_round(now, out);
    }

    fn open_round_if_none(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.rounds.as_ref().is_some_and(|rounds| rounds.is_none_open()) {
            self.open_round(now, out);
        }
    }

    /// Deals the clients anew among those who take part, once the training has begun. Returns those that have moved.
    fn deal_hosts(&mut self) -> Vec<Task> {
        match self.is_elastic() && self.phase == Phase::Training {
            true => self.hosts.deal_anew(&self.members()),
            false => Vec::new(),
        }
    }

    /// Tells each worker whose clients have changed which it has now; not the one that is about to be welcomed.
    fn tell_hosts(&self, moved: &[Task], beside: Option<WorkerId>, out: &mut Vec<Effect>) {
        if moved.is_empty() {
            return;
        }
        for (&id, worker) in self.workers.iter().filter(|(id, w)| w.is_ready() && Some(**id) != beside) {
            if let Some(session) = worker.session {
                out.push(Effect::Send { session, body: Body::Hosts { clients: self.hosts.clients_of(id) } });
            }
        }
    }

    /// Deals the clients of the open round that nobody trains any more to those who take part.
    fn deal_tasks(&mut self, out: &mut Vec<Effect>) {
        if !self.is_elastic() || self.phase != Phase::Training {
            return;
        }
        let members = self.members();
        let Some(rounds) = &mut self.rounds else { return };
        if let Some((step, tasks)) = rounds.deal_anew(&self.hosts, &members) {
            out.push(Effect::Dealt { step, tasks: tasks.clone() });
            self.to_all_shards(&Order::Open { step, tasks }, out);
        }
    }

    /// A worker has pushed: in a round it may for long be at one step, and does not stand still.
    pub(super) fn has_moved(&mut self, now: Time, worker: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.stepped = now;
        }
    }

    /// A worker lives. One that was thought silent takes part again if nobody has given it up.
    pub(super) fn heard(
        &mut self,
        now: Time,
        session: SessionId,
        step: Step,
        bytes: (u64, u64),
        out: &mut Vec<Effect>,
    ) {
        let Some(id) = self.worker_at(session) else { return };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.state == WorkerState::Silent {
            worker.state = WorkerState::Active;
            out.push(Effect::Membership { worker: id, what: "is heard again".into() });
        }
        worker.heard = Some(now);
        worker.bytes = bytes;
        if worker.step != step {
            (worker.step, worker.stepped) = (step, now);
        }
    }

    pub(super) fn worker_left(
        &mut self,
        now: Time,
        session: SessionId,
        report: WorkerReport,
        out: &mut Vec<Effect>,
    ) {
        let Some(id) = self.worker_at(session) else { return };
        let (is_elastic, is_over) = (self.is_elastic(), self.is_over());
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.report = report;
        worker.session = None;
        worker.state = WorkerState::Left;
        if !report.finished && !is_over {
            if is_elastic {
                worker.why_lost = "left before the end".into();
                out.push(Effect::Membership { worker: id, what: "left before the end".into() });
                self.depart(now, id, out);
            } else {
                out.push(Effect::Membership { worker: id, what: "left".into() });
                self.fail(format!("{id} left before the training was over"), out);
            }
            return;
        }
        worker.member = false;
        out.push(Effect::Membership { worker: id, what: "left".into() });
        self.finish_if_all_gone(out);
        if self.phase == Phase::Training {
            // A shard that has fewer examples than another need not wait for whoever has gone.
            self.admit(&[], out);
        }
    }

    /// Somebody who has started a worker says that its process has ended.
    pub(super) fn exited(
        &mut self,
        now: Time,
        session: SessionId,
        id: WorkerId,
        process: u32,
        how: &str,
        out: &mut Vec<Effect>,
    ) {
        let is_this = |w: &Worker| w.session.is_some() && w.process == process;
        if self.observers.contains(&session) && self.workers.get(&id).is_some_and(is_this) {
            self.gone(now, id, WorkerState::Dead, how, out);
        }
    }

    pub(super) fn lost(
        &mut self,
        now: Time,
        session: SessionId,
        why: &str,
        silent: bool,
        out: &mut Vec<Effect>,
    ) {
        self.observers.retain(|&s| s != session);
        if let Some(id) = self.worker_at(session) {
            let state = if silent { WorkerState::Silent } else { WorkerState::Dead };
            self.gone(now, id, state, why, out);
        }
        let server =
            self.servers.iter().find(|(_, s)| s.session == session).map(|(id, s)| (*id, s.address.clone()));
        let has_replicas = self.plan.cluster.replicas > 0;
        let is_not_needed = |id| self.has_no_shards(id) || (has_replicas && !self.is_placed());
        if let Some((id, _)) = server.as_ref().filter(|(id, _)| is_not_needed(*id)) {
            // It has nothing, or nobody has been told anything yet.
            self.servers.remove(id);
        } else if let Some((id, address)) = server
            && (!self.is_over() || self.lacks_result_of(id))
        {
            self.server_gone(format!("{id} at {address} is gone: {why}"), out);
        }
    }

    /// Gives up, or notes, those of which nothing has been heard for too long, and those that others wait for in vain.
    pub(super) fn expire_leases(&mut self, now: Time, out: &mut Vec<Effect>) {
        let lease = self.plan.cluster.lease_s;
        let is_silent =
            |w: &Worker| w.is_active() && w.heard.is_some_and(|heard| now >= heard.plus_seconds(lease));
        let silent: Vec<WorkerId> =
            self.workers.iter().filter(|(_, w)| is_silent(w)).map(|(&id, _)| id).collect();
        for id in silent {
            let why = format!("nothing was heard of it for {lease} s");
            if self.is_elastic() {
                self.refuse(id, Reject::LeaseExpired { worker: id, silent_s: lease }, out);
                self.gone(now, id, WorkerState::Silent, &why, out);
            } else if let Some(worker) = self.workers.get_mut(&id) {
                // It keeps its place, and goes on if it wakes up in time.
                worker.state = WorkerState::Silent;
                worker.lost_at = now;
                out.push(Effect::Membership { worker: id, what: format!("silent: {why}") });
                worker.why_lost = why;
            }
        }
        self.give_up_stalled(now, out);
    }

    fn give_up_stalled(&mut self, now: Time, out: &mut Vec<Effect>) {
        let deadline = self.plan.cluster.stall_deadline_s;
        let stalled = self.standings.holding().find(|(id, since)| {
            let since = |w: &Worker| w.stepped.max(*since);
            self.workers.get(id).is_some_and(|w| w.is_ready() && now >= since(w).plus_seconds(deadline))
        });
        let Some((id, _)) = stalled else { return };
        let step = self.workers.get(&id).map_or(Step(0), |w| w.step);
        if self.is_elastic() {
            self.refuse(id, Reject::Stalled { worker: id, still_s: deadline }, out);
            let why = format!("others waited for it, and it was at step {step} for {deadline} s");
            self.gone(now, id, WorkerState::Silent, &why, out);
        } else {
            let reason = format!("{id} has been at step {step} for {deadline} s while others wait for it");
            self.fail(reason, out);
        }
    }

    fn refuse(&mut self, id: WorkerId, reason: Reject, out: &mut Vec<Effect>) {
        if let Some(session) = self.workers.get_mut(&id).and_then(|w| w.session.take()) {
            out.push(Effect::Send { session, body: Body::Refused(reason) });
        }
    }

    /// A worker is not there any more. With fixed membership it may come back to its place; otherwise it departs.
    fn gone(&mut self, now: Time, id: WorkerId, state: WorkerState, why: &str, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.session = None;
        if worker.is_active() {
            worker.lost_at = now;
        }
        worker.state = state;
        worker.why_lost = why.to_owned();
        let how = if state == WorkerState::Silent { "silent" } else { "dead" };
        out.push(Effect::Membership { worker: id, what: format!("{how}: {why}") });
        if self.is_elastic() && !self.is_over() {
            self.depart(now, id, out);
            return;
        }
        self.finish_if_all_gone(out);
        if self.phase == Phase::Training {
            self.close_if_due(now, out);
        }
    }

    /// A worker takes no part any more: it leaves the open step on all shards at once, nobody waits for it, and its clients
    /// are dealt to others.
    fn depart(&mut self, now: Time, id: WorkerId, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.member = false;
        worker.lost_at = now;
        worker.fence();
        self.closing.depart(id, self.rejoin == Rejoin::Redo);
        let moved = self.deal_hosts();
        if self.is_placed() {
            self.admit(&moved, out);
        }
        self.tell_hosts(&moved, None, out);
        self.finish_if_all_gone(out);
        if self.phase == Phase::Training {
            self.deal_tasks(out);
            self.close_if_due(now, out);
        }
    }

    /// Shuts out what the lost workers have sent and has not arrived yet: it would count on some shards only, and after
    /// the result was taken. They are settled like one who came back.
    pub(super) fn settle_the_lost(&mut self, out: &mut Vec<Effect>) {
        let is_lost = |w: &Worker| matches!(w.state, WorkerState::Silent | WorkerState::Dead);
        // Who has departed has been shut out by then.
        let lost = self.workers.iter().filter(|(_, w)| is_lost(w) && w.member);
        let lost: Vec<WorkerId> = lost.map(|(&id, _)| id).collect();
        for &id in &lost {
            // One that was only silent may wake up.
            let silent_s = self.plan.cluster.lease_s;
            self.refuse(id, Reject::LeaseExpired { worker: id, silent_s }, out);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.fence();
            }
        }
        if !lost.is_empty() {
            self.admit(&[], out);
        }
    }
}
