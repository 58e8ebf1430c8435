//! Writes values as bfloat16: the upper half of binary32, rounded to nearest even.

use multiversion::multiversion;

use super::error::CodecError;
use super::words;

/// Bytes of a value.
pub const BYTES: usize = 2;

/// The nearest bfloat16; of two equally near ones the even one. What is beyond the largest becomes infinite, a NaN stays
/// a NaN.
#[inline(always)]
pub fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a NaN into infinity or beyond: it is cut and made quiet instead.
    let quiet = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// The value of a bfloat16, exactly.
#[inline(always)]
pub fn widen(word: u16) -> f32 {
    f32::from_bits(u32::from(word) << 16)
}

/// Appends two bytes for each value.
pub fn encode(values: &[f32], out: &mut Vec<u8>) {
    narrow_all(values, words::room(values, out));
}

/// As [`encode`], and writes into `residual` what is lost of each value.
///
/// # Panics
/// If `residual` is not as long as `values`.
pub fn encode_with_residual(values: &[f32], residual: &mut [f32], out: &mut Vec<u8>) {
    assert_eq!(values.len(), residual.len(), "values and their residuals");
    let words = words::room(values, out);
    narrow_all(values, words);
    lost(values, words, residual);
}

/// Writes each value's two bytes.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub(super) fn narrow_all(values: &[f32], words: &mut [[u8; BYTES]]) {
    for (word, &value) in words.iter_mut().zip(values) {
        *word = narrow(value).to_le_bytes();
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn widen_all(words: &[[u8; BYTES]], out: &mut [f32]) {
    for (value, &word) in out.iter_mut().zip(words) {
        *value = widen(u16::from_le_bytes(word));
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn lost(values: &[f32], words: &[[u8; BYTES]], residual: &mut [f32]) {
    for ((residual, &value), &word) in residual.iter_mut().zip(values).zip(words) {
        *residual = value - widen(u16::from_le_bytes(word));
    }
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If their number is another one.
pub fn check(bytes: &[u8], values: usize) -> Result<(), CodecError> {
    words::check::<BYTES>("bf16", bytes, values)
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
    widen_all(words::from(bytes, start), out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    #[test]
    fn every_word_survives_the_way_there_and_back() {
        for word in 0..=u16::MAX {
            let value = widen(word);
            let expected = if value.is_nan() { word | 0x40 } else { word };
            assert_eq!(narrow(value), expected, "{word:#06x}");
        }
    }

    #[test]
    fn ties_go_to_the_even_word() {
        // Between neighbours, the middle goes to the even one and anything off it to the nearer one.
        for word in 0..0x7f80_u16 {
            let middle = f32::from_bits(u32::from(word) << 16 | 0x8000);
            let even = word + (word & 1);
            assert_eq!(narrow(middle), even, "{word:#06x}");
            assert_eq!(narrow(-middle), even | 0x8000, "-{word:#06x}");
            assert_eq!(narrow(f32::from_bits(middle.to_bits() - 1)), word);
            assert_eq!(narrow(f32::from_bits(middle.to_bits() + 1)), word + 1);
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        assert_eq!(narrow(f32::INFINITY), 0x7f80);
        assert_eq!(narrow(f32::NEG_INFINITY), 0xff80);
        assert_eq!(narrow(f32::MAX), 0x7f80);
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff, 0x7fc0_0000] {
            assert!(widen(narrow(f32::from_bits(bits))).is_nan(), "{bits:#010x}");
        }
    }

    #[test]
    fn the_error_is_at_most_2_to_the_minus_8_of_a_normal_value() {
        let mut rng = Rng::new(1, Purpose::Delivery);
        let mut largest = 0_f64;
        for _ in 0..200_000 {
            let value = f32::from_bits(rng.bits() as u32);
            if value.is_normal() && value.abs() < 3.3e38 {
                let error = f64::from(widen(narrow(value)) - value) / f64::from(value);
                largest = largest.max(error.abs());
            }
        }
        // Eight digits, the first of which is always 1: half a unit of the last is at most 2^-8 of 1.
        assert!((0.9..=1.0).contains(&(largest * 256.0)), "{largest}");
    }
}
