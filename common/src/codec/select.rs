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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::conformance::numbers;
    use super::*;

    fn share(millionths: u32) -> Share {
        Share::millionths(millionths).unwrap()
    }

    fn kept(variable: &[f32], share: Share, scratch: &mut Scratch) -> Vec<usize> {
        let mut indices = Vec::new();
        select(variable, share, scratch).each(variable, 0, |index| indices.push(index));
        indices
    }

    /// All of them in order, NaN first, equal ones by their index.
    fn oracle(variable: &[f32], share: Share) -> Vec<usize> {
        let mut order: Vec<usize> = (0..variable.len()).collect();
        let size = |i: usize| if variable[i].is_nan() { f64::INFINITY } else { f64::from(variable[i].abs()) };
        order.sort_by(|&a, &b| {
            let nan = variable[b].is_nan().cmp(&variable[a].is_nan());
            nan.then(size(b).total_cmp(&size(a))).then(a.cmp(&b))
        });
        order.truncate(share.of(variable.len() as u64) as usize);
        order.sort_unstable();
        order
    }

    #[test]
    fn the_largest_are_kept_whatever_the_variable_looks_like() {
        let mut scratch = Scratch::default();
        for len in [1, 2, 63, 64, 65, 1_000, 5_000, 40_000] {
            let normal = numbers(len as u64, len);
            let mut sorted = normal.clone();
            sorted.sort_by(f32::total_cmp);
            // Those at the end are large: a guess from few samples is wrong.
            let jump = (0..len).map(|i| if i * 10 > len * 9 { 1.0 + i as f32 } else { 1e-3 }).collect();
            let rows = (0..len).map(|i| ((i % 200) as f32 - 100.0) * 1e-3).collect();
            let few = (0..len).map(|i| if i % 997 == 5 { -2.0 } else { 0.0 }).collect();
            let nan = (0..len).map(|i| if i % 50 == 7 { f32::NAN } else { i as f32 }).collect();
            for variable in [normal, sorted, jump, rows, few, nan, vec![0.0; len], vec![-3.0; len]] {
                for millionths in [1, 1_000, 10_000, 100_000, 500_000, 999_000, 1_000_000] {
                    let found = kept(&variable, share(millionths), &mut scratch);
                    let expected = oracle(&variable, share(millionths));
                    assert!(
                        found == expected,
                        "{millionths} millionths of {len}: {found:?}, not {expected:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn of_equal_magnitudes_the_first_are_kept() {
        let variable = [1.0, -2.0, 2.0, 0.5, -2.0, 3.0, 2.0, 0.0, 0.0, 0.0];
        assert_eq!(kept(&variable, share(100_000), &mut Scratch::default()), [5]);
        assert_eq!(kept(&variable, share(300_000), &mut Scratch::default()), [1, 2, 5]);
        assert_eq!(kept(&variable, share(700_000), &mut Scratch::default()), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(kept(&variable, share(800_000), &mut Scratch::default()), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn memory_is_taken_once() {
        let mut scratch = Scratch::default();
        kept(&numbers(1, 20_000), share(10_000), &mut scratch);
        let (memory, size) = (scratch.magnitudes.as_ptr(), scratch.magnitudes.capacity());
        for (seed, len) in [(2, 20_000), (3, 100), (4, 20_000)] {
            for millionths in [1, 10_000, 900_000] {
                kept(&numbers(seed, len), share(millionths), &mut scratch);
            }
        }
        assert_eq!((scratch.magnitudes.as_ptr(), scratch.magnitudes.capacity()), (memory, size));
    }

    proptest! {
        #[test]
        fn as_many_are_kept_as_the_share_says(seed: u64, len in 1_usize..10_000, millionths in 1_u32..=1_000_000) {
            let variable = numbers(seed, len);
            let found = kept(&variable, share(millionths), &mut Scratch::default());
            prop_assert_eq!(found, oracle(&variable, share(millionths)));
        }
    }
}
