//! What the benchmarks share: a plan for the model at hand, bare QUIC, and a clock of processor time.

use mimalloc::MiMalloc;

/// As the programs of a run have it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

pub mod bare;
pub mod machine;
pub mod setting;
pub mod training;
