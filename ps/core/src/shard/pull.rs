//! Answers a pull, or parks it and knows whom it waits for.

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::wire::{Pull, Reject, Task, Wait};

use super::{Effect, Parked, Reply, Shard};
use crate::rules::{self, Apply};
use crate::store::{Pushed, Snapshot};
use crate::{SessionId, Time};

impl<B: Pushed> Shard<B> {
    pub(super) fn release_parked(&mut self, now: Time, out: &mut Vec<Effect>) {
        for (worker, parked) in std::mem::take(&mut self.parked) {
            self.answer(now, worker, parked, out);
        }
    }

    pub(super) fn pull(
        &mut self,
        now: Time,
        session: SessionId,
        worker: WorkerId,
        pull: Pull,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        for &slice in &pull.slices {
            self.shape.check_slice(slice, None)?;
        }
        self.answer(now, worker, Parked { session, pull, told: now }, out);
        Ok(())
    }

    /// Answers a pull, or parks it.
    fn answer(&mut self, now: Time, worker: WorkerId, parked: Parked, out: &mut Vec<Effect>) {
        let session = parked.session;
        // Even when this shard is finished: another one may still lack that worker's last push.
        let again = self.values_again(parked.pull.step);
        // One that was restored may be finished before those who join again are all there.
        if self.started && self.is_finished() && again.is_none() {
            out.push(Effect::Reply { session, reply: Reply::Finished { examples: self.made.examples } });
            return;
        }
        if self.must_wait(worker, parked.pull.step) {
            debug_assert!(parked.told <= now);
            self.parked.insert(worker, parked);
            return;
        }
        let Pull { step: asked, have, slices, .. } = parked.pull;
        let (step, snapshot) = again.unwrap_or_else(|| self.values_for(asked));
        if self.apply.keeps_bases() {
            self.bases.send(worker, step, snapshot.clone().as_pulled());
        }
        let clients = self.remaining(worker);
        self.recall(worker, session, &clients, out);
        self.anew.retain(|task| task.worker != worker);
        out.push(Effect::Reply { session, reply: Reply::Values { step, snapshot, have, slices, clients } });
    }

    /// The step and values that answer a pull which need not wait.
    fn values_for(&mut self, asked: Step) -> (Step, Snapshot) {
        match self.apply {
            Apply::Immediate { .. } | Apply::Mix { .. } | Apply::Buffer { .. } => (asked, self.snapshot()),
            // A worker that was left behind goes on with the step that is open.
            Apply::HoldAll | Apply::Hold { .. } | Apply::Round { .. } => (self.open, self.snapshot()),
        }
    }

    /// The clients of a worker that are asked in the open round and whose pushes this shard lacks.
    fn remaining(&self, worker: WorkerId) -> Vec<ClientId> {
        let lacks = |t: &&Task| t.worker == worker && !self.has_pushed_for(t.client, worker);
        self.tasks.iter().filter(lacks).map(|t| t.client).collect()
    }

    /// The values that the step before was computed on, if that is the step asked for and the cohort is fixed: a worker
    /// that was restarted computes its push again.
    fn values_again(&self, asked: Step) -> Option<(Step, Snapshot)> {
        let previous = self.previous.as_ref().filter(|p| p.step == asked)?;
        (self.apply == Apply::HoldAll).then(|| (asked, previous.clone()))
    }

    /// Whether a pull has to wait. To name those it waits for takes much longer where there are many.
    fn must_wait(&self, worker: WorkerId, step: Step) -> bool {
        self.wait(worker, step, || Wait::Close { step: self.open }).is_some()
    }

    /// Those whose pushes for the open step are missing.
    pub(super) fn missing(&self) -> Wait {
        match self.apply {
            Apply::Round { .. } => {
                let lacks = |t: &&Task| !self.has_pushed_for(t.client, t.worker);
                let mut workers: Vec<WorkerId> = self.tasks.iter().filter(lacks).map(|t| t.worker).collect();
                workers.sort_unstable();
                workers.dedup();
                rules::missing(workers.into_iter(), self.open)
            }
            _ => rules::missing(self.ledger.members().filter(|&w| !self.has_pushed(w)), self.open),
        }
    }

    pub(super) fn wait(&self, worker: WorkerId, step: Step, missing: impl FnOnce() -> Wait) -> Option<Wait> {
        if !self.started {
            return Some(Wait::Start);
        }
        if self.apply.held_max().is_some_and(|most| self.held_of(worker) >= most) {
            return Some(Wait::Close { step: self.open });
        }
        // Who asks for the next round is done with this one: of its clients it may have dropped some.
        let has_task = || match step > self.open {
            true => self.anew.iter().any(|t| t.worker == worker),
            false => !self.remaining(worker).is_empty(),
        };
        self.release.wait(step, self.open, &self.ledger, has_task, missing)
    }
}
