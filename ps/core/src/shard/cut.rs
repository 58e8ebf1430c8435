//! Takes a shard's part of a checkpoint: of each worker the same pushes as on every other shard.
//!
//! Where each shard applies by itself, the coordinator first lets all of them pause and say how far they are. A push that
//! one of them has settled belongs to the checkpoint and is on its way to the others, which settle it too; later ones
//! are set aside until then, at most one per worker. Where the coordinator closes steps, its order to take the checkpoint
//! comes between the same two steps on every shard, and nothing has to pause (Chandy and Lamport 1985; the streams of
//! orders are the channels).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windlass_common::ids::{Examples, Lineage, RunId, Sequence, ShardId, Step, Version, WorkerId};
use windlass_common::plan::{Plan, PlanError};
use windlass_common::wire::Report;

use super::keep::LeftOut;
use super::{Effect, Request, Shard};
use crate::Time;
use crate::ledger::{Ledger, Row};
use crate::residuals::Residuals;
use crate::rules::{self, Apply};
use crate::store::{Made, Pushed, SliceState};

/// A shard's part of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// What it knows beside its values.
    pub state: ShardState,
    /// Its slices, in the order of its shape.
    pub slices: Vec<SliceState>,
    /// What codecs have left out of pushes.
    pub residuals: Residuals,
}

/// What a shard knows beside its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// How often it had applied something.
    pub version: Version,
    /// The first step that had not been applied.
    pub open: Step,
    /// Examples applied.
    pub examples: Examples,
    /// Pushes settled.
    pub pushes: u64,
    /// When the values were made, in microseconds since 1970.
    pub made_us: u64,
    /// Pushes that count on other shards and not on this one.
    pub partial: u64,
    /// Each worker's clock, and what became of its last pushes.
    pub workers: Vec<Row>,
}

/// How far a shard is with a checkpoint.
#[derive(Debug, Default)]
pub(super) enum Cut {
    #[default]
    None,
    /// What belongs to it is not known yet.
    Paused { checkpoint: u64 },
    /// It is taken when all pushes before these have been settled.
    Until { checkpoint: u64, before: BTreeMap<WorkerId, Sequence> },
}

impl<B: Pushed> Shard<B> {
    /// A shard as it was at a checkpoint, of this run or of one with other numbers of shards and workers.
    ///
    /// # Errors
    /// If the plan cannot be placed; a checked plan can.
    ///
    /// # Panics
    /// If the slices are not those of the shard.
    pub fn restored(
        plan: &Plan,
        run: RunId,
        lineage: Lineage,
        id: ShardId,
        image: Image,
    ) -> Result<Self, PlanError> {
        let Image { state, slices, residuals } = image;
        let mut shard = Self::new(plan, run, lineage, id)?;
        shard.begin_with(plan, state.version, slices)?;
        shard.ledger = Ledger::restored(rules::outcomes_max(plan), &state.workers);
        shard.left = LeftOut::new(plan, residuals);
        shard.open = state.open;
        shard.made = Made { examples: state.examples, pushes: state.pushes, at: Time(state.made_us) };
        shard.partial = state.partial;
        shard.snapshots.go_on_at(shard.position());
        shard.keep_snapshot_if_due(&mut Vec::new());
        if shard.is_finished() {
            shard.snapshots.end(&mut Vec::new());
        }
        Ok(shard)
    }

    /// What a checkpoint would hold of this shard now.
    pub fn image(&self) -> Image {
        let residuals = self.left.as_ref().map(|left| left.table.image()).unwrap_or_default();
        Image { state: self.state(), slices: self.store.slices(), residuals }
    }

    /// The same, but for the values.
    pub fn state(&self) -> ShardState {
        // What was for the open step alone is made for it again.
        let held = |worker| match self.apply {
            Apply::Buffer { .. } => None,
            _ => self.held.iter().find(|(e, _)| e.worker == worker).map(|(_, h)| h.push.step),
        };
        ShardState {
            version: self.store.version(),
            open: self.open,
            examples: self.made.examples,
            pushes: self.made.pushes,
            made_us: self.made.at.0,
            partial: self.partial,
            workers: self.ledger.rows(held),
        }
    }

    pub(super) fn pause(&mut self, checkpoint: u64, out: &mut Vec<Effect>) {
        self.cut = Cut::Paused { checkpoint };
        let next = self.ledger.unsettled().collect();
        out.push(Effect::Report(Report::Paused { checkpoint, next }));
    }

    pub(super) fn cut(
        &mut self,
        now: Time,
        checkpoint: u64,
        before: &[(WorkerId, Sequence)],
        out: &mut Vec<Effect>,
    ) {
        self.cut = Cut::Until { checkpoint, before: before.iter().copied().collect() };
        self.take_aside(now, out);
        self.take_cut_if_due(now, out);
    }

    pub(super) fn go_on(&mut self, now: Time, of: u64, out: &mut Vec<Effect>) {
        if let Cut::Paused { checkpoint } | Cut::Until { checkpoint, .. } = self.cut
            && checkpoint == of
        {
            self.cut = Cut::None;
            self.take_aside(now, out);
        }
        self.keep_no_more(of);
    }

    /// Whether a push has to wait because it belongs to no checkpoint that is being taken. Any other than the next is
    /// answered at once, since it has no effect.
    pub(super) fn is_aside(&self, worker: WorkerId, sequence: Sequence) -> bool {
        let next = self.ledger.next(worker).unwrap_or_default().sequence;
        match &self.cut {
            _ if sequence != next => false,
            Cut::None => false,
            Cut::Paused { .. } => true,
            Cut::Until { before, .. } => before.get(&worker).is_none_or(|before| sequence >= *before),
        }
    }

    /// Takes the checkpoint if all that belongs to it is settled here.
    pub(super) fn take_cut_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Cut::Until { checkpoint, before } = &self.cut else { return };
        let settled: BTreeMap<WorkerId, Sequence> = self.ledger.unsettled().collect();
        let is_settled = |(w, s): (&WorkerId, &Sequence)| settled.get(w).is_some_and(|next| next >= s);
        if !before.iter().all(is_settled) {
            return;
        }
        let checkpoint = *checkpoint;
        self.cut = Cut::None;
        let image = Box::new(self.image());
        self.keep(now, checkpoint, image, out);
        out.push(Effect::Report(Report::Taken { checkpoint }));
        self.take_aside(now, out);
    }

    /// Takes in what was set aside; what still has to wait is set aside again.
    fn take_aside(&mut self, now: Time, out: &mut Vec<Effect>) {
        for (_, request) in std::mem::take(&mut self.aside) {
            self.request(now, request, out);
        }
    }

    /// Sets a request aside. A worker has one at a time: one of an earlier life has come over a stream that is gone, and
    /// another of the same life is a copy.
    pub(super) fn set_aside(&mut self, request: Request<B>) {
        let waiting = self.aside.get(&request.worker);
        if waiting.is_none_or(|waiting| waiting.incarnation < request.incarnation) {
            self.aside.insert(request.worker, request);
        }
    }
}
