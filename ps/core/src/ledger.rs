//! Remembers how far each worker has come and what became of its last pushes.
//!
//! A push is (worker, incarnation, sequence). Only the sequence after the last is taken; a lower one is answered with
//! what became of it, a higher one is refused with the one expected. What is kept is constant per worker.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use windlass_common::ids::{Incarnation, Sequence, Step, Term, WorkerId};
use windlass_common::wire::{Clock, Member, Outcome, Reject, Resume};

/// Outcomes remembered per worker beyond those of pushes that may be held at once. A worker repeats only pushes it has
/// no acknowledgement of, and it has fewer than this many of those.
pub const OUTCOMES_MAX: usize = 8;

/// What a shard knows of one worker.
#[derive(Clone, Debug)]
struct Entry {
    /// Whether it takes part now. What became of its pushes is remembered even when it has gone.
    member: bool,
    incarnation: Incarnation,
    /// The push it would take next.
    next: Resume,
    /// Steps settled: applied, late or void.
    clock: Step,
    /// What became of the last pushes, the newest at the back; `None` while one is held.
    outcomes: VecDeque<Option<Outcome>>,
}

/// What a checkpoint remembers of one worker: pushes that were held belong to no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Whose it is.
    pub worker: WorkerId,
    /// Whether it took part.
    pub member: bool,
    /// Its life.
    pub incarnation: Incarnation,
    /// The push it would make next.
    pub sequence: Sequence,
    /// The step of that.
    pub step: Step,
    /// Steps settled.
    pub clock: Step,
    /// What became of its last pushes, the newest last.
    pub outcomes: Vec<Outcome>,
}

/// What to do with a push, by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one.
    New,
    /// It has been taken before and waits for others.
    Held,
    /// It has been taken before, and this became of it.
    Settled(Outcome),
    /// It is refused.
    Refused(Reject),
}

/// How far each worker has come.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Outcomes remembered per worker.
    outcomes_max: usize,
    term: Term,
    entries: BTreeMap<WorkerId, Entry>,
}

impl Ledger {
    /// Nobody takes part yet. So many outcomes are remembered per worker: more than it may have pushes held at once.
    pub fn new(outcomes_max: usize) -> Self {
        Self { outcomes_max, term: Term(0), entries: BTreeMap::new() }
    }

    /// The ledger of a checkpoint. Who took part then does so again when it has joined again.
    pub fn restored(outcomes_max: usize, rows: &[Row]) -> Self {
        let entry = |row: &Row| Entry {
            member: false,
            incarnation: row.incarnation,
            next: Resume { sequence: row.sequence, step: row.step },
            clock: row.clock,
            outcomes: row.outcomes.iter().copied().map(Some).collect(),
        };
        let entries = rows.iter().map(|row| (row.worker, entry(row))).collect();
        Self { outcomes_max, term: Term(0), entries }
    }

    /// What a checkpoint remembers. The last pushes of a worker, if they are held, are as if they had not been taken, for the
    /// step in `held`: how many of them have arrived may differ from shard to shard. One that is held while a later one is
    /// settled is void.
    pub fn rows(&self, held: impl Fn(WorkerId) -> Option<Step>) -> Vec<Row> {
        let row = |(&worker, entry): (&WorkerId, &Entry)| {
            let taken_back = entry.outcomes.iter().rev().take_while(|o| o.is_none()).count();
            let kept = entry.outcomes.len() - taken_back;
            let outcomes = entry.outcomes.iter().take(kept).map(|o| o.unwrap_or(Outcome::Void)).collect();
            Row {
                worker,
                member: entry.member,
                incarnation: entry.incarnation,
                sequence: Sequence(entry.next.sequence.0 - taken_back as u64),
                step: held(worker).unwrap_or(entry.next.step),
                clock: entry.clock,
                outcomes,
            }
        };
        self.entries.iter().map(row).collect()
    }

    /// All that is known of each worker.
    pub fn clocks(&self) -> Vec<Clock> {
        let clock = |(&worker, entry): (&WorkerId, &Entry)| Clock {
            worker,
            member: entry.member,
            incarnation: entry.incarnation,
            next: entry.next,
            clock: entry.clock,
            outcomes: entry.outcomes.iter().copied().collect(),
        };
        self.entries.iter().map(clock).collect()
    }

    /// The copy of another ledger.
    pub fn copied(outcomes_max: usize, term: Term, clocks: Vec<Clock>) -> Self {
        let entry = |clock: Clock| Entry {
            member: clock.member,
            incarnation: clock.incarnation,
            next: clock.next,
            clock: clock.clock,
            outcomes: clock.outcomes.into(),
        };
        let entries = clocks.into_iter().map(|clock| (clock.worker, entry(clock))).collect();
        Self { outcomes_max, term, entries }
    }

