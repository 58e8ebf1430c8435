//! Says in sentences what a run waits for, what is wrong, and what to do.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use windlass_common::ids::{ClientId, Sequence, ServerId, ShardId, WorkerId};
use windlass_common::plan::{Membership, Mode};
use windlass_common::wire::{CheckpointStatus, Entry, Phase, ShardStatus, Status, WorkerState, WorkerStatus};

use super::members::Worker;
use super::rounds::Rounds;
use super::{Coordinator, standing};

/// A training that has not begun for so long is mentioned. Seconds.
const GATHERING_S: u64 = 5;
/// A shard that has not said how it stands for so long is mentioned. Microseconds.
const SHARD_SILENT_US: u64 = 3_000_000;
/// A worker that others have waited for so long is mentioned, if that is unusual for the run. Microseconds.
const HOLDING_US: u64 = 3_000_000;
/// A wait is unusual when it takes so many times what a step takes on average.
const HOLDING_STEPS: u64 = 3;
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
                let needed = needed(of);
                let name = |id: &WorkerId| match of.workers.get(id) {
                    Some(worker) => format!("{id} ({})", worker.why_lost),
                    None => id.to_string(),
                };
                let names: Vec<String> = needed.iter().map(name).collect();
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
    // Where copies are enough, the run goes on without the others.
    let is_away = |s: &ServerId| !of.is_placed() && !of.servers.contains_key(s);
    let servers = (0..of.plan.cluster.servers).map(ServerId).filter(is_away);
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

/// The lost workers that have to come back for the run to go on. Where rounds go on without them these are those that the
/// open round waits for, once it waits for nobody else and lacks its quorum.
fn needed(of: &Coordinator) -> Vec<WorkerId> {
    let is_lost = |w: &Worker| matches!(w.state, WorkerState::Silent | WorkerState::Dead);
    let lost: Vec<WorkerId> = of.workers.iter().filter(|(_, w)| is_lost(w)).map(|(&id, _)| id).collect();
    let (Some(rounds), Mode::Fedavg(fedavg)) = (&of.rounds, &of.plan.mode) else { return lost };
    if !of.plan.goes_on_without_workers() || !of.workers.values().any(Worker::is_active) {
        return lost;
    }
    // With a quorum a round is over when all who are missing are lost. So it is asked as if it had one, by pushes of nobody:
    // it waits for a lost worker if it were over, and were not if that one was there.
    let mut complete = rounds.of_their_own(of.closing.complete());
    let nobody = Entry { client: ClientId(u32::MAX), worker: WorkerId(u32::MAX), sequence: Sequence(0) };
    complete.resize(complete.len().max(fedavg.quorum as usize), nobody);
    let is_over_without =
        |lost: &dyn Fn(WorkerId) -> bool| rounds.verdict(of.now, complete.clone(), lost).is_some();
    match is_over_without(&|id| lost.contains(&id)) {
        true => {
            lost.iter().copied().filter(|&w| !is_over_without(&|id| id != w && lost.contains(&id))).collect()
        }
        false => Vec::new(),
    }
}

/// What is wrong and what to do, one sentence or more for each matter.
pub(super) fn advice(of: &Coordinator, status: &Status) -> Vec<String> {
    match status.phase {
        Phase::Gathering => of_gathering(of, status).into_iter().collect(),
        Phase::Training => {
            let workers = status.workers.iter().filter_map(|w| of_worker(of, status, w));
            workers
                .chain(of_members(of))
                .chain(of_silent_shards(of, status))
                .chain(of_queues(status))
                .chain(of_checkpoints(status))
                .chain(of_standbys(of, status))
                .collect()
        }
        Phase::Finishing | Phase::Done | Phase::Failed => Vec::new(),
    }
}

fn of_gathering(of: &Coordinator, status: &Status) -> Option<String> {
    let waited = of.now.seconds_since(of.began);
    if waited < GATHERING_S {
        return None;
    }
    let left = of.plan.cluster.join_deadline_s.saturating_sub(waited);
    Some(match missing(of).is_empty() {
        true => format!(
            "The training has not begun after {waited} s: {}. Look whether a server is stopped or overloaded; the run \
             fails in {left} s.",
            status.waiting
        ),
        false => format!(
            "The training has not begun after {waited} s: {}. Start what is missing, or look at its log, within {left} s, \
             or the run fails.",
            status.waiting
        ),
    })
}

