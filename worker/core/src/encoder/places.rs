//! Where the values of a gradient lie in the payloads of the shards.

use std::ops::Range;

use windlass_common::codec::Codec;
use windlass_common::ids::ShardId;
use windlass_common::placement::{BLOCK, Placement, Slice};

/// One slice of a shard.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) variable: usize,
    /// Where it begins within the variable.
    pub(super) start: u64,
    /// Where it lies in the flat buffer of the model.
    pub(super) flat: Range<usize>,
    /// Where its bytes lie in the payload, if all slices have as many bytes as follow from their values.
    pub(super) bytes: Range<usize>,
    /// The number of its first block of 64 values, among those of all variables.
    first_block: usize,
}

impl Piece {
    /// The numbers of the blocks of values that lie there in the flat buffer, from the beginning of one on.
    pub(super) fn blocks(&self, flat: &Range<usize>) -> Range<usize> {
        let first = self.first_block + (flat.start - self.flat.start) / BLOCK as usize;
        first..first + flat.len().div_ceil(BLOCK as usize)
    }
}

/// All slices.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// For each shard its slices, in the order of a payload.
    shards: Vec<Vec<Piece>>,
    /// Shard and number of each, in the order of the flat buffer.
    in_order: Vec<(usize, usize)>,
    /// Blocks of 64 values of all variables.
    blocks: usize,
}

impl Places {
    /// Of variables that lie there in the flat buffer.
    pub(super) fn new(codec: Codec, variables: &[Range<usize>], placement: &Placement) -> Self {
        let (mut first_blocks, mut blocks) = (Vec::new(), 0);
        for variable in variables {
            first_blocks.push(blocks);
            blocks += variable.len().div_ceil(BLOCK as usize);
        }
        let shards: Vec<Vec<Piece>> = (0..placement.shards())
            .map(|shard| {
                let mut end = 0;
                let piece = |slice: &Slice| {
                    let variable = slice.variable.index();
                    let from = variables[variable].start + slice.start as usize;
                    let begin = end;
                    end += codec.fixed_bytes(slice.len).map_or(0, |bytes| bytes as usize);
                    let flat = from..from + slice.len as usize;
                    let first_block = first_blocks[variable] + (slice.start / BLOCK) as usize;
                    Piece { variable, start: slice.start, flat, bytes: begin..end, first_block }
                };
                placement.of_shard(ShardId(shard)).iter().map(piece).collect()
            })
            .collect();
        let all = shards.iter().enumerate();
        let all = all.flat_map(|(shard, slices)| (0..slices.len()).map(move |index| (shard, index)));
        let mut in_order: Vec<_> = all.collect();
        in_order.sort_by_key(|&(shard, index)| shards[shard][index].flat.start);
        Self { shards, in_order, blocks }
    }

    /// Number of shards.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Values of all slices.
    pub(super) fn values(&self) -> usize {
        self.all().map(|piece| piece.flat.len()).sum()
    }

    /// Blocks of 64 values of all variables.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// All slices of all shards.
    pub(super) fn all(&self) -> impl Iterator<Item = &Piece> {
        self.shards.iter().flatten()
    }

    /// The slices of a shard, in the order of its payload.
    pub(super) fn of(&self, shard: usize) -> &[Piece] {
        &self.shards[shard]
    }

    /// Bytes of a shard's payload.
    pub(super) fn bytes(&self, shard: usize) -> usize {
        self.of(shard).last().map_or(0, |piece| piece.bytes.end)
    }

    /// The slices that have values in this range of the flat buffer, with their shards and the range of those values.
    pub(super) fn within(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &Piece, Range<usize>)> {
        let piece = |&(shard, index): &(usize, usize)| &self.shards[shard][index];
        let first = self.in_order.partition_point(move |place| piece(place).flat.end <= range.start);
        let slices = self.in_order[first..].iter().map(move |place| (place.0, piece(place)));
        let slices = slices.take_while(move |(_, piece)| piece.flat.start < range.end);
        slices.map(move |(shard, piece)| {
            (shard, piece, piece.flat.start.max(range.start)..piece.flat.end.min(range.end))
        })
    }
}
