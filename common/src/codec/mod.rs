//! Encodes values for the wire, one slice of a variable at a time, and decodes them.
//!
//! | codec | bytes of n values | what is decoded |
//! |---|---|---|
//! | f32 | 4 n | the values |
//! | bf16, f16 | 2 n | the nearest that has so few digits |
//! | int8 | n + 4 ceil(n / 64) | within half a scale, 1/254 of the largest magnitude in the block of 64 |
//! | int8-stochastic | the same | within a scale, in the mean the value |
//! | topk:p | about p n (4 + log2(e / p) / 8) | the p n values of largest magnitude in the variable; 0 for the others |
//! | sign | ceil(n / 8) + 4 | the mean magnitude of the variable, with the value's sign |
//!
//! Slices begin at multiples of 64 values, where blocks do too, and whatever depends on more than a block is chosen for
//! a whole variable beforehand ([`Codec::prepare`]). So what is decoded does not depend on how a variable was cut, bit
//! for bit. Everything is little endian and is computed with `+ - * /` in a fixed order, without fused multiply-add; no
//! loop depends on the width of the machine's vectors.
//!
//! ```text
//! let chosen = codec.prepare(variable, seed, purpose, &mut scratch);
//! for slice in slices {
//!     chosen.encode_with_residual(slice.start, &variable[slice], &mut residual[slice], &mut payload);
//! }
//! ```
//!
//! Values on their way down have a sparse codec of another kind, which refers to what was sent before ([`patch`]).
//!
//! Error feedback (Karimireddy et al. 2019): p = g + e is encoded in place of g, and e = p - C(p) is kept, which is the
//! `residual` above. Codecs that are biased need it.
//!
//! A value that is not finite is never hidden: what is decoded of its block (int8) or its variable (sign) is NaN, and
//! the other codecs send it as it is.

pub mod bf16;
mod dither;
mod error;
pub mod f16;
pub mod int8;
mod kind;
pub mod leftovers;
pub mod patch;
mod payload;
pub mod plain;
mod rice;
mod select;
pub mod sign;
pub mod top_k;
mod words;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod feedback;

pub use dither::Dither;
pub use error::CodecError;
pub use kind::{Codec, Rounding, Share, UnknownCodec};
pub use leftovers::{Leftovers, LeftoversMut};
pub use patch::Patch;
pub use payload::Pieces;
pub use select::{Kept, select};

use crate::bits::packed;
use crate::placement::BLOCK;
use crate::rng::Purpose;

/// Stands in the place of a scale where a value was not finite: the one NaN that decoders take there.
pub const NOT_FINITE: f32 = f32::from_bits(0x7fc0_0000);

/// Values that [`Codec::decode_blocks`] hands out at once.
pub const DECODED_TOGETHER: usize = 512;

/// Memory for [`Codec::prepare`], to be used again.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    magnitudes: Vec<u32>,
}

/// All that has to be known of a variable in order to encode slices of it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is the codec of that name")]
pub enum Chosen {
    F32,
    Bf16,
    F16,
    Int8 {
        /// The random numbers; `None` for rounding to nearest.
        dither: Option<Dither>,
    },
    TopK {
        /// The values that are kept.
        kept: Kept,
        /// The share of them, which the indices' code follows from.
        share: Share,
    },
    Sign {
        /// The mean magnitude.
        scale: f32,
    },
}

impl Codec {
    /// Chooses what has to be known of a variable in order to encode slices of it.
    ///
    /// `seed` and `purpose` are what random numbers are keyed by, if any are needed; the purpose should name the variable.
    /// An elementwise codec ([`Codec::is_elementwise`]) does not look at the values, so that any part of them will do.
    /// Nothing is allocated for a variable that is no larger than those for which `scratch` was used before.
    pub fn prepare(self, variable: &[f32], seed: u64, purpose: Purpose<'_>, scratch: &mut Scratch) -> Chosen {
        match self {
            Self::F32 => Chosen::F32,
            Self::Bf16 => Chosen::Bf16,
            Self::F16 => Chosen::F16,
            Self::Int8 { rounding: Rounding::Nearest } => Chosen::Int8 { dither: None },
            Self::Int8 { rounding: Rounding::Stochastic } => {
                Chosen::Int8 { dither: Some(Dither::new(seed, purpose)) }
            }
            Self::TopK { share } => Chosen::TopK { kept: select(variable, share, scratch), share },
            Self::Sign => Chosen::Sign { scale: sign::scale(variable) },
        }
    }

    /// Bytes of so many values, where that follows from their number.
    pub fn fixed_bytes(self, values: u64) -> Option<u64> {
        match self {
            Self::F32 => Some(values.saturating_mul(4)),
            Self::Bf16 | Self::F16 => Some(values.saturating_mul(2)),
            Self::Int8 { .. } => Some(int8::bytes(values)),
            Self::TopK { .. } => None,
            Self::Sign => Some(sign::bytes(values)),
        }
    }

    /// Most bytes of one slice of so many values.
    pub fn bytes_max(self, values: u64) -> u64 {
        self.fixed_bytes(values).unwrap_or_else(|| top_k::bytes_max(values))
    }

