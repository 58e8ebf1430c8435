//! Takes a run's checkpoint and goes on from it with another: on another number of shards, or with other workers.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use windlass_common::ids::{Lineage, ServerId, ShardId};
use windlass_common::layout::Layout;
use windlass_common::optimizer::State;
use windlass_common::placement::{Placement, Slice};
use windlass_ps_core::coordinator::Complete;
use windlass_ps_core::residuals::Residuals;
use windlass_ps_core::shard::Image;
use windlass_ps_core::store::SliceState;

use super::restore::Era;
use super::store::{Content, Name, Store};
use super::{Config, Played, World, finished};

/// A checkpoint that can be gone on from, with all its parts.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its number.
    pub number: u64,
    complete: Complete,
    images: Vec<Image>,
    layout: Layout,
    placement: Placement,
}

impl Whole {
    /// Steps that had been made when it was taken.
    pub fn steps(&self) -> u64 {
        self.images[0].state.version.0
    }

    /// The parts for other shards: the same values, cut otherwise.
    ///
    /// # Panics
    /// If the slices have not been updated equally often: then they are of no one step.
    fn cut_for(&self, placement: &Placement) -> Vec<Image> {
        let first = &self.images[0].slices[0];
        let (updates, vectors) = (first.state.updates, first.state.vectors.len());
        let has_reference = first.reference.is_some();
        let total = self.layout.total() as usize;
        let mut whole = vec![vec![f32::NAN; total]; 1 + vectors + usize::from(has_reference)];
        for (shard, image) in (0..).map(ShardId).zip(&self.images) {
            for (slice, state) in self.placement.of_shard(shard).iter().zip(&image.slices) {
                let start = self.layout.range(slice.variable).start + slice.start as usize;
                let range = start..start + slice.len as usize;
                assert_eq!(state.state.updates, updates, "every slice is of one step");
                whole[0][range.clone()].copy_from_slice(&state.values);
                for (to, vector) in
                    whole[1..].iter_mut().zip(state.state.vectors.iter().chain(&state.reference))
                {
                    to[range.clone()].copy_from_slice(vector);
                }
            }
        }
        let image = |shard| {
            let slices = placement.of_shard(ShardId(shard)).iter().map(|slice| {
                let start = self.layout.range(slice.variable).start + slice.start as usize;
                let cut = |whole: &Vec<f32>| whole[start..start + slice.len as usize].to_vec();
                let (of_optimizer, reference) = whole[1..].split_at(vectors);
                let vectors = of_optimizer.iter().map(|whole| cut(whole).into()).collect();
                let reference = reference.first().map(|whole| cut(whole).into());
                SliceState { values: cut(&whole[0]).into(), state: State { vectors, updates }, reference }
            });
            let (state, slices) = (self.images[0].state.clone(), slices.collect());
            Image { state, slices, residuals: self.residuals_for(placement, ShardId(shard)) }
        };
        (0..placement.shards()).map(image).collect()
    }

    /// What had been left out, cut otherwise.
    fn residuals_for(&self, placement: &Placement, shard: ShardId) -> Residuals {
        let place = |slice: &Slice| {
            let start = self.layout.range(slice.variable).start + slice.start as usize;
            start..start + slice.len as usize
        };
        let mut whole: BTreeMap<_, Vec<f32>> = BTreeMap::new();
        for (from, image) in (0..).map(ShardId).zip(&self.images) {
            for (&whose, residual) in &image.residuals {
                let whole = whole.entry(whose).or_insert_with(|| vec![0.0; self.layout.total() as usize]);
                let mut values = residual.iter().copied();
                for slice in self.placement.of_shard(from) {
                    whole[place(slice)].fill_with(|| values.next().expect("it has a value for each"));
                }
            }
        }
        let cut = |whole: Vec<f32>| {
            let slices = placement.of_shard(shard).iter();
            Arc::new(slices.flat_map(|slice| whole[place(slice)].to_vec()).collect::<Vec<f32>>())
        };
        whole.into_iter().map(|(whose, whole)| (whose, cut(whole))).collect()
    }
}

/// Plays a run that goes on from a checkpoint of another. What came before it is no part of its histories.
///
/// # Panics
/// As [`play`](super::play), and if the run keeps no checkpoints of its own.
pub fn play_from(config: &Config, whole: &Whole) -> Played {
    assert!(config.survives_servers(), "only such a run looks at what has been kept");
    let mut world = World::new(config, false);
    let images = whole.cut_for(&world.placement);
    let checkpoint = (Lineage(0), whole.number);
    world.store.keep(checkpoint, whole.complete.clone(), images);
    let era = Era { base: Some(checkpoint), ..Era::new(config.shards()) };
    world.resumed = Some(era);
    world.is_restoring = true;
    (0..config.servers).map(ServerId).for_each(|server| world.drop_shards(server));
    finished(world, false)
}

impl Store {
    /// A checkpoint is there from the beginning.
    fn keep(&mut self, (lineage, number): (Lineage, u64), complete: Complete, images: Vec<Image>) {
        let parts = images.iter().map(|_| String::new()).collect();
        for (shard, image) in (0..).map(ShardId).zip(images) {
            self.add(Name::Part(lineage, number, shard), Content::Part(Rc::new(image)));
        }
        let complete = Complete { parts, ..complete };
        self.add(Name::Manifest(lineage, number), Content::Manifest(Rc::new(complete)));
    }
}

impl World<'_> {
    /// Every checkpoint of the last lineage that is whole at the end, the oldest first.
    pub(super) fn kept(&mut self) -> Vec<Whole> {
        let mut kept = Vec::new();
        let (checkpoints, last) = (self.store.manifests(self.now), self.lineage);
        for (lineage, number) in checkpoints.into_iter().rev().filter(|(of, _)| *of == last) {
            if let Ok((complete, images)) = self.whole((lineage, number)) {
                let (layout, placement) = (self.layout.clone(), self.placement.clone());
                kept.push(Whole { number, complete: (*complete).clone(), images, layout, placement });
            }
        }
        kept
    }
}
