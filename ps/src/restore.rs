//! Reads checkpoints back: the one a run goes on from, and of it a shard's part, whatever shards it was written by.

use std::sync::Arc;

use anyhow::{Context, ensure};
use windlass_checkpoint::{Checkpoint, Cut, Kind, Request, Store, list, newest};
use windlass_common::codec::Patch;
use windlass_common::ids::{ShardId, Version};
use windlass_common::optimizer::State;
use windlass_common::plan::Plan;
use windlass_ps_core::coordinator::{Restore, RunState};
use windlass_ps_core::residuals::Residuals;
use windlass_ps_core::shard::{Image, ShardState};
use windlass_ps_core::store::SliceState;

use crate::keeper::{REFERENCE, Remembered, whose};

/// What a run goes on from, and what was counted until then.
pub(crate) struct Found {
    pub(crate) restore: Restore,
    pub(crate) tally: Option<serde_json::Value>,
}

/// Looks for the newest sound checkpoint of this plan's training. Without one the run goes on from its beginning; `lives`
/// is then all that is known of earlier ones.
///
/// # Errors
/// If the store cannot be read, or the checkpoint is of another training.
pub(crate) fn find(store: &Arc<dyn Store>, plan: &Plan, lives: &RunState) -> anyhow::Result<Found> {
    let next = next_number(store)?;
    let (found, skipped) = newest(store)?;
    for skipped in &skipped {
        tracing::warn!(number = skipped.number, why = %skipped.why, "a damaged checkpoint is passed over");
    }
    let Some(checkpoint) = found else {
        let state =
            RunState { term: lives.term, incarnations: lives.incarnations.clone(), ..RunState::default() };
        return Ok(Found { restore: Restore::from_the_beginning(state, next), tally: None });
    };
    let remembered = remembered(&checkpoint, plan)?;
    let mut state = remembered.run;
    // Lives that came after the checkpoint are not lived again.
    state.term = state.term.max(lives.term);
    for (&worker, &incarnation) in &lives.incarnations {
        let known = state.incarnations.entry(worker).or_default();
        *known = incarnation.max(*known);
    }
    let manifest = checkpoint.manifest();
    let at_us = manifest.at_us;
    let restore = Restore { at_us, ..Restore::new(manifest.number, state, &remembered.shards, next) };
    Ok(Found { restore, tally: Some(remembered.tally) })
}

/// The number of the next checkpoint: above that of any that was begun.
///
/// # Errors
/// If the store cannot be read.
pub(crate) fn next_number(store: &Arc<dyn Store>) -> anyhow::Result<u64> {
    Ok(list(&**store)?.iter().map(|listed| listed.number).max().map_or(1, |most| most + 1))
}

/// What had been counted when this checkpoint was taken.
///
/// # Errors
/// If it is not there, is damaged, or is of another training.
pub(crate) fn tally(store: &Arc<dyn Store>, plan: &Plan, number: u64) -> anyhow::Result<serde_json::Value> {
    let checkpoint = Checkpoint::open(store, number).with_context(|| format!("checkpoint {number}"))?;
    Ok(remembered(&checkpoint, plan)?.tally)
}

/// What a checkpoint remembers beside the values, checked against the plan.
fn remembered(checkpoint: &Checkpoint, plan: &Plan) -> anyhow::Result<Remembered> {
    let manifest = checkpoint.manifest();
    let number = manifest.number;
    let of = || format!("checkpoint {number}");
    let before = Plan::parse(&manifest.plan).with_context(of)?;
    if let Some(what) = before.differs_in_training(plan) {
        anyhow::bail!("checkpoint {number} is of another training than the plan: {what} differs");
    }
    let layout = plan.layout()?;
    let variables: Vec<(&str, u64)> = layout.variables().iter().map(|v| (v.name.as_str(), v.len())).collect();
    manifest.fits(variables).with_context(of)?;
    let remembered: Remembered = serde_json::from_value(manifest.state.clone()).with_context(of)?;
    ensure!(!remembered.shards.is_empty(), "checkpoint {number} remembers no shard");
    Ok(remembered)
}

