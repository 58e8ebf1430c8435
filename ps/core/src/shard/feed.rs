//! Tells the standby what happens on a shard, and does on a standby what has happened on its primary.
//!
//! A shard follows from its pushes and orders in their order; what is asked, parked and told does not change it. So a copy is
//! made of all that the shard is at one moment, and of what it does from then on. Where pushes are held until all have come,
//! the standby is given their mean instead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use windlass_common::codec::Patch;
use windlass_common::ids::{Lineage, RunId, ShardId, Version, WorkerId};
use windlass_common::optimizer::State;
use windlass_common::plan::{Plan, PlanError, Weights};
use windlass_common::reduce::{self, Contribution};
use windlass_common::wire::{Entry, Feed, Order, Previous, Push, Record, Whole};

use super::{Effect, Held, NOBODY, Shard};
use crate::Time;
use crate::ledger::Ledger;
use crate::rules;
use crate::store::{Combined, Compensated, Made, Pushed, SliceState, SliceValues, Store, spare};

/// The digests of primary and standby are compared each time so many versions have been made.
pub const DIGEST_EVERY: u64 = 1000;

/// Buffers kept for what is made for a standby; beyond that, memory is given back.
const MADE_MAX: usize = 8;

/// The floats that go with what a standby is told.
#[derive(Clone, Debug)]
pub enum Floats<B> {
    /// There are none.
    None,
    /// A gradient, whose push goes on as its worker wrote it.
    Gradient(B),
    /// End to end.
    Pieces(Vec<Arc<Vec<f32>>>),
}

/// Why a standby cannot do what its primary did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum FeedError {
    #[error("its digest at version {version} is {found:016x}, that of the primary {expected:016x}")]
    Digest { version: Version, expected: u64, found: u64 },
    #[error("it is at version {found}, the primary at {expected}")]
    Version { expected: Version, found: Version },
    #[error("it refuses what the primary has taken: {0}")]
    Refused(String),
    #[error("{found} floats came with what takes {expected}")]
    Length { expected: u64, found: u64 },
    #[error("it is told to go on before it has been told of the whole")]
    Empty,
}

/// What a shard keeps for its standby and for the log.
#[derive(Debug)]
pub(super) struct Feeding<B> {
    /// Whether the run has standbys, so that what may be needed again is kept.
    is_kept: bool,
    /// Whether one is told what happens.
    is_told: bool,
    untold: VecDeque<(Feed, Floats<B>)>,
    /// What the log of the run is not known to hold.
    pub(super) records: VecDeque<Record>,
    /// With which pushes the coordinator closed the last step.
    closed: Vec<Entry>,
    /// Buffers for what is made for the standby, the last ones among them perhaps on their way.
    made: Vec<SliceValues>,
}

impl<B> Feeding<B> {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            is_kept: plan.cluster.replicas > 0,
            is_told: false,
            untold: VecDeque::new(),
            records: VecDeque::new(),
            closed: Vec::new(),
            made: Vec::new(),
        }
    }

    /// Keeps a buffer for use once it has been sent.
    fn keep(&mut self, buffer: SliceValues) {
        if self.made.len() < MADE_MAX {
            self.made.push(buffer);
        }
    }
}

impl<B: Pushed> Shard<B> {
    /// What the standby is told next; one for each [`Effect::Fed`].
    pub fn next_feed(&mut self) -> Option<(Feed, Floats<B>)> {
        self.feeding.untold.pop_front()
    }

    /// Tells a standby all that the shard is, and from now on what happens to it.
    pub fn begin_feeding(&mut self, out: &mut Vec<Effect>) {
        self.feeding.untold.clear();
        self.feeding.is_told = true;
        let (whole, floats) = self.whole();
        self.tell(Feed::Whole(Box::new(whole)), Floats::Pieces(floats), out);
        let held: Vec<_> =
            self.held.iter().filter_map(|(e, h)| Some((h.fed(e.worker), h.gradient.clone()?))).collect();
        // Where all have to come, the mean is told when they have.
        if self.is_held_for_all() {
            return;
        }
        for (fed, gradient) in held {
            self.tell(Feed::Held(fed), Floats::Gradient(gradient), out);
        }
    }

    /// The standby is gone.
    pub fn end_feeding(&mut self) {
        self.feeding.is_told = false;
        self.feeding.untold.clear();
    }

    /// The standby has all: the primary shows from here on only what it has confirmed.
    pub fn told_all(&mut self, out: &mut Vec<Effect>) {
        self.tell(Feed::Full, Floats::None, out);
    }

