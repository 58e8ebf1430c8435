//! Writes values as bytes, each block of 64 with a scale of its own.
//!
//! A block's scale is its largest magnitude divided by 127, and a value becomes the whole number next to value / scale,
//! or one of the two next to it by chance, so that its mean is the value (the stochastic rounding of QSGD, Alistarh et al.
//! 2017, with the largest magnitude in place of the norm). So the error is at most half a scale, or one scale.
//!
//! ```text
//! ceil(n / 64) scales as f32, then n bytes from -127 to 127
//! ```
//!
//! A block whose magnitudes are all below 127 times the smallest normal f32, about 1.5e-36, has scale 0 and bytes 0.
//! One with a value that is not finite has [`NOT_FINITE`] for its scale and bytes 0; it is decoded to NaN throughout.

use std::slice::from_mut;

use multiversion::multiversion;

use super::dither::{BLOCK, Dither};
use super::error::CodecError;
use super::leftovers::{IN_A_SCALE, LeftoversMut};
use super::{NOT_FINITE, is_scale};

/// The largest scale: 127 times the next one is infinite.
const SCALE_MAX: f32 = f32::from_bits(0x7c01_0203);
/// 1.5 * 2^23: in what is added to it, the last digit stands for 1. Its last byte is 0.
const WHOLE: f32 = 12_582_912.0;

/// Blocks of which the scales are found one after the other, before any is written.
const TOGETHER: usize = 8;

type Block = [f32; BLOCK];

/// Bytes of the scales of so many values.
pub(super) fn scale_bytes(values: usize) -> usize {
    4 * values.div_ceil(BLOCK)
}

/// Bytes of so many values.
pub fn bytes(values: u64) -> u64 {
    values.div_ceil(BLOCK as u64).saturating_mul(4).saturating_add(values)
}

/// Appends the encoding of the slice that begins at value `start` of its variable. With a `dither` it is rounded by
/// chance, without to nearest.
///
/// # Panics
/// If `start` is not a multiple of 64.
pub fn encode(values: &[f32], start: u64, dither: Option<Dither>, out: &mut Vec<u8>) {
    assert!(start.is_multiple_of(BLOCK as u64), "slices start at multiples of {BLOCK}");
    let before = out.len();
    out.resize(before + bytes(values.len() as u64) as usize, 0);
    let (scales, codes) = out[before..].split_at_mut(scale_bytes(values.len()));
    fill(values, start, dither, None, scales.as_chunks_mut().0, codes);
}

/// As [`encode`], and writes into `residual` what is lost of each value.
///
/// # Panics
/// As [`encode`], and if `residual` is not as long as `values`.
pub fn encode_with_residual(
    values: &[f32],
    start: u64,
    dither: Option<Dither>,
    residual: &mut [f32],
    out: &mut Vec<u8>,
) {
    assert_eq!(values.len(), residual.len(), "values and their residuals");
    let before = out.len();
    encode(values, start, dither, out);
    part(&out[before..], values.len(), 0, residual);
    residual.iter_mut().zip(values).for_each(|(residual, value)| *residual = value - *residual);
}

/// Writes values from number `at` on where they belong among the bytes of a slice of `of` values that begins at value `start` of its
/// variable, and keeps what is lost of each in `left`, if there is such.
///
/// # Panics
/// If `at` is not a multiple of 64, `left` is not of as many blocks, or `out` is not as long as the slice's bytes.
pub(super) fn write(
    values: &[f32],
    (start, of): (u64, usize),
    at: usize,
    dither: Option<Dither>,
    left: Option<LeftoversMut<'_>>,
    out: &mut [u8],
) {
    assert!(at.is_multiple_of(BLOCK), "parts of a slice start at multiples of {BLOCK}");
    assert!(dither.is_none() || left.is_none(), "what is rounded by chance is right in the mean");
    let (scales, codes) = out.split_at_mut(scale_bytes(of));
    let scales = &mut scales.as_chunks_mut().0[at / BLOCK..];
    fill(values, start + at as u64, dither, left, scales, &mut codes[at..at + values.len()]);
}

