//! Cuts variables into slices and says which shard owns each.
//!
//! A large variable is spread over all shards, so that every layer moves over all of them at once; a small one stays
//! whole. Cuts fall on multiples of [`BLOCK`] values, and what cannot be spread evenly goes to the shard that has
//! least so far, which keeps shards within one block (large variables) or one small variable of each other.
//! The result depends on nothing but the layout and the number of shards.

use std::ops::Range;

use crate::ids::{ShardId, VariableId};
use crate::layout::Layout;

/// Slices start at multiples of this many values within their variable, so that codec blocks never straddle a cut.
pub const BLOCK: u64 = 64;
/// A variable of at most this many values is not cut.
pub const WHOLE_MAX: u64 = 1024;
/// Most shards of one run.
pub const SHARDS_MAX: u32 = 4096;

/// A contiguous part of one variable, owned by one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The shard that owns it.
    pub shard: ShardId,
    /// The variable it is a part of.
    pub variable: VariableId,
    /// Its first value, counted within the variable; a multiple of [`BLOCK`].
    pub start: u64,
    /// How many values it has; never 0.
    pub len: u64,
}

/// Why a model cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlacementError {
    #[error("{found} shards were asked for; 1 to {SHARDS_MAX} are possible")]
    Shards { found: u32 },
    #[error("{shards} shards are too many for a model of {values} values: {empty} would own nothing")]
    Empty { shards: u32, values: u64, empty: ShardId },
}

/// Which shard owns which part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Ordered by shard, then variable, then start. A slice's number is its place here.
    slices: Vec<Slice>,
    /// For each shard the range of its slices.
    ranges: Vec<Range<usize>>,
}

impl Placement {
    /// Places the model's variables over this many shards.
    ///
    /// # Errors
    /// If there are no shards, too many, or more than the model can fill.
    pub fn new(layout: &Layout, shards: u32) -> Result<Self, PlacementError> {
        if shards == 0 || shards > SHARDS_MAX {
            return Err(PlacementError::Shards { found: shards });
        }
        let mut load = vec![0_u64; shards as usize];
        let mut slices = Vec::new();
        let variables = || (0_u32..).map(VariableId).zip(layout.variables());
        for (id, variable) in variables().filter(|(_, v)| v.len() > WHOLE_MAX) {
            spread(id, variable.len(), &mut load, &mut slices);
        }
        // The small ones fill what the cuts left uneven, largest first.
        let mut small: Vec<_> = variables().filter(|(_, v)| v.len() <= WHOLE_MAX).collect();
        small.sort_by_key(|(id, v)| (std::cmp::Reverse(v.len()), *id));
        for (variable, spec) in small {
            let shard = least_loaded(&load);
            load[shard] += spec.len();
            slices.push(Slice { shard: ShardId(shard as u32), variable, start: 0, len: spec.len() });
        }
        if let Some(empty) = load.iter().position(|&l| l == 0) {
            return Err(PlacementError::Empty {
                shards,
                values: layout.total(),
                empty: ShardId(empty as u32),
            });
        }
        slices.sort_by_key(|s| (s.shard, s.variable, s.start));
        let ranges = (0..shards)
            .map(|shard| {
                let from = slices.partition_point(|s| s.shard.0 < shard);
                from..slices.partition_point(|s| s.shard.0 <= shard)
            })
            .collect();
        Ok(Self { slices, ranges })
    }

    /// All slices, ordered by shard, then variable, then start.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Number of shards.
    pub fn shards(&self) -> u32 {
        self.ranges.len() as u32
    }

    /// The slices of one shard, ordered by variable, then start.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn of_shard(&self, shard: ShardId) -> &[Slice] {
        &self.slices[self.ranges[shard.index()].clone()]
    }

    /// How many values a shard owns.
    pub fn values_of(&self, shard: ShardId) -> u64 {
        self.of_shard(shard).iter().map(|s| s.len).sum()
    }

    /// Largest shard divided by mean shard; 1 is even.
    pub fn imbalance(&self) -> f64 {
        let sizes: Vec<u64> = (0..self.shards()).map(|s| self.values_of(ShardId(s))).collect();
        let largest = sizes.iter().max().copied().unwrap_or(0) as f64;
        largest * sizes.len() as f64 / sizes.iter().sum::<u64>() as f64
    }
}

