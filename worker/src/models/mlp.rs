//! Computes fully connected networks with ReLU between the layers: softmax regression, 2NN and the like.

use std::fmt;

use windlass_common::layout::{Initial, Variable};

use super::dense::{Accumulate, Activation, Dense, mask_by_activation, matrix};
use super::{Batch, Input, Model, Score, loss};

/// Most examples that are computed at a time. Larger batches are cut, so that the activations stay small and in the
/// cache (60,000 examples of 2NN at once would need 200 MB); the cut is part of the arithmetic's definition.
const EXAMPLES_AT_ONCE: usize = 512;

/// Fully connected layers with ReLU between them, and softmax with cross-entropy behind the last one.
pub struct Mlp {
    layers: Vec<Dense>,
    input: Input,
    /// Outputs of each layer for the current examples, [examples, outputs]; those of the last are its gradients
    /// in the end.
    outputs: Vec<Vec<f32>>,
    /// Gradients of the outputs of one hidden layer and of the one before it.
    deltas: [Vec<f32>; 2],
}

impl fmt::Debug for Mlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mlp").field("layers", &self.layers).finish_non_exhaustive()
    }
}

impl Mlp {
    /// A network with these numbers of features, hidden units and, last, classes.
    ///
    /// # Panics
    /// With fewer than two sizes.
    pub fn new(sizes: &[usize]) -> Self {
        let (Some(&features), Some(&classes), true) = (sizes.first(), sizes.last(), sizes.len() >= 2) else {
            panic!("a network needs features and classes, not the sizes {sizes:?}");
        };
        let mut layers = Vec::new();
        let mut start = 0;
        for pair in sizes.windows(2) {
            let layer = Dense::new(pair[0], pair[1], start);
            start = layer.end();
            layers.push(layer);
        }
        let outputs = vec![Vec::new(); layers.len()];
        Self { layers, input: Input { features, classes }, outputs, deltas: Default::default() }
    }

    /// Computes the outputs of all layers for at most `EXAMPLES_AT_ONCE` examples.
    fn forward(&mut self, parameters: &[f32], batch: Batch<'_>) {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            let (before, from_here) = self.outputs.split_at_mut(i);
            let output = &mut from_here[0];
            output.resize(batch.len() * layer.outputs(), 0.0);
            let input = match before.last() {
                None => batch.features,
                Some(values) => matrix(values, batch.len(), self.layers[i - 1].outputs()),
            };
            let activation = if i == last { Activation::Linear } else { Activation::Relu };
            layer.forward(parameters, input, activation, output);
        }
    }

    /// Computes the gradient of all layers from that of the last layer's output, which `outputs` holds.
    fn backward(&mut self, parameters: &[f32], batch: Batch<'_>, part: Accumulate, gradient: &mut [f32]) {
        let (logits, activations) = self.outputs.split_last().expect("a network has at least one layer");
        let [delta, delta_before] = &mut self.deltas;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let delta_here = if i + 1 == self.layers.len() { logits } else { &*delta };
            // Nobody needs the gradient of the examples.
            let Some(before) = i.checked_sub(1) else {
                layer.parameter_gradient(batch.features, delta_here, part, gradient);
                break;
            };
            let values = &activations[before];
            let input = matrix(values, batch.len(), self.layers[before].outputs());
            layer.parameter_gradient(input, delta_here, part, gradient);
            delta_before.resize(values.len(), 0.0);
            layer.input_gradient(parameters, delta_here, delta_before);
            mask_by_activation(delta_before, values);
            std::mem::swap(delta, delta_before);
        }
    }

    fn values(&self) -> usize {
        self.layers.last().map_or(0, Dense::end)
    }
}

impl Model for Mlp {
    fn variables(&self) -> Vec<Variable> {
        let mut variables = Vec::new();
        let mut fan_in = self.input.features;
        for (i, layer) in self.layers.iter().enumerate() {
            // Softmax regression is convex: it starts from zeros, as there is no symmetry to break.
            let weight = match self.layers.len() {
                1 => Initial::Zeros,
                _ => Initial::HeNormal { fan_in: fan_in as u64 },
            };
            variables.extend(layer.variables(&format!("dense{}", i + 1), weight));
            fan_in = layer.outputs();
        }
        variables
    }

    fn input(&self) -> Input {
        self.input
    }

    fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32 {
        batch.check(self.input);
        assert!(!batch.is_empty(), "the mean over no examples is not defined");
        assert_eq!(
            (parameters.len(), gradient.len()),
            (self.values(), self.values()),
            "flat buffers fit the model"
        );
        let scale = 1.0 / batch.len() as f32;
        let mut loss_sum = 0.0;
        for (i, part) in batch.chunks(EXAMPLES_AT_ONCE).enumerate() {
            self.forward(parameters, part);
            let logits = self.outputs.last_mut().expect("a network has at least one layer");
            loss_sum += loss::cross_entropy_gradient(logits, part.labels, self.input.classes, scale);
            self.backward(parameters, part, Accumulate::for_part(i), gradient);
        }
        (loss_sum / batch.len() as f64) as f32
    }

    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score {
        batch.check(self.input);
        assert_eq!(parameters.len(), self.values(), "flat buffers fit the model");
        let mut score = Score::default();
        for part in batch.chunks(EXAMPLES_AT_ONCE) {
            self.forward(parameters, part);
            let logits = self.outputs.last_mut().expect("a network has at least one layer");
            score += loss::score(logits, part.labels, self.input.classes);
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::oracle;

    #[test]
    fn gradients_agree_with_finite_differences_of_a_slow_network() {
        // The last one is cut into two parts.
        for (sizes, examples) in [(&[7, 5][..], 4), (&[6, 9, 3], 1), (&[5, 8, 7, 4], 11), (&[3, 4, 2], 600)] {
            let mut model = Mlp::new(sizes);
            let loss = |parameters: &[f64], features: &[f32], labels: &[u32]| {
                oracle::mlp_loss(sizes, parameters, features, labels)
            };
            oracle::check_model(&mut model, examples, 20, loss);
        }
    }

    #[test]
    fn the_2nn_gradient_agrees_with_finite_differences_of_a_slow_network() {
        let sizes = [784, 200, 200, 10];
        oracle::check_model(&mut Mlp::new(&sizes), 2, 20, |parameters, features, labels| {
            oracle::mlp_loss(&sizes, parameters, features, labels)
        });
    }

    #[test]
    fn buffers_hold_nothing_over_from_other_batches() {
        oracle::check_reuse(|| Box::new(Mlp::new(&[12, 9, 8, 4])));
    }

    #[test]
    fn divergence_is_not_hidden() {
        oracle::check_divergence(&mut Mlp::new(&[4, 3]));
        oracle::check_divergence(&mut Mlp::new(&[4, 6, 5, 3]));
    }

    #[test]
    #[should_panic(expected = "not defined")]
    fn the_mean_over_no_examples_is_refused() {
        Mlp::new(&[2, 2]).gradient(&[0.0; 6], Batch::new(&[], &[]), &mut [0.0; 6]);
    }
}
