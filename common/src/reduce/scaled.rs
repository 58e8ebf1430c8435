//! Adds up contributions that count by a factor of their own, and divides by a number that is not the factors' sum.
//!
//! For x_1, ..., x_n with scales s_1, ..., s_n and a divisor d it is, in f32 and for each value by itself,
//!
//! ```text
//! S = s_1 x_1;   S = S + s_i x_i for i = 2, ..., n;   mean = S / d
//! ```
//!
//! in the order that the caller gives, in the same blocks and with the same rounding as [`super::weighted_mean`].
//! Buffered asynchronous averaging needs it (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous
//! Aggregation", algorithm 1): a difference computed tau flushes ago counts s(tau), and the sum over a buffer of K is
//! divided by K and not by the sum of the s, so that a buffer of stale differences moves the model less.

use super::{ReduceError, Term, combine};

/// What one worker or client brings to a scaled mean.
#[derive(Clone, Copy, Debug)]
pub struct Scaled<'a> {
    /// A gradient, or a difference of models.
    pub values: &'a [f32],
    /// What it counts, for example for its staleness. With 0 it takes part with weight 0.
    pub scale: f32,
}

/// Writes the sum of `scale * values` over the contributions, in the order given, divided by `divisor`, into `mean`,
/// which is overwritten.
///
/// A single contribution whose scale is the divisor gives itself, bit for bit: (s x) / s rounds twice and need not be
/// x. The contributions are gone through once to check them and once for each block of values, so the iterator should
/// be cheap to clone, as that of a slice is. Nothing is allocated.
///
/// # Errors
/// If there is no contribution, one's length is not that of `mean`, or the divisor is not a positive, finite number.
/// Then `mean` is as it was.
pub fn scaled_mean<'a, I>(contributions: I, divisor: f32, mean: &mut [f32]) -> Result<(), ReduceError>
where
    I: IntoIterator<Item = Scaled<'a>>,
    I::IntoIter: Clone,
{
    let contributions = contributions.into_iter();
    let expected = mean.len();
    if let Some((index, found)) =
        contributions.clone().map(|x| x.values.len()).enumerate().find(|&(_, found)| found != expected)
    {
        return Err(ReduceError::Length { index, found, expected });
    }
    let mut rest = contributions.clone();
    let first = rest.next().ok_or(ReduceError::Empty)?;
    if !(divisor > 0.0 && divisor.is_finite()) {
        return Err(ReduceError::Divisor { found: divisor });
    }
    if first.scale == divisor && rest.next().is_none() {
        mean.copy_from_slice(first.values);
        return Ok(());
    }
    combine(contributions.map(|x| Term { values: x.values, factor: x.scale }), divisor, mean);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{BLOCK, Contribution, weighted_mean};
    use super::*;
    use crate::plan::StalenessScaling;
    use crate::rng::{self, Purpose, Rng};

    type Given = Vec<(Vec<f32>, f32)>;

    fn mean(given: &[(Vec<f32>, f32)], divisor: f32) -> Result<Vec<f32>, ReduceError> {
        let mut mean = vec![f32::NAN; given.first().map_or(0, |(values, _)| values.len())];
        let contributions = given.iter().map(|(values, scale)| Scaled { values, scale: *scale });
        scaled_mean(contributions, divisor, &mut mean)?;
        Ok(mean)
    }

    /// One value at a time, in the words of the definition.
    fn oracle(given: &[(Vec<f32>, f32)], divisor: f32) -> Vec<f32> {
        let mut means = Vec::new();
        for i in 0..given[0].0.len() {
            let mut sum = given[0].1 * given[0].0[i];
            for (values, scale) in &given[1..] {
                sum += scale * values[i];
            }
            means.push(sum / divisor);
        }
        means
    }

    /// Normal values, and the scales of random stalenesses as FedBuff has them.
    fn random(seed: u64, contributions: usize, len: usize) -> Given {
        let mut staleness = Rng::new(seed, Purpose::Delivery);
        let contribution = |i: usize| {
            let mut values = vec![0.0; len];
            rng::normal(seed, Purpose::InitialValues(&i.to_string()), 0, 1.0, &mut values);
            (values, StalenessScaling::Polynomial { exponent: 0.5 }.factor(staleness.below(20)))
        };
        (0..contributions).map(contribution).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_buffer_by_hand() {
        // Of staleness 0 and 3, s = 1 and 1/2; divided by the two there are and not by 1.5.
        let given = vec![(vec![1.0, -2.0], 1.0), (vec![4.0, 8.0], 0.5)];
        assert_eq!(mean(&given, 2.0), Ok(vec![1.5, 1.0]));
    }

    #[test]
    fn whole_blocks_and_remainders_have_the_bits_of_a_scalar_loop() {
        for len in [0, 1, 63, 64, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17] {
            for contributions in [1, 2, 3, 8] {
                let given = random(len as u64, contributions, len);
                let divisor = 10.0;
                assert_eq!(
                    bits(&mean(&given, divisor).unwrap()),
                    bits(&oracle(&given, divisor)),
                    "{contributions} of {len}"
                );
            }
        }
    }

    #[test]
    fn a_single_contribution_with_the_divisors_scale_is_its_own_mean() {
        let values = vec![0.1, -0.0, f32::MAX, f32::MIN_POSITIVE / 4.0, f32::INFINITY];
        for scale in [1.0, 3.0, 49.0, 0.1, 1e30] {
            assert_eq!(bits(&mean(&[(values.clone(), scale)], scale).unwrap()), bits(&values));
        }
        assert_eq!(mean(&[(vec![3.0], 0.5)], 1.0), Ok(vec![1.5]));
    }

    #[test]
    fn the_order_is_kept() {
        let given = vec![(vec![1e8], 1.0), (vec![-1e8], 1.0), (vec![1.0], 1.0)];
        let reversed: Given = given.iter().rev().cloned().collect();
        assert_eq!(mean(&given, 4.0), Ok(vec![0.25])); // (1e8 - 1e8) + 1
        assert_eq!(mean(&reversed, 4.0), Ok(vec![0.0])); // (1 - 1e8) + 1e8, where 1 is lost
    }

    #[test]
    fn what_has_no_mean_is_an_error() {
        assert_eq!(mean(&[], 1.0), Err(ReduceError::Empty));
        for divisor in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let error = mean(&[(vec![1.0], 1.0)], divisor).unwrap_err();
            assert!(error.to_string().contains("a positive number"), "{error}");
        }
        let error = mean(&[(vec![1.0; 3], 1.0), (vec![1.0; 2], 1.0)], 1.0).unwrap_err();
        assert_eq!(error.to_string(), "contribution 1 has 2 values, the mean has 3");
        let mut untouched = [5.0; 2];
        assert!(scaled_mean([Scaled { values: &[1.0; 3], scale: 1.0 }], 1.0, &mut untouched).is_err());
        assert!(scaled_mean([Scaled { values: &[1.0; 2], scale: 1.0 }], 0.0, &mut untouched).is_err());
        assert_eq!(untouched, [5.0; 2]);
    }

    proptest! {
        #[test]
        fn with_counts_as_scales_it_is_the_weighted_mean(seed: u64, counts in prop::collection::vec(1_u64..1000, 1..8)) {
            let total = counts.iter().sum::<u64>() as f32;
            let mut given = random(seed, counts.len(), BLOCK + 3);
            given.iter_mut().zip(&counts).for_each(|((_, scale), &count)| *scale = count as f32);
            let mut expected = vec![f32::NAN; BLOCK + 3];
            let contributions = given.iter().zip(&counts);
            let contributions = contributions.map(|((values, _), &count)| Contribution { values, count });
            weighted_mean(contributions, &mut expected).unwrap();
            prop_assert_eq!(bits(&mean(&given, total).unwrap()), bits(&expected));
        }

        #[test]
        fn cutting_into_slices_changes_no_bits(
            seed: u64, contributions in 1_usize..6, len in 1_usize..2_000, cut in 0_usize..2_000,
        ) {
            let cut = cut.min(len);
            let (given, divisor) = (random(seed, contributions, len), contributions as f32);
            let part = |range: std::ops::Range<usize>| -> Given {
                given.iter().map(|(values, scale)| (values[range.clone()].to_vec(), *scale)).collect()
            };
            let mut pieces = mean(&part(0..cut), divisor).unwrap();
            pieces.extend(mean(&part(cut..len), divisor).unwrap());
            prop_assert_eq!(bits(&mean(&given, divisor).unwrap()), bits(&pieces));
        }

        #[test]
        fn a_mean_is_near_the_exact_one(seed: u64, contributions in 1_usize..20) {
            let (given, divisor) = (random(seed, contributions, 50), contributions as f64);
            for (i, &found) in mean(&given, divisor as f32).unwrap().iter().enumerate() {
                let exact = given.iter().map(|(x, s)| f64::from(*s) * f64::from(x[i])).sum::<f64>() / divisor;
                let size = given.iter().map(|(x, s)| f64::from(*s) * f64::from(x[i].abs())).sum::<f64>() / divisor;
                // Each of n products and n sums rounds by at most 2^-24 of what they are made of.
                let bound = size * (2 * contributions + 2) as f64 / f64::from(1 << 24);
                prop_assert!((f64::from(found) - exact).abs() <= bound, "{} is not {}", found, exact);
            }
        }
    }
}
