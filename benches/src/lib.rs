//! What the benchmarks share: a plan for the model at hand, whole trainings, and figures of the machine.

pub mod machine;
pub mod setting;
pub mod training;
