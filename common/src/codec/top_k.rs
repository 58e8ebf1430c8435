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
