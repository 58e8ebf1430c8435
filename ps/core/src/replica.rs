//! Keeps a shard's copy equal to it: what the primary may show, and what the standby accepts.
//!
//! The primary tells its standby everything that changes the shard, numbered. Once the standby has all, whatever the primary
//! has to say waits until the standby has confirmed what was told before ([`Gate`]). The standby does the same things in the
//! same order and refuses a primary of another lineage ([`Standby`]): since a new lineage begins before a standby is
//! promoted, who was primary before it can show nothing any more (the fence).

use std::collections::{BTreeMap, VecDeque};

use windlass_common::ids::{Lineage, RunId, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Feed, Report};

use crate::SessionId;
use crate::shard::{Effect, FeedError, Reply, Shard};
use crate::store::Pushed;

/// What a standby may be told before what was told before it: no more than sessions have ways of their own to it.
const EARLY_MAX: usize = 1024;

/// What becomes of an effect at a gate.
#[derive(Debug)]
pub enum Passed {
    /// It may be acted upon.
    Now(Effect),
    /// These values may be sent but for their end, without which they are nothing to anybody: the end waits. What the session
    /// is told meanwhile comes behind it.
    Begun(SessionId, Reply),
    /// It waits.
    Waits,
}

/// What waits no longer.
#[derive(Debug)]
pub enum Released {
    /// It may be acted upon.
    Effect(Effect),
    /// The end of the values that this session was sent may follow.
    End(SessionId),
}

/// What a primary has to say, in order; some of it waits for the standby.
#[derive(Debug, Default)]
pub struct Gate {
    /// What was told last, and confirmed last.
    told: u64,
    confirmed: u64,
    is_closed: bool,
    waiting: VecDeque<(u64, Released)>,
    /// How much waits for a session that no values may overtake.
    barred: BTreeMap<SessionId, u32>,
}

impl Gate {
    /// The number of what is told next.
    pub fn number(&mut self) -> u64 {
        self.told += 1;
        self.told
    }

    /// The number of what was told last.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// The standby has all, but for what is on its way: from now on it confirms before anything is shown.
    pub fn shut(&mut self) {
        self.is_closed = true;
    }

    /// Whether the standby has all.
    pub fn is_shut(&self) -> bool {
        self.is_closed
    }

    /// How much of what was told has not been confirmed.
    pub fn unconfirmed(&self) -> u64 {
        self.told - self.confirmed
    }

    /// Effects that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Says whether an effect may be acted upon, begun, or waits. Values are begun only for whom `may_begin` says so: it pays
    /// where they take longer on their way than on a processor.
    pub fn pass(&mut self, effect: Effect, may_begin: impl FnOnce(SessionId) -> bool) -> Passed {
        let is_told_later = self.is_closed && self.confirmed < self.told;
        if !is_told_later || !shows(&effect) {
            return Passed::Now(effect);
        }
        match effect {
            Effect::Reply { session, reply: reply @ Reply::Values { .. } }
                if !self.barred.contains_key(&session) && may_begin(session) =>
            {
                *self.barred.entry(session).or_default() += 1;
                self.waiting.push_back((self.told, Released::End(session)));
                Passed::Begun(session, reply)
            }
            effect => {
                if let Some(session) = bars(&effect) {
                    *self.barred.entry(session).or_default() += 1;
                }
                self.waiting.push_back((self.told, Released::Effect(effect)));
                Passed::Waits
            }
        }
    }

    /// The standby has confirmed so much; what waited for that waits no longer.
    pub fn confirmed(&mut self, number: u64, out: &mut Vec<Released>) {
        self.confirmed = self.confirmed.max(number.min(self.told));
        while let Some((_, released)) = self.waiting.pop_front_if(|(needed, _)| *needed <= self.confirmed) {
            let session = match &released {
                Released::End(session) => Some(*session),
                Released::Effect(effect) => bars(effect),
            };
            if let Some(session) = session
                && let Some(count) = self.barred.get_mut(&session)
            {
                *count -= 1;
                if *count == 0 {
                    self.barred.remove(&session);
                }
            }
            out.push(released);
        }
    }
}

