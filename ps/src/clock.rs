//! Reads the clock for the cores, which have none.

use std::time::{SystemTime, UNIX_EPOCH};

use windlass_ps_core::Time;

/// Now, in microseconds since 1970.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
