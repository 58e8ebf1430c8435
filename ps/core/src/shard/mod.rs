//! Decides, for one shard, when a push counts and when a pull is answered.

mod cut;
mod event;
mod orders;
mod snapshots;
mod standing;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ClientId, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Term, WorkerId};
use windlass_common::plan::{Goal, Membership, Plan, PlanError, Stale, Weights};
use windlass_common::reduce::{Contribution, Scaled};
use windlass_common::schedule::Schedule;
use windlass_common::wire::{Entry, Outcome, Pull, Push, Record, Reject, Report, Task, Wait};

use cut::Cut;
pub use cut::{Image, ShardState};
pub use event::{Effect, Event, Reply, Request};
use snapshots::Snapshots;
pub use snapshots::{SNAPSHOTS_MAX, SNAPSHOTS_MIN, WAITERS_MAX};
pub use standing::{BLOCKED_MAX, STANDING_EVERY_S};

use crate::ledger::{Admission, Ledger};
use crate::rules::{self, Apply, Rejoin, Release};
use crate::store::{Combined, Made, Shape, Snapshot, Store};
use crate::{SessionId, Time};

/// Memory for the values at evaluation points, in bytes; but room for [`SNAPSHOTS_MIN`] there always is.
pub const SNAPSHOT_BYTES: u64 = 256 << 20;

/// A parked pull is told whom it waits for, and an observer that its point has not been reached, each time this many seconds
/// have passed.
pub const WAITING_NOTICE_S: u64 = 2;

/// One shard: its values, what it knows of each worker, and who waits for what.
#[derive(Debug)]
pub struct Shard<B> {
    run: RunId,
    lineage: Lineage,
    shape: Shape,
    apply: Apply,
    release: Release,
    rejoin: Rejoin,
    is_elastic: bool,
    /// Whether pushes are those of clients; otherwise each worker pushes for itself.
    by_client: bool,
    schedule: Schedule,
    goal: Goal,
    store: Store,
    ledger: Ledger,
    started: bool,
    /// The first step that has not been applied.
    open: Step,
    made: Made,
    /// Pushes for the open step, in the order of their reduction.
    held: BTreeMap<Entry, Held<B>>,
    /// Who is asked in the open round.
    tasks: Vec<Task>,
    /// Of those, whom their workers have not been told of: dealt to them after they had begun the round.
    anew: BTreeSet<Task>,
    /// The coordinator opens no further round.
    concluded: bool,
    /// Where pushes are mixed: the values that each worker was given last.
    bases: BTreeMap<WorkerId, Snapshot>,
    /// At most one pull per worker.
    parked: BTreeMap<WorkerId, Parked>,
    /// The values that the step before was computed on, for a worker that has to compute it again.
    previous: Option<Snapshot>,
    snapshots: Snapshots,
    partial: u64,
    cut: Cut,
    /// Requests with pushes that belong to no checkpoint that is being taken: at most one per worker.
    aside: BTreeMap<WorkerId, Request<B>>,
    /// When it has last told how it stands.
    told: Time,
}

#[derive(Debug)]
struct Held<B> {
    session: SessionId,
    term: Term,
    incarnation: Incarnation,
    push: Push,
    gradient: B,
}

impl<B: AsRef<[f32]>> Held<B> {
    fn contribution(&self, weights: Weights) -> Contribution<'_> {
        let count = match weights {
            Weights::Examples => self.push.examples.into(),
            Weights::Uniform => 1,
        };
        Contribution { values: self.gradient.as_ref(), count }
    }
}

#[derive(Debug)]
struct Parked {
    session: SessionId,
    pull: Pull,
    told: Time,
}

