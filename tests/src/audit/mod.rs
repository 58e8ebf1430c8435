//! Judges a finished run by what its shards wrote down.

mod aside;
mod compensated;
mod references;
mod replay;
mod rounds;

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Sequence, Step, Version, WorkerId};
use windlass_common::plan::{Membership, Mode};
use windlass_common::wire::{Order, Outcome, Record};
use windlass_ps_core::SessionId;

pub(crate) use aside::Aside;
pub(crate) use compensated::stale;
pub use replay::assert_replays;
pub use rounds::assert_closed_as_logged;

use crate::cluster::{Entry, History, Pushed, Run, Told};

/// Every bit of every value, so that -0 and NaN are told apart too.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Asserts that two sets of values are the same bit for bit, and says where they differ first.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    let differ = |i: &usize| found[*i].to_bits() != expected[*i].to_bits();
    let different: Vec<usize> = (0..found.len()).filter(differ).collect();
    if let Some(&i) = different.first() {
        let (count, of) = (different.len(), found.len());
        panic!(
            "{what}: {count} of {of} values differ; value {i} is {}, it should be {}",
            found[i], expected[i]
        );
    }
}

/// Asserts that each push has one outcome on each shard, and that the shards which applied it applied the same gradient.
/// Where shards apply by themselves it is not void on all of them, and what is void is counted; where steps are closed for
/// all of them, all have applied it or none.
///
/// # Panics
/// If not.
pub fn assert_each_push_counts_once(run: &Run) {
    let pushes: BTreeSet<(WorkerId, Sequence)> =
        run.histories.iter().flat_map(|h| h.records().map(|r| (r.worker, r.sequence))).collect();
    let is_restored = run.histories.iter().any(History::is_restored);
    for &(worker, sequence) in &pushes {
        let outcomes: Vec<Option<Outcome>> =
            run.histories.iter().map(|h| h.outcome(worker, sequence)).collect();
        // The last push of a worker that never came back may have been late where it arrived.
        let is_late = |o: &Option<Outcome>| o.is_none_or(|o| matches!(o, Outcome::Late { .. }));
        // So may that of one who was there at a checkpoint that the run has gone on from, and has not joined again.
        let is_late = |o: &Option<Outcome>| is_late(o) || (is_restored && *o == Some(Outcome::Void));
        let is_possible = is_restored || matches!(run.plan.mode, Mode::Sync { .. });
        let was_in_vain = is_possible && outcomes.iter().all(is_late);
        assert!(
            was_in_vain || outcomes.iter().all(Option::is_some),
            "{worker} sequence {sequence} lacks an outcome: {outcomes:?}"
        );
        if is_closed_for_all(&run.plan.mode) {
            let applied = |o: &Option<Outcome>| matches!(o, Some(Outcome::Applied { .. }));
            let same = outcomes.windows(2).all(|pair| applied(&pair[0]) == applied(&pair[1]));
            assert!(same, "{worker} sequence {sequence} counts on some shards: {outcomes:?}");
        } else {
            let void = outcomes.iter().filter(|o| **o == Some(Outcome::Void)).count();
            // What was void on one shard when a checkpoint was taken, and on the others later than it, is no more.
            let is_gone = run.histories.iter().any(|h| h.was_void_when_restored(worker, sequence));
            assert!(is_gone || void < outcomes.len(), "{worker} sequence {sequence} is void on every shard");
        }
        assert_one_gradient(run, worker, sequence);
    }
    for (worker, count) in pushes_of(&pushes) {
        let numbered = (0..count).all(|n| pushes.contains(&(worker, Sequence(n))));
        assert!(numbered, "the pushes of {worker} are numbered without gaps");
    }
    let void = |h: &History| match is_closed_for_all(&run.plan.mode) {
        // What counts nowhere is not missing anywhere.
        true => 0,
        false => h.records().filter(|r| r.outcome == Outcome::Void).count() as u64,
    };
    assert_eq!(run.partial, run.histories.iter().map(void).collect::<Vec<_>>(), "what is void is counted");
}

/// Whether a push counts on every shard or on none.
fn is_closed_for_all(mode: &Mode) -> bool {
    match mode {
        Mode::Sync { .. } | Mode::Softsync { .. } | Mode::Fedavg(_) | Mode::Fedbuff { .. } => true,
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => false,
    }
}

/// A worker that was restarted may compute a push again; what it computes must then be the same.
fn assert_one_gradient(run: &Run, worker: WorkerId, sequence: Sequence) {
    let is_applied = |r: &&Record| matches!(r.outcome, Outcome::Applied { .. });
    let this = |r: &&Record| (r.worker, r.sequence) == (worker, sequence);
    let records = run.histories.iter().filter_map(|h| h.records().filter(is_applied).find(this));
    let mut lives: Vec<_> = records.map(|r| r.incarnation).collect();
    lives.dedup();
    let gradients: Vec<_> = lives.iter().map(|life| run.gradients.get(&(worker, *life, sequence))).collect();
    // What a codec has left out before is lost with a life.
    let is_biased = run.plan.codecs.push.is_biased();
    let is_same = |a: &Pushed, b: &Pushed| {
        (&a.computed, &a.bases, a.work) == (&b.computed, &b.bases, b.work)
            && (is_biased || a.gradient == b.gradient)
    };
    let same = gradients.windows(2).all(|pair| match pair {
        [Some(one), Some(other)] => is_same(one, other),
        pair => pair[0].is_none() && pair[1].is_none(),
    });
    assert!(same, "{worker} sequence {sequence} is applied with the gradients of several lives: {lives:?}");
}