/// Writes the scales and the bytes of values, the first of which has the number `start` where random numbers are drawn.
fn fill(
    values: &[f32],
    start: u64,
    dither: Option<Dither>,
    left: Option<LeftoversMut<'_>>,
    scales: &mut [[u8; 4]],
    codes: &mut [u8],
) {
    let (whole, rest) = values.as_chunks();
    let (whole_codes, rest_codes) = codes.as_chunks_mut();
    let (left, rest_left) = left.map(|left| left.split_at(whole.len(), values.len())).unzip();
    let first = start / BLOCK as u64;
    blocks(whole, dither.map(|dither| (dither, first)), &mut scales[..whole.len()], whole_codes, left);
    if !rest.is_empty() {
        let (mut block, mut codes) = ([0.0; BLOCK], [0; BLOCK]);
        block[..rest.len()].copy_from_slice(rest);
        let of = dither.map(|dither| (dither, first + whole.len() as u64));
        let scales = &mut scales[whole.len()..=whole.len()];
        blocks(&[block], of, scales, from_mut(&mut codes), rest_left);
        rest_codes.copy_from_slice(&codes[..rest.len()]);
    }
}

/// Writes the scale and the bytes of each block, and what is lost of its values. `dither` comes with the number of the first.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn blocks(
    values: &[Block],
    dither: Option<(Dither, u64)>,
    scales: &mut [[u8; 4]],
    codes: &mut [[u8; BLOCK]],
    mut left: Option<LeftoversMut<'_>>,
) {
    assert!(values.len() == scales.len() && values.len() == codes.len(), "a scale and bytes for each block");
    let groups = values.chunks(TOGETHER).zip(scales.chunks_mut(TOGETHER)).zip(codes.chunks_mut(TOGETHER));
    for (group, ((values, scale_bytes), codes)) in groups.enumerate() {
        // A scale is known long after the values of its block have been read: meanwhile those of others are looked for.
        let mut largest = [0; TOGETHER];
        for (largest, values) in largest.iter_mut().zip(values) {
            *largest = largest_of(values);
        }
        let (of, inverses) = scales_of(&largest);
        for (i, ((values, scale_bytes), codes)) in values.iter().zip(scale_bytes).zip(codes).enumerate() {
            let (scale, inverse) = (of[i], inverses[i]);
            *scale_bytes = scale.to_le_bytes();
            let number = group * TOGETHER + i;
            let dither = dither.map(|(dither, first)| dither.block(first + number as u64));
            let whole = match (scale.is_finite(), dither) {
                (false, _) => [WHOLE; BLOCK],
                (true, None) => nearest(values, inverse),
                (true, Some(dither)) => by_chance(values, inverse, &dither),
            };
            for (code, whole) in codes.iter_mut().zip(&whole) {
                *code = whole.to_bits() as u8;
            }
            if let Some(LeftoversMut { units, words }) = &mut left {
                units[number] = scale / IN_A_SCALE;
                for ((word, value), whole) in words[number].0.iter_mut().zip(values).zip(whole) {
                    let left = value - (whole - WHOLE) * scale;
                    *word = (left * inverse * IN_A_SCALE + WHOLE).to_bits() as i16;
                }
            }
        }
    }
}

/// The bits of the largest magnitude.
#[inline(always)]
fn largest_of(block: &Block) -> u32 {
    // The bits of magnitudes are in the order of the magnitudes; above them are those of infinity, and then those of NaN.
    let mut largest = 0;
    for value in block {
        largest = value.abs().to_bits().max(largest);
    }
    largest
}

/// The scale for a largest magnitude with these bits, and its inverse or a number just below it: no magnitude times that is
/// above 127.
#[inline(always)]
fn scale(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (NOT_FINITE, 0.0);
    }
    let scale = (largest / 127.0).min(SCALE_MAX);
    if scale < f32::MIN_POSITIVE {
        return (0.0, 0.0);
    }
    let mut inverse = 1.0 / scale;
    // Three roundings can make a little more of it: once for the block is cheaper than a minimum for each value.
    while largest * inverse > 127.0 {
        inverse = inverse.next_down();
    }
    (scale, inverse)
}

/// The scales for blocks with these largest magnitudes, and their inverses, all at once as far as they are usual ones.
#[inline(always)]
fn scales_of(largest: &[u32; TOGETHER]) -> ([f32; TOGETHER], [f32; TOGETHER]) {
    let (mut scales, mut inverses) = ([0.0; TOGETHER], [0.0; TOGETHER]);
    let mut are_usual = true;
    for ((scale, inverse), &largest) in scales.iter_mut().zip(&mut inverses).zip(largest) {
        let largest = f32::from_bits(largest);
        let of = largest / 127.0;
        let mut by = 1.0 / of;
        for _ in 0..2 {
            by = f32::from_bits(by.to_bits() - u32::from(largest * by > 127.0));
        }
        let is_small = of < f32::MIN_POSITIVE;
        (*scale, *inverse) = if is_small { (0.0, 0.0) } else { (of, by) };
        are_usual &= is_small | ((of <= SCALE_MAX) & (largest * by <= 127.0));
    }
    if !are_usual {
        for ((scale, inverse), &largest) in scales.iter_mut().zip(&mut inverses).zip(largest) {
            (*scale, *inverse) = self::scale(largest);
        }
    }
    (scales, inverses)
}

