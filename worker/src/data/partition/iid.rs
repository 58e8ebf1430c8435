//! Deals the examples to the clients.

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
    let (share, larger) = (examples / clients, examples % clients);
    let mut rest = order.as_slice();
    (0..clients)
        .map(|client| {
            let (part, others) = rest.split_at(share + usize::from(client < larger));
            rest = others;
            part.to_vec()
        })
        .collect()
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
    }
}
