//! Compares what each push was computed on with what its worker had been sent for that step.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Incarnation, Step, Version, WorkerId};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Outcome, Record};

use crate::cluster::{Entry, History, Told};

/// What one shard has sent a worker, and the last push of it that counts.
#[derive(Default)]
struct Sent {
    values: BTreeSet<(Step, Version)>,
    last: Option<(Incarnation, Step)>,
}

/// Verifies one shard, and counts the pushes that were computed before the one before them was answered: with two gradients
/// in flight all but those with which a worker begins, or begins anew.
///
/// # Panics
/// With a sentence, if a push was computed on other values than those for its step.
pub(super) fn verify(plan: &Plan, shard: usize, history: &History) -> u64 {
    let (Mode::Async { in_flight, .. } | Mode::Ssp { in_flight, .. }) = plan.mode else { return 0 };
    let mut workers: BTreeMap<WorkerId, Sent> = BTreeMap::new();
    let mut ahead = 0;
    for entry in history.entries() {
        match entry {
            Entry::Restored { .. } => workers.clear(),
            Entry::Told { session, what: Told::Values { step, version, .. } } => {
                if let Some(worker) = history.worker_of(*session) {
                    workers.entry(worker).or_default().values.insert((*step, *version));
                }
            }
            Entry::Record(record) if matches!(record.outcome, Outcome::Applied { .. }) => {
                let Record { worker, incarnation, step, base, .. } = *record;
                let sent = workers.entry(worker).or_default();
                let is_for = |step: Step| sent.values.contains(&(step, base));
                let follows =
                    sent.last.is_some_and(|(life, last)| life == incarnation && last.next() == step);
                // The first of a life is computed on the values for the second, too.
                let is_first = in_flight > 1 && !follows && is_for(step.next());
                assert!(
                    is_for(step) || is_first,
                    "shard {shard} takes {record:?}, and has sent its worker the steps and versions {:?}",
                    sent.values
                );
                ahead += u64::from(in_flight > 1 && !is_first);
                sent.values.retain(|(of, _)| *of > step);
                sent.last = Some((incarnation, step));
            }
            _ => {}
        }
    }
    ahead
}
