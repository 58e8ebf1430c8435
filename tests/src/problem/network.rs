//! Poses a small classification by a network of two layers, in which every operation rounds.

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::layout::{Initial, Variable};
use windlass_common::rng::{self, Purpose, Rng};

use super::{Client, Problem};

const INPUTS: usize = 23;
const HIDDEN: usize = 47;
const CLASSES: usize = 5;
const EXAMPLES: usize = 200;

/// Softmax over a hidden layer of rectifiers, on seeded synthetic data; batches are drawn by (worker, step).
#[derive(Debug)]
pub struct Network {
    seed: u64,
    inputs: Vec<f32>,
    labels: Vec<usize>,
    /// Size of the batch of worker 0.
    batch: u32,
    /// How much larger the batch of each further worker is.
    more: u32,
}

/// A client has some examples of all, beginning with one of its own.
const CLIENT_STRIDE: usize = 37;

impl Network {
    /// A problem with batches of `batch` examples for every worker.
    pub fn new(seed: u64, batch: u32) -> Self {
        let mut inputs = vec![0.0; EXAMPLES * INPUTS];
        rng::normal(seed, Purpose::InitialValues("inputs"), 0, 1.0, &mut inputs);
        let mut teacher = vec![0.0; INPUTS * CLASSES];
        rng::normal(seed, Purpose::InitialValues("teacher"), 0, 1.0, &mut teacher);
        let label = |input: &[f32]| {
            let score = |c: usize| -> f32 {
                input.iter().zip(teacher.iter().skip(c).step_by(CLASSES)).map(|(x, t)| x * t).sum()
            };
            (0..CLASSES).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap_or(0)
        };
        let labels = inputs.chunks(INPUTS).map(label).collect();
        Self { seed, inputs, labels, batch, more: 0 }
    }

    /// A problem in which worker k has batches of `batch` + k `more` examples, so that pushes differ in weight.
    pub fn uneven(seed: u64, batch: u32, more: u32) -> Self {
        Self { more, ..Self::new(seed, batch) }
    }
}

impl Network {
    /// The mean gradient over these examples, and their mean loss.
    fn over(&self, examples: &[usize], values: &[f32], gradient: &mut [f32]) -> f32 {
        let (hidden_weight, rest) = values.split_at(INPUTS * HIDDEN);
        let (hidden_bias, rest) = rest.split_at(HIDDEN);
        let (output_weight, output_bias) = rest.split_at(HIDDEN * CLASSES);
        gradient.fill(0.0);
        let (to_hidden_weight, rest) = gradient.split_at_mut(INPUTS * HIDDEN);
        let (to_hidden_bias, rest) = rest.split_at_mut(HIDDEN);
        let (to_output_weight, to_output_bias) = rest.split_at_mut(HIDDEN * CLASSES);

        let mut loss = 0.0;
        for &example in examples {
            let input = &self.inputs[example * INPUTS..][..INPUTS];
            let mut hidden = [0.0_f32; HIDDEN];
            hidden.copy_from_slice(hidden_bias);
            for (x, row) in input.iter().zip(hidden_weight.chunks(HIDDEN)) {
                hidden.iter_mut().zip(row).for_each(|(h, w)| *h += x * w);
            }
            hidden.iter_mut().for_each(|h| *h = h.max(0.0));
            let mut scores = [0.0_f32; CLASSES];
            scores.copy_from_slice(output_bias);
            for (h, row) in hidden.iter().zip(output_weight.chunks(CLASSES)) {
                scores.iter_mut().zip(row).for_each(|(s, w)| *s += h * w);
            }
            let errors = softmax_errors(scores, self.labels[example], &mut loss);
            for (i, (h, row)) in hidden.iter().zip(output_weight.chunks(CLASSES)).enumerate() {
                to_output_weight[i * CLASSES..][..CLASSES]
                    .iter_mut()
                    .zip(&errors)
                    .for_each(|(g, e)| *g += h * e);
                if *h <= 0.0 {
                    continue;
                }
                let back: f32 = row.iter().zip(&errors).map(|(w, e)| w * e).sum();
                to_hidden_bias[i] += back;
                input.iter().enumerate().for_each(|(j, x)| to_hidden_weight[j * HIDDEN + i] += x * back);
            }
            to_output_bias.iter_mut().zip(&errors).for_each(|(g, e)| *g += e);
        }
        gradient.iter_mut().for_each(|g| *g /= examples.len() as f32);
        loss / examples.len() as f32
    }
}

