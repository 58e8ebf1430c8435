//! Adds up a run's records into its summary.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windlass_common::ids::{ClientId, RunId, ShardId, WorkerId};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Entry, Outcome, Record, Status, Stop, Task, WorkerReport};
use windlass_ps_core::Time;

/// Counts over a run. Pushes, steps and examples are those of shard 0; staleness is over all shards.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pushes: u64,
    late: u64,
    void: u64,
    partial: u64,
    steps: u64,
    examples: u64,
    first_us: Option<u64>,
    last_us: u64,
    staleness: BTreeMap<u64, u64>,
    mode: String,
    by_client: bool,
    started_us: Option<u64>,
    /// Work computed for pushes that changed nothing.
    wasted: u64,
    /// Steps or rounds that were closed with nobody.
    abandoned: u64,
    clients: BTreeMap<u32, ClientTally>,
    /// Whom the open round has asked, and who of them has dropped out: a checkpoint does not hold it, and it is opened again.
    #[serde(skip)]
    open: Open,
}

#[derive(Clone, Debug, Default)]
struct Open {
    asked: Vec<ClientId>,
    dropped: Vec<ClientId>,
}

/// What became of one client's part in the rounds of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientTally {
    client: u32,
    /// Rounds that asked it.
    asked: u64,
    /// Its pushes that rounds were closed with; where there are no rounds, those that were applied.
    aggregated: u64,
    /// Its pushes that came too late.
    late: u64,
    /// Rounds in which it dropped out.
    dropped: u64,
}

/// What is written to summary.json. Programs that start and watch a run add what only they can measure.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    name: String,
    run: String,
    mode: String,
    model: String,
    completed: bool,
    reason: String,
    seed: u64,
    servers: u32,
    shards: u32,
    workers: u32,
    /// Examples per step of a worker or client; null is all that a client has.
    batch: Option<u32>,
    /// Pushes settled.
    pushes: u64,
    pushes_late: u64,
    pushes_void: u64,
    /// Pushes that count on some shards only, their worker having died in between; summed over shards.
    pushes_partial: u64,
    /// Optimizer steps.
    steps: u64,
    examples: u64,
    /// Examples whose gradients were computed for pushes that changed nothing, being late or void.
    examples_wasted: u64,
    /// Federated rounds closed, and those of them that were abandoned for want of a quorum.
    rounds: u64,
    rounds_abandoned: u64,
    /// Steps that were closed with nobody, because all who were there when they began had gone.
    steps_abandoned: u64,
    /// Changes of who takes part.
    terms: u64,
    /// How often the run has been restored.
    lineage: u32,
    /// Owners of data.
    clients: u32,
    /// What became of each client's work, where clients train by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    client_tallies: Vec<ClientTally>,
    /// When step 0 began, in microseconds since 1970.
    started_us: Option<u64>,
    /// Microseconds since 1970.
    first_step_us: Option<u64>,
    last_step_us: u64,
    /// From the first step to the last, seconds.
    training_s: f64,
    pushes_per_s: f64,
    steps_per_s: f64,
    examples_per_s: f64,
    train_loss: Option<f32>,
    payload_bytes_up: u64,
    payload_bytes_down: u64,
    wire_bytes_up: u64,
    wire_bytes_down: u64,
    staleness_mean: Option<f64>,
    staleness_p95: Option<u64>,
    /// Per worker the share of its time in which it computed nothing; null if it was lost.
    idle_share: Vec<Option<f64>>,
    /// On what the workers' time went, and that of the shards.
    time_shares: Option<TimeShares>,
}

/// Shares of the workers' time together, and of the shards'.
#[derive(Debug, Serialize)]
struct TimeShares {
    compute: f64,
    encode: f64,
    /// The wire, the shards, and waiting for others.
    exchange: f64,
    /// Of the time of all shards, that in which they had something to do.
    shards: f64,
}

