//! Poses problems to train on: a gradient for each worker, step and set of values.

mod network;
mod quadratic;

use std::fmt::Debug;

use windlass_common::ids::{Step, WorkerId};
use windlass_common::layout::Variable;

pub use network::Network;
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
}
