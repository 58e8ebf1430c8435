//! Holds the models against slow, obvious networks in 64-bit arithmetic, in tests only.

use ndarray::Array2;
use windlass_common::ids::VariableId;
use windlass_common::layout::Layout;
use windlass_common::rng::{self, Purpose, Rng};

use super::cnn::Sizes;
use super::{Batch, Features, Input, Model};

/// Normal deviates that depend on the name alone.
pub(super) fn normal(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    rng::normal(1, Purpose::InitialValues(name), 0, 1.0, &mut values);
    values
}

/// Asserts that values of about 1 are the same but for the rounding of 32-bit sums of up to some thousand terms.
pub(super) fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0_f64, |max, x| max.max(x.abs()));
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - expected).abs() < 1e-5 * scale, "{what} {i}: {found}, not {expected}");
    }
}

/// Initial values, with small random ones instead of zeros so that nothing is symmetric.
pub(super) fn parameters(model: &dyn Model, seed: u64) -> Vec<f32> {
    let values = Layout::new(model.variables()).unwrap().initial_values(seed);
    let noise = normal("noise", values.len());
    values.iter().zip(noise).map(|(&value, noise)| if value == 0.0 { 0.1 * noise } else { value }).collect()
}

/// Examples with features in [0, 1), as pixels are.
pub(super) fn examples(input: Input, examples: usize) -> (Vec<f32>, Vec<u32>) {
    examples_with(input, examples, 1)
}

/// Of so many features one is not 0: all, or few.
const ONE_IN: [u64; 2] = [1, 4];

/// The same, with one in so many features not 0.
fn examples_with(input: Input, examples: usize, one_in: u64) -> (Vec<f32>, Vec<u32>) {
    let mut rng = Rng::new(5, Purpose::Delivery);
    let mut feature = || if rng.below(one_in) == 0 { rng.unit() as f32 } else { 0.0 };
    let features = (0..examples * input.features).map(|_| feature()).collect();
    let labels = (0..examples).map(|_| rng.below(input.classes as u64) as u32).collect();
    (features, labels)
}

/// Checks loss, score and gradient of a model against the mean loss of a slow network.
///
/// The finite differences are those of the slow network: in 64 bits a step of 1e-6 leaves about 9 digits, and hardly
/// ever crosses a kink of a ReLU. So what is left between them and the gradient is the rounding of the 32-bit model.
pub(super) fn check_model(
    model: &mut dyn Model,
    count: usize,
    coordinates: usize,
    slow_loss: impl Fn(&[f64], &[f32], &[u32]) -> f64,
) {
    for one_in in ONE_IN {
        let (features, labels) = examples_with(model.input(), count, one_in);
        check_model_of(model, (&features, &labels), coordinates, &slow_loss);
    }
}

fn check_model_of(
    model: &mut dyn Model,
    (features, labels): (&[f32], &[u32]),
    coordinates: usize,
    slow_loss: impl Fn(&[f64], &[f32], &[u32]) -> f64,
) {
    let batch = Batch::new(features, labels);
    let values = parameters(model, 3);
    let mut gradient = vec![f32::NAN; values.len()];
    let loss = model.gradient(&values, batch, &mut gradient);
    let score = model.score(&values, batch);
    assert_eq!(score.examples, labels.len() as u64);
    assert!((score.loss() - f64::from(loss)).abs() < 1e-6 * score.loss().max(1.0), "{score:?} {loss}");

    let mut values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let slow = slow_loss(&values, features, labels);
    assert!((f64::from(loss) - slow).abs() < 1e-5 * slow.max(1.0), "loss {loss}, not {slow}");

    let layout = Layout::new(model.variables()).unwrap();
    let mut rng = Rng::new(7, Purpose::Partition);
    for (i, variable) in layout.variables().iter().enumerate() {
        let range = layout.range(VariableId(i as u32));
        let part = &gradient[range.clone()];
        let largest = (0..part.len()).max_by(|&a, &b| part[a].abs().total_cmp(&part[b].abs())).unwrap();
        let scale = f64::from(part[largest].abs());
        let random = (0..coordinates).map(|_| rng.below(part.len() as u64) as usize);
        for place in std::iter::once(largest).chain(random) {
            let slope =
                central_difference(&mut values, range.start + place, |v| slow_loss(v, features, labels));
            let found = f64::from(part[place]);
            assert!(
                (found - slope).abs() < 1e-4 * scale + 1e-8,
                "{} value {place}: gradient {found}, finite difference {slope}",
                variable.name
            );
        }
    }
    check_direction(model, batch, &gradient);
}

