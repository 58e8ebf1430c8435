//! Decides, for one shard, when a push counts and when a pull is answered.

mod apply;
mod bases;
mod cut;
mod event;
mod feed;
mod keep;
mod orders;
mod pull;
mod push;
mod snapshots;
mod standing;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use std::sync::Arc;

use windlass_common::codec::{Codec, Patch};
use windlass_common::ids::{Incarnation, Lineage, RunId, ShardId, Step, Term, Version, WorkerId};
use windlass_common::plan::{Goal, Membership, Plan, PlanError, Weights};
use windlass_common::reduce::Contribution;
use windlass_common::schedule::Schedule;
use windlass_common::wire::{Entry, Fed, Pull, Push, Reject, Task};

use bases::Bases;
use cut::Cut;
pub use cut::{Image, ShardState};
pub use event::{Effect, Event, Given, Part, Reply, Request};
use feed::Feeding;
pub use feed::{DIGEST_EVERY, FeedError, Floats};
pub use keep::GIVEN_WITHIN_S;
use keep::LeftOut;
use snapshots::Snapshots;
pub use snapshots::{SNAPSHOTS_MAX, SNAPSHOTS_MIN, WAITERS_MAX};
pub use standing::{BLOCKED_MAX, STANDING_EVERY_S};

use crate::ledger::Ledger;
use crate::residuals::Residuals;
use crate::rules::{self, Apply, Rejoin, Release};
use crate::store::{Hands, Made, Pushed, Shape, SliceState, SliceValues, Snapshot, Source, Store};
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
    /// Where a push is applied by what it was computed on, too.
    bases: Bases,
    /// At most one pull per worker.
    parked: BTreeMap<WorkerId, Parked>,
    /// The values that the step before was computed on, for a worker that has to compute it again.
    previous: Option<Snapshot>,
    snapshots: Snapshots,
    partial: u64,
    cut: Cut,
    /// Requests with pushes that belong to no checkpoint that is being taken: at most one per worker.
    aside: BTreeMap<WorkerId, Request<B>>,
    feeding: Feeding<B>,
    /// Where the codec leaves something out of pushes for good.
    left: Option<LeftOut>,
    /// When it has last told how it stands.
    told: Time,
}

/// Nobody is answered here.
const NOBODY: SessionId = SessionId(u64::MAX);

#[derive(Debug)]
struct Held<B> {
    session: SessionId,
    term: Term,
    incarnation: Incarnation,
    push: Push,
    /// Where a standby was told only the mean of several, none.
    gradient: Option<B>,
}

impl<B: Pushed> Held<B> {
    fn contribution(&self, weights: Weights) -> Contribution<'_> {
        let count = match weights {
            Weights::Examples => self.push.examples.into(),
            Weights::Uniform => 1,
        };
        Contribution { values: self.values(), count }
    }

    fn values(&self) -> &[f32] {
        self.gradient.as_ref().map(Pushed::floats).unwrap_or_default()
    }

    fn source(&self) -> Option<&dyn Source> {
        self.gradient.as_ref().and_then(Pushed::source)
    }

    fn of(fed: Fed, gradient: Option<B>) -> Self {
        let Fed { term, incarnation, push, .. } = fed;
        Self { session: NOBODY, term, incarnation, push, gradient }
    }

    fn fed(&self, worker: WorkerId) -> Fed {
        Fed { worker, term: self.term, incarnation: self.incarnation, push: self.push.clone() }
    }
}

#[derive(Debug)]
struct Parked {
    session: SessionId,
    pull: Pull,
    told: Time,
}

impl<B: Pushed> Shard<B> {
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
            shape: Shape::new(&placement, id, plan.codecs),
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
            bases: Bases::new(plan.mode.in_flight()),
            parked: BTreeMap::new(),
            previous: None,
            snapshots: Snapshots::new(
                plan.training.evaluate_every,
                SNAPSHOT_BYTES / (4 * layout.total()).max(1),
            ),
            partial: 0,
            cut: Cut::None,
            aside: BTreeMap::new(),
            feeding: Feeding::new(plan),
            left: LeftOut::new(plan, Residuals::new()),
            told: Time(0),
        };
        shard.store.expect_kept(rules::versions_kept(plan));
        shard.send_in(plan.codecs.pull, None);
        shard.keep_snapshot_if_due(&mut Vec::new());
        Ok(shard)
    }

    /// Takes the place of the values with which a shard begins.
    fn begin_with(
        &mut self,
        plan: &Plan,
        version: Version,
        slices: Vec<SliceState>,
    ) -> Result<(), PlanError> {
        let references = slices.iter().map(|slice| slice.reference.clone()).collect();
        let (placement, id) = (plan.placement()?, self.shape.shard);
        self.store = Store::restored(&placement, id, plan.optimizer, version, slices);
        self.store.expect_kept(rules::versions_kept(plan));
        self.send_in(plan.codecs.pull, references);
        Ok(())
    }

    /// Workers are sent values in this codec.
    fn send_in(&mut self, codec: Codec, references: Option<Vec<SliceValues>>) {
        let is_kept = self.is_held_for_all() || self.apply.keeps_bases();
        match Patch::of(codec) {
            Some(patch) => self.store.refer(patch, references),
            // Versions that are kept do not change in place, whoever reads them: they are sent as they are.
            None if codec == Codec::F32 && is_kept => {}
            None => self.store.send_in(codec),
        }
    }

    /// Large slices are updated by these threads too from now on.
    pub fn lend(&mut self, hands: Arc<dyn Hands>) {
        self.store.lend(hands);
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
            Event::Given(given) => self.given(given, out),
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
        if heard.is_ok() {
            self.ask_to_give(worker, session, out);
        }
        let sequence = push.as_ref().map(|(p, _)| p.sequence);
        let heard = heard.and_then(|()| match push {
            Some((push, gradient)) => self.push(
                now,
                Held { session, term, incarnation, push, gradient: Some(gradient) },
                worker,
                out,
            ),
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
        self.look_who_owes(now, out);
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
