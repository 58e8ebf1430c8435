//! Keeps the values that each worker was sent last, where a push is applied by what it was computed on, too.

use std::collections::{BTreeMap, VecDeque};

use windlass_common::ids::{Step, Version, WorkerId};

use crate::store::Snapshot;

/// What each worker was sent: for each of its gradients in flight the values of one step.
#[derive(Debug)]
pub(super) struct Bases {
    each: usize,
    sent: BTreeMap<WorkerId, VecDeque<(Step, Snapshot)>>,
}

impl Bases {
    /// Nobody has been sent anything. A worker has so many gradients in flight.
    pub(super) fn new(in_flight: u32) -> Self {
        Self { each: in_flight as usize, sent: BTreeMap::new() }
    }

    /// A worker is sent these values. What it was sent for the same step before, it does not compute on.
    pub(super) fn send(&mut self, worker: WorkerId, step: Step, snapshot: Snapshot) {
        let sent = self.sent.entry(worker).or_insert_with(|| VecDeque::with_capacity(self.each));
        if sent.back().is_some_and(|(of, _)| *of == step) {
            sent.pop_back();
        } else if sent.len() == self.each {
            sent.pop_front();
        }
        sent.push_back((step, snapshot));
    }

    /// What a worker was sent last.
    pub(super) fn last(&self, worker: WorkerId) -> Option<&Snapshot> {
        self.sent.get(&worker)?.back().map(|(_, snapshot)| snapshot)
    }

    /// The values of a version, if they are kept for this worker.
    pub(super) fn find(&self, worker: WorkerId, version: Version) -> Option<&Snapshot> {
        let mut sent = self.sent.get(&worker)?.iter().map(|(_, snapshot)| snapshot);
        sent.find(|snapshot| snapshot.version == version)
    }

    /// Keeps those of some workers alone.
    pub(super) fn retain(&mut self, is_kept: impl Fn(WorkerId) -> bool) {
        self.sent.retain(|&worker, _| is_kept(worker));
    }

    /// Keeps none.
    pub(super) fn clear(&mut self) {
        self.sent.clear();
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::{Lineage, RunId, ShardId};
    use windlass_common::plan::{Mode, StalenessScaling};

    use super::*;
    use crate::sample;
    use crate::shard::Shard;

    fn snapshot(version: u64) -> Snapshot {
        let mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
        let plan = sample::plan(mode, 1, 2);
        let shard = Shard::<Vec<f32>>::new(&plan, RunId(1), Lineage(0), ShardId(0));
        let mut snapshot = shard.unwrap().snapshot();
        snapshot.version = Version(version);
        snapshot
    }

    #[test]
    fn the_last_of_as_many_steps_are_kept_as_gradients_are_in_flight() {
        let [a, b] = [WorkerId(0), WorkerId(1)];
        for (in_flight, oldest) in [(1, 3), (2, 2)] {
            let mut bases = Bases::new(in_flight);
            for (step, version) in [(1, 0), (2, 2), (3, 3)] {
                bases.send(a, Step(step), snapshot(version));
            }
            bases.send(b, Step(1), snapshot(7));
            let kept =
                |bases: &Bases| (0..9).filter(|&v| bases.find(a, Version(v)).is_some()).collect::<Vec<_>>();
            assert_eq!(kept(&bases), (oldest..=3).collect::<Vec<_>>());
            bases.send(a, Step(3), snapshot(5));
            let replaced: Vec<u64> = (oldest..3).chain([5]).collect();
            assert_eq!(kept(&bases), replaced, "who asks for a step again goes on with the answer to that");
            assert_eq!(bases.last(a).map(|s| s.version), Some(Version(5)));
            bases.retain(|worker| worker == b);
            assert!(kept(&bases).is_empty() && bases.last(b).is_some());
        }
    }
}
