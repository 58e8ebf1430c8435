//! Draws the random numbers of stochastic rounding, each a function of what it is for and of a value's position.
//!
//! ChaCha8 as in [`crate::rng`] would cost more than all the rest of the encoding, so it only makes one key for each
//! variable. From this key and the number of a block of 64 values a 64-bit finaliser (Steele, Lea and Flood 2014, "Fast
//! Splittable Pseudorandom Number Generators"; constants of D. Stafford's variant 13) makes two keys of 32 bits, and from
//! these and a number below 32 a hash with two multiplications makes 32 bits: 16 for each of two values. That is enough:
//! a rounding probability is off by at most 2^-17, which moves the mean by less than f32 rounds the largest value of the
//! block. (With two multiplications of 32 by 32 bits and all 64 bits of the last one encoding would be 7 % faster, but the
//! numbers of a block are then correlated: the tests below notice.)

use crate::rng::{Purpose, Rng};

/// Values for which numbers are drawn at once.
pub(super) const BLOCK: usize = crate::placement::BLOCK as usize;

/// The key of one variable's random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dither {
    key: u64,
}

impl Dither {
    /// The numbers for this purpose, which names the variable.
    pub fn new(seed: u64, purpose: Purpose<'_>) -> Self {
        Self { key: Rng::new(seed, purpose).bits() }
    }

    /// One number for each value of a block, the one from value `64 number` on: an odd multiple of 2^-17 between -1/2 and
    /// 1/2.
    pub fn block(self, number: u64) -> [f32; BLOCK] {
        let keys = finalise(self.key.wrapping_add(number.wrapping_mul(GOLDEN)));
        let (first, second) = (keys as u32, (keys >> 32) as u32);
        let mut words = [[0; 4]; BLOCK / 2];
        for (i, word) in words.iter_mut().enumerate() {
            let mut bits = first.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9));
            bits = (bits ^ bits >> 16).wrapping_mul(0x21f0_aaad);
            bits = (bits ^ bits >> 15 ^ second).wrapping_mul(0x735a_2d97);
            *word = (bits ^ bits >> 15).to_le_bytes();
        }
        let mut numbers = [0.0; BLOCK];
        for (number, bits) in numbers.iter_mut().zip(words.as_flattened().as_chunks().0) {
            *number = unit(u16::from_le_bytes(*bits));
        }
        numbers
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn finalise(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// The middles of 65,536 equal parts of (-1/2, 1/2), exact in f32.
fn unit(bits: u16) -> f32 {
    f32::from(bits) * (1.0 / 65_536.0) + (1.0 / 131_072.0 - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dither(step: u64) -> Dither {
        Dither::new(1, Purpose::PushRounding { source: 0, variable: 0, step })
    }

    /// The blocks of one variable, and the first block at many steps: as they are used.
    fn blocks() -> [Vec<[f32; BLOCK]>; 2] {
        let one = dither(0);
        [(0..20_000).map(|i| one.block(i)).collect(), (0..20_000).map(|step| dither(step).block(0)).collect()]
    }

    /// The mean of the products of two numbers, in their standard errors (each number has the variance 1/12).
    fn correlation(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (a, b) in pairs {
            sum += f64::from(a) * f64::from(b) * 12.0;
            count += 1.0;
        }
        sum / f64::sqrt(count)
    }

    #[test]
    fn numbers_are_odd_multiples_within_a_half() {
        for number in blocks().concat().into_flattened() {
            let odd = number * 131_072.0;
            assert!(odd == odd.round() && odd as i32 % 2 != 0 && number.abs() < 0.5, "{number}");
        }
    }

    #[test]
    fn every_place_of_a_block_is_uniform() {
        for blocks in blocks() {
            let n = blocks.len() as f64;
            let mut worst = 0.0_f64;
            for place in 0..BLOCK {
                // Pearson's test on 64 equal parts, once of the high bits and once of the low ones.
                for shift in [10, 0] {
                    let mut counts = [0_f64; 64];
                    for block in &blocks {
                        let bits = ((block[place] + 0.5) * 65_536.0) as usize;
                        counts[bits >> shift & 63] += 1.0;
                    }
                    let squares: f64 =
                        counts.iter().map(|count| (count - n / 64.0).powi(2) / (n / 64.0)).sum();
                    worst = worst.max(squares);
                }
            }
            // 63 degrees of freedom: 120 is exceeded once in 60,000 times, and 128 are looked at.
            assert!((70.0..120.0).contains(&worst), "{worst}");
        }
    }

    #[test]
    fn no_two_places_of_a_block_go_together() {
        for blocks in blocks() {
            let mut worst = 0.0_f64;
            for a in 0..BLOCK {
                for b in 0..a {
                    worst = worst.max(correlation(blocks.iter().map(|block| (block[a], block[b]))).abs());
                }
            }
            // The largest of 2016 normal deviates is about 3.5, and above 5.2 once in 5,000 times.
            assert!((2.5..5.2).contains(&worst), "{worst}");
        }
    }

    #[test]
    fn blocks_go_together_with_none_nearby_nor_with_the_next_step() {
        for blocks in blocks() {
            let mut worst = 0.0_f64;
            for distance in [1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 256, 1024] {
                for offset in [0, 1, 2, 16, 32] {
                    let pairs = blocks.iter().zip(&blocks[distance..]).flat_map(|(one, other)| {
                        (0..BLOCK).map(move |place| (one[place], other[(place + offset) % BLOCK]))
                    });
                    worst = worst.max(correlation(pairs).abs());
                }
            }
            assert!(worst < 4.5, "{worst}");
        }
    }

    #[test]
    fn the_mean_of_a_block_varies_as_that_of_64_independent_numbers() {
        for blocks in blocks() {
            let n = blocks.len() as f64;
            let means = blocks.iter().map(|block| block.iter().map(|&x| f64::from(x)).sum::<f64>() / 64.0);
            let variance = means.map(|mean| mean * mean).sum::<f64>() / n;
            let relative = variance * 12.0 * 64.0 - 1.0;
            assert!(relative.abs() < 4.5 * (2.0 / n).sqrt(), "{relative}");
        }
    }

    #[test]
    fn numbers_depend_on_seed_purpose_and_place_alone() {
        let purpose = |variable, step| Purpose::PushRounding { source: 0, variable, step };
        let block = |seed, variable, step, number| Dither::new(seed, purpose(variable, step)).block(number);
        let first = block(1, 0, 0, 5);
        assert_eq!(first, block(1, 0, 0, 5));
        for other in [block(2, 0, 0, 5), block(1, 1, 0, 5), block(1, 0, 1, 5), block(1, 0, 0, 6)] {
            assert_ne!(first, other);
        }
        assert_ne!(first, block(1, 0, 0, 5 + (1 << 32)), "nor are places counted in 32 bits");
    }
}
