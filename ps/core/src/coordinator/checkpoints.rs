//! Decides when a checkpoint is taken, of what it consists, and whether there is one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use windlass_common::ids::{Examples, Incarnation, Lineage, Sequence, ShardId, Step, Term, WorkerId};
use windlass_common::plan::{Every, Plan};
use windlass_common::wire::{CheckpointStatus, Checkpointed, Order, Phase};

use super::{Coordinator, Effect, Restore};
use crate::rules::{self, Apply};
use crate::{SessionId, Time};

/// A checkpoint that not every shard has taken within so many seconds is postponed.
pub const TAKEN_WITHIN_S: u64 = 5;
/// What has come to nothing is tried again after so many seconds, unless it is due earlier.
pub const AGAIN_AFTER_S: u64 = 10;
/// Who is told to end has so many seconds to keep a last checkpoint.
pub const GRACE_S: u64 = 10;

/// What the coordinator remembers of a run in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// The membership.
    pub term: Term,
    /// The last life of each worker that has had one.
    pub incarnations: BTreeMap<WorkerId, Incarnation>,
    /// The step that was open, where the coordinator closes steps.
    pub open: Step,
    /// Federated rounds closed.
    pub rounds: u64,
    /// Whether no further round was to be opened.
    pub concluded: bool,
    /// Examples applied, and optimizer steps made, as far as the coordinator had heard.
    pub examples: Examples,
    /// Optimizer steps.
    pub steps: u64,
}

/// A checkpoint that is complete but for its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Its number.
    pub number: u64,
    /// What each shard's server says of its part, in order.
    pub parts: Vec<String>,
    /// What the coordinator remembers.
    pub state: RunState,
}

/// The checkpoints of a run.
#[derive(Debug)]
pub(super) struct Checkpoints {
    every: Every,
    /// Whether shards apply by themselves, so that they have to pause.
    pauses: bool,
    next: u64,
    /// Somebody wants one now.
    asked: bool,
    running: Option<Running>,
    /// When the last was begun, and at which step.
    since: (Time, u64),
    /// One that has come to nothing is not tried again before.
    not_before: Time,
    pub(super) status: CheckpointStatus,
    /// Why the run is to end after the one that is being taken, and when at the latest.
    last: Option<(String, Time)>,
}

/// The checkpoint that is being taken.
#[derive(Debug)]
struct Running {
    number: u64,
    began: Time,
    /// How far each shard was, as far as they have paused and said so.
    paused: BTreeMap<ShardId, BTreeMap<WorkerId, Sequence>>,
    /// What it consists of, once that is known.
    before: Option<BTreeMap<WorkerId, Sequence>>,
    taken: BTreeSet<ShardId>,
    parts: BTreeMap<ShardId, String>,
    state: RunState,
    is_written: bool,
}

impl Checkpoints {
    /// Those of a run that begins, or goes on from one.
    pub(super) fn new(plan: &Plan, lineage: Lineage, restore: Option<&Restore>, now: Time) -> Self {
        let newest = restore.and_then(|r| {
            let RunState { examples, rounds, .. } = r.state;
            Some(Checkpointed { number: r.checkpoint?, at_us: r.at_us, examples, rounds })
        });
        let steps = restore.map_or(0, |r| r.state.steps.max(r.state.rounds).max(r.state.open.0));
        let pauses =
            matches!(rules::rules(plan).0, Apply::HoldAll | Apply::Immediate { .. } | Apply::Mix { .. });
        Self {
            every: plan.checkpoints.every,
            pauses,
            next: restore.map_or(1, |r| r.next),
            asked: false,
            running: None,
            since: (now, steps),
            not_before: now,
            status: CheckpointStatus { lineage, newest, ..CheckpointStatus::default() },
            last: None,
        }
    }

    fn is_due(&self, now: Time, steps: u64) -> bool {
        let (at, step) = self.since;
        let is_time = match self.every {
            Every::Never => false,
            Every::Seconds(seconds) => now >= at.plus_seconds(seconds),
            Every::Steps(every) => steps >= step + every,
        };
        self.asked || (is_time && now >= self.not_before)
    }
}

