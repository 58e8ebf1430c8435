//! Deals shards of the examples sorted by label.

use windlass_common::rng::{Purpose, Rng};

use super::iid::{cut, even_sizes};

/// Sorts by label, and within a label by number; cuts into clients * `per_client` shards whose sizes differ by at most
/// one, the larger ones first; and deals `per_client` of them to each client, in an order that depends on the seed
/// alone (McMahan et al. 2017).
pub(super) fn deal(seed: u64, labels: &[u32], clients: usize, per_client: usize) -> Vec<Vec<u32>> {
    // Loading limits a data set to what 32 bits can number.
    let mut sorted: Vec<u32> = (0..labels.len() as u32).collect();
    sorted.sort_by_key(|&example| labels[example as usize]);
    let shards = cut(&sorted, &even_sizes(labels.len(), clients * per_client));
    let mut order: Vec<usize> = (0..shards.len()).collect();
    Rng::new(seed, Purpose::Partition).shuffle(&mut order);
    order
        .chunks_exact(per_client)
        .map(|own| own.iter().flat_map(|&shard| &shards[shard]).copied().collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_whole_shards_of_the_sorted_examples() {
        let labels = [1, 0, 1, 0, 2, 2, 1, 0];
        // Sorted: 1 3 7 | 0 2 6 | 4 5 for three shards of 3, 3 and 2.
        let mut dealt = deal(4, &labels, 3, 1);
        dealt.sort_unstable();
        assert_eq!(dealt, [vec![0, 2, 6], vec![1, 3, 7], vec![4, 5]]);
        // Four shards, two a client: 1 3 | 7 0 | 2 6 | 4 5.
        let shards = [[1, 3], [7, 0], [2, 6], [4, 5]];
        for client in deal(4, &labels, 2, 2) {
            assert!(client.chunks(2).all(|shard| shards.iter().any(|s| s == shard)), "{client:?}");
        }
    }
}
