//! Shows that a cluster trains what a single process would train, without a socket, a thread or a clock.
//!
//! [`cluster`] runs the real cores with messages in memory; [`oracle`] says what must come out; [`scenario`] plays
//! text files against one core.

pub mod audit;
pub mod cluster;
pub mod oracle;
pub mod problem;
pub mod scenario;
pub mod seeds;
