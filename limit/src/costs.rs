//! Measures what a push costs at least: its gradient, its bytes over bare QUIC, and its codecs and update.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use windlass_common::codec::{Patch, Scratch};
use windlass_common::floats::{Floats, add};
use windlass_common::ids::{ClientId, ServerId, ShardId, VariableId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::{Placement, Slice};
use windlass_common::plan::{Every, Mode, Plan};
use windlass_common::reduce::Contribution;
use windlass_common::rng::Purpose;
use windlass_common::wire::Codec;
use windlass_ps_core::rules::rules;
use windlass_ps_core::store::{Combined, Store, Undecoded};
use windlass_transport::{Role, RunAuthority};
use windlass_worker::data::{self, Gathered};
use windlass_worker::models::{self, Model};

use crate::bare::{self, Payload};
use crate::processor::processor_time;

/// Processor seconds of one push, all processes together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Its gradient, of examples of the plan's data, while every core computes one.
    pub gradient_s: f64,
    /// Its bytes and those pulled for it, over bare QUIC with the endpoints of a run.
    pub wire_s: f64,
    /// Writing and reading both as their codecs do, and the update.
    pub apply_s: f64,
}

impl Costs {
    /// Pushes per second on so many cores that workers and servers share: no run can be faster.
    pub fn pushes_per_s(&self, cores: usize) -> f64 {
        cores as f64 / (self.gradient_s + self.wire_s + self.apply_s)
    }
}

/// Pushes per second that emulated links allow, if the plan has any: each worker's link carries so many bytes of a push up
/// and of what is pulled down, both at once.
pub fn links_pushes_per_s(plan: &Plan, up: f64, down: f64) -> Option<f64> {
    let rate = plan.heterogeneity.link_rate?;
    let most = up.max(down);
    (most > 0.0).then(|| f64::from(plan.cluster.workers) * rate.0 as f64 / 8.0 / most)
}

/// How long each of the costs is measured.
const MEASURED: Duration = Duration::from_millis(1500);
/// Fewest and most times that something is done to measure it.
const TIMES: (f64, f64) = (10.0, 4000.0);

/// Measures the costs of a push of this plan on a machine of so many cores. It takes some seconds and every core, and the plan's data.
///
/// # Errors
/// If workers of the plan train by themselves between pushes, its model is not built in, its data are not there, or a socket cannot
/// be had.
pub fn measure(plan: &Plan, cores: usize) -> anyhow::Result<Costs> {
    ensure!(
        plan.mode.local().is_none(),
        "a push of {} is a whole training, not one gradient: there is no limit by this formula",
        plan.mode
    );
    let layout = plan.layout()?;
    let values = Floats::from(&layout.initial_values(plan.seed)[..]);
    let (gradient_s, gradient) = gradient(plan, cores, &values, &Examples::of(plan)?)?;
    let (apply_s, payload) = codecs_and_update(plan, &layout, &values, &gradient)?;
    let wire_s = wire(plan, payload)?;
    Ok(Costs { gradient_s, wire_s, apply_s })
}

/// Pushes per second where as many workers as this machine has cores for do all of it in turn: a gradient, its bytes over bare
/// QUIC, the codecs and an update, each with a server's thread and a store of its own. That is the limit of [`Costs`] with caches
/// that the three share, as in a run, and threads that wait for each other.
///
/// # Errors
/// As [`measure`].
pub fn together(plan: &Plan, cores: usize) -> anyhow::Result<f64> {
    let layout = plan.layout()?;
    let values = Floats::from(&layout.initial_values(plan.seed)[..]);
    let workers = (cores / threads(plan).get()).max(1);
    let (examples, mut one) = (Examples::of(plan)?, Floats::zeros(values.len()));
    Computing::new(plan, &examples)?.once(&values, &mut one);
    let [up, down] = Applying::new(plan, &layout, &values)?.once(&one, &values)?;
    let payload = Payload { up, down };
    let authority = RunAuthority::new("limit")?;
    let identities = (0..workers as u32).map(|w| authority.issue(Role::Worker(WorkerId(w))));
    let identities = identities.collect::<Result<Vec<_>, _>>()?;
    let server = authority.issue(Role::Server(ServerId(0)))?;
    let servers = bare::serve(&server, &windlass_ps::limits(), payload, workers)?;
    let took = |times| {
        bare::at_once(workers, times, |worker| {
            let (mut computing, mut gradient) =
                (Computing::new(plan, &examples)?, Floats::zeros(values.len()));
            let mut applying = Applying::new(plan, &layout, &values)?;
            let server = servers[worker % servers.len()];
            let mut client = bare::Client::connect(server, &identities[worker], payload)?;
            let values = &values;
            Ok(move || {
                computing.once(values, &mut gradient);
                client.exchange()?;
                applying.once(&gradient, values).map(drop)
            })
        })
    };
    let probe = took(20)?;
    Ok(took(times(probe.wall / 20))?.per_second())
}

