//! Decides, for one shard, when a push counts and when a pull is answered.

mod event;
mod snapshots;

use std::collections::BTreeMap;

use windlass_common::ids::{
    Examples, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Version, WorkerId,
};
use windlass_common::plan::{Plan, PlanError};
use windlass_common::reduce::Contribution;
use windlass_common::schedule::Schedule;
use windlass_common::wire::{Order, Outcome, Pull, Push, Record, Reject, Report, Resume, Wait};

pub use event::{Effect, Event, Reply, Request};
use snapshots::Snapshots;
pub use snapshots::{SNAPSHOTS_MAX, WAITERS_MAX};

use crate::ledger::{Admission, Ledger};
use crate::rules::{self, Apply, Release};
use crate::store::{Shape, Snapshot, Store};
use crate::{SessionId, Time};

/// A parked pull is told whom it waits for each time this many seconds have passed.
pub const WAITING_NOTICE_S: u64 = 2;

/// One shard: its values, what it knows of each worker, and who waits for what.
#[derive(Debug)]
pub struct Shard<B> {
    run: RunId,
    lineage: Lineage,
    shape: Shape,
    apply: Apply,
    release: Release,
    schedule: Schedule,
    target: Examples,
    store: Store,
    ledger: Ledger,
    started: bool,
    /// The first step that has not been applied.
    open: Step,
    examples: Examples,
    /// Pushes for the open step, by rank.
    held: BTreeMap<WorkerId, Held<B>>,
    /// At most one pull per worker.
    parked: BTreeMap<WorkerId, Parked>,
    /// The values that the step before was computed on, for a worker that has to compute it again.
    previous: Option<Snapshot>,
    snapshots: Snapshots,
    partial: u64,
}

#[derive(Debug)]
struct Held<B> {
    session: SessionId,
    incarnation: Incarnation,
    push: Push,
    gradient: B,
}

impl<B: AsRef<[f32]>> Held<B> {
    fn contribution(&self) -> Contribution<'_> {
        Contribution { values: self.gradient.as_ref(), count: self.push.examples.into() }
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
        let (apply, release) = rules::rules(&plan.mode);
        let mut shard = Self {
            run,
            lineage,
            shape: Shape::new(&placement, id),
            apply,
            release,
            schedule: plan.schedule.clone(),
            target: plan.examples_target(),
            store: Store::new(&layout, &placement, id, plan.optimizer, plan.seed),
            ledger: Ledger::default(),
            started: false,
            open: Step(0),
            examples: Examples(0),
            held: BTreeMap::new(),
            parked: BTreeMap::new(),
            previous: None,
            snapshots: Snapshots::new(plan.training.evaluate_every_examples),
            partial: 0,
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
        self.store.snapshot(self.open, self.examples)
    }

