//! Carries out what the coordinator has decided, on one shard.

use std::collections::BTreeMap;

use windlass_common::ids::{ClientId, Incarnation, Version, WorkerId};
use windlass_common::wire::{Member, Order, Outcome, Record, Report, Resume, Task};

use super::{Effect, Shard};
use crate::Time;
use crate::rules::{Apply, Rejoin};
use crate::store::Pushed;

impl<B: Pushed> Shard<B> {
    pub(super) fn order(&mut self, now: Time, order: Order, out: &mut Vec<Effect>) {
        let is_of_checkpoints = matches!(order, Order::Pause { .. } | Order::Cut { .. } | Order::GoOn { .. });
        if !is_of_checkpoints && order != Order::Finalize {
            self.feed_order(now, &order, out);
        }
        match order {
            Order::Membership { term, members, departed } => {
                for Member { worker, incarnation } in self.ledger.set_members(term, &members, &departed) {
                    // What the earlier life of this worker waited for, nobody waits for any more.
                    self.parked.remove(&worker);
                    if self.rejoin == Rejoin::Redo {
                        self.void_held(now, worker, out);
                    }
                    let next = self.ledger.next(worker).unwrap_or_default();
                    if let Some(left) = &mut self.left {
                        left.begins(worker, next.sequence);
                    }
                    let slowest = self.ledger.slowest_beside(worker);
                    out.push(Effect::Report(Report::Admitted { worker, incarnation, next, slowest }));
                }
                // One that comes back may push once more what it had computed before.
                if let Apply::Immediate { .. } = self.apply {
                    let ledger = &self.ledger;
                    self.bases.retain(|worker| ledger.is_member(worker));
                }
                self.look_who_owes(now, out);
                self.release_parked(now, out);
            }
            Order::Settle { worker, incarnation, next, void_missing } => {
                let void = match void_missing {
                    true => self.void_up_to(now, worker, incarnation, next, out),
                    false => 0,
                };
                if let Some(left) = &mut self.left {
                    left.begins(worker, next.sequence);
                }
                out.push(Effect::Report(Report::Settled { worker, incarnation, void }));
            }
            Order::Start => {
                self.started = true;
                self.release_parked(now, out);
            }
            Order::Open { step, tasks } => {
                if step == self.open {
                    let before = std::mem::replace(&mut self.tasks, tasks);
                    self.tasks.sort_unstable();
                    if !before.is_empty() {
                        let is_new = |t: &&Task| before.binary_search(t).is_err();
                        self.anew.extend(self.tasks.iter().filter(is_new));
                    }
                    self.release_parked(now, out);
                }
            }
            Order::Close { step, cohort } => {
                // Where the end is a number of examples the coordinator learns of it later, and may by then have closed
                // a step with pushes that are late here.
                if step == self.open && !self.is_finished() {
                    self.close(now, &cohort, out);
                }
            }
            Order::Conclude => {
                self.concluded = true;
                self.after_apply(now, out);
            }
            Order::Finalize => {
                let snapshot = self.snapshot().without_reference();
                out.push(Effect::Final { snapshot, partial: self.partial });
            }
            Order::Logged { records } => self.logged(records),
            Order::Pause { checkpoint } => self.pause(checkpoint, out),
            Order::Cut { checkpoint, before } => self.cut(now, checkpoint, &before, out),
            Order::GoOn { checkpoint } => self.go_on(now, checkpoint, out),
        }
        self.take_cut_if_due(now, out);
    }

    fn void_up_to(
        &mut self,
        now: Time,
        worker: WorkerId,
        incarnation: Incarnation,
        next: Resume,
        out: &mut Vec<Effect>,
    ) -> u64 {
        let missing = self.ledger.void_up_to(worker, next);
        // Where the coordinator closes steps for all shards, what one of them lacks counts on none.
        if self.rejoin == Rejoin::AfterLast {
            self.partial += missing.len() as u64;
        }
        for Resume { sequence, step } in &missing {
            self.made.pushes += 1;
            let record = Record {
                number: self.made.pushes,
                at_us: now.0,
                term: self.ledger.term(),
                worker,
                incarnation,
                sequence: *sequence,
                step: *step,
                base: Version(0),
                client: ClientId(worker.0),
                examples: 0,
                work: 0,
                examples_applied: self.made.examples,
                loss: 0.0,
                outcome: Outcome::Void,
            };
            self.record(record, out);
        }
        self.release_parked(now, out);
        missing.len() as u64
    }

    /// What the earlier life of a worker has pushed for the open step never counts: the worker computes it again.
    fn void_held(&mut self, now: Time, worker: WorkerId, out: &mut Vec<Effect>) {
        let held = std::mem::take(&mut self.held);
        let (void, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(entry, _)| entry.worker == worker);
        self.held = rest;
        for push in void.values() {
            if let Some(left) = &mut self.left {
                left.table.undone(push.push.client, worker, push.push.sequence);
            }
            let clock = self.ledger.clock(worker).unwrap_or_default();
            self.settle(now, push, worker, Outcome::Void, clock, out);
            if let Apply::Hold { .. } = self.apply {
                self.ledger.go_back(worker, push.push.step);
            }
        }
    }
}