impl Running {
    /// Whom the shards that have not taken it wait for.
    fn missing(&self, shards: u32) -> String {
        let behind = (0..shards).map(ShardId).filter(|s| !self.taken.contains(s));
        let Some(before) = &self.before else {
            let silent = behind.filter(|s| !self.paused.contains_key(s)).map(|s| s.to_string());
            return format!("{} did not say how far it is", silent.collect::<Vec<_>>().join(", "));
        };
        let lacks = |shard: ShardId| {
            let has = self.paused.get(&shard);
            let is_behind = |(w, s): &(&WorkerId, &Sequence)| {
                has.and_then(|has| has.get(*w)).is_none_or(|settled| settled < *s)
            };
            let workers: Vec<String> = before.iter().filter(is_behind).map(|(w, _)| w.to_string()).collect();
            match workers.is_empty() {
                true => format!("{shard} did not answer"),
                false => format!("{shard} lacks a push of {}", workers.join(", ")),
            }
        };
        behind.map(lacks).collect::<Vec<_>>().join("; ")
    }
}

impl Coordinator {
    /// Optimizer steps, or rounds, made so far.
    fn steps_made(&self) -> u64 {
        let closed = self.rounds.as_ref().map_or(self.closing.open().0, |rounds| rounds.closed());
        closed.max(self.progress.steps())
    }

    /// What a checkpoint remembers of the run beside its shards.
    fn run_state(&self) -> RunState {
        let lives = self.workers.iter().filter(|(_, w)| w.incarnation > Incarnation(0));
        RunState {
            term: self.term,
            incarnations: lives.map(|(&id, w)| (id, w.incarnation)).collect(),
            open: self.closing.open(),
            rounds: self.rounds.as_ref().map_or(0, |rounds| rounds.closed()),
            concluded: self.rounds.as_ref().is_some_and(|rounds| rounds.is_concluded()),
            examples: self.progress.examples(),
            steps: self.progress.steps(),
        }
    }

    pub(super) fn checkpoint_asked(&mut self, now: Time, session: SessionId, out: &mut Vec<Effect>) {
        if self.observers.contains(&session) {
            self.checkpoints.asked = true;
            self.checkpoint_if_due(now, out);
        }
    }

    /// The process is to end: a last checkpoint is kept if there is time.
    pub(super) fn shut_down(&mut self, now: Time, reason: String, out: &mut Vec<Effect>) {
        if self.phase != Phase::Training || self.checkpoints.every == Every::Never {
            self.fail(reason, out);
            return;
        }
        if self.checkpoints.last.is_none() {
            self.checkpoints.last = Some((reason, now.plus_seconds(GRACE_S)));
            self.checkpoints.asked = true;
            self.checkpoint_if_due(now, out);
        }
    }

    /// Begins a checkpoint if one is due, and postpones the one that takes too long.
    pub(super) fn checkpoint_if_due(&mut self, now: Time, out: &mut Vec<Effect>) {
        let shards = self.plan.cluster.shards();
        if let Some(running) = &self.checkpoints.running {
            let is_taken = running.taken.len() == shards as usize;
            if !is_taken && now >= running.began.plus_seconds(TAKEN_WITHIN_S) {
                let (number, missing) = (running.number, running.missing(shards));
                let why = format!("checkpoint {number} is postponed: {missing} for {TAKEN_WITHIN_S} s");
                self.to_all_shards(&Order::GoOn { checkpoint: number }, out);
                self.checkpoint_failed(now, why, out);
            }
        } else if self.phase == Phase::Training && self.checkpoints.is_due(now, self.steps_made()) {
            self.begin_checkpoint(now, out);
        }
        if let Some((reason, deadline)) = &self.checkpoints.last
            && now >= *deadline
        {
            self.fail(format!("{reason}; a last checkpoint was not kept within {GRACE_S} s"), out);
        }
    }

    fn begin_checkpoint(&mut self, now: Time, out: &mut Vec<Effect>) {
        let steps = self.steps_made();
        let number = self.checkpoints.next;
        let checkpoints = &mut self.checkpoints;
        checkpoints.next += 1;
        checkpoints.asked = false;
        checkpoints.since = (now, steps);
        checkpoints.status.begun += 1;
        checkpoints.running = Some(Running {
            number,
            began: now,
            paused: BTreeMap::new(),
            before: None,
            taken: BTreeSet::new(),
            parts: BTreeMap::new(),
            state: RunState::default(),
            is_written: false,
        });
        match self.checkpoints.pauses {
            true => self.to_all_shards(&Order::Pause { checkpoint: number }, out),
            false => self.cut(BTreeMap::new(), out),
        }
    }

    fn cut(&mut self, before: BTreeMap<WorkerId, Sequence>, out: &mut Vec<Effect>) {
        let state = self.run_state();
        let Some(running) = &mut self.checkpoints.running else { return };
        running.state = state;
        let order =
            Order::Cut { checkpoint: running.number, before: before.iter().map(|(&w, &s)| (w, s)).collect() };
        running.before = Some(before);
        out.push(Effect::CheckpointCut { number: running.number });
        self.to_all_shards(&order, out);
    }

