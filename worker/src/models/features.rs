//! Holds what examples look like: floats, or bytes that are pixels.

use std::ops::Range;

use multiversion::multiversion;
use ndarray::{ArrayView1, ArrayView2, s};

/// The features of some examples, one example per row: [examples, features].
#[derive(Clone, Copy, Debug)]
pub enum Features<'a> {
    /// Values that mean themselves.
    Floats(ArrayView2<'a, f32>),
    /// Pixels, which mean value / 255.
    Bytes(ArrayView2<'a, u8>),
}

impl Features<'_> {
    /// Number of examples.
    pub fn examples(&self) -> usize {
        match self {
            Self::Floats(values) => values.nrows(),
            Self::Bytes(values) => values.nrows(),
        }
    }

    /// Values of one example.
    pub fn of_each(&self) -> usize {
        match self {
            Self::Floats(values) => values.ncols(),
            Self::Bytes(values) => values.ncols(),
        }
    }

    /// The examples number `range`.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Floats(values) => Self::Floats(values.slice_move(s![range, ..])),
            Self::Bytes(values) => Self::Bytes(values.slice_move(s![range, ..])),
        }
    }

    /// All of them as floats, in `memory` if they are bytes.
    pub fn floats<'b>(&'b self, memory: &'b mut Vec<f32>) -> ArrayView2<'b, f32> {
        match self {
            Self::Floats(values) => values.reborrow(),
            Self::Bytes(values) => {
                memory.resize(values.len(), 0.0);
                for (example, to) in memory.chunks_exact_mut(self.of_each().max(1)).enumerate() {
                    self.write(example, [to]);
                }
                ArrayView2::from_shape(values.dim(), memory).expect("there is room for each")
            }
        }
    }

    /// Writes the features of one example as floats, some to each of these rows until there are no more.
    ///
    /// # Panics
    /// If there is no such example.
    pub fn write<'b>(&self, example: usize, rows: impl IntoIterator<Item = &'b mut [f32]>) {
        match self {
            Self::Floats(values) => write(values.row(example), rows, <[f32]>::copy_from_slice),
            Self::Bytes(values) => write(values.row(example), rows, |to, bytes| scale(bytes, to)),
        }
    }
}

fn write<'b, T: Feature>(
    features: ArrayView1<'_, T>,
    rows: impl IntoIterator<Item = &'b mut [f32]>,
    write: impl Fn(&mut [f32], &[T]),
) {
    let (mut start, mut rows) = (0, rows.into_iter());
    while start < features.len() {
        let Some(to) = rows.next() else { return };
        let some = features.slice(s![start..features.len().min(start + to.len())]);
        match some.to_slice() {
            Some(values) => write(&mut to[..values.len()], values),
            None => to.iter_mut().zip(some).for_each(|(to, &feature)| *to = feature.value()),
        }
        start += some.len();
    }
}

/// One of them.
pub(super) trait Feature: Copy {
    /// What is not a number counts; 0 has two signs.
    fn is_not_0(self) -> bool;

    fn value(self) -> f32;
}

impl Feature for f32 {
    #[inline(always)]
    fn is_not_0(self) -> bool {
        self.to_bits() << 1 != 0
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Feature for u8 {
    #[inline(always)]
    fn is_not_0(self) -> bool {
        self != 0
    }

    #[inline(always)]
    fn value(self) -> f32 {
        let byte = f32::from(self);
        byte * HIGH + byte * LOW
    }
}

/// byte / 255, to the bit, in two products and a sum: [`HIGH`] times a byte is exact, and what [`LOW`] adds to it is rounded
/// where it does not matter for any of the 256 bytes.
#[multiversion(targets("x86_64+avx2"))]
pub(crate) fn scale(bytes: &[u8], values: &mut [f32]) {
    for (value, &byte) in values.iter_mut().zip(bytes) {
        *value = byte.value();
    }
}

/// The first 16 binary digits of 1 / 255, at most.
const HIGH: f32 = 257.0 / 65_536.0;
/// The rest of it.
const LOW: f32 = (1.0 / 255.0 - HIGH as f64) as f32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_becomes_what_dividing_it_gives() {
        let bytes: Vec<u8> = (0..=255).collect();
        let expected: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let mut values = vec![f32::NAN; 256];
        scale(&bytes, &mut values);
        assert_eq!(values, expected);
    }

    #[test]
    fn examples_are_written_however_they_lie() {
        let bytes = [0, 51, 255, 1, 2, 3];
        let all = ArrayView2::from_shape((2, 3), &bytes).unwrap();
        let turned = all.t().as_standard_layout().into_owned();
        for features in [Features::Bytes(all), Features::Bytes(turned.t())] {
            assert_eq!((features.examples(), features.of_each()), (2, 3));
            let mut written = [f32::NAN; 3];
            let (first, others) = written.split_at_mut(1);
            features.write(0, [first, others]);
            assert_eq!(written, [0.0, 0.2, 1.0]);
            let mut memory = Vec::new();
            assert_eq!(features.floats(&mut memory).row(0).as_slice(), Some(&[0.0, 0.2, 1.0][..]));
            features.part(1..2).write(0, [&mut written[..]]);
            assert_eq!(written, [1.0, 2.0, 3.0].map(|byte: f32| byte / 255.0));
        }
    }
}
