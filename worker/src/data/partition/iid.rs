//! Deals at random: one permutation cut evenly, or by sizes that others chose.

use windlass_common::rng::{Purpose, Rng};

/// Deals the examples 0 to `examples` - 1 at random to `clients` clients, whose shares differ by at most one.
///
/// One permutation, which depends on the seed alone, is cut into consecutive parts, the larger ones first. With more
/// clients than examples the last clients get none.
///
/// # Panics
/// If there are no clients, or more examples than 32 bits can number.
pub fn deal_iid(seed: u64, examples: usize, clients: usize) -> Vec<Vec<u32>> {
    assert!(clients > 0, "examples are dealt to at least one client");
    let count = u32::try_from(examples).expect("examples are numbered with 32 bits");
    let mut order: Vec<u32> = (0..count).collect();
    Rng::new(seed, Purpose::Partition).shuffle(&mut order);
    cut(&order, &even_sizes(examples, clients))
}

/// `total` in `parts` sizes that differ by at most one, the larger ones first.
pub(super) fn even_sizes(total: usize, parts: usize) -> Vec<usize> {
    let (share, larger) = (total / parts, total % parts);
    (0..parts).map(|part| share + usize::from(part < larger)).collect()
}

/// Cuts the items into consecutive parts of these sizes.
pub(super) fn cut(items: &[u32], sizes: &[usize]) -> Vec<Vec<u32>> {
    let mut rest = items;
    sizes
        .iter()
        .map(|&size| {
            let (part, others) = rest.split_at(size);
            rest = others;
            part.to_vec()
        })
        .collect()
}

/// The examples of each class, in an order that depends on the seed alone.
pub(super) fn shuffled_classes(seed: u64, labels: &[u32], classes: usize) -> Vec<Vec<u32>> {
    // Loading limits a data set to what 32 bits can number.
    let mut order: Vec<u32> = (0..labels.len() as u32).collect();
    Rng::new(seed, Purpose::Partition).shuffle(&mut order);
    let mut examples = vec![Vec::new(); classes];
    for example in order {
        examples[labels[example as usize] as usize].push(example);
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_or_doubled(seed: u64, examples in 0_usize..2000, clients in 1_usize..100) {
            let parts = deal_iid(seed, examples, clients);
            prop_assert_eq!(parts.len(), clients);
            let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            let mut all = parts.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..examples as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_seed_decides_who_gets_what() {
        assert_eq!(deal_iid(1, 600, 100), deal_iid(1, 600, 100));
        assert_ne!(deal_iid(1, 600, 100), deal_iid(2, 600, 100));
        // One permutation whatever the number of clients.
        assert_eq!(deal_iid(1, 600, 7).concat(), deal_iid(1, 600, 100).concat());
        assert_ne!(deal_iid(1, 600, 1)[0], (0..600).collect::<Vec<_>>());
        // Runs of earlier versions have dealt like this.
        assert_eq!(deal_iid(7, 12, 3).concat(), [1, 8, 9, 7, 4, 2, 5, 10, 11, 0, 6, 3]);
    }
}
