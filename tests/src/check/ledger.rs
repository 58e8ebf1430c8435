//! Follows the numbers of each worker's pushes on one shard: taken in order, settled once, refused without effect.

use std::collections::BTreeMap;

use windlass_common::ids::{Incarnation, Lineage, Sequence, WorkerId};
use windlass_common::plan::{Membership, Mode, Plan, Stale};
use windlass_common::wire::{Member, Order, Outcome, Record};

use super::images;
use crate::cluster::{Asked, Entry, History, Kept, Source, Told};
use crate::sim::FORGED;

/// Here a standby is told of pushes when all have come.
const ALL_HELD: Mode = Mode::Sync { backup: 0 };

/// What one event has led to, or the part of that before or after a checkpoint was taken.
#[derive(Default)]
struct Group<'a> {
    asked: Option<&'a Asked>,
    order: Option<&'a Order>,
    /// Who came in another life than before, and who went.
    members: Option<(&'a [Member], &'a [WorkerId])>,
    records: Vec<&'a Record>,
    told: Vec<(u64, &'a Told)>,
    /// A checkpoint has been taken before this.
    is_after_image: bool,
}

impl Group<'_> {
    /// Whether anything is said of a push.
    fn answers(&self, asked: &Asked, sequence: Sequence) -> bool {
        self.records.iter().any(|r| (r.worker, r.sequence) == (asked.worker, sequence))
            || self.told.iter().any(|(session, told)| {
                *session == asked.session.0
                    && match told {
                        Told::Held(told) | Told::Settled(told, _) => *told == sequence,
                        Told::Rejected => true,
                        _ => false,
                    }
            })
    }
}

/// How a group ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The event has been dealt with in full.
    Handled,
    /// A checkpoint is taken.
    Image,
    /// The shard was made anew; what came after in its earlier life is no part of this history.
    CutOff,
}

/// What is known of each worker.
#[derive(Default)]
pub(super) struct Worker {
    is_member: bool,
    incarnation: Incarnation,
    pub(super) next: u64,
    /// Pushes that are held, with the life that made them.
    pub(super) held: BTreeMap<u64, Incarnation>,
    /// Steps settled, where the worker goes from step to step by itself.
    pub(super) clock: u64,
    pub(super) outcomes: BTreeMap<u64, Outcome>,
    /// Examples applied on the shard when it settled the last.
    pub(super) examples: u64,
}

impl Worker {
    /// How many pushes are held after the last that is settled.
    pub(super) fn held_last(&self) -> u64 {
        let settled = self.outcomes.last_key_value().map(|(number, _)| *number);
        self.held.keys().filter(|held| settled.is_none_or(|settled| **held > settled)).count() as u64
    }
}

/// What is known of a shard.
pub(super) struct Ledger<'a> {
    what: String,
    pub(super) plan: &'a Plan,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    lineage: Lineage,
    /// The checkpoint for which the shard pauses.
    pauses: Option<u64>,
    /// Requests with pushes that wait until a checkpoint has been taken.
    aside: BTreeMap<WorkerId, Asked>,
    image: Option<&'a Kept>,
}

/// Verifies one shard.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(plan: &Plan, shard: usize, history: &History) {
    let mut ledger = Ledger {
        what: format!("shard {shard}"),
        plan,
        workers: BTreeMap::new(),
        lineage: Lineage(0),
        pauses: None,
        aside: BTreeMap::new(),
        image: None,
    };
    let mut group = Group::default();
    let mut is_final = false;
    for entry in history.entries() {
        match entry {
            Entry::Asked(asked) => group.asked = Some(asked),
            Entry::Ordered(order) => group.order = Some(order),
            Entry::Members { came, went } => group.members = Some((came, went)),
            Entry::Ended(session) => ledger.aside.retain(|_, asked| asked.session != *session),
            Entry::Observed { .. } => {}
            Entry::Record(record) => group.records.push(record),
            Entry::Told { session, what } => group.told.push((session.0, what)),
            Entry::Image(kept) => {
                ledger.follow(&std::mem::take(&mut group), End::Image);
                images::verify(&ledger.what, &ledger, kept);
                ledger.image = Some(kept.as_ref());
                group.is_after_image = true;
            }
            Entry::Taken(_) => {
                // What it was is written down before this, unless it came to nothing.
                if !group.is_after_image {
                    ledger.follow(&std::mem::take(&mut group), End::Image);
                }
                ledger.pauses = None;
                group.is_after_image = true;
            }
            Entry::Fed { .. } => {}
            Entry::Restored { lineage, kept, from } => {
                ledger.follow(&std::mem::take(&mut group), End::CutOff);
                ledger.restored(*lineage, kept.as_deref(), *from);
                is_final = false;
            }
            Entry::Handled { .. } => {
                let group = std::mem::take(&mut group);
                let what = &ledger.what;
                assert!(!is_final || group.records.is_empty(), "{what} changes after its result was taken");
                is_final |= matches!(group.order, Some(Order::Finalize));
                ledger.follow(&group, End::Handled);
                within_limits(&ledger.what, plan, &ledger.workers);
            }
        }
    }
}

