//! Steps along a velocity that the gradients build up.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// Heavy-ball momentum (Polyak 1964, "Some methods of speeding up the convergence of iteration methods"; classical
/// momentum in Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", equations
/// 1 and 2).
///
/// ```text
/// v = mu v + g
/// w = w - rate v
/// ```
///
/// The papers keep the rate within the velocity (v' = mu v' - rate g; w += v'). At a constant rate that is the same,
/// v' = -rate v. Where the rate changes, here the new one holds for the whole velocity at once, as in most libraries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Momentum {
    /// What remains of the velocity after each update.
    pub mu: f64,
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Default for Momentum {
    fn default() -> Self {
        Self { mu: 0.9, weight_decay: 0.0 }
    }
}

impl Momentum {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![Setting::share("mu", &mut self.mu), Setting::weight_decay(&mut self.weight_decay)]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let (rate, mu, decay) = (pass.rate, self.mu as f32, self.weight_decay as f32);
        pass.run(|current, next, gradient, [velocity]| {
            momentum(current, next, gradient, velocity, rate, mu, decay);
        });
    }
}

/// The kernel of [`Momentum`].
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn momentum(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    velocity: &mut [f32],
    rate: f32,
    mu: f32,
    decay: f32,
) {
    if decay == 0.0 {
        each(current, next, gradient, velocity, rate, mu, |_, g| g);
    } else {
        each(current, next, gradient, velocity, rate, mu, |w, g| g + decay * w);
    }
}

#[inline(always)]
fn each(
    current: &[f32],
    next: &mut [f32],
    gradient: &[f32],
    velocity: &mut [f32],
    rate: f32,
    mu: f32,
    slope: impl Fn(f32, f32) -> f32,
) {
    assert_lengths(current.len(), [next.len(), gradient.len(), velocity.len()]);
    for (((next, &w), &g), v) in next.iter_mut().zip(current).zip(gradient).zip(velocity) {
        *v = mu * *v + slope(w, g);
        *next = w - rate * *v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two, mut velocity) = ([0.0], [0.0], [0.0]);
        momentum(&[1.0], &mut one, &[2.0], &mut velocity, 0.25, 0.5, 0.0);
        assert_eq!((one, velocity), ([0.5], [2.0]));
        momentum(&one, &mut two, &[1.0], &mut velocity, 0.25, 0.5, 0.0);
        assert_eq!((two, velocity), ([0.0], [2.0])); // v = 0.5 * 2 + 1
    }

    #[test]
    fn as_a_server_optimizer_it_is_fedavgm() {
        // Hsu et al. 2019: momentum 0.9, server rate 1, pseudo-gradient minus the mean delta.
        let (mut w, mut velocity) = ([0.0], [0.0]);
        for (delta, expected) in [(1.0, 1.0), (0.5, 2.4), (-0.25, 3.41)] {
            let before = w;
            momentum(&before, &mut w, &[-delta], &mut velocity, 1.0, 0.9, 0.0);
            assert!((w[0] - expected).abs() < 1e-6, "{} is not {expected}", w[0]);
        }
    }
}
