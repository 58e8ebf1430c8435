//! Computes fully connected networks with ReLU between the layers: softmax regression, 2NN and the like.

use std::fmt;

use windlass_common::floats::Floats;
use windlass_common::layout::{Initial, Variable};

use super::dense::{Activation, Dense, Incoming, mask_by_activation};
use super::passes::Progress;
use super::sparse::Sparse;
use super::{Batch, Features, Input, Model, Part, Passes, Score, Whole, loss};

/// Most examples that are computed at a time. Larger batches are cut, so that the activations stay small and in the
/// cache (60,000 examples of 2NN at once would need 200 MB); the cut is part of the arithmetic's definition.
const EXAMPLES_AT_ONCE: usize = 512;
/// Fewest outputs of a layer for which it is worth it to find out what of its input is 0.
const OUTPUTS_MIN: usize = 32;

/// Fully connected layers with ReLU between them, and softmax with cross-entropy behind the last one.
pub struct Mlp {
    layers: Vec<Dense>,
    input: Input,
    incoming: Examples,
    /// Outputs of each layer for the current examples, [examples, outputs]; those of the last are its gradients
    /// in the end.
    outputs: Vec<Floats>,
    /// Gradients of the outputs of one hidden layer and of the one before it.
    deltas: [Floats; 2],
    /// Rows of a layer's weight that have become columns.
    turned: Floats,
}

/// What of the current examples' features is not 0, where that is little.
#[derive(Clone, Debug, Default)]
struct Examples {
    are_sparse: bool,
    by_example: Sparse,
    by_feature: Sparse,
    /// All of them as floats, if they are needed so and are not.
    floats: Vec<f32>,
}

impl Examples {
    /// For the way forward through a layer that takes them.
    fn forward<'a, 'b: 'a>(&'a mut self, all: Features<'b>, layer: &Dense) -> Incoming<'a> {
        self.are_sparse = layer.outputs() >= OUTPUTS_MIN
            && match all {
                Features::Floats(values) => self.by_example.set(values),
                Features::Bytes(values) => self.by_example.set(values),
            };
        if self.are_sparse {
            return Incoming::Sparse(&self.by_example);
        }
        all.floats(&mut self.floats);
        self.whole(all)
    }

    /// For the way back of the same.
    fn back<'a, 'b: 'a>(&'a mut self, all: Features<'b>) -> Incoming<'a> {
        if !self.are_sparse {
            return self.whole(all);
        }
        self.by_feature.set_transposed(&self.by_example);
        Incoming::Sparse(&self.by_feature)
    }

