//! Keeps the values at evaluation points until an observer has had time to fetch them.

use std::collections::{BTreeMap, VecDeque};

use super::WAITING_NOTICE_S;
use crate::shard::event::{Effect, Reply};
use crate::store::Snapshot;
use crate::{SessionId, Time};

/// Fewest evaluation points kept, however large the model.
pub const SNAPSHOTS_MIN: u64 = 4;
/// Most evaluation points kept; the oldest goes first. Each costs at most one copy of the values.
pub const SNAPSHOTS_MAX: u64 = 256;
/// Observers that may wait for a point at once.
pub const WAITERS_MAX: usize = 64;

/// The values at evaluation points: point n is the first version that is at least n times `every` far, in examples or
/// rounds.
#[derive(Debug)]
pub(crate) struct Snapshots {
    every: u64,
    most: usize,
    kept: VecDeque<(u64, Snapshot)>,
    /// The point that the next snapshot would be kept for.
    next: u64,
    waiters: BTreeMap<SessionId, Waiter>,
    ended: bool,
}

/// An observer that waits for a point.
#[derive(Debug)]
struct Waiter {
    point: u64,
    /// When it was told last that the point has not been reached.
    told: Time,
}

impl Snapshots {
    /// With room for `most` of them, within limits.
    pub(crate) fn new(every: u64, most: u64) -> Self {
        let most = most.clamp(SNAPSHOTS_MIN, SNAPSHOTS_MAX) as usize;
        Self { every, most, kept: VecDeque::new(), next: 0, waiters: BTreeMap::new(), ended: false }
    }

    /// The shard begins with values that are so far already; points before them are gone.
    pub(crate) fn go_on_at(&mut self, position: u64) {
        self.kept.clear();
        self.next = position / self.every;
    }

    /// Evaluation points kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether the next point is reached.
    pub(crate) fn is_due(&self, position: u64) -> bool {
        !self.ended && position / self.every >= self.next
    }

    /// Keeps the values for the point that they have reached.
    pub(crate) fn keep(&mut self, position: u64, snapshot: Snapshot, out: &mut Vec<Effect>) {
        let point = position / self.every;
        if self.kept.len() == self.most {
            self.kept.pop_front();
        }
        self.kept.push_back((point, snapshot));
        self.next = point + 1;
        self.answer(out);
    }

    /// No further point will be reached.
    pub(crate) fn end(&mut self, out: &mut Vec<Effect>) {
        self.ended = true;
        self.answer(out);
    }

    pub(crate) fn ask(&mut self, now: Time, session: SessionId, point: u64, out: &mut Vec<Effect>) {
        if self.waiters.len() >= WAITERS_MAX && !self.waiters.contains_key(&session) {
            out.push(Effect::Reply { session, reply: Reply::NoSnapshot { next: None } });
            return;
        }
        self.waiters.insert(session, Waiter { point, told: now });
        self.answer(out);
    }

    /// Tells those who wait, every so often, that they wait for a shard that lives.
    pub(crate) fn tell_waiters(&mut self, now: Time, position: u64, out: &mut Vec<Effect>) {
        let is_due = |waiter: &Waiter| now.seconds_since(waiter.told) >= WAITING_NOTICE_S;
        for (&session, waiter) in self.waiters.iter_mut().filter(|(_, w)| is_due(w)) {
            waiter.told = now;
            out.push(Effect::Reply { session, reply: Reply::NotReached { point: waiter.point, position } });
        }
    }

    /// Nobody who waits is there any more.
    pub(crate) fn forget_all(&mut self) {
        self.waiters.clear();
    }

    pub(crate) fn forget(&mut self, session: SessionId) {
        self.waiters.remove(&session);
    }

    fn answer(&mut self, out: &mut Vec<Effect>) {
        let (kept, next, ended) = (&self.kept, self.next, self.ended);
        self.waiters.retain(|&session, &mut Waiter { point, .. }| {
            let reply = match kept.iter().find(|(p, _)| *p == point) {
                Some((_, snapshot)) => Reply::Values {
                    step: snapshot.step,
                    snapshot: snapshot.clone(),
                    have: None,
                    slices: Vec::new(),
                    clients: Vec::new(),
                },
                None if point >= next && !ended => return true,
                None => Reply::NoSnapshot { next: kept.iter().map(|(p, _)| *p).find(|&p| p > point) },
            };
            out.push(Effect::Reply { session, reply });
            false
        });
    }
}
