//! Reads the clock for the cores, which have none.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use windlass_ps_core::Time;

/// Now, in microseconds since 1970. It never goes back nor jumps: the wall is looked at once, and what has passed since is
/// counted by a clock that nobody sets.
pub fn now() -> Time {
    static BEGINNING: OnceLock<(Instant, u64)> = OnceLock::new();
    let (instant, wall_us) = BEGINNING.get_or_init(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), u64::try_from(since.as_micros()).unwrap_or(0))
    });
    Time(wall_us + u64::try_from(instant.elapsed().as_micros()).unwrap_or(0))
}
