//! Averages what workers or clients contribute, in a fixed order.
//!
//! The mean of x_1, ..., x_n with example counts c_1, ..., c_n is, in f32 and for each value by itself,
//!
//! ```text
//! S = c_1 x_1;   S = S + c_i x_i for i = 2, ..., n;   mean = S / (c_1 + ... + c_n)
//! ```
//!
//! in the order of rank or client id that the caller gives, never of arrival. One accumulation and one division make
//! the rounding the same wherever the contributions were computed. It is the weighting of federated averaging (McMahan
//! et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1), and for
//! gradients that are means over batches it is the gradient of the mean over all their examples.
//!
//! The mean of a single contribution is that contribution, bit for bit: (c x) / c rounds twice and need not be x. So
//! one worker in sync equals sequential SGD at any batch size.
//!
//! A count is rounded to the nearest f32: exact up to 2^24 = 16,777,216 examples in one contribution, beyond that
//! within 6e-8 of itself. The sum of the counts is made of whole numbers, then rounded once. So with larger counts the
//! weights need not sum to 1 exactly. Values are not scaled: c x overflows to infinity where it exceeds 3.4e38.

mod scaled;

use multiversion::multiversion;

pub use scaled::{Scaled, scaled_mean};

/// Values of the accumulator that are finished before the next ones are begun: they stay in the nearest cache.
///
/// Measured with AVX2 on an EPYC core, interleaved, best of 31, together with the step of SGD that reads the mean: four
/// contributions of 16 Mi values go at 22.3 GB/s in blocks of 256, 20.7 of 512, 19.6 of 1024.
const BLOCK: usize = 256;
/// Contributions that are read side by side. At 199,210 values, which stay in the caches, 82 GB/s instead of 56 one after
/// the other; beyond the caches it matters where others use the memory too (medians of 16.5 and 15.5 GB/s).
const GROUP: usize = 4;

/// What one worker or client brings to a mean.
#[derive(Clone, Copy, Debug)]
pub struct Contribution<'a> {
    /// A gradient, or a difference of models.
    pub values: &'a [f32],
    /// How many examples it was computed from: its weight. With 0 it takes part with weight 0.
    pub count: u64,
}

/// Why contributions have no mean.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ReduceError {
    #[error("there is no contribution to average; a mean needs at least one")]
    Empty,
    #[error("contribution {index} has {found} values, the mean has {expected}")]
    Length { index: usize, found: usize, expected: usize },
    #[error("the contributions come from 0 examples together; a mean needs at least one")]
    NoExamples,
    #[error("the sum of the contributions is to be divided by {found}; it takes a positive number")]
    Divisor { found: f32 },
}

/// Writes the weighted mean of the contributions, in the order given, into `mean`, which is overwritten.
///
/// The contributions are gone through once to check them and once for each block of values, so the iterator should be
/// cheap to clone, as that of a slice is. Nothing is allocated.
///
/// # Errors
/// If there is no contribution, one's length is not that of `mean`, or all counts are 0. Then `mean` is as it was.
pub fn weighted_mean<'a, I>(contributions: I, mean: &mut [f32]) -> Result<(), ReduceError>
where
    I: IntoIterator<Item = Contribution<'a>>,
    I::IntoIter: Clone,
{
    let contributions = contributions.into_iter();
    let total = check(contributions.clone(), mean.len())?;
    let mut rest = contributions.clone();
    if let (Some(only), None) = (rest.next(), rest.next()) {
        mean.copy_from_slice(only.values);
        return Ok(());
    }
    combine(contributions.map(|c| Term { values: c.values, factor: c.count as f32 }), total, mean);
    Ok(())
}

/// The sum of the counts, if there is a mean.
fn check<'a>(
    contributions: impl Iterator<Item = Contribution<'a>>,
    expected: usize,
) -> Result<f32, ReduceError> {
    let mut total = None;
    for (index, contribution) in contributions.enumerate() {
        let found = contribution.values.len();
        if found != expected {
            return Err(ReduceError::Length { index, found, expected });
        }
        // In u128 the counts of 2^64 contributions have room, whatever a peer claims.
        total = Some(total.unwrap_or(0_u128) + u128::from(contribution.count));
    }
    match total {
        None => Err(ReduceError::Empty),
        Some(0) => Err(ReduceError::NoExamples),
        Some(total) => Ok(total as f32),
    }
}

