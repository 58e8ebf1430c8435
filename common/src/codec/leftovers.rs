//! Keeps what int8 leaves out of values in 16 bits each, where floats would take 32.
//!
//! Of each block they count 1/65,280 of its scale, which is kept beside them. So what is kept of a value is off by 1/130,560 of the
//! scale at most, 2^-24 of the largest magnitude in its block: about as much as binary32 rounds that one. Blocks whose largest
//! magnitude is below 1e-31 are kept less exactly, and of those below 1.5e-36, which have no scale, nothing is kept.

use std::ops::Range;

use multiversion::multiversion;

use super::dither::BLOCK;

/// Units in a scale. At most half a scale is left out, and a little by rounding.
pub(super) const IN_A_SCALE: f32 = 65_280.0;

/// A whole number of cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Words(pub(super) [i16; BLOCK]);

/// What is left out of blocks of 64 values; the last of a variable may have fewer.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    units: Vec<f32>,
    words: Vec<Words>,
}

impl Leftovers {
    /// Nothing is left out of so many blocks.
    pub fn zeros(blocks: usize) -> Self {
        Self { units: vec![0.0; blocks], words: vec![Words([0; BLOCK]); blocks] }
    }

    /// Where to keep what is left out of some blocks.
    pub fn of(&mut self, blocks: Range<usize>) -> LeftoversMut<'_> {
        LeftoversMut { units: &mut self.units[blocks.clone()], words: &mut self.words[blocks] }
    }

    /// Adds what is left out of the blocks from number `first` on to as many values.
    ///
    /// # Panics
    /// If there are not so many blocks.
    pub fn add_to(&self, first: usize, values: &mut [f32]) {
        let blocks = first..first + values.len().div_ceil(BLOCK);
        add(&self.units[blocks.clone()], &self.words[blocks], values);
    }
}

/// Where to keep what is left out of some blocks.
#[derive(Debug)]
pub struct LeftoversMut<'a> {
    pub(super) units: &'a mut [f32],
    pub(super) words: &'a mut [Words],
}

impl LeftoversMut<'_> {
    /// Of the first blocks of so many values, and of the others.
    ///
    /// # Panics
    /// If the values are not of as many blocks.
    pub(super) fn split_at(self, blocks: usize, values: usize) -> (Self, Self) {
        assert_eq!(values.div_ceil(BLOCK), self.words.len(), "blocks and what is left out of them");
        let ((units, later_units), (words, later_words)) =
            (self.units.split_at_mut(blocks), self.words.split_at_mut(blocks));
        (Self { units, words }, Self { units: later_units, words: later_words })
    }
}