fn central_difference(values: &mut [f64], place: usize, loss: impl Fn(&[f64]) -> f64) -> f64 {
    const STEP: f64 = 1e-6;
    let before = values[place];
    values[place] = before + STEP;
    let up = loss(values);
    values[place] = before - STEP;
    let down = loss(values);
    values[place] = before;
    (up - down) / (2.0 * STEP)
}

/// Along the gradient itself the model's own loss rises as the gradient says.
///
/// All values move, so the rise is far above the rounding of a 32-bit loss: with a step that should change the loss by
/// 0.2 %, rounding is 1e-4 of the change; what the tolerance is for is curvature and kinks on the way.
fn check_direction(model: &mut dyn Model, batch: Batch<'_>, gradient: &[f32]) {
    let values = parameters(model, 3);
    let square: f64 = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    let loss = model.score(&values, batch).loss();
    let step = 0.001 * loss / square;
    let mut moved = |sign: f64| {
        let values: Vec<f32> = values
            .iter()
            .zip(gradient)
            .map(|(&v, &g)| (f64::from(v) + sign * step * f64::from(g)) as f32)
            .collect();
        model.score(&values, batch).loss()
    };
    let rise = (moved(1.0) - moved(-1.0)) / (2.0 * step * square);
    assert!((rise - 1.0).abs() < 0.02, "the loss rises by {rise} times what the gradient says");
}

/// The features of a batch with examples and features exchanged in memory.
pub(super) fn turned(batch: Batch<'_>) -> Array2<f32> {
    let Features::Floats(values) = batch.features else { unreachable!("they are floats") };
    values.t().as_standard_layout().into_owned()
}

/// Bytes give loss, gradient and score of the floats that they mean, to the bit.
pub(super) fn check_bytes(model: &mut dyn Model, one_in: u64, count: usize) {
    let values = parameters(model, 3);
    let (features, labels) = examples_with(model.input(), count, one_in);
    let bytes: Vec<u8> = features.iter().map(|feature| (feature * 255.0).round() as u8).collect();
    let meant: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let (expected, batch) = (Batch::new(&meant, &labels), Batch::of_bytes(&bytes, &labels));
    let mut gradients = [vec![f32::NAN; values.len()], vec![f32::NAN; values.len()]];
    let [one, other] = &mut gradients;
    assert_eq!(model.gradient(&values, batch, one), model.gradient(&values, expected, other));
    assert_eq!(one, other);
    assert_eq!(model.score(&values, batch), model.score(&values, expected));
}

/// A model that has seen other batches gives the same bits as a new one.
pub(super) fn check_reuse(new: impl Fn() -> Box<dyn Model>) {
    let mut used = new();
    let values = parameters(&*used, 3);
    for (count, one_in) in [(64, 1), (1, 1), (100, 4), (7, 1), (3, 4), (100, 1)] {
        let (features, labels) = examples_with(used.input(), count, one_in);
        let batch = Batch::new(&features, &labels);
        let mut fresh = new();
        let (mut a, mut b) = (vec![f32::NAN; values.len()], vec![1e30; values.len()]);
        assert_eq!(used.gradient(&values, batch, &mut a), fresh.gradient(&values, batch, &mut b));
        assert_eq!(a, b, "batch of {count}, one in {one_in}");
        assert_eq!(used.score(&values, batch), new().score(&values, batch));
    }
    assert_eq!(used.score(&values, Batch::new(&[], &[])), super::Score::default());
}

/// One value that is not a number, anywhere in the parameters or the features, makes the loss so.
pub(super) fn check_divergence(model: &mut dyn Model) {
    let input = model.input();
    for one_in in ONE_IN {
        check_divergence_of(model, examples_with(input, 3, one_in));
    }
}

