//! Steps along the mean of recent gradients, divided by their size.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// Adam (Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1).
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g^2
/// w = w - rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)      t = 1, 2, ...
/// ```
///
/// The corrections of the bias are taken out of the loop as two factors, rate / (1 - beta1^t) and
/// 1 / sqrt(1 - beta2^t). Where the paper's section 2 does the same it moves epsilon too; here epsilon keeps its place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    /// What remains of the first moment after each update.
    pub beta1: f64,
    /// What remains of the second moment after each update.
    pub beta2: f64,
    /// Keeps the denominator from 0.
    pub epsilon: f64,
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl Adam {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![
            Setting::share("beta1", &mut self.beta1),
            Setting::share("beta2", &mut self.beta2),
            Setting::epsilon(&mut self.epsilon),
            Setting::weight_decay(&mut self.weight_decay),
        ]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let factors = AdamFactors::new(self, pass.rate, pass.updates());
        let decay = self.weight_decay as f32;
        pass.run(|current, next, gradient, [first, second]| {
            adam(current, next, gradient, first, second, factors, decay);
        });
    }
}

/// The numbers of one call of the kernel, the same for all values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamFactors {
    /// rate / (1 - beta1^t).
    pub step: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub root: f32,
    /// What remains of the first moment.
    pub beta1: f32,
    /// 1 - beta1, computed in f64.
    pub beta1_rest: f32,
    /// What remains of the second moment.
    pub beta2: f32,
    /// 1 - beta2, computed in f64.
    pub beta2_rest: f32,
    /// Keeps the denominator from 0.
    pub epsilon: f32,
}

impl AdamFactors {
    /// The factors of update number `updates`, counted from 1. The weight decay plays no part.
    ///
    /// # Panics
    /// If `updates` is 0: before the first update there is no bias to correct.
    pub fn new(optimizer: &Adam, rate: f32, updates: u64) -> Self {
        assert!(updates > 0, "the first update is number 1");
        let &Adam { beta1, beta2, epsilon, weight_decay: _ } = optimizer;
        Self {
            step: (f64::from(rate) / (1.0 - power(beta1, updates))) as f32,
            root: (1.0 / (1.0 - power(beta2, updates)).sqrt()) as f32,
            beta1: beta1 as f32,
            beta1_rest: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            beta2_rest: (1.0 - beta2) as f32,
            epsilon: epsilon as f32,
        }
    }
}

/// `base` to the power `exponent` by repeated squaring: the same bits on every machine, which `f64::powi` does not
/// promise.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut product, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    product
}

/// The kernel of [`Adam`]; `first` and `second` hold the moments.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn adam(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: AdamFactors,
    decay: f32,
) {
    if decay == 0.0 {
        each(current, next, gradient, first, second, factors, |w, g| (w, g));
    } else {
        each(current, next, gradient, first, second, factors, |w, g| (w, g + decay * w));
    }
}

/// What [`adam`] and [`adamw`](super::adamw()) share. `decayed` gives the value and the gradient to go on with.
#[inline(always)]
pub(super) fn each(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    factors: AdamFactors,
    decayed: impl Fn(f32, f32) -> (f32, f32),
) {
    assert_lengths(current.len(), [next.len(), gradient.len(), first.len(), second.len()]);
    let AdamFactors { step, root, beta1, beta1_rest, beta2, beta2_rest, epsilon } = factors;
    for ((((next, &w), &g), m), v) in next.iter_mut().zip(current).zip(gradient).zip(first).zip(second) {
        let (w, g) = decayed(w, g);
        *m = beta1 * *m + beta1_rest * g;
        *v = beta2 * *v + beta2_rest * (g * g);
        *next = w - step * *m / (v.sqrt() * root + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two, mut first, mut second) = ([0.0], [0.0], [0.0], [0.0]);
        let factors = |t| AdamFactors::new(&Adam::default(), 0.1, t);
        adam(&[1.0], &mut one, &[1.0], &mut first, &mut second, factors(1), 0.0);
        // m = 0.1, v = 0.001, both 1 without their bias.
        assert!((one[0] - 0.9).abs() < 1e-6, "{}", one[0]);
        adam(&one, &mut two, &[-0.5], &mut first, &mut second, factors(2), 0.0);
        // m = 0.04, without bias 0.04 / 0.19; v = 0.001249, without bias 0.001249 / 0.001999; 0.9 - 0.1 * 0.266337
        assert!((first[0] - 0.04).abs() < 1e-8 && (second[0] - 0.001_249).abs() < 1e-9);
        assert!((two[0] - 0.873_366_3).abs() < 1e-6, "{}", two[0]);
    }

    #[test]
    fn powers_are_right_and_fade() {
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(0.9, 1), 0.9);
        assert_eq!(power(0.0, 3), 0.0);
        assert!((power(0.999, 1000) - libm::pow(0.999, 1000.0)).abs() < 1e-14);
        assert_eq!(power(0.999, u64::MAX), 0.0);
    }

    #[test]
    fn after_many_updates_no_correction_remains() {
        let factors = AdamFactors::new(&Adam::default(), 0.1, 1_000_000);
        assert_eq!((factors.step, factors.root), (0.1, 1.0));
    }
}