    /// Takes in what has happened and adds what is to be done to `out`.
    pub fn handle(&mut self, now: Time, event: Event<B>, out: &mut Vec<Effect>) {
        match event {
            Event::Request(request) => self.request(now, request, out),
            Event::PullSnapshot { session, point } => self.snapshots.ask(session, point, out),
            Event::Closed { session } => {
                self.parked.retain(|_, p| p.session != session);
                self.snapshots.forget(session);
            }
            Event::Order(order) => self.order(now, order, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn request(&mut self, now: Time, request: Request<B>, out: &mut Vec<Effect>) {
        let Request { session, worker, incarnation, push, pull, .. } = request;
        let sequence = push.as_ref().map(|(p, _)| p.sequence);
        let heard = self.hear(request.run, request.lineage, worker, incarnation);
        let heard = heard.and_then(|()| match push {
            Some((push, gradient)) => {
                self.push(now, Held { session, incarnation, push, gradient }, worker, out)
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
        let Push { sequence, step, base, .. } = held.push;
        if !self.started {
            // Nobody has values to compute on, and the cohort is not complete.
            return Err(Reject::NotStarted);
        }
        self.shape.check_push(&held.push)?;
        if held.gradient.as_ref().len() as u64 != self.shape.values() {
            let found = held.gradient.as_ref().len() as u64 * 4;
            return Err(Reject::WrongPayload { expected: held.push.payload_bytes, found });
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
                if let Some(waiting) = self.held.get_mut(&worker) {
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
            Apply::Hold { .. } => self.hold(now, held, worker, out),
            Apply::Immediate { scaling } => {
                let clock = self.ledger.clock(worker).unwrap_or_default();
                if step != clock {
                    return Err(Reject::StepNotOpen { open: clock, found: step });
                }
                self.ledger.take(worker, step);
                let rate = rules::scaled_rate(scaling, self.rate(), newest.0 - base.0);
                self.store.apply(&[held.contribution()], rate);
                self.examples.0 += u64::from(held.push.examples);
                self.settle_applied(now, &held, worker, step.next(), out);
                self.after_apply(now, out);
                Ok(())
            }
        }
    }

    fn hold(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, .. } = held.push;
        let open = self.open;
        if step > open {
            return Err(Reject::StepNotOpen { open, found: step });
        }
        if self.is_finished() && step == open {
            return Err(Reject::Ended);
        }
        if step == open && self.held.contains_key(&worker) {
            return Err(Reject::AlreadyPushed { worker, step });
        }
        self.ledger.take(worker, step);
        if step < open {
            self.settle(now, &held, worker, Outcome::Late { step: open }, open, out);
            return Ok(());
        }
        out.push(Effect::Reply { session: held.session, reply: Reply::Held { sequence, step } });
        self.held.insert(worker, held);
        match self.apply {
            // The cohort is known, so that this shard may close the step by itself.
            Apply::Hold { backup: 0 } if self.ledger.members().all(|w| self.held.contains_key(&w)) => {
                let cohort: Vec<WorkerId> = self.ledger.members().collect();
                self.close(now, &cohort, out);
            }
            Apply::Hold { backup: 0 } | Apply::Immediate { .. } => {}
            Apply::Hold { .. } => out.push(Effect::Report(Report::Arrived { worker, step })),
        }
        Ok(())
    }

    /// Applies the open step with the pushes of this cohort; the others that are held are late.
    fn close(&mut self, now: Time, cohort: &[WorkerId], out: &mut Vec<Effect>) {
        let held = std::mem::take(&mut self.held);
        let rate = self.rate();
        self.previous = Some(self.snapshot());
        let members = || held.iter().filter(|(w, _)| cohort.contains(w));
        assert_eq!(members().count(), cohort.len(), "a step is closed when each of its cohort has pushed");
        let gradients: Vec<Contribution<'_>> = members().map(|(_, h)| h.contribution()).collect();
        self.store.apply(&gradients, rate);
        self.examples.0 += gradients.iter().map(|g| g.count).sum::<u64>();
        self.open = self.open.next();
        for (&worker, push) in &held {
            if cohort.contains(&worker) {
                self.settle_applied(now, push, worker, self.open, out);
            } else {
                self.settle(now, push, worker, Outcome::Late { step: self.open }, self.open, out);
            }
        }
        self.after_apply(now, out);
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
        out.push(Effect::Record(Record {
            at_us: now.0,
            worker,
            incarnation: held.incarnation,
            sequence: push.sequence,
            step: push.step,
            base: push.base,
            examples: push.examples,
            examples_applied: self.examples,
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
        if self.snapshots.is_due(self.examples) {
            let snapshot = self.snapshot();
            self.snapshots.keep(snapshot, out);
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
        if self.is_finished() && again.is_none() {
            out.push(Effect::Reply { session, reply: Reply::Finished { examples: self.examples } });
            return;
        }
        if self.wait_for(parked.pull.step).is_some() {
            debug_assert!(parked.told <= now);
            self.parked.insert(worker, parked);
            return;
        }
        let Pull { step: asked, have, slices, .. } = parked.pull;
        let (step, snapshot) = again.unwrap_or_else(|| self.values_for(asked));
        out.push(Effect::Reply { session, reply: Reply::Values { step, snapshot, have, slices } });
    }

    /// The step and values that answer a pull which need not wait.
    fn values_for(&mut self, asked: Step) -> (Step, Snapshot) {
        match self.apply {
            Apply::Immediate { .. } => (asked, self.snapshot()),
            // A worker that was left behind goes on with the step that is open.
            Apply::Hold { .. } => (self.open, self.snapshot()),
        }
    }

    /// The values that the step before was computed on, if that is the step asked for and the cohort is fixed: a worker
    /// that was restarted computes its push again.
    fn values_again(&self, asked: Step) -> Option<(Step, Snapshot)> {
        let previous = self.previous.as_ref().filter(|p| p.step == asked)?;
        (self.apply == Apply::Hold { backup: 0 }).then(|| (asked, previous.clone()))
    }

    fn wait_for(&self, step: Step) -> Option<Wait> {
        if !self.started {
            return Some(Wait::Start);
        }
        self.release.wait(step, self.open, &self.ledger, || {
            let missing: Vec<WorkerId> =
                self.ledger.members().filter(|w| !self.held.contains_key(w)).collect();
            match missing.is_empty() {
                true => Wait::Close { step: self.open },
                false => Wait::Pushes { step: self.open, missing },
            }
        })
    }

    fn order(&mut self, now: Time, order: Order, out: &mut Vec<Effect>) {
        match order {
            Order::Membership { term, members } => {
                for (member, next) in self.ledger.set_members(term, &members) {
                    // What the earlier life of this worker waited for, nobody waits for any more.
                    self.parked.remove(&member.worker);
                    let (worker, incarnation) = (member.worker, member.incarnation);
                    out.push(Effect::Report(Report::Admitted { worker, incarnation, next }));
                }
                self.release_parked(now, out);
            }
            Order::Settle { worker, incarnation, next, void_missing } => {
                if void_missing {
                    self.void_up_to(now, worker, incarnation, next, out);
                }
                out.push(Effect::Report(Report::Settled { worker, incarnation }));
            }
            Order::Start => {
                self.started = true;
                self.release_parked(now, out);
            }
            Order::Close { step, cohort } => {
                if step == self.open {
                    self.close(now, &cohort, out);
                }
            }
            Order::Finalize => {
                let snapshot = self.snapshot();
                out.push(Effect::Final { snapshot, partial: self.partial });
            }
        }
    }

    fn void_up_to(
        &mut self,
        now: Time,
        worker: WorkerId,
        incarnation: Incarnation,
        next: Resume,
        out: &mut Vec<Effect>,
    ) {
        let missing = self.ledger.void_up_to(worker, next);
        self.partial += missing;
        for n in 0..missing {
            out.push(Effect::Record(Record {
                at_us: now.0,
                worker,
                incarnation,
                sequence: Sequence(next.sequence.0 - missing + n),
                step: Step(next.step.0 - missing + n),
                base: Version(0),
                examples: 0,
                examples_applied: self.examples,
                loss: 0.0,
                outcome: Outcome::Void,
            }));
        }
        if missing > 0 {
            self.release_parked(now, out);
        }
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut parked = std::mem::take(&mut self.parked);
        for p in parked.values_mut().filter(|p| now.seconds_since(p.told) >= WAITING_NOTICE_S) {
            p.told = now;
            let step = p.pull.step;
            let wait = self.wait_for(step).expect("a parked pull waits for something");
            out.push(Effect::Reply { session: p.session, reply: Reply::Waiting { step, wait } });
        }
        self.parked = parked;
    }

    fn is_finished(&self) -> bool {
        self.examples >= self.target
    }

    fn rate(&self) -> f32 {
        self.schedule.rate(self.examples.0, self.target.0)
    }
}