impl<B: AsRef<[f32]>> Shard<B> {
    /// A shard of a run, with its initial values.
    ///
    /// # Errors
    /// If the plan cannot be placed; a checked plan can.
    pub fn new(plan: &Plan, run: RunId, lineage: Lineage, id: ShardId) -> Result<Self, PlanError> {
        let (layout, placement) = (plan.layout()?, plan.placement()?);
        let (apply, release) = rules::rules(plan);
        let mut shard = Self {
            run,
            lineage,
            shape: Shape::new(&placement, id),
            apply,
            release,
            rejoin: rules::rejoin(plan),
            is_elastic: plan.cluster.membership != Membership::Fixed,
            by_client: plan.mode.local().is_some(),
            schedule: plan.schedule.clone(),
            goal: plan.goal(),
            store: Store::new(&layout, &placement, id, plan.optimizer, plan.seed, plan.checkpoints.every),
            ledger: Ledger::new(rules::outcomes_max(plan)),
            started: false,
            open: Step(0),
            made: Made::default(),
            held: BTreeMap::new(),
            tasks: Vec::new(),
            anew: BTreeSet::new(),
            concluded: false,
            bases: BTreeMap::new(),
            parked: BTreeMap::new(),
            previous: None,
            snapshots: Snapshots::new(
                plan.training.evaluate_every,
                SNAPSHOT_BYTES / (4 * layout.total()).max(1),
            ),
            partial: 0,
            cut: Cut::None,
            aside: BTreeMap::new(),
            told: Time(0),
        };
        shard.keep_snapshot_if_due(&mut Vec::new());
        Ok(shard)
    }

