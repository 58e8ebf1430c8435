//! Writes values as IEEE 754 binary16, rounded to nearest even.

use super::error::CodecError;
use super::words;

/// Bytes of a value.
pub const BYTES: usize = 2;

/// The smallest normal binary16, 2^-14, as binary32.
const NORMAL_MIN: u32 = (127 - 14) << 23;
/// 2^16, where no binary16 is near any more.
const BEYOND: u32 = (127 + 16) << 23;
/// 1/2, whose last digit stands for 2^-24, the smallest binary16: what is added to it is rounded to whole multiples.
const HALF: u32 = 126 << 23;

/// The nearest binary16; of two equally near ones the even one. From 65,520 on it is infinite; a NaN stays a NaN.
///
/// The three cases are computed for every value, without branches, so that the loop over a slice is vectorised (after
/// F. Giesen's `float_to_half_fast3_rtne`).
pub fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = bits >> 16 & 0x8000;
    // Compared as signed numbers, since without the sign they are, and SSE2 compares no others.
    let magnitude = bits & 0x7fff_ffff;
    let rounded =
        magnitude.wrapping_sub(NORMAL_MIN - (1 << 23)).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(HALF)).to_bits().wrapping_sub(HALF);
    let beyond = if magnitude as i32 > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let finite = if (magnitude as i32) < NORMAL_MIN as i32 { subnormal } else { rounded };
    let magnitude = if (magnitude as i32) < BEYOND as i32 { finite } else { beyond };
    (sign | magnitude) as u16
}

/// The value of a binary16, exactly. A NaN keeps its digits.
pub fn widen(word: u16) -> f32 {
    let sign = u32::from(word & 0x8000) << 16;
    let shifted = u32::from(word & 0x7fff) << 13;
    let exponent = shifted & 0x0f80_0000;
    let normal = shifted + ((127 - 15) << 23);
    // Read as a normal number of the smallest exponent, minus the leading 1 that it has not got.
    let subnormal = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(NORMAL_MIN)).to_bits();
    let beyond = normal + ((128 - 16) << 23);
    let magnitude = if exponent == 0 { subnormal } else { normal };
    f32::from_bits(sign | if exponent == 0x0f80_0000 { beyond } else { magnitude })
}

/// Appends two bytes for each value.
pub fn encode(values: &[f32], out: &mut Vec<u8>) {
    words::encode(values, out, |value| narrow(value).to_le_bytes());
}

/// As [`encode`], and writes into `residual` what is lost of each value.
///
/// # Panics
/// If `residual` is not as long as `values`.
pub fn encode_with_residual(values: &[f32], residual: &mut [f32], out: &mut Vec<u8>) {
    let word = |value| narrow(value).to_le_bytes();
    words::encode_with_residual(values, residual, out, word, |word| widen(u16::from_le_bytes(word)));
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If their number is another one.
pub fn check(bytes: &[u8], values: usize) -> Result<(), CodecError> {
    words::check::<BYTES>("f16", bytes, values)
}

/// Writes all values into `out`.
///
/// # Errors
/// As [`check`]; then `out` is as it was.
pub fn decode(bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    check(bytes, out.len())?;
    part(bytes, 0, out);
    Ok(())
}

/// Writes the values from number `start` into `out`, of bytes that have passed [`check`].
pub(super) fn part(bytes: &[u8], start: usize, out: &mut [f32]) {
    words::decode(bytes, start, out, |word| widen(u16::from_le_bytes(word)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a binary16 in the words of the standard.
    fn oracle(word: u16) -> f64 {
        let (exponent, digits) = (i32::from(word >> 10 & 0x1f), f64::from(word & 0x3ff));
        let magnitude = match exponent {
            0 => digits * 2_f64.powi(-24),
            0x1f if digits == 0.0 => f64::INFINITY,
            0x1f => f64::NAN,
            _ => (1.0 + digits / 1024.0) * 2_f64.powi(exponent - 15),
        };
        if word >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_word_has_the_value_of_the_standard_and_comes_back() {
        for word in 0..=u16::MAX {
            let (found, expected) = (widen(word), oracle(word));
            if expected.is_nan() {
                assert!(found.is_nan() && widen(narrow(found)).is_nan(), "{word:#06x}");
            } else {
                assert_eq!(f64::from(found).to_bits(), expected.to_bits(), "{word:#06x}");
                assert_eq!(narrow(found), word, "{word:#06x}");
            }
        }
    }

    #[test]
    fn a_value_goes_to_the_nearest_word_and_ties_to_the_even_one() {
        for word in 0..0x7c00_u16 {
            // The largest is followed by what would be 2^16.
            let next = if word == 0x7bff { 65_536.0 } else { oracle(word + 1) };
            let middle = ((oracle(word) + next) / 2.0) as f32;
            assert_eq!(f64::from(middle), (oracle(word) + next) / 2.0, "the middle is exact");
            let even = word + (word & 1);
            assert_eq!(narrow(middle), even, "{word:#06x}");
            assert_eq!(narrow(-middle), even | 0x8000, "-{word:#06x}");
            assert_eq!(
                narrow(f32::from_bits(middle.to_bits() - 1)),
                word,
                "below the middle after {word:#06x}"
            );
            assert_eq!(
                narrow(f32::from_bits(middle.to_bits() + 1)),
                word + 1,
                "above the middle after {word:#06x}"
            );
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_what_is_too_large_becomes_infinite() {
        for value in [65_520.0, 65_536.0, 1e6, f32::MAX, f32::INFINITY] {
            assert_eq!((narrow(value), narrow(-value)), (0x7c00, 0xfc00), "{value}");
        }
        assert_eq!(narrow(65_519.996), 0x7bff);
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff, 0x7fc0_0000] {
            assert!(widen(narrow(f32::from_bits(bits))).is_nan(), "{bits:#010x}");
        }
    }

    #[test]
    fn what_is_too_small_becomes_a_zero_of_its_sign() {
        for bits in [0, 1, 0x0080_0000, 0x3300_0000] {
            let value = f32::from_bits(bits); // up to 2^-25, the middle between 0 and the smallest
            assert_eq!((narrow(value), narrow(-value)), (0, 0x8000), "{value:e}");
        }
        assert_eq!(narrow(f32::from_bits(0x3300_0001)), 1);
    }
}
