//! What the benchmarks share: a plan for the model at hand, a server for it, bare QUIC, and a clock of processor time.

pub mod bare;
pub mod machine;
pub mod server;
pub mod setting;
pub mod training;
