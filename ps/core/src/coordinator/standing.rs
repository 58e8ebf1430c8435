//! Keeps how the shards stand, and puts together how the run does.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ShardId, Step, WorkerId};
use windlass_common::wire::{Blocked, ShardStatus, Standing, Status, Wait, WorkerStatus};

use super::rounds::Rounds;
use super::{Coordinator, explain};
use crate::Time;

/// What each shard has said last, and since when requests wait for others.
#[derive(Debug, Default)]
pub(super) struct Standings {
    shards: BTreeMap<ShardId, (Time, Standing)>,
    blocked: BTreeMap<(ShardId, WorkerId), (Time, Step, Wait)>,
    /// Workers that others wait for, and since when without a break.
    holding: BTreeMap<WorkerId, Time>,
}

impl Standings {
    pub(super) fn report(&mut self, now: Time, shard: ShardId, standing: Standing) {
        let before: BTreeMap<_, _> = self.blocked.extract_if(.., |(of, _), _| *of == shard).collect();
        for (worker, step, wait) in &standing.blocked {
            let key = (shard, *worker);
            let since = match before.get(&key) {
                Some((since, for_step, for_what)) if for_step == step && for_what == wait => *since,
                _ => now,
            };
            self.blocked.insert(key, (since, *step, wait.clone()));
        }
        self.shards.insert(shard, (now, standing));
        let named: BTreeSet<WorkerId> =
            self.blocked.values().flat_map(|(_, _, wait)| waited_for(wait)).copied().collect();
        self.holding.retain(|worker, _| named.contains(worker));
        for worker in named {
            self.holding.entry(worker).or_insert(now);
        }
    }

    /// Workers that others wait for, and since when.
    pub(super) fn holding(&self) -> impl Iterator<Item = (WorkerId, Time)> {
        self.holding.iter().map(|(&worker, &since)| (worker, since))
    }

    /// Since when somebody has waited for this step to be closed, complete as it is on his shard.
    pub(super) fn closing_since(&self, open: Step) -> Option<Time> {
        let waits = self.blocked.values().filter(|(_, _, wait)| *wait == Wait::Close { step: open });
        waits.map(|(since, ..)| *since).min()
    }

    fn shards(&self, now: Time) -> Vec<ShardStatus> {
        let status = |(&shard, (at, s)): (&ShardId, &(Time, Standing))| ShardStatus {
            shard,
            version: s.version,
            open: s.open,
            queue: s.queue,
            held: s.held,
            parked: s.parked,
            bytes: s.bytes,
            silent_us: now.0.saturating_sub(at.0),
        };
        self.shards.iter().map(status).collect()
    }

    fn blocked(&self, now: Time) -> Vec<Blocked> {
        let blocked = |(&(shard, worker), (since, step, wait)): (&_, &(Time, Step, Wait))| Blocked {
            shard,
            worker,
            step: *step,
            wait: wait.clone(),
            since_us: now.0.saturating_sub(since.0),
        };
        self.blocked.iter().map(blocked).filter(|b| b.since_us >= 1_000_000).collect()
    }
}

/// The workers that a request waits for.
pub(super) fn waited_for(wait: &Wait) -> &[WorkerId] {
    match wait {
        Wait::Pushes { missing, .. } => missing,
        Wait::Slowest { worker, .. } => std::slice::from_ref(worker),
        Wait::Start | Wait::Close { .. } | Wait::Cohort { .. } => &[],
    }
}

impl Coordinator {
    /// How the run stands, at the time that it was told last.
    pub fn status(&self) -> Status {
        let now = self.now;
        let workers = self.workers.iter().map(|(&worker, w)| WorkerStatus {
            worker,
            state: w.state,
            incarnation: w.incarnation,
            member: w.member,
            clock: self.progress.clock(worker),
            step: w.step,
            silent_us: w.heard.map(|heard| now.0.saturating_sub(heard.0)),
            staleness: self.progress.staleness(worker),
            bytes_up: w.bytes.0,
            bytes_down: w.bytes.1,
            clients: u32::try_from(self.hosts.clients_of(worker).len()).unwrap_or(u32::MAX),
        });
        let rounds = self.rounds.as_ref().map_or(0, Rounds::closed);
        let mut status = Status {
            workers: workers.collect(),
            shards: self.standings.shards(now),
            blocked: self.standings.blocked(now),
            checkpoints: self.checkpoints.status.clone(),
            seats: self.seat_statuses(),
            waiting: explain::waiting(self),
            ..self.progress.status(self.phase, self.term, &self.plan, rounds)
        };
        status.advice = explain::advice(self, &status);
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(missing: &[u32], step: u64) -> Standing {
        let missing = missing.iter().copied().map(WorkerId).collect();
        let wait = Wait::Pushes { step: Step(step), missing };
        Standing { blocked: vec![(WorkerId(0), Step(step + 1), wait)], parked: 1, ..Standing::default() }
    }

    #[test]
    fn who_holds_others_up_is_known_since_when() {
        let second = |n: u64| Time(n * 1_000_000);
        let mut standings = Standings::default();
        let holding = |s: &Standings| s.holding().map(|(w, at)| (w.0, at.0 / 1_000_000)).collect::<Vec<_>>();
        standings.report(second(1), ShardId(0), standing(&[1, 2], 5));
        standings.report(second(2), ShardId(1), standing(&[2], 5));
        assert_eq!(holding(&standings), [(1, 1), (2, 1)]);
        assert!(standings.blocked(second(1)).is_empty(), "a moment is no wait");
        standings.report(second(3), ShardId(0), standing(&[2], 5));
        assert_eq!(holding(&standings), [(2, 1)]);
        let blocked = standings.blocked(second(5));
        assert_eq!(blocked.iter().map(|b| b.since_us).collect::<Vec<_>>(), [2_000_000, 3_000_000]);
        standings.report(second(6), ShardId(1), Standing::default());
        standings.report(second(6), ShardId(0), Standing::default());
        assert_eq!(holding(&standings), []);
        assert_eq!(
            standings.shards(second(8)).iter().map(|s| s.silent_us).collect::<Vec<_>>(),
            [2_000_000; 2]
        );
    }
}