impl Ledger<'_> {
    fn follow(&mut self, group: &Group<'_>, end: End) {
        if let Some((came, went)) = group.members {
            for worker in went {
                self.workers.entry(*worker).or_default().is_member = false;
            }
            for member in came {
                let worker = self.workers.entry(member.worker).or_default();
                worker.is_member = true;
                worker.incarnation = worker.incarnation.max(member.incarnation);
            }
        }
        match group.order {
            Some(Order::Pause { checkpoint }) => self.pauses = Some(*checkpoint),
            Some(Order::GoOn { checkpoint }) if self.pauses == Some(*checkpoint) => self.pauses = None,
            Some(Order::Settle { worker, void_missing: true, next, .. }) => {
                let worker = self.workers.entry(*worker).or_default();
                worker.clock = worker.clock.max(next.step.0);
            }
            _ => {}
        }
        let mut pushed = Vec::new();
        if let Some(asked) = group.asked
            && !self.asked(asked, group, &mut pushed)
        {
            return;
        }
        let takes_in =
            group.is_after_image || matches!(group.order, Some(Order::Cut { .. } | Order::GoOn { .. }));
        for asked in self.aside.values().filter(|_| takes_in).copied().collect::<Vec<_>>() {
            let sequence = asked.push.map(|(sequence, ..)| sequence).unwrap_or_default();
            if group.answers(&asked, sequence) {
                self.aside.remove(&asked.worker);
                if self.is_heard(&asked) {
                    self.push(&asked, sequence, group, &mut pushed);
                } else {
                    let own = |r: &&&Record| (r.worker, r.sequence) == (asked.worker, sequence);
                    assert_eq!(group.records.iter().find(own), None, "{} hears {asked:?}", self.what);
                }
            }
        }
        self.records(group, pushed, end);
        let waits = self.aside.values().next().filter(|_| end == End::Handled && self.pauses.is_none());
        assert_eq!(waits, None, "{} leaves aside what it could take in", self.what);
    }

    fn is_heard(&self, asked: &Asked) -> bool {
        let worker = self.workers.get(&asked.worker);
        asked.lineage == self.lineage
            && worker.is_some_and(|worker| worker.is_member && worker.incarnation == asked.incarnation)
    }

    /// A request has come. Whether it may have an effect.
    fn asked(&mut self, asked: &Asked, group: &Group<'_>, pushed: &mut Vec<(WorkerId, u64)>) -> bool {
        if asked.session.0 >= FORGED || !self.is_heard(asked) {
            let is_refused =
                matches!(group.told.as_slice(), [(session, Told::Rejected)] if *session == asked.session.0);
            assert!(
                is_refused && group.records.is_empty(),
                "{} must refuse {asked:?} without effect, and said {:?}",
                self.what,
                group.told
            );
            return false;
        }
        let Some((sequence, ..)) = asked.push else { return true };
        let is_next = sequence.0 == self.workers.entry(asked.worker).or_default().next;
        if self.pauses.is_some() && is_next && !group.answers(asked, sequence) {
            let first = self.aside.entry(asked.worker).or_insert(*asked);
            if first.incarnation != asked.incarnation {
                *first = *asked;
            }
        } else {
            self.push(asked, sequence, group, pushed);
        }
        true
    }

    fn push(
        &mut self,
        asked: &Asked,
        sequence: Sequence,
        group: &Group<'_>,
        pushed: &mut Vec<(WorkerId, u64)>,
    ) {
        let worker = self.workers.entry(asked.worker).or_default();
        pushed.extend(taken(&self.what, worker, asked, sequence, group));
    }

    fn records(&mut self, group: &Group<'_>, mut pushed: Vec<(WorkerId, u64)>, end: End) {
        let what = &self.what;
        for record in &group.records {
            let worker = self.workers.entry(record.worker).or_default();
            let number = record.sequence.0;
            let is_void = record.outcome == Outcome::Void;
            worker.outcomes.insert(number, record.outcome);
            worker.examples = worker.examples.max(record.examples_applied.0);
            worker.clock = worker.clock.max(record.step.0 + 1);
            if let Some(life) = worker.held.remove(&number) {
                assert_eq!(
                    life, record.incarnation,
                    "{what} settles what another life has pushed: {record:?}"
                );
                let is_redone = group.members.is_some() || end == End::CutOff;
                assert!(!is_void || is_redone, "{what} makes a held push void for no reason: {record:?}");
            } else if let Some(at) = pushed.iter().position(|p| *p == (record.worker, number)) {
                pushed.remove(at);
                worker.next += 1;
            } else {
                let is_settling = matches!(
                    group.order,
                    Some(Order::Settle { worker, void_missing: true, next, .. })
                        if *worker == record.worker && record.sequence < next.sequence
                );
                assert!(is_settling && is_void, "{what} settles a push that it does not have: {record:?}");
                assert_eq!(number, worker.next, "{what} leaves out a push of {}: {record:?}", record.worker);
                worker.next += 1;
            }
        }
        let left = pushed.first();
        assert_eq!(left, None, "{what} has taken a push and says nothing of it: {:?}", group.told);
    }

    /// The shard is made anew: it is as it was when it took the checkpoint, and nobody takes part yet.
    fn restored(&mut self, lineage: Lineage, kept: Option<&Kept>, from: Source) {
        assert!(lineage > self.lineage, "{} goes on in lineage {lineage} after {}", self.what, self.lineage);
        self.lineage = lineage;
        match from {
            Source::Checkpoint => self.is_as_kept(kept),
            Source::Primary | Source::Standby => {
                images::verify(&self.what, self, kept.expect("a copy is something"));
            }
        }
        self.pauses = None;
        self.aside.clear();
        for worker in self.workers.values_mut() {
            worker.is_member = false;
            let is_given_on =
                from == Source::Primary || from == Source::Standby && self.plan.mode != ALL_HELD;
            if is_given_on {
                continue;
            }
            // What was held last is made again under its number; the rest has been told to be void.
            worker.next -= worker.held.len() as u64;
            worker.held.clear();
        }
    }

    /// What a shard begins with is what its checkpoint holds, but that nobody takes part.
    fn is_as_kept(&self, kept: Option<&Kept>) {
        let Some(kept) = kept else { return };
        let mut image = self.image.expect("what is gone on from has been taken").clone();
        image.state.workers.iter_mut().for_each(|row| row.member = false);
        assert_eq!(*kept, image, "{} begins with other than its checkpoint holds", self.what);
    }
}

