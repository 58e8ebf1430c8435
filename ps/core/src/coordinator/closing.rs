//! Finds the cohort of a step: the first pushes that are complete on every shard.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ShardId, Step, WorkerId};
use windlass_common::wire::Entry;

/// What becomes of pushes that a step is closed without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// They were for that step alone.
    Late,
    /// They count for a later one.
    Kept,
}

/// What has arrived where, for the step that is open.
#[derive(Debug)]
pub(crate) struct Closing {
    shards: usize,
    rest: Rest,
    open: Step,
    arrived: BTreeMap<Entry, BTreeSet<ShardId>>,
}

impl Closing {
    /// Pushes are complete on this many shards.
    pub(crate) fn new(shards: u32, rest: Rest) -> Self {
        Self { shards: shards as usize, rest, open: Step(0), arrived: BTreeMap::new() }
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

    /// The step is closed with these pushes.
    pub(crate) fn close(&mut self, cohort: &[Entry]) {
        match self.rest {
            Rest::Late => self.arrived.clear(),
            Rest::Kept => self.arrived.retain(|entry, _| !cohort.contains(entry)),
        }
        self.open = self.open.next();
    }

    /// What this worker has pushed is void.
    pub(crate) fn forget(&mut self, worker: WorkerId) {
        self.arrived.retain(|entry, _| entry.worker != worker);
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::{ClientId, Sequence};

    use super::*;

    fn entry(worker: u32) -> Entry {
        Entry { client: ClientId(worker), worker: WorkerId(worker), sequence: Sequence(7) }
    }

    fn complete(closing: &Closing) -> Vec<u32> {
        closing.complete().iter().map(|e| e.worker.0).collect()
    }

    #[test]
    fn a_push_is_complete_when_every_shard_has_it() {
        let mut closing = Closing::new(2, Rest::Late);
        for (shard, worker) in [(0, 0), (0, 2), (0, 1), (1, 2), (1, 1)] {
            closing.arrived(ShardId(shard), entry(worker), Step(0));
        }
        assert_eq!(complete(&closing), [1, 2], "in order of rank");
        closing.close(&[entry(1), entry(2)]);
        closing.arrived(ShardId(1), entry(0), Step(0));
        assert_eq!(complete(&closing), [0; 0], "the step is closed");
        assert_eq!(closing.open(), Step(1));
        closing.arrived(ShardId(0), entry(1), Step(1));
        closing.arrived(ShardId(1), entry(1), Step(1));
        assert_eq!(complete(&closing), [1]);
        closing.forget(WorkerId(1));
        assert_eq!(complete(&closing), [0; 0]);
    }

    #[test]
    fn what_is_kept_goes_on_to_the_next_step() {
        let mut closing = Closing::new(2, Rest::Kept);
        for (shard, worker) in [(0, 0), (0, 1), (1, 1)] {
            closing.arrived(ShardId(shard), entry(worker), Step(0));
        }
        closing.close(&[entry(1)]);
        closing.arrived(ShardId(1), entry(0), Step(0));
        assert_eq!(complete(&closing), [0]);
    }
}
