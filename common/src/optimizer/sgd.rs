//! Steps against the gradient.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// Stochastic gradient descent (Robbins and Monro 1951, "A Stochastic Approximation Method"; over mini-batches, Goyal
/// et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", equation 2).
///
/// ```text
/// w = w - rate g
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Sgd {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![Setting::weight_decay(&mut self.weight_decay)]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let (rate, decay) = (pass.rate, self.weight_decay as f32);
        pass.run(|current, next, gradient, []| sgd(current, next, gradient, rate, decay));
    }
}

/// The kernel of [`Sgd`].
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn sgd(current: &[f32], next: &mut [f32], gradient: &[f32], rate: f32, decay: f32) {
    if decay == 0.0 {
        each(current, next, gradient, |w, g| w - rate * g);
    } else {
        each(current, next, gradient, |w, g| w - rate * (g + decay * w));
    }
}

#[inline(always)]
fn each(current: &[f32], next: &mut [f32], gradient: &[f32], step: impl Fn(f32, f32) -> f32) {
    assert_lengths(current.len(), [next.len(), gradient.len()]);
    for ((next, &w), &g) in next.iter_mut().zip(current).zip(gradient) {
        *next = step(w, g);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two) = ([0.0; 2], [0.0; 2]);
        sgd(&[1.0, -2.0], &mut one, &[4.0, 8.0], 0.25, 0.0);
        assert_eq!(one, [0.0, -4.0]);
        sgd(&one, &mut two, &[-2.0, 1.0], 0.5, 0.0);
        assert_eq!(two, [1.0, -4.5]);
    }

    #[test]
    fn weight_decay_pulls_towards_zero() {
        let mut next = [0.0; 2];
        sgd(&[1.0, -2.0], &mut next, &[4.0, 0.0], 0.25, 0.5);
        assert_eq!(next, [-0.125, -1.75]);
    }
}