    fn whole<'a, 'b: 'a>(&'a self, all: Features<'b>) -> Incoming<'a> {
        match all {
            Features::Floats(values) => Incoming::Whole(values.reborrow()),
            Features::Bytes(_) => Incoming::whole(&self.floats, all.of_each()),
        }
    }
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
        let outputs = vec![Floats::default(); layers.len()];
        let input = Input { features, classes };
        Self {
            layers,
            input,
            incoming: Examples::default(),
            outputs,
            deltas: Default::default(),
            turned: Floats::default(),
        }
    }

    /// Computes the outputs of all layers for at most `EXAMPLES_AT_ONCE` examples, unless values do not come.
    fn forward(&mut self, passes: &mut dyn Passes, batch: Batch<'_>, progress: &mut Progress) -> Option<()> {
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            let (before, from_here) = self.outputs.split_at_mut(i);
            let output = &mut from_here[0];
            output.make(batch.len() * layer.outputs());
            let input = match before.last() {
                None => self.incoming.forward(batch.features, layer),
                Some(values) => Incoming::whole(values, self.layers[i - 1].outputs()),
            };
            let activation = if i == last { Activation::Linear } else { Activation::Relu };
            for rows in layer.forward_blocks(input) {
                let own = passes.values(layer.range(&rows), progress.share())?;
                layer.forward(own, &rows, input, activation, output);
            }
            progress.add(layer.multiplications(), batch.len());
        }
        Some(())
    }

    /// Computes the gradient of all layers from that of the last layer's output, which `outputs` holds.
    fn backward(
        &mut self,
        passes: &mut dyn Passes,
        batch: Batch<'_>,
        part: &Part,
        progress: &mut Progress,
    ) -> Option<()> {
        let (logits, activations) = self.outputs.split_last().expect("a network has at least one layer");
        let [delta, delta_before] = &mut self.deltas;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let delta_here = if i + 1 == self.layers.len() { logits } else { &*delta };
            let values = i.checked_sub(1).map(|before| (before, &activations[before]));
            let input = match values {
                None => self.incoming.back(batch.features),
                Some((before, values)) => Incoming::whole(values, self.layers[before].outputs()),
            };
            for rows in layer.blocks(input).rev() {
                let (_, room) = passes.room(layer.range(&rows), part.is_cut());
                layer.parameter_gradient(input, delta_here, &rows, part.accumulate(), room);
                if rows.start == 0 {
                    // Nobody needs the gradient of the examples.
                    let halves = if values.is_none() { 2 } else { 1 };
                    progress.add(halves * layer.multiplications(), batch.len());
                }
                if part.is_last {
                    passes.made(layer.range(&rows).start, progress.share());
                }
            }
            let Some((_, values)) = values else { break };
            delta_before.make(values.len());
            let weight = passes.values(layer.weight(), progress.share())?;
            layer.input_gradient(weight, delta_here, &mut self.turned, delta_before);
            mask_by_activation(delta_before, values);
            std::mem::swap(delta, delta_before);
            progress.add(layer.multiplications(), batch.len());
        }
        Some(())
    }

    fn progress(&self, examples: usize) -> Progress {
        Progress::new(self.layers.iter().map(Dense::multiplications).sum(), examples)
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
        assert_eq!(parameters.len(), self.values(), "flat buffers fit the model");
        assert_eq!(gradient.len(), self.values(), "flat buffers fit the model");
        self.gradient_with(&mut Whole::new(parameters, gradient), batch).expect("all values are there")
    }

    fn gradient_with(&mut self, passes: &mut dyn Passes, batch: Batch<'_>) -> Option<f32> {
        batch.check(self.input);
        assert!(!batch.is_empty(), "the mean over no examples is not defined");
        let scale = 1.0 / batch.len() as f32;
        let mut progress = self.progress(batch.len());
        let (mut loss_sum, mut mean) = (0.0, f32::NAN);
        for part in Part::all(batch, EXAMPLES_AT_ONCE) {
            let examples = part.of(batch);
            self.forward(passes, examples, &mut progress)?;
            let logits = self.outputs.last_mut().expect("a network has at least one layer");
            loss_sum += loss::cross_entropy_gradient(logits, examples.labels, self.input.classes, scale);
            if part.is_last {
                mean = (loss_sum / batch.len() as f64) as f32;
                passes.loss(mean, progress.share())?;
            }
            self.backward(passes, examples, &part, &mut progress)?;
        }
        Some(mean)
    }

    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score {
        batch.check(self.input);
        assert_eq!(parameters.len(), self.values(), "flat buffers fit the model");
        let mut score = Score::default();
        let mut progress = self.progress(batch.len());
        for part in batch.chunks(EXAMPLES_AT_ONCE) {
            let passes = &mut Whole::new(parameters, &mut []);
            self.forward(passes, part, &mut progress).expect("all values are there");
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
        // Those of 600 examples are cut into two parts; layers of 32 outputs leave out features that are 0, and are made in tiles
        // behind others, if those are not too many.
        for (sizes, examples) in [
            (&[7, 5][..], 4),
            (&[6, 9, 3], 1),
            (&[5, 8, 7, 4], 11),
            (&[140, 33], 3),
            (&[9, 32, 7, 4], 11),
            (&[3, 4, 2], 600),
            (&[6, 41, 2], 600),
            (&[6, 33, 34, 3], 600),
            (&[12, 40, 77, 5], 27),
            (&[6, 600, 33, 3], 3),
        ] {
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
    fn features_that_are_0_are_left_out_where_they_are_most_and_the_layer_is_wide() {
        for (outputs, others_are, expected) in [(32, 0.0, true), (31, 0.0, false), (32, 0.5, false)] {
            let mut model = Mlp::new(&[10, outputs, 3]);
            let features: Vec<f32> = (0..40).map(|i| if i % 4 == 0 { 1.0 } else { others_are }).collect();
            let values = oracle::parameters(&model, 3);
            let batch = Batch::new(&features, &[0, 1, 2, 0]);
            let mut gradient = vec![f32::NAN; values.len()];
            model.gradient(&values, batch, &mut gradient);
            assert_eq!(model.incoming.are_sparse, expected, "{outputs} outputs, others are {others_are}");
            // A weight that no example reads has no gradient, and the others have.
            let is_read = |feature: usize| features[feature..].iter().step_by(10).any(|&value| value != 0.0);
            for (feature, row) in gradient[..10 * outputs].chunks(outputs).enumerate() {
                assert_eq!(row.iter().any(|&g| g != 0.0), is_read(feature), "feature {feature}");
            }
        }
    }

    #[test]
    fn buffers_hold_nothing_over_from_other_batches() {
        oracle::check_reuse(|| Box::new(Mlp::new(&[12, 33, 40, 4])));
    }

    #[test]
    fn features_may_lie_in_any_order() {
        // The first layer is one of those that are made in tiles.
        let mut model = Mlp::new(&[12, 40, 3]);
        let values = oracle::parameters(&model, 3);
        let (features, labels) = oracle::examples(model.input(), 9);
        let batch = Batch::new(&features, &labels);
        let (mut expected, mut found) = (vec![f32::NAN; values.len()], vec![f32::NAN; values.len()]);
        let loss = model.gradient(&values, batch, &mut expected);
        let turned = oracle::turned(batch);
        let batch = Batch { features: Features::Floats(turned.t()), labels: &labels };
        assert!((model.gradient(&values, batch, &mut found) - loss).abs() < 1e-6);
        oracle::close(&found, &expected.iter().map(|&g| f64::from(g)).collect::<Vec<_>>(), "gradient");
    }

    #[test]
    fn bytes_give_the_gradient_of_what_they_mean() {
        // With features that are mostly 0 and not, and a layer for which that makes no difference; cut into parts as well.
        for (sizes, one_in, examples) in
            [(&[30, 40, 3][..], 5, 9), (&[30, 40, 3], 1, 9), (&[30, 4], 5, 9), (&[6, 33, 3], 4, 600)]
        {
            oracle::check_bytes(&mut Mlp::new(sizes), one_in, examples);
        }
    }

    #[test]
    fn divergence_is_not_hidden() {
        oracle::check_divergence(&mut Mlp::new(&[4, 3]));
        oracle::check_divergence(&mut Mlp::new(&[4, 6, 5, 3]));
        oracle::check_divergence(&mut Mlp::new(&[4, 32, 5, 3]));
    }

    #[test]
    #[should_panic(expected = "not defined")]
    fn the_mean_over_no_examples_is_refused() {
        Mlp::new(&[2, 2]).gradient(&[0.0; 6], Batch::new(&[], &[]), &mut [0.0; 6]);
    }
}
