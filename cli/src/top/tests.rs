//! Lays out made-up statuses and reads the screens.

use windlass_common::ids::{Incarnation, Lineage, ShardId, Step, Term, Version, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Blocked, Phase, ShardStatus, Status, Stop, Wait, WorkerState, WorkerStatus};

use super::ended;
use super::screen::{Size, screen};
use super::table::{Line, Tone};
use crate::problem::tests::plan_of_model;
use crate::show::pace::Pace;
use crate::show::tests::status as progress;

pub(super) fn plan(workers: u32) -> Plan {
    let mut plan = plan_of_model("softmax", 1, 2);
    plan.cluster.workers = workers;
    plan
}

/// A quiet run.
pub(super) fn status(workers: u32) -> Status {
    let workers = (0..workers).map(|w| worker(w, WorkerState::Active)).collect();
    Status { workers, ..progress(250, 2000) }
}

pub(super) fn worker(worker: u32, state: WorkerState) -> WorkerStatus {
    WorkerStatus {
        worker: WorkerId(worker),
        state,
        incarnation: Incarnation(1),
        member: true,
        clock: Step(4),
        step: Step(5),
        silent_us: Some(400_000),
        staleness: Some(0.5),
        bytes_up: 2_500_000,
        bytes_down: 1_000,
        clients: 1,
    }
}

pub(super) fn shard(shard: u32) -> ShardStatus {
    let (version, open) = (Version(4), Step(4));
    let (held, parked, bytes, silent_us) = (1, 2, 62_800, 300_000);
    ShardStatus { shard: ShardId(shard), version, open, queue: 0, held, parked, bytes, silent_us }
}

pub(super) fn blocked(worker: u32, missing: &[u32], since_us: u64) -> Blocked {
    let missing = missing.iter().copied().map(WorkerId).collect();
    let wait = Wait::Pushes { step: Step(4), missing };
    Blocked { shard: ShardId(0), worker: WorkerId(worker), step: Step(5), wait, since_us }
}

fn shown(status: &Status, workers: u32, width: usize, height: usize) -> Vec<Line> {
    let lines = screen(status, &plan(workers), &Pace::default(), Size { width, height });
    assert!(lines.len() <= height, "{} lines: {lines:#?}", lines.len());
    for line in &lines {
        assert!(line.text.chars().count() <= width, "{line:?} is wider than {width}");
        assert_eq!(line.text, line.text.trim_end());
    }
    lines
}

fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| format!("{}\n", line.text)).collect()
}

fn toned(lines: &[Line], tone: Tone) -> Vec<&str> {
    lines.iter().filter(|l| l.tone == tone).map(|l| l.text.as_str()).collect()
}

#[test]
fn a_quiet_run_says_that_nothing_is_wrong() {
    let mut status = status(2);
    status.shards = vec![shard(0), shard(1)];
    let lines = shown(&status, 2, 100, 40);
    let expected = "\
run: softmax, sync, 1 server, 2 shards, 2 workers                                   training, term 1
step 2   pass 0.42 of 3.33   12.50 %
loss 0.2500   750 B up   250 B down

WORKER  STATE   CLOCK  STEP  LAST WORD  STALENESS      UP    DOWN  LIFE
     0  active      4     5      0.4 s        0.5  2.5 MB  1.0 kB     1
     1  active      4     5      0.4 s        0.5  2.5 MB  1.0 kB     1

SHARD  VERSION  OPEN STEP  QUEUE  HELD  WAITING   MEMORY  LAST WORD
    0        4          4      0     1        2  62.8 kB      0.3 s
    1        4          4      0     1        2  62.8 kB      0.3 s

Nothing is wrong.
";
    assert_eq!(text(&lines), expected);
    assert!(lines.iter().all(|l| l.tone == Tone::Plain));
}

