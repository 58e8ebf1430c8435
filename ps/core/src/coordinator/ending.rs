//! Notices that a training is over or cannot go on, and collects its result.

use windlass_common::ids::{ServerId, ShardId, WorkerId};
use windlass_common::plan::Membership;
use windlass_common::wire::{Order, Phase, WorkerState};

use super::members::Worker;
use super::{Coordinator, Effect, FINISHED_WITHIN_S};
use crate::Time;

impl Coordinator {
    /// Whether a shard of this server has not delivered its part of the result.
    pub(super) fn lacks_result_of(&self, server: ServerId) -> bool {
        let of_it = |shard: &ShardId| self.primary(*shard) == server;
        (0..self.plan.cluster.shards()).map(ShardId).filter(of_it).any(|s| !self.results.contains_key(&s))
    }

    /// Once a worker was told that the training has all its examples, nobody needs to come back.
    pub(super) fn finish_if_all_gone(&mut self, out: &mut Vec<Effect>) {
        if self.phase == Phase::Training
            && self.first_finished().is_some()
            && self.workers.values().all(|w| !w.is_active())
        {
            self.phase = Phase::Finishing;
            self.settle_the_lost(out);
            self.finalize_if_settled(out);
        }
    }

    /// The first by rank that has left after the training had all its examples.
    fn first_finished(&self) -> Option<WorkerId> {
        let has_finished = |w: &Worker| w.state == WorkerState::Left && w.report.finished;
        self.workers.iter().find(|(_, w)| has_finished(w)).map(|(&id, _)| id)
    }

    pub(super) fn finalize_if_settled(&self, out: &mut Vec<Effect>) {
        if self.workers.values().all(|w| w.pending.is_none()) {
            self.to_all_shards(&Order::Finalize, out);
        }
    }

    /// Gives up who is away for too long, while the training goes on and when it is over.
    pub(super) fn watch(&mut self, now: Time, out: &mut Vec<Effect>) {
        let deadline = self.plan.cluster.rejoin_deadline_s;
        match self.plan.cluster.membership {
            Membership::Fixed => self.give_up_the_lost(now, deadline, out),
            Membership::Elastic { .. } => self.fail_if_deserted(now, deadline, out),
        }
        let (Some(left), Phase::Training) = (self.first_finished(), self.phase) else { return };
        let since = *self.ending.get_or_insert(now);
        let is_finished = self.has_all();
        if !is_finished && now >= since.plus_seconds(FINISHED_WITHIN_S) {
            self.fail(format!("{left} left before the training was over"), out);
        } else if now >= since.plus_seconds(deadline.max(FINISHED_WITHIN_S)) {
            // It is connected and does not go; the result need not wait for it.
            for (id, worker) in self.workers.iter_mut().filter(|(_, w)| w.is_active()) {
                worker.state = WorkerState::Dead;
                worker.session = None;
                worker.lost_at = now;
                worker.why_lost = "it did not leave at the end".into();
                let what = "dead: it did not leave at the end".into();
                out.push(Effect::Membership { worker: *id, what });
            }
            self.finish_if_all_gone(out);
        }
    }

    /// Whether the training has all its rounds or examples.
    fn has_all(&self) -> bool {
        match &self.rounds {
            Some(rounds) => rounds.are_over(),
            None => self.progress.examples_most() >= self.plan.examples_target(),
        }
    }

    fn give_up_the_lost(&mut self, now: Time, deadline: u64, out: &mut Vec<Effect>) {
        let is_lost = |w: &Worker| matches!(w.state, WorkerState::Silent | WorkerState::Dead);
        let late = |w: &Worker| is_lost(w) && now >= w.lost_at.plus_seconds(deadline);
        let anyone = self.workers.values().any(Worker::is_active);
        if let Some(rounds) = self.rounds.as_mut().filter(|_| anyone && self.plan.goes_on_without_workers()) {
            for (&id, _) in self.workers.iter().filter(|(_, w)| late(w)) {
                rounds.give_up(id);
            }
        } else if let Some((id, worker)) = self.workers.iter().find(|(_, w)| late(w)) {
            let why = &worker.why_lost;
            self.fail(format!("{id} was lost ({why}) and did not come back within {deadline} s"), out);
        }
    }

    /// A training that anybody may join waits for somebody, but not for ever.
    fn fail_if_deserted(&mut self, now: Time, deadline: u64, out: &mut Vec<Effect>) {
        if self.workers.values().any(|w| w.member) || self.first_finished().is_some() {
            return;
        }
        if self.has_all() {
            // Who was given up at the end could not say so.
            self.phase = Phase::Finishing;
            self.finalize_if_settled(out);
            return;
        }
        let last = self.workers.iter().filter(|(_, w)| !w.why_lost.is_empty()).max_by_key(|(_, w)| w.lost_at);
        let since = self.workers.values().map(|w| w.lost_at).max().unwrap_or(now);
        if now >= since.plus_seconds(deadline) {
            let last =
                last.map_or_else(String::new, |(id, w)| format!(" ({id} was the last: {})", w.why_lost));
            self.fail(format!("no worker is left{last}, and none joined within {deadline} s"), out);
        }
    }
}
