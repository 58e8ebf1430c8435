//! Follows the requests that a shard has set aside while a checkpoint is taken.

use std::collections::BTreeMap;

use windlass_common::ids::{Sequence, WorkerId};
use windlass_common::wire::Order;
use windlass_ps_core::SessionId;

use crate::cluster::{Entry, Told};

/// Requests of which nothing has been said since they came while the shard paused.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    is_paused: bool,
    requests: BTreeMap<WorkerId, (SessionId, Sequence)>,
}

impl Aside {
    /// Takes in what happens next.
    pub(crate) fn follow(&mut self, entry: &Entry) {
        match entry {
            Entry::Ordered(Order::Pause { .. }) => self.is_paused = true,
            Entry::Ordered(Order::GoOn { .. }) | Entry::Taken(_) => self.is_paused = false,
            Entry::Restored { .. } => *self = Self::default(),
            Entry::Asked(asked) if self.is_paused => {
                if let Some((sequence, ..)) = asked.push {
                    self.requests.entry(asked.worker).or_insert((asked.session, sequence));
                }
            }
            Entry::Record(record) => {
                self.requests
                    .retain(|worker, (_, sequence)| (*worker, *sequence) != (record.worker, record.sequence));
            }
            Entry::Told { session, what } => {
                let is_answer = |sequence: Sequence| match what {
                    Told::Held(told) | Told::Settled(told, _) => *told == sequence,
                    Told::Rejected => true,
                    _ => false,
                };
                self.requests.retain(|_, (its, sequence)| its != session || !is_answer(*sequence));
            }
            Entry::Ended(session) => self.requests.retain(|_, (its, _)| its != session),
            _ => {}
        }
    }

    /// Whether the request of this worker that came over this session waits.
    pub(crate) fn has(&self, worker: WorkerId, session: SessionId) -> bool {
        self.requests.get(&worker).is_some_and(|(its, _)| *its == session)
    }
}