fn check_divergence_of(model: &mut dyn Model, (mut features, labels): (Vec<f32>, Vec<u32>)) {
    let values = parameters(model, 3);
    let layout = Layout::new(model.variables()).unwrap();
    let mut gradient = vec![0.0; values.len()];
    for i in 0..layout.variables().len() {
        let mut values = values.clone();
        values[layout.range(VariableId(i as u32))].fill(f32::NAN);
        let batch = Batch::new(&features, &labels);
        assert!(model.gradient(&values, batch, &mut gradient).is_nan(), "variable {i}");
        assert!(model.score(&values, batch).loss_sum.is_nan(), "variable {i}");
    }
    features[1] = f32::NAN;
    assert!(model.gradient(&values, Batch::new(&features, &labels), &mut gradient).is_nan());
    // Sums beyond the largest number.
    let huge = vec![3e38; values.len()];
    features[1] = 0.5;
    assert!(!model.gradient(&huge, Batch::new(&features, &labels), &mut gradient).is_finite());
}

/// Mean loss of a fully connected network.
pub(super) fn mlp_loss(sizes: &[usize], parameters: &[f64], features: &[f32], labels: &[u32]) -> f64 {
    let losses = features.chunks_exact(sizes[0]).zip(labels).map(|(example, &label)| {
        let mut parameters = parameters;
        let mut values: Vec<f64> = example.iter().map(|&x| f64::from(x)).collect();
        for (layer, pair) in sizes.windows(2).enumerate() {
            let last = layer + 2 == sizes.len();
            values = dense(&values, pair[1], &mut parameters, last);
        }
        cross_entropy(&values, label)
    });
    losses.sum::<f64>() / labels.len() as f64
}

/// Mean loss of the convolutional network, with direct convolutions.
pub(super) fn cnn_loss(sizes: Sizes, parameters: &[f64], features: &[f32], labels: &[u32]) -> f64 {
    let losses = features.chunks_exact(sizes.side * sizes.side).zip(labels).map(|(example, &label)| {
        let mut parameters = parameters;
        let image: Vec<f64> = example.iter().map(|&x| f64::from(x)).collect();
        let [first, second] = sizes.filters;
        let values = stage(&image, sizes.side, 1, first, &mut parameters);
        let values = stage(&values, sizes.side / 2, first, second, &mut parameters);
        let values = dense(&values, sizes.hidden, &mut parameters, false);
        cross_entropy(&dense(&values, sizes.classes, &mut parameters, true), label)
    });
    losses.sum::<f64>() / labels.len() as f64
}

fn take<'a>(parameters: &mut &'a [f64], count: usize) -> &'a [f64] {
    let (taken, rest) = parameters.split_at(count);
    *parameters = rest;
    taken
}

fn dense(input: &[f64], outputs: usize, parameters: &mut &[f64], last: bool) -> Vec<f64> {
    let weight = take(parameters, input.len() * outputs);
    let mut values = take(parameters, outputs).to_vec();
    for (x, row) in input.iter().zip(weight.chunks_exact(outputs)) {
        for (value, w) in values.iter_mut().zip(row) {
            *value += x * w;
        }
    }
    if !last {
        values.iter_mut().for_each(|v| *v = v.max(0.0));
    }
    values
}

/// Convolution with bias, ReLU and pooling, channels-last.
fn stage(image: &[f64], side: usize, inputs: usize, outputs: usize, parameters: &mut &[f64]) -> Vec<f64> {
    let kernel = take(parameters, 25 * inputs * outputs);
    let bias = take(parameters, outputs);
    let pooled = side / 2;
    let mut result = vec![0.0_f64; pooled * pooled * outputs];
    for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
        let mut pixel = bias.to_vec();
        for (ky, kx) in (0..5).flat_map(|ky| (0..5).map(move |kx| (ky, kx))) {
            let (iy, ix) = ((y + ky).wrapping_sub(2), (x + kx).wrapping_sub(2));
            if iy >= side || ix >= side {
                continue;
            }
            for i in 0..inputs {
                let value = image[(iy * side + ix) * inputs + i];
                let row = &kernel[((ky * 5 + kx) * inputs + i) * outputs..][..outputs];
                for (sum, w) in pixel.iter_mut().zip(row) {
                    *sum += value * w;
                }
            }
        }
        let place = (y / 2 * pooled + x / 2) * outputs;
        for (best, value) in result[place..place + outputs].iter_mut().zip(pixel) {
            *best = best.max(value);
        }
    }
    result
}

fn cross_entropy(logits: &[f64], label: u32) -> f64 {
    logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label as usize]
}
