//! Says which pushes a shard had to compensate: those computed on the values that it sent their worker last, with two in
//! flight on those of the last two steps.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Sequence, Step, Version, WorkerId};
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
    /// Those whose values it still had.
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
    let mut sent: BTreeMap<WorkerId, Vec<(Step, Version)>> = BTreeMap::new();
    let most = mode.in_flight() as usize;
    for entry in history.entries() {
        match entry {
            Entry::Restored { .. } => sent.clear(),
            Entry::Members { went, .. } => sent.retain(|worker, _| !went.contains(worker)),
            Entry::Told { session, what: Told::Values { step, version, .. } } => {
                if let Some(worker) = history.worker_of(*session) {
                    let sent = sent.entry(worker).or_default();
                    match sent.last_mut() {
                        Some(last) if last.0 == *step => last.1 = *version,
                        _ => sent.push((*step, *version)),
                    }
                    sent.drain(..sent.len().saturating_sub(most));
                }
            }
            Entry::Record(record) if matches!(record.outcome, Outcome::Applied { staleness: 1.., .. }) => {
                let sent = sent.get(&record.worker).map(Vec::as_slice).unwrap_or_default();
                if sent.iter().any(|(_, version)| *version == record.base) {
                    stale.compensated.insert((record.worker, record.sequence));
                } else {
                    stale.as_they_came += 1;
                }
            }
            _ => {}
        }
    }
    stale
}