#[test]
fn rounds_are_counted_where_there_are_rounds_and_time_left_is_told() {
    let mut status = status(1);
    (status.rounds, status.rounds_target) = (12, 100);
    let mut plan = plan(1);
    plan.mode = windlass_common::plan::Mode::Fedavg(windlass_common::plan::Fedavg {
        rounds: 100,
        cohort: 1,
        asked: 1,
        quorum: 1,
        deadline_ms: None,
        sampler: Default::default(),
        weights: Default::default(),
        hosting: Default::default(),
        local: Default::default(),
    });
    let mut pace = Pace::default();
    pace.add(0.0, &Status { rounds: 2, ..status.clone() });
    pace.add(5.0, &status);
    let lines = text(&screen(&status, &plan, &pace, Size { width: 90, height: 30 }));
    assert!(lines.contains("round 12 of 100   12.00 %   44 s left"), "{lines}");
}

#[test]
fn the_lost_come_first_and_in_colour() {
    let mut fixed = status(4);
    fixed.workers[2].state = WorkerState::Silent;
    fixed.workers[3].state = WorkerState::Dead;
    fixed.workers[3].silent_us = Some(83_000_000);
    fixed.advice = vec!["Worker 3 is dead.".into(), "Worker 2 has been silent for 5 s.".into()];
    let lines = shown(&fixed, 4, 90, 24);
    assert!(lines[5].text.starts_with("     2  silent"), "{}", text(&lines));
    assert!(lines[6].text.starts_with("     3  dead") && lines[6].text.contains("1 min 23 s"));
    assert_eq!(toned(&lines, Tone::Bad), [&lines[6].text]);
    assert_eq!(
        toned(&lines, Tone::Warning),
        [&lines[5].text, "Worker 3 is dead.", "Worker 2 has been silent for 5 s."]
    );
    assert_eq!(lines.last().unwrap().text, "Worker 2 has been silent for 5 s.");

    let mut elastic = fixed.clone();
    elastic.workers[3].member = false;
    elastic.workers.push(WorkerStatus { silent_us: None, ..worker(4, WorkerState::Expected) });
    let lines = text(&shown(&elastic, 4, 90, 24));
    assert!(lines.contains("takes no part\n"), "{lines}");
    assert!(lines.contains("and 1 more: 1 could join\n"), "{lines}");
    elastic.phase = Phase::Gathering;
    assert!(text(&shown(&elastic, 4, 90, 24)).contains("     4  expected"));
}

#[test]
fn a_worker_that_three_wait_for_is_named_with_them() {
    let mut status = status(5);
    let wait = |w| blocked(w, &[3], 12_000_000 + u64::from(w));
    status.blocked = [0, 1, 4].map(wait).to_vec();
    status.blocked.extend([0, 1].map(|w| Blocked { shard: ShardId(1), ..wait(w) }));
    status.blocked.push(Blocked { wait: Wait::Cohort { step: Step(4) }, ..blocked(2, &[], 90_000_000) });
    let lines = shown(&status, 5, 110, 24);
    let all = text(&lines);
    assert!(
        lines[5].text.starts_with("     3  active") && lines[5].text.ends_with("3 wait for it, 12 s"),
        "{all}"
    );
    assert_eq!(lines[5].tone, Tone::Warning);
    let waits = "WHO WAITS FOR WHOM\n\
                 workers 0, 1 and 4 wait 12 s for the push of worker 3 for step 4 (shards 0 and 1)\n\
                 worker 2 waits 1 min 30 s for a round with its clients; round 4 has none (shard 0)\n";
    assert!(all.contains(waits), "{all}");
}

#[test]
fn the_newest_checkpoint_stands_with_the_figures() {
    let mut status = status(2);
    status.checkpoints.newest = Some(crate::asked::tests::kept(3, 200));
    status.checkpoints.lineage = Lineage(1);
    let figures = shown(&status, 2, 100, 24).remove(2).text;
    assert!(
        figures.contains("250 B down   lineage 1   checkpoint 3, ") && figures.ends_with(" ago"),
        "{figures}"
    );
}

