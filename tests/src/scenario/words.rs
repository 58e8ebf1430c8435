//! Puts into words what the cores answer.

use windlass_common::ids::{ClientId, Sequence, WorkerId};
use windlass_common::wire::{Entry, Member, Order, Outcome, Resume, Seats, Stop, Task, Wait};
use windlass_ps_core::coordinator::Placed;

pub(super) fn name(worker: WorkerId) -> String {
    format!("w{}", worker.0)
}

pub(super) fn names(workers: &[WorkerId]) -> String {
    workers.iter().map(|w| name(*w)).collect::<Vec<_>>().join(",")
}

/// `w0` pushes for itself, and `c3@w0` is client 3 that it trains.
pub(super) fn client(client: ClientId, worker: WorkerId) -> String {
    if client.0 == worker.0 { name(worker) } else { format!("c{}@{}", client.0, name(worker)) }
}

pub(super) fn clients(clients: &[ClientId]) -> String {
    clients.iter().map(|c| format!("c{}", c.0)).collect::<Vec<_>>().join(",")
}

pub(super) fn cohort(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "nobody".into();
    }
    entries.iter().map(|e| client(e.client, e.worker)).collect::<Vec<_>>().join(",")
}

pub(super) fn tasks(tasks: &[Task]) -> String {
    tasks.iter().map(|t| format!("c{}@{}", t.client.0, name(t.worker))).collect::<Vec<_>>().join(",")
}

pub(super) fn next(resume: Resume) -> String {
    format!("next push={} step={}", resume.sequence, resume.step)
}

/// `w0:3` is the push 3 of worker 0, before which a checkpoint ends.
pub(super) fn before(pushes: &[(WorkerId, Sequence)]) -> String {
    if pushes.is_empty() {
        return "nothing".into();
    }
    pushes.iter().map(|(w, s)| format!("{}:{s}", name(*w))).collect::<Vec<_>>().join(" ")
}

pub(super) fn outcome(who: &str, sequence: Sequence, outcome: Outcome) -> String {
    match outcome {
        Outcome::Applied { version, staleness } => {
            format!("applied {who} push={sequence} version={version} staleness={staleness}")
        }
        Outcome::Late { step } => format!("late {who} push={sequence} (step {step} is open)"),
        Outcome::Void => format!("void {who} push={sequence}"),
    }
}

pub(super) fn wait(wait: &Wait) -> String {
    match wait {
        Wait::Start => "not everyone has joined".into(),
        Wait::Pushes { step, missing } => format!("step {step} lacks the push of {}", names(missing)),
        Wait::Close { step } => format!("step {step} is complete here and not closed yet"),
        Wait::Cohort { step } => format!("none of its clients is asked in round {step}"),
        Wait::Slowest { worker, clock, needed } => {
            format!("slowest is {} at clock {clock}, needed {needed}", name(*worker))
        }
    }
}

pub(super) fn order(order: &Order) -> String {
    match order {
        Order::Membership { term, members, departed } => {
            let member = |m: &Member| format!(" {}@{}", name(m.worker), m.incarnation);
            let gone = |m: &Member| format!(" -{}@{}", name(m.worker), m.incarnation);
            let (members, gone) = (
                members.iter().map(member).collect::<String>(),
                departed.iter().map(gone).collect::<String>(),
            );
            format!("members term={term}{members}{gone}")
        }
        Order::Settle { worker, incarnation, next: at, void_missing } => {
            let missing = if *void_missing { ", what is missing is void" } else { "" };
            format!("settle {}@{incarnation} {}{missing}", name(*worker), next(*at))
        }
        Order::Start => "start".into(),
        Order::Open { step, tasks: asked } => format!("open step={step} for {}", tasks(asked)),
        Order::Close { step, cohort: entries } => format!("close step={step} with {}", cohort(entries)),
        Order::Conclude => "conclude".into(),
        Order::Finalize => "finalize".into(),
        Order::Logged { records } => format!("logged records={records}"),
        Order::Pause { checkpoint } => format!("pause checkpoint={checkpoint}"),
        Order::Cut { checkpoint, before: pushes } => {
            format!("cut checkpoint={checkpoint} before {}", before(pushes))
        }
        Order::GoOn { checkpoint } => format!("go on checkpoint={checkpoint}"),
    }
}

/// Which servers have each shard, and with the copy of which lineage its primary goes on.
pub(super) fn placed(placed: &Placed) -> String {
    let shard = |(number, seats): (usize, &Seats)| {
        let standby = seats.standby.map_or("none".into(), |server| format!("s{}", server.0));
        let from = placed.from[number].map_or(String::new(), |lineage| format!(" from lineage {lineage}"));
        format!(" shard {number} on s{} standby {standby}{from}", seats.primary.0)
    };
    let shards: Vec<String> = placed.seats.iter().enumerate().map(shard).collect();
    format!("place lineage={}{}", placed.lineage, shards.join(","))
}

pub(super) fn stop(stop: &Stop) -> String {
    match stop {
        Stop::Completed => "completed".into(),
        Stop::Failed { reason } => format!("failed: {reason}"),
    }
}

pub(super) fn floats(values: &[f32]) -> String {
    values.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
}
