//! Lets a process send and receive no faster than a link of a given rate would.
//!
//! All connections of an endpoint share one [`Link`], which has one [`Pacer`] per direction: so the rate is that of the
//! process and not of a peer. A sender hands quinn each piece of a frame when the link would have carried it; a reader
//! is given each piece when the link would have brought it. What travels is unchanged, only later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use windlass_common::plan::LinkRate;

/// Most bytes that pass at a time where there is a rate, so that streams take turns and a wait is short.
pub(crate) const PIECE_BYTES: usize = 16 * 1024;
/// What an idle link may make up for. Timers are up to 1 ms late, or more on a busy machine; without this, what they
/// are late by would be lost at every piece, and a fast link would be slower than its rate.
const BURST: Duration = Duration::from_millis(2);

/// The emulated link of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// What the process sends.
    pub(crate) up: Pacer,
    /// What it receives.
    pub(crate) down: Pacer,
}

impl Link {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn set_rate(&self, rate: Option<LinkRate>) {
        self.up.set_rate(rate);
        self.down.set_rate(rate);
    }
}

/// One direction of a link: a bucket that fills at the rate up to [`BURST`], and from which bytes are taken in advance.
///
/// It is kept as a time, at which the link will have carried all that was taken. Each taker moves it on and waits
/// until its own share is over, so takers are served in the order in which they came.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// 0 is no rate.
    bits_per_s: AtomicU64,
    /// Nanoseconds since `origin`.
    free_at: AtomicU64,
    origin: Instant,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { bits_per_s: AtomicU64::new(0), free_at: AtomicU64::new(0), origin: Instant::now() }
    }
}

impl Pacer {
    fn set_rate(&self, rate: Option<LinkRate>) {
        // A rate of 0 is outside the range of link rates; it must not mean none here.
        let bits_per_s = rate.map_or(0, |LinkRate(bits_per_s)| bits_per_s.max(1));
        self.bits_per_s.store(bits_per_s, Ordering::Relaxed);
    }

    pub(crate) fn has_rate(&self) -> bool {
        self.bits_per_s.load(Ordering::Relaxed) != 0
    }

    /// How many of `bytes` may pass at a time: all, where there is no rate.
    pub(crate) fn piece(&self, bytes: usize) -> usize {
        if self.has_rate() { bytes.min(PIECE_BYTES) } else { bytes }
    }

    /// Takes so many bytes, and says until when the taker must wait; `None` is not at all. A wait that is given up
    /// leaves the bytes taken, so that the next taker waits for them.
    pub(crate) fn take(&self, bytes: usize) -> Option<Instant> {
        let bits_per_s = self.bits_per_s.load(Ordering::Relaxed);
        if bits_per_s == 0 {
            return None;
        }
        let now = nanoseconds(self.origin.elapsed());
        let carried = self.carry(now, bytes, bits_per_s);
        (carried > now).then(|| self.origin + Duration::from_nanos(carried))
    }

    /// Moves the end of what the link carries on by `bytes`, and returns it.
    fn carry(&self, now: u64, bytes: usize, bits_per_s: u64) -> u64 {
        let takes = u128::from(bytes as u64) * 8 * 1_000_000_000 / u128::from(bits_per_s);
        let takes = u64::try_from(takes).unwrap_or(u64::MAX);
        let since = now.saturating_sub(nanoseconds(BURST));
        let after = |free_at: u64| free_at.max(since).saturating_add(takes);
        // Nothing else is read through this number, so its order relative to other memory does not matter.
        let before = self.free_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(after(at)));
        before.map_or(now, after)
    }
}

/// For 584 years.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const RATE: u64 = 100_000_000;

    #[test]
    fn without_a_rate_nothing_waits_and_nothing_is_cut() {
        let pacer = Pacer::default();
        assert!(!pacer.has_rate());
        assert_eq!((pacer.take(1 << 30), pacer.piece(1 << 30)), (None, 1 << 30));
        pacer.set_rate(Some(LinkRate(RATE)));
        assert_eq!((pacer.piece(1 << 30), pacer.piece(10)), (PIECE_BYTES, 10));
        assert!(pacer.take(1 << 20).is_some());
        pacer.set_rate(None);
        assert_eq!(pacer.take(1 << 30), None);
    }

    #[test]
    fn bytes_take_their_time_in_any_pieces() {
        for piece in [1, 1_000, 12_500, 1_250_000] {
            let pacer = Pacer::default();
            let last = (0..1_250_000 / piece).map(|_| pacer.carry(0, piece, RATE)).last();
            assert_eq!(last, Some(100 * MS), "in pieces of {piece}");
        }
    }

    #[test]
    fn takers_wait_in_the_order_in_which_they_came() {
        let pacer = Pacer::default();
        let taken: Vec<u64> = (0..4).map(|_| pacer.carry(0, 12_500, RATE)).collect();
        assert_eq!(taken, [MS, 2 * MS, 3 * MS, 4 * MS]);
    }

    #[test]
    fn an_idle_link_makes_up_for_two_milliseconds_and_no_more() {
        let pacer = Pacer::default();
        assert_eq!(pacer.carry(50 * MS, 12_500, RATE), 49 * MS); // no wait
        assert_eq!(pacer.carry(50 * MS, 12_500, RATE), 50 * MS);
        assert_eq!(pacer.carry(50 * MS, 12_500, RATE), 51 * MS); // the burst is used up
        // A taker that woke 1.5 ms late finds that the link has gone on meanwhile.
        assert_eq!(pacer.carry(52 * MS + MS / 2, 12_500, RATE), 52 * MS);
        assert_eq!(pacer.carry(1_000 * MS, 25_000, RATE), 1_000 * MS);
    }

    #[test]
    fn absurd_numbers_do_not_wrap() {
        let pacer = Pacer::default();
        pacer.set_rate(Some(LinkRate(0)));
        assert!(pacer.has_rate());
        assert_eq!(pacer.carry(0, usize::MAX, 1), u64::MAX);
        assert_eq!(pacer.carry(0, usize::MAX, 1), u64::MAX);
    }
}