    fn tell(&mut self, feed: Feed, floats: Floats<B>, out: &mut Vec<Effect>) {
        if self.feeding.is_told {
            self.feeding.untold.push_back((feed, floats));
            out.push(Effect::Fed);
        }
    }

    pub(super) fn feed_order(&mut self, now: Time, order: &Order, out: &mut Vec<Effect>) {
        if self.feeding.is_told {
            self.tell(Feed::Order { at_us: now.0, order: order.clone() }, Floats::None, out);
        }
    }

    pub(super) fn feed_push(&mut self, now: Time, held: &Held<B>, worker: WorkerId, out: &mut Vec<Effect>) {
        if let (true, Some(gradient)) = (self.feeding.is_told, held.gradient.clone()) {
            let feed = Feed::Push { at_us: now.0, fed: held.fed(worker), is_compensated: false };
            self.tell(feed, Floats::Gradient(gradient), out);
        }
    }

    /// The same of a push that is compensated: the standby does not know what its worker was sent, and is given what it comes
    /// to.
    pub(super) fn feed_compensated(
        &mut self,
        now: Time,
        held: &Held<B>,
        worker: WorkerId,
        push: Compensated<'_>,
        out: &mut Vec<Effect>,
    ) {
        if !self.feeding.is_told {
            return;
        }
        let mut shared = spare(&mut self.feeding.made, self.shape.values() as usize);
        let made = Arc::get_mut(&mut shared).expect("a spare buffer has no readers");
        self.store.write_compensated(push, made);
        let feed = Feed::Push { at_us: now.0, fed: held.fed(worker), is_compensated: true };
        self.tell(feed, Floats::Pieces(vec![shared.clone()]), out);
        self.feeding.keep(shared);
    }

    /// The mean of a step's pushes, for the standby too; none where nobody is told.
    pub(super) fn feed_step(
        &mut self,
        now: Time,
        members: &BTreeMap<Entry, Held<B>>,
        out: &mut Vec<Effect>,
    ) -> Option<SliceValues> {
        if !self.feeding.is_told || members.is_empty() {
            return None;
        }
        let mut shared = spare(&mut self.feeding.made, self.shape.values() as usize);
        let mean = Arc::get_mut(&mut shared).expect("a spare buffer has no readers");
        let parts = members.values().map(|h| h.contribution(Weights::Examples));
        reduce::weighted_mean(parts, mean).expect("pushes are checked when they arrive");
        let pushes = members.iter().map(|(entry, held)| held.fed(entry.worker)).collect();
        let payload_bytes = 4 * shared.len() as u64;
        let feed = Feed::Step { at_us: now.0, pushes, payload_bytes };
        self.tell(feed, Floats::Pieces(vec![shared.clone()]), out);
        self.feeding.keep(shared.clone());
        Some(shared)
    }

    pub(super) fn feed_digest_if_due(&mut self, out: &mut Vec<Effect>) {
        let version = self.store.version();
        if self.feeding.is_told && version.0.is_multiple_of(DIGEST_EVERY) {
            let digest = self.digest();
            self.tell(Feed::Digest { version, digest }, Floats::None, out);
        }
    }

    /// Writes down what became of a push, and keeps it until the log is known to hold it.
    pub(super) fn record(&mut self, record: Record, out: &mut Vec<Effect>) {
        if self.feeding.is_kept {
            self.feeding.records.push_back(record);
        }
        out.push(Effect::Record(record));
    }

    pub(super) fn logged(&mut self, records: u64) {
        while self.feeding.records.front().is_some_and(|record| record.number <= records) {
            self.feeding.records.pop_front();
        }
    }

    /// The coordinator has closed a step with these.
    pub(super) fn note_closed(&mut self, cohort: &[Entry]) {
        if self.feeding.is_kept {
            cohort.clone_into(&mut self.feeding.closed);
        }
    }

    /// With which pushes the coordinator closed the step before the open one.
    pub fn closed(&self) -> &[Entry] {
        &self.feeding.closed
    }

    /// Whether the standby is told of each push by itself.
    pub fn tells_pushes(&self) -> bool {
        !self.is_held_for_all()
    }

    /// Whether the run has standbys: pushes are to be kept as their workers wrote them, for one may be told of any.
    pub fn is_replicated(&self) -> bool {
        self.feeding.is_kept
    }

    /// Whether the coordinator opens no further round.
    pub fn is_concluded(&self) -> bool {
        self.concluded
    }

