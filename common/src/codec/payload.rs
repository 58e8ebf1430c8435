//! Lays the encoded slices of a shard end to end, as a payload holds them, and takes them apart again.
//!
//! Where the bytes of a slice do not follow from the number of its values, their number precedes them, in 8 bytes.

use std::ops::Range;

use super::{Chosen, Codec, CodecError, LeftoversMut, Rounding, bf16, f16, int8, plain, words};
use crate::placement::BLOCK;

/// Bytes that precede a slice whose length nobody could tell.
const LENGTH_BYTES: usize = size_of::<u64>();
const ALONE: &str = "a plan has no codec for values that needs more than those";

/// What a slice consists of that can be decoded a piece at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Bytes that precede those of all values.
    pub head: usize,
    /// Bytes of each value.
    pub value: usize,
}

impl Pieces {
    /// Bytes of a piece, of which each but the last is to have as many: those of whole blocks, and few enough for the nearest
    /// caches.
    pub const BYTES: usize = 32 << 10;

    /// Memory for the head and a piece, in bytes.
    pub fn memory(self) -> usize {
        self.head + Self::BYTES
    }
}

impl Codec {
    /// Whether values can be written by themselves, by [`encode_alone`](Self::encode_alone): where neither chance nor
    /// other parts of the variable have a say.
    pub fn is_for_values_alone(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 | Self::Int8 { rounding: Rounding::Nearest } => true,
            Self::Int8 { rounding: Rounding::Stochastic } | Self::TopK { .. } | Self::Sign => false,
        }
    }

    /// Writes a slice by itself, in place of what `out` holds.
    ///
    /// # Panics
    /// If this codec does not.
    pub fn encode_alone(self, values: &[f32], out: &mut Vec<u8>) {
        let bytes = self.fixed_bytes(values.len() as u64).expect(ALONE);
        out.resize(usize::try_from(bytes).expect("an encoded slice is in memory"), 0);
        self.encode_piece(values, 0, values.len(), out);
    }

    /// Writes values from number `at` on where they belong among the bytes of a slice of `of` values that is written by
    /// itself.
    ///
    /// # Panics
    /// If this codec does not write values by themselves, `at` is not a multiple of 64, or `out` is not as long as the
    /// slice's bytes.
    pub fn encode_piece(self, values: &[f32], at: usize, of: usize, out: &mut [u8]) {
        assert_eq!(Some(out.len() as u64), self.fixed_bytes(of as u64), "bytes of {of} values in {self}");
        let chosen = match self {
            Self::F32 => Chosen::F32,
            Self::Bf16 => Chosen::Bf16,
            Self::F16 => Chosen::F16,
            Self::Int8 { rounding: Rounding::Nearest } => Chosen::Int8 { dither: None },
            Self::Int8 { rounding: Rounding::Stochastic } | Self::TopK { .. } | Self::Sign => {
                unreachable!("{ALONE}")
            }
        };
        chosen.encode_piece((0, of), at, values, None, out);
    }

    /// Bytes of a payload of slices with so many values each: the fewest and the most.
    pub fn payload_bytes(self, slices: impl IntoIterator<Item = u64>) -> (u64, u64) {
        let (mut least, mut most) = (0_u64, 0_u64);
        for values in slices {
            let (shortest, longest) = match self.fixed_bytes(values) {
                Some(bytes) => (bytes, bytes),
                None => {
                    let length = LENGTH_BYTES as u64;
                    (length, length.saturating_add(self.bytes_max(values)))
                }
            };
            (least, most) = (least.saturating_add(shortest), most.saturating_add(longest));
        }
        (least, most)
    }

    /// Decodes a payload of slices with so many values each into `out`, end to end.
    ///
    /// # Errors
    /// If it is no such payload. Then some of `out` may have been written.
    ///
    /// # Panics
    /// If `out` is not as long as the slices together.
    pub fn decode_payload(
        self,
        slices: impl IntoIterator<Item = usize>,
        bytes: &[u8],
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        let mut end = 0;
        let places = slices.into_iter().map(|values| {
            end += values;
            end - values..end
        });
        self.decode_places(places, bytes, out)?;
        assert_eq!(end, out.len(), "every value has its place in a slice");
        Ok(())
    }

    /// Whether each value has bytes of its own, which are fewer than those of a float: whoever needs each value once can keep them
    /// instead, and decode a part at a time.
    pub fn is_narrow(self) -> bool {
        self != Self::F32 && self.pieces(0).is_some()
    }

    /// How a slice of so many values can be decoded a piece at a time, if it can.
    pub fn pieces(self, values: usize) -> Option<Pieces> {
        let (head, value) = match self {
            Self::F32 => (0, plain::BYTES),
            Self::Bf16 => (0, bf16::BYTES),
            Self::F16 => (0, f16::BYTES),
            Self::Int8 { .. } => (int8::scale_bytes(values), 1),
            Self::TopK { .. } | Self::Sign => return None,
        };
        Some(Pieces { head, value })
    }

    /// Decodes values from number `at` of a slice on, of which these are the bytes and `head` is what precedes all of them.
    ///
    /// # Errors
    /// If they are no such bytes. Then some of `out` may have been written.
    ///
    /// # Panics
    /// If slices in this codec have no [`pieces`](Self::pieces), or `at` is not a multiple of 64.
    pub fn decode_piece(
        self,
        head: &[u8],
        at: usize,
        bytes: &[u8],
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        assert!(at.is_multiple_of(BLOCK as usize), "pieces of a slice start at multiples of {BLOCK}");
        match self {
            Self::Int8 { .. } => int8::decode_piece(head, at, bytes, out),
            Self::F32 | Self::Bf16 | Self::F16 => self.decode(bytes, out),
            Self::TopK { .. } | Self::Sign => unreachable!("slices in {self} have no pieces"),
        }
    }

    /// Decodes a payload of slices that belong in these places of `out`.
    ///
    /// # Errors
    /// If it is no such payload. Then some of `out` may have been written.
    ///
    /// # Panics
    /// If a place is not in `out`.
    pub fn decode_places(
        self,
        places: impl IntoIterator<Item = Range<usize>>,
        mut bytes: &[u8],
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        for place in places {
            let (slice, rest) = self.first_slice(place.len(), bytes)?;
            self.decode(slice, &mut out[place])?;
            bytes = rest;
        }
        match bytes.is_empty() {
            true => Ok(()),
            false => Err(CodecError::Payload { expected: 0, found: bytes.len() }),
        }
    }

    /// The bytes of the first slice, which has so many values, and those after it.
    fn first_slice(self, values: usize, bytes: &[u8]) -> Result<(&[u8], &[u8]), CodecError> {
        let (expected, bytes) = match self.fixed_bytes(values as u64) {
            Some(expected) => (expected, bytes),
            None => {
                let short = CodecError::Payload { expected: LENGTH_BYTES as u64, found: bytes.len() };
                let (length, rest) = bytes.split_first_chunk().ok_or(short)?;
                (u64::from_le_bytes(*length), rest)
            }
        };
        let split = usize::try_from(expected).ok().and_then(|expected| bytes.split_at_checked(expected));
        split.ok_or(CodecError::Payload { expected, found: bytes.len() })
    }
}