/// Compute threads of a worker.
fn threads(plan: &Plan) -> NonZeroUsize {
    let threads = usize::try_from(plan.training.compute_threads).ok().and_then(NonZeroUsize::new);
    threads.unwrap_or(NonZeroUsize::MIN)
}

/// Batches that gradients are computed of in turn, so that no processor learns where in them the values are that are not 0.
const BATCHES: usize = 16;

/// Batches of the plan's data.
struct Examples([Gathered; BATCHES]);

impl Examples {
    fn of(plan: &Plan) -> anyhow::Result<Self> {
        let path = Path::new(&plan.data.path);
        let loaded = data::load_for(plan, path).context("a gradient's cost depends on the data")?;
        data::check_fit(&plan.model.name, models::by_name(&plan.model.name)?.input(), &loaded)?;
        let owned = data::owned(plan, loaded, WorkerId(0))?;
        let mut all = (0..plan.clients.count).flat_map(|client| owned.of(ClientId(client))).copied().cycle();
        let mut batches = Self(Default::default());
        for batch in &mut batches.0 {
            let indices: Vec<u32> = all.by_ref().take(plan.training.batch as usize).collect();
            owned.gather(&indices, batch);
        }
        Ok(batches)
    }
}

/// What computes gradients.
struct Computing<'a> {
    model: Box<dyn Model>,
    batches: std::iter::Cycle<std::slice::Iter<'a, Gathered>>,
}

impl<'a> Computing<'a> {
    fn new(plan: &Plan, examples: &'a Examples) -> anyhow::Result<Self> {
        let model = models::with_threads(&plan.model.name, threads(plan))?;
        Ok(Self { model, batches: examples.0.iter().cycle() })
    }

    fn once(&mut self, values: &[f32], gradient: &mut [f32]) {
        let batch = self.batches.next().expect("they begin anew").batch();
        black_box(self.model.gradient(values, batch, gradient));
    }
}

/// Processor seconds of a gradient, and one.
fn gradient(plan: &Plan, cores: usize, values: &[f32], examples: &Examples) -> anyhow::Result<(f64, Floats)> {
    let (mut computing, mut one) = (Computing::new(plan, examples)?, Floats::zeros(values.len()));
    let begun = Instant::now();
    computing.once(values, &mut one);
    let times = times(begun.elapsed());
    let workers = (cores / threads(plan).get()).max(1);
    let took = bare::at_once(workers, times, |_| {
        let (mut computing, mut gradient) = (Computing::new(plan, examples)?, Floats::zeros(values.len()));
        Ok(move || {
            computing.once(values, &mut gradient);
            Ok(())
        })
    })?;
    Ok((took.core_seconds(), one))
}

/// Processor seconds of writing and reading a gradient and values as they travel, and of the update; and their bytes.
fn codecs_and_update(
    plan: &Plan,
    layout: &Layout,
    values: &[f32],
    gradient: &[f32],
) -> anyhow::Result<(f64, Payload)> {
    let mut applying = Applying::new(plan, layout, values)?;
    let begun = Instant::now();
    let [up, down] = applying.once(gradient, values)?;
    let times = times(begun.elapsed());
    for _ in 0..times / 10 {
        applying.once(gradient, values)?;
    }
    let before = processor_time();
    for _ in 0..times {
        applying.once(gradient, values)?;
    }
    Ok(((processor_time() - before).as_secs_f64() / times as f64, Payload { up, down }))
}

