//! Finds room and place for a fixed number of bytes a value, whatever they mean.

use super::error::CodecError;

/// Appends room for a word for each value.
pub(super) fn room<'a, const N: usize>(values: &[f32], out: &'a mut Vec<u8>) -> &'a mut [[u8; N]] {
    let before = out.len();
    out.resize(before + values.len() * N, 0);
    out[before..].as_chunks_mut().0
}

/// The words for so many values from number `start`, to be written.
pub(super) fn place<const N: usize>(bytes: &mut [u8], start: usize, values: usize) -> &mut [[u8; N]] {
    &mut bytes[start * N..].as_chunks_mut().0[..values]
}

pub(super) fn check<const N: usize>(
    codec: &'static str,
    bytes: &[u8],
    values: usize,
) -> Result<(), CodecError> {
    let (found, expected) = (bytes.len(), values as u64 * N as u64);
    if found as u64 == expected { Ok(()) } else { Err(CodecError::Length { codec, values, expected, found }) }
}

/// The words for so many values from number `start`.
pub(super) fn from<const N: usize>(bytes: &[u8], start: usize) -> &[[u8; N]] {
    bytes[start * N..].as_chunks().0
}