    /// Which slices the shard has.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The values now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.store.snapshot(self.open, self.made)
    }

    /// Takes in what has happened and adds what is to be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event<B>, out: &mut Vec<Effect>) {
        match event {
            Event::Request(request) => self.request(now, request, out),
            Event::PullSnapshot { session, point } => self.snapshots.ask(now, session, point, out),
            Event::Closed { session } => {
                self.parked.retain(|_, p| p.session != session);
                self.aside.retain(|_, r| r.session != session);
                self.snapshots.forget(session);
            }
            Event::Order(order) => self.order(now, order, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn request(&mut self, now: Time, request: Request<B>, out: &mut Vec<Effect>) {
        let heard = self.hear(request.run, request.lineage, request.worker, request.incarnation);
        let is_aside = |(push, _): &(Push, B)| self.is_aside(request.worker, push.sequence);
        if heard.is_ok() && request.push.as_ref().is_some_and(is_aside) {
            self.set_aside(request);
            return;
        }
        let Request { session, worker, term, incarnation, push, pull, .. } = request;
        let sequence = push.as_ref().map(|(p, _)| p.sequence);
        let heard = heard.and_then(|()| match push {
            Some((push, gradient)) => {
                self.push(now, Held { session, term, incarnation, push, gradient }, worker, out)
            }
            None => Ok(()),
        });
        let answered = heard.and_then(|()| match pull {
            Some(pull) => self.pull(now, session, worker, pull, out),
            None => Ok(()),
        });
        if let Err(reason) = answered {
            out.push(Effect::Reply { session, reply: Reply::Rejected { sequence, reason } });
        }
        self.take_cut_if_due(now, out);
    }

    fn hear(
        &self,
        run: RunId,
        lineage: Lineage,
        worker: WorkerId,
        incarnation: Incarnation,
    ) -> Result<(), Reject> {
        if run != self.run {
            return Err(Reject::WrongRun { expected: self.run, found: run });
        }
        if lineage != self.lineage {
            return Err(Reject::WrongLineage { expected: self.lineage, found: lineage });
        }
        self.ledger.hear(worker, incarnation)
    }

    fn push(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, base, client, .. } = held.push;
        if !self.started {
            // Nobody has values to compute on, and the cohort is not complete.
            return Err(Reject::NotStarted);
        }
        self.shape.check_push(&held.push)?;
        if held.gradient.as_ref().len() as u64 != self.shape.values() {
            let found = held.gradient.as_ref().len() as u64 * 4;
            return Err(Reject::WrongPayload { expected: held.push.payload_bytes, found });
        }
        if !self.by_client && client.0 != worker.0 {
            return Err(Reject::WrongClient { client, worker });
        }
        let reply = |reply| Effect::Reply { session: held.session, reply };
        match self.ledger.admit(worker, sequence) {
            Admission::Refused(reason) => return Err(reason),
            Admission::Settled(outcome) => {
                out.push(reply(Reply::Settled { sequence, outcome }));
                return Ok(());
            }
            Admission::Held => {
                // The worker lost its stream and asks again: the acknowledgement goes to the new one.
                let entry = Entry { client, worker, sequence };
                if let Some(waiting) = self.held.get_mut(&entry) {
                    waiting.session = held.session;
                }
                out.push(reply(Reply::Held { sequence, step }));
                return Ok(());
            }
            Admission::New => {}
        }
        let newest = self.store.version();
        if base > newest {
            return Err(Reject::UnknownVersion { newest: newest.0, found: base.0 });
        }
        match self.apply {
            Apply::HoldAll | Apply::Hold { .. } | Apply::Round { .. } => self.hold(now, held, worker, out),
            Apply::Buffer { stale, .. } => self.buffer(now, held, worker, stale, out),
            Apply::Immediate { scaling } => {
                self.check_own_step(worker, step)?;
                let rate = rules::scaled_rate(scaling, self.rate(), newest.0 - base.0);
                self.ledger.take(worker, step.next());
                self.store.apply(Combined::Mean(&[held.contribution(Weights::Examples)]), rate);
                self.applied_at_once(now, &held, worker, out);
                Ok(())
            }
            Apply::Mix { scaling } => {
                self.check_own_step(worker, step)?;
                let based = self.bases.get(&worker).ok_or(Reject::NotStarted)?;
                if based.version != base {
                    return Err(Reject::OtherBase { given: based.version.0, found: base.0 });
                }
                let share = rules::scaled_rate(scaling, self.rate(), newest.0 - base.0);
                self.ledger.take(worker, step.next());
                self.store.mix(based, held.gradient.as_ref(), share);
                self.applied_at_once(now, &held, worker, out);
                Ok(())
            }
        }
    }

    fn check_own_step(&self, worker: WorkerId, step: Step) -> Result<(), Reject> {
        let open = self.ledger.next(worker).unwrap_or_default().step;
        if step != open {
            return Err(Reject::StepNotOpen { open, found: step });
        }
        Ok(())
    }

    fn applied_at_once(&mut self, now: Time, held: &Held<B>, worker: WorkerId, out: &mut Vec<Effect>) {
        self.made.examples.0 += held.push.work;
        self.made.at = now;
        self.settle_applied(now, held, worker, held.push.step.next(), out);
        self.after_apply(now, out);
    }

    fn hold(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, client, .. } = held.push;
        let open = self.open;
        if step > open {
            return Err(Reject::StepNotOpen { open, found: step });
        }
        if self.is_finished() && step == open {
            return Err(Reject::Ended);
        }
        let is_round = matches!(self.apply, Apply::Round { .. });
        if step == open && is_round && !self.is_asked(client, worker) {
            return Err(Reject::NotInCohort { client, worker, step });
        }
        if step == open && self.has_pushed_for(client, worker) {
            return Err(Reject::AlreadyPushed { worker, step });
        }
        // In a round a worker pushes for each of its clients.
        self.ledger.take(worker, if is_round { step } else { step.next() });
        if step < open {
            self.settle(now, &held, worker, Outcome::Late { step: open }, open, out);
            return Ok(());
        }
        let entry = Entry { client, worker, sequence };
        let incarnation = held.incarnation;
        out.push(Effect::Reply { session: held.session, reply: Reply::Held { sequence, step } });
        self.held.insert(entry, held);
        // The cohort is known, so that this shard may close the step by itself.
        if self.apply != Apply::HoldAll {
            out.push(Effect::Report(Report::Arrived { entry, incarnation, step }));
        } else if self.ledger.members().all(|w| self.has_pushed(w)) {
            let cohort: Vec<Entry> =
                self.held.keys().copied().filter(|e| self.ledger.is_member(e.worker)).collect();
            self.close(now, &cohort, out);
        }
        Ok(())
    }

    fn buffer(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        stale: Stale,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, client, base, .. } = held.push;
        self.check_own_step(worker, step)?;
        self.ledger.take(worker, step.next());
        let is_late = self.is_finished() || (stale == Stale::Late && base < self.store.version());
        if is_late {
            self.settle(now, &held, worker, Outcome::Late { step: step.next() }, step.next(), out);
            return Ok(());
        }
        let entry = Entry { client, worker, sequence };
        let incarnation = held.incarnation;
        out.push(Effect::Reply { session: held.session, reply: Reply::Held { sequence, step } });
        self.held.insert(entry, held);
        out.push(Effect::Report(Report::Arrived { entry, incarnation, step: self.open }));
        Ok(())
    }

    /// Whether a worker may push for this client in the open round. Where clients are dealt anew, the word of it may have
    /// reached another shard, and with it the worker, before it comes here; the coordinator counts only those who train.
    fn is_asked(&self, client: ClientId, worker: WorkerId) -> bool {
        match self.is_elastic {
            true => self.tasks.iter().any(|t| t.client == client),
            false => self.tasks.binary_search(&Task { client, worker }).is_ok(),
        }
    }

    fn has_pushed_for(&self, client: ClientId, worker: WorkerId) -> bool {
        let entry = |sequence| Entry { client, worker, sequence };
        self.held.range(entry(Sequence(0))..=entry(Sequence(u64::MAX))).next().is_some()
    }

    /// Where workers push for themselves, which they do in their own name.
    fn has_pushed(&self, worker: WorkerId) -> bool {
        self.has_pushed_for(ClientId(worker.0), worker)
    }

    fn held_of(&self, worker: WorkerId) -> usize {
        self.held.keys().filter(|e| e.worker == worker).count()
    }

    /// Applies the open step with the pushes of this cohort. Of the others, those that were for this step alone are late.
    fn close(&mut self, now: Time, cohort: &[Entry], out: &mut Vec<Effect>) {
        let held = std::mem::take(&mut self.held);
        let chosen: BTreeSet<&Entry> = cohort.iter().collect();
        let (members, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(entry, _)| chosen.contains(entry));
        assert_eq!(members.len(), cohort.len(), "a step is closed when each of its cohort has pushed");
        if self.apply == Apply::HoldAll {
            self.previous = Some(self.snapshot());
        }
        self.combine(&members);
        self.made.examples.0 += members.values().map(|h| h.push.work).sum::<u64>();
        self.made.at = now;
        self.open = self.open.next();
        self.tasks.clear();
        self.anew.clear();
        for (entry, push) in &members {
            let clock = self.clock_after(push);
            self.settle_applied(now, push, entry.worker, clock, out);
        }
        if matches!(self.apply, Apply::Buffer { stale: Stale::Kept, .. }) && !self.is_finished() {
            self.held = rest;
        } else {
            self.settle_late(now, &rest, out);
        }
        self.after_apply(now, out);
    }

    /// The clock of a worker whose push has been closed with.
    fn clock_after(&self, held: &Held<B>) -> Step {
        match self.apply {
            Apply::Buffer { .. } => held.push.step.next(),
            _ => self.open,
        }
    }

    fn settle_late(&mut self, now: Time, held: &BTreeMap<Entry, Held<B>>, out: &mut Vec<Effect>) {
        for (entry, push) in held {
            let step = self.clock_after(push);
            self.settle(now, push, entry.worker, Outcome::Late { step }, step, out);
        }
    }

    /// Makes one optimizer step with these pushes; with none the values stay.
    fn combine(&mut self, members: &BTreeMap<Entry, Held<B>>) {
        if members.is_empty() {
            return;
        }
        let (rate, version) = (self.rate(), self.store.version());
        match self.apply {
            Apply::Buffer { size, scaling, .. } => {
                let scale = |h: &Held<B>| rules::scaled_rate(scaling, 1.0, version.0 - h.push.base.0);
                let scaled = |h| Scaled { scale: scale(h), values: h.gradient.as_ref() };
                let pushes: Vec<Scaled<'_>> = members.values().map(scaled).collect();
                self.store.apply(Combined::Sum(&pushes, size as f32), rate);
            }
            Apply::Round { weights } => {
                let pushes: Vec<_> = members.values().map(|h| h.contribution(weights)).collect();
                self.store.apply(Combined::Mean(&pushes), rate);
            }
            Apply::HoldAll | Apply::Hold { .. } | Apply::Immediate { .. } | Apply::Mix { .. } => {
                let pushes: Vec<_> = members.values().map(|h| h.contribution(Weights::Examples)).collect();
                self.store.apply(Combined::Mean(&pushes), rate);
            }
        }
    }

    fn settle_applied(
        &mut self,
        now: Time,
        held: &Held<B>,
        worker: WorkerId,
        clock: Step,
        out: &mut Vec<Effect>,
    ) {
        let version = self.store.version();
        let staleness = version.0 - 1 - held.push.base.0;
        self.settle(now, held, worker, Outcome::Applied { version, staleness }, clock, out);
    }

    /// Writes down what became of a push, and only then says so.
    fn settle(
        &mut self,
        now: Time,
        held: &Held<B>,
        worker: WorkerId,
        outcome: Outcome,
        clock: Step,
        out: &mut Vec<Effect>,
    ) {
        let push = &held.push;
        self.ledger.settle(worker, push.sequence, outcome, clock);
        self.made.pushes += 1;
        out.push(Effect::Record(Record {
            at_us: now.0,
            term: held.term,
            worker,
            incarnation: held.incarnation,
            sequence: push.sequence,
            step: push.step,
            base: push.base,
            client: push.client,
            examples: push.examples,
            work: push.work,
            examples_applied: self.made.examples,
            loss: push.loss,
            outcome,
        }));
        let reply = Reply::Settled { sequence: push.sequence, outcome };
        out.push(Effect::Reply { session: held.session, reply });
    }

    fn after_apply(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.keep_snapshot_if_due(out);
        if self.is_finished() {
            self.snapshots.end(out);
        }
        self.release_parked(now, out);
    }

    fn keep_snapshot_if_due(&mut self, out: &mut Vec<Effect>) {
        let position = self.position();
        if self.snapshots.is_due(position) {
            let snapshot = self.snapshot();
            self.snapshots.keep(position, snapshot, out);
        }
    }

    fn release_parked(&mut self, now: Time, out: &mut Vec<Effect>) {
        for (worker, parked) in std::mem::take(&mut self.parked) {
            self.answer(now, worker, parked, out);
        }
    }

    fn pull(
        &mut self,
        now: Time,
        session: SessionId,
        worker: WorkerId,
        pull: Pull,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        for &slice in &pull.slices {
            self.shape.check_slice(slice, None)?;
        }
        self.answer(now, worker, Parked { session, pull, told: now }, out);
        Ok(())
    }

    /// Answers a pull, or parks it.
    fn answer(&mut self, now: Time, worker: WorkerId, parked: Parked, out: &mut Vec<Effect>) {
        let session = parked.session;
        // Even when this shard is finished: another one may still lack that worker's last push.
        let again = self.values_again(parked.pull.step);
        // One that was restored may be finished before those who join again are all there.
        if self.started && self.is_finished() && again.is_none() {
            out.push(Effect::Reply { session, reply: Reply::Finished { examples: self.made.examples } });
            return;
        }
        if self.must_wait(worker, parked.pull.step) {
            debug_assert!(parked.told <= now);
            self.parked.insert(worker, parked);
            return;
        }
        let Pull { step: asked, have, slices, .. } = parked.pull;
        let (step, snapshot) = again.unwrap_or_else(|| self.values_for(asked));
        if let Apply::Mix { .. } = self.apply {
            self.bases.insert(worker, snapshot.clone());
        }
        let clients = self.remaining(worker);
        self.anew.retain(|task| task.worker != worker);
        out.push(Effect::Reply { session, reply: Reply::Values { step, snapshot, have, slices, clients } });
    }

    /// The step and values that answer a pull which need not wait.
    fn values_for(&mut self, asked: Step) -> (Step, Snapshot) {
        match self.apply {
            Apply::Immediate { .. } | Apply::Mix { .. } | Apply::Buffer { .. } => (asked, self.snapshot()),
            // A worker that was left behind goes on with the step that is open.
            Apply::HoldAll | Apply::Hold { .. } | Apply::Round { .. } => (self.open, self.snapshot()),
        }
    }

    /// The clients of a worker that are asked in the open round and whose pushes this shard lacks.
    fn remaining(&self, worker: WorkerId) -> Vec<ClientId> {
        let lacks = |t: &&Task| t.worker == worker && !self.has_pushed_for(t.client, worker);
        self.tasks.iter().filter(lacks).map(|t| t.client).collect()
    }

    /// The values that the step before was computed on, if that is the step asked for and the cohort is fixed: a worker
    /// that was restarted computes its push again.
    fn values_again(&self, asked: Step) -> Option<(Step, Snapshot)> {
        let previous = self.previous.as_ref().filter(|p| p.step == asked)?;
        (self.apply == Apply::HoldAll).then(|| (asked, previous.clone()))
    }

    /// Whether a pull has to wait. To name those it waits for takes much longer where there are many.
    fn must_wait(&self, worker: WorkerId, step: Step) -> bool {
        self.wait(worker, step, || Wait::Close { step: self.open }).is_some()
    }

    /// Those whose pushes for the open step are missing.
    fn missing(&self) -> Wait {
        match self.apply {
            Apply::Round { .. } => {
                let lacks = |t: &&Task| !self.has_pushed_for(t.client, t.worker);
                let mut workers: Vec<WorkerId> = self.tasks.iter().filter(lacks).map(|t| t.worker).collect();
                workers.sort_unstable();
                workers.dedup();
                rules::missing(workers.into_iter(), self.open)
            }
            _ => rules::missing(self.ledger.members().filter(|&w| !self.has_pushed(w)), self.open),
        }
    }

    fn wait(&self, worker: WorkerId, step: Step, missing: impl FnOnce() -> Wait) -> Option<Wait> {
        if !self.started {
            return Some(Wait::Start);
        }
        if self.apply.held_max().is_some_and(|most| self.held_of(worker) >= most) {
            return Some(Wait::Close { step: self.open });
        }
        // Who asks for the next round is done with this one: of its clients it may have dropped some.
        let has_task = || match step > self.open {
            true => self.anew.iter().any(|t| t.worker == worker),
            false => !self.remaining(worker).is_empty(),
        };
        self.release.wait(step, self.open, &self.ledger, has_task, missing)
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut parked = std::mem::take(&mut self.parked);
        // It is the same for all who wait for it.
        let missing = OnceCell::new();
        for (&worker, p) in parked.iter_mut().filter(|(_, p)| now.seconds_since(p.told) >= WAITING_NOTICE_S) {
            p.told = now;
            let step = p.pull.step;
            let missing = || missing.get_or_init(|| self.missing()).clone();
            let wait = self.wait(worker, step, missing).expect("a parked pull waits for something");
            out.push(Effect::Reply { session: p.session, reply: Reply::Waiting { step, wait } });
        }
        self.parked = parked;
        let position = self.position();
        self.snapshots.tell_waiters(now, position, out);
        self.tell_standing_if_due(now, out);
    }

    fn position(&self) -> u64 {
        self.goal.position(self.open, self.made.examples)
    }

    fn is_finished(&self) -> bool {
        self.concluded || self.position() >= self.goal.total()
    }

    fn rate(&self) -> f32 {
        self.schedule.rate(self.position(), self.goal.total())
    }
}