/// One of the products that are added up.
#[derive(Clone, Copy, Default)]
struct Term<'a> {
    values: &'a [f32],
    factor: f32,
}

/// Adds up the terms in this order, for each value by itself, and divides. All are as long as `mean`.
fn combine<'a>(terms: impl Iterator<Item = Term<'a>> + Clone, divisor: f32, mean: &mut [f32]) {
    for (block, sum) in mean.chunks_mut(BLOCK).enumerate() {
        let range = block * BLOCK..block * BLOCK + sum.len();
        let mut rest = terms.clone().map(|t| Term { values: &t.values[range.clone()], ..t }).peekable();
        let mut begins = true;
        while rest.peek().is_some() {
            let (mut group, mut len) = ([Term::default(); GROUP], 0);
            for (place, term) in group.iter_mut().zip(rest.by_ref()) {
                *place = term;
                len += 1;
            }
            add(sum, &group[..len], begins, rest.peek().is_none().then_some(divisor));
            begins = false;
        }
    }
}

/// Adds a group of terms to `sum`, or to nothing if with them it begins, and divides if with them it ends.
#[multiversion(targets("x86_64+avx2"))]
fn add(sum: &mut [f32], group: &[Term<'_>], begins: bool, divisor: Option<f32>) {
    match *group {
        [Term { values: a, factor: fa }] => {
            let terms = a.iter();
            add_up(sum, terms, |a| fa * a, |sum, _| sum, begins, divisor);
        }
        [Term { values: a, factor: fa }, Term { values: b, factor: fb }] => {
            let terms = a.iter().zip(b);
            add_up(sum, terms, |(a, _)| fa * a, |sum, (_, b)| sum + fb * b, begins, divisor);
        }
        [Term { values: a, factor: fa }, Term { values: b, factor: fb }, Term { values: c, factor: fc }] => {
            let terms = a.iter().zip(b).zip(c);
            let rest = |sum, ((_, b), c): ((&f32, &f32), &f32)| (sum + fb * b) + fc * c;
            add_up(sum, terms, |((a, _), _)| fa * a, rest, begins, divisor);
        }
        [
            Term { values: a, factor: fa },
            Term { values: b, factor: fb },
            Term { values: c, factor: fc },
            Term { values: d, factor: fd },
        ] => {
            let terms = a.iter().zip(b).zip(c).zip(d);
            let rest =
                |sum, (((_, b), c), d): (((&f32, &f32), &f32), &f32)| ((sum + fb * b) + fc * c) + fd * d;
            add_up(sum, terms, |(((a, _), _), _)| fa * a, rest, begins, divisor);
        }
        _ => unreachable!("a group has 1 to {GROUP} terms"),
    }
}

/// For each value `first` gives the first product of the group, and `rest` adds the others to what there is so far. Written
/// with zipped iterators, which become vectors; a loop over an array of slices did not.
#[inline(always)]
fn add_up<T: Copy>(
    sum: &mut [f32],
    terms: impl Iterator<Item = T>,
    first: impl Fn(T) -> f32,
    rest: impl Fn(f32, T) -> f32,
    begins: bool,
    divisor: Option<f32>,
) {
    let all = sum.iter_mut().zip(terms);
    match (begins, divisor) {
        (true, None) => all.for_each(|(sum, term)| *sum = rest(first(term), term)),
        (true, Some(divisor)) => all.for_each(|(sum, term)| *sum = rest(first(term), term) / divisor),
        (false, None) => all.for_each(|(sum, term)| *sum = rest(*sum + first(term), term)),
        (false, Some(divisor)) => {
            all.for_each(|(sum, term)| *sum = rest(*sum + first(term), term) / divisor);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::{self, Purpose, Rng};

    type Given = Vec<(Vec<f32>, u64)>;

    fn mean(given: &[(Vec<f32>, u64)]) -> Result<Vec<f32>, ReduceError> {
        let mut mean = vec![f32::NAN; given.first().map_or(0, |(values, _)| values.len())];
        weighted_mean(given.iter().map(|(values, count)| Contribution { values, count: *count }), &mut mean)?;
        Ok(mean)
    }

    /// One value at a time, in the words of the definition.
    fn oracle(given: &[(Vec<f32>, u64)]) -> Vec<f32> {
        if let [(only, _)] = given {
            return only.clone();
        }
        let total = given.iter().map(|&(_, count)| count).sum::<u64>() as f32;
        let mut means = Vec::new();
        for i in 0..given[0].0.len() {
            let mut sum = given[0].1 as f32 * given[0].0[i];
            for (values, count) in &given[1..] {
                sum += *count as f32 * values[i];
            }
            means.push(sum / total);
        }
        means
    }

    fn random(seed: u64, contributions: usize, len: usize) -> Given {
        let mut counts = Rng::new(seed, Purpose::Delivery);
        let contribution = |i: usize| {
            let mut values = vec![0.0; len];
            rng::normal(seed, Purpose::InitialValues(&i.to_string()), 0, 1.0, &mut values);
            (values, 1 + counts.below(1000))
        };
        (0..contributions).map(contribution).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn a_mean_by_hand() {
        let given = vec![(vec![1.0, -2.0], 1), (vec![4.0, 8.0], 2), (vec![-1.0, 0.5], 4)];
        assert_eq!(mean(&given), Ok(vec![5.0 / 7.0, 16.0 / 7.0]));
    }

    #[test]
    fn whole_blocks_and_remainders_have_the_bits_of_a_scalar_loop() {
        for len in [0, 1, 63, 64, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17] {
            for contributions in [1, 2, 3, 4, 5, 8, 11] {
                let given = random(len as u64, contributions, len);
                assert_eq!(bits(&mean(&given).unwrap()), bits(&oracle(&given)), "{contributions} of {len}");
            }
        }
    }

    #[test]
    fn a_single_contribution_is_its_own_mean() {
        let values = vec![0.1, -0.0, f32::MAX, f32::MIN_POSITIVE / 4.0, f32::INFINITY];
        for count in [1, 3, 49, 60_000, u64::MAX] {
            assert_eq!(bits(&mean(&[(values.clone(), count)]).unwrap()), bits(&values));
        }
        // Which the general formula would not give: the test would fail without the rule.
        let round_trip = |x: f32, c: f32| c * x / c;
        let changed = (1..1000).find(|&i| round_trip(i as f32 / 1000.0, 49.0) != i as f32 / 1000.0);
        assert!(changed.is_some());
    }

    #[test]
    fn the_order_is_kept() {
        let given = vec![(vec![1e8], 1), (vec![-1e8], 1), (vec![1.0], 1)];
        let reversed: Given = given.iter().rev().cloned().collect();
        assert_eq!(mean(&given), Ok(vec![1.0 / 3.0])); // (1e8 - 1e8) + 1
        assert_eq!(mean(&reversed), Ok(vec![0.0])); // (1 - 1e8) + 1e8, where 1 is lost
        // Nor is it an exotic case: among ordinary numbers many means depend on the order.
        let given = random(1, 5, 1000);
        let reversed: Given = given.iter().rev().cloned().collect();
        let (one, other) = (mean(&given).unwrap(), mean(&reversed).unwrap());
        assert!(one.iter().zip(&other).filter(|(a, b)| a != b).count() > 100);
    }

    #[test]
    fn dyadic_means_are_exact() {
        // Small whole numbers and a total that is a power of two: nothing rounds, in any order.
        let given = vec![
            (vec![3.0, -5.0, 7.0], 8),
            (vec![1.0, 1.0, -1.0], 16),
            (vec![-4.0, 2.0, 6.0], 32),
            (vec![2.0, 9.0, 0.5], 8),
        ];
        let exact = |i: usize| given.iter().map(|(x, c)| *c as f64 * f64::from(x[i])).sum::<f64>() / 64.0;
        let expected: Vec<f32> = (0..3).map(|i| exact(i) as f32).collect();
        assert_eq!(expected, [-1.125, 1.75, 3.6875]);
        assert_eq!(mean(&given), Ok(expected.clone()));
        assert_eq!(mean(&given.into_iter().rev().collect::<Given>()), Ok(expected));
    }

    #[test]
    fn equal_contributions_of_equal_counts_keep_a_dyadic_mean() {
        let given = vec![(vec![0.375, -6.0], 64); 4];
        assert_eq!(mean(&given), Ok(vec![0.375, -6.0]));
    }

    #[test]
    fn counts_are_exact_up_to_two_to_the_24_then_rounded() {
        let exact = 1 << 24;
        assert_eq!(mean(&[(vec![1.0], exact), (vec![0.0], exact)]), Ok(vec![0.5]));
        // 2^24 + 1 has no f32 of its own and rounds to 2^24, the total 2^24 + 2 does not.
        let beyond = mean(&[(vec![1.0], exact + 1), (vec![0.0], 1)]).unwrap();
        assert_eq!(beyond, [16_777_216.0 / 16_777_218.0]);
        // Counts whose sum is beyond u64 do not wrap.
        assert_eq!(mean(&[(vec![1.0], u64::MAX), (vec![0.0], u64::MAX)]), Ok(vec![0.5]));
    }

    #[test]
    fn a_contribution_of_no_examples_weighs_nothing() {
        assert_eq!(mean(&[(vec![7.0], 0), (vec![2.0], 4)]), Ok(vec![2.0]));
    }

    #[test]
    fn what_has_no_mean_is_an_error() {
        assert_eq!(mean(&[]), Err(ReduceError::Empty));
        assert_eq!(mean(&[(vec![1.0], 0)]), Err(ReduceError::NoExamples));
        assert_eq!(mean(&[(vec![1.0], 0), (vec![1.0], 0)]), Err(ReduceError::NoExamples));
        let error = mean(&[(vec![1.0; 3], 1), (vec![1.0; 2], 1)]).unwrap_err();
        assert_eq!(error.to_string(), "contribution 1 has 2 values, the mean has 3");
        let mut untouched = [5.0; 2];
        let wrong = [Contribution { values: &[1.0; 3], count: 1 }];
        assert!(weighted_mean(wrong, &mut untouched).is_err());
        assert_eq!(untouched, [5.0; 2]);
    }

    proptest! {
        #[test]
        fn cutting_into_slices_changes_no_bits(
            seed: u64, contributions in 1_usize..6, len in 1_usize..2_000, cut in 0_usize..2_000,
        ) {
            let cut = cut.min(len);
            let given = random(seed, contributions, len);
            let part = |range: std::ops::Range<usize>| -> Given {
                given.iter().map(|(values, count)| (values[range.clone()].to_vec(), *count)).collect()
            };
            let mut pieces = mean(&part(0..cut)).unwrap();
            pieces.extend(mean(&part(cut..len)).unwrap());
            prop_assert_eq!(bits(&mean(&given).unwrap()), bits(&pieces));
        }

        #[test]
        fn a_mean_is_near_the_exact_one(seed: u64, contributions in 1_usize..20) {
            let given = random(seed, contributions, 50);
            let total = given.iter().map(|&(_, count)| count as f64).sum::<f64>();
            for (i, &found) in mean(&given).unwrap().iter().enumerate() {
                let exact = given.iter().map(|(x, c)| *c as f64 * f64::from(x[i])).sum::<f64>() / total;
                let size = given.iter().map(|(x, c)| *c as f64 * f64::from(x[i].abs())).sum::<f64>() / total;
                // Each of n products and n sums rounds by at most 2^-24 of what they are made of.
                let bound = size * (2 * contributions + 2) as f64 / f64::from(1 << 24);
                prop_assert!((f64::from(found) - exact).abs() <= bound, "{} is not {}", found, exact);
            }
        }
    }
}
