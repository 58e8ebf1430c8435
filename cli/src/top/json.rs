//! Writes how a run stands as JSON, in a format that other tools may rely on.

use serde::Serialize;
use windlass_common::exit::Exit;
use windlass_common::ids::{
    Examples, Incarnation, Lineage, ServerId, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::plan::Plan;
use windlass_common::wire::{
    Blocked, CheckpointStatus, Checkpointed, Meter, Phase, SeatStatus, ShardStatus, Status, Wait,
    WorkerState, WorkerStatus,
};

use crate::failure::{OrExit, Outcome};

/// Raised when a field goes or means something else; new fields may come without.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct View<'a> {
    format: u32,
    run: &'a str,
    mode: &'static str,
    phase: &'static str,
    term: Term,
    examples: Examples,
    examples_target: Examples,
    rounds: u64,
    rounds_target: u64,
    steps: u64,
    pushes: u64,
    loss: Option<f32>,
    first_applied_us: Option<u64>,
    meter: MeterView,
    workers: Vec<WorkerView>,
    shards: Vec<ShardView>,
    blocked: Vec<BlockedView<'a>>,
    seats: Vec<SeatView>,
    checkpoints: CheckpointsView<'a>,
    waiting: &'a str,
    advice: &'a [String],
}

#[derive(Serialize)]
struct CheckpointsView<'a> {
    lineage: Lineage,
    is_kept: bool,
    newest: Option<NewestView>,
    begun: u64,
    failed: u64,
    failure: &'a str,
}

#[derive(Serialize)]
struct NewestView {
    number: u64,
    at_us: u64,
    examples: Examples,
    rounds: u64,
}

#[derive(Serialize)]
struct MeterView {
    payload_up: u64,
    payload_down: u64,
    wire_up: u64,
    wire_down: u64,
}

#[derive(Serialize)]
struct WorkerView {
    worker: WorkerId,
    state: &'static str,
    incarnation: Incarnation,
    member: bool,
    clock: Step,
    step: Step,
    silent_us: Option<u64>,
    staleness: Option<f32>,
    bytes_up: u64,
    bytes_down: u64,
    clients: u32,
}

#[derive(Serialize)]
struct ShardView {
    shard: ShardId,
    version: Version,
    open: Step,
    queue: u32,
    held: u32,
    parked: u32,
    bytes: u64,
    silent_us: u64,
}

#[derive(Serialize)]
struct BlockedView<'a> {
    shard: ShardId,
    worker: WorkerId,
    step: Step,
    wait: WaitView<'a>,
    since_us: u64,
}

#[derive(Serialize)]
struct SeatView {
    shard: ShardId,
    primary: ServerId,
    standby: Option<ServerId>,
    is_full: bool,
}

#[derive(Serialize)]
#[serde(tag = "for", rename_all = "lowercase")]
enum WaitView<'a> {
    Start,
    Pushes { step: Step, missing: &'a [WorkerId] },
    Close { step: Step },
    Cohort { step: Step },
    Slowest { worker: WorkerId, clock: Step, needed: Step },
}

/// One object in one line, without a line break.
///
/// # Errors
/// None that is known: every status can be written.
pub(super) fn line(status: &Status, plan: &Plan) -> Outcome<String> {
    serde_json::to_string(&view(status, plan))
        .or_fail(Exit::System, "the status could not be written as JSON")
}

fn view<'a>(status: &'a Status, plan: &'a Plan) -> View<'a> {
    let Meter { payload_up, payload_down, wire_up, wire_down, shards_us: _ } = status.meter;
    View {
        format: FORMAT,
        run: &plan.name,
        mode: plan.mode.name(),
        phase: phase(status.phase),
        term: status.term,
        examples: status.examples,
        examples_target: status.examples_target,
        rounds: status.rounds,
        rounds_target: status.rounds_target,
        steps: status.steps,
        pushes: status.pushes,
        loss: status.loss,
        first_applied_us: status.first_applied_us,
        meter: MeterView { payload_up, payload_down, wire_up, wire_down },
        workers: status.workers.iter().map(worker).collect(),
        shards: status.shards.iter().map(shard).collect(),
        blocked: status.blocked.iter().map(blocked).collect(),
        seats: status.seats.iter().map(seat).collect(),
        checkpoints: checkpoints(&status.checkpoints),
        waiting: &status.waiting,
        advice: &status.advice,
    }
}

fn seat(s: &SeatStatus) -> SeatView {
    let &SeatStatus { shard, primary, standby, is_full } = s;
    SeatView { shard, primary, standby, is_full }
}

fn checkpoints(c: &CheckpointStatus) -> CheckpointsView<'_> {
    let CheckpointStatus { lineage, is_kept, newest, begun, failed, failure } = c;
    let newest = newest.map(|Checkpointed { number, at_us, examples, rounds }| NewestView {
        number,
        at_us,
        examples,
        rounds,
    });
    CheckpointsView { lineage: *lineage, is_kept: *is_kept, newest, begun: *begun, failed: *failed, failure }
}

fn worker(w: &WorkerStatus) -> WorkerView {
    WorkerView {
        worker: w.worker,
        state: state(w.state),
        incarnation: w.incarnation,
        member: w.member,
        clock: w.clock,
        step: w.step,
        silent_us: w.silent_us,
        staleness: w.staleness,
        bytes_up: w.bytes_up,
        bytes_down: w.bytes_down,
        clients: w.clients,
    }
}

