//! Says which pushes a shard had to compensate: those computed on the values that it sent their worker last.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Sequence, Version, WorkerId};
use windlass_common::plan::Mode;
use windlass_common::wire::Outcome;

use crate::cluster::{Entry, History, Told};

/// The lambda of a mode that compensates; 0 is none.
pub(super) fn lambda(mode: &Mode) -> Option<f32> {
    match mode {
        Mode::Async { compensation, .. } | Mode::Ssp { compensation, .. } => {
            compensation.filter(|lambda| *lambda > 0.0)
        }
        _ => None,
    }
}

/// The stale pushes of a shard in a mode that compensates.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    /// Those whose values it sent their worker last.
    pub(crate) compensated: BTreeSet<(WorkerId, Sequence)>,
    /// Those whose values it no longer had.
    pub(crate) as_they_came: u64,
}

/// Follows what was sent to whom. What a worker was sent is forgotten when it goes, and all of it by a shard that is made anew.
pub(crate) fn stale(mode: &Mode, history: &History) -> Stale {
    let mut stale = Stale::default();
    if lambda(mode).is_none() {
        return stale;
    }
    let mut sent: BTreeMap<WorkerId, Version> = BTreeMap::new();
    for entry in history.entries() {
        match entry {
            Entry::Restored { .. } => sent.clear(),
            Entry::Members { went, .. } => sent.retain(|worker, _| !went.contains(worker)),
            Entry::Told { session, what: Told::Values { version, .. } } => {
                if let Some(worker) = history.worker_of(*session) {
                    sent.insert(worker, *version);
                }
            }
            Entry::Record(record) => match record.outcome {
                Outcome::Applied { staleness: 1.., .. } if sent.get(&record.worker) == Some(&record.base) => {
                    stale.compensated.insert((record.worker, record.sequence));
                }
                Outcome::Applied { staleness: 1.., .. } => stale.as_they_came += 1,
                _ => {}
            },
            _ => {}
        }
    }
    stale
}
