//! Computes a fully connected layer and its gradients with matrix products.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, s};
use windlass_common::floats::Floats;
use windlass_common::layout::{Initial, Variable};
use windlass_common::placement::BLOCK;

use super::convolution::transpose;
use super::sparse::{Sparse, TERMS};
use super::tiles::{Block, Terms, Walk, multiply};

/// Outputs of a layer, and inputs if they are not more, whose products are made in tiles.
const TILED: Range<usize> = 8..513;

/// Values of a gradient that are made together where that costs nothing: few enough to stay in a core's own cache until somebody
/// takes them.
const MADE_TOGETHER: usize = 32_768;

/// Rows of a weight that become columns together: as many as a tile is wide, so that they stay in the nearest cache.
const TURNED: usize = 32;

/// What follows the linear part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// max(x, 0).
    Relu,
    /// Nothing: the outputs go into the softmax of the loss.
    Linear,
}

/// What goes into a layer, [examples, inputs].
#[derive(Clone, Copy, Debug)]
pub(super) enum Incoming<'a> {
    /// All of it.
    Whole(ArrayView2<'a, f32>),
    /// What is not 0: on the way forward by example, on the way back by input.
    Sparse(&'a Sparse),
}

impl<'a> Incoming<'a> {
    /// Values that lie end to end.
    pub(super) fn whole(values: &'a [f32], inputs: usize) -> Self {
        Self::Whole(matrix(values, values.len() / inputs, inputs))
    }
}

/// Whether a product replaces what the gradient holds, or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accumulate {
    /// The first part of a batch.
    Replace,
    /// Every further part.
    Add,
}

impl Accumulate {
    fn beta(self) -> f32 {
        match self {
            Self::Replace => 0.0,
            Self::Add => 1.0,
        }
    }
}

/// A layer with weight [inputs, outputs] and, right behind it in the flat buffer, bias [outputs].
#[derive(Clone, Debug)]
pub(super) struct Dense {
    inputs: usize,
    outputs: usize,
    /// Where the weight starts in the flat buffer.
    start: usize,
}