impl Chosen {
    /// Writes values from number `at` on where they belong among the bytes of a slice of `of` values that begins at value `start` of
    /// its variable. With `left`, which codecs without bias have no use for, it keeps there what is lost of each value.
    ///
    /// # Panics
    /// If slices in this codec have no [`pieces`](Codec::pieces), `start` or `at` is not a multiple of 64, `left` is not of as many
    /// blocks as the values or nothing is to be left out, or the values have no room in `out`.
    pub fn encode_piece(
        &self,
        (start, of): (u64, usize),
        at: usize,
        values: &[f32],
        left: Option<LeftoversMut<'_>>,
        out: &mut [u8],
    ) {
        assert!(start.is_multiple_of(BLOCK), "slices start at multiples of {BLOCK}");
        assert!(at.is_multiple_of(BLOCK as usize), "parts of a slice start at multiples of {BLOCK}");
        let leaves_out = left.is_some();
        match *self {
            Self::Int8 { dither } => return int8::write(values, (start, of), at, dither, left, out),
            Self::F32 => plain::write(values, words::place(out, at, values.len())),
            Self::Bf16 => bf16::narrow_all(values, words::place(out, at, values.len())),
            Self::F16 => f16::write(values, words::place(out, at, values.len())),
            Self::TopK { .. } | Self::Sign { .. } => unreachable!("slices in this codec have no pieces"),
        }
        assert!(!leaves_out, "a codec without bias leaves nothing out for the next time");
    }

