//! Poses problems to train on: a gradient for each worker, step and set of values, and for each client's local steps.

mod bowls;
mod local;
mod network;
mod points;
mod quadratic;

use std::fmt::Debug;

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::layout::Variable;

pub use bowls::Bowls;
pub use local::{Trained, train};
pub use network::Network;
pub use points::{Point, Points};
pub use quadratic::Quadratic;

/// What is trained, and on what.
pub trait Problem: Debug {
    /// The variables of the model.
    fn variables(&self) -> Vec<Variable>;

    /// How many examples this worker's batch has in this step.
    fn examples(&self, worker: WorkerId, step: Step) -> u32;

    /// Writes the mean gradient of this worker's batch at these values, in layout order, and returns the mean loss.
    /// It depends on nothing else.
    fn gradient(&self, worker: WorkerId, step: Step, values: &[f32], gradient: &mut [f32]) -> f32;

    /// What a client has, and what it does in a round; by default one step on what the worker of its number has.
    fn client(&self, client: ClientId) -> Client {
        let examples = self.examples(WorkerId(client.0), Step(0));
        Client { examples, steps: 1, batch: examples }
    }

    /// As [`gradient`](Self::gradient), for one local step of a client in a round.
    fn local_gradient(
        &self,
        client: ClientId,
        round: Step,
        _step: u64,
        values: &[f32],
        gradient: &mut [f32],
    ) -> f32 {
        self.gradient(WorkerId(client.0), round, values, gradient)
    }
}

/// What a client has, and what it does in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its examples, which is what it counts in a mean.
    pub examples: u32,
    /// Local steps in each round.
    pub steps: u64,
    /// Examples of each step.
    pub batch: u32,
}
