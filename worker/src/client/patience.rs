//! Says how long a client or an observer waits for a peer that is connected and silent.

use std::time::Duration;

/// A coordinator or shard that says nothing for so long is given up. Whoever makes us wait longer says so every other
/// second.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A coordinator that does not tell an observer for so long how the run stands is given up. It does so five times a second.
pub const STATUS_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long the last message may take to be taken, and again to arrive, and again the connections to end.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// How long the word that a worker leaves may take to arrive: the run waits for it. Longer than a silent connection lasts.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(12);

/// How long a client or an observer waits for a peer that is connected and silent. One that is gone is noticed by its
/// connection. A peer that is slow is waited for, as long as it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the next word of a coordinator or shard, and for the next bytes of a frame to come or to be taken:
    /// [`SILENCE_MAX`].
    pub silence: Duration,
    /// For the next word of the coordinator to an observer: [`STATUS_SILENCE_MAX`].
    pub status: Duration,
    /// For the last message: [`FAREWELL`].
    pub farewell: Duration,
    /// For the word that a worker leaves: [`LEAVE_WITHIN`].
    pub leave: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: SILENCE_MAX, status: STATUS_SILENCE_MAX, farewell: FAREWELL, leave: LEAVE_WITHIN }
    }
}
