//! Writes the sign of each value, and one magnitude for all values of the variable.
//!
//! The magnitude is the mean of theirs: the scaled sign of Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and
//! other Gradient Compression Schemes", which is only of use with error feedback. 0 and -0 count as positive.
//!
//! ```text
//! the scale as f32, then ceil(n / 8) bytes: a bit for each value, the lowest first, 1 for negative; 0 to fill the last
//! ```
//!
//! A variable with a value that is not finite has [`NOT_FINITE`] for its scale, and is decoded to NaN throughout.

use multiversion::multiversion;

use super::error::CodecError;
use super::{NOT_FINITE, is_scale};

/// Bytes of so many values.
pub fn bytes(values: u64) -> u64 {
    values.div_ceil(8).saturating_add(4)
}

/// The mean magnitude of a variable, summed up in f64 in a fixed order.
pub fn scale(variable: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0_f64; LANES];
    let (rows, rest) = variable.as_chunks::<LANES>();
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value.abs());
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value.abs());
    }
    // The maximum is for a variable without values.
    let mean = sums.iter().sum::<f64>() / variable.len().max(1) as f64;
    if mean.is_finite() { mean as f32 } else { NOT_FINITE }
}

/// Appends the encoding of a slice, given the [`scale`] of its variable.
pub fn encode(values: &[f32], scale: f32, out: &mut Vec<u8>) {
    out.reserve(bytes(values.len() as u64) as usize);
    out.extend_from_slice(&scale.to_le_bytes());
    let (groups, rest) = values.as_chunks::<64>();
    for group in groups {
        out.extend_from_slice(&bits_of(group).to_le_bytes());
    }
    if !rest.is_empty() {
        let mut group = [0.0; 64];
        group[..rest.len()].copy_from_slice(rest);
        out.extend_from_slice(&bits_of(&group).to_le_bytes()[..rest.len().div_ceil(8)]);
    }
}

fn bits_of(group: &[f32; 64]) -> u64 {
    super::mask(group, |value| value < 0.0)
}

/// As [`encode`], and writes into `residual` what is lost of each value.
///
/// # Panics
/// If `residual` is not as long as `values`.
pub fn encode_with_residual(values: &[f32], scale: f32, residual: &mut [f32], out: &mut Vec<u8>) {
    assert_eq!(values.len(), residual.len(), "values and their residuals");
    encode(values, scale, out);
    for (residual, &value) in residual.iter_mut().zip(values) {
        *residual = if value < 0.0 { value + scale } else { value - scale };
    }
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If their number is another one, the scale is none that [`encode`] writes, or the last byte is not filled with 0.
pub fn check(bytes: &[u8], values: usize) -> Result<(), CodecError> {
    let (found, expected) = (bytes.len(), self::bytes(values as u64));
    let wrong = || CodecError::Length { codec: "sign", values, expected, found };
    let (scale, signs) = bytes.split_first_chunk().filter(|_| found as u64 == expected).ok_or_else(wrong)?;
    let scale = f32::from_le_bytes(*scale);
    if !is_scale(scale, f32::MAX) {
        return Err(CodecError::Scale { index: 0, bits: scale.to_bits() });
    }
    let used = values % 8;
    match signs.last() {
        Some(last) if used > 0 && last >> used != 0 => Err(CodecError::Padding),
        _ => Ok(()),
    }
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

/// Writes the values from number `start`, a multiple of 64, into `out`, of bytes that have passed [`check`].
pub(super) fn part(bytes: &[u8], start: usize, out: &mut [f32]) {
    let Some((scale, signs)) = bytes.split_first_chunk() else { return };
    values_of(u32::from_le_bytes(*scale), &signs[start / 8..], out);
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn values_of(scale: u32, signs: &[u8], out: &mut [f32]) {
    #[inline(always)]
    fn one(scale: u32, signs: u8, out: &mut [f32]) {
        for (i, value) in out.iter_mut().enumerate() {
            *value = f32::from_bits(scale ^ (u32::from(signs) << (31 - i) & 0x8000_0000));
        }
    }
    let (whole, rest) = out.as_chunks_mut::<8>();
    let last = signs.get(whole.len());
    for (out, &signs) in whole.iter_mut().zip(signs) {
        one(scale, signs, out);
    }
    if let (false, Some(&signs)) = (rest.is_empty(), last) {
        one(scale, signs, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::numbers;
    use super::*;

    #[test]
    fn the_scale_and_a_bit_for_each_value() {
        let variable = [1.0, -2.0, 0.0, -0.0, 3.0, -4.0, 0.0, 0.0, 6.0, -8.0];
        let scale = scale(&variable);
        assert_eq!(scale, 2.4);
        let (mut bytes, mut decoded) = (Vec::new(), [0.0; 10]);
        encode(&variable, scale, &mut bytes);
        assert_eq!(bytes[..4], 2.4_f32.to_le_bytes());
        assert_eq!(bytes[4..], [0b0010_0010, 0b10]);
        decode(&bytes, &mut decoded).unwrap();
        assert_eq!(decoded, [2.4, -2.4, 2.4, 2.4, 2.4, -2.4, 2.4, 2.4, 2.4, -2.4]);
    }

    #[test]
    fn signs_are_those_of_the_values() {
        let values = numbers(1, 1_003);
        let (mut bytes, mut decoded) = (Vec::new(), [0.0; 1_003]);
        encode(&values, 0.5, &mut bytes);
        decode(&bytes, &mut decoded).unwrap();
        for (value, decoded) in values.iter().zip(decoded) {
            assert_eq!(decoded, if *value < 0.0 { -0.5 } else { 0.5 }, "{value}");
        }
    }

    #[test]
    fn the_scale_is_the_mean_magnitude() {
        assert_eq!(scale(&[]), 0.0);
        assert_eq!(scale(&[f32::MAX, -f32::MAX, f32::MAX]), f32::MAX);
        assert_eq!(scale(&[1.0, f32::NAN]).to_bits(), NOT_FINITE.to_bits());
        assert_eq!(scale(&[f32::NEG_INFINITY; 20]).to_bits(), NOT_FINITE.to_bits());
        for len in [1, 7, 8, 9, 1_000] {
            let values = numbers(len as u64, len);
            let mean = values.iter().map(|&value| f64::from(value).abs()).sum::<f64>() / len as f64;
            assert!((f64::from(scale(&values)) - mean).abs() <= mean / f64::from(1 << 23), "{len}");
        }
    }

    #[test]
    fn a_scale_or_filling_that_nobody_writes_is_an_error() {
        let (mut bytes, mut out) = (Vec::new(), [0.0; 11]);
        encode(&[1.0; 11], 1.0, &mut bytes);
        for wrong in [-0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, -NOT_FINITE, f32::from_bits(0x7f80_0001)]
        {
            let mut bytes = bytes.clone();
            bytes[..4].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(decode(&bytes, &mut out), Err(CodecError::Scale { index: 0, bits: wrong.to_bits() }));
        }
        for bit in 3..8 {
            let mut bytes = bytes.clone();
            bytes[5] |= 1 << bit;
            assert_eq!(decode(&bytes, &mut out), Err(CodecError::Padding));
        }
        let error = decode(&bytes, &mut [0.0; 17]).unwrap_err().to_string();
        assert_eq!(error, "17 values as sign take 7 bytes; there are 6");
    }
}
