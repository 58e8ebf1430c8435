//! Takes some of each client's examples out, to judge by.

use windlass_common::rng::{Purpose, Rng};

use super::Dealt;

/// The parts of a partition up to here belong to the rules; those from here on, one per client, to what is held out.
const FIRST_PART: u64 = 1 << 63;

/// Moves this share of each client's examples, rounded down, to the list of what it holds out; a client keeps at least
/// one. Which ones depends on the seed, the client and how many it has. Both lists keep the order there was.
///
/// # Panics
/// If the share is not in [0, 1].
pub fn hold_out(dealt: &mut Dealt, share: f64, seed: u64) -> Vec<Vec<u32>> {
    assert!((0.0..=1.0).contains(&share), "a share is a number between 0 and 1");
    let of_client = |(client, own): (u64, &mut Vec<u32>)| {
        // 0.29 of 100 is 28.999999999999996 in f64, and 29 to everybody else.
        let count = (share * own.len() as f64 + 1e-9) as usize;
        let count = count.min(own.len().saturating_sub(1));
        let mut is_held: Vec<bool> = (0..own.len()).map(|place| place < count).collect();
        Rng::new(seed, Purpose::PartitionPart(FIRST_PART + client)).shuffle(&mut is_held);
        let mut held = Vec::with_capacity(count);
        let mut place = 0;
        own.retain(|&example| {
            let goes = is_held[place];
            place += 1;
            if goes {
                held.push(example);
            }
            !goes
        });
        held
    };
    (0..).zip(&mut dealt.clients).map(of_client).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dealt(sizes: &[usize]) -> Dealt {
        let mut next = 0;
        let mut client = |size: usize| (next..next + size as u32).inspect(|_| next += 1).collect();
        Dealt { clients: sizes.iter().map(|&size| client(size)).collect(), unused: vec![] }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_everybody_keeps_one(
            sizes in prop::collection::vec(1_usize..50, 1..20), share in 0.0..=1.0, seed: u64,
        ) {
            let before = dealt(&sizes);
            let mut after = before.clone();
            let held = hold_out(&mut after, share, seed);
            for (client, size) in sizes.into_iter().enumerate() {
                let (kept, held) = (&after.clients[client], &held[client]);
                prop_assert_eq!(held.len(), ((share * size as f64) as usize).min(size - 1));
                prop_assert!(kept.is_sorted() && held.is_sorted());
                let mut all = [&kept[..], &held[..]].concat();
                all.sort_unstable();
                prop_assert_eq!(&all, &before.clients[client]);
            }
        }
    }

    #[test]
    fn the_seed_decides_and_the_share_is_rounded_as_people_do() {
        let held = |share, seed| hold_out(&mut dealt(&[100, 100]), share, seed);
        assert_eq!(held(0.29, 1)[0].len(), 29);
        assert_eq!(held(0.2, 1), held(0.2, 1));
        assert_ne!(held(0.2, 1), held(0.2, 2));
        let [first, second] = &held(0.5, 1)[..] else { unreachable!() };
        assert_ne!(first, &second.iter().map(|example| example - 100).collect::<Vec<_>>());
    }
}
