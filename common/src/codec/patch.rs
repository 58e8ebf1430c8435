//! Writes, of each block of 64 values, the few that a reference is furthest from, and brings the reference there.
//!
//! This is how sparse values travel down the wire. Whoever is sent them has the reference as it was; the patch says which of
//! its values are others now, and what they are. What a patch leaves out stays in the distance between the values and the
//! reference, and so is chosen later: that is its error feedback (Karimireddy et al. 2019, with the reference in place of
//! the sum of what was sent). It holds the new values and not how far they have moved: so what was chosen is exact, the
//! difference is never rounded, and it does no harm if a patch is applied twice.
//!
//! Blocks lie at fixed offsets of a variable, so that a variable that is cut has the same patch, in pieces.
//!
//! ```text
//! for each block, of which k values are chosen:
//!   k < 8    their indices within the block, a byte each, rising
//!   k >= 8   8 bytes, a bit for each value, the lowest of the first byte first: 1 for those chosen
//!            then k values as f32
//! ```

use multiversion::multiversion;

use super::error::CodecError;
use super::kind::{Codec, Share};
use super::mask;

const BLOCK: usize = crate::placement::BLOCK as usize;
/// From so many values of a block on their indices are written as a mask, which takes no more bytes.
const MASK_BYTES: usize = 8;
/// Up to so many are sought one after the other, which is faster than to order the block.
const SOUGHT_MAX: usize = 4;

/// The least share of the values that there are patches for, in millionths: one of each block.
pub const SHARE_MIN: u32 = 15_625;

/// How much of each block a patch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    share: Share,
}

impl Patch {
    /// What is sent of values in this codec, if that is patches: top-k, with one value of each block at least.
    pub fn of(codec: Codec) -> Option<Self> {
        match codec {
            Codec::TopK { share } if share.in_millionths() >= SHARE_MIN => Some(Self { share }),
            _ => None,
        }
    }

    /// Bytes of the patch of a slice of so many values.
    pub fn bytes(self, values: u64) -> u64 {
        let (blocks, rest) = (values / BLOCK as u64, (values % BLOCK as u64) as usize);
        let block = block_bytes(self.chosen_of(BLOCK)) as u64;
        blocks.saturating_mul(block).saturating_add(block_bytes(self.chosen_of(rest)) as u64)
    }

    /// Appends the patch that leads from the reference towards these values, a slice's from its beginning, and applies it to
    /// the reference.
    ///
    /// # Panics
    /// If there are not as many values as in the reference.
    pub fn write(self, values: &[f32], reference: &mut [f32], out: &mut Vec<u8>) {
        assert_eq!(values.len(), reference.len(), "values and their reference");
        let first = out.len();
        out.resize(first + self.bytes(values.len() as u64) as usize, 0);
        let ((values, rest), (reference, rest_of_reference)) =
            (values.as_chunks::<BLOCK>(), reference.as_chunks_mut::<BLOCK>());
        let each = self.chosen_of(BLOCK);
        let (whole, last) = out[first..].split_at_mut(values.len() * block_bytes(each));
        write_blocks(values, reference, each, whole);
        if !rest.is_empty() {
            write_last(rest, rest_of_reference, self.chosen_of(rest.len()), last);
        }
    }

    /// Whether `bytes` are the patch of a slice of so many values.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn check(self, bytes: &[u8], values: usize) -> Result<(), CodecError> {
        let expected = self.bytes(values as u64);
        if bytes.len() as u64 != expected {
            return Err(CodecError::Length { codec: "a patch", values, expected, found: bytes.len() });
        }
        self.blocks(bytes, values).try_for_each(|(start, bytes)| {
            let of = (values - start).min(BLOCK);
            places(bytes, self.chosen_of(of), of).map(|_| ()).map_err(|wrong| wrong.at(start))
        })
    }

    /// Brings a slice that is as the reference was to where the reference is.
    ///
    /// # Errors
    /// If `bytes` are no patch of as many values. Then they are as they were.
    pub fn apply(self, bytes: &[u8], slice: &mut [f32]) -> Result<(), CodecError> {
        self.check(bytes, slice.len())?;
        for (start, bytes) in self.blocks(bytes, slice.len()) {
            let end = slice.len().min(start + BLOCK);
            let block = &mut slice[start..end];
            let chosen = self.chosen_of(block.len());
            let mut places = places(bytes, chosen, block.len()).map_err(|wrong| wrong.at(start))?;
            for value in bytes[index_bytes(chosen)..].as_chunks().0 {
                block[places.trailing_zeros() as usize] = f32::from_le_bytes(*value);
                places &= places - 1;
            }
        }
        Ok(())
    }

    /// Values that are chosen of a block of so many.
    fn chosen_of(self, block: usize) -> usize {
        self.share.of(block as u64) as usize
    }

    /// Where each block begins, and its bytes.
    fn blocks(self, bytes: &[u8], values: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let each = block_bytes(self.chosen_of(BLOCK));
        (0..values).step_by(BLOCK).zip(bytes.chunks(each))
    }
}

