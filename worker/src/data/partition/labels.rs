//! Deals each label's examples to the clients that own the label.

use windlass_common::rng::{Purpose, Rng};

use super::iid::{cut, even_sizes, shuffled_classes};

/// Each client owns `per_client` labels, and the examples of each label are split evenly among its owners, in the order
/// of the clients and the larger parts first.
///
/// As in NIID-Bench, client i owns label i mod C and others at random. With fewer clients than labels it owns every
/// label that is i modulo the number of clients, so that no label is without an owner; clients * `per_client` must be at
/// least C for that. C counts the labels that occur.
pub(super) fn deal(
    seed: u64,
    labels: &[u32],
    classes: usize,
    clients: usize,
    per_client: usize,
) -> Vec<Vec<u32>> {
    let mut examples = shuffled_classes(seed, labels, classes);
    examples.retain(|examples| !examples.is_empty());
    let mut owners = vec![Vec::new(); examples.len()];
    for client in 0..clients {
        for label in owned(seed, examples.len(), client, clients, per_client) {
            owners[label].push(client);
        }
    }
    let mut dealt = vec![Vec::new(); clients];
    for (examples, owners) in examples.iter().zip(&owners) {
        let parts = cut(examples, &even_sizes(examples.len(), owners.len()));
        for (&client, part) in owners.iter().zip(parts) {
            dealt[client].extend(part);
        }
    }
    dealt
}

/// The labels of one client.
fn owned(seed: u64, labels: usize, client: usize, clients: usize, per_client: usize) -> Vec<usize> {
    let mut owned: Vec<usize> = (client % labels..labels).step_by(clients.min(labels)).collect();
    let mut others: Vec<usize> = (0..labels).filter(|label| !owned.contains(label)).collect();
    Rng::new(seed, Purpose::PartitionPart(client as u64)).shuffle(&mut others);
    owned.extend(others.into_iter().take(per_client - owned.len()));
    owned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_label_has_an_owner_and_every_owner_its_number_of_labels(
            seed: u64, labels in 1_usize..40, clients in 1_usize..60, per_client in 1_usize..40,
        ) {
            prop_assume!(per_client <= labels && clients * per_client >= labels);
            let mut owners = vec![0; labels];
            for client in 0..clients {
                let mut owned = owned(seed, labels, client, clients, per_client);
                owned.iter().for_each(|&label| owners[label] += 1);
                owned.sort_unstable();
                owned.dedup();
                prop_assert_eq!(owned.len(), per_client);
            }
            prop_assert!(owners.iter().all(|&owners| owners > 0));
        }
    }

    #[test]
    fn the_owners_of_a_label_have_equal_parts() {
        let labels: Vec<u32> = (0..1000).map(|i| i % 10).collect();
        for (client, own) in deal(5, &labels, 10, 20, 1).iter().enumerate() {
            assert_eq!(own.len(), 50);
            assert!(own.iter().all(|&example| example as usize % 10 == client % 10));
        }
    }
}
