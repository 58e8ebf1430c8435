//! Compares what a checkpoint holds of one shard with what that shard was asked and did before it.

use windlass_common::ids::WorkerId;
use windlass_common::plan::{Membership, Mode, Plan};
use windlass_common::wire::Outcome;

use super::ledger::{Ledger, Worker};
use crate::cluster::Kept;

/// Outcomes that are remembered of a worker, beside those of what is held.
const OUTCOMES: usize = 8;

/// Whether a worker that comes back makes what it had open again under new numbers.
fn are_redone(plan: &Plan) -> bool {
    match plan.mode {
        Mode::Sync { backup } => backup > 0 || plan.cluster.membership != Membership::Fixed,
        Mode::Softsync { .. } | Mode::Fedavg(_) | Mode::Fedbuff { .. } => true,
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => false,
    }
}

/// Verifies what is held of each worker: its next push, its clock, and what became of its last pushes.
pub(super) fn verify(what: &str, ledger: &Ledger<'_>, kept: &Kept) {
    let plan = ledger.plan;
    let checkpoint = kept.checkpoint;
    let (mut examples, mut version, mut void) = (0, 0, 0);
    for worker in ledger.workers.values() {
        void += worker.outcomes.values().filter(|o| **o == Outcome::Void).count() as u64;
        for outcome in worker.outcomes.values() {
            if let Outcome::Applied { version: made, .. } = outcome {
                version = version.max(made.0);
            }
        }
        examples = examples.max(worker.examples);
    }
    let state = &kept.state;
    assert_eq!(state.version.0, version, "{what} keeps in {checkpoint:?} another version than it has");
    assert_eq!(state.examples.0, examples, "{what} keeps in {checkpoint:?} other examples than it has");
    if !are_redone(plan) {
        assert_eq!(state.partial, void, "{what} keeps in {checkpoint:?} other void pushes than it has");
    }
    for row in &state.workers {
        let Some(worker) = ledger.workers.get(&row.worker) else {
            // One that has gone before this shard ever heard of it.
            if !row.member && row.sequence.0 == 0 && row.outcomes.is_empty() {
                continue;
            }
            panic!("{what} keeps in {checkpoint:?} a worker that nobody knows: {row:?}")
        };
        let next = worker.next - worker.held_last();
        assert_eq!(row.sequence.0, next, "{what} keeps in {checkpoint:?} another next push: {row:?}");
        let expected: Vec<Outcome> = (0..next).rev().map(|number| outcome(worker, number)).collect();
        let found: Vec<Outcome> = row.outcomes.iter().rev().copied().collect();
        assert!(expected.starts_with(&found), "{what} keeps in {checkpoint:?} {row:?}, it was {expected:?}");
        // One that is held takes the place of an outcome, which is missing after a restore.
        let least = OUTCOMES.min(expected.len()).saturating_sub(worker.held.len().max(1));
        let is_right = (least..=OUTCOMES + held_most(plan)).contains(&found.len());
        assert!(is_right, "{what} keeps in {checkpoint:?} {} outcomes of {:?}", found.len(), row.worker);
        match &plan.mode {
            Mode::Sync { .. } if !are_redone(plan) => {
                let is_right = (row.step, row.clock) == (state.open, state.open) && state.open.0 == version;
                assert!(is_right, "{what} keeps in {checkpoint:?} at version {version} {row:?}");
            }
            Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => {
                let is_right = (row.step.0, row.clock.0) == (worker.clock, worker.clock);
                assert!(is_right, "{what} keeps in {checkpoint:?} {row:?}, its clock is {}", worker.clock);
            }
            _ => {}
        }
    }
    let kept: Vec<WorkerId> = state.workers.iter().map(|row| row.worker).collect();
    let forgotten = ledger.workers.iter().find(|(id, worker)| worker.next > 0 && !kept.contains(id));
    assert!(forgotten.is_none(), "{what} forgets in {checkpoint:?} {:?}", forgotten.map(|(id, _)| id));
}

/// What has become of a push; one that is held while a later one is settled is void.
fn outcome(worker: &Worker, number: u64) -> Outcome {
    worker.outcomes.get(&number).copied().unwrap_or(Outcome::Void)
}

/// Pushes of one worker that may be held at once, where there are more than one: that many outcomes more are remembered.
fn held_most(plan: &Plan) -> usize {
    match &plan.mode {
        Mode::Fedavg(fedavg) => fedavg.asked as usize,
        Mode::Softsync { buffer, .. } | Mode::Fedbuff { buffer, .. } => *buffer as usize,
        _ => 0,
    }
}
