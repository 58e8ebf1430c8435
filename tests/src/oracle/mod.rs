//! Says what a run must come to, by the slowest and most obvious means: one process, whole variables, scalar loops.
//!
//! Nothing here calls the kernels, the reductions or the rules that it judges. From the code under test it takes the
//! initial values, and the learning rate's schedule where a test has one that changes.

mod cohorts;
mod federated;

use std::collections::BTreeMap;

use windlass_common::ids::{Examples, Step, WorkerId};
use windlass_common::optimizer::{FedAdam, FedYogi, Optimizer};
use windlass_common::plan::Plan;
use windlass_common::wire::{Outcome, Record};

pub use cohorts::of_cohorts;
pub use federated::{Order, Weigh, federated};

use crate::problem::Problem;

/// A model that one process trains.
#[derive(Clone, Debug)]
pub struct Model {
    /// The values, in layout order.
    pub values: Vec<f32>,
    optimizer: Optimizer,
    first: Vec<f32>,
    second: Vec<f32>,
    updates: u32,
}

impl Model {
    /// A model that begins with these values.
    pub fn new(values: Vec<f32>, optimizer: Optimizer) -> Self {
        let all = |value| vec![value; values.len()];
        let second = match optimizer {
            Optimizer::FedAdam(FedAdam { tau, .. }) | Optimizer::FedYogi(FedYogi { tau, .. }) => {
                (tau * tau) as f32
            }
            _ => 0.0,
        };
        Self { first: all(0.0), second: all(second), values, optimizer, updates: 0 }
    }

    /// The model of a plan, before the first step.
    ///
    /// # Panics
    /// If the plan is not possible.
    pub fn of(plan: &Plan) -> Self {
        let layout = plan.layout().expect("a checked plan has a layout");
        Self::new(layout.initial_values(plan.seed), plan.optimizer)
    }

    /// What the optimizer remembers of each value, by the order of its state.
    pub fn vector(&self, number: usize) -> &[f32] {
        if number == 0 { &self.first } else { &self.second }
    }

    /// Optimizer steps made.
    pub fn updates(&self) -> u32 {
        self.updates
    }

    /// One optimizer step, value by value, in the words of each method's definition.
    ///
    /// # Panics
    /// For an optimizer that nobody has written down here.
    pub fn step(&mut self, gradient: &[f32], rate: f32) {
        self.updates += 1;
        assert_eq!(gradient.len(), self.values.len());
        for (i, &g) in gradient.iter().enumerate() {
            let w = self.values[i];
            let (m, v) = (&mut self.first[i], &mut self.second[i]);
            self.values[i] = match self.optimizer {
                Optimizer::Sgd(sgd) => w - rate * decayed(w, g, sgd.weight_decay),
                Optimizer::Momentum(momentum) => {
                    *m = momentum.mu as f32 * *m + decayed(w, g, momentum.weight_decay);
                    w - rate * *m
                }
                Optimizer::Nesterov(nesterov) => {
                    let (mu, g) = (nesterov.mu as f32, decayed(w, g, nesterov.weight_decay));
                    *m = mu * *m + g;
                    w - rate * (g + mu * *m)
                }
                Optimizer::Adam(adam) => {
                    let g = decayed(w, g, adam.weight_decay);
                    *m = adam.beta1 as f32 * *m + (1.0 - adam.beta1) as f32 * g;
                    *v = adam.beta2 as f32 * *v + (1.0 - adam.beta2) as f32 * (g * g);
                    let step = (f64::from(rate) / (1.0 - power(adam.beta1, self.updates))) as f32;
                    let root = (1.0 / (1.0 - power(adam.beta2, self.updates)).sqrt()) as f32;
                    w - step * *m / (v.sqrt() * root + adam.epsilon as f32)
                }
                Optimizer::FedAdam(fed) => {
                    *m = fed.beta1 as f32 * *m + (1.0 - fed.beta1) as f32 * g;
                    *v = fed.beta2 as f32 * *v + (1.0 - fed.beta2) as f32 * (g * g);
                    w - rate * *m / (v.sqrt() + fed.tau as f32)
                }
                Optimizer::FedYogi(fed) => {
                    *m = fed.beta1 as f32 * *m + (1.0 - fed.beta1) as f32 * g;
                    let change = (1.0 - fed.beta2) as f32 * (g * g);
                    if *v > g * g {
                        *v -= change;
                    } else if *v < g * g {
                        *v += change;
                    }
                    w - rate * *m / (v.sqrt() + fed.tau as f32)
                }
                other => panic!("the oracle does not know {other}"),
            };
        }
    }
}

