//! Finds the cohort of a step: the first pushes that are complete on every shard.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ShardId, Step, WorkerId};
use windlass_common::plan::{Membership, Plan, Stale};
use windlass_common::wire::Entry;

use crate::rules::{self, Apply};

/// What becomes of pushes that a step is closed without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// They were for that step alone.
    Late,
    /// They count for a later one.
    Kept,
}

/// Which pushes are enough for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enough {
    /// So many of those who take part, which are always the same.
    Count(usize),
    /// So many, whoever made them and however often.
    Buffer(usize),
    /// Those of all who were there when the step was opened and still are, but for so many.
    Members { backup: usize },
    /// Somebody else decides.
    Never,
}

/// What has arrived where, for the step that is open.
#[derive(Debug)]
pub(crate) struct Closing {
    shards: usize,
    rest: Rest,
    enough: Enough,
    open: Step,
    /// Those who were there when the step was opened and still are.
    expected: BTreeSet<WorkerId>,
    arrived: BTreeMap<Entry, BTreeSet<ShardId>>,
}

impl Closing {
    /// As the mode and the membership of the plan say; this step is open.
    pub(crate) fn new(plan: &Plan, open: Step) -> Self {
        let (enough, rest) = match (rules::rules(plan).0, plan.cluster.membership) {
            (Apply::Hold { backup }, Membership::Fixed) => {
                (Enough::Count((plan.cluster.workers - backup) as usize), Rest::Late)
            }
            (Apply::Hold { backup }, Membership::Elastic { .. }) => {
                (Enough::Members { backup: backup as usize }, Rest::Late)
            }
            (Apply::Buffer { size, stale: Stale::Kept, .. }, _) => {
                (Enough::Buffer(size as usize), Rest::Kept)
            }
            (Apply::Buffer { size, stale: Stale::Late, .. }, _) => {
                (Enough::Buffer(size as usize), Rest::Late)
            }
            (Apply::HoldAll | Apply::Round { .. } | Apply::Immediate { .. } | Apply::Mix { .. }, _) => {
                (Enough::Never, Rest::Late)
            }
        };
        let shards = plan.cluster.shards() as usize;
        let (expected, arrived) = (BTreeSet::new(), BTreeMap::new());
        Self { shards, rest, enough, open, expected, arrived }
    }

    /// The training begins with these.
    pub(crate) fn begin(&mut self, ready: &[WorkerId]) {
        self.expected = ready.iter().copied().collect();
    }

    /// The step that is open.
    pub(crate) fn open(&self) -> Step {
        self.open
    }

    /// A push has arrived on a shard that was at this step.
    pub(crate) fn arrived(&mut self, shard: ShardId, entry: Entry, step: Step) {
        // A shard that was at an earlier step has dropped the push since, unless what is left over is kept.
        if step == self.open || self.rest == Rest::Kept {
            self.arrived.entry(entry).or_default().insert(shard);
        }
    }

    /// The pushes that are complete on every shard, in the order of their reduction.
    pub(crate) fn complete(&self) -> Vec<Entry> {
        self.arrived.iter().filter(|(_, on)| on.len() == self.shards).map(|(&entry, _)| entry).collect()
    }

    /// With which pushes the open step is to be closed; `None` if it goes on. With none it is abandoned: nobody is left who
    /// was there when it was opened, and `anyone` may begin with the next.
    pub(crate) fn verdict(&self, anyone: bool) -> Option<Vec<Entry>> {
        let mut complete = self.complete();
        if let Enough::Members { .. } = self.enough {
            // Who joined meanwhile is in the next.
            complete.retain(|e| self.expected.contains(&e.worker));
        }
        let is_enough = match self.enough {
            Enough::Count(count) | Enough::Buffer(count) => complete.len() >= count,
            Enough::Members { .. } if self.expected.is_empty() => anyone,
            Enough::Members { backup: 0 } => {
                let has_pushed = |w: &WorkerId| complete.iter().any(|e| e.worker == *w);
                self.expected.iter().all(has_pushed)
            }
            Enough::Members { backup } => complete.len() >= self.expected.len().saturating_sub(backup).max(1),
            Enough::Never => false,
        };
        is_enough.then_some(complete)
    }

    /// Whether no push that is held for the open step counts for a later one, so that it may be abandoned when none of them
    /// can be complete any more: a push may be late on one shard and held on another.
    pub(crate) fn may_be_abandoned(&self) -> bool {
        matches!(self.enough, Enough::Buffer(_)) && self.rest == Rest::Late
    }

