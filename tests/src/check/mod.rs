//! Verifies a run, however it ended, by what its shards were asked and did.
//!
//! Nothing here calls the cores: it has its own idea of what a push, a pull and a step are, and says in a sentence where
//! a run differs from it.

mod bases;
mod checkpoints;
mod cohorts;
mod feedback;
mod images;
mod ledger;
mod snapshots;
mod waits;

use windlass_common::plan::{Codecs, Mode};
use windlass_common::wire::{Outcome, Stop};

use crate::audit::{assert_bound, assert_each_push_counts_once, assert_replays, assert_same, stale};
use crate::cluster::Run;
use crate::oracle;
use crate::problem::Problem;
use crate::sim::Counts;

/// Verifies everything that must hold in a run, and counts what it saw.
///
/// # Panics
/// With a sentence, if something does not hold.
pub fn verify(run: &Run, problem: &dyn Problem) -> Counts {
    let mut counts = Counts::default();
    for (shard, history) in run.histories.iter().enumerate() {
        ledger::verify(&run.plan, shard, history);
        waits::verify(&run.plan, shard, history);
        counts.add("snapshots", snapshots::verify(&run.plan, shard, history));
        counts.add("computed ahead", bases::verify(&run.plan, shard, history));
        let stale = stale(&run.plan.mode, history);
        counts.add("compensated", stale.compensated.len() as u64);
        counts.add("stale without their values", stale.as_they_came);
        for record in history.records() {
            let what = match record.outcome {
                Outcome::Applied { .. } => "applied",
                Outcome::Late { .. } => "late",
                Outcome::Void => "void",
            };
            counts.add(what, 1);
        }
    }
    if let Mode::Ssp { staleness: Some(bound), .. } = run.plan.mode {
        assert_bound(run, bound);
    }
    counts.merge(&checkpoints::verify(run));
    let cohorts = cohorts::verify(run);
    let is_complete = run.stop == Stop::Completed;
    if is_complete {
        assert_each_push_counts_once(run);
        counts.add("void on some shards", run.partial.iter().sum());
    }
    // The one process computes with what it has: it knows no wire on which values are written otherwise.
    let is_as_computed = run.plan.codecs == Codecs::default();
    if let Some(cohorts) = cohorts.filter(|_| is_complete && is_as_computed) {
        let expected = oracle::of_cohorts(&run.plan, problem, &cohorts);
        assert_same(&run.values, &expected, "the result against one process that does what was logged");
    }
    assert_replays(run, problem);
    counts.merge(&feedback::verify(run));
    counts
}
