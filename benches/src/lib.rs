//! What the benchmarks share: a plan for the model at hand, a server for it, whole trainings, and figures of the machine.

pub mod machine;
pub mod server;
pub mod setting;
pub mod training;
