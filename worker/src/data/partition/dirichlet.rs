//! Deals by class shares that each client draws from a Dirichlet distribution around the class prior.

use windlass_common::rng::{Purpose, Rng};

use super::Dealt;
use super::gamma::LnShares;
use super::iid::shuffled_classes;

/// Client k draws q_k ~ Dir(alpha p), p being the shares of the classes in all examples, and then floor(n/K) examples:
/// each time a class by q_k, and one of its examples that nobody has yet. Clients draw in their order; when a class
/// runs out, q_k is renormalised over the others (Hsu et al. 2019).
///
/// The fewer than K examples that remain stay unused. The last clients find only what the others left, so even with a
/// large alpha some of them miss a class.
pub(super) fn deal(seed: u64, labels: &[u32], classes: usize, clients: usize, alpha: f64) -> Dealt {
    let mut left = shuffled_classes(seed, labels, classes);
    left.retain(|examples| !examples.is_empty());
    let prior: Vec<f64> = left.iter().map(|examples| examples.len() as f64 / labels.len() as f64).collect();
    let share = labels.len() / clients;
    let mut ends = Vec::with_capacity(left.len());
    let dealt = (0..clients)
        .map(|client| {
            let mut rng = Rng::new(seed, Purpose::PartitionPart(client as u64));
            let q = LnShares::draw(&mut rng, prior.iter().map(|p| alpha * p));
            let mut own = Vec::with_capacity(share);
            q.cumulate(|class| !left[class].is_empty(), &mut ends);
            while own.len() < share {
                let place = rng.unit();
                // Classes without examples have no width, so this is never one of them.
                let class = ends.partition_point(|&end| end <= place);
                let example = left[class].pop().expect("a class that is drawn has an example left");
                own.push(example);
                if left[class].is_empty() && own.len() < share {
                    q.cumulate(|class| !left[class].is_empty(), &mut ends);
                }
            }
            own
        })
        .collect();
    Dealt { clients: dealt, unused: left.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean over clients of the sum of squared class shares, E[sum q^2] = sum p (1 - p) / (alpha + 1) + p^2.
    fn concentration(dealt: &Dealt, labels: &[u32], classes: usize) -> f64 {
        let of_client = |client: &Vec<u32>| {
            let mut counts = vec![0.0; classes];
            client.iter().for_each(|&example| counts[labels[example as usize] as usize] += 1.0);
            counts.iter().map(|count| (count / client.len() as f64).powi(2)).sum::<f64>()
        };
        dealt.clients.iter().map(of_client).sum::<f64>() / dealt.clients.len() as f64
    }

    #[test]
    fn clients_are_as_unlike_as_alpha_says() {
        // Sixteen clients of which each takes 1/100 of the whole, so that hardly a class runs out before they are done.
        let labels: Vec<u32> = (0..100_000).map(|i| [0, 0, 0, 0, 0, 1, 1, 1, 2, 2][i % 10]).collect();
        for alpha in [0.5, 5.0, 1e6] {
            let mean = (0..20)
                .map(|seed| {
                    let mut dealt = deal(seed, &labels, 3, 100, alpha);
                    dealt.clients.truncate(16);
                    concentration(&dealt, &labels, 3)
                })
                .sum::<f64>()
                / 20.0;
            // With 1,000 examples, sampling adds (1 - E) / 1000.
            let exact = 0.62 / (alpha + 1.0) + 0.38;
            let expected = exact + (1.0 - exact) / 1000.0;
            assert!((mean - expected).abs() < 0.03, "alpha {alpha}: {mean}, expected {expected}");
        }
    }

    #[test]
    fn the_remainder_belongs_to_nobody() {
        let labels: Vec<u32> = (0..107).map(|i| i % 4).collect();
        let dealt = deal(1, &labels, 4, 10, 0.1);
        assert!(dealt.clients.iter().all(|client| client.len() == 10));
        assert_eq!(dealt.unused.len(), 7);
    }

    #[test]
    fn a_label_without_examples_is_left_out() {
        let labels: Vec<u32> = (0..100).map(|i| [0, 3][i % 2]).collect();
        let dealt = deal(1, &labels, 5, 10, 1e-6);
        assert!(dealt.unused.is_empty());
    }
}
