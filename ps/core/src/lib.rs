//! Decides when a push counts and when a pull may be answered.
//!
//! [`shard::Shard`] and [`coordinator::Coordinator`] take events and give effects: no IO, no clock, no threads.
//! Whoever drives them brings the time, carries messages and writes files.

pub mod coordinator;
pub mod ledger;
pub mod replica;
pub mod residuals;
pub mod rules;
#[cfg(test)]
mod sample;
pub mod shard;
pub mod store;

/// A point in time: microseconds since 1970, as told by whoever drives a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This many seconds later.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }

    /// Whole seconds since an earlier point; 0 if it is not earlier.
    pub fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

/// Where an answer goes: a stream of frames, numbered by whoever drives the core and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);