impl TimeShares {
    /// None if no worker has measured itself.
    fn of(workers: &[(WorkerId, WorkerReport)], shards: u32, shards_us: u64) -> Option<Self> {
        let measured = || workers.iter().map(|(_, r)| r).filter(|r| r.active_us > 0);
        let sum = |part: fn(&WorkerReport) -> u64| measured().map(part).sum::<u64>() as f64;
        let all = sum(|r| r.active_us);
        let longest = workers.iter().map(|(_, r)| r.active_us).max().unwrap_or(0);
        (all > 0.0).then(|| Self {
            compute: sum(|r| r.compute_us) / all,
            encode: sum(|r| r.encode_us) / all,
            exchange: sum(|r| r.exchange_us) / all,
            shards: shards_us as f64 / (longest as f64 * f64::from(shards)),
        })
    }
}

impl Tally {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { mode: plan.mode.to_string(), by_client: plan.mode.local().is_some(), ..Self::default() }
    }

    fn client(&mut self, client: ClientId) -> &mut ClientTally {
        self.clients.entry(client.0).or_insert(ClientTally { client: client.0, ..ClientTally::default() })
    }

    /// These counts, with what the coordinator had decided taken from others, which were counted at another moment.
    pub(crate) fn with_decisions_of(mut self, decided: &Self) -> Self {
        self.abandoned = decided.abandoned;
        for then in decided.clients.values() {
            let client = self.client(ClientId(then.client));
            (client.asked, client.dropped) = (then.asked, then.dropped);
        }
        for &client in &decided.open.asked {
            self.client(client).asked -= 1;
        }
        for &client in &decided.open.dropped {
            self.client(client).dropped -= 1;
        }
        self
    }

    /// The round that is open will be opened again.
    pub(crate) fn open_again(&mut self) {
        let now = std::mem::take(self);
        let decided = now.clone();
        *self = now.with_decisions_of(&decided);
        self.open = Open::default();
    }

    /// The first time counts: a run that goes on from a checkpoint has begun before.
    pub(crate) fn started(&mut self, now: Time) {
        self.started_us.get_or_insert(now.0);
    }

    pub(crate) fn opened(&mut self, tasks: &[Task]) {
        for task in tasks {
            self.client(task.client).asked += 1;
        }
        self.open = Open { asked: tasks.iter().map(|task| task.client).collect(), dropped: Vec::new() };
    }

    pub(crate) fn dropped(&mut self, client: ClientId) {
        self.client(client).dropped += 1;
        self.open.dropped.push(client);
    }

    pub(crate) fn closed(&mut self, cohort: &[Entry]) {
        self.abandoned += u64::from(cohort.is_empty());
        self.open = Open::default();
    }

    pub(crate) fn add(&mut self, shard: ShardId, record: &Record) {
        if let Outcome::Applied { staleness, .. } = record.outcome {
            *self.staleness.entry(staleness).or_default() += 1;
        }
        if shard != ShardId(0) {
            return;
        }
        self.pushes += 1;
        if !matches!(record.outcome, Outcome::Applied { .. }) {
            self.wasted += record.work;
        }
        match record.outcome {
            Outcome::Applied { .. } if self.by_client => self.client(record.client).aggregated += 1,
            Outcome::Late { .. } if self.by_client => self.client(record.client).late += 1,
            // Of what is void it may not be known whose it was.
            _ => {}
        }
        match record.outcome {
            Outcome::Applied { version, .. } => {
                self.steps = version.0;
                self.examples = record.examples_applied.0;
                self.first_us.get_or_insert(record.at_us);
                self.last_us = record.at_us;
            }
            Outcome::Late { .. } => self.late += 1,
            Outcome::Void => self.void += 1,
        }
    }

    pub(crate) fn partial(&mut self, pushes: u64) {
        self.partial += pushes;
    }

    pub(crate) fn summary(
        &self,
        plan: &Plan,
        run: RunId,
        stop: &Stop,
        status: &Status,
        workers: &[(WorkerId, WorkerReport)],
    ) -> Summary {
        let seconds = self.first_us.map_or(0.0, |first| self.last_us.saturating_sub(first) as f64 / 1e6);
        // What is applied first marks the start of the time that is measured, and is not in it.
        let rate = |count: u64, first: u64| match seconds > 0.0 {
            true => count.saturating_sub(first) as f64 / seconds,
            false => 0.0,
        };
        let has_rounds = matches!(plan.mode, Mode::Fedavg(_));
        let first_examples = self.examples.checked_div(self.steps).unwrap_or(0);
        let first_pushes = self.pushes.checked_div(self.steps).unwrap_or(0);
        let idle =
            |r: &WorkerReport| (r.active_us > 0).then(|| 1.0 - r.compute_us as f64 / r.active_us as f64);
        let (completed, reason) = match stop {
            Stop::Completed => (true, "completed".to_owned()),
            Stop::Failed { reason } => (false, reason.clone()),
        };
        Summary {
            name: plan.name.clone(),
            run: run.to_string(),
            mode: self.mode.clone(),
            model: plan.model.name.clone(),
            completed,
            reason,
            seed: plan.seed,
            servers: plan.cluster.servers,
            shards: plan.cluster.shards(),
            workers: plan.cluster.workers,
            batch: plan.mode.local().map_or(Some(plan.training.batch), |local| local.batch),
            pushes: self.pushes,
            pushes_late: self.late,
            pushes_void: self.void,
            pushes_partial: self.partial,
            steps: self.steps,
            examples: self.examples,
            examples_wasted: self.wasted,
            rounds: status.rounds,
            rounds_abandoned: if has_rounds { self.abandoned } else { 0 },
            steps_abandoned: if has_rounds { 0 } else { self.abandoned },
            terms: status.term.0,
            lineage: status.checkpoints.lineage.0,
            clients: plan.clients.count,
            client_tallies: self.clients.values().copied().collect(),
            started_us: self.started_us,
            first_step_us: self.first_us,
            last_step_us: self.last_us,
            training_s: seconds,
            pushes_per_s: rate(self.pushes, first_pushes),
            steps_per_s: rate(self.steps, 1),
            examples_per_s: rate(self.examples, first_examples),
            train_loss: status.loss,
            payload_bytes_up: status.meter.payload_up,
            payload_bytes_down: status.meter.payload_down,
            wire_bytes_up: status.meter.wire_up,
            wire_bytes_down: status.meter.wire_down,
            staleness_mean: self.staleness_mean(),
            staleness_p95: self.staleness_p95(),
            idle_share: workers.iter().map(|(_, r)| idle(r)).collect(),
            time_shares: TimeShares::of(workers, plan.cluster.shards(), status.meter.shards_us),
        }
    }

    fn staleness_mean(&self) -> Option<f64> {
        let count: u64 = self.staleness.values().sum();
        let sum: f64 = self.staleness.iter().map(|(&s, &n)| s as f64 * n as f64).sum();
        (count > 0).then(|| sum / count as f64)
    }

    /// The smallest staleness that at least 95 % of the pushes do not exceed.
    fn staleness_p95(&self) -> Option<u64> {
        let count: u64 = self.staleness.values().sum();
        let mut below = 0;
        self.staleness.iter().find_map(|(&staleness, &n)| {
            below += n;
            (below as f64 >= 0.95 * count as f64).then_some(staleness)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_95th_percentile_covers_95_percent() {
        let mut tally = Tally::default();
        assert_eq!((tally.staleness_mean(), tally.staleness_p95()), (None, None));
        tally.staleness = BTreeMap::from([(0, 94), (3, 1), (7, 5)]);
        assert_eq!(tally.staleness_p95(), Some(3));
        assert_eq!(tally.staleness_mean(), Some(0.38));
    }
}
