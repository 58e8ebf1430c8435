//! Holds the values that a worker computes on as they came: as floats, or as bytes that are decoded when they are needed.
//!
//! A gradient needs most values once. Where they come in fewer bytes than floats have, what is kept are those, and a part of them at
//! a time becomes floats in memory that is used again and stays in the nearer caches.

use std::ops::Range;

use windlass_common::codec::Codec;
use windlass_common::floats::Floats;

use super::link::{Cuts, Room};

/// Values that are decoded from the first of them on, or not by themselves.
const BLOCK: usize = windlass_common::placement::BLOCK as usize;

/// The values of the whole model.
#[derive(Debug)]
pub(crate) struct Pulled {
    held: Held,
    /// The values that were asked for last.
    shown: Range<usize>,
}

#[derive(Debug)]
enum Held {
    Floats(Floats),
    Bytes {
        bytes: Encoded,
        /// The floats of those that were asked for last.
        part: Floats,
    },
}

/// Where values go that come.
#[derive(Debug)]
pub(crate) enum Buffer<'a> {
    /// All variables, end to end.
    Floats(&'a mut [f32]),
    /// As they come.
    Bytes(&'a mut Encoded),
}

impl Buffer<'_> {
    /// The same once more.
    pub(crate) fn again(&mut self) -> Buffer<'_> {
        match self {
            Self::Floats(values) => Buffer::Floats(values),
            Self::Bytes(encoded) => Buffer::Bytes(encoded),
        }
    }

    /// How many values they are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Bytes(encoded) => encoded.values,
        }
    }
}

/// The slices of a model in a codec with bytes of its own for each value.
#[derive(Debug)]
pub(crate) struct Encoded {
    codec: Codec,
    values: usize,
    /// Where each slice lies among all values, and where its bytes are, in order.
    slices: Vec<(Range<usize>, Range<usize>)>,
    bytes: Vec<u8>,
}

impl Encoded {
    /// Of slices that lie there among all values, in order and without a gap. What they hold must be written before it is read.
    fn new(codec: Codec, slices: impl Iterator<Item = Range<usize>>) -> Self {
        let (mut values, mut end) = (0, 0);
        let slices = slices
            .map(|slice| {
                let begin = end;
                let bytes = codec.fixed_bytes(slice.len() as u64).expect("each value has bytes of its own");
                end += usize::try_from(bytes).expect("an encoded slice is in memory");
                values = slice.end;
                (slice, begin..end)
            })
            .collect();
        Self { codec, values, slices, bytes: vec![0; end] }
    }

    /// Where the bytes of all slices go, in order.
    pub(crate) fn places(&mut self) -> impl Iterator<Item = Room<'_>> {
        let mut rest = self.bytes.as_mut_slice();
        self.slices.iter().map(move |(slice, bytes)| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            rest = later;
            Room::Bytes(slice.len(), now)
        })
    }

    /// Takes a slice that begins there.
    fn put(&mut self, from: usize, bytes: &[u8]) {
        let found = self.slices.binary_search_by_key(&from, |(slice, _)| slice.start);
        let (_, place) = &self.slices[found.expect("slices lie where the plan says")];
        self.bytes[place.clone()].copy_from_slice(bytes);
    }

    /// Decodes these values, fastest where they begin a multiple of 64 values behind the beginning of a slice.
    fn decode(&self, range: Range<usize>, out: &mut [f32]) {
        let first = self.slices.partition_point(|(slice, _)| slice.end <= range.start);
        for (slice, bytes) in self.slices[first..].iter().take_while(|(slice, _)| slice.start < range.end) {
            let these = slice.start.max(range.start)..slice.end.min(range.end);
            let out = &mut out[these.start - range.start..these.end - range.start];
            let bytes = &self.bytes[bytes.clone()];
            let at = these.start - slice.start;
            let begins = at.next_multiple_of(BLOCK).min(at + out.len());
            let (first, others) = out.split_at_mut(begins - at);
            if !first.is_empty() {
                let (begin, mut block) = (at / BLOCK * BLOCK, [0.0; BLOCK]);
                let block = &mut block[..at + first.len() - begin];
                self.codec.decode_part(bytes, slice.len(), begin, block);
                first.copy_from_slice(&block[at - begin..]);
            }
            if !others.is_empty() {
                self.codec.decode_part(bytes, slice.len(), begins, others);
            }
        }
    }
}

impl Pulled {
    /// Values that come in this codec, of slices that are cut like that.
    pub(crate) fn new(codec: Codec, cuts: &Cuts) -> Self {
        let held = match codec.is_narrow() {
            true => Held::Bytes { bytes: Encoded::new(codec, cuts.in_order()), part: Floats::default() },
            false => Held::Floats(Floats::zeros(cuts.in_order().last().map_or(0, |slice| slice.end))),
        };
        Self { held, shown: 0..0 }
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        match &self.held {
            Held::Floats(values) => values.len(),
            Held::Bytes { bytes, .. } => bytes.values,
        }
    }