fn pushes_of(pushes: &BTreeSet<(WorkerId, Sequence)>) -> BTreeMap<WorkerId, u64> {
    let mut counts = BTreeMap::new();
    pushes.iter().for_each(|(worker, _)| *counts.entry(*worker).or_default() += 1);
    counts
}

/// Asserts the bound of stale synchronous parallel training, by clocks of its own: on each shard, values for step c are
/// handed out only once every worker that takes part has settled its steps up to c - s - 1, and then at once; and every
/// gradient of step c is computed on such values, whatever step its worker has asked for. Returns how many pulls had to wait.
///
/// # Panics
/// If a pull was answered too early, or waited for nothing, or a gradient was computed on values of too early a time.
pub fn assert_bound(run: &Run, bound: u64) -> usize {
    let is_elastic = run.plan.cluster.membership != Membership::Fixed;
    run.histories.iter().map(|history| waits(history, bound, is_elastic)).sum()
}

fn waits(history: &History, bound: u64, run_is_elastic: bool) -> usize {
    let mut clocks: BTreeMap<WorkerId, u64> = BTreeMap::new();
    let mut present: BTreeSet<WorkerId> = BTreeSet::new();
    let mut parked: BTreeMap<WorkerId, (SessionId, Step)> = BTreeMap::new();
    // How far the slowest was when a worker was handed a version last.
    let mut handed: BTreeMap<(WorkerId, Version), u64> = BTreeMap::new();
    let mut waited = 0;
    let mut started = false;
    let mut aside = Aside::default();
    for entry in history.entries() {
        let slowest = |clocks: &BTreeMap<WorkerId, u64>| {
            present.iter().map(|w| clocks.get(w).copied().unwrap_or(0)).min().unwrap_or(0)
        };
        aside.follow(entry);
        match entry {
            Entry::Restored { .. } => {
                present.clear();
                parked.clear();
                handed.clear();
                started = false;
            }
            Entry::Image(_) | Entry::Taken(_) | Entry::Fed { .. } => {}
            Entry::Members { came, went } => {
                present.retain(|worker| !went.contains(worker));
                if run_is_elastic {
                    parked.retain(|worker, _| !went.contains(worker));
                }
                for member in came {
                    present.insert(member.worker);
                    parked.remove(&member.worker);
                }
            }
            // One who joins begins with the others.
            Entry::Ordered(Order::Settle { worker, next, void_missing: true, .. }) => {
                let clock = clocks.entry(*worker).or_default();
                *clock = (*clock).max(next.step.0);
            }
            Entry::Ordered(order) => started |= *order == Order::Start,
            Entry::Observed { .. } => {}
            Entry::Asked(asked) => {
                if let Some(step) = asked.pull {
                    parked.insert(asked.worker, (asked.session, step));
                }
            }
            Entry::Ended(session) => parked.retain(|_, (its, _)| its != session),
            Entry::Record(record) => {
                if let (Outcome::Applied { .. }, Some(clock)) =
                    (record.outcome, handed.get(&(record.worker, record.base)))
                {
                    assert!(
                        clock + bound >= record.step.0,
                        "{record:?} was computed on what was handed out when the slowest was at {clock}"
                    );
                }
                let clock = clocks.entry(record.worker).or_default();
                *clock = (*clock).max(record.step.0 + 1);
            }
            Entry::Told { session, .. } if history.worker_of(*session).is_none() => {}
            Entry::Told { session, what } => match what {
                Told::Values { step, version, .. } => {
                    let clock = slowest(&clocks);
                    assert!(
                        clock + bound >= step.0,
                        "{session:?} got values for step {step}, the slowest is at {clock}"
                    );
                    if let Some(worker) = history.worker_of(*session) {
                        handed.insert((worker, *version), clock);
                    }
                    parked.retain(|_, (its, _)| its != session);
                }
                Told::Finished | Told::Rejected => parked.retain(|_, (its, _)| its != session),
                Told::Held(_)
                | Told::Settled(..)
                | Told::Waiting(_)
                | Told::NoSnapshot(_)
                | Told::NotReached => {}
            },
            Entry::Handled { .. } if started => {
                let clock = slowest(&clocks);
                for (worker, (session, step)) in &parked {
                    if aside.has(*worker, *session) {
                        continue;
                    }
                    assert!(
                        clock + bound < step.0,
                        "{worker} waits for step {step}, the slowest is at {clock}"
                    );
                    waited += 1;
                }
            }
            Entry::Handled { .. } => {}
        }
    }
    waited
}

/// The mean staleness on one shard while every worker was at work: from when each has pushed once until one of them has
/// pushed for the last time.
pub fn mean_staleness(history: &History, workers: usize) -> f64 {
    let records: Vec<&Record> = history.records().collect();
    let of = |worker: usize| move |r: &&Record| r.worker.index() == worker;
    let first = (0..workers).filter_map(|w| records.iter().position(|r| of(w)(r))).max().unwrap_or(0);
    let last = (0..workers).filter_map(|w| records.iter().rposition(|r| of(w)(r))).min().unwrap_or(0);
    let staleness: Vec<u64> = records[first + 1..=last]
        .iter()
        .filter_map(|r| match r.outcome {
            Outcome::Applied { staleness, .. } => Some(staleness),
            _ => None,
        })
        .collect();
    staleness.iter().sum::<u64>() as f64 / staleness.len() as f64
}
