//! Judges rounds by the log of cohorts: whom each asked, and with which pushes it was closed.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ClientId, ShardId, Step};
use windlass_common::plan::Mode;
use windlass_common::wire::{Entry, Outcome, Record};

use crate::cluster::Run;

/// Asserts that exactly the pushes that the coordinator closed a step with have changed the model, on every shard and in
/// that step. Of rounds it also asserts that each client counts at most once, was asked, and that the cohort is between
/// the quorum and its full size, or empty. Returns how many steps were closed with nobody, and with fewer than planned.
///
/// # Panics
/// If not.
pub fn assert_closed_as_logged(run: &Run) -> (usize, usize) {
    for (number, (step, _)) in run.closed.iter().enumerate() {
        assert_eq!(step.0, number as u64, "steps are closed one after the other");
    }
    for shard in (0..run.plan.cluster.shards()).map(ShardId) {
        let mut by_version: BTreeMap<u64, BTreeSet<Entry>> = BTreeMap::new();
        for r in run.histories[shard.index()].records() {
            if let Outcome::Applied { version, .. } = r.outcome {
                by_version.entry(version.0).or_default().insert(entry(r));
            }
        }
        let logged = run.closed.iter().filter(|(_, cohort)| !cohort.is_empty());
        let logged: Vec<BTreeSet<Entry>> = logged.map(|(_, c)| c.iter().copied().collect()).collect();
        let applied: Vec<BTreeSet<Entry>> = by_version.into_values().collect();
        // Where the end is a number of examples, only the shards know it, and what is closed beyond it is closed in vain.
        let ends_by_rounds = matches!(run.plan.mode, Mode::Fedavg(_));
        assert!(applied.len() == logged.len() || !ends_by_rounds, "{shard} has closed every round");
        assert_eq!(applied, logged[..applied.len()], "what {shard} has applied");
    }
    let Mode::Fedavg(fedavg) = &run.plan.mode else { return (0, 0) };
    assert_eq!(run.opened.len(), run.closed.len(), "every round that is opened is closed");
    let (mut empty, mut small) = (0, 0);
    for ((step, tasks), (closed, cohort)) in run.opened.iter().zip(&run.closed) {
        assert_eq!(step, closed);
        let clients: BTreeSet<ClientId> = cohort.iter().map(|e| e.client).collect();
        assert_eq!(clients.len(), cohort.len(), "{cohort:?} names each client once");
        assert_eq!(tasks.len(), fedavg.asked as usize, "so many are asked in round {step}");
        let was_asked = |e: &Entry| tasks.iter().any(|t| (t.client, t.worker) == (e.client, e.worker));
        assert!(cohort.iter().all(was_asked), "{cohort:?} in round {step} is of those asked: {tasks:?}");
        let possible = fedavg.quorum..=fedavg.cohort;
        assert!(cohort.is_empty() || possible.contains(&(cohort.len() as u32)), "{cohort:?}");
        empty += usize::from(cohort.is_empty());
        small += usize::from(cohort.len() < fedavg.cohort as usize);
    }
    assert_steps_are_those_of_the_log(run);
    (empty, small - empty)
}

fn assert_steps_are_those_of_the_log(run: &Run) {
    let steps: BTreeMap<Entry, Step> =
        run.closed.iter().flat_map(|(step, cohort)| cohort.iter().map(|e| (*e, *step))).collect();
    for r in run.histories.iter().flat_map(|h| h.records()) {
        if matches!(r.outcome, Outcome::Applied { .. }) {
            assert_eq!(steps.get(&entry(r)), Some(&r.step), "{r:?} counts in its own round");
        }
    }
}

fn entry(r: &Record) -> Entry {
    Entry { client: r.client, worker: r.worker, sequence: r.sequence }
}
