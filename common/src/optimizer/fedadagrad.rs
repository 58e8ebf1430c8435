//! Divides each step by the size of all pseudo-gradients so far.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::fedadam::{self, FedFactors};
use super::{Pass, Setting};

/// FedAdagrad (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2).
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = v + g^2        v = tau^2 before the first round
/// w = w - rate m / (sqrt(v) + tau)
/// ```
///
/// As in [`FedAdam`](super::FedAdam), g is minus the mean difference. There is no beta2: nothing is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedAdagrad {
    /// What remains of the first moment after each round. The paper's experiments have 0: the step is along g itself.
    pub beta1: f64,
    /// How adaptive it is: keeps the denominator from 0, and its square is the sum of squares before the first round.
    pub tau: f64,
}

impl Default for FedAdagrad {
    fn default() -> Self {
        Self { beta1: 0.0, tau: 1e-3 }
    }
}

impl FedAdagrad {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![Setting::share("beta1", &mut self.beta1), Setting::tau(&mut self.tau)]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let factors = FedFactors::new(pass.rate, self.beta1, 1.0, self.tau);
        pass.run(|current, next, gradient, [first, sum]| {
            fedadagrad(current, next, gradient, first, sum, factors);
        });
    }
}

/// The kernel of [`FedAdagrad`]; `first` holds the first moment and `sum` the sums of squares. It has no use for beta2.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn fedadagrad(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    sum: &mut [f32],
    factors: FedFactors,
) {
    fedadam::each(current, next, gradient, first, sum, factors, |v, square| v + square);
}

#[cfg(test)]
mod tests {
    use super::super::Optimizer;
    use super::super::fedadam::tests::assert_three_rounds;
    use super::*;

    #[test]
    fn three_rounds_give_the_values_of_the_paper() {
        let optimizer = Optimizer::FedAdagrad(FedAdagrad::default());
        assert_three_rounds(optimizer, [0.099_900_0, 0.144_581_4, 0.122_778_7]);
    }

    #[test]
    fn two_rounds_by_hand() {
        let (mut one, mut two, mut first, mut sum) = ([0.0], [0.0], [0.0], [0.0]);
        let factors = FedFactors::new(1.0, 0.5, 1.0, 1.0);
        fedadagrad(&[1.0], &mut one, &[3.0], &mut first, &mut sum, factors);
        assert_eq!((one, first, sum), ([0.625], [1.5], [9.0])); // 1 - 1.5 / (3 + 1)
        fedadagrad(&one, &mut two, &[-4.0], &mut first, &mut sum, factors);
        assert_eq!((first, sum), ([-1.25], [25.0]));
        assert_eq!(two, [0.625 + 1.25 / 6.0]);
    }
}
