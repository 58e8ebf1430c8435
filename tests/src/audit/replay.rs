//! Makes each shard's values anew from its records and the pushes that were computed.

use std::collections::BTreeMap;

use windlass_common::codec::Codec;
use windlass_common::ids::{Examples, ShardId};
use windlass_common::plan::{Mode, StalenessScaling, Weights};
use windlass_common::wire::{Outcome, Record};

use super::assert_same;
use super::compensated::{lambda, stale};
use super::references::{self, References};
use crate::cluster::{Entry, Pushed, Run, Source};
use crate::oracle::{self, Model, mean};
use crate::problem::{Problem, train};

/// Asserts that each shard's values are what its records make of the pushes, and that each push was computed on the
/// versions that its records name.
///
/// # Panics
/// If not.
pub fn assert_replays(run: &Run, problem: &dyn Problem) {
    let initial = Model::of(&run.plan).values;
    let shards = (0..run.plan.cluster.shards()).map(ShardId);
    let replayed: Vec<_> = shards.clone().map(|shard| replayed(run, shard, &initial)).collect();
    for (shard, (versions, _)) in shards.clone().zip(&replayed) {
        // A run that failed has no result.
        if !run.values.is_empty() {
            let last = versions.last().expect("there is a first version");
            assert_same(&run.part_of(shard, &run.values), last, &format!("{shard} against its records"));
        }
    }
    let mut steps = BTreeMap::new();
    for (shard, history) in run.histories.iter().enumerate() {
        for record in history.records().filter(|r| matches!(r.outcome, Outcome::Applied { .. })) {
            let pushed = pushed(run, record);
            assert_eq!(record.base, pushed.bases[shard], "{record:?} names what it was computed on");
            steps.insert((record.worker, record.incarnation, record.sequence), record.step);
        }
    }
    for ((worker, incarnation, sequence), step) in steps {
        let pushed = &run.gradients[&(worker, incarnation, sequence)];
        let mut values = vec![f32::NAN; initial.len()];
        for shard in shards.clone() {
            let (versions, references) = &replayed[shard.index()];
            let base = pushed.bases[shard.index()].index();
            scatter(run, shard, &references.at(versions, base), &mut values);
        }
        if !references::are_kept(run.plan.codecs.pull) {
            for slice in run.placement.slices() {
                let start = run.layout.range(slice.variable).start + slice.start as usize;
                as_pulled(run.plan.codecs.pull, &mut values[start..start + slice.len as usize]);
            }
        }
        let computed = match run.plan.mode.local() {
            Some(local) => train(problem, pushed.work.client, step, local.rate as f32, &values).push,
            None => {
                let mut gradient = vec![0.0; values.len()];
                problem.gradient(worker, step, &values, &mut gradient);
                gradient
            }
        };
        let what = format!("what {worker} pushed for step {step}");
        assert_same(&pushed.computed, &computed, &what);
        assert_sent(run, pushed, &what);
    }
}

/// The versions of one shard, each made of the one before as the mode's definition says, and what workers were sent of them.
fn replayed(run: &Run, shard: ShardId, initial: &[f32]) -> (Vec<Vec<f32>>, References) {
    let model = Model::new(run.part_of(shard, initial), run.plan.optimizer);
    let part = |r: &Record| run.part_of(shard, &pushed(run, r).gradient);
    let goal = run.plan.goal();
    let history = &run.histories[shard.index()];
    let stale = stale(&run.plan.mode, history);
    let lengths = run.placement.of_shard(shard).iter().map(|slice| slice.len as usize).collect();
    let references = References::new(run.plan.codecs.pull, lengths);
    let step = |model: &mut Model, pushes: &[&Record], applied: Examples, versions: &[Vec<f32>]| {
        let newest = versions.len() as u64 - 1;
        let position = goal.position(pushes[0].step, applied);
        let rate = run.plan.schedule.rate(position, goal.total());
        let parts: Vec<Vec<f32>> = pushes.iter().map(|r| part(r)).collect();
        let weighted = |count: fn(&Record) -> u32| -> Vec<f32> {
            let weighted = pushes.iter().zip(&parts).map(|(r, part)| (count(r), part.as_slice()));
            mean(&weighted.collect::<Vec<_>>())
        };
        match &run.plan.mode {
            Mode::Sync { .. } => model.step(&weighted(|r| r.examples), rate),
            Mode::Fedavg(fedavg) => {
                let count = match fedavg.weights {
                    Weights::Examples => |r: &Record| r.examples,
                    Weights::Uniform => |_: &Record| 1,
                };
                model.step(&weighted(count), rate);
            }
            &Mode::Async { scaling, .. } | &Mode::Ssp { scaling, .. } => {
                assert_eq!(pushes.len(), 1, "each push is a step by itself");
                let (push, mut gradient) = (pushes[0], parts[0].clone());
                if stale.compensated.contains(&(push.worker, push.sequence)) {
                    let lambda = lambda(&run.plan.mode).expect("what is compensated is so by a lambda");
                    let now = &versions[newest as usize];
                    let then = references.at(versions, push.base.index());
                    for (i, g) in gradient.iter_mut().enumerate() {
                        *g += lambda * *g * *g * (now[i] - then[i]);
                    }
                }
                model.step(&gradient, scaled(scaling, rate, newest - push.base.0));
            }
            &Mode::Softsync { buffer, scaling, .. } | &Mode::Fedbuff { buffer, scaling, .. } => {
                assert_eq!(pushes.len(), buffer as usize, "a buffer is full when it makes a step");
                let factors: Vec<f32> =
                    pushes.iter().map(|r| scaled(scaling, 1.0, newest - r.base.0)).collect();
                let mut sum: Vec<f32> = parts[0].iter().map(|x| factors[0] * x).collect();
                for (part, factor) in parts.iter().zip(&factors).skip(1) {
                    sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += factor * x);
                }
                sum.iter_mut().for_each(|sum| *sum /= buffer as f32);
                model.step(&sum, rate);
            }
            &Mode::Fedasync { scaling, .. } => {
                assert_eq!(pushes.len(), 1, "each push is mixed by itself");
                let share = scaled(scaling, rate, newest - pushes[0].base.0);
                let base = references.at(versions, pushes[0].base.index());
                for (i, x) in model.values.iter_mut().enumerate() {
                    *x += share * ((base[i] - parts[0][i]) - *x);
                }
            }
        }
    };
    assert_images(run, shard, &model, &references, &step);
    let (versions, _) = oracle::replay(model, history.records(), step);
    (versions, references)
}

