//! What every part of Windlass must mean by the same thing: ids, shapes, placement, plan, wire format, optimizers, codecs.
//!
//! Nothing here touches a socket, a thread, a clock, a file or the environment.

pub mod bits;
pub mod codec;
pub mod cohort;
pub mod compensate;
pub mod exit;
pub mod floats;
pub mod ids;
pub mod layout;
pub mod mix;
pub mod optimizer;
pub mod placement;
pub mod plan;
pub mod reduce;
pub mod rng;
pub mod schedule;
pub mod wire;
