//! Keeps the values of largest magnitude of each variable, exactly, and leaves out the others.
//!
//! Which ones are kept is chosen for a whole variable, in `select.rs`, so that the kept values do not depend on how it is
//! cut. It is of use with error feedback only (Stich et al. 2018, "Sparsified SGD with Memory").
//!
//! ```text
//! 0, the number of values kept as u64, their gaps in Golomb-Rice code, then the values kept as f32     (sparse)
//! 1, all values as f32, of which those that are not kept are 0                                         (dense)
//! ```
//!
//! A gap is the number of values left out before one that is kept, since the one before or the beginning of the slice; so
//! no bytes stand for an index twice. The code's parameter follows from the share (`rice.rs`). A slice is written
//! densely where that takes no more bytes.

use super::error::CodecError;
use super::kind::Share;
use super::rice::{self, Reader, Writer};
use super::select::Kept;

const SPARSE: u8 = 0;
const DENSE: u8 = 1;
/// Bytes before the gaps.
const HEAD: usize = 9;

/// Most bytes of so many values.
pub fn bytes_max(values: u64) -> u64 {
    values.saturating_mul(4).saturating_add(1)
}

/// Appends the encoding of the slice that begins at value `start` of its variable.
pub fn encode(values: &[f32], start: u64, kept: Kept, share: Share, out: &mut Vec<u8>) {
    let begin = out.len();
    out.push(SPARSE);
    out.extend_from_slice(&[0; HEAD - 1]);
    let mut gaps = Writer::new(out, rice::parameter(share.in_millionths()));
    let (mut count, mut next) = (0_u64, 0);
    kept.each(values, start, |index| {
        gaps.number((index - next) as u64);
        (count, next) = (count + 1, index + 1);
    });
    gaps.finish();
    let sparse = (out.len() - begin) as u64 + 4 * count;
    if sparse < bytes_max(values.len() as u64) {
        out[begin + 1..begin + HEAD].copy_from_slice(&count.to_le_bytes());
        out.reserve(4 * count as usize);
        kept.each(values, start, |index| out.extend_from_slice(&values[index].to_le_bytes()));
    } else {
        out.truncate(begin);
        out.push(DENSE);
        let first = out.len();
        out.resize(first + 4 * values.len(), 0);
        let words = out[first..].as_chunks_mut().0;
        kept.each(values, start, |index| words[index] = values[index].to_le_bytes());
    }
}

/// As [`encode`], and writes into `residual` the values that are not kept, and 0 in the places of the others.
///
/// # Panics
/// If `residual` is not as long as `values`.
pub fn encode_with_residual(
    values: &[f32],
    start: u64,
    kept: Kept,
    share: Share,
    residual: &mut [f32],
    out: &mut Vec<u8>,
) {
    encode(values, start, kept, share, out);
    residual.copy_from_slice(values);
    kept.each(values, start, |index| residual[index] = 0.0);
}

/// The parts of a slice's bytes.
enum Parts<'a> {
    Sparse { gaps: &'a [u8], values: &'a [[u8; 4]] },
    Dense { values: &'a [[u8; 4]] },
}

fn parts(bytes: &[u8], values: usize) -> Result<Parts<'_>, CodecError> {
    let length = |expected| CodecError::Length { codec: "topk", values, expected, found: bytes.len() };
    let (form, rest) = bytes.split_first().ok_or(length(HEAD as u64))?;
    match *form {
        DENSE if rest.len() as u64 == 4 * values as u64 => Ok(Parts::Dense { values: rest.as_chunks().0 }),
        DENSE => Err(length(bytes_max(values as u64))),
        SPARSE => {
            let (count, rest) = rest.split_first_chunk().ok_or(length(HEAD as u64))?;
            let count = u64::from_le_bytes(*count);
            if count > values as u64 {
                return Err(CodecError::Count { found: count, values });
            }
            // There is room: count is at most the length of a slice of f32.
            let middle = rest.len().checked_sub(4 * count as usize);
            let (gaps, values) = rest.split_at(middle.ok_or(length(HEAD as u64 + 4 * count))?);
            Ok(Parts::Sparse { gaps, values: values.as_chunks().0 })
        }
        found => Err(CodecError::Form { found }),
    }
}

