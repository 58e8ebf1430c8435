//! Computes the convolutional network of McMahan et al. 2017.

use std::fmt;
use std::ops::Range;

use windlass_common::floats::Floats;
use windlass_common::layout::{Initial, Variable};

use super::convolution::{Convolution, turn_around};
use super::dense::{Accumulate, Activation, Dense, Incoming, mask_by_activation};
use super::passes::Progress;
use super::pool::{Pool, Winner};
use super::{Batch, Input, Model, Part, Passes, Score, Whole, loss};

/// Most examples that are computed at a time. Larger batches are cut, so that the buffers stay below 7 MB; the cut is
/// part of the arithmetic's definition. The convolutions take one image at a time, whose data fit the second cache.
const EXAMPLES_AT_ONCE: usize = 64;

/// Sizes of the network; other than the paper's only in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Height and width of the images, a multiple of 4.
    pub(super) side: usize,
    pub(super) filters: [usize; 2],
    pub(super) hidden: usize,
    pub(super) classes: usize,
}

/// Convolution 5x5x32, max-pool 2x2, convolution 5x5x64, max-pool 2x2, dense 512, dense 10, for images of 28 x 28;
/// the convolutions keep the size of the image ("SAME"), and they and the first dense layer are followed by ReLU
/// (McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 3).
pub struct Cnn {
    sizes: Sizes,
    stages: [Stage; 2],
    dense: [Dense; 2],
    /// The image at hand, with margins.
    image: Vec<f32>,
    /// Results of the first stage for the current examples, with margins.
    maps: Vec<f32>,
    /// Results of the second stage for the current examples, flat, and their gradients.
    flat: Vec<f32>,
    flat_delta: Vec<f32>,
    hidden: Vec<f32>,
    hidden_delta: Vec<f32>,
    /// Outputs of the last layer, and in the end their gradients.
    logits: Vec<f32>,
    /// Gradient of the first stage's result for the image at hand, and the kernel that makes it.
    maps_delta: Vec<f32>,
    turned_kernel: Vec<f32>,
    /// Rows of a dense layer's weight that have become columns.
    turned: Floats,
}

/// A convolution with its pooling.
struct Stage {
    convolution: Convolution,
    pool: Pool,
    /// Where the kernel starts in the flat buffer; the bias follows.
    start: usize,
    /// Outputs of the convolution for the image at hand, before the pooling.
    output: Vec<f32>,
    /// Gradient of these, with margins, which stay zero.
    delta: Vec<f32>,
    /// Of all current examples.
    winners: Vec<Winner>,
}

impl fmt::Debug for Cnn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cnn").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

impl Default for Cnn {
    fn default() -> Self {
        Self::new()
    }
}

impl Cnn {
    /// The network of the paper: 1,663,370 parameters.
    pub fn new() -> Self {
        Self::with_sizes(Sizes { side: 28, filters: [32, 64], hidden: 512, classes: 10 })
    }

