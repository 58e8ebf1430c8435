//! Divides each step by the size of all gradients so far.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// Adagrad with a diagonal matrix (Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods for Online Learning and
/// Stochastic Optimization", figure 1, without projection or regulariser).
///
/// ```text
/// s = s + g^2
/// w = w - rate g / (sqrt(s) + epsilon)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adagrad {
    /// The paper's delta; keeps the denominator from 0.
    pub epsilon: f64,
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Default for Adagrad {
    fn default() -> Self {
        Self { epsilon: 1e-10, weight_decay: 0.0 }
    }
}

impl Adagrad {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![Setting::epsilon(&mut self.epsilon), Setting::weight_decay(&mut self.weight_decay)]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let (rate, epsilon, decay) = (pass.rate, self.epsilon as f32, self.weight_decay as f32);
        pass.run(|current, next, gradient, [sum]| {
            adagrad(current, next, gradient, sum, rate, epsilon, decay);
        });
    }
}

/// The kernel of [`Adagrad`]; `sum` holds the sums of squares.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn adagrad(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    sum: &mut [f32],
    rate: f32,
    epsilon: f32,
    decay: f32,
) {
    if decay == 0.0 {
        each(current, next, gradient, sum, rate, epsilon, |_, g| g);
    } else {
        each(current, next, gradient, sum, rate, epsilon, |w, g| g + decay * w);
    }
}

#[inline(always)]
fn each(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    sum: &mut [f32],
    rate: f32,
    epsilon: f32,
    slope: impl Fn(f32, f32) -> f32,
) {
    assert_lengths(current.len(), [next.len(), gradient.len(), sum.len()]);
    for (((next, &w), &g), s) in next.iter_mut().zip(current).zip(gradient).zip(sum) {
        let g = slope(w, g);
        *s += g * g;
        *next = w - rate * g / (s.sqrt() + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two, mut sum) = ([0.0], [0.0], [0.0]);
        adagrad(&[1.0], &mut one, &[3.0], &mut sum, 0.5, 1.0, 0.0);
        assert_eq!((one, sum), ([0.625], [9.0])); // 1 - 0.5 * 3 / (3 + 1)
        adagrad(&one, &mut two, &[4.0], &mut sum, 3.0, 1.0, 0.0);
        assert_eq!((two, sum), ([-1.375], [25.0])); // 0.625 - 3 * 4 / (5 + 1)
    }
}