/// Whether `bytes` are an encoding of so many values.
///
/// # Errors
/// If they are too few or too many, an index is out of range, or the form or what fills the last byte of the gaps is
/// none that [`encode`] writes.
pub fn check(bytes: &[u8], values: usize, share: Share) -> Result<(), CodecError> {
    let Parts::Sparse { gaps, values: kept } = parts(bytes, values)? else { return Ok(()) };
    let mut gaps = Reader::new(gaps, rice::parameter(share.in_millionths()));
    let (mut next, count) = (0_u64, kept.len() as u64);
    for number in 0..count {
        let gap = gaps.number().ok_or(CodecError::Short { number, count })?;
        next = next
            .checked_add(gap)
            .filter(|&index| index < values as u64)
            .ok_or(CodecError::Index { number, values })?
            + 1;
    }
    match gaps.rest() {
        (0, []) => Ok(()),
        (0, rest) => Err(CodecError::Trailing { found: rest.len() }),
        _ => Err(CodecError::Padding),
    }
}

/// Writes all values into `out`.
///
/// # Errors
/// As [`check`]; then `out` is as it was.
pub fn decode(bytes: &[u8], share: Share, out: &mut [f32]) -> Result<(), CodecError> {
    check(bytes, out.len(), share)?;
    if let Some(mut cursor) = Cursor::new(bytes, out.len(), share) {
        cursor.fill(out);
    }
    Ok(())
}

/// Goes through the values of a slice from the first to the last.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    /// `None` where the slice is dense.
    gaps: Option<Reader<'a>>,
    values: &'a [[u8; 4]],
    /// Values left out before the next that is kept; `None` after the last.
    gap: Option<u64>,
}

impl<'a> Cursor<'a> {
    /// At the beginning, if the bytes have passed [`check`].
    pub(super) fn new(bytes: &'a [u8], values: usize, share: Share) -> Option<Self> {
        Some(match parts(bytes, values).ok()? {
            Parts::Dense { values } => Self { gaps: None, values, gap: None },
            Parts::Sparse { gaps, values } => {
                let mut gaps = Reader::new(gaps, rice::parameter(share.in_millionths()));
                let gap = if values.is_empty() { None } else { gaps.number() };
                Self { gaps: Some(gaps), values, gap }
            }
        })
    }

