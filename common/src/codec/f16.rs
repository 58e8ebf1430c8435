//! Writes values as IEEE 754 binary16, rounded to nearest even.
//!
//! The crate `half` converts with the processor's own instructions where it has them (F16C on x86-64), as fast as memory:
//! 20 GB/s of f32 in cache on an EPYC core, where a loop of integer operations with SSE2 came to 7 (encoding) and 9.

use half::slice::HalfFloatSliceExt;

use super::error::CodecError;
use super::words;

/// Bytes of a value.
pub const BYTES: usize = 2;

/// Values that are converted together: their words stay in the nearest cache.
const TOGETHER: usize = 256;

/// The nearest binary16; of two equally near ones the even one. From 65,520 on it is infinite; a NaN stays a NaN.
pub fn narrow(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

/// The value of a binary16, exactly.
pub fn widen(word: u16) -> f32 {
    half::f16::from_bits(word).to_f32()
}

/// Appends two bytes for each value.
pub fn encode(values: &[f32], out: &mut Vec<u8>) {
    write(values, words::room(values, out));
}

/// Writes each value's two bytes.
pub(super) fn write(values: &[f32], words: &mut [[u8; BYTES]]) {
    run(values, words, |_, _| ());
}

/// As [`encode`], and writes into `residual` what is lost of each value.
///
/// # Panics
/// If `residual` is not as long as `values`.
pub fn encode_with_residual(values: &[f32], residual: &mut [f32], out: &mut Vec<u8>) {
    assert_eq!(values.len(), residual.len(), "values and their residuals");
    run(values, words::room(values, out), |at, words| {
        let range = at..at + words.len();
        let residual = &mut residual[range.clone()];
        words.convert_to_f32_slice(residual);
        for (residual, &value) in residual.iter_mut().zip(&values[range]) {
            *residual = value - *residual;
        }
    });
}

/// `after` is given the index of the first of some values, and their words.
fn run(values: &[f32], out: &mut [[u8; BYTES]], mut after: impl FnMut(usize, &[half::f16])) {
    let mut words = [half::f16::ZERO; TOGETHER];
    for (i, (values, out)) in values.chunks(TOGETHER).zip(out.chunks_mut(TOGETHER)).enumerate() {
        let words = &mut words[..values.len()];
        words.convert_from_f32_slice(values);
        out.iter_mut().zip(&*words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        after(i * TOGETHER, words);
    }
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
    let mut words = [half::f16::ZERO; TOGETHER];
    let bytes = bytes[start * BYTES..].as_chunks().0;
    for (out, bytes) in out.chunks_mut(TOGETHER).zip(bytes.chunks(TOGETHER)) {
        let words = &mut words[..out.len()];
        words.iter_mut().zip(bytes).for_each(|(word, bytes)| *word = half::f16::from_le_bytes(*bytes));
        words.convert_to_f32_slice(out);
    }
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
    fn slices_are_converted_as_single_values_are() {
        // All words and the values between them, in slices that are no multiple of the processor's vectors.
        let values: Vec<f32> = (0..=u32::from(u16::MAX)).map(|i| f32::from_bits(i << 16 | i)).collect();
        for values in values.chunks(4_099) {
            let (mut bytes, mut decoded) = (Vec::new(), vec![1.0; values.len()]);
            encode(values, &mut bytes);
            decode(&bytes, &mut decoded).unwrap();
            for ((value, word), decoded) in values.iter().zip(bytes.chunks(2)).zip(decoded) {
                let word = u16::from_le_bytes([word[0], word[1]]);
                assert_eq!(word, narrow(*value), "{value:e}");
                assert_eq!(decoded.to_bits(), widen(word).to_bits(), "{word:#06x}");
            }
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
