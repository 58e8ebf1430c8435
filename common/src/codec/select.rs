//! Chooses the values of a variable that are kept: those of largest magnitude, of equal ones those of lower index.

use super::Scratch;
use super::kind::Share;

/// Samples that a variable's magnitudes are guessed from, and how many times more values a variable has for that to pay.
const SAMPLES: usize = 1024;
const PAYS: usize = 4;

/// Which values of a variable are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The least magnitude that is kept, as the bits of an f32: their order is that of the magnitudes, with NaN last.
    least: u32,
    /// Values of exactly that magnitude are kept before this index.
    ties_end: u64,
}

impl Kept {
    /// Calls `each` with the index within the slice of every value that is kept, in order. The slice begins at value
    /// `start` of its variable.
    pub(super) fn each(self, values: &[f32], start: u64, mut each: impl FnMut(usize)) {
        large(values, self.least, |index| {
            if start + (index as u64) < self.ties_end || magnitude(values[index]) > self.least {
                each(index);
            }
        });
    }
}

/// Chooses the share of the variable's values to be kept, and keeps a value that is not finite first of all.
pub fn select(variable: &[f32], share: Share, scratch: &mut Scratch) -> Kept {
    let keep = share.of(variable.len() as u64) as usize;
    if keep == variable.len() {
        return Kept { least: 0, ties_end: u64::MAX };
    }
    let magnitudes = &mut scratch.magnitudes;
    // Once, so that a variable of this size allocates no more, however many candidates it has.
    magnitudes.clear();
    magnitudes.reserve(variable.len());
    let mut floor = guess(variable, keep, magnitudes);
    gather(variable, floor, magnitudes);
    if magnitudes.len() < keep {
        floor = 0;
        gather(variable, floor, magnitudes);
    }
    let place = magnitudes.len() - keep;
    let (_, &mut least, above) = magnitudes.select_nth_unstable(place);
    let above = above.iter().filter(|&&magnitude| magnitude > least).count();
    let (mut ties, found) =
        (keep - above, magnitudes.iter().filter(|&&magnitude| magnitude == least).count());
    if ties == found {
        return Kept { least, ties_end: u64::MAX };
    }
    let mut ties_end = 0;
    large(variable, least, |index| {
        if ties > 0 && magnitude(variable[index]) == least {
            (ties, ties_end) = (ties - 1, index as u64 + 1);
        }
    });
    Kept { least, ties_end }
}

/// A magnitude that at least `keep` values probably reach, and few others: one among samples whose rank is three standard
/// deviations below what it would be if they were a picture of the whole. A wrong guess costs time and nothing else.
fn guess(variable: &[f32], keep: usize, scratch: &mut Vec<u32>) -> u32 {
    if variable.len() < PAYS * SAMPLES {
        return 0;
    }
    // One out of each part, now here and now there, for variables have rows and columns.
    let part = variable.len() / SAMPLES;
    scratch.clear();
    scratch.extend((0..SAMPLES).map(|i| {
        let within = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        magnitude(variable[i * part + (within as usize) % part])
    }));
    let rank = keep as f64 * SAMPLES as f64 / variable.len() as f64;
    let rank = (rank + 3.0 * rank.sqrt() + 4.0) as usize;
    if rank >= SAMPLES { 0 } else { *scratch.select_nth_unstable(SAMPLES - 1 - rank).1 }
}

fn gather(variable: &[f32], floor: u32, magnitudes: &mut Vec<u32>) {
    magnitudes.clear();
    if floor == 0 {
        magnitudes.extend(variable.iter().map(|&value| magnitude(value)));
    } else {
        large(variable, floor, |index| magnitudes.push(magnitude(variable[index])));
    }
}

fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

/// Calls `each` with the index of every value of at least this magnitude, in order.
fn large(values: &[f32], least: u32, mut each: impl FnMut(usize)) {
    let (groups, rest) = values.as_chunks::<64>();
    // As signed numbers, which SSE2 can compare; without the sign they are in the same order.
    let below = least as i32 - 1;
    for (i, group) in groups.iter().enumerate() {
        let mut mask = super::mask(group, |value| magnitude(value) as i32 > below);
        while mask != 0 {
            each(i * 64 + mask.trailing_zeros() as usize);
            mask &= mask - 1;
        }
    }
    for (i, &value) in rest.iter().enumerate() {
        if magnitude(value) >= least {
            each(groups.len() * 64 + i);
        }
    }
}