/// Whole numbers, each with [`WHOLE`] added.
#[inline(always)]
fn nearest(block: &Block, inverse: f32) -> Block {
    let mut whole = [0.0; BLOCK];
    for (whole, &value) in whole.iter_mut().zip(block) {
        *whole = value * inverse + WHOLE;
    }
    whole
}

/// A whole number stays what it is, since the numbers added to it are below 1/2 and the sum is exact. So 127 does not
/// become 128, which is no signed byte.
#[inline(always)]
fn by_chance(block: &Block, inverse: f32, dither: &Block) -> Block {
    let mut whole = [0.0; BLOCK];
    for ((whole, &value), &dither) in whole.iter_mut().zip(block).zip(dither) {
        *whole = value * inverse + dither + WHOLE;
    }
    whole
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If their number is another one, or a scale or a byte is none that [`encode`] writes.
pub fn check(bytes: &[u8], values: usize) -> Result<(), CodecError> {
    let (found, expected) = (bytes.len(), self::bytes(values as u64));
    if found as u64 != expected {
        return Err(CodecError::Length { codec: "int8", values, expected, found });
    }
    let (scales, codes) = bytes.split_at(scale_bytes(values));
    check_from(0, scales.as_chunks().0, codes)
}

/// Whether these can be the scales and the bytes of values, the first of which has the number `at`.
fn check_from(at: usize, scales: &[[u8; 4]], codes: &[u8]) -> Result<(), CodecError> {
    for (index, scale) in (at / BLOCK..).zip(scales) {
        let scale = f32::from_le_bytes(*scale);
        if !is_scale(scale, SCALE_MAX) {
            return Err(CodecError::Scale { index, bits: scale.to_bits() });
        }
    }
    if has_a_foreign_byte(codes) {
        let index = at + codes.iter().position(|&code| code == 0x80).unwrap_or_default();
        return Err(CodecError::Code { index });
    }
    Ok(())
}

/// Whether there is a byte among these that is never written. All of them are looked at, for a loop that may end early is not
/// vectorised.
#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn has_a_foreign_byte(codes: &[u8]) -> bool {
    codes.iter().fold(0, |found, &code| found | u8::from(code == 0x80)) != 0
}

/// Writes all values into `out`.
///
/// # Errors
/// As [`check`]; then `out` is as it was.
pub fn decode(bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    check(bytes, out.len())?;
    part(bytes, out.len(), 0, out);
    Ok(())
}

/// Writes values from number `at`, a multiple of 64, on, which have these bytes, into `out`. `scales` are those of the whole
/// slice.
///
/// # Errors
/// As [`check`], of the scales and bytes of these values; then `out` is as it was.
pub(super) fn decode_piece(
    scales: &[u8],
    at: usize,
    codes: &[u8],
    out: &mut [f32],
) -> Result<(), CodecError> {
    let blocks = at / BLOCK..(at + out.len()).div_ceil(BLOCK);
    let (scales, expected) = (scales.as_chunks().0.get(blocks), out.len());
    let (Some(scales), true) = (scales, codes.len() == expected) else {
        let (expected, found) = (expected as u64, codes.len());
        return Err(CodecError::Length { codec: "int8", values: out.len(), expected, found });
    };
    check_from(at, scales, codes)?;
    values_of(scales, codes, out);
    Ok(())
}