/// Gives each shard the same number of whole blocks, and the blocks left over one each to those that have least.
fn spread(variable: VariableId, values: u64, load: &mut [u64], slices: &mut Vec<Slice>) {
    let shards = load.len() as u64;
    let blocks = values.div_ceil(BLOCK);
    let mut share = vec![blocks / shards; load.len()];
    let mut order: Vec<usize> = (0..load.len()).collect();
    order.sort_by_key(|&shard| (load[shard], shard));
    for &shard in order.iter().take((blocks % shards) as usize) {
        share[shard] += 1;
    }
    let mut start = 0;
    for (shard, &blocks) in share.iter().enumerate().filter(|&(_, &blocks)| blocks > 0) {
        let len = (blocks * BLOCK).min(values - start);
        slices.push(Slice { shard: ShardId(shard as u32), variable, start, len });
        load[shard] += len;
        start += len;
    }
}

fn least_loaded(load: &[u64]) -> usize {
    (0..load.len()).min_by_key(|&shard| (load[shard], shard)).expect("there is at least one shard")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{Initial, Variable};

    fn layout(shapes: &[&[u64]]) -> Layout {
        let variables = shapes.iter().enumerate();
        Layout::new(variables.map(|(i, s)| Variable::new(format!("v{i}"), s, Initial::Zeros)).collect())
            .unwrap()
    }

    fn models() -> [(&'static str, Layout); 3] {
        [
            ("softmax", layout(&[&[784, 10], &[10]])),
            ("2nn", layout(&[&[784, 200], &[200], &[200, 200], &[200], &[200, 10], &[10]])),
            (
                "cnn",
                layout(&[
                    &[5, 5, 1, 32],
                    &[32],
                    &[5, 5, 32, 64],
                    &[64],
                    &[3136, 512],
                    &[512],
                    &[512, 10],
                    &[10],
                ]),
            ),
        ]
    }

    #[test]
    fn the_largest_shard_is_within_five_percent_of_the_mean() {
        for (name, layout) in models() {
            for shards in 1..=8 {
                let imbalance = Placement::new(&layout, shards).unwrap().imbalance();
                assert!(imbalance <= 1.05, "{name} on {shards} shards: {imbalance}");
            }
        }
    }

    #[test]
    fn a_shard_that_would_own_nothing_is_an_error() {
        let error = Placement::new(&layout(&[&[10]]), 2).unwrap_err();
        assert_eq!(error, PlacementError::Empty { shards: 2, values: 10, empty: ShardId(1) });
        assert_eq!(Placement::new(&layout(&[&[10]]), 0).unwrap_err(), PlacementError::Shards { found: 0 });
    }

    proptest! {
        #[test]
        fn every_value_has_one_owner(shapes in prop::collection::vec(1_u64..5000, 1..12), shards in 1_u32..9) {
            let shapes: Vec<Vec<u64>> = shapes.into_iter().map(|n| vec![n]).collect();
            let layout = layout(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let Ok(placement) = Placement::new(&layout, shards) else { return Ok(()) };
            let mut slices = placement.slices().to_vec();
            slices.sort_by_key(|s| (s.variable, s.start));
            let mut next = (VariableId(0), 0);
            for s in &slices {
                if s.variable != next.0 {
                    prop_assert_eq!(next.1, shapes[next.0.index()][0]);
                    next = (VariableId(next.0.0 + 1), 0);
                }
                prop_assert_eq!((s.variable, s.start), next);
                prop_assert!(s.start % BLOCK == 0 && s.len > 0);
                next.1 += s.len;
            }
            prop_assert_eq!(next, (VariableId(shapes.len() as u32 - 1), shapes.last().unwrap()[0]));
            let sizes: Vec<u64> = (0..shards).map(|s| placement.values_of(ShardId(s))).collect();
            let spread = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            prop_assert!(spread <= WHOLE_MAX + BLOCK * shapes.len() as u64, "{:?}", sizes);
        }
    }
}
