//! Steps as FedAdam does, with a second moment that falls no faster than the rounds justify.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::fedadam::{self, FedAdam, FedFactors};
use super::{Pass, Setting};

/// FedYogi (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2, after Zaheer et al. 2018, "Adaptive
/// Methods for Nonconvex Optimization").
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = v - (1 - beta2) g^2 sign(v - g^2)        sign(0) = 0; v = tau^2 before the first round
/// w = w - rate m / (sqrt(v) + tau)
/// ```
///
/// The second moment moves by what the gradient's square allows and not by its distance from it, so that a single quiet
/// round does not let the next step grow. As in [`FedAdam`], g is minus the mean difference and no bias is corrected.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedYogi {
    /// What remains of the first moment after each round.
    pub beta1: f64,
    /// 1 - beta2 of a gradient's square goes into the second moment.
    pub beta2: f64,
    /// How adaptive it is: keeps the denominator from 0, and its square is the second moment before the first round.
    pub tau: f64,
}

impl Default for FedYogi {
    fn default() -> Self {
        let FedAdam { beta1, beta2, tau } = FedAdam::default();
        Self { beta1, beta2, tau }
    }
}

impl FedYogi {
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
            fedyogi(current, next, gradient, first, second, factors);
        });
    }
}

/// The kernel of [`FedYogi`]; `first` and `second` hold the moments.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn fedyogi(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: FedFactors,
) {
    let rest = factors.beta2_rest;
    fedadam::each(current, next, gradient, first, second, factors, |v, square| {
        let change = rest * square;
        // Two comparisons and not f32::signum, whose sign of 0 is 1.
        if v > square {
            v - change
        } else if v < square {
            v + change
        } else {
            v
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::Optimizer;
    use super::super::fedadam::tests::assert_three_rounds;
    use super::*;

    #[test]
    fn three_rounds_give_the_values_of_the_paper() {
        assert_three_rounds(Optimizer::FedYogi(FedYogi::default()), [0.099_005_0, 0.223_109_8, 0.310_503_7]);
    }

    #[test]
    fn the_second_moment_rises_falls_and_rests() {
        let factors = FedFactors::new(1.0, 0.0, 0.75, 1.0);
        let after = |v: f32, g: f32| {
            let (mut next, mut first, mut second) = ([0.0], [0.0], [v]);
            fedyogi(&[0.0], &mut next, &[g], &mut first, &mut second, factors);
            second[0]
        };
        assert_eq!(after(1.0, 2.0), 2.0); // 1 + 4 / 4
        assert_eq!(after(100.0, 2.0), 99.0); // 100 - 4 / 4; 0.75 * 100 + 4 / 4 = 76 would be Adam's
        assert_eq!(after(4.0, -2.0), 4.0); // sign(0) = 0
    }
}
