//! Makes up for what has changed since the values that a gradient was computed on.

use multiversion::multiversion;

/// Delay compensation (Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation", equation 10
/// with a constant lambda): in place of a gradient g that was computed on `pulled`, where the values are `current` by now,
///
/// ```text
/// g + lambda g g (current - pulled)
/// ```
///
/// value by value, in f32, as g + ((lambda g) g) (current - pulled). The square of the gradient stands for the diagonal of
/// the Hessian, so that this is about the gradient at `current`.
///
/// # Panics
/// If the slices differ in length.
#[multiversion(targets("x86_64+avx2"))]
pub fn compensate(gradient: &[f32], current: &[f32], pulled: &[f32], lambda: f32, compensated: &mut [f32]) {
    let lengths = [gradient.len(), current.len(), pulled.len()];
    assert!(lengths.iter().all(|&len| len == compensated.len()), "they are equally long: {lengths:?}");
    for (((made, &g), &w), &pulled) in compensated.iter_mut().zip(gradient).zip(current).zip(pulled) {
        *made = g + ((lambda * g) * g) * (w - pulled);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compensated(gradient: &[f32], current: &[f32], pulled: &[f32], lambda: f32) -> Vec<f32> {
        let mut made = vec![f32::NAN; gradient.len()];
        compensate(gradient, current, pulled, lambda, &mut made);
        made
    }

    #[test]
    fn values_by_hand() {
        // The values have gone from 5 to 3 meanwhile: 4 + 0.5 * 16 * -2.
        assert_eq!(compensated(&[4.0], &[3.0], &[5.0], 0.5), [-12.0]);
        assert_eq!(compensated(&[-4.0], &[3.0], &[5.0], 0.5), [-20.0]);
        assert_eq!(compensated(&[4.0], &[3.0], &[5.0], 0.0), [4.0]);
        assert_eq!(compensated(&[4.0], &[5.0], &[5.0], 0.5), [4.0]);
        assert_eq!(compensated(&[0.0], &[3.0], &[5.0], 0.5), [0.0]);
    }

    #[test]
    fn of_a_loss_whose_hessian_is_its_gradients_square_it_is_the_gradient_now() {
        // g = -1 / w has g' = 1 / w^2, which is g g; a small step away the rest is of second order.
        let (pulled, current) = (2.0, 2.001);
        let made = compensated(&[-1.0 / pulled], &[current], &[pulled], 1.0)[0];
        let (stale, now) = (-1.0 / pulled, -1.0 / current);
        assert!((made - now).abs() < (stale - now).abs() / 100.0, "{made} is not {now}");
    }

    proptest! {
        #[test]
        fn whole_vectors_and_remainders_have_the_bits_of_one_value_at_a_time(
            values in prop::collection::vec((-1e3_f32..1e3, -1e3_f32..1e3, -1e3_f32..1e3), 0..300),
            lambda in 0.0_f32..10.0,
        ) {
            let gradient: Vec<f32> = values.iter().map(|v| v.0).collect();
            let current: Vec<f32> = values.iter().map(|v| v.1).collect();
            let pulled: Vec<f32> = values.iter().map(|v| v.2).collect();
            let made = compensated(&gradient, &current, &pulled, lambda);
            for (i, made) in made.iter().enumerate() {
                let curvature = lambda * gradient[i] * gradient[i];
                let change = std::hint::black_box(curvature * (current[i] - pulled[i]));
                prop_assert_eq!(made.to_bits(), (gradient[i] + change).to_bits(), "value {}", i);
            }
        }
    }
}
