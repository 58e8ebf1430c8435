//! Computes the loss and the gradient of the built-in models over flat buffers of parameters.
//!
//! A model holds its scratch buffers and reuses them, so that nothing is allocated per step once it is warm (but
//! for the packing buffer inside each product that a library makes, which it does not let a caller keep). It holds no
//! parameters: these come with every call, because they belong to the parameter servers.

mod cnn;
mod convolution;
mod dense;
mod features;
mod loss;
mod mlp;
mod names;
#[cfg(test)]
mod oracle;
mod passes;
mod pool;
mod sparse;
mod threads;
mod tiles;

use std::fmt;
use std::ops::Range;

use ndarray::ArrayView2;
use windlass_common::layout::Variable;

use dense::Accumulate;

pub use cnn::Cnn;
pub use features::Features;
pub(crate) use features::scale;
pub use mlp::Mlp;
pub use names::{ModelError, by_name};
pub use passes::{Passes, Whole};
pub use threads::{Threaded, with_threads};

/// What a training loop needs of a model.
pub trait Model: Send + fmt::Debug {
    /// The variables, in the order in which the flat buffers hold them.
    fn variables(&self) -> Vec<Variable>;

    /// What one example must look like.
    fn input(&self) -> Input;

    /// Mean cross-entropy over the batch, and its gradient.
    ///
    /// `parameters` and `gradient` hold all variables end to end; `gradient` is overwritten. Where the values have
    /// diverged the loss is infinite or not a number, and so are parts of the gradient: nothing is hidden but
    /// weights that are multiplied by 0 for every example.
    ///
    /// # Panics
    /// If the batch is empty, a length does not fit the model, or a label is not below the number of classes.
    fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32;

    /// The same, with the same bits, layer by layer: values are asked for when the forward pass comes to them, and what of
    /// the gradient is final is told as the backward pass goes on. `None` if it was given up for want of values.
    ///
    /// A model that does not know its layers asks for everything first and tells everything last.
    ///
    /// # Panics
    /// As [`gradient`](Self::gradient).
    fn gradient_with(&mut self, passes: &mut dyn Passes, batch: Batch<'_>) -> Option<f32> {
        let total = passes.total();
        passes.values(0..total, 0.0)?;
        let (parameters, gradient) = passes.room(0..total, false);
        let loss = self.gradient(parameters, batch, gradient);
        passes.loss(loss, 1.0)?;
        passes.made(0, 1.0);
        Some(loss)
    }

    /// Sum of the losses and number of correct predictions over the batch, of any size; 0 for an empty one.
    ///
    /// # Panics
    /// If a length does not fit the model, or a label is not below the number of classes.
    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score;
}

/// What one example looks like to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Values of one example, flat; images row by row.
    pub features: usize,
    /// Labels are 0 to classes - 1.
    pub classes: usize,
}

/// Examples with their labels.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// One example per row.
    pub features: Features<'a>,
    /// One label per example.
    pub labels: &'a [u32],
}

impl<'a> Batch<'a> {
    /// Examples that lie end to end in `features`, one for each label.
    ///
    /// # Panics
    /// If `features` does not divide evenly among the labels.
    pub fn new(features: &'a [f32], labels: &'a [u32]) -> Self {
        Self { features: Features::Floats(rows(features, labels.len())), labels }
    }

    /// The same, of pixels, which mean value / 255.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn of_bytes(features: &'a [u8], labels: &'a [u32]) -> Self {
        Self { features: Features::Bytes(rows(features, labels.len())), labels }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it has no examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The examples number `range`.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { features: self.features.part(range.clone()), labels: &self.labels[range] }
    }

    /// Consecutive parts of at most `size` examples.
    fn chunks(self, size: usize) -> impl Iterator<Item = Batch<'a>> {
        Part::all(self, size).map(move |part| part.of(self))
    }

    fn check(&self, input: Input) {
        assert_eq!(self.features.examples(), self.labels.len(), "a batch has one label per example");
        assert!(
            self.is_empty() || self.features.of_each() == input.features,
            "the batch has {} features, the model takes {}",
            self.features.of_each(),
            input.features
        );
    }
}

fn rows<T>(values: &[T], rows: usize) -> ArrayView2<'_, T> {
    let width = values.len().checked_div(rows).unwrap_or(0);
    ArrayView2::from_shape((rows, width), values).expect("every example has the same features")
}

/// A part of a batch that is computed by itself, since the whole would need too much memory.
#[derive(Clone, Debug)]
struct Part {
    examples: Range<usize>,
    /// Whether the gradient is final with this part.
    is_last: bool,
}

impl Part {
    /// Consecutive parts of at most `size` examples.
    fn all(batch: Batch<'_>, size: usize) -> impl Iterator<Item = Self> {
        let all = batch.len();
        (0..all).step_by(size).map(move |start| {
            let end = all.min(start + size);
            Self { examples: start..end, is_last: end == all }
        })
    }

    fn of<'a>(&self, batch: Batch<'a>) -> Batch<'a> {
        batch.part(self.examples.clone())
    }

    /// Whether the batch has other parts.
    fn is_cut(&self) -> bool {
        self.examples.start > 0 || !self.is_last
    }

    /// Whether its gradient replaces what the buffer holds, or is added to it.
    fn accumulate(&self) -> Accumulate {
        if self.examples.start == 0 { Accumulate::Replace } else { Accumulate::Add }
    }
}

/// How well a model does on some examples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Sum of the examples' cross-entropies, in nats.
    pub loss_sum: f64,
    /// Examples whose own label had the largest output (the first of equal ones).
    pub correct: u64,
    /// Examples scored.
    pub examples: u64,
}

impl Score {
    /// Mean cross-entropy; not a number for no examples.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.examples as f64
    }

    /// Share of correct predictions, 0 to 1; not a number for no examples.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.examples as f64
    }
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.examples += other.examples;
    }
}