fn decayed(w: f32, g: f32, decay: f64) -> f32 {
    if decay == 0.0 { g } else { g + decay as f32 * w }
}

fn power(base: f64, exponent: u32) -> f64 {
    (0..exponent).fold(1.0, |product, _| product * base)
}

/// The mean of gradients with their counts of examples, in the order given: S = c1 x1; S += ci xi; one division. The
/// mean of one is itself.
///
/// # Panics
/// If there is none.
pub fn mean(gradients: &[(u32, &[f32])]) -> Vec<f32> {
    if let [(_, only)] = gradients {
        return only.to_vec();
    }
    let total: u64 = gradients.iter().map(|(count, _)| u64::from(*count)).sum();
    let mut mean = Vec::new();
    for i in 0..gradients[0].1.len() {
        let mut sum = gradients[0].0 as f32 * gradients[0].1[i];
        for (count, gradient) in &gradients[1..] {
            sum += *count as f32 * gradient[i];
        }
        mean.push(sum / total as f32);
    }
    mean
}

/// Synchronous training: one process goes through the batches of these ranks in order and makes one step of them all.
pub fn synchronous(plan: &Plan, problem: &dyn Problem, ranks: &[WorkerId]) -> Vec<f32> {
    let mut model = Model::of(plan);
    let (mut applied, target) = (0_u64, plan.examples_target().0);
    let mut step = Step(0);
    while applied < target {
        let gradients: Vec<(u32, Vec<f32>)> = ranks
            .iter()
            .map(|&rank| {
                let mut gradient = vec![0.0; model.values.len()];
                problem.gradient(rank, step, &model.values, &mut gradient);
                (problem.examples(rank, step), gradient)
            })
            .collect();
        let borrowed: Vec<(u32, &[f32])> =
            gradients.iter().map(|(count, g)| (*count, g.as_slice())).collect();
        model.step(&mean(&borrowed), plan.schedule.rate(applied, target));
        applied += gradients.iter().map(|(count, _)| u64::from(*count)).sum::<u64>();
        step = step.next();
    }
    model.values
}

/// Sequential SGD on the batches of worker 0.
pub fn sequential(plan: &Plan, problem: &dyn Problem) -> Vec<f32> {
    let mut model = Model::of(plan);
    let (mut applied, target) = (0_u64, plan.examples_target().0);
    let mut gradient = vec![0.0; model.values.len()];
    let mut step = Step(0);
    while applied < target {
        problem.gradient(WorkerId(0), step, &model.values, &mut gradient);
        model.step(&gradient, plan.schedule.rate(applied, target));
        applied += u64::from(problem.examples(WorkerId(0), step));
        step = step.next();
    }
    model.values
}

/// SGD on the batches of worker 0 where each gradient is computed while the one before is on its way: the first two on the
/// initial values, each other one on the values that the last step but one has made.
pub fn one_behind(plan: &Plan, problem: &dyn Problem) -> Vec<f32> {
    let mut model = Model::of(plan);
    let (mut applied, target) = (0_u64, plan.examples_target().0);
    let (mut at_hand, mut gradient) = (model.values.clone(), vec![0.0; model.values.len()]);
    let mut step = Step(0);
    while applied < target {
        problem.gradient(WorkerId(0), step, &at_hand, &mut gradient);
        at_hand.clone_from(&model.values);
        model.step(&gradient, plan.schedule.rate(applied, target));
        applied += u64::from(problem.examples(WorkerId(0), step));
        step = step.next();
    }
    model.values
}

