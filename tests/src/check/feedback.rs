//! Verifies that what a codec leaves out of a push is in the next one of the same client, also where the run has gone back to a
//! checkpoint in between.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeBounds};

use windlass_common::ids::{ClientId, Sequence, ShardId, WorkerId};
use windlass_common::plan::{Membership, Mode};
use windlass_common::wire::{Outcome, Record};

use crate::audit::assert_same;
use crate::cluster::{Entry, Pushed, Run, Source};
use crate::sim::Counts;

/// A push that has been applied: in the so many-th history of the run, and after so many lives of its worker that could not know
/// what had become of the push before.
type Applied<'a> = (&'a Record, &'a Pushed, usize, usize);

/// Verifies each two pushes of a client of which one follows the other, on each shard, and counts them.
///
/// # Panics
/// If something that was left out is missing in the later one, or something is in it that was not left out.
pub(super) fn verify(run: &Run) -> Counts {
    let mut counts = Counts::default();
    if !run.plan.codecs.push.is_biased() || !is_exact(run) {
        return counts;
    }
    for (shard, history) in (0..).map(ShardId).zip(&run.histories) {
        let (mut last, mut era) = (BTreeMap::<(ClientId, WorkerId), Applied<'_>>::new(), 0);
        let (mut lives, mut in_era) = (BTreeMap::<WorkerId, usize>::new(), BTreeSet::new());
        for entry in history.entries() {
            let record = match entry {
                Entry::Restored { from, .. } => {
                    era += usize::from(*from == Source::Checkpoint);
                    in_era.clear();
                    continue;
                }
                // The first life in a lineage has been told all, or has it. Who is cut off and joins again may have to take a push
                // for void that counts, where shards close steps without it. Who takes no part any more is not asked for a checkpoint.
                Entry::Members { came, went } => {
                    let again = came.iter().map(|m| m.worker).filter(|worker| !in_era.insert(*worker));
                    again.chain(went.iter().copied()).for_each(|w| *lives.entry(w).or_default() += 1);
                    continue;
                }
                Entry::Record(record) if matches!(record.outcome, Outcome::Applied { .. }) => record,
                _ => continue,
            };
            let pushed = &run.gradients[&(record.worker, record.incarnation, record.sequence)];
            let what = format!("{} encodes for {} in push {}", record.worker, record.client, record.sequence);
            let life = lives.get(&record.worker).copied().unwrap_or_default();
            match last.insert((record.client, record.worker), (record, pushed, era, life)) {
                None if is_first(run, record) => {
                    assert_same(&pushed.encoded, &pushed.computed, &format!("{what}, its first"));
                }
                Some((before, left, era_before, life_before))
                    if life == life_before && follows(run, (before, left), (record, pushed)) =>
                {
                    let part = |values: &[f32]| run.part_of(shard, values);
                    let (p, sent) = (part(&left.encoded), part(&left.gradient));
                    if p.iter().chain(&sent).any(|x| !x.is_finite()) {
                        continue;
                    }
                    let left_out = p.iter().zip(&sent).map(|(p, sent)| p - sent);
                    let expected: Vec<f32> =
                        part(&pushed.computed).iter().zip(left_out).map(|(g, e)| g + e).collect();
                    let what = format!("{what} after push {}", before.sequence);
                    let found = part(&pushed.encoded);
                    match run.plan.codecs.push.is_narrow() {
                        // What is left out of blocks is kept as exactly as floats would keep the largest value of each.
                        true => assert_close(&found, &expected, &p, &what),
                        false => assert_same(&found, &expected, &what),
                    }
                    counts.add("left out and added", 1);
                    counts.add("left out before a checkpoint", u64::from(era_before < era));
                }
                _ => {}
            }
        }
    }
    counts
}

/// # Panics
/// If a value is further from the expected one than some roundings of numbers as large as the largest of these, or of their sum.
fn assert_close(found: &[f32], expected: &[f32], largest_of: &[f32], what: &str) {
    let largest = largest_of.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let most = 2.0 * f32::EPSILON * largest.max(expected.abs());
        assert!((found - expected).abs() <= most, "{what}: value {i} is {found}, it should be {expected}");
    }
}

/// Whether what is left out is carried on exactly: not where pushes that are held come to nothing when the run goes back.
fn is_exact(run: &Run) -> bool {
    !matches!(run.plan.mode, Mode::Softsync { .. } | Mode::Fedbuff { .. })
}

/// Whether others may have trained for a worker's clients, which then have what these left out.
fn moves(run: &Run) -> bool {
    let is_elastic = run.plan.cluster.membership != Membership::Fixed;
    is_elastic && run.plan.mode.local().is_some() && !run.plan.mode.is_hosting_balanced()
}

/// The other pushes of a worker for a client with these numbers, but for the same one that was sent again.
fn others<'a>(
    run: &'a Run,
    record: &'a Record,
    numbers: impl RangeBounds<Sequence> + 'a,
) -> impl Iterator<Item = &'a Pushed> + 'a {
    let this = &run.gradients[&(record.worker, record.incarnation, record.sequence)];
    run.gradients.iter().filter_map(move |((worker, _, sequence), other)| {
        let is_of_it = *worker == record.worker && other.work.client == record.client;
        (is_of_it && numbers.contains(sequence) && other != this).then_some(other)
    })
}

/// Whether a worker has never before pushed for the client.
fn is_first(run: &Run, record: &Record) -> bool {
    others(run, record, ..=record.sequence).next().is_none() && !moves(run)
}

/// Whether one process made both pushes, and none in between for the client that counts, or may.
fn follows(run: &Run, (before, left): (&Record, &Pushed), (record, pushed): (&Record, &Pushed)) -> bool {
    // In a round a client is trained again if its push came to nothing.
    let is_round = matches!(run.plan.mode, Mode::Fedavg(_));
    let is_made_again = |other: &Pushed| is_round && other.step == record.step;
    let between = (Bound::Excluded(before.sequence), Bound::Included(record.sequence));
    left.process == pushed.process && others(run, record, between).all(is_made_again) && !moves(run)
}