fn shard(s: &ShardStatus) -> ShardView {
    let &ShardStatus { shard, version, open, queue, held, parked, bytes, silent_us } = s;
    ShardView { shard, version, open, queue, held, parked, bytes, silent_us }
}

fn blocked(b: &Blocked) -> BlockedView<'_> {
    let wait = match b.wait {
        Wait::Start => WaitView::Start,
        Wait::Pushes { step, ref missing } => WaitView::Pushes { step, missing },
        Wait::Close { step } => WaitView::Close { step },
        Wait::Cohort { step } => WaitView::Cohort { step },
        Wait::Slowest { worker, clock, needed } => WaitView::Slowest { worker, clock, needed },
    };
    BlockedView { shard: b.shard, worker: b.worker, step: b.step, wait, since_us: b.since_us }
}

/// A phase in a word.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Gathering => "gathering",
        Phase::Training => "training",
        Phase::Finishing => "finishing",
        Phase::Done => "done",
        Phase::Failed => "failed",
    }
}

/// A worker's state in a word.
pub(super) fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Expected => "expected",
        WorkerState::Active => "active",
        WorkerState::Silent => "silent",
        WorkerState::Dead => "dead",
        WorkerState::Left => "left",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{blocked, plan, shard, status, worker};
    use super::*;

    #[test]
    fn every_field_stands_where_the_format_says() {
        let mut status = status(2);
        status.workers[1] = WorkerStatus { silent_us: None, staleness: None, ..worker(1, WorkerState::Dead) };
        status.shards = vec![shard(0)];
        status.blocked = vec![blocked(0, &[1], 4_000_000)];
        status.blocked.extend([
            Blocked { wait: Wait::Start, ..blocked(0, &[], 1) },
            Blocked { wait: Wait::Close { step: Step(4) }, ..blocked(0, &[], 1) },
            Blocked { wait: Wait::Cohort { step: Step(4) }, ..blocked(0, &[], 1) },
            Blocked {
                shard: ShardId(1),
                wait: Wait::Slowest { worker: WorkerId(1), clock: Step(2), needed: Step(3) },
                ..blocked(0, &[], 1)
            },
        ]);
        status.loss = Some(f32::NAN);
        status.advice = vec!["Worker 1 is dead.".into()];
        let (primary, standby) = (ServerId(0), Some(ServerId(1)));
        status.seats = vec![SeatStatus { shard: ShardId(1), primary, standby, is_full: true }];
        status.checkpoints = CheckpointStatus {
            lineage: Lineage(1),
            is_kept: false,
            newest: Some(crate::asked::tests::kept(3, 200)),
            begun: 4,
            failed: 1,
            failure: "the disk is full".into(),
        };
        let line = line(&status, &plan(2)).unwrap();
        assert!(!line.contains('\n'));
        let found: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "format": 1, "run": "run", "mode": "sync", "phase": "training", "term": 1,
            "examples": 250, "examples_target": 2000, "rounds": 0, "rounds_target": 0, "steps": 2, "pushes": 2,
            "loss": null, "first_applied_us": null,
            "meter": {"payload_up": 0, "payload_down": 0, "wire_up": 750, "wire_down": 250},
            "workers": [
                {"worker": 0, "state": "active", "incarnation": 1, "member": true, "clock": 4, "step": 5,
                 "silent_us": 400_000, "staleness": 0.5, "bytes_up": 2_500_000, "bytes_down": 1_000, "clients": 1},
                {"worker": 1, "state": "dead", "incarnation": 1, "member": true, "clock": 4, "step": 5,
                 "silent_us": null, "staleness": null, "bytes_up": 2_500_000, "bytes_down": 1_000, "clients": 1},
            ],
            "shards": [{"shard": 0, "version": 4, "open": 4, "queue": 0, "held": 1, "parked": 2, "bytes": 62_800,
                        "silent_us": 300_000}],
            "blocked": [
                {"shard": 0, "worker": 0, "step": 5, "wait": {"for": "pushes", "step": 4, "missing": [1]},
                 "since_us": 4_000_000},
                {"shard": 0, "worker": 0, "step": 5, "wait": {"for": "start"}, "since_us": 1},
                {"shard": 0, "worker": 0, "step": 5, "wait": {"for": "close", "step": 4}, "since_us": 1},
                {"shard": 0, "worker": 0, "step": 5, "wait": {"for": "cohort", "step": 4}, "since_us": 1},
                {"shard": 1, "worker": 0, "step": 5,
                 "wait": {"for": "slowest", "worker": 1, "clock": 2, "needed": 3}, "since_us": 1},
            ],
            "seats": [{"shard": 1, "primary": 0, "standby": 1, "is_full": true}],
            "checkpoints": {"lineage": 1, "is_kept": false, "newest": {"number": 3, "at_us": 5, "examples": 200, "rounds": 0}, "begun": 4,
                            "failed": 1, "failure": "the disk is full"},
            "waiting": "", "advice": ["Worker 1 is dead."],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn phases_and_states_are_words_in_lower_case() {
        let phases = [Phase::Gathering, Phase::Training, Phase::Finishing, Phase::Done, Phase::Failed];
        assert_eq!(phases.map(phase), ["gathering", "training", "finishing", "done", "failed"]);
        let states = [
            WorkerState::Expected,
            WorkerState::Active,
            WorkerState::Silent,
            WorkerState::Dead,
            WorkerState::Left,
        ];
        assert_eq!(states.map(state), ["expected", "active", "silent", "dead", "left"]);
    }
}
