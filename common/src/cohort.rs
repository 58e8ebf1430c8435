//! Chooses which clients take part in a round, and which worker trains each of them.
//!
//! The choice follows from the plan and the round alone, and who trains whom from the members beside; neither from how
//! many draws came before.

use std::collections::BTreeMap;

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
///
/// # Panics
/// If there is no member.
pub fn deal(
    hosting: Hosting,
    cohort: &[ClientId],
    sizes: &[u32],
    hosts: &Hosts,
    members: &[WorkerId],
) -> Vec<Task> {
    match hosting {
        Hosting::Fixed => cohort.iter().map(|&client| Task { client, worker: hosts.of(client) }).collect(),
        Hosting::Balanced => balanced(cohort, sizes, members),
    }
}

/// Which worker has the data of which client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    of: Vec<WorkerId>,
    /// Data that lie with their worker cannot be dealt anew.
    own: bool,
}

impl Hosts {
    /// So many clients, dealt to the members in turn.
    ///
    /// # Panics
    /// If there is no member.
    pub fn dealt(clients: u32, members: &[WorkerId]) -> Self {
        let of = (0..clients as usize).map(|client| members[client % members.len()]).collect();
        Self { of, own: false }
    }

    /// Each client is the worker of the same number.
    pub fn own(clients: u32) -> Self {
        Self { of: (0..clients).map(WorkerId).collect(), own: true }
    }

    /// The worker that has a client's data.
    pub fn of(&self, client: ClientId) -> WorkerId {
        self.of[client.index()]
    }

    /// The clients whose data a worker has, in order.
    pub fn clients_of(&self, worker: WorkerId) -> Vec<ClientId> {
        let its = self.of.iter().enumerate().filter(|(_, of)| **of == worker);
        its.map(|(client, _)| ClientId(client as u32)).collect()
    }

    /// Deals anew among these members, in order of rank: each has as many clients as any other or one less, and as few as
    /// possible move. Returns those that have.
    pub fn deal_anew(&mut self, members: &[WorkerId]) -> Vec<Task> {
        if self.own || members.is_empty() {
            return Vec::new();
        }
        let mut counts: BTreeMap<WorkerId, usize> = members.iter().map(|&w| (w, 0)).collect();
        for of in &self.of {
            if let Some(count) = counts.get_mut(of) {
                *count += 1;
            }
        }
        // Who has most keeps one more where the clients do not come out even.
        let (share, mut larger) = (self.of.len() / members.len(), self.of.len() % members.len());
        let mut order = members.to_vec();
        order.sort_by_key(|worker| (std::cmp::Reverse(counts[worker]), *worker));
        let mut room: BTreeMap<WorkerId, usize> = BTreeMap::new();
        for worker in order {
            room.insert(worker, share + usize::from(larger > 0));
            larger = larger.saturating_sub(1);
        }
        let mut moving = Vec::new();
        for (client, of) in self.of.iter().enumerate() {
            match room.get_mut(of) {
                Some(places) if *places > 0 => *places -= 1,
                _ => moving.push(client),
            }
        }
        let mut places = room.into_iter().flat_map(|(worker, places)| std::iter::repeat_n(worker, places));
        let mut moved = Vec::with_capacity(moving.len());
        for client in moving {
            self.of[client] = places.next().expect("there is a place for every client");
            moved.push(Task { client: ClientId(client as u32), worker: self.of[client] });
        }
        moved
    }
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
fn balanced(cohort: &[ClientId], sizes: &[u32], members: &[WorkerId]) -> Vec<Task> {
    let size = |client: ClientId| sizes.get(client.index()).copied().unwrap_or(1);
    let mut order: Vec<ClientId> = cohort.to_vec();
    order.sort_by_key(|&client| (std::cmp::Reverse(size(client)), client));
    let mut loads = vec![0_u64; members.len()];
    let mut tasks: Vec<Task> = order
        .into_iter()
        .map(|client| {
            let least = (0..loads.len()).min_by_key(|&w| (loads[w], w)).expect("there is a worker");
            loads[least] += u64::from(size(client));
            Task { client, worker: members[least] }
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
        let members = [WorkerId(0), WorkerId(1)];
        let hosts = Hosts::dealt(6, &members);
        let tasks = deal(Hosting::Balanced, &cohort, &sizes, &hosts, &members);
        assert_eq!(tasks.iter().map(|t| t.client).collect::<Vec<_>>(), cohort);
        let load = |w| {
            tasks.iter().filter(|t| t.worker == WorkerId(w)).map(|t| sizes[t.client.index()]).sum::<u32>()
        };
        assert_eq!((load(0), load(1)), (16, 16));
        let fixed = deal(Hosting::Fixed, &cohort, &sizes, &hosts, &members);
        assert!(fixed.iter().all(|t| t.worker.0 == t.client.0 % 2));
        assert_eq!(hosts.clients_of(WorkerId(1)), ids([1, 3, 5]));
        assert!(hosts.clients_of(WorkerId(3)).is_empty());
    }

    #[test]
    fn clients_are_dealt_evenly_and_few_of_them_move() {
        let workers = |numbers: &[u32]| numbers.iter().copied().map(WorkerId).collect::<Vec<_>>();
        let mut hosts = Hosts::dealt(10, &workers(&[0, 1, 2, 3]));
        let mut rng = Rng::new(5, Purpose::Partition);
        for _ in 0..200 {
            let mut members = workers(&[0, 1, 2, 3, 4, 5]);
            members.retain(|_| rng.below(3) > 0);
            let before = hosts.clone();
            let moved = hosts.deal_anew(&members);
            if members.is_empty() {
                assert_eq!(hosts, before);
                continue;
            }
            let counts: Vec<usize> = members.iter().map(|&w| hosts.clients_of(w).len()).collect();
            assert_eq!(counts.iter().sum::<usize>(), 10);
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
            let kept = |w: &&WorkerId| before.clients_of(**w).len();
            let over =
                members.iter().map(|w| kept(&w).saturating_sub(hosts.clients_of(*w).len())).sum::<usize>();
            let homeless = (0..10).filter(|&c| !members.contains(&before.of(ClientId(c)))).count();
            assert_eq!(moved.len(), over + homeless, "nobody else moves");
            assert_eq!(hosts.deal_anew(&members), []);
        }
        let mut own = Hosts::own(4);
        assert_eq!(own.deal_anew(&workers(&[1, 2])), []);
        assert_eq!(own.clients_of(WorkerId(3)), ids([3]));
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
