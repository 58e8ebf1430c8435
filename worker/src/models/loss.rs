//! Turns a model's outputs into cross-entropies, their gradients and counts of correct predictions.

use super::Score;

/// Replaces each row of `logits` ([examples, classes]) by the gradient of its cross-entropy times `scale`, and
/// returns the sum of the cross-entropies.
///
/// `libm` is used because it gives the same bits on every machine.
pub(super) fn cross_entropy_gradient(logits: &mut [f32], labels: &[u32], classes: usize, scale: f32) -> f64 {
    let mut sum = 0.0;
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let label = label as usize;
        let (loss, total) = cross_entropy(row, label);
        sum += f64::from(loss);
        for value in row.iter_mut() {
            *value = *value / total * scale;
        }
        row[label] -= scale;
    }
    sum
}

/// Scores each row of `logits` ([examples, classes]), which is used up.
pub(super) fn score(logits: &mut [f32], labels: &[u32], classes: usize) -> Score {
    let mut score = Score::default();
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let label = label as usize;
        score.correct += u64::from(is_first_largest(row, label));
        score.loss_sum += f64::from(cross_entropy(row, label).0);
        score.examples += 1;
    }
    score
}

/// Cross-entropy of one row of outputs; the row becomes exp(output - largest), whose sum is returned with it.
///
/// Subtracting the largest output changes no probability and keeps exp from overflowing. An output that is not a
/// number, or infinite, makes the loss not a number: `max` skips it, but the sum does not.
fn cross_entropy(row: &mut [f32], label: usize) -> (f32, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = row[label] - largest;
    let mut total = 0.0;
    for value in row.iter_mut() {
        *value = libm::expf(*value - largest);
        total += *value;
    }
    (libm::logf(total) - own, total)
}

/// Whether the row is largest at `label`, and nowhere before it. Never true beside an output that is not a number.
fn is_first_largest(row: &[f32], label: usize) -> bool {
    let own = row[label];
    row[..label].iter().all(|&other| own > other) && row[label..].iter().all(|&other| own >= other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outputs_cost_the_logarithm_of_the_classes() {
        let mut logits = [2.0; 8];
        let loss = cross_entropy_gradient(&mut logits, &[1, 3], 4, 0.5);
        assert!((loss - 2.0 * 4.0_f64.ln()).abs() < 1e-6);
        assert_eq!(logits, [0.125, -0.375, 0.125, 0.125, 0.125, 0.125, 0.125, -0.375]);
    }

    #[test]
    fn large_outputs_do_not_overflow() {
        let mut logits = [1e30, 0.0, -1e30];
        let score = score(&mut logits, &[0], 3);
        assert_eq!(score, Score { loss_sum: 0.0, correct: 1, examples: 1 });
    }

    #[test]
    fn divergence_is_not_hidden() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut logits = [0.0; 3];
                logits[place] = bad;
                let mut copy = logits;
                let loss = cross_entropy_gradient(&mut logits, &[1], 3, 1.0);
                // A single output of minus infinity is a probability of 0, which is a fair answer elsewhere.
                let fair = bad == f32::NEG_INFINITY && place != 1;
                assert_eq!(loss.is_finite(), fair, "{bad} at {place}");
                assert_eq!(score(&mut copy, &[1], 3).loss_sum.is_finite(), fair);
            }
        }
        assert!(score(&mut [f32::NEG_INFINITY; 2], &[0], 2).loss_sum.is_nan());
    }

    #[test]
    fn only_the_first_of_equal_outputs_is_the_prediction() {
        let correct = |row: &[f32], label| score(&mut row.to_vec(), &[label], row.len()).correct;
        assert_eq!((correct(&[1.0, 1.0, 0.0], 0), correct(&[1.0, 1.0, 0.0], 1)), (1, 0));
        assert_eq!(correct(&[0.0, 0.0, 2.0], 2), 1);
        assert_eq!(correct(&[f32::NAN, 1.0], 1), 0);
        assert_eq!(correct(&[1.0, f32::NAN], 0), 0);
    }
}