    /// Whether `bytes` are an encoding of so many values: whether they can be decoded.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn check(self, bytes: &[u8], values: usize) -> Result<(), CodecError> {
        match self {
            Self::F32 => plain::check(bytes, values),
            Self::Bf16 => bf16::check(bytes, values),
            Self::F16 => f16::check(bytes, values),
            Self::Int8 { .. } => int8::check(bytes, values),
            Self::TopK { share } => top_k::check(bytes, values, share),
            Self::Sign => sign::check(bytes, values),
        }
    }

    /// Decodes a slice into `out`.
    ///
    /// # Errors
    /// If `bytes` are no encoding of as many values. Then `out` is as it was.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
        match self {
            Self::F32 => plain::decode(bytes, out),
            Self::Bf16 => bf16::decode(bytes, out),
            Self::F16 => f16::decode(bytes, out),
            Self::Int8 { .. } => int8::decode(bytes, out),
            Self::TopK { share } => top_k::decode(bytes, share, out),
            Self::Sign => sign::decode(bytes, out),
        }
    }

    /// Decodes a slice of so many values and hands them out in order, [`DECODED_TOGETHER`] at once (the last ones may be
    /// fewer), each time with the index of the first. So they can be added to something without another pass over memory.
    ///
    /// # Errors
    /// If `bytes` are no encoding of as many values. Then nothing has been handed out.
    pub fn decode_blocks(
        self,
        bytes: &[u8],
        values: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), CodecError> {
        self.check(bytes, values)?;
        let mut cursor = match self {
            Self::TopK { share } => top_k::Cursor::new(bytes, values, share),
            _ => None,
        };
        let mut block = [0.0; DECODED_TOGETHER];
        for start in (0..values).step_by(DECODED_TOGETHER) {
            let block = &mut block[..(values - start).min(DECODED_TOGETHER)];
            match self {
                Self::TopK { .. } => cursor.iter_mut().for_each(|cursor| cursor.fill(block)),
                _ => self.decode_part(bytes, values, start, block),
            }
            each(start, block);
        }
        Ok(())
    }

    /// Decodes values from number `start` of a slice of so many into `out`, of bytes that have passed [`check`](Self::check).
    ///
    /// # Panics
    /// If this codec does not have a place for each value (top-k), `start` is not a multiple of 64, or there are not as many
    /// values.
    pub fn decode_part(self, bytes: &[u8], values: usize, start: usize, out: &mut [f32]) {
        assert!(start.is_multiple_of(BLOCK as usize), "parts of a slice start at multiples of {BLOCK}");
        assert!(start + out.len() <= values, "a part of {values} values");
        match self {
            Self::F32 => plain::part(bytes, start, out),
            Self::Bf16 => bf16::part(bytes, start, out),
            Self::F16 => f16::part(bytes, start, out),
            Self::Int8 { .. } => int8::part(bytes, values, start, out),
            Self::Sign => sign::part(bytes, start, out),
            Self::TopK { .. } => unreachable!("values in {self} have no places of their own"),
        }
    }

    /// Decodes a slice and adds it to `sum`, value by value.
    ///
    /// # Errors
    /// If `bytes` are no encoding of as many values. Then `sum` is as it was.
    pub fn decode_add(self, bytes: &[u8], sum: &mut [f32]) -> Result<(), CodecError> {
        self.decode_blocks(bytes, sum.len(), |start, values| {
            for (sum, value) in sum[start..].iter_mut().zip(values) {
                *sum += value;
            }
        })
    }
}

impl Chosen {
    /// Appends the encoding of the slice that begins at value `start` of its variable.
    ///
    /// # Panics
    /// If `start` is not a multiple of 64.
    pub fn encode(&self, start: u64, values: &[f32], out: &mut Vec<u8>) {
        assert!(start.is_multiple_of(BLOCK), "slices start at multiples of {BLOCK}");
        match *self {
            Self::F32 => plain::encode(values, out),
            Self::Bf16 => bf16::encode(values, out),
            Self::F16 => f16::encode(values, out),
            Self::Int8 { dither } => int8::encode(values, start, dither, out),
            Self::TopK { kept, share } => top_k::encode(values, start, kept, share, out),
            Self::Sign { scale } => sign::encode(values, scale, out),
        }
    }

    /// As [`encode`](Self::encode), and writes into `residual` each value minus what is decoded of it.
    ///
    /// # Panics
    /// As [`encode`](Self::encode), and if `residual` is not as long as `values`.
    pub fn encode_with_residual(&self, start: u64, values: &[f32], residual: &mut [f32], out: &mut Vec<u8>) {
        assert!(start.is_multiple_of(BLOCK), "slices start at multiples of {BLOCK}");
        assert_eq!(values.len(), residual.len(), "values and their residuals");
        match *self {
            Self::F32 => {
                plain::encode(values, out);
                residual.fill(0.0);
            }
            Self::Bf16 => bf16::encode_with_residual(values, residual, out),
            Self::F16 => f16::encode_with_residual(values, residual, out),
            Self::Int8 { dither } => int8::encode_with_residual(values, start, dither, residual, out),
            Self::TopK { kept, share } => {
                top_k::encode_with_residual(values, start, kept, share, residual, out);
            }
            Self::Sign { scale } => sign::encode_with_residual(values, scale, residual, out),
        }
    }
}

/// Whether this can be a scale: a number from 0 to `most`, or [`NOT_FINITE`].
fn is_scale(scale: f32, most: f32) -> bool {
    // The bits of positive numbers are in the order of the numbers, and those of negative ones are above all of them.
    scale.to_bits() <= most.to_bits() || scale.to_bits() == NOT_FINITE.to_bits()
}

/// A bit for each value, the first lowest: whether `is` says yes.
#[inline]
fn mask<T: Copy>(group: &[T; 64], is: impl Fn(T) -> bool) -> u64 {
    packed(&group.map(|value| u8::from(is(value))))
}
