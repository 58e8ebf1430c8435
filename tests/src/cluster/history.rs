//! Writes down what one shard did, in order, and refuses what no history may contain.

use std::collections::BTreeMap;

use windlass_common::ids::{Sequence, Step, Version, WorkerId};
use windlass_common::wire::{Outcome, Record};

/// Something that a shard was asked or did.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// These take part from now on.
    Members(Vec<WorkerId>),
    /// A pull of a worker that lives has arrived.
    Pull {
        /// Whose.
        worker: WorkerId,
        /// The step that will use the values.
        step: Step,
    },
    /// A push has been settled.
    Record(Record),
    /// A pull of a worker that lives has been answered with values.
    Values {
        /// Whose.
        worker: WorkerId,
        /// The step they are for.
        step: Step,
        /// Their version.
        version: Version,
    },
    /// A worker's pull has been answered otherwise, or it has died: nobody waits for it any more.
    Gone {
        /// Whose.
        worker: WorkerId,
    },
    /// One event has been dealt with in full.
    Handled,
}

/// What one shard did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    entries: Vec<Entry>,
    outcomes: BTreeMap<(WorkerId, Sequence), Outcome>,
}

impl History {
    pub(super) fn push(&mut self, entry: Entry) {
        if let Entry::Record(record) = &entry {
            let push = (record.worker, record.sequence);
            let before = self.outcomes.insert(push, record.outcome);
            assert_eq!(
                before, None,
                "{} sequence {} is settled twice: {record:?}",
                record.worker, record.sequence
            );
        }
        self.entries.push(entry);
    }

    /// An acknowledgement goes out: the push must have been written down before, with that outcome.
    pub(super) fn acknowledge(
        &self,
        worker: WorkerId,
        sequence: Sequence,
        outcome: Outcome,
        newest: Version,
    ) {
        let recorded = self.outcomes.get(&(worker, sequence));
        assert_eq!(recorded, Some(&outcome), "{worker} is told that its push {sequence} is {outcome:?}");
        if let Outcome::Applied { version, .. } = outcome {
            assert!(version <= newest, "{worker} is told of version {version} before it exists");
        }
    }

    /// All of it.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The pushes that were settled, in order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            _ => None,
        })
    }

    /// What became of a push.
    pub fn outcome(&self, worker: WorkerId, sequence: Sequence) -> Option<Outcome> {
        self.outcomes.get(&(worker, sequence)).copied()
    }
}
