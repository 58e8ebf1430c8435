//! Says what a push brings: floats, or what they are decoded from when they are needed.

use std::fmt;
use std::ops::Range;

use windlass_common::codec::CodecError;
use windlass_common::wire::Codec;

/// A value for each of a shard, its slices end to end.
pub trait Pushed: Clone {
    /// All of them.
    fn floats(&self) -> &[f32];

    /// How many they are.
    fn count(&self) -> usize {
        self.floats().len()
    }

    /// What they are made from, if they are not floats yet. Whoever needs each of them once can do without the floats.
    fn source(&self) -> Option<&dyn Source> {
        None
    }
}

impl<T: AsRef<[f32]> + Clone> Pushed for T {
    fn floats(&self) -> &[f32] {
        self.as_ref()
    }
}

/// Values of a shard that are made when they are needed.
pub trait Source: fmt::Debug + Sync {
    /// Writes these of them, which are of one slice and begin at a multiple of 64 values in it, into a block that is as long.
    fn write(&self, of_shard: Range<usize>, block: &mut [f32]);
}

/// The slices of a push as they were written.
pub struct Undecoded<M> {
    codec: Codec,
    bytes: M,
    /// Where each slice lies in the shard, in order, and where its bytes are.
    slices: Vec<(Range<usize>, Range<usize>)>,
}

impl<M: AsRef<[u8]>> Undecoded<M> {
    /// The bytes of slices that belong in these places, one after the other.
    ///
    /// # Errors
    /// If they are no such bytes.
    ///
    /// # Panics
    /// If slices in this codec have no [`pieces`](Codec::pieces).
    pub fn new(codec: Codec, places: Vec<Range<usize>>, bytes: M) -> Result<Self, CodecError> {
        let (all, mut end) = (bytes.as_ref(), 0);
        let mut slices = Vec::with_capacity(places.len());
        for place in places {
            assert!(codec.pieces(place.len()).is_some(), "{codec} is decoded piece by piece");
            let expected = codec.fixed_bytes(place.len() as u64).expect("pieces have a known length");
            let begins = end;
            end += usize::try_from(expected).expect("an encoded slice is in memory");
            let slice = all.get(begins..end);
            let short = CodecError::Payload { expected, found: all.len().saturating_sub(begins) };
            codec.check(slice.ok_or(short)?, place.len())?;
            slices.push((place, begins..end));
        }
        if end != all.len() {
            return Err(CodecError::Payload { expected: end as u64, found: all.len() });
        }
        slices.sort_unstable_by_key(|(place, _)| place.start);
        Ok(Self { codec, bytes, slices })
    }

    /// How many values they are.
    pub fn values(&self) -> usize {
        self.slices.iter().map(|(place, _)| place.len()).sum()
    }

    /// What they are decoded from.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Decodes all of them.
    ///
    /// # Panics
    /// If a place is not in `floats`.
    pub fn decode(&self, floats: &mut [f32]) {
        for (place, bytes) in &self.slices {
            let bytes = &self.bytes()[bytes.clone()];
            self.codec.decode_part(bytes, place.len(), 0, &mut floats[place.clone()]);
        }
    }
}

impl<M: AsRef<[u8]> + Sync> Source for Undecoded<M> {
    fn write(&self, of_shard: Range<usize>, block: &mut [f32]) {
        let after = self.slices.partition_point(|(place, _)| place.start <= of_shard.start);
        let (place, bytes) = &self.slices[after - 1];
        let bytes = &self.bytes()[bytes.clone()];
        self.codec.decode_part(bytes, place.len(), of_shard.start - place.start, block);
    }
}

impl<M> fmt::Debug for Undecoded<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Undecoded({} slices in {})", self.slices.len(), self.codec)
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::codec::Scratch;
    use windlass_common::rng::Purpose;

    use super::*;

    const PLACES: [Range<usize>; 3] = [1100..1164, 0..1000, 1000..1100];

    /// The bytes of slices in these places, and the values that they are decoded to, in the order of the shard.
    fn written(codec: Codec) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut values) = (Vec::new(), vec![f32::NAN; 1164]);
        for place in PLACES {
            let floats: Vec<f32> = place.clone().map(|i| (i as f32).sin()).collect();
            let purpose = Purpose::PushRounding { source: 0, variable: 0, step: 0 };
            let chosen = codec.prepare(&floats, 1, purpose, &mut Scratch::default());
            let begins = bytes.len();
            chosen.append(codec, (0, &floats), None, &mut bytes);
            codec.decode_payload([floats.len()], &bytes[begins..], &mut values[place]).unwrap();
        }
        (bytes, values)
    }

    const CODECS: [&str; 5] = ["f32", "bf16", "f16", "int8", "int8-stochastic"];

    #[test]
    fn every_block_is_what_the_payload_is_decoded_to() {
        for codec in CODECS {
            let codec = codec.parse().unwrap();
            let (bytes, expected) = written(codec);
            let undecoded = Undecoded::new(codec, PLACES.to_vec(), &bytes).unwrap();
            assert_eq!((undecoded.values(), undecoded.bytes()), (1164, &bytes[..]));
            let mut all = vec![f32::NAN; 1164];
            undecoded.decode(&mut all);
            assert_eq!(all, expected, "{codec}");
            for place in PLACES {
                for from in place.clone().step_by(64) {
                    for until in [from + 1, from + 64, place.end].into_iter().filter(|&end| end <= place.end)
                    {
                        let mut block = vec![f32::NAN; until - from];
                        undecoded.write(from..until, &mut block);
                        assert_eq!(block, expected[from..until], "{codec}, {from} to {until}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_refused_at_once() {
        for codec in CODECS {
            let codec = codec.parse().unwrap();
            let (mut bytes, _) = written(codec);
            let refused = |bytes: &[u8]| Undecoded::new(codec, PLACES.to_vec(), bytes).is_err();
            for len in [0, 1, bytes.len() - 1] {
                assert!(refused(&bytes[..len]), "{codec}, {len} bytes");
            }
            bytes.push(0);
            assert!(refused(&bytes), "{codec}, one byte too many");
        }
        let int8 = "int8".parse().unwrap();
        for (at, byte) in [(3, 0xff), (4, 0x80), (4 + 64 + 4 * 16, 0x80)] {
            let (mut bytes, _) = written(int8);
            bytes[at] = byte;
            assert!(Undecoded::new(int8, PLACES.to_vec(), bytes).is_err(), "byte {at} is {byte}");
        }
    }
}