/// Asserts that what a checkpoint or a copy holds of a shard's values, and of what its optimizer remembers, is what the records before
/// it make of them.
fn assert_images(
    run: &Run,
    shard: ShardId,
    first: &Model,
    references: &References,
    step: &impl Fn(&mut Model, &[&Record], Examples, &[Vec<f32>]),
) {
    let entries = run.histories[shard.index()].entries();
    for (at, entry) in entries.iter().enumerate() {
        let kept = match entry {
            Entry::Image(kept) => kept,
            Entry::Restored { kept: Some(kept), from: Source::Primary | Source::Standby, .. } => kept,
            _ => continue,
        };
        let records = entries[..at].iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            _ => None,
        });
        let (versions, model) = oracle::replay(first.clone(), records, step);
        let what = format!("{shard} in checkpoint {:?}", kept.checkpoint);
        let floats = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<f32>>();
        assert_same(&floats(&kept.values), &model.values, &what);
        if references::are_kept(run.plan.codecs.pull) {
            let expected = references.at(&versions, versions.len() - 1);
            assert_same(&floats(&kept.reference), &expected, &format!("{what}, what workers were sent"));
        }
        for (number, vector) in kept.vectors.iter().enumerate() {
            let found = floats(vector);
            assert_same(&found, model.vector(number), &format!("{what}, vector {number} of the optimizer"));
        }
        if !kept.vectors.is_empty() {
            let updates = u64::from(model.updates());
            assert!(kept.updates.iter().all(|u| *u == updates), "{what}: {:?} is {updates}", kept.updates);
        }
    }
}

fn scaled(scaling: StalenessScaling, rate: f32, staleness: u64) -> f32 {
    match scaling {
        StalenessScaling::Inverse if staleness > 1 => rate / staleness as f32,
        StalenessScaling::None | StalenessScaling::Inverse => rate,
        other => rate * other.factor(staleness),
    }
}

fn pushed<'r>(run: &'r Run, r: &Record) -> &'r Pushed {
    let pushed = run.gradients.get(&(r.worker, r.incarnation, r.sequence));
    let pushed = pushed.unwrap_or_else(|| panic!("nobody computed {r:?}"));
    let work = pushed.work;
    assert_eq!((r.client, r.examples, r.work), (work.client, work.examples, work.work), "{r:?}");
    pushed
}

/// What becomes of a slice's values on their way to a worker.
fn as_pulled(codec: Codec, values: &mut [f32]) {
    let mut bytes = Vec::new();
    codec.encode_alone(values, &mut bytes);
    codec.decode_payload([values.len()], &bytes, values).expect("what was encoded can be decoded");
}

/// Asserts that what the shards were sent is as near to what was computed as the codec promises. What error feedback adds
/// has no bound.
fn assert_sent(run: &Run, pushed: &Pushed, what: &str) {
    let codec = run.plan.codecs.push;
    if codec.is_biased() {
        return;
    }
    for (start, (computed, sent)) in
        (0_usize..).step_by(64).zip(pushed.computed.chunks(64).zip(pushed.gradient.chunks(64)))
    {
        // Blocks begin with variables, so that a value's block is among these and those around.
        let around = &pushed.computed[start.saturating_sub(64)..(start + 128).min(pushed.computed.len())];
        let largest = around.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        for (computed, sent) in computed.iter().zip(sent) {
            let most = match codec {
                Codec::F32 => 0.0,
                Codec::Bf16 => computed.abs() / 256.0,
                // Below the least normal number of 16 bits the distance no longer shrinks.
                Codec::F16 => computed.abs() / 2048.0 + 3e-8,
                // A step, and the rounding of 127 of them.
                _ => largest / 127.0 * 1.000_02,
            };
            assert!((computed - sent).abs() <= most, "{what}: {sent} was sent for {computed} as {codec}");
        }
    }
}

/// Puts one shard's values where they belong in the whole model.
fn scatter(run: &Run, shard: ShardId, part: &[f32], whole: &mut [f32]) {
    let mut at = 0;
    for slice in run.placement.of_shard(shard) {
        let (start, len) =
            (run.layout.range(slice.variable).start + slice.start as usize, slice.len as usize);
        whole[start..start + len].copy_from_slice(&part[at..at + len]);
        at += len;
    }
}
