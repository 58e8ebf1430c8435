//! Says what federated averaging must come to: one process trains each round's clients, one after the other.

use windlass_common::ids::{ClientId, Step};
use windlass_common::plan::{Mode, Plan, Sampler, Weights};
use windlass_common::rng::{Purpose, Rng};

use super::{Model, mean};
use crate::problem::{Problem, train};

/// In which order the clients' differences are added up. Only one is right; the other shows that it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the numbers of the clients.
    Rising,
    /// The other way round, which is wrong.
    Falling,
}

/// What each client counts. Only one is right; the others show that it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weigh {
    /// As the plan says.
    AsPlanned,
    /// The first two clients of a cohort have each other's weight, which is wrong.
    Swapped,
    /// As the plan does not say, which is wrong.
    Otherwise,
}

/// All rounds of a plan that waits for everyone whom it asks.
///
/// # Panics
/// If the plan is of another kind.
pub fn federated(plan: &Plan, problem: &dyn Problem, order: Order, weigh: Weigh) -> Vec<f32> {
    let Mode::Fedavg(fedavg) = &plan.mode else { panic!("{} has no rounds", plan.mode) };
    assert_eq!((fedavg.asked, fedavg.quorum), (fedavg.cohort, fedavg.cohort), "everyone is waited for");
    let mut model = Model::of(plan);
    for round in 0..fedavg.rounds {
        let clients = match fedavg.sampler {
            Sampler::Uniform => sample(plan.seed, round, plan.clients.count, fedavg.cohort),
            ref other => panic!("the oracle does not know {other:?}"),
        };
        let by_examples = (fedavg.weights == Weights::Examples) != (weigh == Weigh::Otherwise);
        let pushes: Vec<Vec<f32>> = clients
            .iter()
            .map(|&c| train(problem, c, Step(round), fedavg.local.rate as f32, &model.values).push)
            .collect();
        let weight = |&c: &ClientId| if by_examples { problem.client(c).examples } else { 1 };
        let mut weights: Vec<u32> = clients.iter().map(weight).collect();
        if weigh == Weigh::Swapped {
            weights.swap(0, 1);
        }
        let mut weighted: Vec<(u32, &[f32])> =
            weights.into_iter().zip(pushes.iter().map(Vec::as_slice)).collect();
        if order == Order::Falling {
            weighted.reverse();
        }
        model.step(&mean(&weighted), plan.schedule.rate(round, fedavg.rounds));
    }
    model.values
}

/// Draws clients one after the other, none twice: whoever was first of those left takes the place of the one drawn.
fn sample(seed: u64, round: u64, clients: u32, count: u32) -> Vec<ClientId> {
    let mut rng = Rng::new(seed, Purpose::Cohort { round });
    let mut left: Vec<u32> = (0..clients).collect();
    let mut drawn = Vec::new();
    while drawn.len() < count as usize {
        let at = rng.below(left.len() as u64) as usize;
        drawn.push(ClientId(left[at]));
        left[at] = left[0];
        left.remove(0);
    }
    drawn.sort();
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_each_client_at_most_once() {
        for round in 0..20 {
            let mut drawn = sample(3, round, 9, 7);
            assert!(drawn.iter().all(|c| c.0 < 9));
            drawn.dedup();
            assert_eq!(drawn.len(), 7);
        }
        assert_ne!(sample(3, 0, 9, 4), sample(3, 1, 9, 4));
    }
}