/// What one shard's values were at each of its versions, by its own records.
///
/// `model` has its values before the first. `step` makes the next version of the pushes that it names, in the order of
/// their clients; it is also told what was applied before them, and every version so far. Returns all versions, and the
/// model as it is after the last.
///
/// # Panics
/// If the records tell no history: versions not in order, or counts that do not add up.
pub fn replay<'r>(
    mut model: Model,
    records: impl Iterator<Item = &'r Record>,
    step: impl Fn(&mut Model, &[&'r Record], Examples, &[Vec<f32>]),
) -> (Vec<Vec<f32>>, Model) {
    let mut by_version: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    let mut last = 0;
    for record in records {
        if let Outcome::Applied { version, staleness } = record.outcome {
            assert!(version.0 >= last, "versions rise: {record:?}");
            assert_eq!(
                staleness,
                version.0 - 1 - record.base.0,
                "staleness counts the versions between: {record:?}"
            );
            last = version.0;
            by_version.entry(version.0).or_default().push(record);
        }
    }
    let mut examples = Examples(0);
    let mut versions = vec![model.values.clone()];
    for (number, mut pushes) in by_version {
        assert_eq!(number, versions.len() as u64, "no version is left out");
        pushes.sort_by_key(|r| (r.client, r.worker, r.sequence));
        step(&mut model, &pushes, examples, &versions);
        examples.0 += pushes.iter().map(|r| r.work).sum::<u64>();
        assert!(pushes.iter().all(|r| r.examples_applied == examples), "examples add up: {pushes:?}");
        versions.push(model.values.clone());
    }
    (versions, model)
}

#[cfg(test)]
mod tests {
    use windlass_common::optimizer::{Adam, Momentum, Sgd};

    use super::*;

    #[test]
    fn steps_by_hand() {
        let stepped = |optimizer, gradients: &[f32], rate| {
            let mut model = Model::new(vec![1.0], optimizer);
            gradients.iter().for_each(|&g| model.step(&[g], rate));
            model.values[0]
        };
        assert_eq!(stepped(Optimizer::Sgd(Sgd { weight_decay: 0.5 }), &[1.0], 0.5), 0.25);
        let momentum = Momentum { mu: 0.5, weight_decay: 0.0 };
        assert_eq!(stepped(Optimizer::Momentum(momentum), &[2.0, 1.0], 0.25), 0.0);
        // The first step of Adam is the rate, whatever the gradient.
        assert!((stepped(Optimizer::Adam(Adam::default()), &[123.0], 0.1) - 0.9).abs() < 1e-6);
    }

    #[test]
    fn federated_steps_by_hand() {
        // Reddi et al. 2021, algorithm 2, on w = 0 with differences 1, 0.5, -0.25.
        let last = |optimizer| {
            let mut model = Model::new(vec![0.0], optimizer);
            [-1.0, -0.5, 0.25].iter().for_each(|&g| model.step(&[g], 0.1));
            model.values[0]
        };
        assert!((last(Optimizer::FedAdam(FedAdam::default())) - 0.311_747_7).abs() < 1e-6);
        assert!((last(Optimizer::FedYogi(FedYogi::default())) - 0.310_503_7).abs() < 1e-6);
    }

    #[test]
    fn means_by_hand() {
        assert_eq!(mean(&[(1, &[1.0]), (3, &[5.0])]), [4.0]);
        assert_eq!(mean(&[(7, &[0.1])]), [0.1]);
        assert_eq!(mean(&[(1, &[1e8]), (1, &[-1e8]), (1, &[1.0])]), [1.0 / 3.0], "the order counts");
    }
}
