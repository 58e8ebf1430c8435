//! Tests the transport as its users meet it: real sockets on loopback, every wait bounded.

mod frames;
mod handshake;
mod identity;
mod support;
