//! Keeps a shard's copy equal to it: what the primary may show, and what the standby accepts.
//!
//! The primary tells its standby everything that changes the shard, numbered. Once the standby has all, whatever the primary
//! has to say waits until the standby has confirmed what was told before ([`Gate`]). The standby does the same things in the
//! same order and refuses a primary of another lineage ([`Standby`]): since a new lineage begins before a standby is
//! promoted, who was primary before it can show nothing any more (the fence).

use std::collections::VecDeque;

use windlass_common::ids::{Lineage, RunId, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Feed, Report};

use crate::shard::{Effect, FeedError, Reply, Shard};

/// What a primary has to say, in order; some of it waits for the standby.
#[derive(Debug, Default)]
pub struct Gate {
    /// What was told last, and confirmed last.
    told: u64,
    confirmed: u64,
    is_closed: bool,
    waiting: VecDeque<(u64, Effect)>,
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

    /// Gives an effect back if it may be acted upon; otherwise it waits.
    pub fn pass(&mut self, effect: Effect) -> Option<Effect> {
        let is_told_later = self.is_closed && self.confirmed < self.told;
        if is_told_later && shows(&effect) {
            self.waiting.push_back((self.told, effect));
            return None;
        }
        Some(effect)
    }

    /// The standby has confirmed so much; what waited for that may be acted upon.
    pub fn confirmed(&mut self, number: u64, out: &mut Vec<Effect>) {
        self.confirmed = self.confirmed.max(number.min(self.told));
        while let Some((_, effect)) = self.waiting.pop_front_if(|(needed, _)| *needed <= self.confirmed) {
            out.push(effect);
        }
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
}

impl<B: AsRef<[f32]> + Clone> Standby<B> {
    /// One that has nothing yet.
    pub fn new(run: RunId, lineage: Lineage, id: ShardId) -> Self {
        Self { run, lineage, id, shard: None, confirmed: 0, is_full: false }
    }

    /// The lineage that it is in.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Takes what the primary of this lineage has told, with its floats, and gives the number that it may confirm.
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
    ) -> Result<u64, Refused> {
        if lineage != self.lineage {
            return Err(Refused::Lineage { shard: self.id, current: self.lineage, found: lineage });
        }
        if number != self.confirmed + 1 && !matches!(feed, Feed::Whole(_)) {
            return Err(Refused::Gap { expected: self.confirmed + 1, found: number });
        }
        match (feed, &mut self.shard) {
            (Feed::Whole(whole), _) => {
                self.is_full = false;
                let of = (self.run, self.lineage, self.id);
                self.shard = Some(Shard::copied(plan, of, *whole, floats.as_ref())?);
            }
            (Feed::Full, Some(_)) => self.is_full = true,
            (feed, Some(shard)) => {
                if let Err(error) = shard.follow(feed, floats) {
                    (self.shard, self.is_full) = (None, false);
                    return Err(error.into());
                }
            }
            (_, None) => return Err(FeedError::Empty.into()),
        }
        self.confirmed = number;
        Ok(number)
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
