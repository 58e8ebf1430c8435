//! Holds the examples of a batch, in memory that is used again.

use crate::models::{Batch, scale};

/// Examples with their labels, end to end: their features as bytes where the data are so, otherwise as floats.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    pub(super) bytes: Vec<u8>,
    pub(super) floats: Vec<f32>,
    pub(super) labels: Vec<u32>,
}

impl Gathered {
    /// None, in memory that has been used.
    pub(super) fn emptied(&mut self) -> &mut Self {
        self.bytes.clear();
        self.floats.clear();
        self.labels.clear();
        self
    }

    /// Their features as floats, which they are from now on.
    pub(super) fn as_floats(&mut self) -> &mut [f32] {
        if !self.bytes.is_empty() {
            self.floats.resize(self.bytes.len(), 0.0);
            scale(&self.bytes, &mut self.floats);
            self.bytes.clear();
        }
        &mut self.floats
    }

    /// Them as a model takes them.
    pub fn batch(&self) -> Batch<'_> {
        match self.bytes.is_empty() {
            true => Batch::new(&self.floats, &self.labels),
            false => Batch::of_bytes(&self.bytes, &self.labels),
        }
    }
}
