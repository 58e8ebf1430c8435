//! Steps along the velocity as it will be after the next update.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use super::{Pass, Setting, assert_lengths};

/// Nesterov's accelerated gradient (Nesterov 1983; Sutskever et al. 2013, equations 3 and 4), in the form of Bengio,
/// Boulanger-Lewandowski and Pascanu 2013, "Advances in optimizing recurrent networks", section 3.5, which takes the
/// gradient at the values that workers hold.
///
/// ```text
/// v = mu v + g
/// w = w - rate (g + mu v)
/// ```
///
/// With u = w + rate mu v for the paper's parameters, at a constant rate, this is the paper's update: its gradient is
/// taken at u - rate mu v, which is w. As with [`Momentum`](super::Momentum), the rate stands outside the velocity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nesterov {
    /// What remains of the velocity after each update.
    pub mu: f64,
    /// L2: `g + weight_decay w` takes the place of g.
    pub weight_decay: f64,
}

impl Default for Nesterov {
    fn default() -> Self {
        Self { mu: 0.9, weight_decay: 0.0 }
    }
}

impl Nesterov {
    pub(super) fn settings(&mut self) -> Vec<Setting<'_>> {
        vec![Setting::share("mu", &mut self.mu), Setting::weight_decay(&mut self.weight_decay)]
    }

    pub(super) fn apply(&self, pass: Pass<'_>) {
        let (rate, mu, decay) = (pass.rate, self.mu as f32, self.weight_decay as f32);
        pass.run(|current, next, gradient, [velocity]| {
            nesterov(current, next, gradient, velocity, rate, mu, decay);
        });
    }
}

/// The kernel of [`Nesterov`].
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn nesterov(
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
        let g = slope(w, g);
        *v = mu * *v + g;
        *next = w - rate * (g + mu * *v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let (mut one, mut two, mut velocity) = ([0.0], [0.0], [0.0]);
        nesterov(&[1.0], &mut one, &[2.0], &mut velocity, 0.25, 0.5, 0.0);
        assert_eq!((one, velocity), ([0.25], [2.0])); // 1 - 0.25 (2 + 0.5 * 2)
        nesterov(&one, &mut two, &[1.0], &mut velocity, 0.25, 0.5, 0.0);
        assert_eq!((two, velocity), ([-0.25], [2.0])); // 0.25 - 0.25 (1 + 0.5 * 2)
    }

    #[test]
    fn as_a_server_optimizer_it_is_fedavgm_with_nesterov() {
        let (mut w, mut velocity) = ([0.0], [0.0]);
        for (delta, expected) in [(1.0, 1.9), (0.5, 3.66), (-0.25, 4.319)] {
            let before = w;
            nesterov(&before, &mut w, &[-delta], &mut velocity, 1.0, 0.9, 0.0);
            assert!((w[0] - expected).abs() < 1e-6, "{} is not {expected}", w[0]);
        }
    }

    #[test]
    fn it_is_the_look_ahead_update_of_the_paper() {
        // Sutskever et al., equations 3 and 4, on the loss w^2: gradient at theta + mu v, then theta += v.
        let (mut theta, mut v) = (1.0_f64, 0.0_f64);
        let (mut w, mut velocity) = ([1.0], [0.0]);
        for _ in 0..30 {
            let ahead = theta + 0.9 * v;
            assert!((f64::from(w[0]) - ahead).abs() < 1e-5, "{} is not {ahead}", w[0]);
            v = 0.9 * v - 0.1 * 2.0 * ahead;
            theta += v;
            let before = w;
            nesterov(&before, &mut w, &[2.0 * before[0]], &mut velocity, 0.1, 0.9, 0.0);
        }
    }
}