/// The codecs of a plan, and stores for all of its shards.
struct Applying<'a> {
    layout: &'a Layout,
    stores: Vec<Store>,
    parts: Vec<Vec<f32>>,
    /// Where pushes are decoded while they are applied.
    pieces: Option<Pieces>,
    up: Travel,
    down: Travel,
    patches: Option<Patches>,
}

impl<'a> Applying<'a> {
    fn new(plan: &Plan, layout: &'a Layout, values: &[f32]) -> anyhow::Result<Self> {
        let placement = plan.placement()?;
        let shards = (0..placement.shards()).map(ShardId);
        let mut stores: Vec<Store> = shards
            .clone()
            .map(|shard| Store::new(layout, &placement, shard, plan.optimizer, plan.seed, Every::Never))
            .collect();
        let parts = shards.map(|shard| vec![1e-6; placement.values_of(shard) as usize]).collect();
        let pieces = Pieces::of(plan, layout, &placement);
        let (up, down) = (Travel::new(plan.codecs.push, true), Travel::new(plan.codecs.pull, false));
        let patches = Patch::of(plan.codecs.pull).map(|patch| Patches::new(patch, plan, layout, values));
        if let Some(Patches { patch, .. }) = &patches {
            stores.iter_mut().for_each(|store| store.refer(*patch, None));
        }
        Ok(Self { layout, stores, parts, pieces, up, down, patches })
    }

    /// One push and the pull for it; returns their bytes.
    fn once(&mut self, gradient: &[f32], values: &[f32]) -> anyhow::Result<[usize; 2]> {
        let up = match &mut self.pieces {
            Some(pieces) => pieces.push(gradient, &mut self.stores)?,
            None => {
                for (store, part) in self.stores.iter_mut().zip(&self.parts) {
                    store.apply(Combined::Mean(&[Contribution { values: part, count: 1 }]), RATE);
                }
                self.up.there(self.layout, gradient)?
            }
        };
        Ok(match &mut self.patches {
            Some(patches) => [up, patches.apply()?],
            None => [up, self.down.there(self.layout, values)?],
        })
    }
}

/// So small that values stay what they are.
const RATE: f32 = 1e-9;

/// A push that is written as a worker does, a piece at a time, and decoded as a shard does, while it is applied.
struct Pieces {
    codec: Codec,
    seed: u64,
    /// For each shard its slices, in order: their variable, where they begin in it, and where they lie among all values.
    shards: Vec<Vec<(u32, u64, Range<usize>)>>,
    bytes: Vec<u8>,
    /// A piece with what was left out of it before.
    sum: Floats,
    /// What was left out, and is now, where the codec leaves something out.
    before: Floats,
    left: Floats,
}

impl Pieces {
    /// Values of a piece, as a worker's encoder takes them.
    const LEN: usize = 2048;

    fn of(plan: &Plan, layout: &Layout, placement: &Placement) -> Option<Self> {
        let codec = plan.codecs.push;
        if !rules(plan).0.decodes(codec) {
            return None;
        }
        let slice = |slice: &Slice| {
            let from = layout.range(slice.variable).start + slice.start as usize;
            (slice.variable.0, slice.start, from..from + slice.len as usize)
        };
        let shards = (0..placement.shards()).map(ShardId);
        let shards = shards.map(|id| placement.of_shard(id).iter().map(slice).collect()).collect();
        let len = if codec.is_biased() { layout.total() as usize } else { 0 };
        let [sum, before, left] = [Self::LEN, len, len].map(Floats::zeros);
        Some(Self { codec, seed: plan.seed, shards, bytes: Vec::new(), sum, before, left })
    }

