//! Adds up the bytes exchanged with workers, over connections that are open and those that have ended, and how long shards
//! have worked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use windlass_common::wire::Meter;
use windlass_transport::{Connection, Role};

/// What has been measured since the process began.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    bytes: Mutex<Inner>,
    /// Of all shards here together, in nanoseconds.
    shards_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    ended: Meter,
    open: Vec<Connection>,
}

impl Meters {
    /// Counts this connection too, if it is a worker's.
    pub(crate) fn watch(&self, connection: &Connection) {
        if matches!(connection.peer(), Role::Worker(_)) {
            self.bytes.lock().open.push(connection.clone());
        }
    }

    /// The sum so far.
    pub(crate) fn total(&self) -> Meter {
        let mut inner = self.bytes.lock();
        let mut sum = inner.ended;
        let mut open = std::mem::take(&mut inner.open);
        open.retain(|connection| {
            // Asked before the count is read, so that what is counted as ended is the last word.
            let ended = connection.is_closed();
            sum = plus(sum, connection);
            if ended {
                inner.ended = plus(inner.ended, connection);
            }
            !ended
        });
        inner.open = open;
        Meter { shards_us: self.shards_ns.load(Ordering::Relaxed) / 1000, ..sum }
    }

    /// A shard has worked for so long.
    pub(crate) fn worked(&self, time: Duration) {
        self.shards_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

fn plus(sum: Meter, connection: &Connection) -> Meter {
    let stats = connection.stats();
    Meter {
        payload_up: sum.payload_up + stats.payload_received,
        payload_down: sum.payload_down + stats.payload_sent,
        wire_up: sum.wire_up + stats.wire_received,
        wire_down: sum.wire_down + stats.wire_sent,
        shards_us: 0,
    }
}