fn of_checkpoints(status: &Status) -> Option<String> {
    let CheckpointStatus { newest, failure, .. } = &status.checkpoints;
    let kept = match newest {
        Some(newest) => format!("checkpoint {} is the newest", newest.number),
        None => "there is none so far".to_owned(),
    };
    let what = "Look at the place where checkpoints are kept; the training goes on meanwhile.";
    (!failure.is_empty()).then(|| format!("{}; {kept}. {what}", capital(failure)))
}

/// Shards that are on one server alone, though they should be on two.
fn of_standbys(of: &Coordinator, status: &Status) -> Option<String> {
    let bare = status.seats.iter().filter(|seat| seat.standby.is_none());
    let bare: Vec<String> = bare.map(|seat| seat.shard.to_string()).collect();
    let away: Vec<String> = (0..of.plan.cluster.servers)
        .map(ServerId)
        .filter(|server| !of.servers.contains_key(server))
        .map(|server| server.to_string())
        .collect();
    let what = match away.is_empty() {
        true => "All other servers have been drained.".to_owned(),
        false => format!("Start {} again.", away.join(", ")),
    };
    (!bare.is_empty()).then(|| {
        format!(
            "{} has no standby: its server's end would cost what was done since the newest \
         checkpoint. {what}",
            capital(&bare.join(", "))
        )
    })
}

fn of_worker(of: &Coordinator, status: &Status, worker: &WorkerStatus) -> Option<String> {
    let id = worker.worker;
    let known = of.workers.get(&id)?;
    let (name, why) = (capital(&id.to_string()), &known.why_lost);
    let is_fixed = of.plan.cluster.membership == Membership::Fixed;
    let waiters = match waiters(status, id) {
        waiters if waiters.is_empty() => String::new(),
        waiters => format!(" {waiters} for it."),
    };
    match worker.state {
        WorkerState::Dead if is_fixed => {
            Some(format!("{name} is dead ({why}).{waiters} {}", back(of, id, "Start it again")))
        }
        WorkerState::Silent if is_fixed => {
            let since = worker.silent_us.map_or_else(String::new, |us| format!(" for {}", seconds(us)));
            let what = "Wake it (kill -CONT), or end it and start it again";
            Some(format!(
                "{name} has been silent{since}: its process is stopped or hangs, or it cannot be reached.{waiters} {}",
                back(of, id, what)
            ))
        }
        WorkerState::Dead if of.workers.values().any(|w| w.member) => Some(format!(
            "{name} is dead ({why}) and takes no part any more; the training goes on without it. To have it back, start it \
             again."
        )),
        WorkerState::Silent if of.workers.values().any(|w| w.member) => Some(format!(
            "{name} takes no part any more ({why}); the training goes on without it. If it wakes up it joins again; if it \
             hangs, end it and start it again."
        )),
        WorkerState::Dead => Some(format!("{name} is dead ({why}).")),
        WorkerState::Silent => Some(format!("{name} takes no part any more ({why}).")),
        WorkerState::Active => of_holding(of, status, worker),
        WorkerState::Expected | WorkerState::Left => None,
    }
}

/// Until when a lost worker may come back to its place, and what happens if it does not.
fn back(of: &Coordinator, id: WorkerId, how: &str) -> String {
    let gone = of.workers.get(&id).map_or(0, |w| of.now.seconds_since(w.lost_at));
    let left = of.plan.cluster.rejoin_deadline_s.saturating_sub(gone);
    if !of.plan.goes_on_without_workers() || !of.workers.values().any(Worker::is_active) {
        return format!(
            "{how} with the same identity within {left} s, or the run fails; windlass train restarts by itself what dies."
        );
    }
    let deadline = of.rounds.as_ref().and_then(Rounds::deadline);
    let left = deadline.map_or(left, |deadline| left.min(deadline.seconds_since(of.now)));
    match needed(of).contains(&id) {
        true => format!(
            "The open round has no quorum without its clients, and is abandoned in {left} s. {how} with the same identity."
        ),
        false => {
            format!("The rounds go on without its clients. {how} with the same identity to have them back.")
        }
    }
}

