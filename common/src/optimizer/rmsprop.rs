//! Divides each step by the size of recent gradients.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// RMSProp (Tieleman and Hinton 2012, "Neural Networks for Machine Learning", lecture 6e).
///
/// ```text
/// s = rho s + (1 - rho) g^2
/// w = w - rate g / (sqrt(s) + epsilon)
/// ```
///
/// The mean starts at 0 and its start is not corrected: the first step has the size rate / sqrt(1 - rho).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rmsprop {
    /// What remains of the mean of squares after each update.
    pub rho: f64,
    /// Keeps the denominator from 0.
    pub epsilon: f64,
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Default for Rmsprop {
    fn default() -> Self {
        Self { rho: 0.9, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl Rmsprop {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![
            Setting::share("rho", &mut self.rho),
            Setting::epsilon(&mut self.epsilon),
            Setting::weight_decay(&mut self.weight_decay),
        ]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let (factors, decay) = (RmspropFactors::new(self, pass.rate), self.weight_decay as f32);
        pass.run(|current, next, gradient, [mean]| rmsprop(current, next, gradient, mean, factors, decay));
    }
}

/// The numbers of one call of the kernel, the same for all values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmspropFactors {
    /// The learning rate.
    pub rate: f32,
    /// What remains of the mean.
    pub rho: f32,
    /// 1 - rho, computed in f64.
    pub rho_rest: f32,
    /// Keeps the denominator from 0.
    pub epsilon: f32,
}

impl RmspropFactors {
    /// The factors of this optimizer at this rate.
    pub fn new(optimizer: &Rmsprop, rate: f32) -> Self {
        Self {
            rate,
            rho: optimizer.rho as f32,
            rho_rest: (1.0 - optimizer.rho) as f32,
            epsilon: optimizer.epsilon as f32,
        }
    }
}

/// The kernel of [`Rmsprop`]; `mean` holds the means of squares.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn rmsprop(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    mean: &mut [f32],
    factors: RmspropFactors,
    decay: f32,
) {
    if decay == 0.0 {
        each(current, next, gradient, mean, factors, |_, g| g);
    } else {
        each(current, next, gradient, mean, factors, |w, g| g + decay * w);
    }
}

#[inline(always)]
fn each(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    mean: &mut [f32],
    factors: RmspropFactors,
    slope: impl Fn(f32, f32) -> f32,
) {
    assert_lengths(current.len(), [next.len(), gradient.len(), mean.len()]);
    let RmspropFactors { rate, rho, rho_rest, epsilon } = factors;
    for (((next, &w), &g), s) in next.iter_mut().zip(current).zip(gradient).zip(mean) {
        let g = slope(w, g);
        *s = rho * *s + rho_rest * (g * g);
        *next = w - rate * g / (s.sqrt() + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let factors = RmspropFactors { rate: 0.5, rho: 0.75, rho_rest: 0.25, epsilon: 1.0 };
        let (mut one, mut two, mut mean) = ([0.0], [0.0], [0.0]);
        rmsprop(&[1.0], &mut one, &[6.0], &mut mean, factors, 0.0);
        assert_eq!((one, mean), ([0.25], [9.0])); // s = 36 / 4; 1 - 0.5 * 6 / (3 + 1)
        rmsprop(&one, &mut two, &[3.0], &mut mean, factors, 0.0);
        assert_eq!(mean, [9.0]); // 0.75 * 9 + 0.25 * 9
        assert_eq!(two, [-0.125]); // 0.25 - 0.5 * 3 / (3 + 1)
    }
}
