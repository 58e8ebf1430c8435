//! Writes, reads and applies a push, and writes and reads the values for it, as workers and shards do, without a network.

use std::ops::Range;

use windlass_common::codec::{Patch, Scratch};
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, ShardId, Step, VariableId};
use windlass_common::layout::Layout;
use windlass_common::placement::{Placement, Slice};
use windlass_common::plan::{Every, Mode, Plan};
use windlass_common::reduce::Contribution;
use windlass_common::rng::Purpose;
use windlass_common::wire::Codec;
use windlass_ps_core::rules::{Apply, rules};
use windlass_ps_core::store::{Combined, Store, Undecoded};
use windlass_worker_core::{Encoder, Feedback, Payload};

/// The codecs of a plan, and stores for all of its shards.
pub(crate) struct Applying<'a> {
    layout: &'a Layout,
    stores: Vec<Store>,
    up: Pushing,
    down: Pulling,
    patches: Option<Patches>,
}

impl<'a> Applying<'a> {
    pub(crate) fn new(plan: &Plan, layout: &'a Layout, values: &[f32]) -> anyhow::Result<Self> {
        let placement = plan.placement()?;
        let shards = (0..placement.shards()).map(ShardId);
        let mut stores: Vec<Store> = shards
            .map(|shard| Store::new(layout, &placement, shard, plan.optimizer, plan.seed, Every::Never))
            .collect();
        let encoder = Encoder::of(plan, layout, &placement);
        let up = Pushing::new(encoder, rules(plan).0, plan.codecs.push, layout, &placement);
        let down = Pulling::new(plan.codecs.pull);
        let patches = Patch::of(plan.codecs.pull).map(|patch| Patches::new(patch, plan, layout, values));
        if let Some(Patches { patch, .. }) = &patches {
            stores.iter_mut().for_each(|store| store.refer(*patch, None));
        }
        Ok(Self { layout, stores, up, down, patches })
    }

    /// One push and the pull for it; returns their bytes.
    pub(crate) fn once(&mut self, gradient: &[f32], values: &[f32]) -> anyhow::Result<[usize; 2]> {
        let up = self.up.push(gradient, &mut self.stores)?;
        Ok(match &mut self.patches {
            Some(patches) => [up, patches.apply()?],
            None => [up, self.down.pull(self.layout, values)?],
        })
    }
}

/// So small that values stay what they are.
const RATE: f32 = 1e-9;

/// A push that is written as a worker does, as it is made where the codec can, and read and applied as a shard does.
struct Pushing {
    codec: Codec,
    encoder: Encoder,
    /// Where each variable lies among all values.
    variables: Vec<Range<usize>>,
    /// Where the slices of each shard lie in it, in order.
    shards: Vec<Vec<Range<usize>>>,
    /// Whether shards decode while they apply.
    decodes: bool,
    /// The values of each shard, where they do not.
    decoded: Vec<Vec<f32>>,
    /// What is encoded at once.
    part: Floats,
    step: Step,
}

impl Pushing {
    fn new(encoder: Encoder, apply: Apply, codec: Codec, layout: &Layout, placement: &Placement) -> Self {
        let places = |shard| {
            let mut end = 0;
            let place = |slice: &Slice| {
                end += slice.len as usize;
                end - slice.len as usize..end
            };
            placement.of_shard(shard).iter().map(place).collect()
        };
        let variables = (0..).map(VariableId).take(layout.variables().len());
        let shards = || (0..placement.shards()).map(ShardId);
        Self {
            codec,
            encoder,
            variables: variables.map(|variable| layout.range(variable)).collect(),
            shards: shards().map(places).collect(),
            decodes: apply.decodes(codec),
            decoded: shards().map(|shard| vec![1e-6; placement.values_of(shard) as usize]).collect(),
            part: Floats::default(),
            step: Step(0),
        }
    }

    /// Writes a gradient for each shard and applies it; returns the bytes of all.
    fn push(&mut self, gradient: &[f32], stores: &mut [Store]) -> anyhow::Result<usize> {
        let payloads = self.encode(gradient);
        let mut bytes = 0;
        let parts = self.shards.iter().zip(&mut self.decoded).zip(stores);
        for (shard, ((places, decoded), store)) in parts.enumerate() {
            let payload = payloads.as_ref().map(|payloads| &payloads[shard][..]);
            bytes += payload.map_or(size_of_val(decoded.as_slice()), <[u8]>::len);
            if let Some(payload) = payload.filter(|_| self.decodes) {
                let undecoded = Undecoded::new(self.codec, places.clone(), payload)?;
                store.apply(Combined::Alone(&undecoded), RATE);
                continue;
            }
            if let Some(payload) = payload {
                self.codec.decode_places(places.iter().cloned(), payload, decoded)?;
            }
            store.apply(Combined::Mean(&[Contribution { values: decoded, count: 1 }]), RATE);
        }
        self.encoder.settle(Feedback::Taken);
        self.step = self.step.next();
        Ok(bytes)
    }