/// The products are rounded before they are added, as if they had been floats in between.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add(units: &[f32], words: &[Words], values: &mut [f32]) {
    let (whole, rest) = values.as_chunks_mut::<BLOCK>();
    let count = whole.len();
    for ((values, words), unit) in whole.iter_mut().zip(words).zip(units) {
        for (value, &word) in values.iter_mut().zip(&words.0) {
            *value += f32::from(word) * unit;
        }
    }
    if let (Some(words), Some(unit)) = (words.get(count), units.get(count)) {
        for (value, &word) in rest.iter_mut().zip(&words.0) {
            *value += f32::from(word) * unit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::numbers;
    use super::super::{Chosen, int8};
    use super::*;

    const INT8: Chosen = Chosen::Int8 { dither: None };

    /// What is decoded of a slice of these values from its third block on, and what is left out.
    fn encoded(values: &[f32], left: &mut Leftovers) -> (Vec<f32>, Vec<f32>) {
        let before = 2 * BLOCK;
        let of = before + values.len();
        let mut bytes = vec![0; int8::bytes(of as u64) as usize];
        let blocks = 3..3 + values.len().div_ceil(BLOCK);
        INT8.encode_piece((0, of), before, values, Some(left.of(blocks)), &mut bytes);
        let mut decoded = vec![0.0; of];
        int8::decode(&bytes, &mut decoded).unwrap();
        let mut rest = vec![0.0; values.len()];
        left.add_to(3, &mut rest);
        (decoded.split_off(before), rest)
    }

    /// A scale's share of the largest magnitude in each value's block.
    fn scales(values: &[f32]) -> impl Iterator<Item = f64> {
        values.chunks(BLOCK).flat_map(|block| {
            let largest = block.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
            vec![f64::from(largest) / 127.0; block.len()]
        })
    }

    #[test]
    fn what_is_decoded_and_what_is_kept_are_the_value_but_for_half_a_unit() {
        for (seed, len) in (0..).zip([1, 63, 64, 65, 200, 640, 1000]) {
            let mut left = Leftovers::zeros(3 + 16 + 1);
            for size in [1e-30, 1e-6, 1.0, 1e6, 1e30] {
                let values: Vec<f32> = numbers(seed, len).iter().map(|value| value * size).collect();
                let (decoded, rest) = encoded(&values, &mut left);
                for (i, scale) in scales(&values).enumerate() {
                    let lost = f64::from(values[i]) - f64::from(decoded[i]) - f64::from(rest[i]);
                    // Half a unit, and what the sums and products of floats lose.
                    let most = scale * (0.5 / f64::from(IN_A_SCALE) + 2.0 * 127.0 / f64::from(1 << 24));
                    assert!(lost.abs() <= most, "{}: {lost}, at most {most}", values[i]);
                }
            }
            let blocks = len.div_ceil(BLOCK);
            assert!(left.units[..3].iter().chain(&left.units[3 + blocks..]).all(|&unit| unit == 0.0));
        }
    }

    #[test]
    fn half_a_scale_has_room() {
        for largest in [1e-30, 0.1, 1.0, 3.3, 126.9, 127.0, 1e30, f32::MAX] {
            let scale = largest / 127.0;
            for part in 0..127 {
                let half = (part as f32 + 0.5) * scale;
                let near = [half.next_down().next_down(), half.next_down(), half, half.next_up()];
                let mut left = Leftovers::zeros(4);
                let values: Vec<f32> =
                    near.iter().flat_map(|&value| [value, -value]).chain([largest]).collect();
                let (decoded, rest) = encoded(&values, &mut left);
                for ((value, decoded), rest) in values.iter().zip(decoded).zip(rest) {
                    let lost = f64::from(*value) - f64::from(decoded) - f64::from(rest);
                    assert!(
                        lost.abs() <= f64::from(scale) / 30_000.0,
                        "{value} of {largest}: {decoded} and {rest}"
                    );
                }
            }
        }
    }

    #[test]
    fn over_many_rounds_nothing_but_roundings_is_lost() {
        const ROUNDS: u64 = 300;
        let mut left = Leftovers::zeros(3 + 5);
        let (mut meant, mut sent) = (vec![0.0_f64; 300], vec![0.0_f64; 300]);
        for round in 0..ROUNDS {
            let mut values = numbers(round, 300);
            // One of each block is so small that it takes many rounds until it is sent.
            values.iter_mut().step_by(BLOCK).for_each(|value| *value = 1e-3);
            meant.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += f64::from(value));
            left.add_to(3, &mut values);
            let (decoded, _) = encoded(&values, &mut left);
            sent.iter_mut().zip(decoded).for_each(|(sum, value)| *sum += f64::from(value));
        }
        let mut rest = vec![0.0; 300];
        left.add_to(3, &mut rest);
        let largest = (0..ROUNDS).flat_map(|round| numbers(round, 300)).fold(0.0_f32, |m, v| m.max(v.abs()));
        let most = f64::from(largest) * 2.0_f64.powi(-23) * ROUNDS as f64;
        for i in 0..300 {
            let lost = meant[i] - sent[i] - f64::from(rest[i]);
            assert!(lost.abs() <= most, "value {i}: {lost}, at most {most}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_what_is_too_small_is_lost() {
        for (special, expected) in [(f32::NAN, true), (f32::INFINITY, true), (1e-37, false)] {
            let values = [special, 0.0, 1e-38];
            let mut left = Leftovers::zeros(4);
            let (_, rest) = encoded(&values, &mut left);
            assert!(rest.iter().all(|left| left.is_nan() == expected), "{special}: {rest:?}");
            assert!(expected || rest.iter().all(|&left| left == 0.0), "{special}: {rest:?}");
        }
    }
}