fn index_bytes(chosen: usize) -> usize {
    chosen.min(MASK_BYTES)
}

fn block_bytes(chosen: usize) -> usize {
    index_bytes(chosen) + size_of::<f32>() * chosen
}

/// What is wrong with the indices of a block.
enum Wrong {
    /// One is not above the one before.
    Order,
    /// One is beyond the block.
    Beyond { of: usize },
    /// As many are marked.
    Marked { found: u32, of: usize },
}

impl Wrong {
    fn at(self, start: usize) -> CodecError {
        match self {
            Self::Order => CodecError::Order { start },
            Self::Beyond { of } => CodecError::Index { number: start as u64, values: start + of },
            Self::Marked { found, of } => CodecError::Count { found: found.into(), values: of },
        }
    }
}

/// The places of the values of a block of `of`, a bit for each.
fn places(bytes: &[u8], chosen: usize, of: usize) -> Result<u64, Wrong> {
    let mut places = 0_u64;
    if chosen < MASK_BYTES {
        for &index in &bytes[..chosen] {
            if usize::from(index) >= of {
                return Err(Wrong::Beyond { of });
            }
            if places >> index != 0 {
                return Err(Wrong::Order);
            }
            places |= 1 << index;
        }
        return Ok(places);
    }
    let (mask, _) = bytes.split_first_chunk().ok_or(Wrong::Marked { found: 0, of })?;
    places = u64::from_le_bytes(*mask);
    if places.count_ones() as usize != chosen {
        return Err(Wrong::Marked { found: places.count_ones(), of });
    }
    match BLOCK - places.leading_zeros() as usize > of {
        true => Err(Wrong::Beyond { of }),
        false => Ok(places),
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn write_blocks(values: &[[f32; BLOCK]], reference: &mut [[f32; BLOCK]], chosen: usize, out: &mut [u8]) {
    let out = out.chunks_exact_mut(block_bytes(chosen));
    for ((values, reference), out) in values.iter().zip(reference).zip(out) {
        let places = choose(&distances(values, reference), chosen);
        write_block(values, reference, places, out);
    }
}

/// The last block of a variable, which is shorter: what it lacks is nearer than anything.
fn write_last(values: &[f32], reference: &mut [f32], chosen: usize, out: &mut [u8]) {
    let mut distances = [-1; BLOCK];
    for ((distance, value), reference) in distances.iter_mut().zip(values).zip(&*reference) {
        *distance = magnitude(value - reference);
    }
    write_block(values, reference, choose(&distances, chosen), out);
}

/// How far the reference is from each value; as whole numbers, which are in the order of the magnitudes, NaN last.
#[inline(always)]
fn distances(values: &[f32; BLOCK], reference: &[f32; BLOCK]) -> [i32; BLOCK] {
    let mut distances = [0; BLOCK];
    for i in 0..BLOCK {
        distances[i] = magnitude(values[i] - reference[i]);
    }
    distances
}

#[inline(always)]
fn magnitude(value: f32) -> i32 {
    value.abs().to_bits() as i32
}

/// The places of the largest, of equal ones the first.
#[inline(always)]
fn choose(distances: &[i32; BLOCK], chosen: usize) -> u64 {
    if chosen <= SOUGHT_MAX {
        return seek(distances, chosen);
    }
    let mut ordered = *distances;
    let (_, &mut least, _) = ordered.select_nth_unstable(BLOCK - chosen);
    let mut places = mask(distances, |distance| distance > least);
    let mut equal = mask(distances, |distance| distance == least);
    for _ in places.count_ones() as usize..chosen {
        places |= equal & equal.wrapping_neg();
        equal &= equal - 1;
    }
    places
}

/// The same, one after the other.
#[inline(always)]
fn seek(distances: &[i32; BLOCK], chosen: usize) -> u64 {
    let mut left = *distances;
    let mut places = 0_u64;
    for _ in 0..chosen {
        let largest = left.iter().fold(-1, |largest, &distance| largest.max(distance));
        let first = mask(&left, |distance| distance == largest).trailing_zeros();
        places |= 1 << first;
        left[first as usize] = -1;
    }
    places
}

#[inline(always)]
fn write_block(values: &[f32], reference: &mut [f32], places: u64, out: &mut [u8]) {
    let chosen = places.count_ones() as usize;
    let (indices, written) = out.split_at_mut(index_bytes(chosen));
    let is_marked = chosen >= MASK_BYTES;
    if is_marked {
        indices.copy_from_slice(&places.to_le_bytes());
    }
    let mut left = places;
    for (number, out) in written.as_chunks_mut().0.iter_mut().enumerate() {
        let index = left.trailing_zeros() as usize;
        left &= left - 1;
        if !is_marked {
            indices[number] = index as u8;
        }
        *out = values[index].to_le_bytes();
        reference[index] = values[index];
    }
}

#[cfg(test)]
mod tests;