    pub(super) fn with_sizes(sizes: Sizes) -> Self {
        let Sizes { side, filters, hidden, classes } = sizes;
        let quarter = side / 4;
        let inner = Convolution::new(side / 2, filters[0], filters[1]);
        let first = Stage::new(Convolution::new(side, 1, filters[0]), side / 2, filters[0], inner.pitch(), 0);
        let second = Stage::new(inner, quarter, filters[1], quarter, first.bias().end);
        let dense1 = Dense::new(quarter * quarter * filters[1], hidden, second.bias().end);
        let dense2 = Dense::new(hidden, classes, dense1.end());
        Self {
            sizes,
            image: vec![0.0; first.convolution.padded()],
            maps_delta: vec![0.0; second.convolution.positions() * filters[0]],
            turned_kernel: vec![0.0; second.convolution.kernel_values()],
            turned: Floats::default(),
            stages: [first, second],
            dense: [dense1, dense2],
            maps: Vec::new(),
            flat: Vec::new(),
            flat_delta: Vec::new(),
            hidden: Vec::new(),
            hidden_delta: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Computes the outputs of all layers for at most `EXAMPLES_AT_ONCE` examples, unless values do not come.
    fn forward(&mut self, passes: &mut dyn Passes, batch: Batch<'_>, progress: &mut Progress) -> Option<()> {
        let examples = batch.len();
        let [first, second] = &mut self.stages;
        let map = second.convolution.padded() * self.sizes.filters[0];
        // What is new becomes zero, and margins are never written again.
        self.maps.resize(examples * map, 0.0);
        self.flat.resize(examples * second.pool.values(), 0.0);
        first.winners.resize(examples * first.pool.values(), 0);
        second.winners.resize(examples * second.pool.values(), 0);
        let origin = second.convolution.origin() * self.sizes.filters[0];
        let mut parameters = passes.values(0..first.bias().end, progress.share())?;
        for i in 0..examples {
            lay_image(batch, i, &first.convolution, self.sizes.side, &mut self.image);
            let map = &mut self.maps[i * map..(i + 1) * map];
            first.forward(parameters, i, &self.image, &mut map[origin..]);
            if i == 0 {
                parameters = passes.values(0..second.bias().end, progress.share())?;
            }
            let flat = second.pool.values();
            let flat = &mut self.flat[i * flat..(i + 1) * flat];
            second.forward(parameters, i, map, flat);
        }
        progress.add(first.convolution.multiplications(), examples);
        progress.add(second.convolution.multiplications(), examples);
        let [dense1, dense2] = &self.dense;
        self.hidden.resize(examples * dense1.outputs(), 0.0);
        self.logits.resize(examples * dense2.outputs(), 0.0);
        let flat = Incoming::whole(&self.flat, second.pool.values());
        let own = passes.values(dense1.range(&dense1.rows()), progress.share())?;
        dense1.forward(own, &dense1.rows(), flat, Activation::Relu, &mut self.hidden);
        progress.add(dense1.multiplications(), examples);
        let hidden = Incoming::whole(&self.hidden, dense1.outputs());
        let own = passes.values(dense2.range(&dense2.rows()), progress.share())?;
        dense2.forward(own, &dense2.rows(), hidden, Activation::Linear, &mut self.logits);
        progress.add(dense2.multiplications(), examples);
        Some(())
    }

    /// Computes the gradient of all layers from that of the last layer's output, which `logits` holds.
    fn backward(
        &mut self,
        passes: &mut dyn Passes,
        batch: Batch<'_>,
        part: &Part,
        progress: &mut Progress,
    ) -> Option<()> {
        let (examples, all) = (batch.len(), self.values());
        let [dense1, dense2] = &self.dense;
        let hidden = Incoming::whole(&self.hidden, dense1.outputs());
        let (_, room) = passes.room(dense2.start()..all, part.is_cut());
        dense2.parameter_gradient(hidden, &self.logits, &dense2.rows(), part.accumulate(), room);
        progress.add(dense2.multiplications(), examples);
        if part.is_last {
            passes.made(dense2.start(), progress.share());
        }
        self.hidden_delta.resize(self.hidden.len(), 0.0);
        let weight = passes.values(dense2.weight(), progress.share())?;
        dense2.input_gradient(weight, &self.logits, &mut self.turned, &mut self.hidden_delta);
        mask_by_activation(&mut self.hidden_delta, &self.hidden);
        progress.add(dense2.multiplications(), examples);
        let [first, second] = &mut self.stages;
        let flat = Incoming::whole(&self.flat, second.pool.values());
        let (_, room) = passes.room(dense1.start()..dense2.start(), part.is_cut());
        dense1.parameter_gradient(flat, &self.hidden_delta, &dense1.rows(), part.accumulate(), room);
        progress.add(dense1.multiplications(), examples);
        if part.is_last {
            passes.made(dense1.start(), progress.share());
        }
        self.flat_delta.resize(self.flat.len(), 0.0);
        let weight = passes.values(dense1.weight(), progress.share())?;
        dense1.input_gradient(weight, &self.hidden_delta, &mut self.turned, &mut self.flat_delta);
        progress.add(dense1.multiplications(), examples);

        passes.values(second.kernel(), progress.share())?;
        let (kernel, gradient) = passes.room(0..dense1.start(), part.is_cut());
        if part.accumulate() == Accumulate::Replace {
            gradient.fill(0.0);
        }
        let [filters1, filters2] = self.sizes.filters;
        turn_around(kernel, (filters1, filters2), &mut self.turned_kernel);
        let turned = second.convolution.turned_around();
        let map = second.convolution.padded() * filters1;
        for (i, flat_delta) in self.flat_delta.chunks_exact(second.pool.values()).enumerate() {
            second.backward(i, flat_delta, &self.maps[i * map..(i + 1) * map], gradient);
            turned.apply(&second.delta, &self.turned_kernel, &mut self.maps_delta);
            // Nobody needs the gradient of the image.
            lay_image(batch, i, &first.convolution, self.sizes.side, &mut self.image);
            first.backward(i, &self.maps_delta, &self.image, gradient);
        }
        progress.add(2 * first.convolution.multiplications(), examples);
        progress.add(2 * second.convolution.multiplications(), examples);
        if part.is_last {
            // Image by image, both convolutions are done at the same time.
            passes.made(0, progress.share());
        }
        Some(())
    }

    fn progress(&self, examples: usize) -> Progress {
        let stages = self.stages.iter().map(|stage| stage.convolution.multiplications());
        let dense = self.dense.iter().map(Dense::multiplications);
        Progress::new(stages.chain(dense).sum(), examples)
    }

    fn values(&self) -> usize {
        self.dense[1].end()
    }
}

impl Stage {
    fn new(convolution: Convolution, side: usize, filters: usize, pooled_pitch: usize, start: usize) -> Self {
        Self {
            pool: Pool { side, channels: filters, pitch: convolution.pitch(), pooled_pitch },
            start,
            output: vec![0.0; convolution.positions() * filters],
            delta: vec![0.0; convolution.padded() * filters],
            winners: Vec::new(),
            convolution,
        }
    }

    fn kernel(&self) -> Range<usize> {
        self.start..self.start + self.convolution.kernel_values()
    }

    fn bias(&self) -> Range<usize> {
        let start = self.kernel().end;
        start..start + self.pool.channels
    }

    fn variables(&self, name: &str) -> [Variable; 2] {
        let weight = Initial::HeNormal { fan_in: self.convolution.fan_in() };
        [
            Variable::new(format!("{name}/weight"), &self.convolution.kernel_shape(), weight),
            Variable::new(format!("{name}/bias"), &[self.pool.channels as u64], Initial::Zeros),
        ]
    }

    /// Result of the stage for example `i`.
    fn forward(&mut self, parameters: &[f32], i: usize, padded: &[f32], pooled: &mut [f32]) {
        self.convolution.apply(padded, &parameters[self.kernel()], &mut self.output);
        let bias = &parameters[self.bias()];
        let winners = self.pool.values();
        let winners = &mut self.winners[i * winners..(i + 1) * winners];
        self.pool.forward(&self.output, bias, pooled, winners);
    }

    /// Adds the gradients of kernel and bias for example `i`, and leaves that of the convolution's output in `delta`.
    fn backward(&mut self, i: usize, pooled_delta: &[f32], padded: &[f32], gradient: &mut [f32]) {
        let bias = self.bias();
        let origin = self.convolution.origin() * self.pool.channels;
        let winners = self.pool.values();
        let winners = &self.winners[i * winners..(i + 1) * winners];
        self.pool.backward(pooled_delta, winners, &mut self.delta[origin..], &mut gradient[bias]);
        let kernel = self.kernel();
        self.convolution.add_kernel_gradient(padded, &self.delta, &mut gradient[kernel]);
    }
}

/// Copies example `i` between the margins, which are zero already.
fn lay_image(batch: Batch<'_>, i: usize, convolution: &Convolution, side: usize, padded: &mut [f32]) {
    let rows = padded[convolution.origin()..].chunks_mut(convolution.pitch());
    batch.features.write(i, rows.map(|row| &mut row[..side]));
}

impl Model for Cnn {
    fn variables(&self) -> Vec<Variable> {
        let [first, second] = &self.stages;
        let [dense1, dense2] = &self.dense;
        let he = |fan_in: usize| Initial::HeNormal { fan_in: fan_in as u64 };
        let mut variables = Vec::new();
        variables.extend(first.variables("conv1"));
        variables.extend(second.variables("conv2"));
        variables.extend(dense1.variables("dense1", he(second.pool.values())));
        variables.extend(dense2.variables("dense2", he(self.sizes.hidden)));
        variables
    }

    fn input(&self) -> Input {
        Input { features: self.sizes.side * self.sizes.side, classes: self.sizes.classes }
    }

    fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32 {
        assert_eq!(parameters.len(), self.values(), "flat buffers fit the model");
        assert_eq!(gradient.len(), self.values(), "flat buffers fit the model");
        self.gradient_with(&mut Whole::new(parameters, gradient), batch).expect("all values are there")
    }

    fn gradient_with(&mut self, passes: &mut dyn Passes, batch: Batch<'_>) -> Option<f32> {
        batch.check(self.input());
        assert!(!batch.is_empty(), "the mean over no examples is not defined");
        let scale = 1.0 / batch.len() as f32;
        let mut progress = self.progress(batch.len());
        let (mut loss_sum, mut mean) = (0.0, f32::NAN);
        for part in Part::all(batch, EXAMPLES_AT_ONCE) {
            let examples = part.of(batch);
            self.forward(passes, examples, &mut progress)?;
            loss_sum +=
                loss::cross_entropy_gradient(&mut self.logits, examples.labels, self.sizes.classes, scale);
            if part.is_last {
                mean = (loss_sum / batch.len() as f64) as f32;
                passes.loss(mean, progress.share())?;
            }
            self.backward(passes, examples, &part, &mut progress)?;
        }
        Some(mean)
    }

    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score {
        batch.check(self.input());
        assert_eq!(parameters.len(), self.values(), "flat buffers fit the model");
        let mut score = Score::default();
        let mut progress = self.progress(batch.len());
        for part in batch.chunks(EXAMPLES_AT_ONCE) {
            let passes = &mut Whole::new(parameters, &mut []);
            self.forward(passes, part, &mut progress).expect("all values are there");
            score += loss::score(&mut self.logits, part.labels, self.sizes.classes);
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Features, oracle};

    /// Small enough for a slow oracle, with one product per kernel row in the second stage as in the real one.
    const SMALL: Sizes = Sizes { side: 8, filters: [5, 6], hidden: 7, classes: 3 };

    fn check(sizes: Sizes, examples: usize, coordinates: usize) {
        oracle::check_model(
            &mut Cnn::with_sizes(sizes),
            examples,
            coordinates,
            |parameters, features, labels| oracle::cnn_loss(sizes, parameters, features, labels),
        );
    }

    #[test]
    fn gradients_agree_with_finite_differences_of_a_slow_network() {
        check(SMALL, 1, 30);
        check(SMALL, 5, 30);
        // Cut into two parts.
        check(Sizes { side: 4, filters: [2, 3], hidden: 3, classes: 2 }, 70, 10);
    }

    #[test]
    fn the_gradient_of_the_papers_network_agrees_with_finite_differences_of_a_slow_one() {
        check(Cnn::new().sizes, 1, 3);
    }

    #[test]
    fn buffers_hold_nothing_over_from_other_batches() {
        oracle::check_reuse(|| Box::new(Cnn::with_sizes(SMALL)));
    }

    #[test]
    fn bytes_give_the_gradient_of_what_they_mean() {
        oracle::check_bytes(&mut Cnn::with_sizes(SMALL), 3, 7);
    }

    #[test]
    fn divergence_is_not_hidden() {
        oracle::check_divergence(&mut Cnn::with_sizes(SMALL));
    }

    #[test]
    fn images_need_not_lie_end_to_end() {
        let mut model = Cnn::with_sizes(SMALL);
        let parameters = oracle::parameters(&model, 1);
        let (features, labels) = oracle::examples(model.input(), 6);
        let expected = model.score(&parameters, Batch::new(&features, &labels));
        // The same images in the memory order of columns.
        let turned = oracle::turned(Batch::new(&features, &labels));
        let batch = Batch { features: Features::Floats(turned.t()), labels: &labels };
        assert_eq!(model.score(&parameters, batch), expected);
    }
}
