//! Makes a step of the pushes that are held for it, and writes down what became of each.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{Step, WorkerId};
use windlass_common::plan::{Stale, Weights};
use windlass_common::reduce::Scaled;
use windlass_common::wire::{Entry, Outcome, Record};

use super::{Effect, Held, Reply, Shard};
use crate::Time;
use crate::rules::{self, Apply};
use crate::store::{Combined, Pushed};

impl<B: Pushed> Shard<B> {
    /// Applies the open step with the pushes of this cohort. Of the others, those that were for this step alone are late.
    pub(super) fn close(&mut self, now: Time, cohort: &[Entry], out: &mut Vec<Effect>) {
        let held = std::mem::take(&mut self.held);
        let chosen: BTreeSet<&Entry> = cohort.iter().collect();
        let (members, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(entry, _)| chosen.contains(entry));
        assert_eq!(members.len(), cohort.len(), "a step is closed when each of its cohort has pushed");
        let mean = match self.is_held_for_all() {
            true => self.feed_step(now, &members, out),
            false => None,
        };
        self.note_closed(cohort);
        self.close_with(now, members, rest, mean.as_deref().map(Vec::as_slice), out);
    }

    /// Makes a step of these pushes, or of what is known to be their mean; those that are left over are for another, or late.
    pub(super) fn close_with(
        &mut self,
        now: Time,
        members: BTreeMap<Entry, Held<B>>,
        rest: BTreeMap<Entry, Held<B>>,
        mean: Option<&[f32]>,
        out: &mut Vec<Effect>,
    ) {
        if self.is_held_for_all() {
            self.previous = Some(self.snapshot().as_pulled());
        }
        match mean {
            Some(mean) => self.apply_mean(mean),
            None => self.combine(&members),
        }
        self.made.examples.0 += members.values().map(|h| h.push.work).sum::<u64>();
        self.made.at = now;
        self.open = self.open.next();
        self.tasks.clear();
        self.anew.clear();
        for (entry, push) in &members {
            let clock = self.clock_after(push);
            self.settle_applied(now, push, entry.worker, clock, out);
        }
        if matches!(self.apply, Apply::Buffer { stale: Stale::Kept, .. }) && !self.is_finished() {
            self.held = rest;
        } else {
            self.settle_late(now, &rest, out);
        }
        self.after_apply(now, out);
    }

    /// The clock of a worker whose push has been closed with.
    fn clock_after(&self, held: &Held<B>) -> Step {
        match self.apply {
            Apply::Buffer { .. } => held.push.step.next(),
            _ => self.open,
        }
    }

    fn settle_late(&mut self, now: Time, held: &BTreeMap<Entry, Held<B>>, out: &mut Vec<Effect>) {
        for (entry, push) in held {
            let step = self.clock_after(push);
            self.settle(now, push, entry.worker, Outcome::Late { step }, step, out);
        }
    }

    /// Makes one optimizer step with these pushes; with none the values stay.
    fn combine(&mut self, members: &BTreeMap<Entry, Held<B>>) {
        if members.is_empty() {
            return;
        }
        let (rate, version) = (self.rate(), self.store.version());
        match self.apply {
            Apply::Buffer { size, scaling, .. } => {
                let scale = |h: &Held<B>| rules::scaled_rate(scaling, 1.0, version.0 - h.push.base.0);
                let pushes: Vec<Scaled<'_>> =
                    members.values().map(|h| Scaled { scale: scale(h), values: h.values() }).collect();
                self.store.apply(Combined::Sum(&pushes, size as f32), rate);
            }
            Apply::Round { weights } => {
                let pushes: Vec<_> = members.values().map(|h| h.contribution(weights)).collect();
                self.store.apply(Combined::Mean(&pushes), rate);
            }
            Apply::HoldAll | Apply::Hold { .. } | Apply::Immediate { .. } | Apply::Mix { .. } => {
                let pushes: Vec<_> = members.values().map(|h| h.contribution(Weights::Examples)).collect();
                self.store.apply(Combined::Mean(&pushes), rate);
            }
        }
    }

    pub(super) fn settle_applied(
        &mut self,
        now: Time,
        held: &Held<B>,
        worker: WorkerId,
        clock: Step,
        out: &mut Vec<Effect>,
    ) {
        let version = self.store.version();
        let staleness = version.0 - 1 - held.push.base.0;
        self.settle(now, held, worker, Outcome::Applied { version, staleness }, clock, out);
    }

    /// Writes down what became of a push, and only then says so.
    pub(super) fn settle(
        &mut self,
        now: Time,
        held: &Held<B>,
        worker: WorkerId,
        outcome: Outcome,
        clock: Step,
        out: &mut Vec<Effect>,
    ) {
        let push = &held.push;
        self.ledger.settle(worker, push.sequence, outcome, clock);
        self.made.pushes += 1;
        let record = Record {
            number: self.made.pushes,
            at_us: now.0,
            term: held.term,
            worker,
            incarnation: held.incarnation,
            sequence: push.sequence,
            step: push.step,
            base: push.base,
            client: push.client,
            examples: push.examples,
            work: push.work,
            examples_applied: self.made.examples,
            loss: push.loss,
            outcome,
        };
        self.record(record, out);
        let reply = Reply::Settled { sequence: push.sequence, outcome };
        out.push(Effect::Reply { session: held.session, reply });
    }

    pub(super) fn after_apply(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.feed_digest_if_due(out);
        self.keep_snapshot_if_due(out);
        if self.is_finished() {
            self.snapshots.end(out);
        }
        self.release_parked(now, out);
    }

    pub(super) fn keep_snapshot_if_due(&mut self, out: &mut Vec<Effect>) {
        let position = self.position();
        if self.snapshots.is_due(position) {
            let snapshot = self.snapshot().without_reference();
            self.snapshots.keep(position, snapshot, out);
        }
    }
}