/// What is to be said of a worker that lives, if others wait for it unusually long.
fn of_holding(of: &Coordinator, status: &Status, worker: &WorkerStatus) -> Option<String> {
    let id = worker.worker;
    let blocked = status.blocked.iter().filter(|b| standing::waited_for(&b.wait).contains(&id));
    let longest = blocked.max_by_key(|b| b.since_us)?;
    let stall_deadline_s = of.plan.cluster.stall_deadline_s;
    let elapsed_us = of.now.0.saturating_sub(of.began.0);
    let step_us = elapsed_us.saturating_sub(longest.since_us) / longest.step.0.max(1);
    let usual_us = step_us.saturating_mul(HOLDING_STEPS).min(stall_deadline_s.saturating_mul(500_000));
    if longest.since_us < HOLDING_US.max(usual_us) {
        return None;
    }
    Some(format!(
        "{} for {id} since {}. It lives and is at step {}, so it computes slowly or hangs: look at its log. It is given up \
         when it has made no step for {stall_deadline_s} s.",
        waiters(status, id),
        seconds(longest.since_us),
        worker.step,
    ))
}

/// Who waits for this worker, with the verb; empty if nobody does.
fn waiters(status: &Status, id: WorkerId) -> String {
    let blocked = status.blocked.iter().filter(|b| standing::waited_for(&b.wait).contains(&id));
    let mut waiters: Vec<WorkerId> = blocked.map(|b| b.worker).collect();
    waiters.sort_unstable();
    waiters.dedup();
    let names: Vec<String> = waiters.iter().map(ToString::to_string).collect();
    match names.len() {
        0 => String::new(),
        1 => format!("{} waits", capital(&names[0])),
        _ => format!("{} wait", capital(&listed(&names))),
    }
}

/// What is wrong with how many take part.
fn of_members(of: &Coordinator) -> Option<String> {
    let is_elastic = of.plan.cluster.membership != Membership::Fixed;
    let has_finished = of.workers.values().any(|w| w.state == WorkerState::Left && w.report.finished);
    let deserted = is_elastic && !has_finished && of.workers.values().all(|w| !w.member);
    deserted.then(|| {
        let last = of.workers.values().map(|w| w.lost_at).max().unwrap_or(of.now);
        let left = of.plan.cluster.rejoin_deadline_s.saturating_sub(of.now.seconds_since(last));
        format!("No worker takes part, and nothing is trained. Start one within {left} s, or the run fails.")
    })
}

fn of_silent_shards(of: &Coordinator, status: &Status) -> Vec<String> {
    let mut silent: BTreeMap<ServerId, Vec<&ShardStatus>> = BTreeMap::new();
    for shard in status.shards.iter().filter(|s| s.silent_us >= SHARD_SILENT_US) {
        silent.entry(of.plan.cluster.server_of(shard.shard)).or_default().push(shard);
    }
    let sentence = |(server, shards): (ServerId, Vec<&ShardStatus>)| {
        let names: Vec<String> = shards.iter().map(|s| s.shard.to_string()).collect();
        let verb = if names.len() == 1 { "has" } else { "have" };
        let since = shards.iter().map(|s| s.silent_us).min().unwrap_or_default();
        let at = of.servers.get(&server).map_or_else(String::new, |s| format!(" at {}", s.address));
        format!(
            "{} {verb} not been heard of for {}: look whether {server}{at} is stopped, overloaded or cut off. The run cannot \
             go on without it.",
            capital(&listed(&names)),
            seconds(since)
        )
    };
    silent.into_iter().map(sentence).collect()
}

fn of_queues(status: &Status) -> impl Iterator<Item = String> {
    status.shards.iter().filter(|s| s.queue >= QUEUE_LONG).map(|s| {
        format!(
            "{} requests wait for {}: its server is slower than the workers. If it stays so, take more servers or shards, or \
             fewer workers, in the next run.",
            s.queue, s.shard
        )
    })
}

fn seconds(us: u64) -> String {
    format!("{} s", us / 1_000_000)
}

/// Names as people list them.
fn listed(names: &[String]) -> String {
    match names {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