    /// Writes a gradient for each shard and applies it; returns the bytes of all.
    fn push(&mut self, gradient: &[f32], stores: &mut [Store]) -> anyhow::Result<usize> {
        let Self { codec, seed, shards, bytes, sum, before, left } = self;
        let mut all = 0;
        for (slices, store) in shards.iter().zip(stores) {
            let (needed, _) = codec.payload_bytes(slices.iter().map(|(.., place)| place.len() as u64));
            bytes.resize(usize::try_from(needed)?, 0);
            let (mut rest, mut end) = (bytes.as_mut_slice(), 0);
            let mut places = Vec::with_capacity(slices.len());
            for (variable, start, place) in slices {
                let purpose = Purpose::PushRounding { source: 0, variable: *variable, step: 0 };
                let chosen = codec.prepare(&[], *seed, purpose, &mut Scratch::default());
                let len = codec.fixed_bytes(place.len() as u64).context("pieces have a known length")?;
                let (slice, after) = rest.split_at_mut(usize::try_from(len)?);
                for at in (0..place.len()).step_by(Self::LEN) {
                    let range = place.start + at..place.end.min(place.start + at + Self::LEN);
                    let of_slice = (*start, place.len());
                    if left.is_empty() {
                        chosen.encode_piece(of_slice, at, &gradient[range], None, slice);
                        continue;
                    }
                    let sum = &mut sum[..range.len()];
                    sum.copy_from_slice(&gradient[range.clone()]);
                    add(sum, &before[range.clone()]);
                    chosen.encode_piece(of_slice, at, sum, Some(&mut left[range]), slice);
                }
                rest = after;
                places.push(end..end + place.len());
                end += place.len();
            }
            store.apply(Combined::Alone(&Undecoded::new(*codec, places, &*bytes)?), RATE);
            all += bytes.len();
        }
        std::mem::swap(before, left);
        Ok(all)
    }
}

/// Values on their way from one process to another.
struct Travel {
    codec: Codec,
    is_pushed: bool,
    scratch: Scratch,
    bytes: Vec<u8>,
    /// What is pushed with error feedback, and what was left out of it before and is now.
    sum: Floats,
    before: Floats,
    left: Floats,
    out: Floats,
}

impl Travel {
    fn new(codec: Codec, is_pushed: bool) -> Self {
        Self {
            codec,
            is_pushed,
            scratch: Scratch::default(),
            bytes: Vec::new(),
            sum: Floats::default(),
            before: Floats::default(),
            left: Floats::default(),
            out: Floats::default(),
        }
    }

    /// Writes and reads all variables; returns the bytes between. What travels as it is in memory is neither written nor read.
    fn there(&mut self, layout: &Layout, values: &[f32]) -> anyhow::Result<usize> {
        if self.codec == Codec::F32 {
            return Ok(size_of_val(values));
        }
        let with_feedback = self.is_pushed && self.codec.is_biased();
        if with_feedback {
            let buffers = [&mut self.sum, &mut self.before, &mut self.left];
            buffers.into_iter().for_each(|buffer| buffer.make(values.len()));
            let terms = values.iter().zip(&self.before);
            self.sum.iter_mut().zip(terms).for_each(|(sum, (value, before))| *sum = value + before);
        }
        self.out.make(values.len());
        let mut sum = 0;
        for (number, _) in (0_u32..).zip(layout.variables()) {
            let range = layout.range(VariableId(number));
            let variable = if with_feedback { &self.sum[range.clone()] } else { &values[range.clone()] };
            self.bytes.clear();
            let purpose = Purpose::PushRounding { source: 0, variable: number, step: 0 };
            let chosen = self.codec.prepare(variable, 1, purpose, &mut self.scratch);
            let left = if with_feedback { Some(&mut self.left[range.clone()]) } else { None };
            chosen.append(self.codec, (0, variable), left, &mut self.bytes);
            self.codec.decode_payload([variable.len()], &self.bytes, &mut self.out[range])?;
            sum += self.bytes.len();
        }
        std::mem::swap(&mut self.before, &mut self.left);
        Ok(sum)
    }
}

