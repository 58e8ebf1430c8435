//! What a machine and its links allow a training at most, so that runs can be set beside it.

mod applying;
pub mod bare;
mod costs;
mod kept;
mod processor;

pub use costs::{Costs, has_limit, links_pushes_per_s, measure, together};
pub use kept::{Kept, keep, kept, location};
pub use processor::processor_time;