/// A push of a worker that is heard; returns it if it has to be settled at once.
fn taken(
    what: &str,
    worker: &mut Worker,
    asked: &Asked,
    sequence: Sequence,
    group: &Group<'_>,
) -> Option<(WorkerId, u64)> {
    let said = group.told.iter().filter(|(session, _)| *session == asked.session.0).map(|(_, told)| *told);
    let is_refused = said.clone().any(|told| *told == Told::Rejected);
    let is_held = said.clone().any(|told| *told == Told::Held(sequence));
    let is_settled = said.clone().any(|told| matches!(told, Told::Settled(s, _) if *s == sequence));
    let own = group.records.iter().any(|r| (r.worker, r.sequence) == (asked.worker, sequence));
    if sequence.0 > worker.next {
        assert!(is_refused && !own, "{what} must refuse {asked:?}: push {} comes first", worker.next);
        return None;
    }
    if sequence.0 < worker.next {
        if let Some(life) = worker.held.get_mut(&sequence.0) {
            assert!(is_held, "{what} must say that it holds {asked:?}, and said {:?}", group.told);
            // The push that is held is the one that came first; its record names that life.
            let _ = life;
        } else {
            assert!(
                (is_settled || is_refused) && !own,
                "{what} must say what has become of {asked:?}, and said {:?}",
                group.told
            );
        }
        return None;
    }
    // What is wrong with the pull is found out after the push has been taken.
    if is_refused && !is_held && !own {
        return None;
    }
    if is_held {
        worker.held.insert(sequence.0, asked.incarnation);
        worker.next += 1;
        return None;
    }
    Some((asked.worker, sequence.0))
}
/// What is held is within the limits of the plan.
fn within_limits(what: &str, plan: &Plan, workers: &BTreeMap<WorkerId, Worker>) {
    let (each, all) = match &plan.mode {
        Mode::Sync { .. } => (1, plan.cluster.workers_max()),
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => (0, 0),
        // What is dealt anew may for a moment be held twice, of who has gone and of who has its client now.
        Mode::Fedavg(fedavg) if plan.cluster.membership != Membership::Fixed => {
            (fedavg.asked, 2 * fedavg.asked)
        }
        Mode::Fedavg(fedavg) => (fedavg.asked, fedavg.asked),
        Mode::Softsync { buffer, stale: Stale::Kept, .. } | Mode::Fedbuff { buffer, .. } => {
            (*buffer, u32::MAX)
        }
        Mode::Softsync { buffer, stale: Stale::Late, .. } => (*buffer + 1, u32::MAX),
    };
    let mut sum = 0;
    for (id, worker) in workers {
        let held = worker.held.len();
        assert!(held <= each as usize, "{what} holds {held} pushes of {id}, and at most {each} are possible");
        sum += held;
    }
    assert!(sum <= all as usize, "{what} holds {sum} pushes, and at most {all} are possible");
}