    /// The payloads for all shards, if values do not travel as they are in memory.
    fn encode(&mut self, gradient: &[f32]) -> Option<Vec<Payload>> {
        let Self { encoder, part, variables, step, .. } = self;
        if !Encoder::takes_parts(self.codec) {
            if self.codec != Codec::F32 {
                part.make(gradient.len());
                part.copy_from_slice(gradient);
            }
            return encoder.encode(part, ClientId(0), *step);
        }
        encoder.begin_parts(ClientId(0), *step);
        for variable in variables {
            for from in variable.clone().step_by(TOGETHER) {
                let range = from..variable.end.min(from + TOGETHER);
                part.make(range.len());
                part.copy_from_slice(&gradient[range]);
                encoder.encode_part(from, part);
            }
        }
        Some(encoder.end_parts())
    }
}

/// Values that a worker encodes or decodes together, about.
const TOGETHER: usize = 32_768;

/// Values that are written by a shard and read by a worker.
struct Pulling {
    codec: Codec,
    scratch: Scratch,
    bytes: Vec<u8>,
    out: Floats,
}

impl Pulling {
    fn new(codec: Codec) -> Self {
        Self { codec, scratch: Scratch::default(), bytes: Vec::new(), out: Floats::zeros(TOGETHER) }
    }

    /// Writes and reads all variables; returns the bytes between. What travels as it is in memory is neither written nor read.
    fn pull(&mut self, layout: &Layout, values: &[f32]) -> anyhow::Result<usize> {
        if self.codec == Codec::F32 {
            return Ok(size_of_val(values));
        }
        let mut sum = 0;
        for (number, _) in (0_u32..).zip(layout.variables()) {
            let variable = &values[layout.range(VariableId(number))];
            self.bytes.clear();
            let purpose = Purpose::PushRounding { source: 0, variable: number, step: 0 };
            let chosen = self.codec.prepare(variable, 1, purpose, &mut self.scratch);
            chosen.append(self.codec, (0, variable), None, &mut self.bytes);
            sum += self.bytes.len();
            // A worker keeps the bytes and decodes a part at a time.
            self.codec.check(&self.bytes, variable.len())?;
            for at in (0..variable.len()).step_by(TOGETHER) {
                let part = &mut self.out[..TOGETHER.min(variable.len() - at)];
                self.codec.decode_part(&self.bytes, variable.len(), at, part);
            }
        }
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

#[cfg(test)]
mod tests {
    use windlass_common::layout::{Initial, Variable};
    use windlass_common::optimizer::Optimizer;
    use windlass_common::plan::StalenessScaling;
    use windlass_worker_core::AsOf;

    use super::*;

    #[test]
    fn what_is_left_out_stays_as_small_as_in_a_training_however_often_it_is_measured() {
        let layout = Layout::new(vec![Variable::new("w", &[40, 50], Initial::Zeros)]).unwrap();
        let placement = Placement::new(&layout, 1).unwrap();
        let gradient: Vec<f32> = (0..2000_u16).map(|i| f32::from(i % 13) - 6.0).collect();
        for codec in Codec::all().into_iter().filter(|codec| codec.is_biased()) {
            for apply in
                [Apply::HoldAll, Apply::Immediate { scaling: StalenessScaling::None, compensation: None }]
            {
                let encoder = Encoder::new(codec, 1, &layout, &placement);
                let mut pushing = Pushing::new(encoder, apply, codec, &layout, &placement);
                let mut store = Store::new(
                    &layout,
                    &placement,
                    ShardId(0),
                    "sgd".parse::<Optimizer>().unwrap(),
                    1,
                    Every::Never,
                );
                for _ in 0..301 {
                    pushing.push(&gradient, std::slice::from_mut(&mut store)).unwrap();
                }
                // A value waits for its turn among 2000, of which one codec sends one in a hundred each time.
                let left = pushing.encoder.give(0, AsOf::Now, true).remove(0).1;
                let largest = left.iter().fold(0.0, |largest: f32, left| largest.max(left.abs()));
                assert!(0.0 < largest && largest < 301.0 * 6.0, "{codec}: {largest}");
            }
        }
    }
}
