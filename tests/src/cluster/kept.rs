//! Holds what a shard's part of a checkpoint says, bit for bit, so that it can be compared.

use windlass_common::ids::Lineage;
use windlass_ps_core::shard::{Image, ShardState};

/// A shard's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The checkpoint: the lineage in which it was taken, and its number.
    pub checkpoint: (Lineage, u64),
    /// What the shard knows beside its values.
    pub state: ShardState,
    /// The bits of all its values, slice after slice.
    pub values: Vec<u32>,
    /// The same of each of the optimizer's vectors.
    pub vectors: Vec<Vec<u32>>,
    /// The same of what workers were sent, where values go down in patches; otherwise none.
    pub reference: Vec<u32>,
    /// How often the optimizer has updated each slice.
    pub updates: Vec<u64>,
}

impl Kept {
    pub(crate) fn of(checkpoint: (Lineage, u64), image: &Image) -> Self {
        let bits = |floats: &[f32]| floats.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let vectors = image.slices.iter().map(|s| s.state.vectors.len()).max().unwrap_or(0);
        let vector = |n: usize| image.slices.iter().flat_map(|s| bits(&s.state.vectors[n])).collect();
        Self {
            checkpoint,
            state: image.state.clone(),
            values: image.slices.iter().flat_map(|s| bits(&s.values)).collect(),
            vectors: (0..vectors).map(vector).collect(),
            reference: image.slices.iter().flat_map(|s| &s.reference).flat_map(|r| bits(r)).collect(),
            updates: image.slices.iter().map(|s| s.state.updates).collect(),
        }
    }
}