    /// A shard has paused. When all have, what any of them has settled belongs to the checkpoint.
    pub(super) fn paused(
        &mut self,
        shard: ShardId,
        checkpoint: u64,
        next: Vec<(WorkerId, Sequence)>,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let Some(running) = self.checkpoints.running.as_mut().filter(|r| r.number == checkpoint) else {
            return;
        };
        running.paused.insert(shard, next.into_iter().collect());
        if running.paused.len() < shards || running.before.is_some() {
            return;
        }
        let mut before = BTreeMap::<WorkerId, Sequence>::new();
        for (&worker, &settled) in running.paused.values().flatten() {
            let most = before.entry(worker).or_default();
            *most = settled.max(*most);
        }
        self.cut(before, out);
    }

    pub(super) fn taken(&mut self, shard: ShardId, checkpoint: u64) {
        if let Some(running) = self.checkpoints.running.as_mut().filter(|r| r.number == checkpoint) {
            running.taken.insert(shard);
        }
    }

    pub(super) fn kept(
        &mut self,
        now: Time,
        shard: ShardId,
        checkpoint: u64,
        part: Result<String, String>,
        out: &mut Vec<Effect>,
    ) {
        let shards = self.plan.cluster.shards() as usize;
        let Some(running) = self.checkpoints.running.as_mut().filter(|r| r.number == checkpoint) else {
            return;
        };
        match part {
            Err(why) => {
                let why = format!("checkpoint {checkpoint} could not be kept: {shard}: {why}");
                self.to_all_shards(&Order::GoOn { checkpoint }, out);
                self.checkpoint_failed(now, why, out);
            }
            Ok(part) => {
                running.parts.insert(shard, part);
                if running.parts.len() == shards && !running.is_written {
                    running.is_written = true;
                    out.push(Effect::KeepCheckpoint(Box::new(Complete {
                        number: checkpoint,
                        parts: running.parts.values().cloned().collect(),
                        state: running.state.clone(),
                    })));
                }
            }
        }
    }

    /// The manifest is in the store, or could not be written.
    pub(super) fn checkpoint_kept(
        &mut self,
        now: Time,
        number: u64,
        kept: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(running) = self.checkpoints.running.take_if(|r| r.number == number) else { return };
        if let Err(why) = kept {
            self.checkpoint_failed(now, format!("checkpoint {number} could not be kept: {why}"), out);
            return;
        }
        let RunState { examples, rounds, .. } = running.state;
        let status = &mut self.checkpoints.status;
        status.newest = Some(Checkpointed { number, at_us: now.0, examples, rounds });
        status.failure.clear();
        out.push(Effect::Checkpointed { number, failure: None });
        if let Some((reason, _)) = self.checkpoints.last.take() {
            self.fail(format!("{reason}; checkpoint {number} holds what was done"), out);
        }
    }

    fn checkpoint_failed(&mut self, now: Time, why: String, out: &mut Vec<Effect>) {
        let checkpoints = &mut self.checkpoints;
        let number = checkpoints.running.take().map_or(0, |r| r.number);
        checkpoints.not_before = now.plus_seconds(AGAIN_AFTER_S);
        // What was due stays due.
        let early = match checkpoints.every {
            Every::Seconds(seconds) => Time(now.0.saturating_sub(seconds.saturating_mul(1_000_000))),
            _ => checkpoints.since.0,
        };
        checkpoints.since = match checkpoints.every {
            Every::Seconds(_) => (early, checkpoints.since.1),
            Every::Steps(every) => (early, checkpoints.since.1.saturating_sub(every)),
            Every::Never => checkpoints.since,
        };
        checkpoints.status.failed += 1;
        checkpoints.status.failure.clone_from(&why);
        out.push(Effect::Checkpointed { number, failure: Some(why.clone()) });
        if let Some((reason, _)) = self.checkpoints.last.take() {
            self.fail(format!("{reason}; {why}"), out);
        }
    }

    /// A server is gone. With standbys the run goes on from what the others have. With checkpoints alone it goes back to the last, all shards and workers together; without it has
    /// failed.
    pub(super) fn server_gone(&mut self, why: String, out: &mut Vec<Effect>) {
        let keeps = self.plan.cluster.replicas > 0 && self.is_placed();
        let has_none = self.checkpoints.every == Every::Never && self.checkpoints.status.newest.is_none();
        if !keeps && has_none {
            self.fail(why, out);
        } else if !self.has_ended() {
            self.failure = Some(why.clone());
            self.phase = Phase::Failed;
            out.push(Effect::RollBack { why, keeps });
        }
    }
}