    /// The step is closed with these pushes; the next is opened for those who are ready.
    pub(crate) fn close(&mut self, cohort: &[Entry], ready: &[WorkerId]) {
        self.begin(ready);
        match self.rest {
            Rest::Late => self.arrived.clear(),
            Rest::Kept => self.arrived.retain(|entry, _| !cohort.contains(entry)),
        }
        self.open = self.open.next();
    }

    /// A worker leaves the open step. What it has pushed is void, or still counts.
    pub(crate) fn depart(&mut self, worker: WorkerId, is_void: bool) {
        self.expected.remove(&worker);
        if is_void {
            self.arrived.retain(|entry, _| entry.worker != worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::{ClientId, Sequence};

    use super::*;

    fn entry(worker: u32) -> Entry {
        Entry { client: ClientId(worker), worker: WorkerId(worker), sequence: Sequence(7) }
    }

    fn closing(rest: Rest, enough: Enough) -> Closing {
        let (expected, arrived) = (BTreeSet::new(), BTreeMap::new());
        Closing { shards: 2, rest, enough, open: Step(0), expected, arrived }
    }

    fn complete(closing: &Closing) -> Vec<u32> {
        closing.complete().iter().map(|e| e.worker.0).collect()
    }

    #[test]
    fn a_push_is_complete_when_every_shard_has_it() {
        let mut closing = closing(Rest::Late, Enough::Never);
        for (shard, worker) in [(0, 0), (0, 2), (0, 1), (1, 2), (1, 1)] {
            closing.arrived(ShardId(shard), entry(worker), Step(0));
        }
        assert_eq!(complete(&closing), [1, 2], "in order of rank");
        closing.close(&[entry(1), entry(2)], &[]);
        closing.arrived(ShardId(1), entry(0), Step(0));
        assert_eq!(complete(&closing), [0; 0], "the step is closed");
        assert_eq!(closing.open(), Step(1));
        closing.arrived(ShardId(0), entry(1), Step(1));
        closing.arrived(ShardId(1), entry(1), Step(1));
        assert_eq!(complete(&closing), [1]);
        closing.depart(WorkerId(1), true);
        assert_eq!(complete(&closing), [0; 0]);
    }

    #[test]
    fn what_is_kept_goes_on_to_the_next_step() {
        let mut closing = closing(Rest::Kept, Enough::Never);
        for (shard, worker) in [(0, 0), (0, 1), (1, 1)] {
            closing.arrived(ShardId(shard), entry(worker), Step(0));
        }
        closing.close(&[entry(1)], &[]);
        closing.arrived(ShardId(1), entry(0), Step(0));
        assert_eq!(complete(&closing), [0]);
    }

    #[test]
    fn a_step_waits_for_those_who_were_there_and_still_are() {
        let push = |closing: &mut Closing, worker: u32| {
            let step = closing.open();
            (0..2).for_each(|shard| closing.arrived(ShardId(shard), entry(worker), step));
        };
        let workers = |numbers: &[u32]| numbers.iter().copied().map(WorkerId).collect::<Vec<_>>();
        let mut all = closing(Rest::Late, Enough::Members { backup: 0 });
        all.begin(&workers(&[0, 1, 2]));
        push(&mut all, 0);
        push(&mut all, 2);
        assert_eq!(all.verdict(true), None);
        all.depart(WorkerId(1), true);
        assert_eq!(all.verdict(true).map(|c| c.len()), Some(2));
        all.depart(WorkerId(0), true);
        assert_eq!(all.verdict(true), Some(vec![entry(2)]), "what the departed has pushed is void");
        all.depart(WorkerId(2), true);
        assert_eq!(all.verdict(false), None, "nobody could begin the next");
        assert_eq!(all.verdict(true), Some(vec![]));
        all.close(&[], &workers(&[5]));
        assert_eq!((all.open(), all.verdict(true)), (Step(1), None));

        let mut most = closing(Rest::Late, Enough::Members { backup: 1 });
        most.begin(&workers(&[0, 1, 2]));
        push(&mut most, 0);
        assert_eq!(most.verdict(true), None);
        most.depart(WorkerId(2), true);
        assert_eq!(most.verdict(true).map(|c| c.len()), Some(1));
        most.depart(WorkerId(0), true);
        assert_eq!(most.verdict(true), None, "one push at least");
    }
}
