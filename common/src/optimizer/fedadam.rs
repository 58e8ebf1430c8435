//! Steps along the mean of the rounds' pseudo-gradients, divided by their recent size.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// FedAdam (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2).
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g^2        v = tau^2 before the first round
/// w = w - rate m / (sqrt(v) + tau)
/// ```
///
/// The paper takes the mean D of the clients' differences and adds; here, as for every optimizer, the gradient is g =
/// -D and is taken away. That gives the same values. Nothing corrects the bias of the averages, as the paper does not,
/// so this is not [`Adam`](super::Adam) fed with differences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedAdam {
    /// What remains of the first moment after each round.
    pub beta1: f64,
    /// What remains of the second moment after each round.
    pub beta2: f64,
    /// How adaptive it is: keeps the denominator from 0, and its square is the second moment before the first round.
    pub tau: f64,
}

impl Default for FedAdam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

impl FedAdam {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![
            Setting::share("beta1", &mut self.beta1),
            Setting::share("beta2", &mut self.beta2),
            Setting::tau(&mut self.tau),
        ]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let factors = FedFactors::new(pass.rate, self.beta1, self.beta2, self.tau);
        pass.run(|current, next, gradient, [first, second]| {
            fedadam(current, next, gradient, first, second, factors);
        });
    }
}

/// The numbers of one call of the kernels [`fedadam`], [`fedyogi`](super::fedyogi()) and
/// [`fedadagrad`](super::fedadagrad()), the same for all values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FedFactors {
    /// The server's learning rate.
    pub rate: f32,
    /// What remains of the first moment.
    pub beta1: f32,
    /// 1 - beta1, computed in f64.
    pub beta1_rest: f32,
    /// What remains of the second moment.
    pub beta2: f32,
    /// 1 - beta2, computed in f64.
    pub beta2_rest: f32,
    /// Keeps the denominator from 0.
    pub tau: f32,
}

impl FedFactors {
    /// Rounds each number once.
    pub fn new(rate: f32, beta1: f64, beta2: f64, tau: f64) -> Self {
        Self {
            rate,
            beta1: beta1 as f32,
            beta1_rest: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            beta2_rest: (1.0 - beta2) as f32,
            tau: tau as f32,
        }
    }
}

/// The second moment before the first round, tau^2.
pub(super) fn initial_second(tau: f64) -> f32 {
    (tau * tau) as f32
}

/// The kernel of [`FedAdam`]; `first` and `second` hold the moments.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn fedadam(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: FedFactors,
) {
    let FedFactors { beta2, beta2_rest, .. } = factors;
    each(current, next, gradient, first, second, factors, |v, square| beta2 * v + beta2_rest * square);
}

/// What the three kernels of Reddi et al. share. `sized` gives the second moment that follows from the one before and
/// the square of the gradient.
#[inline(always)]
pub(super) fn each(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: FedFactors,
    sized: impl Fn(f32, f32) -> f32,
) {
    assert_lengths(current.len(), [next.len(), gradient.len(), first.len(), second.len()]);
    let FedFactors { rate, beta1, beta1_rest, tau, .. } = factors;
    for ((((next, &w), &g), m), v) in next.iter_mut().zip(current).zip(gradient).zip(first).zip(second) {
        *m = beta1 * *m + beta1_rest * g;
        *v = sized(*v, g * g);
        *next = w - rate * *m / (v.sqrt() + tau);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Gradient, Optimizer, State, Update};
    use super::*;

    /// Holds an optimizer against three rounds of mean differences 1, 0.5 and -0.25 from the value 0 at rate 0.1.
    pub(in super::super) fn assert_three_rounds(optimizer: Optimizer, expected: [f64; 3]) {
        let (mut w, mut state) = ([0.0], State::new(&optimizer, 1));
        for (difference, expected) in [1.0, 0.5, -0.25].into_iter().zip(expected) {
            let before = w;
            let gradient = [-difference];
            optimizer.update(Update {
                current: Some(&before),
                next: &mut w,
                gradient: Gradient::Whole(&gradient),
                state: &mut state,
                rate: 0.1,
            });
            let error = (f64::from(w[0]) - expected).abs();
            assert!(error < 1e-6, "{optimizer}: {} is not {expected}", w[0]);
        }
    }

    #[test]
    fn three_rounds_give_the_values_of_the_paper() {
        // w = 0.1 * 0.1 / (sqrt(0.01 + 0.99 * 1e-6) + 1e-3) after the first.
        assert_three_rounds(Optimizer::FedAdam(FedAdam::default()), [0.099_005_0, 0.223_604_9, 0.311_747_7]);
    }

    #[test]
    fn it_is_not_adam_fed_with_differences() {
        let (mut next, optimizer) = ([0.0], Optimizer::FedAdam(FedAdam::default()));
        let mut state = State::new(&optimizer, 1);
        assert_eq!(state.vectors, [vec![0.0].into(), vec![1e-6].into()]);
        let (current, gradient) = ([0.0], [-1e-3]);
        optimizer.update(Update {
            current: Some(&current),
            next: &mut next,
            gradient: Gradient::Whole(&gradient),
            state: &mut state,
            rate: 0.1,
        });
        // Adam's first step is the rate, here 0.1, whatever the gradient's size; a small one counts for little here.
        assert!((next[0] - 0.005).abs() < 1e-6, "{}", next[0]);
    }
}
