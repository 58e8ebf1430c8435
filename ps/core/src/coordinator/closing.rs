//! Finds the cohort of a step: the first workers whose pushes are complete on every shard.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ShardId, Step, WorkerId};

/// What has arrived where, for the step that is open. No worker pushes for a later one: it has no values for it.
#[derive(Debug)]
pub(crate) struct Closing {
    shards: usize,
    cohort: usize,
    open: Step,
    arrived: BTreeMap<WorkerId, BTreeSet<ShardId>>,
}

impl Closing {
    /// Steps close with this many workers, complete on this many shards.
    pub(crate) fn new(shards: u32, cohort: usize) -> Self {
        Self { shards: shards as usize, cohort, open: Step(0), arrived: BTreeMap::new() }
    }

    /// A push has arrived on a shard. Returns the cohort if that closes the step.
    pub(crate) fn arrived(&mut self, shard: ShardId, worker: WorkerId, step: Step) -> Option<Vec<WorkerId>> {
        if step != self.open {
            return None;
        }
        self.arrived.entry(worker).or_default().insert(shard);
        let complete = self.arrived.iter().filter(|(_, on)| on.len() == self.shards);
        let cohort: Vec<WorkerId> = complete.map(|(&worker, _)| worker).collect();
        if cohort.len() < self.cohort {
            return None;
        }
        self.arrived.clear();
        self.open = self.open.next();
        Some(cohort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_closes_with_the_first_that_are_complete_on_every_shard() {
        let mut closing = Closing::new(2, 2);
        let mut arrive = |shard, worker, step| closing.arrived(ShardId(shard), WorkerId(worker), Step(step));
        assert_eq!(arrive(0, 0, 0), None);
        assert_eq!(arrive(0, 2, 0), None);
        assert_eq!(arrive(0, 1, 0), None);
        assert_eq!(arrive(1, 2, 0), None, "worker 2 is complete, and it takes two");
        assert_eq!(arrive(1, 1, 0), Some(vec![WorkerId(1), WorkerId(2)]), "in order of rank");
        assert_eq!(arrive(1, 0, 0), None, "the step is closed");
        assert_eq!(arrive(0, 1, 1), None);
        assert_eq!(arrive(1, 1, 1), None);
        assert_eq!(arrive(1, 0, 1), None);
        assert_eq!(arrive(0, 0, 1), Some(vec![WorkerId(0), WorkerId(1)]));
    }
}
