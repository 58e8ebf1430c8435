//! Chooses which clients take part in a round, and which worker trains each of them.
//!
//! Both follow from the plan and the round alone: neither from who is there, nor from how many draws came before.

use crate::ids::{ClientId, WorkerId};
use crate::plan::{Hosting, Sampler};
use crate::rng::{Purpose, Rng};
use crate::wire::Task;

/// The clients asked in a round, in order.
///
/// `sizes` holds the number of examples of each client; it is needed by [`Sampler::BySize`] alone.
///
/// # Panics
/// If more clients are asked than there are, or a list names none: a checked plan has neither.
pub fn choose(
    sampler: &Sampler,
    seed: u64,
    round: u64,
    clients: u32,
    sizes: &[u32],
    asked: u32,
) -> Vec<ClientId> {
    assert!(asked <= clients, "a round asks at most every client");
    let mut rng = Rng::new(seed, Purpose::Cohort { round });
    let mut chosen: Vec<u32> = match sampler {
        Sampler::Uniform => {
            let mut all: Vec<u32> = (0..clients).collect();
            // The first places of a shuffle, and no more of it than is needed.
            for i in 0..asked as usize {
                let other = i + rng.below(u64::from(clients) - i as u64) as usize;
                all.swap(i, other);
            }
            all.truncate(asked as usize);
            all
        }
        Sampler::BySize => {
            // Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", algorithm A: the largest keys
            // log(u) / size are a sample drawn one by one with chances proportional to size.
            let key = |client: u32| libm::log(rng.unit()) / f64::from(sizes[client as usize].max(1));
            let mut keys: Vec<(f64, u32)> = (0..clients).map(key).zip(0..clients).collect();
            keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            keys.into_iter().take(asked as usize).map(|(_, client)| client).collect()
        }
        Sampler::RoundRobin => {
            let first = u128::from(round) * u128::from(asked);
            let client = |i: u32| ((first + u128::from(i)) % u128::from(clients)) as u32;
            (0..asked).map(client).collect()
        }
        Sampler::List { rounds } => rounds[(round % rounds.len() as u64) as usize].clone(),
    };
    chosen.sort_unstable();
    chosen.into_iter().map(ClientId).collect()
}

/// Who trains whom in a round, in order of the clients.
pub fn deal(hosting: Hosting, cohort: &[ClientId], sizes: &[u32], workers: u32) -> Vec<Task> {
    match hosting {
        Hosting::Fixed => {
            cohort.iter().map(|&client| Task { client, worker: host(client, workers) }).collect()
        }
        Hosting::Balanced => balanced(cohort, sizes, workers),
    }
}

/// The worker that always trains a client, where that is fixed.
pub fn host(client: ClientId, workers: u32) -> WorkerId {
    WorkerId(client.0 % workers)
}

/// The clients whose data a worker has, where that is fixed.
pub fn hosted(worker: WorkerId, clients: u32, workers: u32) -> Vec<ClientId> {
    (worker.0..clients).step_by(workers as usize).map(ClientId).collect()
}

/// The client that a worker trains at its step, where nobody chooses cohorts: any of its own with the same chance.
///
/// # Panics
/// If it has none.
pub fn next_client(seed: u64, worker: WorkerId, step: u64, hosted: &[ClientId]) -> ClientId {
    let mut rng = Rng::new(seed, Purpose::NextClient { worker: worker.0, step });
    hosted[rng.below(hosted.len() as u64) as usize]
}