impl Problem for Network {
    fn variables(&self) -> Vec<Variable> {
        let layer = |name: &str, shape: &[usize], initial| {
            let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
            Variable::new(name, &shape, initial)
        };
        let he = |fan_in: usize| Initial::HeNormal { fan_in: fan_in as u64 };
        vec![
            layer("hidden/weight", &[INPUTS, HIDDEN], he(INPUTS)),
            layer("hidden/bias", &[HIDDEN], Initial::Zeros),
            layer("output/weight", &[HIDDEN, CLASSES], he(HIDDEN)),
            layer("output/bias", &[CLASSES], Initial::Zeros),
        ]
    }

    fn examples(&self, worker: WorkerId, _: Step) -> u32 {
        self.batch + worker.0 * self.more
    }

    fn gradient(&self, worker: WorkerId, step: Step, values: &[f32], gradient: &mut [f32]) -> f32 {
        let mut draw = Rng::new(self.seed, Purpose::Shuffle { worker: worker.0, pass: step.0 });
        let example = |_| draw.below(EXAMPLES as u64) as usize;
        let examples: Vec<usize> = (0..self.examples(worker, step)).map(example).collect();
        self.over(&examples, values, gradient)
    }

    /// Clients have 20 examples and more, and do one to three steps.
    fn client(&self, client: ClientId) -> Client {
        let examples = 20 + client.0 * self.more;
        Client { examples, steps: 1 + u64::from(client.0 % 3), batch: self.batch.min(examples) }
    }

    fn local_gradient(
        &self,
        client: ClientId,
        round: Step,
        step: u64,
        values: &[f32],
        gradient: &mut [f32],
    ) -> f32 {
        let of = self.client(client);
        let purpose = Purpose::ClientShuffle { client: client.0, round: round.0 * of.steps + step };
        let mut draw = Rng::new(self.seed, purpose);
        let own = |i| (client.index() * CLIENT_STRIDE + i) % EXAMPLES;
        let example = |_| own(draw.below(u64::from(of.examples)) as usize);
        let examples: Vec<usize> = (0..of.batch).map(example).collect();
        self.over(&examples, values, gradient)
    }
}

/// The gradient of the cross-entropy with respect to the scores; its value is added to `loss`.
fn softmax_errors(scores: [f32; CLASSES], label: usize, loss: &mut f32) -> [f32; CLASSES] {
    let largest = scores.iter().copied().fold(f32::MIN, f32::max);
    let powers = scores.map(|s| (s - largest).exp());
    let sum: f32 = powers.iter().sum();
    let mut errors = powers.map(|p| p / sum);
    *loss -= errors[label].max(f32::MIN_POSITIVE).ln();
    errors[label] -= 1.0;
    errors
}

#[cfg(test)]
mod tests {
    use windlass_common::layout::Layout;

    use super::*;

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let network = Network::new(3, 7);
        let layout = Layout::new(network.variables()).unwrap();
        let mut values = layout.initial_values(3);
        let (worker, step) = (WorkerId(1), Step(2));
        let mut gradient = vec![0.0; values.len()];
        network.gradient(worker, step, &values, &mut gradient);
        let mut ignored = vec![0.0; values.len()];
        let mut checked = 0;
        for i in (0..values.len()).step_by(13) {
            let before = values[i];
            let mut at = |w: f32| {
                values[i] = w;
                network.gradient(worker, step, &values, &mut ignored)
            };
            let slope = (at(before + 1e-2) - at(before - 1e-2)) / 2e-2;
            values[i] = before;
            assert!((slope - gradient[i]).abs() < 2e-2, "value {i}: {slope} is not {}", gradient[i]);
            checked += usize::from(gradient[i].abs() > 2e-2);
        }
        assert!(checked > 10, "the gradient is not zero");
    }
}