    /// Appends to a payload the slice that begins at value `start` of its variable; with `residual`, writes there each
    /// value minus what is decoded of it. `codec` is the one that this was chosen for.
    ///
    /// # Panics
    /// As [`Chosen::encode_with_residual`].
    pub fn append(
        &self,
        codec: Codec,
        (start, values): (u64, &[f32]),
        residual: Option<&mut [f32]>,
        out: &mut Vec<u8>,
    ) {
        let begins = out.len();
        let has_length = codec.fixed_bytes(values.len() as u64).is_none();
        if has_length {
            out.extend_from_slice(&[0; LENGTH_BYTES]);
        }
        match residual {
            Some(residual) => self.encode_with_residual(start, values, residual, out),
            None => self.encode(start, values, out),
        }
        if has_length {
            let length = (out.len() - begins - LENGTH_BYTES) as u64;
            out[begins..][..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scratch;
    use super::*;
    use crate::rng::Purpose;

    /// Three slices of one variable, encoded with what is left over of each value.
    fn payload(codec: Codec, values: &[f32], residual: &mut [f32]) -> Vec<u8> {
        let purpose = Purpose::PushRounding { source: 0, variable: 0, step: 0 };
        let chosen = codec.prepare(values, 1, purpose, &mut Scratch::default());
        let mut bytes = Vec::new();
        for range in [0..64, 64..320, 320..values.len()] {
            let slice = (range.start as u64, &values[range.clone()]);
            chosen.append(codec, slice, Some(&mut residual[range]), &mut bytes);
        }
        bytes
    }

    fn values() -> Vec<f32> {
        (0..400_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect()
    }

    #[test]
    fn what_is_decoded_and_what_is_left_are_what_was_encoded() {
        let values = values();
        for codec in Codec::all() {
            let mut residual = vec![f32::NAN; values.len()];
            let bytes = payload(codec, &values, &mut residual);
            let (least, most) = codec.payload_bytes([64, 256, 80]);
            assert!((least..=most).contains(&(bytes.len() as u64)), "{codec}");
            let mut decoded = vec![0.0; values.len()];
            codec.decode_payload([64, 256, 80], &bytes, &mut decoded).unwrap();
            for ((value, decoded), left) in values.iter().zip(&decoded).zip(&residual) {
                assert_eq!(value - decoded, *left, "{codec}");
            }
        }
    }

    #[test]
    fn a_slice_is_decoded_piece_by_piece_as_it_is_at_once() {
        for codec in Codec::all() {
            let values = values();
            let Some(pieces) = codec.pieces(values.len()) else { continue };
            let mut bytes = Vec::new();
            codec
                .prepare(&values, 1, Purpose::Delivery, &mut Scratch::default())
                .encode(0, &values, &mut bytes);
            let (mut expected, mut found) = (vec![0.0; 400], vec![f32::NAN; 400]);
            codec.decode(&bytes, &mut expected).unwrap();
            let (head, rest) = bytes.split_at(pieces.head);
            assert_eq!(rest.len(), 400 * pieces.value, "{codec}");
            let in_pieces = |head: &[u8], rest: &[u8], out: &mut [f32]| -> Result<(), CodecError> {
                let mut all = rest.chunks(128 * pieces.value).zip(out.chunks_mut(128)).enumerate();
                all.try_for_each(|(i, (bytes, out))| codec.decode_piece(head, 128 * i, bytes, out))
            };
            in_pieces(head, rest, &mut found).unwrap();
            assert_eq!(found, expected, "{codec}");
            let short = codec.decode_piece(head, 0, &rest[..rest.len() - 1], &mut found);
            assert!(matches!(short, Err(CodecError::Length { .. })), "{codec}: {short:?}");
            if let Codec::Int8 { .. } = codec {
                let (mut scales, mut codes) = (head.to_vec(), rest.to_vec());
                scales[4 * 5..][..4].copy_from_slice(&(-1.0_f32).to_le_bytes());
                let found_scale = in_pieces(&scales, rest, &mut found);
                assert!(matches!(found_scale, Err(CodecError::Scale { index: 5, .. })), "{found_scale:?}");
                codes[333] = 0x80;
                assert_eq!(in_pieces(head, &codes, &mut found), Err(CodecError::Code { index: 333 }));
            }
        }
    }

    #[test]
    fn pieces_of_a_slice_that_is_written_by_itself_are_the_bytes_of_the_whole() {
        let values = values();
        for codec in Codec::all().into_iter().filter(|codec| codec.is_for_values_alone()) {
            let mut expected = Vec::new();
            codec.prepare(&values, 1, Purpose::Delivery, &mut Scratch::default()).encode(
                0,
                &values,
                &mut expected,
            );
            let mut whole = vec![0xaa; 3];
            codec.encode_alone(&values, &mut whole);
            assert_eq!(whole, expected, "{codec}");
            for cuts in [&[0, 400][..], &[0, 64, 400], &[0, 128, 320, 384, 400]] {
                let mut bytes = vec![0xaa; expected.len()];
                for piece in cuts.windows(2) {
                    codec.encode_piece(&values[piece[0]..piece[1]], piece[0], values.len(), &mut bytes);
                }
                assert_eq!(bytes, expected, "{codec} cut at {cuts:?}");
            }
        }
    }

    #[test]
    fn slices_in_another_order_are_decoded_into_their_places() {
        let values = values();
        for codec in Codec::all() {
            let purpose = Purpose::PushRounding { source: 0, variable: 0, step: 0 };
            let chosen = codec.prepare(&values, 1, purpose, &mut Scratch::default());
            let (ranges, mut bytes) = ([320..400, 0..64, 64..320], Vec::new());
            for range in ranges.clone() {
                chosen.append(codec, (range.start as u64, &values[range]), None, &mut bytes);
            }
            let mut expected = vec![0.0; values.len()];
            let in_order = payload(codec, &values, &mut vec![0.0; values.len()]);
            codec.decode_payload([64, 256, 80], &in_order, &mut expected).unwrap();
            let mut decoded = vec![f32::NAN; values.len()];
            codec.decode_places(ranges, &bytes, &mut decoded).unwrap();
            assert_eq!(decoded, expected, "{codec}");
        }
    }

    #[test]
    fn a_payload_that_is_too_short_or_too_long_is_refused() {
        let values = values();
        for codec in Codec::all() {
            let mut bytes = payload(codec, &values, &mut vec![0.0; values.len()]);
            let mut decoded = vec![0.0; values.len()];
            bytes.push(0);
            assert!(codec.decode_payload([64, 256, 80], &bytes, &mut decoded).is_err(), "{codec}");
            for length in 0..bytes.len() - 1 {
                let short = codec.decode_payload([64, 256, 80], &bytes[..length], &mut decoded);
                assert!(short.is_err(), "{codec} takes {length} bytes");
            }
        }
    }
}
