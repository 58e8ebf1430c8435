//! Adds up the bytes exchanged with workers, over connections that are open and those that have ended.

use parking_lot::Mutex;
use windlass_common::wire::Meter;
use windlass_transport::{Connection, Role};

/// Bytes exchanged with workers since the process began.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ended: Meter,
    open: Vec<Connection>,
}

impl Meters {
    /// Counts this connection too, if it is a worker's.
    pub(crate) fn watch(&self, connection: &Connection) {
        if matches!(connection.peer(), Role::Worker(_)) {
            self.0.lock().open.push(connection.clone());
        }
    }

    /// The sum so far.
    pub(crate) fn total(&self) -> Meter {
        let mut inner = self.0.lock();
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
        sum
    }
}

fn plus(sum: Meter, connection: &Connection) -> Meter {
    let stats = connection.stats();
    Meter {
        payload_up: sum.payload_up + stats.payload_received,
        payload_down: sum.payload_down + stats.payload_sent,
        wire_up: sum.wire_up + stats.wire_received,
        wire_down: sum.wire_down + stats.wire_sent,
    }
}
