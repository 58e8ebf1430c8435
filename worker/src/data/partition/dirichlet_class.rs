//! Deals each class by shares that its clients draw from a symmetric Dirichlet distribution.

use windlass_common::plan::{DIRICHLET_CLASS_DRAWS_MAX, DIRICHLET_CLASS_EXAMPLES_MIN};
use windlass_common::rng::{Purpose, Rng};

use super::gamma::LnShares;
use super::iid::shuffled_classes;

/// Splits each class over the clients by Dir(beta), in the order of the classes and giving nothing more to a client that
/// has n/K examples already; redrawn until each client has [`DIRICHLET_CLASS_EXAMPLES_MIN`] (NIID-Bench, Li et al. 2022).
///
/// # Errors
/// The largest number of examples that the smallest client had in any of [`DIRICHLET_CLASS_DRAWS_MAX`] draws.
pub(super) fn deal(
    seed: u64,
    labels: &[u32],
    classes: usize,
    clients: usize,
    beta: f64,
) -> Result<Vec<Vec<u32>>, u64> {
    let examples = shuffled_classes(seed, labels, classes);
    let sizes: Vec<usize> = examples.iter().map(Vec::len).collect();
    let ends = find_ends(seed, &sizes, clients, beta)?;
    let mut dealt = vec![Vec::new(); clients];
    for (examples, ends) in examples.iter().zip(&ends) {
        let mut start = 0;
        for (own, &end) in dealt.iter_mut().zip(ends) {
            own.extend_from_slice(&examples[start..end]);
            start = end;
        }
    }
    Ok(dealt)
}

/// Where each client's part of each class ends. Which examples a part holds does not decide whether a draw will do, so
/// only the sizes are drawn anew.
fn find_ends(seed: u64, sizes: &[usize], clients: usize, beta: f64) -> Result<Vec<Vec<usize>>, u64> {
    let mut reached = 0;
    for draw in 0..DIRICHLET_CLASS_DRAWS_MAX {
        let mut rng = Rng::new(seed, Purpose::PartitionPart(draw));
        let (ends, smallest) = draw_ends(&mut rng, sizes, clients, beta);
        if smallest >= DIRICHLET_CLASS_EXAMPLES_MIN {
            return Ok(ends);
        }
        reached = reached.max(smallest);
    }
    Err(reached)
}

fn draw_ends(rng: &mut Rng, sizes: &[usize], clients: usize, beta: f64) -> (Vec<Vec<usize>>, u64) {
    let full = sizes.iter().sum::<usize>() as f64 / clients as f64;
    let mut totals = vec![0_usize; clients];
    let mut shares = Vec::with_capacity(clients);
    let of_class = |&size: &usize| {
        let drawn = LnShares::draw(rng, std::iter::repeat_n(beta, clients));
        // Someone is not full yet: the mean of the totals is n/K only when no example is left.
        let is_open = |client: usize| size == 0 || (totals[client] as f64) < full;
        drawn.cumulate(is_open, &mut shares);
        let ends: Vec<usize> = shares.iter().map(|share| (share * size as f64) as usize).collect();
        let mut start = 0;
        for (total, &end) in totals.iter_mut().zip(&ends) {
            *total += end - start;
            start = end;
        }
        ends
    };
    let ends = sizes.iter().map(of_class).collect();
    let smallest = totals.iter().copied().min().unwrap_or(0);
    (ends, smallest as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 10] = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949];

    fn totals(ends: &[Vec<usize>]) -> Vec<usize> {
        let clients = ends[0].len();
        let part = |ends: &[usize], k: usize| ends[k] - if k == 0 { 0 } else { ends[k - 1] };
        (0..clients).map(|client| ends.iter().map(|ends| part(ends, client)).sum()).collect()
    }

    #[test]
    fn nobody_who_is_full_gets_more() {
        for seed in 0..20 {
            let ends = find_ends(seed, &SIZES, 10, 0.1).unwrap();
            assert!(ends.iter().zip(SIZES).all(|(ends, size)| ends[9] == size && ends.is_sorted()));
            for class in 1..10 {
                let (before, after) = (totals(&ends[..class]), totals(&ends[..=class]));
                for (before, after) in before.iter().zip(&after) {
                    assert!(*before < 6000 || before == after);
                }
            }
        }
    }

    #[test]
    fn the_smallest_client_has_ten_examples() {
        for (clients, beta) in [(10, 0.1), (10, 0.5), (100, 0.5), (2, 0.01)] {
            let ends = find_ends(3, &SIZES, clients, beta).unwrap();
            assert!(totals(&ends).into_iter().all(|total| total >= 10), "{clients} {beta}");
        }
    }

    #[test]
    fn what_is_never_reached_is_said_with_how_far_it_came() {
        // Ten classes of which almost each goes to one client whole cannot serve a hundred clients.
        assert_eq!(find_ends(3, &SIZES, 100, 1e-4), Err(0));
        let reached = find_ends(3, &[60, 60], 10, 1.0).unwrap_err();
        assert!((1..10).contains(&reached), "{reached}");
    }

    #[test]
    fn the_first_class_is_split_as_beta_says() {
        // Var(q) = (1/K)(1 - 1/K) / (K beta + 1), which is 0.09 / 6 for ten clients with beta 0.5.
        let (clients, beta, draws) = (10, 0.5, 4000_u64);
        let mut sum = 0.0;
        for draw in 0..draws {
            let mut rng = Rng::new(draw, Purpose::PartitionPart(0));
            let (ends, _) = draw_ends(&mut rng, &SIZES, clients, beta);
            let first = totals(&ends[..1]);
            sum += first.iter().map(|&n| (n as f64 / 5923.0 - 0.1).powi(2)).sum::<f64>() / 10.0;
        }
        let (variance, expected) = (sum / draws as f64, 0.09 / 6.0);
        assert!((variance / expected - 1.0).abs() < 0.04, "{variance}, expected {expected}");
    }
}