#[test]
fn a_full_queue_and_a_silent_shard_come_first() {
    let mut status = status(1);
    status.shards = (0..12).map(shard).collect();
    status.shards[7].queue = 256;
    status.shards[11].silent_us = 7_000_000;
    let lines = shown(&status, 1, 80, 20);
    let all = text(&lines);
    let heading = lines.iter().position(|l| l.text.starts_with("SHARD")).unwrap();
    assert!(lines[heading + 1].text.starts_with("    7") && lines[heading + 1].text.contains("256"), "{all}");
    assert!(lines[heading + 2].text.starts_with("   11"), "{all}");
    assert!(all.contains("more: ") && all.contains(" well\n"), "{all}");
}

#[test]
fn forty_workers_fit_on_a_small_screen() {
    let mut status = status(40);
    status.shards = vec![shard(0), shard(1)];
    status.workers[38].state = WorkerState::Dead;
    status.workers[17].state = WorkerState::Silent;
    status.blocked = vec![blocked(0, &[30], 4_000_000)];
    status.advice = vec!["Worker 17 is silent.".into(), "Worker 38 is dead.".into()];
    let lines = shown(&status, 40, 80, 24);
    let all = text(&lines);
    assert_eq!(lines.len(), 24, "no line is left empty: {all}");
    let order: Vec<&str> = lines[5..9].iter().map(|l| l.text.split_whitespace().next().unwrap()).collect();
    assert_eq!(order, ["17", "38", "30", "0"], "{all}");
    assert!(all.contains("and 32 more: 32 active\n"), "{all}");
    assert!(all.ends_with("Worker 17 is silent.\nWorker 38 is dead.\n"));
    // On the smallest of screens the last lines are still there.
    for height in 9..24 {
        assert!(text(&shown(&status, 40, 80, height)).ends_with("Worker 38 is dead.\n"), "{height}");
    }
}

#[test]
fn narrow_screens_leave_columns_out_and_break_sentences() {
    let mut status = status(3);
    status.shards = vec![shard(0)];
    status.blocked = vec![blocked(0, &[1], 4_000_000)];
    status.advice =
        vec!["Worker 0 waits for worker 1 since 4 s. It lives and is at step 4: look at its log.".into()];
    let narrow = text(&shown(&status, 3, 60, 40));
    assert!(narrow.contains("CLOCK  LAST WORD  STALENESS") && !narrow.contains("LIFE"), "{narrow}");
    assert!(narrow.ends_with("It lives and is at\n  step 4: look at its log.\n"), "{narrow}");
    let wide = text(&shown(&status, 3, 200, 40));
    assert!(wide.contains("LIFE") && wide.ends_with(&format!("{}\n", status.advice[0])), "{wide}");
}

#[test]
fn long_advice_leaves_room_for_the_rest() {
    let mut status = status(4);
    status.advice = (0..30).map(|n| format!("Matter {n}.")).collect();
    let lines = shown(&status, 4, 80, 24);
    assert_eq!(lines.last().unwrap().text, "and 19 lines more, in a larger window or with --once");
    assert!(text(&lines).contains("     3  active"));
}

#[test]
fn the_end_is_told_whatever_was_seen_last() {
    let mut status = status(2);
    (status.advice, status.blocked) = (vec!["Worker 1 is dead.".into()], vec![blocked(0, &[1], 4_000_000)]);
    let done = text(&shown(&ended(status.clone(), &Stop::Completed), 2, 80, 24));
    assert!(done.contains("done, term 1") && done.ends_with("The run is complete.\n"), "{done}");
    let stop = Stop::Failed { reason: "worker 1 was lost".into() };
    let failed = ended(status, &stop);
    let lines = shown(&failed, 2, 80, 24);
    assert_eq!(
        lines.last().unwrap(),
        &Line { text: "The run has failed: worker 1 was lost".into(), tone: Tone::Bad }
    );
    assert_eq!((failed.term, failed.phase), (Term(1), Phase::Failed));
}
