//! Says in sentences what a run waits for, what is wrong, and what to do.

use windlass_common::ids::{ServerId, ShardId, WorkerId};
use windlass_common::plan::{Membership, Plan};
use windlass_common::wire::{Phase, Status, WorkerState, WorkerStatus};

use super::members::Worker;
use super::{Coordinator, standing};

/// A shard that has not said how it stands for so long is mentioned. Microseconds.
const SHARD_SILENT_US: u64 = 3_000_000;
/// A worker that others have waited for so long is mentioned. Microseconds.
const HOLDING_US: u64 = 3_000_000;
/// A queue of so many requests is mentioned.
const QUEUE_LONG: u32 = 128;

/// What the run waits for; empty when it moves.
pub(super) fn waiting(of: &Coordinator) -> String {
    match (of.phase, &of.failure) {
        (_, Some(reason)) => reason.clone(),
        (Phase::Gathering, _) => match missing(of) {
            missing if missing.is_empty() => "the shards are being told who takes part".into(),
            missing => format!("waiting for {missing} to join"),
        },
        (Phase::Finishing, _) => {
            let shards = (0..of.plan.cluster.shards()).map(ShardId);
            let missing = shards.filter(|shard| !of.results.contains_key(shard));
            let names: Vec<String> = missing.map(|shard| shard.to_string()).collect();
            match names.is_empty() {
                true => "the result is being written".into(),
                false => format!("waiting for the result of {}", names.join(", ")),
            }
        }
        (Phase::Done | Phase::Failed, _) => String::new(),
        (Phase::Training, _) => match of.plan.cluster.membership {
            Membership::Elastic { .. } if of.workers.values().any(|w| w.member) => String::new(),
            Membership::Elastic { .. } => "no worker takes part; waiting for one to join".into(),
            Membership::Fixed => {
                let is_lost = |w: &Worker| matches!(w.state, WorkerState::Silent | WorkerState::Dead);
                let lost = of.workers.iter().filter(|(_, w)| is_lost(w));
                let names: Vec<String> = lost.map(|(id, w)| format!("{id} ({})", w.why_lost)).collect();
                match names.is_empty() {
                    true => String::new(),
                    false => format!("waiting for {} to come back", names.join(", ")),
                }
            }
        },
    }
}

/// The planned servers and workers that are not there, in words. Where workers come and go, how many are missing.
pub(super) fn missing(of: &Coordinator) -> String {
    let servers = (0..of.plan.cluster.servers).map(ServerId).filter(|s| !of.servers.contains_key(s));
    let mut names: Vec<String> = servers.map(|s| s.to_string()).collect();
    let absent = of.workers.iter().filter(|(_, w)| !w.is_active()).map(|(id, _)| *id);
    match of.plan.cluster.membership {
        Membership::Fixed => names.extend(absent.map(|w| w.to_string())),
        Membership::Elastic { .. } => {
            let present = of.workers.values().filter(|w| w.is_active()).count();
            match (of.plan.cluster.workers as usize).saturating_sub(present) {
                0 => {}
                1 => names.push("1 more worker".into()),
                more => names.push(format!("{more} more workers")),
            }
        }
    }
    names.join(", ")
}

/// What is wrong and what to do, one sentence or two for each matter.
pub(super) fn advice(plan: &Plan, status: &Status) -> Vec<String> {
    let mut advice = Vec::new();
    if status.phase == Phase::Gathering && !status.waiting.is_empty() {
        let deadline = plan.cluster.join_deadline_s;
        advice.push(format!(
            "The training has not begun: {}. Start what is missing; the run fails {deadline} s after its start.",
            status.waiting
        ));
    }
    if status.phase == Phase::Training {
        advice.extend(status.workers.iter().filter_map(|w| of_worker(plan, status, w)));
        advice.extend(of_members(plan, status));
    }
    for shard in status.shards.iter().filter(|_| status.phase == Phase::Training) {
        let (id, server) = (shard.shard, plan.cluster.server_of(shard.shard));
        if shard.silent_us >= SHARD_SILENT_US {
            advice.push(format!(
                "{} has not said how it stands for {}: look whether {server} is stopped or its machine overloaded.",
                capital(&id.to_string()),
                seconds(shard.silent_us)
            ));
        }
        if shard.queue >= QUEUE_LONG {
            advice.push(format!(
                "{} requests wait for {id}: the servers are slower than the workers; take more shards or servers.",
                shard.queue
            ));
        }
    }
    advice
}

fn of_worker(plan: &Plan, status: &Status, worker: &WorkerStatus) -> Option<String> {
    let id = worker.worker;
    let deadline = plan.cluster.rejoin_deadline_s;
    let name = capital(&id.to_string());
    let is_fixed = plan.cluster.membership == Membership::Fixed;
    match worker.state {
        WorkerState::Dead if is_fixed => Some(format!(
            "{name} is dead: its process has ended or its connection is closed. Its place is kept; start it again within \
             {deadline} s of its end."
        )),
        WorkerState::Silent if is_fixed => Some(format!(
            "{name} is silent{}: its process is stopped or cannot be reached. Wake it, or end it and start it again, within \
             {deadline} s.",
            worker.silent_us.map_or_else(String::new, |us| format!(" for {}", seconds(us)))
        )),
        WorkerState::Dead => Some(format!(
            "{name} is dead and takes no part any more; the training goes on without it. Start it again to have it back."
        )),
        WorkerState::Silent => Some(format!(
            "{name} was silent and takes no part any more; the training goes on without it. If it wakes up it joins again."
        )),
        WorkerState::Active => {
            let waiting = |b: &&windlass_common::wire::Blocked| {
                b.since_us >= HOLDING_US && standing::waited_for(&b.wait).contains(&id)
            };
            let blocked: Vec<_> = status.blocked.iter().filter(waiting).collect();
            let longest = blocked.iter().map(|b| b.since_us).max()?;
            let mut waiters: Vec<WorkerId> = blocked.iter().map(|b| b.worker).collect();
            waiters.sort_unstable();
            waiters.dedup();
            let names: Vec<String> = waiters.iter().map(ToString::to_string).collect();
            let verb = if names.len() == 1 { "waits" } else { "wait" };
            Some(format!(
                "{} {verb} for {id} since {}; it lives and is at step {}. It computes slowly or hangs: look at its log. \
                 It is given up when it has made no step for {} s.",
                capital(&names.join(", ")),
                seconds(longest),
                worker.step,
                plan.cluster.stall_deadline_s
            ))
        }
        WorkerState::Expected | WorkerState::Left => None,
    }
}

/// What is wrong with how many take part.
fn of_members(plan: &Plan, status: &Status) -> Option<String> {
    let is_elastic = plan.cluster.membership != Membership::Fixed;
    let deserted = is_elastic && status.workers.iter().all(|w| !w.member);
    let ended = status.workers.iter().any(|w| w.state == WorkerState::Left);
    (deserted && !ended).then(|| {
        let deadline = plan.cluster.rejoin_deadline_s;
        format!("No worker takes part: start one, or the run fails {deadline} s after the last one went.")
    })
}

fn seconds(us: u64) -> String {
    format!("{} s", us / 1_000_000)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
