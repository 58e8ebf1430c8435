//! Drives a runtime from the thread that needs it, and from another while that one is long away.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A thread that is away for longer has the companion look after the network. Peers are answered late by so much at most,
/// which is less than the 25 ms by which QUIC lets an acknowledgement be late (RFC 9000, section 18.2).
const AWAY_MAX: Duration = Duration::from_millis(5);

/// A runtime of one thread at a time.
#[derive(Debug)]
pub(super) struct Driver {
    runtime: Arc<Runtime>,
    turns: Arc<Turns>,
    companion: Option<thread::JoinHandle<()>>,
    /// When the owner was last done with the network.
    left_at: Mutex<Option<Instant>>,
}

/// Whose turn it is to drive the runtime.
#[derive(Debug, Default)]
struct Turns {
    /// Odd while the owner drives the runtime, or waits to.
    count: AtomicU64,
    /// The owner is expected to be long away.
    is_long: AtomicBool,
    /// Something goes on that the owner does not wait for.
    is_behind: AtomicBool,
    /// The owner is back, or gone for good.
    back: Notify,
    is_over: AtomicBool,
}

impl Turns {
    fn is_called(&self) -> bool {
        self.is_long.load(Ordering::SeqCst) || self.is_behind.load(Ordering::SeqCst)
    }

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
        Ok(Self { runtime, turns, companion: Some(companion), left_at: Mutex::default() })
    }

    /// Runs a future to its end on this thread, and with it all that the runtime has to do meanwhile.
    pub(super) fn drive<T>(&self, future: impl Future<Output = T>) -> T {
        let was_long = self.left_at.lock().is_some_and(|left| left.elapsed() > AWAY_MAX);
        self.turns.count.fetch_add(1, Ordering::SeqCst);
        self.turns.back.notify_waiters();
        let done = self.runtime.block_on(future);
        self.turns.is_long.store(was_long, Ordering::SeqCst);
        self.turns.count.fetch_add(1, Ordering::SeqCst);
        if was_long || self.turns.is_behind.load(Ordering::SeqCst) {
            self.call();
        }
        *self.left_at.lock() = Some(Instant::now());
        done
    }

    /// Has the companion run a future at once, until somebody drives that to its end.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let task = self.runtime.spawn(future);
        self.is_behind(true);
        self.call();
        task
    }

    /// Whether something goes on that the owner does not wait for.
    pub(super) fn is_behind(&self, is_so: bool) {
        self.turns.is_behind.store(is_so, Ordering::SeqCst);
    }

    fn call(&self) {
        if let Some(companion) = &self.companion {
            companion.thread().unpark();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.turns.is_over.store(true, Ordering::SeqCst);
        self.turns.back.notify_waiters();
        self.call();
        if let Some(companion) = self.companion.take() {
            // It has nothing left to do but to end.
            let _ = companion.join();
        }
    }
}

/// Drives the runtime whenever its owner has been away for [`AWAY_MAX`], or at once where that is to be expected.
fn accompany(runtime: &Runtime, turns: &Turns) {
    let mut seen = u64::MAX;
    while !turns.is_over.load(Ordering::SeqCst) {
        let now = turns.count.load(Ordering::SeqCst);
        let is_away = now.is_multiple_of(2);
        if is_away && (now == seen || turns.is_called()) {
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
    fn what_goes_on_behind_the_owner_needs_nobody_else() {
        let driver = Driver::new().unwrap();
        for round in 0..100_u64 {
            let (done, is_done) = std::sync::mpsc::channel();
            let task = driver.spawn(async move {
                tokio::time::sleep(Duration::from_micros(round % 7 * 100)).await;
                done.send(round).unwrap();
                round
            });
            if round % 2 == 0 {
                assert_eq!(is_done.recv().unwrap(), round, "without the owner's help");
            }
            assert_eq!(driver.drive(task).unwrap(), round);
            driver.is_behind(false);
        }
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
