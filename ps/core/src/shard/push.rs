//! Takes in a push: refuses it, applies it at once, or holds it for its step.

use windlass_common::ids::{ClientId, Sequence, Step, Version, WorkerId};
use windlass_common::plan::{Stale, Weights};
use windlass_common::wire::{Entry, Outcome, Push, Reject, Report, Task};

use super::{Effect, Held, Reply, Shard};
use crate::Time;
use crate::ledger::Admission;
use crate::rules::{self, Apply};
use crate::store::{Combined, Compensated, Pushed, Snapshot};

impl<B: Pushed> Shard<B> {
    pub(super) fn push(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, base, client, .. } = held.push;
        if !self.started {
            // Nobody has values to compute on, and the cohort is not complete.
            return Err(Reject::NotStarted);
        }
        self.shape.check_push(&held.push)?;
        let count = held.gradient.as_ref().map_or(0, Pushed::count) as u64;
        if count != self.shape.values() {
            let found = count * 4;
            return Err(Reject::WrongPayload { expected: held.push.payload_bytes, found });
        }
        if !self.by_client && client.0 != worker.0 {
            return Err(Reject::WrongClient { client, worker });
        }
        let reply = |reply| Effect::Reply { session: held.session, reply };
        match self.ledger.admit(worker, sequence) {
            Admission::Refused(reason) => return Err(reason),
            Admission::Settled(outcome) => {
                out.push(reply(Reply::Settled { sequence, outcome }));
                return Ok(());
            }
            Admission::Held => {
                // The worker lost its stream and asks again: the acknowledgement goes to the new one.
                let entry = Entry { client, worker, sequence };
                if let Some(waiting) = self.held.get_mut(&entry) {
                    waiting.session = held.session;
                }
                out.push(reply(Reply::Held { sequence, step }));
                return Ok(());
            }
            Admission::New => {}
        }
        let newest = self.store.version();
        if base > newest {
            return Err(Reject::UnknownVersion { newest: newest.0, found: base.0 });
        }
        match self.apply {
            Apply::HoldAll | Apply::Hold { .. } | Apply::Round { .. } => self.hold(now, held, worker, out),
            Apply::Buffer { stale, .. } => self.buffer(now, held, worker, stale, out),
            Apply::Immediate { scaling, compensation } => {
                self.check_own_step(worker, step)?;
                let rate = rules::scaled_rate(scaling, self.rate(), newest.0 - base.0);
                let pulled = compensation.and_then(|_| self.pulled(worker, base));
                let alone;
                let combined = match (&pulled, held.source()) {
                    (Some(pulled), _) => {
                        let (gradient, lambda) = (held.values(), compensation.unwrap_or_default());
                        let push = Compensated { gradient, pulled, lambda };
                        self.feed_compensated(now, &held, worker, push, out);
                        Combined::Compensated(push)
                    }
                    (None, source) => {
                        self.feed_push(now, &held, worker, out);
                        match source {
                            Some(source) => Combined::Alone(source),
                            None => {
                                alone = [held.contribution(Weights::Examples)];
                                Combined::Mean(&alone)
                            }
                        }
                    }
                };
                self.take(worker, client, sequence, step.next());
                self.store.apply(combined, rate);
                self.applied_at_once(now, &held, worker, out);
                Ok(())
            }
            Apply::Mix { scaling } => {
                self.check_own_step(worker, step)?;
                let based = self.bases.last(worker).ok_or(Reject::NotStarted)?;
                if based.version != base {
                    return Err(Reject::OtherBase { given: based.version.0, found: base.0 });
                }
                let share = rules::scaled_rate(scaling, self.rate(), newest.0 - base.0);
                self.store.mix(based, held.values(), share);
                self.take(worker, client, sequence, step.next());
                self.applied_at_once(now, &held, worker, out);
                Ok(())
            }
        }
    }

    /// Takes the next push of a worker; the one after it is for the step `next`.
    fn take(&mut self, worker: WorkerId, client: ClientId, sequence: Sequence, next: Step) {
        self.ledger.take(worker, next);
        if let Some(left) = &mut self.left {
            left.taken(client, worker, sequence);
        }
    }

    /// The values of this version, if they are kept for the worker and something has been applied since.
    fn pulled(&self, worker: WorkerId, base: Version) -> Option<Snapshot> {
        let sent = self.bases.find(worker, base)?;
        (base < self.store.version()).then(|| sent.clone())
    }

    fn check_own_step(&self, worker: WorkerId, step: Step) -> Result<(), Reject> {
        let open = self.ledger.next(worker).unwrap_or_default().step;
        if step != open {
            return Err(Reject::StepNotOpen { open, found: step });
        }
        Ok(())
    }

    fn applied_at_once(&mut self, now: Time, held: &Held<B>, worker: WorkerId, out: &mut Vec<Effect>) {
        self.made.examples.0 += held.push.work;
        self.made.at = now;
        self.settle_applied(now, held, worker, held.push.step.next(), out);
        self.after_apply(now, out);
    }

    /// Whether pushes are decoded while they are applied, and should come as they were written.
    pub fn decodes(&self) -> bool {
        self.apply.decodes(self.shape.codecs.push)
    }

    /// Whether a worker goes on when it has the receipts of a push. In sync it waits for the outcome, and takes no notice of them.
    pub fn receipts_matter(&self) -> bool {
        !matches!(self.apply, Apply::HoldAll | Apply::Hold { .. })
    }

    fn hold(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, client, .. } = held.push;
        let open = self.open;
        if step > open {
            return Err(Reject::StepNotOpen { open, found: step });
        }
        if self.is_finished() && step == open {
            return Err(Reject::Ended);
        }
        let is_round = matches!(self.apply, Apply::Round { .. });
        if step == open && is_round && !self.is_asked(client, worker) {
            return Err(Reject::NotInCohort { client, worker, step });
        }
        if step == open && self.has_pushed_for(client, worker) {
            return Err(Reject::AlreadyPushed { worker, step });
        }
        if !self.is_held_for_all() || step < open {
            self.feed_push(now, &held, worker, out);
        }
        // In a round a worker pushes for each of its clients.
        self.take(worker, client, sequence, if is_round { step } else { step.next() });
        if step < open {
            self.settle(now, &held, worker, Outcome::Late { step: open }, open, out);
            return Ok(());
        }
        let entry = Entry { client, worker, sequence };
        let incarnation = held.incarnation;
        out.push(Effect::Reply { session: held.session, reply: Reply::Held { sequence, step } });
        self.held.insert(entry, held);
        // The cohort is known, so that this shard may close the step by itself.
        if self.apply != Apply::HoldAll {
            out.push(Effect::Report(Report::Arrived { entry, incarnation, step }));
        } else if self.ledger.members().all(|w| self.has_pushed(w)) {
            let cohort: Vec<Entry> =
                self.held.keys().copied().filter(|e| self.ledger.is_member(e.worker)).collect();
            self.close(now, &cohort, out);
        }
        Ok(())
    }

    fn buffer(
        &mut self,
        now: Time,
        held: Held<B>,
        worker: WorkerId,
        stale: Stale,
        out: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        let Push { sequence, step, client, base, .. } = held.push;
        self.check_own_step(worker, step)?;
        self.take(worker, client, sequence, step.next());
        let is_late = self.is_finished() || (stale == Stale::Late && base < self.store.version());
        if is_late {
            self.settle(now, &held, worker, Outcome::Late { step: step.next() }, step.next(), out);
            return Ok(());
        }
        let entry = Entry { client, worker, sequence };
        let incarnation = held.incarnation;
        out.push(Effect::Reply { session: held.session, reply: Reply::Held { sequence, step } });
        self.held.insert(entry, held);
        out.push(Effect::Report(Report::Arrived { entry, incarnation, step: self.open }));
        Ok(())
    }

    /// Whether a worker may push for this client in the open round. Where clients are dealt anew, the word of it may have
    /// reached another shard, and with it the worker, before it comes here; the coordinator counts only those who train.
    fn is_asked(&self, client: ClientId, worker: WorkerId) -> bool {
        match self.is_elastic {
            true => self.tasks.iter().any(|t| t.client == client),
            false => self.tasks.binary_search(&Task { client, worker }).is_ok(),
        }
    }

    /// Whether each step is made when all have pushed for it, which this shard sees by itself.
    pub(super) fn is_held_for_all(&self) -> bool {
        self.apply == Apply::HoldAll
    }

    pub(super) fn has_pushed_for(&self, client: ClientId, worker: WorkerId) -> bool {
        let entry = |sequence| Entry { client, worker, sequence };
        self.held.range(entry(Sequence(0))..=entry(Sequence(u64::MAX))).next().is_some()
    }

    /// Where workers push for themselves, which they do in their own name.
    pub(super) fn has_pushed(&self, worker: WorkerId) -> bool {
        self.has_pushed_for(ClientId(worker.0), worker)
    }

    pub(super) fn held_of(&self, worker: WorkerId) -> usize {
        self.held.keys().filter(|e| e.worker == worker).count()
    }
}
