//! Draws the random numbers of stochastic rounding, each a function of what it is for and of a value's position.
//!
//! ChaCha8 as in [`crate::rng`] would cost more than all the rest of the encoding, so it only makes one key for each
//! variable. From this key and the number of a block of 64 values a 64-bit finaliser (Steele, Lea and Flood 2014, "Fast
//! Splittable Pseudorandom Number Generators"; constants of D. Stafford's variant 13) makes two keys of 32 bits, and
//! from these and a number below 32 a hash with two multiplications makes 32 bits: 16 for each of two values. That is
//! enough: a rounding probability is off by at most 2^-17, which moves the mean by less than f32 rounds the largest value
//! of the block.

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
        let mut numbers = [0.0; BLOCK];
        let (low, high) = numbers.split_at_mut(BLOCK / 2);
        for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
            let mut bits = first.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9));
            bits = (bits ^ bits >> 16).wrapping_mul(0x21f0_aaad);
            bits = (bits ^ bits >> 15 ^ second).wrapping_mul(0x735a_2d97);
            bits ^= bits >> 15;
            *low = unit((bits & 0xffff) as i32);
            *high = unit((bits >> 16) as i32);
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

/// From 0 to 65,535 to the middles of as many equal parts of (-1/2, 1/2): exact in f32.
fn unit(bits: i32) -> f32 {
    bits as f32 * (1.0 / 65_536.0) + (1.0 / 131_072.0 - 0.5)
}