/// A shard's part of a checkpoint.
///
/// # Errors
/// If the checkpoint is not there, is damaged, or does not fit the plan.
pub(crate) fn image(
    store: &Arc<dyn Store>,
    number: u64,
    plan: &Plan,
    shard: ShardId,
) -> anyhow::Result<Image> {
    let of = || format!("checkpoint {number} in {}", store.place());
    let checkpoint = Checkpoint::open(store, number).with_context(of)?;
    let Remembered { mut shards, .. } = remembered(&checkpoint, plan)?;
    let (layout, placement) = (plan.layout()?, plan.placement()?);
    let mut names = plan.optimizer.state_names().to_vec();
    let has_reference = Patch::of(plan.codecs.pull).is_some();
    names.extend(has_reference.then_some(REFERENCE));
    let slices = placement.of_shard(shard);
    let mut values: Vec<Vec<f32>> = slices.iter().map(|s| vec![0.0; s.len as usize]).collect();
    let mut states: Vec<Vec<Vec<f32>>> =
        slices.iter().map(|s| vec![vec![0.0; s.len as usize]; names.len()]).collect();
    let mut requests: Vec<Request<'_>> = Vec::new();
    for ((slice, values), states) in slices.iter().zip(&mut values).zip(&mut states) {
        let variable = layout.variables()[slice.variable.index()].name.as_str();
        let start = slice.start;
        requests.push(Request { variable, kind: Kind::Values, start, out: values, updates: 0 });
        for (&name, out) in names.iter().zip(states) {
            requests.push(Request { variable, kind: Kind::State(name), start, out, updates: 0 });
        }
    }
    checkpoint.read_all(&mut requests).with_context(of)?;
    let updates: Vec<u64> = requests.iter().step_by(1 + names.len()).map(|r| r.updates).collect();
    drop(requests);
    let slice = |((values, mut vectors), updates): ((_, Vec<_>), _)| SliceState {
        values: Arc::new(values),
        reference: if has_reference { vectors.pop().map(Arc::new) } else { None },
        state: State { vectors: vectors.into_iter().map(Arc::new).collect(), updates },
    };
    let slices = values.into_iter().zip(states).zip(updates).map(slice).collect();
    let state = if shards.len() == placement.shards() as usize {
        shards.swap_remove(shard.index())
    } else {
        of_other_shards(&shards)
    };
    let residuals =
        if plan.codecs.push.is_biased() { left(&checkpoint, plan, shard)? } else { Residuals::new() };
    Ok(Image { state, slices, residuals })
}

/// What had been left out of pushes, cut for this shard.
fn left(checkpoint: &Checkpoint, plan: &Plan, shard: ShardId) -> anyhow::Result<Residuals> {
    let of = || format!("checkpoint {}", checkpoint.manifest().number);
    let (layout, placement) = (plan.layout()?, plan.placement()?);
    let slices = placement.of_shard(shard).iter().map(|slice| Cut {
        variable: layout.variables()[slice.variable.index()].name.as_str(),
        start: slice.start,
        values: slice.len,
    });
    let found = checkpoint.left(&slices.collect::<Vec<_>>()).with_context(of)?;
    let mut residuals = Residuals::new();
    for (name, values) in found {
        let whose = whose(&name).with_context(|| format!("{}: nobody's: {name}", of()))?;
        residuals.insert(whose, Arc::new(values));
    }
    Ok(residuals)
}

/// What a shard knows that was none of those that wrote the checkpoint. They differ at most in how often they have applied
/// something: pushes of workers that died may be void on some.
fn of_other_shards(shards: &[ShardState]) -> ShardState {
    let most = shards.iter().max_by_key(|s| s.version).cloned().unwrap_or_default();
    let version = shards.iter().map(|s| s.version).max().unwrap_or(Version(0));
    ShardState { version, partial: 0, ..most }
}
