//! Writes values as they are: IEEE 754 binary32, little endian.

use super::error::CodecError;
use super::words;

/// Bytes of a value.
pub const BYTES: usize = 4;

/// Appends the values to `out`.
pub fn encode(values: &[f32], out: &mut Vec<u8>) {
    write(values, words::room(values, out));
}

/// Writes each value's bytes.
pub(super) fn write(values: &[f32], words: &mut [[u8; BYTES]]) {
    for (word, value) in words.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If their number is another one.
pub fn check(bytes: &[u8], values: usize) -> Result<(), CodecError> {
    words::check::<BYTES>("f32", bytes, values)
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
    for (value, &word) in out.iter_mut().zip(words::from::<BYTES>(bytes, start)) {
        *value = f32::from_le_bytes(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_is_kept() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 8.0, f32::INFINITY, f32::from_bits(0xffc1_2345)];
        let (mut bytes, mut decoded) = (vec![7], [1.0; 6]);
        encode(&values, &mut bytes);
        assert_eq!(bytes[..9], [7, 0, 0, 0, 0, 0, 0, 0, 0x80]);
        decode(&bytes[1..], &mut decoded).unwrap();
        assert_eq!(decoded.map(f32::to_bits), values.map(f32::to_bits));
    }
}
