//! Follows the pulls on one shard: answered with what the mode allows, and not later than it must.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ClientId, Incarnation, Lineage, Sequence, Step, Version, WorkerId};
use windlass_common::plan::{Goal, Membership, Mode, Plan, Stale};
use windlass_common::wire::{Order, Outcome, Record, Task};
use windlass_ps_core::SessionId;

use crate::audit::Aside;
use crate::cluster::{Entry, History, Kept, Source, Told};

/// What one shard is at, by what it was asked and has said.
#[derive(Default)]
struct State {
    is_started: bool,
    is_concluded: bool,
    /// Steps or rounds closed.
    open: u64,
    newest: Version,
    examples: u64,
    tasks: Vec<Task>,
    /// Tasks of the open round that their workers have not been told of, having begun it before.
    anew: BTreeSet<Task>,
    held: BTreeSet<(WorkerId, Sequence, ClientId)>,
    lives: BTreeMap<WorkerId, Incarnation>,
    parked: BTreeMap<WorkerId, (SessionId, Step)>,
    aside: Aside,
    lineage: Lineage,
    /// What the request under way has pushed.
    pushed: Option<(WorkerId, Sequence, ClientId)>,
}

/// Verifies one shard.
///
/// # Panics
/// With a sentence, if something does not hold.
pub(super) fn verify(plan: &Plan, shard: usize, history: &History) {
    let mut state = State::default();
    let shard = format!("shard {shard}");
    for entry in history.entries() {
        state.aside.follow(entry);
        match entry {
            Entry::Image(_) | Entry::Taken(_) | Entry::Fed { .. } => {}
            Entry::Restored { lineage, kept, from } => state.restored(*lineage, kept.as_deref(), *from),
            Entry::Asked(asked) => {
                state.pushed = asked.push.map(|(sequence, _, client)| (asked.worker, sequence, client));
                let is_heard = state.lives.get(&asked.worker) == Some(&asked.incarnation)
                    && asked.lineage == state.lineage;
                if let Some(step) = asked.pull.filter(|_| is_heard) {
                    state.parked.insert(asked.worker, (asked.session, step));
                }
            }
            Entry::Ordered(order) => state.ordered(order),
            Entry::Members { came, went } => {
                for member in came {
                    state.lives.insert(member.worker, member.incarnation);
                    state.parked.remove(&member.worker);
                }
                state.lives.retain(|worker, _| !went.contains(worker));
                if plan.cluster.membership != Membership::Fixed {
                    state.parked.retain(|worker, _| !went.contains(worker));
                }
            }
            Entry::Observed { .. } => {}
            Entry::Ended(session) => state.parked.retain(|_, (its, _)| its != session),
            Entry::Record(record) => state.record(plan, record),
            Entry::Told { session, what } => state.told(plan, &shard, history, *session, what),
            Entry::Handled { newest, .. } => {
                state.newest = *newest;
                if counts_versions(plan) {
                    state.open = newest.0;
                }
                state.pushed = None;
                state.nobody_waits_in_vain(plan, &shard);
            }
        }
    }
}

/// Whether each step makes a version: none is abandoned, since nobody goes for good.
fn counts_versions(plan: &Plan) -> bool {
    matches!(plan.mode, Mode::Sync { .. }) && plan.cluster.membership == Membership::Fixed
}

impl State {
    /// The shard is made anew: who waited does so no more, and nobody takes part yet.
    fn restored(&mut self, lineage: Lineage, kept: Option<&Kept>, from: Source) {
        let state = kept.map(|kept| &kept.state);
        *self = Self {
            lineage,
            open: self.open,
            is_concluded: self.is_concluded && from != Source::Checkpoint,
            newest: state.map_or(Version(0), |state| state.version),
            examples: state.map_or(0, |state| state.examples.0),
            ..Self::default()
        };
    }

    fn ordered(&mut self, order: &Order) {
        match order {
            Order::Start => self.is_started = true,
            Order::Open { tasks, .. } => {
                let is_new = |t: &&Task| !self.tasks.is_empty() && !self.tasks.contains(t);
                self.anew.extend(tasks.iter().filter(is_new));
                self.tasks.clone_from(tasks);
            }
            Order::Close { step, .. } if step.0 == self.open => {
                self.open += 1;
                self.tasks.clear();
                self.anew.clear();
            }
            Order::Conclude => self.is_concluded = true,
            Order::Close { .. }
            | Order::Membership { .. }
            | Order::Settle { .. }
            | Order::Finalize
            | Order::Logged { .. }
            | Order::Pause { .. }
            | Order::Cut { .. }
            | Order::GoOn { .. } => {}
        }
    }

    fn record(&mut self, plan: &Plan, record: &Record) {
        self.held.retain(|(worker, sequence, _)| (*worker, *sequence) != (record.worker, record.sequence));
        self.examples = self.examples.max(record.examples_applied.0);
        if let Outcome::Applied { version, .. } = record.outcome {
            self.newest = version;
            if counts_versions(plan) {
                assert_eq!(record.step.0 + 1, version.0, "each step is one version: {record:?}");
                self.open = version.0;
            }
        }
    }