    /// Where new ones go.
    pub(crate) fn buffer(&mut self) -> Buffer<'_> {
        match &mut self.held {
            Held::Floats(values) => Buffer::Floats(values),
            Held::Bytes { bytes, .. } => Buffer::Bytes(bytes),
        }
    }

    /// Those in a range.
    pub(crate) fn of(&mut self, range: Range<usize>) -> &[f32] {
        self.shown = range;
        if let Held::Bytes { bytes, part } = &mut self.held {
            part.make(self.shown.len());
            bytes.decode(self.shown.clone(), part);
        }
        self.shown()
    }

    /// Those that were asked for last.
    pub(crate) fn shown(&self) -> &[f32] {
        match &self.held {
            Held::Floats(values) => &values[self.shown.clone()],
            Held::Bytes { part, .. } => &part[..self.shown.len()],
        }
    }

    /// Takes a slice that begins there and has come by itself: floats, or its bytes and what lies behind them in the same memory.
    pub(crate) fn put(&mut self, slice: Range<usize>, memory: &[f32]) {
        match &mut self.held {
            Held::Floats(values) => values[slice].copy_from_slice(memory),
            Held::Bytes { bytes, .. } => {
                let len =
                    bytes.codec.fixed_bytes(slice.len() as u64).expect("each value has bytes of its own");
                let memory: &[u8] = bytemuck::cast_slice(memory);
                bytes.put(slice.start, &memory[..len as usize]);
            }
        }
    }

    /// Changes a slice that is there.
    pub(crate) fn change(&mut self, slice: Range<usize>, change: impl FnOnce(&mut [f32])) {
        match &mut self.held {
            Held::Floats(values) => change(&mut values[slice]),
            Held::Bytes { .. } => unreachable!("patches change floats"),
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::layout::{Initial, Layout, Variable};
    use windlass_common::placement::Placement;

    use super::*;

    /// A value for each place.
    fn of_place(place: usize) -> f32 {
        (place as f32).sin()
    }

    /// Memory for values of three variables, on so many shards, and where their slices lie.
    fn pulled(codec: Codec, shards: u32) -> (Pulled, Vec<Range<usize>>) {
        let variable = |name, values| Variable::new(name, &[values], Initial::Zeros);
        let layout = Layout::new(vec![variable("a", 5000), variable("b", 10), variable("c", 3000)]).unwrap();
        let placement = Placement::new(&layout, shards).unwrap();
        let cuts = Cuts::new(&layout, &placement);
        let slices = cuts.in_order().collect();
        (Pulled::new(codec, &cuts), slices)
    }

    fn encoded(codec: Codec, slice: &Range<usize>) -> Vec<u8> {
        let values: Vec<f32> = slice.clone().map(of_place).collect();
        let mut bytes = Vec::new();
        codec.encode_alone(&values, &mut bytes);
        bytes
    }

    #[test]
    fn values_are_where_they_are_asked_for_however_they_came() {
        for codec in ["f32", "bf16", "f16", "int8"].map(|codec| codec.parse().unwrap()) {
            for (shards, in_one_piece) in [(1, true), (2, true), (5, true), (1, false), (5, false)] {
                let (mut pulled, slices) = pulled(codec, shards);
                let mut expected = vec![f32::NAN; 8010];
                for slice in &slices {
                    codec.decode(&encoded(codec, slice), &mut expected[slice.clone()]).unwrap();
                }
                if in_one_piece {
                    match pulled.buffer() {
                        Buffer::Floats(values) => values.copy_from_slice(&expected),
                        Buffer::Bytes(bytes) => {
                            for (room, slice) in bytes.places().zip(&slices) {
                                let Room::Bytes(values, room) = room else { panic!("{codec} is narrow") };
                                assert_eq!(values, slice.len());
                                room.copy_from_slice(&encoded(codec, slice));
                            }
                        }
                    }
                } else {
                    for slice in slices.iter().rev() {
                        let mut memory = vec![f32::NAN; slice.len()];
                        match codec.is_narrow() {
                            true => {
                                let bytes = encoded(codec, slice);
                                bytemuck::cast_slice_mut(&mut memory)[..bytes.len()].copy_from_slice(&bytes);
                            }
                            false => memory.copy_from_slice(&expected[slice.clone()]),
                        }
                        pulled.put(slice.clone(), &memory);
                    }
                }
                assert_eq!(pulled.len(), 8010);
                for range in [
                    0..8010,
                    0..1,
                    1..2,
                    63..65,
                    100..128,
                    100..130,
                    130..5007,
                    5003..5009,
                    4999..8001,
                    8009..8010,
                    64..5000,
                    640..5010,
                    5000..5010,
                    5010..8010,
                    5010 + 128..5010 + 192,
                ] {
                    assert_eq!(pulled.of(range.clone()), &expected[range.clone()], "{codec}, {range:?}");
                    assert_eq!(pulled.shown(), &expected[range]);
                }
            }
        }
    }

    #[test]
    fn what_comes_by_patches_or_as_it_is_in_memory_is_kept_as_floats() {
        for (codec, is_narrow) in [("f32", false), ("topk:1%", false), ("sign", false), ("int8", true)] {
            let (mut pulled, _) = pulled(codec.parse().unwrap(), 2);
            assert_eq!(matches!(pulled.buffer(), Buffer::Bytes(_)), is_narrow, "{codec}");
            assert_eq!(pulled.buffer().len(), 8010);
        }
    }
}