    /// Nobody takes part until it has joined again.
    pub fn nobody_takes_part(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.member = false);
    }

    /// The last push of a worker, which is held for this step, is as if it had not been taken.
    ///
    /// # Panics
    /// If the worker has never been a member.
    pub fn take_back(&mut self, worker: WorkerId, step: Step) {
        let entry = self.entry_mut(worker);
        if entry.outcomes.pop_back_if(|outcome| outcome.is_none()).is_some() {
            entry.next = Resume { sequence: Sequence(entry.next.sequence.0 - 1), step };
        }
    }

    /// Of each worker the first push that has not been settled.
    pub fn unsettled(&self) -> impl Iterator<Item = (WorkerId, Sequence)> + '_ {
        self.entries.iter().map(|(&worker, entry)| {
            let open = entry.outcomes.iter().rev().take_while(|o| o.is_none()).count() as u64;
            (worker, Sequence(entry.next.sequence.0 - open))
        })
    }

    /// Notes who takes part from now on, and who did and has gone, under an incarnation that nobody has. Returns those
    /// that are new, came back or went.
    pub fn set_members(&mut self, term: Term, members: &[Member], departed: &[Member]) -> Vec<Member> {
        self.term = term;
        self.entries.values_mut().for_each(|entry| entry.member = false);
        let mut changed = Vec::new();
        let all = members.iter().map(|m| (m, true)).chain(departed.iter().map(|m| (m, false)));
        for (&member, is_member) in all {
            let entry = self.entries.entry(member.worker).or_insert_with(|| Entry {
                member: is_member,
                incarnation: Incarnation(0),
                next: Resume::default(),
                clock: Step(0),
                outcomes: VecDeque::new(),
            });
            entry.member = is_member;
            if entry.incarnation < member.incarnation {
                entry.incarnation = member.incarnation;
                changed.push(member);
            }
        }
        changed
    }

    /// The membership known here.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The members in order of rank.
    pub fn members(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.present().map(|(worker, _)| worker)
    }

    /// Whether this worker takes part now.
    pub fn is_member(&self, worker: WorkerId) -> bool {
        self.entries.get(&worker).is_some_and(|e| e.member)
    }

    fn present(&self) -> impl Iterator<Item = (WorkerId, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.member).map(|(worker, entry)| (*worker, entry))
    }

    /// The life in which a worker is known.
    pub fn incarnation(&self, worker: WorkerId) -> Option<Incarnation> {
        self.entries.get(&worker).map(|e| e.incarnation)
    }

    /// Steps settled by a worker.
    pub fn clock(&self, worker: WorkerId) -> Option<Step> {
        self.entries.get(&worker).map(|e| e.clock)
    }

    /// The push that a worker would make next.
    pub fn next(&self, worker: WorkerId) -> Option<Resume> {
        self.entries.get(&worker).map(|e| e.next)
    }

    /// The member with the lowest clock, the first of them by rank.
    pub fn slowest(&self) -> Option<(WorkerId, Step)> {
        self.present().map(|(w, e)| (w, e.clock)).min_by_key(|&(w, clock)| (clock, w))
    }

    /// The lowest clock of the members beside this one.
    pub fn slowest_beside(&self, worker: WorkerId) -> Option<Step> {
        self.present().filter(|(w, _)| *w != worker).map(|(_, e)| e.clock).min()
    }

    /// Whether a request of this worker in this incarnation is heard at all.
    ///
    /// # Errors
    /// Says why it is not.
    pub fn hear(&self, worker: WorkerId, incarnation: Incarnation) -> Result<(), Reject> {
        match self.entries.get(&worker) {
            Some(entry) if entry.incarnation == incarnation && entry.member => Ok(()),
            Some(entry) if incarnation < entry.incarnation => {
                Err(Reject::StaleIncarnation { worker, found: incarnation, current: entry.incarnation })
            }
            _ => Err(Reject::NotAdmitted { worker, term: self.term }),
        }
    }

    /// What to do with a push of a worker that is heard.
    ///
    /// # Panics
    /// If the worker has never been a member.
    pub fn admit(&self, worker: WorkerId, sequence: Sequence) -> Admission {
        let entry = self.entry(worker);
        let expected = entry.next.sequence;
        if sequence > expected {
            return Admission::Refused(Reject::SequenceGap { expected, found: sequence });
        }
        if sequence == expected {
            // Room is made by forgetting the oldest outcome, which has to be known by then.
            if entry.outcomes.len() == self.outcomes_max && entry.outcomes.front() == Some(&None) {
                let most = self.outcomes_max as u64;
                return Admission::Refused(Reject::TooManyHeld { worker, most });
            }
            return Admission::New;
        }
        let age = (expected.0 - sequence.0) as usize;
        match entry.outcomes.len().checked_sub(age).map(|i| entry.outcomes[i]) {
            Some(Some(outcome)) => Admission::Settled(outcome),
            Some(None) => Admission::Held,
            None => {
                let oldest = Sequence(expected.0 - entry.outcomes.len() as u64);
                Admission::Refused(Reject::Forgotten { found: sequence, oldest })
            }
        }
    }

    /// Takes the next push of a worker; the one after it is for step `next`. Its outcome comes later.
    ///
    /// # Panics
    /// If the worker has never been a member.
    pub fn take(&mut self, worker: WorkerId, next: Step) {
        let most = self.outcomes_max;
        let entry = self.entry_mut(worker);
        if entry.outcomes.len() == most {
            entry.outcomes.pop_front();
        }
        entry.outcomes.push_back(None);
        entry.next = Resume { sequence: entry.next.sequence.next(), step: next };
    }

    /// Records what became of a push that was taken; the worker's clock is now `clock`.
    ///
    /// # Panics
    /// If the push was not taken, or its outcome is known already: a push takes effect once.
    pub fn settle(&mut self, worker: WorkerId, sequence: Sequence, outcome: Outcome, clock: Step) {
        let entry = self.entry_mut(worker);
        let age = (entry.next.sequence.0 - sequence.0) as usize;
        let index = entry.outcomes.len().checked_sub(age).expect("a push is settled soon after it was taken");
        let slot = &mut entry.outcomes[index];
        assert!(slot.is_none(), "push {sequence} of {worker} is settled twice");
        *slot = Some(outcome);
        entry.clock = entry.clock.max(clock);
    }

    /// The next push of a worker is for an earlier step again, since what it has pushed for that one is void.
    ///
    /// # Panics
    /// If the worker has never been a member.
    pub fn go_back(&mut self, worker: WorkerId, step: Step) {
        self.entry_mut(worker).next.step = step;
    }

    /// Settles a worker that came back or has gone at `next`: what this shard lacks of it is void. Returns those.
    ///
    /// # Panics
    /// If the worker has never been a member.
    pub fn void_up_to(&mut self, worker: WorkerId, next: Resume) -> Vec<Resume> {
        let mut missing = Vec::new();
        while self.entry(worker).next.sequence < next.sequence {
            let lacking @ Resume { sequence, step } = self.entry(worker).next;
            self.take(worker, step.next());
            self.settle(worker, sequence, Outcome::Void, step.next());
            missing.push(lacking);
        }
        let entry = self.entry_mut(worker);
        entry.next.step = next.step;
        // One that joins where others are further begins with them, and nobody waits for the steps between.
        entry.clock = entry.clock.max(next.step);
        missing
    }

    fn entry(&self, worker: WorkerId) -> &Entry {
        self.entries.get(&worker).expect("only members are asked about")
    }

    fn entry_mut(&mut self, worker: WorkerId) -> &mut Entry {
        self.entries.get_mut(&worker).expect("only members are asked about")
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::Version;

    use super::*;

    const W: WorkerId = WorkerId(3);

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(OUTCOMES_MAX);
        ledger.set_members(Term(1), &[Member { worker: W, incarnation: Incarnation(1) }], &[]);
        ledger
    }

    fn applied(n: u64) -> Outcome {
        Outcome::Applied { version: Version(n), staleness: 0 }
    }

    #[test]
    fn only_the_next_push_is_taken() {
        let mut ledger = ledger();
        assert_eq!(ledger.admit(W, Sequence(0)), Admission::New);
        let gap = Reject::SequenceGap { expected: Sequence(0), found: Sequence(1) };
        assert_eq!(ledger.admit(W, Sequence(1)), Admission::Refused(gap));
        ledger.take(W, Step(1));
        assert_eq!(ledger.admit(W, Sequence(0)), Admission::Held);
        assert_eq!(ledger.admit(W, Sequence(1)), Admission::New);
        ledger.settle(W, Sequence(0), applied(1), Step(1));
        assert_eq!(ledger.admit(W, Sequence(0)), Admission::Settled(applied(1)));
        assert_eq!(ledger.clock(W), Some(Step(1)));
    }

    #[test]
    fn what_is_held_is_not_forgotten() {
        let mut ledger = ledger();
        ledger.take(W, Step(1));
        for n in 1..OUTCOMES_MAX as u64 {
            ledger.take(W, Step(1));
            ledger.settle(W, Sequence(n), Outcome::Late { step: Step(1) }, Step(1));
        }
        let most = OUTCOMES_MAX as u64;
        let refused = Admission::Refused(Reject::TooManyHeld { worker: W, most });
        assert_eq!(ledger.admit(W, Sequence(most)), refused);
        ledger.settle(W, Sequence(0), applied(1), Step(1));
        assert_eq!(ledger.admit(W, Sequence(most)), Admission::New);
    }

    #[test]
    fn what_is_kept_is_constant() {
        let mut ledger = ledger();
        for n in 0..1000 {
            ledger.take(W, Step(n + 1));
            ledger.settle(W, Sequence(n), applied(n + 1), Step(n + 1));
        }
        assert_eq!(ledger.entry(W).outcomes.len(), OUTCOMES_MAX);
        assert_eq!(ledger.admit(W, Sequence(999)), Admission::Settled(applied(1000)));
        let oldest = Sequence(1000 - OUTCOMES_MAX as u64);
        assert_eq!(ledger.admit(W, oldest), Admission::Settled(applied(oldest.0 + 1)));
        let forgotten = Reject::Forgotten { found: Sequence(5), oldest };
        assert_eq!(ledger.admit(W, Sequence(5)), Admission::Refused(forgotten));
    }

    #[test]
    #[should_panic(expected = "settled twice")]
    fn a_push_takes_effect_once() {
        let mut ledger = ledger();
        ledger.take(W, Step(1));
        ledger.settle(W, Sequence(0), applied(1), Step(1));
        ledger.settle(W, Sequence(0), applied(2), Step(1));
    }

    #[test]
    fn a_checkpoint_does_not_tell_whether_the_last_pushes_are_held() {
        let mut ledger = ledger();
        let settled = |ledger: &mut Ledger, n| {
            ledger.take(W, Step(1));
            ledger.settle(W, Sequence(n), applied(n + 1), Step(1));
        };
        settled(&mut ledger, 0);
        let rows = ledger.rows(|_| Some(Step(1)));
        assert_eq!(rows[0].sequence, Sequence(1));
        for _ in 0..2 {
            ledger.take(W, Step(1));
            assert_eq!(ledger.rows(|_| Some(Step(1))), rows);
        }
        settled(&mut ledger, 3);
        let row = ledger.rows(|_| None).remove(0);
        assert_eq!(row.sequence, Sequence(4));
        assert_eq!(row.outcomes, [applied(1), Outcome::Void, Outcome::Void, applied(4)]);
    }

    #[test]
    fn a_new_incarnation_ends_the_one_before() {
        let mut ledger = ledger();
        ledger.take(W, Step(1));
        let changed = ledger.set_members(Term(2), &[Member { worker: W, incarnation: Incarnation(2) }], &[]);
        assert_eq!(changed[0].worker, W);
        assert_eq!(ledger.next(W), Some(Resume { sequence: Sequence(1), step: Step(1) }));
        assert!(ledger.hear(W, Incarnation(2)).is_ok());
        let stale = Reject::StaleIncarnation { worker: W, found: Incarnation(1), current: Incarnation(2) };
        assert_eq!(ledger.hear(W, Incarnation(1)), Err(stale));
        assert!(matches!(ledger.hear(W, Incarnation(3)), Err(Reject::NotAdmitted { .. })));
    }

    #[test]
    fn who_has_gone_is_waited_for_no_more_and_not_forgotten() {
        let mut ledger = ledger();
        let other = Member { worker: WorkerId(4), incarnation: Incarnation(1) };
        ledger.set_members(Term(2), &[Member { worker: W, incarnation: Incarnation(1) }, other], &[]);
        ledger.take(other.worker, Step(1));
        ledger.settle(other.worker, Sequence(0), applied(1), Step(1));
        assert_eq!(ledger.slowest(), Some((W, Step(0))));
        assert!(ledger.set_members(Term(3), &[other], &[]).is_empty());
        assert_eq!(ledger.slowest(), Some((other.worker, Step(1))));
        assert_eq!(ledger.members().collect::<Vec<_>>(), [other.worker]);
        assert_eq!(ledger.hear(W, Incarnation(1)), Err(Reject::NotAdmitted { worker: W, term: Term(3) }));
        assert!(ledger.set_members(Term(4), &[], &[]).is_empty());
        let back = Member { worker: other.worker, incarnation: Incarnation(2) };
        assert_eq!(ledger.set_members(Term(5), &[back], &[]), [back]);
        assert_eq!(ledger.next(back.worker).map(|next| next.sequence), Some(Sequence(1)));
    }

    #[test]
    fn what_a_shard_lacks_of_a_settled_worker_is_void() {
        let mut ledger = ledger();
        let next = Resume { sequence: Sequence(1), step: Step(1) };
        assert_eq!(ledger.void_up_to(W, next), [Resume::default()]);
        assert_eq!(ledger.admit(W, Sequence(0)), Admission::Settled(Outcome::Void));
        assert_eq!(ledger.clock(W), Some(Step(1)));
        assert_eq!(ledger.void_up_to(W, next), []);
    }
}