    /// Writes the next values.
    pub(super) fn fill(&mut self, out: &mut [f32]) {
        let Some(gaps) = &mut self.gaps else {
            let (now, rest) = self.values.split_at(out.len());
            out.iter_mut().zip(now).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
            self.values = rest;
            return;
        };
        out.fill(0.0);
        let mut at = 0;
        while let (Some(gap), Some((word, rest))) = (self.gap, self.values.split_first()) {
            let left = (out.len() - at) as u64;
            if gap >= left {
                self.gap = Some(gap - left);
                return;
            }
            at += gap as usize;
            out[at] = f32::from_le_bytes(*word);
            at += 1;
            self.values = rest;
            self.gap = if rest.is_empty() { None } else { gaps.number() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::bits;
    use super::super::{Scratch, select};
    use super::*;
    use crate::rng::{self, Purpose};

    fn share(millionths: u32) -> Share {
        Share::millionths(millionths).unwrap()
    }

    fn encoded(values: &[f32], share: Share) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(values, 0, select(values, share, &mut Scratch::default()), share, &mut bytes);
        bytes
    }

    /// A slice with these gaps and values, written by hand at 10 %, whose code has three bits and ones.
    fn by_hand(count: u64, gaps: &[u8], values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![SPARSE];
        bytes.extend(count.to_le_bytes());
        bytes.extend(gaps);
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes
    }

    #[test]
    fn a_slice_by_hand() {
        let mut values = vec![1.0; 20];
        (values[3], values[13]) = (-5.0, 7.0);
        let mut decoded = vec![f32::NAN; 20];
        // The gaps are 3, and 9 = 8 + 1; from the lowest bit 0 110, then 10 100.
        let bytes = by_hand(2, &[0b0101_0110, 0b0], &[-5.0, 7.0]);
        assert_eq!(encoded(&values, share(100_000)), bytes);
        decode(&bytes, share(100_000), &mut decoded).unwrap();
        let expected: Vec<f32> = values.iter().map(|&value| if value == 1.0 { 0.0 } else { value }).collect();
        assert_eq!(bits(&decoded), bits(&expected));
    }

    #[test]
    fn an_index_costs_little_more_than_its_information() {
        for (millionths, len) in [(1_000, 4_000_000), (10_000, 1_000_000), (100_000, 1_000_000)] {
            // Independent values, so that any set of positions is as probable as any other.
            let mut values = vec![0.0; len];
            rng::normal(1, Purpose::InitialValues("indices"), 0, 1.0, &mut values);
            let (bytes, share) = (encoded(&values, share(millionths)), share(millionths));
            let count = share.of(len as u64) as f64;
            let cost = (bytes.len() as f64 - 4.0 * count) * 8.0 / count;
            let information = (std::f64::consts::E * len as f64 / count).log2();
            assert_eq!(bytes[0], SPARSE);
            assert!(
                cost < 1.1 * information,
                "{millionths} millionths: {cost} bits, information {information}"
            );
            assert!(cost > 0.95 * information, "less than it can be: {cost} bits, information {information}");
        }
    }

    #[test]
    fn a_slice_is_dense_where_that_is_shorter() {
        let values: Vec<f32> = (0..1_000).map(|i| i as f32 - 500.5).collect();
        for (millionths, form) in [(500_000, SPARSE), (900_000, SPARSE), (990_000, DENSE), (1_000_000, DENSE)]
        {
            let bytes = encoded(&values, share(millionths));
            assert_eq!(bytes[0], form, "{millionths} millionths");
            assert!(bytes.len() as u64 <= bytes_max(1_000));
        }
        // All that is kept of the variable may be in one slice.
        let mut variable = vec![0.1; 64_000];
        variable[640..704].fill(2.0);
        let kept = select(&variable, share(1_000), &mut Scratch::default());
        let (mut bytes, mut residual) = (Vec::new(), vec![f32::NAN; 64]);
        encode_with_residual(&variable[640..704], 640, kept, share(1_000), &mut residual, &mut bytes);
        assert_eq!((bytes[0], bytes.len()), (DENSE, 257));
        assert_eq!(residual, [0.0; 64]);
        bytes.clear();
        encode(&variable[..640], 0, kept, share(1_000), &mut bytes);
        assert_eq!(bytes, by_hand(0, &[], &[]));
    }

    #[test]
    fn what_nobody_writes_is_an_error() {
        let error = |bytes: &[u8], values: usize| {
            let mut out = vec![1.0; values];
            let error = decode(bytes, share(100_000), &mut out).unwrap_err();
            assert_eq!(out, vec![1.0; values]);
            error
        };
        let (gaps, kept) = ([0b0101_0110, 0b0], [-5.0, 7.0]);
        let right = by_hand(2, &gaps, &kept);
        assert_eq!(check(&right, 20, share(100_000)), Ok(()));
        assert_eq!(check(&right, 14, share(100_000)), Ok(()));
        assert_eq!(error(&right, 13), CodecError::Index { number: 1, values: 13 });
        assert_eq!(error(&right, 3), CodecError::Index { number: 0, values: 3 });
        assert_eq!(error(&right, 1), CodecError::Count { found: 2, values: 1 });
        assert_eq!(
            error(&by_hand(u64::MAX, &gaps, &kept), 20),
            CodecError::Count { found: u64::MAX, values: 20 }
        );
        assert_eq!(error(&by_hand(2, &gaps[..1], &kept), 20), CodecError::Short { number: 1, count: 2 });
        assert_eq!(error(&by_hand(2, &[], &kept), 20), CodecError::Short { number: 0, count: 2 });
        assert_eq!(error(&by_hand(2, &[0b0101_0110, 0b100], &kept), 20), CodecError::Padding);
        assert_eq!(error(&by_hand(2, &[0b0101_0110, 0, 0], &kept), 20), CodecError::Trailing { found: 1 });
        assert_eq!(error(&by_hand(0, &[0], &[]), 20), CodecError::Trailing { found: 1 });
        assert_eq!(error(&by_hand(1, &[0xff; 40], &[1.0]), 200), CodecError::Short { number: 0, count: 1 });
        // A gap of 8 * 320 is beyond any slice of 200.
        let far: Vec<u8> = [[0xff; 40].as_slice(), &[0]].concat();
        assert_eq!(error(&by_hand(1, &far, &[1.0]), 200), CodecError::Index { number: 0, values: 200 });
        for form in 2..=u8::MAX {
            let mut bytes = right.clone();
            bytes[0] = form;
            assert_eq!(error(&bytes, 20), CodecError::Form { found: form });
        }
        assert!(matches!(error(&[], 20), CodecError::Length { expected: 9, found: 0, .. }));
        assert!(matches!(error(&[DENSE; 80], 20), CodecError::Length { expected: 81, found: 80, .. }));
        assert!(matches!(
            error(&by_hand(3, &[], &kept), 20),
            CodecError::Length { expected: 21, found: 17, .. }
        ));
    }

    #[test]
    fn a_share_of_another_plan_does_no_harm() {
        let values: Vec<f32> = (0..3_000).map(|i| (i * 7_919 % 3_001) as f32).collect();
        let bytes = encoded(&values, share(10_000));
        for millionths in [1, 100, 9_000, 20_000, 500_000, 1_000_000] {
            let _ = decode(&bytes, share(millionths), &mut vec![0.0; 3_000]);
        }
    }
}
