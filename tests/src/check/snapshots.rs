//! Follows what one shard keeps for observers: the first version at each evaluation point, and no more than it may.

use std::collections::BTreeMap;

use windlass_common::ids::{Examples, Step, Version};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Order, Outcome};
use windlass_ps_core::SessionId;
use windlass_ps_core::shard::{SNAPSHOTS_MAX, WAITERS_MAX};

use crate::cluster::{Entry, History, Source, Told};

/// Verifies one shard, and counts the answers.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(plan: &Plan, shard: usize, history: &History) -> u64 {
    let every = plan.training.evaluate_every;
    // The models here are so small that as many points are kept as ever.
    let mut kept_points: BTreeMap<u64, Version> = BTreeMap::from([(0, Version(0))]);
    let (mut copied, mut made) = (BTreeMap::new(), Version(0));
    let mut next = 1;
    let mut waiting: BTreeMap<SessionId, u64> = BTreeMap::new();
    let (mut examples, mut closed, mut is_over) = (Examples(0), 0, false);
    let mut told: Vec<(SessionId, &Told)> = Vec::new();
    let mut answers = 0;
    for entry in history.entries() {
        match entry {
            Entry::Observed { session, point } => {
                waiting.insert(*session, *point);
            }
            Entry::Fed { is_whole: true, .. } => {
                let open = if matches!(plan.mode, Mode::Sync { .. }) { Step(made.0) } else { Step(closed) };
                let point = plan.goal().position(open, examples) / every;
                copied = BTreeMap::from([(point, made)]);
            }
            // A copy has what was kept since it was begun.
            Entry::Restored { from: Source::Primary | Source::Standby, .. } => {
                if matches!(entry, Entry::Restored { from: Source::Standby, .. }) {
                    kept_points.clone_from(&copied);
                }
                waiting.clear();
                told.clear();
            }
            Entry::Restored { kept, .. } => {
                let state = kept.as_ref().map(|kept| kept.state.clone()).unwrap_or_default();
                let open = if matches!(plan.mode, Mode::Sync { .. }) { state.open } else { Step(closed) };
                let position = plan.goal().position(open, examples);
                let point = position / every;
                made = state.version;
                kept_points = BTreeMap::from([(point, state.version)]);
                next = point + 1;
                waiting.clear();
                told.clear();
                is_over = position >= plan.goal().total();
            }
            Entry::Record(record) => {
                examples = examples.max(record.examples_applied);
                // One event may make several versions, where pushes had been set aside.
                if let (Outcome::Applied { version, .. }, false) = (record.outcome, is_over) {
                    let open =
                        if matches!(plan.mode, Mode::Sync { .. }) { Step(version.0) } else { Step(closed) };
                    let position = plan.goal().position(open, examples);
                    let point = position / every;
                    made = version;
                    if point >= next {
                        kept_points.insert(point, version);
                        copied.insert(point, version);
                        next = point + 1;
                    }
                    is_over |= position >= plan.goal().total();
                }
            }
            Entry::Ordered(Order::Close { step, .. }) if step.0 == closed => closed += 1,
            Entry::Ordered(Order::Conclude) => is_over = true,
            Entry::Told { session, what } if history.worker_of(*session).is_none() => {
                told.push((*session, what))
            }
            Entry::Handled { newest, .. } => {
                made = *newest;
                let open = if matches!(plan.mode, Mode::Sync { .. }) { Step(newest.0) } else { Step(closed) };
                let position = plan.goal().position(open, examples);
                let point = position / every;
                if point >= next && !is_over {
                    kept_points.insert(point, *newest);
                    copied.insert(point, *newest);
                    next = point + 1;
                    if kept_points.len() as u64 > SNAPSHOTS_MAX {
                        kept_points.pop_first();
                    }
                }
                is_over |= position >= plan.goal().total();
                for (session, what) in told.drain(..) {
                    if *what == Told::NotReached {
                        let point = waiting.get(&session).copied();
                        let is_yet_to_come = point.is_some_and(|point| point >= next) && !is_over;
                        assert!(is_yet_to_come, "shard {shard} says that point {point:?} is yet to come");
                        continue;
                    }
                    let point = waiting.remove(&session).expect("who is told has asked");
                    let further = kept_points.range(point + 1..).next().map(|(point, _)| *point);
                    let expected = match kept_points.get(&point) {
                        Some(version) => matches!(what, Told::Values { version: v, .. } if v == version),
                        None => *what == Told::NoSnapshot(further) && (point < next || is_over),
                    };
                    assert!(
                        expected,
                        "shard {shard} is asked for point {point} and says {what:?}; it has kept {kept_points:?}"
                    );
                    answers += 1;
                }
                let is_due = |point: &u64| kept_points.contains_key(point) || *point < next || is_over;
                let late = waiting.values().find(|point| is_due(point));
                assert_eq!(late, None, "shard {shard} lets an observer wait for a point that has been");
                assert!(waiting.len() < WAITERS_MAX, "shard {shard} lets {} observers wait", waiting.len());
            }
            _ => {}
        }
    }
    answers
}
