//! Deals at random in log-normal sizes.

use windlass_common::rng::{self, Purpose, Rng};

use super::iid::cut;

/// One permutation, cut into parts whose sizes are in proportion to exp(sigma z), z standard normal.
///
/// A client whose part would be below 1 gets 1, the others share what is left in proportion, and rounding goes by the
/// largest remainder, so that the sizes sum to all examples. There must be at least as many as clients.
pub(super) fn deal(seed: u64, examples: usize, clients: usize, sigma: f64) -> Vec<Vec<u32>> {
    // Loading limits a data set to what 32 bits can number.
    let mut order: Vec<u32> = (0..examples as u32).collect();
    Rng::new(seed, Purpose::Partition).shuffle(&mut order);
    cut(&order, &sizes(examples, &weights(seed, clients, sigma)))
}

fn weights(seed: u64, clients: usize, sigma: f64) -> Vec<f64> {
    let mut normal = vec![0.0; clients];
    rng::normal(seed, Purpose::PartitionPart(0), 0, 1.0, &mut normal);
    normal.into_iter().map(|z| libm::exp(sigma * f64::from(z))).collect()
}

/// Whole numbers of at least 1 in proportion to the weights, whose sum is `total`.
fn sizes(total: usize, weights: &[f64]) -> Vec<usize> {
    let mut rising: Vec<usize> = (0..weights.len()).collect();
    rising.sort_by(|&a, &b| weights[a].total_cmp(&weights[b]));
    // What each and all heavier ones weigh together, summed from the heaviest down: nothing is ever subtracted.
    let mut together = vec![0.0; rising.len()];
    let mut sum = 0.0;
    for (place, &client) in rising.iter().enumerate().rev() {
        sum += weights[client];
        together[place] = sum;
    }
    let mut sizes = vec![1; weights.len()];
    let mut left = total;
    let mut lightest = 0;
    while lightest < rising.len() && left as f64 * weights[rising[lightest]] < together[lightest] {
        left -= 1;
        lightest += 1;
    }
    let Some(&weight) = together.get(lightest) else { return sizes };

    let mut remainders = Vec::with_capacity(rising.len() - lightest);
    let mut given = 0;
    for &client in &rising[lightest..] {
        let quota = left as f64 * (weights[client] / weight);
        sizes[client] = (quota as usize).max(1);
        given += sizes[client];
        remainders.push((quota - libm::floor(quota), client));
    }
    remainders.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for &(_, client) in remainders.iter().cycle().take(left.saturating_sub(given)) {
        sizes[client] += 1;
    }
    // Rounding in f64 can have given one too many, which the heaviest will not miss.
    sizes[rising[rising.len() - 1]] -= given.saturating_sub(left);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sizes_sum_to_all_and_are_at_least_one(
            weights in prop::collection::vec(-30.0_f64..30.0, 1..200), spare in 0_usize..10_000,
        ) {
            let weights: Vec<f64> = weights.iter().map(|ln| ln.exp()).collect();
            let total = weights.len() + spare;
            let sizes = sizes(total, &weights);
            prop_assert_eq!(sizes.iter().sum::<usize>(), total);
            prop_assert!(sizes.iter().all(|&size| size >= 1));
        }
    }

    #[test]
    fn sizes_are_in_proportion_to_the_weights() {
        assert_eq!(sizes(10, &[1.0, 2.0, 2.0]), [2, 4, 4]);
        assert_eq!(sizes(11, &[1.0, 1.0, 1.0]), [4, 4, 3]);
        assert_eq!(sizes(10, &[1e-9, 1.0, 1e-9]), [1, 8, 1]);
        assert_eq!(sizes(3, &[1.0, 1e9, 5.0]), [1, 1, 1]);
    }

    #[test]
    fn logarithms_of_sizes_deviate_by_sigma() {
        for sigma in [0.0, 0.5, 1.5] {
            let sizes = sizes(60_000_000, &weights(9, 2000, sigma));
            let logs: Vec<f64> = sizes.iter().map(|&size| (size as f64).ln()).collect();
            let mean = logs.iter().sum::<f64>() / 2000.0;
            let deviation = (logs.iter().map(|ln| (ln - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
            // Three standard errors of a deviation, sigma / sqrt(2 n), are 5 %.
            assert!((deviation - sigma).abs() <= 0.05 * sigma, "sigma {sigma}: {deviation}");
        }
    }
}