/// Writes the values from number `start`, a multiple of 64, into `out`, of bytes of `values` values that have passed
/// [`check`].
pub(super) fn part(bytes: &[u8], values: usize, start: usize, out: &mut [f32]) {
    let (scales, codes) = bytes.split_at(scale_bytes(values));
    values_of(&scales.as_chunks().0[start / BLOCK..], &codes[start..], out);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn values_of(scales: &[[u8; 4]], codes: &[u8], out: &mut [f32]) {
    #[inline(always)]
    fn one(scale: [u8; 4], codes: &[u8], out: &mut [f32]) {
        let scale = f32::from_le_bytes(scale);
        for (value, &code) in out.iter_mut().zip(codes) {
            *value = f32::from(code as i8) * scale;
        }
    }
    let (whole, rest) = out.as_chunks_mut::<BLOCK>();
    let (whole_codes, rest_codes) = codes.as_chunks::<BLOCK>();
    let count = whole.len();
    for ((out, codes), scale) in whole.iter_mut().zip(whole_codes).zip(scales) {
        one(*scale, codes, out);
    }
    if let (false, Some(scale)) = (rest.is_empty(), scales.get(count)) {
        let rest_codes = whole_codes.get(count).map_or(rest_codes, <[u8; BLOCK]>::as_slice);
        one(*scale, rest_codes, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::numbers;
    use super::*;
    use crate::rng::Purpose;

    fn dither(step: u64) -> Dither {
        Dither::new(1, Purpose::PushRounding { source: 0, variable: 0, step })
    }

    fn encoded(values: &[f32], dither: Option<Dither>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(values, 0, dither, &mut bytes);
        bytes
    }

    fn round_trip(values: &[f32], dither: Option<Dither>) -> Vec<f32> {
        let mut decoded = vec![f32::NAN; values.len()];
        decode(&encoded(values, dither), &mut decoded).unwrap();
        decoded
    }

    /// 1/127 of the largest magnitude in each value's block.
    fn scales(values: &[f32]) -> Vec<f64> {
        let largest = |block: &[f32]| block.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        values.chunks(64).flat_map(|block| vec![f64::from(largest(block)) / 127.0; block.len()]).collect()
    }

    #[test]
    fn scales_come_first_then_bytes() {
        let mut values = [0.0; 66];
        values[..4].copy_from_slice(&[127.0, -2.5, 1.4, -127.0]);
        values[64..].copy_from_slice(&[-254.0, 3.0]);
        let bytes = encoded(&values, None);
        assert_eq!(bytes.len() as u64, bytes_of(66));
        assert_eq!(bytes[..8], [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat());
        assert_eq!(bytes[8..12], [127, 0xfe, 1, 0x81]); // -2.5 goes to the even -2
        assert!(bytes[12..72].iter().all(|&byte| byte == 0));
        assert_eq!(bytes[72..], [0x81, 2]); // 1.5 goes to the even 2
    }

    fn bytes_of(values: u64) -> u64 {
        values + 4 * values.div_ceil(64)
    }

    #[test]
    fn scales_that_are_found_together_are_those_of_each_block() {
        let mut largest: Vec<u32> = numbers(11, 80_000).iter().map(|number| number.abs().to_bits()).collect();
        let special = [0.0, f32::MIN_POSITIVE, 127.0 * f32::MIN_POSITIVE, 127.0, 127.0 * SCALE_MAX, f32::MAX];
        let near =
            special.into_iter().flat_map(|number| [number, number.next_up(), number.next_down().abs()]);
        largest.extend(near.chain([f32::INFINITY, f32::NAN]).map(f32::to_bits));
        largest.extend((0..80_000).map(|i: u32| i * 26_843));
        for together in largest.array_windows::<TOGETHER>() {
            let (scales, inverses) = scales_of(together);
            for (i, &largest) in together.iter().enumerate() {
                let (expected, found) = (scale(largest), (scales[i], inverses[i]));
                let bits = |(scale, inverse): (f32, f32)| (scale.to_bits(), inverse.to_bits());
                assert_eq!(bits(found), bits(expected), "of {}", f32::from_bits(largest));
            }
        }
    }

    #[test]
    fn the_error_is_half_a_scale_to_nearest_and_a_scale_by_chance() {
        for seed in 0..20 {
            let values = numbers(seed, 5_003);
            for (dither, most) in [(None, 0.5), (Some(dither(seed)), 1.0)] {
                let (mut largest, decoded) = (0.0_f64, round_trip(&values, dither));
                for ((value, decoded), scale) in values.iter().zip(decoded).zip(scales(&values)) {
                    let error = (f64::from(*value) - f64::from(decoded)).abs();
                    // f32 rounds the scale, its inverse and two products: each by 2^-24 of up to 127 scales.
                    assert!(
                        error <= scale * (most + 4.0 * 127.0 / f64::from(1 << 24)),
                        "{value} became {decoded}"
                    );
                    largest = largest.max(error / scale);
                }
                assert!(largest > 0.95 * most, "{largest}: it gets that large");
            }
        }
    }

    #[test]
    fn rounding_by_chance_has_the_value_for_its_mean() {
        const DRAWS: u64 = 4_000;
        let mut values = numbers(3, 192);
        values[70] = f32::MAX; // among very different sizes too
        let (mut sums, mut squares) = (vec![0.0_f64; 192], vec![0.0_f64; 192]);
        for step in 0..DRAWS {
            let decoded = round_trip(&values, Some(dither(step)));
            for (((sum, square), value), decoded) in
                sums.iter_mut().zip(&mut squares).zip(&values).zip(decoded)
            {
                let error = f64::from(decoded) - f64::from(*value);
                *sum += error;
                *square += error * error;
            }
        }
        let (mut total, mut beyond_two) = (0.0, 0);
        for (i, scale) in scales(&values).into_iter().enumerate() {
            // The variance of a value with the fraction f of a scale is f (1 - f) scales squared.
            let fraction = f64::from(values[i]) / scale;
            let variance = (fraction - fraction.floor()) * (fraction.ceil() - fraction) * scale * scale;
            // What the numbers cannot express: half a 65,536th, and f32's rounding of a whole scale.
            let error = (variance / DRAWS as f64).sqrt() + scale / 30_000.0;
            let mean = sums[i] / DRAWS as f64;
            assert!(mean.abs() < 4.5 * error, "value {i}: {mean:e} is {} standard errors", mean / error);
            beyond_two += u32::from(mean.abs() > 2.0 * error);
            assert!(
                squares[i] / DRAWS as f64 <= 1.3 * variance + scale * scale / 100.0,
                "value {i} varies more"
            );
            total += mean / error;
        }
        assert!(total.abs() < 4.5 * 192_f64.sqrt(), "all of them together: {total}");
        assert!(beyond_two < 24, "{beyond_two} of 192 are beyond two standard errors");
    }

    #[test]
    fn whole_numbers_of_scales_are_not_moved_by_chance() {
        let values: Vec<f32> = (0..64).map(|i| [127.0, -127.0, 126.0, -1.0][i % 4] * 0.25).collect();
        for step in 0..500 {
            assert_eq!(round_trip(&values, Some(dither(step))), values);
        }
    }

    #[test]
    fn the_largest_magnitude_keeps_its_sign_whatever_its_digits() {
        // 127 times a rounded scale is not always the largest magnitude: no byte may wrap around to -128.
        for seed in 0..2_000_u64 {
            let most = f32::from_bits((seed as u32).wrapping_mul(0x9e37_79b9) >> 1 & 0x7eff_ffff).max(1e-30);
            let values = [most, -most, most / 2.0];
            for dither in [None, Some(dither(seed))] {
                let bytes = encoded(&values, dither);
                // By chance, what is a rounding below 127 may now and then go to 126.
                let codes = [bytes[4] as i8, -(bytes[5] as i8)];
                assert!(codes.iter().all(|code| [126, 127].contains(code)), "{most:e} became {codes:?}");
                assert!(dither.is_some() || codes == [127; 2], "{most:e} became {codes:?}");
            }
        }
    }

    #[test]
    fn scales_end_where_they_would_not_do() {
        let scale_of = |value: f32| f32::from_le_bytes(encoded(&[value], None)[..4].try_into().unwrap());
        assert_eq!(scale_of(f32::MAX).to_bits(), SCALE_MAX.to_bits());
        assert!((127.0 * SCALE_MAX).is_finite());
        assert_eq!(127.0 * f32::from_bits(SCALE_MAX.to_bits() + 1), f32::INFINITY);
        assert_eq!(scale_of(127.0 * f32::MIN_POSITIVE), f32::MIN_POSITIVE);
        for small in [126.9 * f32::MIN_POSITIVE, f32::from_bits(1), 0.0, -0.0] {
            assert_eq!(encoded(&[small, -small], None), [0; 6], "{small:e}");
            assert_eq!(encoded(&[small, -small], Some(dither(0))), [0; 6], "{small:e}");
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(encoded(&[1.0, wrong], None), [0, 0, 0xc0, 0x7f, 0, 0]);
        }
    }

    #[test]
    fn a_scale_or_byte_that_nobody_writes_is_an_error() {
        let bytes = encoded(&numbers(1, 130), None);
        let mut out = [0.0; 130];
        for wrong in
            [-0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, -NOT_FINITE, f32::from_bits(0x7fc0_0001), f32::MAX]
        {
            let mut bytes = bytes.clone();
            bytes[8..12].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(decode(&bytes, &mut out), Err(CodecError::Scale { index: 2, bits: wrong.to_bits() }));
        }
        for index in [0, 63, 64, 129] {
            let mut bytes = bytes.clone();
            bytes[12 + index] = 0x80;
            assert_eq!(decode(&bytes, &mut out), Err(CodecError::Code { index }));
        }
        let error = decode(&bytes[1..], &mut out).unwrap_err().to_string();
        assert_eq!(error, "130 values as int8 take 142 bytes; there are 141");
    }
}
