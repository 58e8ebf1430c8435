//! Writes and reads a fixed number of bytes for each value, whatever they mean.

use super::error::CodecError;

/// Values that are encoded together before they are appended: their bytes stay in the nearest cache.
const TOGETHER: usize = 256;

/// Appends `word(value)` for each value.
pub(super) fn encode<const N: usize>(values: &[f32], out: &mut Vec<u8>, word: impl Fn(f32) -> [u8; N]) {
    out.reserve(values.len() * N);
    let mut words = [[0; N]; TOGETHER];
    for values in values.chunks(TOGETHER) {
        let words = &mut words[..values.len()];
        for (to, &value) in words.iter_mut().zip(values) {
            *to = word(value);
        }
        out.extend_from_slice(words.as_flattened());
    }
}

/// As [`encode`], and writes into `residual` what is lost of each value: the value minus what `value_of` makes of its
/// word.
pub(super) fn encode_with_residual<const N: usize>(
    values: &[f32],
    residual: &mut [f32],
    out: &mut Vec<u8>,
    word: impl Fn(f32) -> [u8; N],
    value_of: impl Fn([u8; N]) -> f32,
) {
    assert_eq!(values.len(), residual.len(), "values and their residuals");
    out.reserve(values.len() * N);
    let mut words = [[0; N]; TOGETHER];
    for (values, residual) in values.chunks(TOGETHER).zip(residual.chunks_mut(TOGETHER)) {
        let words = &mut words[..values.len()];
        for ((to, &value), residual) in words.iter_mut().zip(values).zip(residual) {
            *to = word(value);
            *residual = value - value_of(*to);
        }
        out.extend_from_slice(words.as_flattened());
    }
}

pub(super) fn check<const N: usize>(
    codec: &'static str,
    bytes: &[u8],
    values: usize,
) -> Result<(), CodecError> {
    let (found, expected) = (bytes.len(), values as u64 * N as u64);
    if found as u64 == expected { Ok(()) } else { Err(CodecError::Length { codec, values, expected, found }) }
}

/// Writes `value_of(word)` into `out` for the words from number `start`.
pub(super) fn decode<const N: usize>(
    bytes: &[u8],
    start: usize,
    out: &mut [f32],
    value_of: impl Fn([u8; N]) -> f32,
) {
    let (words, _) = bytes[start * N..].as_chunks::<N>();
    for (value, &word) in out.iter_mut().zip(words) {
        *value = value_of(word);
    }
}
