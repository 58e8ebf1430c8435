//! Drives a runtime from the thread that needs it, and from another while that one is long away.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// A thread that is away for longer has the companion look after the network. Peers are answered late by so much at most,
/// which is less than the 25 ms by which QUIC lets an acknowledgement be late (RFC 9000, section 18.2).
const AWAY_MAX: Duration = Duration::from_millis(5);

/// A runtime of one thread at a time.
pub(super) struct Driver {
    runtime: Arc<Runtime>,
    turns: Arc<Turns>,
    companion: Option<JoinHandle<()>>,
    /// When the owner was last done with the network.
    left_at: std::cell::Cell<Option<Instant>>,
}

/// Whose turn it is to drive the runtime.
#[derive(Default)]
struct Turns {
    /// Odd while the owner drives the runtime, or waits to.
    count: AtomicU64,
    /// The owner is expected to be long away.
    is_long: AtomicBool,
    /// The owner is back, or gone for good.
    back: Notify,
    is_over: AtomicBool,
}

impl Turns {
    fn is_owners(&self, since: u64) -> bool {
        self.is_over.load(Ordering::SeqCst) || self.count.load(Ordering::SeqCst) != since
    }
}

impl Driver {
    /// A runtime and its companion.
    ///
    /// # Errors
    /// If the system gives no thread, or nothing to wait for sockets with.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Arc::new(Builder::new_current_thread().enable_all().build()?);
        let turns = Arc::<Turns>::default();
        let (of_companion, its_turns) = (Arc::clone(&runtime), Arc::clone(&turns));
        let companion = thread::Builder::new().name("windlass-io".into());
        let companion = companion.spawn(move || accompany(&of_companion, &its_turns))?;
        Ok(Self { runtime, turns, companion: Some(companion), left_at: std::cell::Cell::new(None) })
    }

    /// Runs a future to its end on this thread, and with it all that the runtime has to do meanwhile.
    pub(super) fn drive<T>(&self, future: impl Future<Output = T>) -> T {
        let was_long = self.left_at.take().is_some_and(|left| left.elapsed() > AWAY_MAX);
        self.turns.count.fetch_add(1, Ordering::SeqCst);
        self.turns.back.notify_waiters();
        let done = self.runtime.block_on(future);
        self.turns.is_long.store(was_long, Ordering::SeqCst);
        self.turns.count.fetch_add(1, Ordering::SeqCst);
        if let Some(companion) = self.companion.as_ref().filter(|_| was_long) {
            companion.thread().unpark();
        }
        self.left_at.set(Some(Instant::now()));
        done
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.turns.is_over.store(true, Ordering::SeqCst);
        self.turns.back.notify_waiters();
        if let Some(companion) = self.companion.take() {
            companion.thread().unpark();
            // It has nothing left to do but to end.
            let _ = companion.join();
        }
    }
}

/// Drives the runtime whenever its owner has been away for [`AWAY_MAX`], or at once where that is to be expected.
fn accompany(runtime: &Runtime, turns: &Turns) {
    let mut seen = 0;
    while !turns.is_over.load(Ordering::SeqCst) {
        let now = turns.count.load(Ordering::SeqCst);
        let is_away = now % 2 == 0 && now > 0;
        if is_away && (now == seen || turns.is_long.load(Ordering::SeqCst)) {
            runtime.block_on(until_back(turns, now));
        }
        seen = now;
        thread::park_timeout(AWAY_MAX);
    }
}

async fn until_back(turns: &Turns, away_since: u64) {
    loop {
        let mut back = std::pin::pin!(turns.back.notified());
        // From here on no word is missed; one that came before shows in the count.
        back.as_mut().enable();
        if turns.is_owners(away_since) {
            return;
        }
        back.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn tasks_go_on_while_the_owner_is_away_and_end_with_it() {
        let driver = Driver::new().unwrap();
        let ticks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&ticks);
        driver.drive(async move {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        });
        // Nobody but the companion drives the runtime here.
        while ticks.load(Ordering::SeqCst) < 20 {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(driver.drive(async { 7 }), 7);
        drop(driver);
        let last = ticks.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(10));
        assert_eq!(ticks.load(Ordering::SeqCst), last);
    }

    #[test]
    fn the_owner_gets_the_runtime_back_however_often_it_goes_and_comes() {
        let driver = Driver::new().unwrap();
        for round in 0..200_u64 {
            let slept = driver.drive(async move {
                tokio::time::sleep(Duration::from_micros(100)).await;
                round
            });
            assert_eq!(slept, round);
            // Short and long absences, on both sides of the limit.
            thread::sleep(Duration::from_micros(round % 8 * 1000));
        }
    }
}
