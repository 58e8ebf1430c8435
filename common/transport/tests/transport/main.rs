//! Tests the transport as its users meet it: real sockets on loopback, every wait bounded.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod frames;
mod handshake;
mod identity;
mod lanes;
mod pacing;
mod silence;
mod support;
