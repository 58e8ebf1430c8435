//! A worker: the client that pulls and pushes, and built-in models, data and a training loop that use it.
//!
//! [`client::Client`] stands on its own; the rest is one way to use it.

mod ahead;
pub mod client;
pub mod data;
pub mod emulation;
pub mod federated;
pub mod models;
pub mod observer;
mod overlap;
pub mod training;