/// The session whose values must not overtake this. A worker counts acknowledgements and values in whatever order they come;
/// all else says how it is to take what comes after it.
fn bars(effect: &Effect) -> Option<SessionId> {
    match effect {
        Effect::Reply { reply: Reply::Held { .. } | Reply::Settled { .. }, .. } => None,
        Effect::Reply { session, .. } => Some(*session),
        _ => None,
    }
}

/// Whether an effect lets anybody see what the shard has done.
fn shows(effect: &Effect) -> bool {
    !matches!(
        effect,
        Effect::Fed
            | Effect::Report(Report::Standing(_))
            | Effect::Reply { reply: Reply::Waiting { .. } | Reply::NotReached { .. }, .. }
    )
}

/// Why a standby does not take what it is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refused {
    #[error("{shard} is in lineage {current} here; what comes from lineage {found} is refused")]
    Lineage { shard: ShardId, current: Lineage, found: Lineage },
    #[error("number {expected} is missing; {found} has come")]
    Gap { expected: u64, found: u64 },
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// The copy of another server's shard.
#[derive(Debug)]
pub struct Standby<B> {
    run: RunId,
    lineage: Lineage,
    id: ShardId,
    shard: Option<Shard<B>>,
    confirmed: u64,
    is_full: bool,
    /// What came before what was told before it.
    early: BTreeMap<u64, (Feed, B)>,
}

impl<B: Pushed> Standby<B> {
    /// One that has nothing yet.
    pub fn new(run: RunId, lineage: Lineage, id: ShardId) -> Self {
        Self { run, lineage, id, shard: None, confirmed: 0, is_full: false, early: BTreeMap::new() }
    }

    /// The lineage that it is in.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Takes what the primary of this lineage has told, with its floats, and gives the number up to which it has done
    /// everything, which it may confirm. What is told on several streams may come before what was told before it; then it
    /// waits for that, and there is nothing to confirm. This is so for one that has all.
    ///
    /// # Errors
    /// If it is told by another lineage, has missed something, or is not equal to its primary. It is of no use then.
    pub fn take(
        &mut self,
        plan: &Plan,
        lineage: Lineage,
        number: u64,
        feed: Feed,
        floats: B,
    ) -> Result<Option<u64>, Refused> {
        if lineage != self.lineage {
            return Err(Refused::Lineage { shard: self.id, current: self.lineage, found: lineage });
        }
        let expected = self.confirmed + 1;
        if number != expected && !matches!(feed, Feed::Whole(_)) {
            let may_wait = self.is_full && number > expected && self.early.len() < EARLY_MAX;
            if !may_wait || self.early.contains_key(&number) {
                return Err(Refused::Gap { expected, found: number });
            }
            self.early.insert(number, (feed, floats));
            return Ok(None);
        }
        self.follow(plan, number, feed, floats)?;
        while let Some((feed, floats)) = self.early.remove(&(self.confirmed + 1)) {
            self.follow(plan, self.confirmed + 1, feed, floats)?;
        }
        Ok(Some(self.confirmed))
    }

    fn follow(&mut self, plan: &Plan, number: u64, feed: Feed, floats: B) -> Result<(), FeedError> {
        match (feed, &mut self.shard) {
            (Feed::Whole(whole), _) => {
                self.is_full = false;
                self.early.clear();
                let of = (self.run, self.lineage, self.id);
                self.shard = Some(Shard::copied(plan, of, *whole, floats.floats())?);
            }
            (Feed::Full, Some(_)) => self.is_full = true,
            (feed, Some(shard)) => {
                if let Err(error) = shard.follow(feed, floats) {
                    (self.shard, self.is_full) = (None, false);
                    return Err(error);
                }
            }
            (_, None) => return Err(FeedError::Empty),
        }
        self.confirmed = number;
        Ok(())
    }

    /// The shard, if it is known to hold everything that its primary has shown.
    pub fn full(&self) -> Option<&Shard<B>> {
        self.shard.as_ref().filter(|_| self.is_full)
    }

    /// The same, to go on with.
    pub fn into_full(self) -> Option<Shard<B>> {
        self.shard.filter(|_| self.is_full)
    }
}

#[cfg(test)]
mod tests;
