//! Holds floats that begin where a cache line does, and adds them.

use std::fmt;
use std::ops::{Deref, DerefMut};

use multiversion::multiversion;

/// Floats in a cache line, which is also the widest vector: one that lies across two lines is read as two.
const LINE: usize = 16;

/// As many floats as it was made for, the first of them at the start of a cache line.
#[derive(Default)]
pub struct Floats {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Floats {
    /// So many zeros. Memory that nobody has written is not touched.
    pub fn zeros(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let memory = vec![0.0; len + LINE - 1];
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>());
        // Where this cannot be found out it is not so important.
        Self { start: if start < LINE { start } else { 0 }, memory, len }
    }

    /// Makes it so many floats, whose values are to be written; memory that is long enough is kept.
    pub fn make(&mut self, len: usize) {
        match len <= self.memory.len().saturating_sub(LINE - 1) {
            true => self.len = len,
            false => *self = Self::zeros(len),
        }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[f32]> for Floats {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl<'a> IntoIterator for &'a Floats {
    type Item = &'a f32;
    type IntoIter = std::slice::Iter<'a, f32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<&[f32]> for Floats {
    fn from(values: &[f32]) -> Self {
        let mut floats = Self::zeros(values.len());
        floats.copy_from_slice(values);
        floats
    }
}

impl Clone for Floats {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Floats({})", self.len)
    }
}

/// sum += values, one by one.
///
/// # Panics
/// If they are not as many.
#[multiversion(targets("x86_64+avx2"))]
pub fn add(sum: &mut [f32], values: &[f32]) {
    assert_eq!(sum.len(), values.len(), "what is added up has one length");
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_begin_where_a_cache_line_does_however_many_they_are() {
        let mut reused = Floats::default();
        for len in [1, 15, 16, 17, 1000, 200_000, 3, 0, 40] {
            let mut floats = Floats::zeros(len);
            assert!(floats.len() == len && floats.iter().all(|value| value.to_bits() == 0));
            floats.iter_mut().enumerate().for_each(|(i, value)| *value = i as f32 + 1.0);
            let other = floats.clone();
            assert_eq!(*other, *floats);
            reused.make(len);
            assert_eq!(reused.len(), len);
            for floats in [&floats, &other, &reused] {
                assert!(floats.is_empty() || (floats.as_ptr() as usize).is_multiple_of(64), "{len}");
            }
        }
    }
}
