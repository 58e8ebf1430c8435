//! Steps as Adam does, with a weight decay that Adam's division does not touch.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::adam::{self, Adam, AdamFactors};
use super::{Pass, Setting};

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2).
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g^2
/// w = w - rate decay w - rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)      t = 1, 2, ...
/// ```
///
/// The paper scales the decay by the schedule alone, we by the whole rate (peak times schedule), as most libraries do:
/// the paper's lambda is `rate * weight_decay` at the peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adamw {
    /// What remains of the first moment after each update.
    pub beta1: f64,
    /// What remains of the second moment after each update.
    pub beta2: f64,
    /// Keeps the denominator from 0.
    pub epsilon: f64,
    /// Decoupled: each update takes `rate * weight_decay` of the value away. With 0 this is [`Adam`], bit for bit.
    pub weight_decay: f64,
}

impl Default for Adamw {
    fn default() -> Self {
        let Adam { beta1, beta2, epsilon, weight_decay: _ } = Adam::default();
        Self { beta1, beta2, epsilon, weight_decay: 0.01 }
    }
}

impl Adamw {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![
            Setting::share("beta1", &mut self.beta1),
            Setting::share("beta2", &mut self.beta2),
            Setting::epsilon(&mut self.epsilon),
            Setting::weight_decay(&mut self.weight_decay),
        ]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let &Self { beta1, beta2, epsilon, weight_decay } = self;
        let plain = Adam { beta1, beta2, epsilon, weight_decay: 0.0 };
        let factors = AdamFactors::new(&plain, pass.rate, pass.updates());
        let shrink = (f64::from(pass.rate) * weight_decay) as f32;
        pass.run(|current, next, gradient, [first, second]| {
            adamw(current, next, gradient, first, second, factors, shrink);
        });
    }
}

/// The kernel of [`Adamw`]; `first` and `second` hold the moments, `shrink` is rate times weight decay.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn adamw(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: AdamFactors,
    shrink: f32,
) {
    if shrink == 0.0 {
        adam::each(current, next, gradient, first, second, factors, |w, g| (w, g));
    } else {
        adam::each(current, next, gradient, first, second, factors, |w, g| (w - shrink * w, g));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two, mut first, mut second) = ([0.0], [0.0], [0.0], [0.0]);
        let factors = |t| AdamFactors::new(&Adam::default(), 0.1, t);
        adamw(&[1.0], &mut one, &[1.0], &mut first, &mut second, factors(1), 0.05);
        assert!((one[0] - 0.85).abs() < 1e-6, "{}", one[0]); // 1 - 0.05 - 0.1
        adamw(&one, &mut two, &[-0.5], &mut first, &mut second, factors(2), 0.05);
        // The moments are Adam's: 0.85 - 0.05 * 0.85 - 0.1 * 0.266337.
        assert!((two[0] - 0.780_866_3).abs() < 1e-6, "{}", two[0]);
    }

    #[test]
    fn without_a_gradient_only_the_decay_remains() {
        let mut next = [0.0];
        let factors = AdamFactors::new(&Adam::default(), 0.5, 1);
        adamw(&[2.0], &mut next, &[0.0], &mut [0.0], &mut [0.0], factors, 0.125);
        assert_eq!(next, [1.75]);
    }
}