/// Values on their way in patches, which are written as the values are updated.
struct Patches {
    patch: Patch,
    /// Of each variable.
    bytes: Vec<Vec<u8>>,
    slices: Vec<Vec<f32>>,
    /// How many a worker is sent at once.
    versions: usize,
}

impl Patches {
    fn new(patch: Patch, plan: &Plan, layout: &Layout, values: &[f32]) -> Self {
        let ranges = (0_u32..).zip(layout.variables()).map(|(number, _)| layout.range(VariableId(number)));
        let variables: Vec<&[f32]> = ranges.map(|range| &values[range]).collect();
        let write = |variable: &&[f32]| {
            let mut bytes = Vec::new();
            patch.write(variable, &mut vec![0.0; variable.len()], &mut bytes);
            bytes
        };
        let bytes = variables.iter().map(write).collect();
        let workers = plan.cluster.workers;
        // While a worker computes, each of the others makes a version, or so many of them make one.
        let versions = match plan.mode {
            Mode::Sync { .. } => 1,
            Mode::Softsync { buffer, .. } => workers.div_ceil(buffer.max(1)),
            _ => workers,
        };
        let slices = variables.iter().map(|variable| variable.to_vec()).collect();
        Self { patch, bytes, slices, versions: versions as usize }
    }

    /// Applies what a worker is sent; returns its bytes.
    fn apply(&mut self) -> anyhow::Result<usize> {
        for (bytes, slice) in self.bytes.iter().zip(&mut self.slices) {
            for _ in 0..self.versions {
                self.patch.apply(bytes, slice)?;
            }
        }
        Ok(self.bytes.iter().map(Vec::len).sum::<usize>() * self.versions)
    }
}

/// Processor seconds of an exchange of so many bytes over bare QUIC, by as many workers at once as the plan has.
fn wire(plan: &Plan, payload: Payload) -> anyhow::Result<f64> {
    let authority = RunAuthority::new("limit")?;
    let workers = (0..plan.cluster.workers).map(|w| authority.issue(Role::Worker(WorkerId(w))));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let server = authority.issue(Role::Server(ServerId(0)))?;
    let servers = bare::serve(&server, &windlass_ps::limits(), payload, workers.len())?;
    let probe = bare::exchange(&servers, &workers[..1], payload, 20)?;
    let times = times(probe.wall / 20) / u64::from(plan.cluster.workers).max(1);
    let took = bare::exchange(&servers, &workers, payload, times.max(TIMES.0 as u64));
    Ok(took.context("bytes could not be exchanged over loopback")?.core_seconds())
}

/// How often something that takes so long is done in the time there is.
fn times(took: Duration) -> u64 {
    (MEASURED.as_secs_f64() / took.as_secs_f64().max(1e-9)).clamp(TIMES.0, TIMES.1) as u64
}

/// Whether the costs of a push bound the pushes of this plan: not where workers train by themselves between pushes, or their
/// computing is emulated.
pub fn has_limit(plan: &Plan) -> bool {
    let is_emulated = plan.heterogeneity.step_time.is_some();
    !is_emulated && !matches!(plan.mode, Mode::Fedavg(_) | Mode::Fedbuff { .. } | Mode::Fedasync { .. })
}

#[cfg(test)]
mod tests {
    use windlass_common::layout::{Initial, Variable};

    use super::*;

    #[test]
    fn what_is_left_out_stays_as_small_as_in_a_training_however_often_it_is_measured() {
        let layout = Layout::new(vec![Variable::new("w", &[40, 50], Initial::Zeros)]).unwrap();
        let gradient: Vec<f32> = (0..2000_u16).map(|i| f32::from(i % 13) - 6.0).collect();
        for codec in Codec::all().into_iter().filter(|codec| codec.is_biased()) {
            let mut travel = Travel::new(codec, true);
            for _ in 0..300 {
                travel.there(&layout, &gradient).unwrap();
            }
            // A value waits for its turn among 2000, of which one codec sends one in a hundred each time.
            let largest = travel.before.iter().fold(0.0, |largest: f32, left| largest.max(left.abs()));
            assert!(largest < 300.0 * 6.0, "{codec}: {largest}");
        }
    }
}