    /// The lineage that the shard is in.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// A digest of the values, the optimizer's state and the clocks, the same on every copy.
    pub fn digest(&self) -> u64 {
        let mut lanes = [0x9e37_79b9_7f4a_7c15_u64; 8];
        let mut add = |lane: usize, value: u64| {
            lanes[lane] = (lanes[lane] ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
        };
        for slice in self.store.slices() {
            let vectors = std::iter::once(&slice.values).chain(&slice.state.vectors);
            for vector in vectors.chain(&slice.reference) {
                for chunk in vector.chunks(8) {
                    chunk.iter().enumerate().for_each(|(lane, x)| add(lane, x.to_bits().into()));
                }
            }
            add(0, slice.state.updates);
        }
        let clocks = self.ledger.unsettled().flat_map(|(worker, sequence)| {
            let clock = self.ledger.clock(worker).unwrap_or_default();
            [worker.0.into(), sequence.0, clock.0]
        });
        [self.store.version().0, self.open.0, self.made.examples.0, self.made.pushes]
            .into_iter()
            .chain(clocks)
            .for_each(|value| add(1, value));
        lanes
            .into_iter()
            .fold(0, |all: u64, lane| (all ^ lane).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (all >> 29))
    }

    fn whole(&mut self) -> (Whole, Vec<Arc<Vec<f32>>>) {
        let slices = self.store.slices();
        let updates = slices.iter().map(|s| s.state.updates).collect();
        let mut floats = Vec::new();
        for SliceState { values, state, reference } in slices {
            floats.push(values);
            floats.extend(state.vectors);
            floats.extend(reference);
        }
        if let Some(previous) = &self.previous {
            floats.extend(previous.values().cloned());
        }
        let previous = self.previous.as_ref().map(|p| Previous {
            version: p.version,
            step: p.step,
            examples: p.examples,
            pushes: p.pushes,
            made_us: p.made.0,
        });
        // The standby takes these when it is told of the step that they make.
        let mut ledger = self.ledger.clone();
        if self.is_held_for_all() {
            self.held.iter().for_each(|(entry, held)| ledger.take_back(entry.worker, held.push.step));
        }
        let whole = Whole {
            version: self.store.version(),
            open: self.open,
            examples: self.made.examples,
            pushes: self.made.pushes,
            made_us: self.made.at.0,
            partial: self.partial,
            started: self.started,
            concluded: self.concluded,
            term: ledger.term(),
            tasks: self.tasks.clone(),
            closed: self.feeding.closed.clone(),
            workers: ledger.clocks(),
            records: self.feeding.records.iter().copied().collect(),
            updates,
            previous,
            payload_bytes: floats.iter().map(|f| 4 * f.len() as u64).sum(),
        };
        (whole, floats)
    }

    /// A copy of another server's shard; `floats` are those that came with it.
    ///
    /// # Errors
    /// If they are not as many as the shard has.
    ///
    /// # Panics
    /// If the plan cannot be placed; a checked plan can.
    pub(crate) fn copied(
        plan: &Plan,
        (run, lineage, id): (RunId, Lineage, ShardId),
        whole: Whole,
        floats: &[f32],
    ) -> Result<Self, FeedError> {
        let placed = |error: PlanError| FeedError::Refused(error.to_string());
        let mut shard = Self::new(plan, run, lineage, id).map_err(placed)?;
        let vectors = plan.optimizer.state_names().len();
        let has_reference = Patch::of(plan.codecs.pull).is_some();
        let (values, has_previous) = (shard.shape.values(), whole.previous.is_some());
        let expected = values * (1 + vectors as u64 + u64::from(has_reference) + u64::from(has_previous));
        if expected != floats.len() as u64 || whole.updates.len() != shard.shape.parts.len() {
            return Err(FeedError::Length { expected, found: floats.len() as u64 });
        }
        let mut rest = floats;
        let mut take = |len: u64| {
            let (now, later) = rest.split_at(len as usize);
            rest = later;
            now.to_vec()
        };
        let parts = shard.shape.parts.clone();
        let slices = parts.iter().zip(&whole.updates).map(|(part, &updates)| {
            let values = Arc::new(take(part.values));
            let vectors = (0..vectors).map(|_| Arc::new(take(part.values))).collect();
            let reference = has_reference.then(|| Arc::new(take(part.values)));
            SliceState { values, state: State { vectors, updates }, reference }
        });
        let slices = slices.collect();
        shard.begin_with(plan, whole.version, slices).map_err(placed)?;
        shard.previous = whole.previous.map(|p| {
            let slices = parts.iter().map(|&part| (part, Arc::new(take(part.values)))).collect();
            let made = Made { examples: p.examples, pushes: p.pushes, at: Time(p.made_us) };
            Store::shown_before(p.version, p.step, made, slices)
        });
        shard.ledger = Ledger::copied(rules::outcomes_max(plan), whole.term, whole.workers);
        (shard.open, shard.partial) = (whole.open, whole.partial);
        shard.made = Made { examples: whole.examples, pushes: whole.pushes, at: Time(whole.made_us) };
        (shard.started, shard.concluded, shard.tasks) = (whole.started, whole.concluded, whole.tasks);
        shard.feeding.closed = whole.closed;
        shard.feeding.records = whole.records.into();
        shard.snapshots.go_on_at(shard.position());
        shard.keep_snapshot_if_due(&mut Vec::new());
        if shard.is_finished() {
            shard.snapshots.end(&mut Vec::new());
        }
        Ok(shard)
    }

    /// Does what has happened on the primary. Nobody is answered.
    pub(crate) fn follow(&mut self, feed: Feed, floats: B) -> Result<(), FeedError> {
        let mut unheard = Vec::new();
        match feed {
            Feed::Held(fed) => {
                let Push { client, sequence, .. } = fed.push;
                let entry = Entry { client, worker: fed.worker, sequence };
                self.held.insert(entry, Held::of(fed, Some(floats)));
            }
            Feed::Push { at_us, fed, .. } => {
                let worker = fed.worker;
                let held = Held::of(fed, Some(floats));
                self.push(Time(at_us), held, worker, &mut unheard)
                    .map_err(|reason| FeedError::Refused(reason.to_string()))?;
            }
            Feed::Step { at_us, pushes, .. } => {
                let (expected, found) = (self.shape.values(), floats.count() as u64);
                if expected != found {
                    return Err(FeedError::Length { expected, found });
                }
                let mut members = BTreeMap::new();
                for fed in pushes {
                    let (worker, push) = (fed.worker, &fed.push);
                    let entry = Entry { client: push.client, worker, sequence: push.sequence };
                    let is_next = self.ledger.next(worker).is_some_and(|next| next.sequence == push.sequence);
                    if !is_next {
                        let what = format!("push {} of {worker} is not the next", push.sequence);
                        return Err(FeedError::Refused(what));
                    }
                    self.ledger.take(worker, push.step.next());
                    if let Some(left) = &mut self.left {
                        left.taken(push.client, worker, push.sequence);
                    }
                    members.insert(entry, Held::of(fed, None));
                }
                self.close_with(Time(at_us), members, BTreeMap::new(), Some(floats.floats()), &mut unheard);
            }
            Feed::Order { at_us, order } => self.order(Time(at_us), order, &mut unheard),
            Feed::Digest { version, digest: expected } => {
                if version != self.store.version() {
                    return Err(FeedError::Version { expected: version, found: self.store.version() });
                }
                let found = self.digest();
                if expected != found {
                    return Err(FeedError::Digest { version, expected, found });
                }
            }
            Feed::Whole(_) | Feed::Full => {}
        }
        Ok(())
    }

    /// The same shard in a new lineage, into which nothing is taken that was not settled or held: nobody takes part yet, and
    /// nobody is answered. What the log does not hold is told again.
    #[must_use]
    pub fn into_lineage(mut self, lineage: Lineage, logged: u64, out: &mut Vec<Effect>) -> Self {
        self.lineage = lineage;
        self.started = false;
        self.ledger.nobody_takes_part();
        self.parked.clear();
        self.aside.clear();
        self.anew.clear();
        self.bases.clear();
        self.tasks.clear();
        self.cut = super::Cut::None;
        if let Some(left) = &mut self.left {
            left.leave_lineage();
        }
        self.end_feeding();
        self.held.values_mut().for_each(|held| held.session = NOBODY);
        self.snapshots.forget_all();
        self.logged(logged);
        out.extend(self.feeding.records.iter().copied().map(Effect::Record));
        self
    }

    /// What is applied to make a step of these, where each is there by itself or only their mean is.
    pub(super) fn apply_mean(&mut self, mean: &[f32]) {
        let rate = self.rate();
        self.store.apply(Combined::Mean(&[Contribution { values: mean, count: 1 }]), rate);
    }
}

#[cfg(test)]
mod tests;