impl Dense {
    pub(super) fn new(inputs: usize, outputs: usize, start: usize) -> Self {
        Self { inputs, outputs, start }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Where the layer starts in the flat buffer.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// All rows of the weight.
    pub(super) fn rows(&self) -> Range<usize> {
        0..self.inputs
    }

    /// Blocks of rows whose gradients can be made one by one; each begins at a multiple of 64 values.
    pub(super) fn blocks(
        &self,
        input: Incoming<'_>,
    ) -> impl DoubleEndedIterator<Item = Range<usize>> + use<> {
        let all = self.inputs;
        let together = match input {
            Incoming::Sparse(_) => MADE_TOGETHER / self.outputs,
            // A product's other factor would be laid out for each of them anew.
            Incoming::Whole(_) => all,
        };
        let rows = together.max(1).next_multiple_of(BLOCK as usize);
        (0..all).step_by(rows).map(move |row| row..all.min(row + rows))
    }

    /// Blocks of rows whose values are needed one after the other on the way forward; each begins at a multiple of 64 values.
    pub(super) fn forward_blocks(&self, input: Incoming<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (all, rows) = match input {
            Incoming::Sparse(_) => (self.inputs, TERMS),
            Incoming::Whole(_) => (self.inputs, self.inputs),
        };
        (0..all).step_by(rows).map(move |row| row..all.min(row + rows))
    }

    /// Where these rows lie in the flat buffer, with the bias behind the last one.
    pub(super) fn range(&self, rows: &Range<usize>) -> Range<usize> {
        let end = if rows.end == self.inputs { self.end() } else { self.start + rows.end * self.outputs };
        self.start + rows.start * self.outputs..end
    }

    /// Multiplications of one example on its way forward.
    pub(super) fn multiplications(&self) -> u64 {
        self.inputs as u64 * self.outputs as u64
    }

    /// Where the next layer starts in the flat buffer.
    pub(super) fn end(&self) -> usize {
        self.bias().end
    }

    pub(super) fn variables(&self, name: &str, weight: Initial) -> [Variable; 2] {
        let (inputs, outputs) = (self.inputs as u64, self.outputs as u64);
        [
            Variable::new(format!("{name}/weight"), &[inputs, outputs], weight),
            Variable::new(format!("{name}/bias"), &[outputs], Initial::Zeros),
        ]
    }

    /// output = activation(input weight + bias), [examples, outputs], one [block](Self::forward_blocks) of rows of the weight after
    /// the other: `own` are these and, behind the last one, the bias.
    pub(super) fn forward(
        &self,
        own: &[f32],
        rows: &Range<usize>,
        input: Incoming<'_>,
        activation: Activation,
        output: &mut [f32],
    ) {
        let (weight, bias) = own.split_at(rows.len() * self.outputs);
        match input {
            Incoming::Whole(input) => match input.to_slice().filter(|_| self.is_tiled()) {
                Some(values) => {
                    let terms = Terms::in_one_loop(Walk { count: self.inputs, a: 1, b: self.outputs });
                    let block = Block { rows: input.nrows(), row: self.outputs, columns: self.outputs };
                    multiply(terms, self.inputs, values, weight, block, output);
                }
                None => {
                    let weight = matrix(weight, self.inputs, self.outputs);
                    let output = &mut matrix_mut(output, input.nrows(), self.outputs);
                    general_mat_mul(1.0, &input, &weight, 0.0, output);
                }
            },
            Incoming::Sparse(input) => {
                let accumulate = if rows.start == 0 { Accumulate::Replace } else { Accumulate::Add };
                input.columns(rows).multiply(weight, self.outputs, accumulate, output);
            }
        }
        if bias.is_empty() {
            return;
        }
        for row in output.chunks_exact_mut(self.outputs) {
            match activation {
                Activation::Relu => add_relu(row, bias),
                Activation::Linear => add(row, bias),
            }
        }
    }

    /// Gradients of these rows of the weight and, behind the last one, of the bias, from `delta`, the gradient of the linear part's
    /// output.
    pub(super) fn parameter_gradient(
        &self,
        input: Incoming<'_>,
        delta: &[f32],
        rows: &Range<usize>,
        accumulate: Accumulate,
        gradient: &mut [f32],
    ) {
        let (weight, bias) = gradient.split_at_mut(rows.len() * self.outputs);
        match input {
            Incoming::Whole(input) => match input.to_slice() {
                Some(values) if self.is_tiled() && accumulate == Accumulate::Replace => {
                    let walk = Walk { count: input.nrows(), a: self.inputs, b: self.outputs };
                    let block = Block { rows: rows.len(), row: self.outputs, columns: self.outputs };
                    multiply(Terms::in_one_loop(walk), 1, &values[rows.start..], delta, block, weight);
                }
                _ => {
                    let weight = &mut matrix_mut(weight, rows.len(), self.outputs);
                    let delta = matrix(delta, input.nrows(), self.outputs);
                    let input = input.slice_move(s![.., rows.clone()]);
                    general_mat_mul(1.0, &input.t(), &delta, accumulate.beta(), weight);
                }
            },
            Incoming::Sparse(input) => input.rows(rows).multiply(delta, self.outputs, accumulate, weight),
        }
        if bias.is_empty() {
            return;
        }
        if accumulate == Accumulate::Replace {
            bias.fill(0.0);
        }
        for row in delta.chunks_exact(self.outputs) {
            add(bias, row);
        }
    }

    /// Gradient of the input, [examples, inputs], by this weight. `turned` is memory for rows of it that have become columns.
    pub(super) fn input_gradient(
        &self,
        weight: &[f32],
        delta: &[f32],
        turned: &mut Floats,
        output: &mut [f32],
    ) {
        let examples = delta.len() / self.outputs;
        if self.is_tiled() {
            for (from, rows) in (0..).step_by(TURNED).zip(weight.chunks(TURNED * self.outputs)) {
                let columns = rows.len() / self.outputs;
                turned.make(rows.len());
                transpose(rows, self.outputs, columns, turned);
                let terms = Terms::in_one_loop(Walk { count: self.outputs, a: 1, b: columns });
                let block = Block { rows: examples, row: self.inputs, columns };
                multiply(terms, self.outputs, delta, turned, block, &mut output[from..]);
            }
            return;
        }
        let weight = matrix(weight, self.inputs, self.outputs);
        let delta = matrix(delta, examples, self.outputs);
        general_mat_mul(1.0, &delta, &weight.t(), 0.0, &mut matrix_mut(output, examples, self.inputs));
    }

    /// Whether its products are made in tiles, from the matrices as they lie: not of larger ones, parts of which a library copies into
    /// the nearer caches, nor with fewer outputs than the narrowest tile has.
    fn is_tiled(&self) -> bool {
        TILED.contains(&self.outputs) && self.inputs < TILED.end
    }

    /// Where the weight lies in the flat buffer.
    pub(super) fn weight(&self) -> Range<usize> {
        self.start..self.start + self.inputs * self.outputs
    }

    fn bias(&self) -> Range<usize> {
        let start = self.weight().end;
        start..start + self.outputs
    }
}

/// The gradient passes where the activation is not 0. An activation that is not a number lets it pass as well.
pub(super) fn mask_by_activation(delta: &mut [f32], activations: &[f32]) {
    for (delta, &activation) in delta.iter_mut().zip(activations) {
        *delta = if activation <= 0.0 { 0.0 } else { *delta };
    }
}

/// max(x, 0), but what is not a number stays so; `f32::max` would turn it into 0 and hide a divergence.
pub(super) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

pub(super) fn matrix(values: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), values).expect("the slice is cut to the matrix")
}

pub(super) fn matrix_mut(values: &mut [f32], rows: usize, columns: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("the slice is cut to the matrix")
}

/// sum += values, element by element.
pub(super) fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

fn add_relu(row: &mut [f32], bias: &[f32]) {
    for (value, bias) in row.iter_mut().zip(bias) {
        *value = relu(*value + bias);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn blocks_of_rows_cover_a_layer_and_begin_where_a_push_may_be_cut() {
        let (sparse, few) = (Sparse::default(), Array2::zeros((1, 1)));
        for (inputs, outputs, blocks) in [(784, 200, 5), (1, 32, 1), (700, 33, 1), (130, 40_000, 3)] {
            let layer = Dense::new(inputs, outputs, 1000);
            for (input, expected) in [(Incoming::Sparse(&sparse), blocks), (Incoming::Whole(few.view()), 1)] {
                let (mut until, mut found) = (layer.end(), 0);
                for rows in layer.blocks(input).rev() {
                    let range = layer.range(&rows);
                    assert_eq!(range.end, until, "{inputs} x {outputs}");
                    assert!((range.start - layer.start()).is_multiple_of(BLOCK as usize));
                    (until, found) = (range.start, found + 1);
                }
                assert_eq!((until, found), (layer.start(), expected), "{inputs} x {outputs}");
            }
        }
    }
}
