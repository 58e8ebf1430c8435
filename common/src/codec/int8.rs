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

use super::dither::{BLOCK, Dither};
use super::error::CodecError;
use super::{NOT_FINITE, is_scale};

/// The largest scale: 127 times the next one is infinite.
const SCALE_MAX: f32 = f32::from_bits(0x7c01_0203);
/// 1.5 * 2^23: in what is added to it, the last digit stands for 1. Its last byte is 0.
const WHOLE: f32 = 12_582_912.0;

type Block = [f32; BLOCK];

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
    run(values, start, dither, out, |_, _, _, _| ());
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
    run(values, start, dither, out, |at, values, scale, codes| {
        for ((residual, &value), &code) in residual[at..].iter_mut().zip(values).zip(codes) {
            *residual = value - f32::from(code as i8) * scale;
        }
    });
}

/// `after` is given the place of a block, its values, its scale and its bytes.
fn run(
    values: &[f32],
    start: u64,
    dither: Option<Dither>,
    out: &mut Vec<u8>,
    mut after: impl FnMut(usize, &Block, f32, &[u8]),
) {
    assert!(start.is_multiple_of(BLOCK as u64), "slices start at multiples of {BLOCK}");
    out.reserve(bytes(values.len() as u64) as usize);
    let mut scale_at = out.len();
    out.resize(scale_at + 4 * values.len().div_ceil(BLOCK), 0);
    let mut number = start / BLOCK as u64;
    let mut one = |at: usize, block: &Block, len: usize| {
        let scale = scale(block);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let codes = match (scale.is_finite(), dither) {
            (false, _) => [0; BLOCK],
            (true, None) => nearest(block, inverse),
            (true, Some(dither)) => by_chance(block, inverse, &dither.block(number)),
        };
        out[scale_at..scale_at + 4].copy_from_slice(&scale.to_le_bytes());
        out.extend_from_slice(&codes[..len]);
        after(at, block, scale, &codes[..len]);
        (scale_at, number) = (scale_at + 4, number + 1);
    };
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (i, block) in blocks.iter().enumerate() {
        one(i * BLOCK, block, BLOCK);
    }
    if !rest.is_empty() {
        let mut block = [0.0; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        one(values.len() - rest.len(), &block, rest.len());
    }
}

fn scale(block: &Block) -> f32 {
    const LANES: usize = 8;
    let (mut largest, mut wrong) = ([0_f32; LANES], [0_u32; LANES]);
    for row in block.as_chunks::<LANES>().0 {
        for ((largest, wrong), &value) in largest.iter_mut().zip(&mut wrong).zip(row) {
            let magnitude = value.abs();
            *largest = if magnitude > *largest { magnitude } else { *largest };
            // An infinity is the largest; a NaN is larger than nothing.
            *wrong |= u32::from(value != value);
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    if largest == f32::INFINITY || wrong != [0; LANES] {
        return NOT_FINITE;
    }
    let scale = (largest / 127.0).min(SCALE_MAX);
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

fn nearest(block: &Block, inverse: f32) -> [u8; BLOCK] {
    // |value * inverse| exceeds 127 by two roundings at most, which does not reach 128.
    block.map(|value| (value * inverse + WHOLE).to_bits() as u8)
}

/// A whole number stays what it is, since the numbers added to it are below 1/2 and the sum is exact.
fn by_chance(block: &Block, inverse: f32, dither: &Block) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for ((code, &value), &dither) in codes.iter_mut().zip(block).zip(dither) {
        let sum = value * inverse + dither;
        // Here 127 and two roundings could reach 128, which is no signed byte.
        let sum = if sum > 127.0 { 127.0 } else { sum };
        let sum = if sum < -127.0 { -127.0 } else { sum };
        *code = (sum + WHOLE).to_bits() as u8;
    }
    codes
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
    let (scales, codes) = bytes.split_at(4 * values.div_ceil(BLOCK));
    for (index, scale) in scales.as_chunks().0.iter().enumerate() {
        let scale = f32::from_le_bytes(*scale);
        if !is_scale(scale, SCALE_MAX) {
            return Err(CodecError::Scale { index, bits: scale.to_bits() });
        }
    }
    for (number, codes) in codes.chunks(BLOCK).enumerate() {
        // All of them are looked at, for a loop that may end early is not vectorised.
        if codes.iter().fold(false, |found, &code| found | (code == 0x80)) {
            let index = codes.iter().position(|&code| code == 0x80).unwrap_or_default();
            return Err(CodecError::Code { index: number * BLOCK + index });
        }
    }
    Ok(())
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

/// Writes the values from number `start`, a multiple of 64, into `out`, of bytes of `values` values that have passed
/// [`check`].
pub(super) fn part(bytes: &[u8], values: usize, start: usize, out: &mut [f32]) {
    let (scales, codes) = bytes.split_at(4 * values.div_ceil(BLOCK));
    let scales = &scales.as_chunks().0[start / BLOCK..];
    for ((out, codes), scale) in out.chunks_mut(BLOCK).zip(codes[start..].chunks(BLOCK)).zip(scales) {
        let scale = f32::from_le_bytes(*scale);
        for (value, &code) in out.iter_mut().zip(codes) {
            *value = f32::from(code as i8) * scale;
        }
    }
}