    fn told(&mut self, plan: &Plan, shard: &str, history: &History, session: SessionId, what: &Told) {
        // Observers are looked at apart.
        let Some(worker) = history.worker_of(session) else { return };
        match what {
            Told::Held(sequence) => {
                if let Some(pushed) = self.pushed.filter(|p| (p.0, p.1) == (worker, *sequence)) {
                    self.held.insert(pushed);
                }
            }
            Told::Values { step, version, clients } => {
                let asked =
                    self.parked.get(&worker).filter(|(its, _)| *its == session).map(|(_, step)| *step);
                assert!(asked.is_some(), "{shard} gives {worker} values that it has not asked for");
                let asked = asked.unwrap_or_default();
                assert!(self.is_started, "{shard} gives {worker} values before everybody is there");
                self.values(plan, shard, worker, (asked, *step, *version), clients);
                self.anew.retain(|task| task.worker != worker);
                self.parked.remove(&worker);
            }
            Told::Finished => {
                assert!(self.is_finished(plan), "{shard} tells {worker} of an end that is not there");
                assert!(self.is_started, "{shard} tells {worker} of the end before everybody is there");
                self.parked.retain(|_, (its, _)| *its != session);
            }
            Told::Rejected => self.parked.retain(|_, (its, _)| *its != session),
            Told::Settled(..) | Told::Waiting(_) | Told::NoSnapshot(_) | Told::NotReached => {}
        }
    }

    /// No read is other than the mode allows.
    fn values(
        &self,
        plan: &Plan,
        shard: &str,
        worker: WorkerId,
        (asked, step, version): (Step, Step, Version),
        clients: &[ClientId],
    ) {
        let at =
            format!("{shard} gives {worker}, who asks for step {asked}, version {version} for step {step}");
        match &plan.mode {
            Mode::Sync { .. } if !counts_versions(plan) => {
                assert!(step.0 == self.open && step >= asked, "{at}, when step {} is open", self.open);
                assert_eq!(version, self.newest, "{at}, when {} is the newest", self.newest);
            }
            Mode::Sync { .. } => {
                assert_eq!(step.0, version.0, "{at}: not the values of that step");
                let is_again = step == asked && step.0 + 1 == self.open;
                assert!(step.0 == self.open || is_again, "{at}, when step {} is open", self.open);
                assert!(step >= asked, "{at}: too old");
            }
            Mode::Fedavg(_) => {
                assert_eq!(step.0, self.open, "{at}, when another round is open");
                assert_eq!(version, self.newest, "{at}, when {} is the newest", self.newest);
                assert_eq!(clients, self.remaining(worker), "{at}, to train the wrong clients");
            }
            _ => {
                assert_eq!(step, asked, "{at}");
                assert_eq!(version, self.newest, "{at}, when {} is the newest", self.newest);
                assert!(clients.is_empty(), "{at}, to train {clients:?}");
            }
        }
    }

    fn remaining(&self, worker: WorkerId) -> Vec<ClientId> {
        let lacks = |t: &&Task| {
            t.worker == worker && !self.held.iter().any(|(w, _, client)| (*w, *client) == (worker, t.client))
        };
        let mut clients: Vec<ClientId> = self.tasks.iter().filter(lacks).map(|t| t.client).collect();
        clients.sort_unstable();
        clients
    }

    fn is_finished(&self, plan: &Plan) -> bool {
        self.is_concluded
            || match plan.goal() {
                Goal::Examples(total) => self.examples >= total,
                Goal::Rounds(total) => self.open >= total,
            }
    }

    fn nobody_waits_in_vain(&self, plan: &Plan, shard: &str) {
        if !self.is_started {
            return;
        }
        let held_of = |worker: WorkerId| self.held.iter().filter(|(w, ..)| *w == worker).count();
        for (&worker, &(session, step)) in &self.parked {
            if self.aside.has(worker, session) {
                continue;
            }
            let must_wait = match &plan.mode {
                _ if self.is_finished(plan) => false,
                Mode::Sync { .. } => step.0 > self.open,
                Mode::Async { .. } | Mode::Ssp { staleness: None, .. } | Mode::Fedasync { .. } => false,
                // That is followed apart.
                Mode::Ssp { .. } => true,
                Mode::Softsync { buffer, stale: Stale::Kept, .. } | Mode::Fedbuff { buffer, .. } => {
                    held_of(worker) >= *buffer as usize
                }
                Mode::Softsync { buffer, stale: Stale::Late, .. } => held_of(worker) > *buffer as usize,
                Mode::Fedavg(_) if step.0 > self.open => !self.anew.iter().any(|t| t.worker == worker),
                Mode::Fedavg(_) => self.remaining(worker).is_empty(),
            };
            assert!(must_wait, "{worker} waits for step {step} on {shard} for nothing");
        }
    }
}
