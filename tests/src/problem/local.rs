//! Trains one client as slowly and obviously as possible: plain SGD, value by value.

use windlass_common::ids::{ClientId, Step};

use super::Problem;

/// What a client has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Start minus end of its values.
    pub push: Vec<f32>,
    /// Examples whose gradients were computed, counted with repetition.
    pub work: u64,
    /// Mean loss of its last step.
    pub loss: f32,
}

/// All local steps of a client in a round, from these values and at this rate.
pub fn train(problem: &dyn Problem, client: ClientId, round: Step, rate: f32, start: &[f32]) -> Trained {
    let of = problem.client(client);
    let mut values = start.to_vec();
    let mut gradient = vec![0.0; start.len()];
    let mut loss = 0.0;
    for step in 0..of.steps {
        loss = problem.local_gradient(client, round, step, &values, &mut gradient);
        for i in 0..values.len() {
            values[i] -= rate * gradient[i];
        }
    }
    let push = (0..start.len()).map(|i| start[i] - values[i]).collect();
    Trained { push, work: of.steps * u64::from(of.batch), loss }
}
