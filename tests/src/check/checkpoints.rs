//! Compares the parts of each checkpoint: one cut through all shards, taken in time.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Lineage, Sequence, WorkerId};
use windlass_common::plan::{Membership, Mode};
use windlass_common::wire::{Order, Outcome};
use windlass_ps_core::Time;
use windlass_ps_core::coordinator::TAKEN_WITHIN_S;

use crate::cluster::{Entry, History, Kept, Run};
use crate::sim::Counts;

/// The word that a checkpoint is not taken may be so long on its way: a tick, an idle timeout, and what is sent again.
const WORD_WITHIN: u64 = 20_000_000;

/// A shard's part of a checkpoint, and what had become of each push by then.
struct Part<'a> {
    kept: &'a Kept,
    outcomes: BTreeMap<(WorkerId, Sequence), Outcome>,
    /// What belongs to it by the coordinator's word.
    before: BTreeMap<WorkerId, Sequence>,
}

/// Verifies the checkpoints of a run, and counts them and the times that shards paused.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(run: &Run) -> Counts {
    let mut counts = Counts::default();
    let mut all: BTreeMap<(Lineage, u64), Vec<(usize, Part<'_>)>> = BTreeMap::new();
    for (shard, history) in run.histories.iter().enumerate() {
        counts.add("pauses of shards", pauses_end(run, shard, history));
        for part in parts(history) {
            all.entry(part.kept.checkpoint).or_default().push((shard, part));
        }
    }
    for (checkpoint, parts) in &all {
        counts.add("parts taken", parts.len() as u64);
        let is_by_itself = applies_by_itself(run);
        for (shard, part) in parts {
            if is_by_itself {
                is_cut_as_told(*shard, part);
            }
            for (other, theirs) in parts {
                let what = format!("checkpoint {checkpoint:?} is not one: shard {shard} and shard {other}");
                if is_by_itself {
                    holds_what_the_other_has(&what, part, theirs);
                } else {
                    let at = |part: &Part<'_>| (part.kept.state.version, part.kept.state.open);
                    assert_eq!(at(part), at(theirs), "{what}");
                    assert_eq!(applied(part), applied(theirs), "{what}");
                }
            }
        }
    }
    counts
}

/// Whether shards apply pushes without being told.
fn applies_by_itself(run: &Run) -> bool {
    match run.plan.mode {
        Mode::Sync { backup } => backup == 0 && run.plan.cluster.membership == Membership::Fixed,
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => true,
        Mode::Softsync { .. } | Mode::Fedavg(_) | Mode::Fedbuff { .. } => false,
    }
}

fn parts(history: &History) -> Vec<Part<'_>> {
    let (mut outcomes, mut before, mut parts) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for entry in history.entries() {
        match entry {
            Entry::Record(record) => {
                outcomes.insert((record.worker, record.sequence), record.outcome);
            }
            Entry::Ordered(Order::Cut { before: told, .. }) => before = told.iter().copied().collect(),
            Entry::Image(kept) => {
                let (outcomes, before) = (outcomes.clone(), before.clone());
                parts.push(Part { kept, outcomes, before });
            }
            _ => {}
        }
    }
    parts
}

/// All that belongs to the checkpoint has been settled, and nothing later but what is void.
fn is_cut_as_told(shard: usize, part: &Part<'_>) {
    let checkpoint = part.kept.checkpoint;
    for (worker, before) in &part.before {
        for number in (0..before.0).map(Sequence) {
            let is_settled = part.outcomes.contains_key(&(*worker, number));
            assert!(is_settled, "checkpoint {checkpoint:?} lacks push {number} of {worker} on shard {shard}");
        }
    }
    for ((worker, number), outcome) in &part.outcomes {
        let is_later = part.before.get(worker).is_some_and(|before| number >= before);
        assert!(
            !is_later || *outcome == Outcome::Void,
            "checkpoint {checkpoint:?} has on shard {shard} push {number} of {worker}, which is later than it"
        );
    }
}

/// What counts on one shard counts on the other, or is void there.
fn holds_what_the_other_has(what: &str, part: &Part<'_>, other: &Part<'_>) {
    for (push, outcome) in part.outcomes.iter().filter(|(_, outcome)| **outcome != Outcome::Void) {
        let has = other.outcomes.contains_key(push);
        assert!(has, "{what}: push {push:?} is {outcome:?} on the one, and the other lacks it");
    }
}

fn applied(part: &Part<'_>) -> BTreeSet<(WorkerId, Sequence)> {
    let is_applied = |outcome: &Outcome| matches!(outcome, Outcome::Applied { .. });
    part.outcomes.iter().filter(|(_, outcome)| is_applied(outcome)).map(|(push, _)| *push).collect()
}

/// A shard that pauses goes on in time. Returns how often it paused.
fn pauses_end(run: &Run, shard: usize, history: &History) -> u64 {
    let most = (TAKEN_WITHIN_S * 1_000_000 + WORD_WITHIN) * 11 / 10 + run.paused;
    let (mut since, mut begins, mut ends, mut pauses) = (None::<Time>, false, false, 0);
    for entry in history.entries() {
        match entry {
            Entry::Ordered(Order::Pause { .. }) => begins = true,
            Entry::Ordered(Order::GoOn { .. }) | Entry::Taken(_) => ends = true,
            Entry::Restored { .. } => (since, begins, ends) = (None, false, false),
            Entry::Handled { at, .. } => {
                let lasted = since.map_or(0, |since| at.0.saturating_sub(since.0));
                assert!(lasted <= most, "shard {shard} pauses for {} s", lasted / 1_000_000);
                pauses += u64::from(begins);
                since = if ends { None } else { since.or(begins.then_some(*at)) };
                (begins, ends) = (false, false);
            }
            _ => {}
        }
    }
    pauses
}