/// Largest first, each to the worker that has least (Graham 1969, longest processing time).
fn balanced(cohort: &[ClientId], sizes: &[u32], workers: u32) -> Vec<Task> {
    let size = |client: ClientId| sizes.get(client.index()).copied().unwrap_or(1);
    let mut order: Vec<ClientId> = cohort.to_vec();
    order.sort_by_key(|&client| (std::cmp::Reverse(size(client)), client));
    let mut loads = vec![0_u64; workers as usize];
    let mut tasks: Vec<Task> = order
        .into_iter()
        .map(|client| {
            let least = (0..loads.len()).min_by_key(|&w| (loads[w], w)).expect("there is a worker");
            loads[least] += u64::from(size(client));
            Task { client, worker: WorkerId(least as u32) }
        })
        .collect();
    tasks.sort_unstable();
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<ClientId> {
        numbers.into_iter().map(ClientId).collect()
    }

    #[test]
    fn a_cohort_is_a_set_that_seed_and_round_decide() {
        let sizes: Vec<u32> = (1..=50).collect();
        for sampler in [Sampler::Uniform, Sampler::BySize] {
            let cohort = |seed, round| choose(&sampler, seed, round, 50, &sizes, 12);
            for round in 0..50 {
                let found = cohort(1, round);
                assert_eq!(found.len(), 12);
                assert!(found.windows(2).all(|pair| pair[0] < pair[1]) && found[11].0 < 50);
                assert_eq!(found, cohort(1, round));
            }
            assert_ne!(cohort(1, 0), cohort(1, 1));
            assert_ne!(cohort(1, 0), cohort(2, 0));
            assert_eq!(choose(&sampler, 1, 0, 50, &sizes, 50), ids(0..50));
        }
    }

    #[test]
    fn chances_are_equal_or_follow_the_sizes() {
        let sizes = [100, 300, 600];
        let mut counts = [[0_u32; 3]; 2];
        for round in 0..20_000 {
            for (sampler, counts) in [Sampler::Uniform, Sampler::BySize].iter().zip(&mut counts) {
                counts[choose(sampler, 7, round, 3, &sizes, 1)[0].index()] += 1;
            }
        }
        assert!(counts[0].iter().all(|&c| (6_400..6_930).contains(&c)), "{counts:?}");
        for (&count, size) in counts[1].iter().zip(sizes) {
            assert!((f64::from(count) / 20_000.0 - f64::from(size) / 1000.0).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn round_robin_and_lists_are_what_they_say() {
        let robin = |round| choose(&Sampler::RoundRobin, 1, round, 5, &[], 2);
        assert_eq!([robin(0), robin(1), robin(2)], [ids([0, 1]), ids([2, 3]), ids([0, 4])]);
        assert_eq!(robin(u64::MAX).len(), 2);
        let list = Sampler::List { rounds: vec![vec![3, 1], vec![0, 4]] };
        let listed = |round| choose(&list, 1, round, 5, &[], 2);
        assert_eq!([listed(0), listed(1), listed(2)], [ids([1, 3]), ids([0, 4]), ids([1, 3])]);
    }

    #[test]
    fn every_client_has_one_worker() {
        let sizes = [5, 1, 9, 9, 2, 7];
        let cohort = ids([0, 2, 3, 4, 5]);
        let tasks = deal(Hosting::Balanced, &cohort, &sizes, 2);
        assert_eq!(tasks.iter().map(|t| t.client).collect::<Vec<_>>(), cohort);
        let load = |w| {
            tasks.iter().filter(|t| t.worker == WorkerId(w)).map(|t| sizes[t.client.index()]).sum::<u32>()
        };
        assert_eq!((load(0), load(1)), (16, 16));
        let fixed = deal(Hosting::Fixed, &cohort, &sizes, 2);
        assert!(fixed.iter().all(|t| t.worker.0 == t.client.0 % 2));
        assert_eq!(hosted(WorkerId(1), 6, 2), ids([1, 3, 5]));
        assert!(hosted(WorkerId(3), 2, 4).is_empty());
    }

    #[test]
    fn each_client_of_a_worker_has_its_turn() {
        let own = ids([1, 4, 7]);
        let mut counts = [0_u32; 8];
        for step in 0..3_000 {
            counts[next_client(1, WorkerId(1), step, &own).index()] += 1;
        }
        assert!(own.iter().all(|c| (900..1_100).contains(&counts[c.index()])), "{counts:?}");
    }
}
