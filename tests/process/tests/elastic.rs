//! Workers that come and go while the training goes on: it ends, with the bits of its own log or every push accounted for.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use windlass_process_tests::replay::{lines, replayed, result};
use windlass_process_tests::{
    child, count_of_pushes, events, log, pushes, send, start, summary, text, train, until,
};

const WITHIN: Duration = Duration::from_secs(180);

/// Modes with what each takes, all of them for some seconds. No step time is emulated, which a busy machine could not keep.
const MODES: [&str; 6] = [
    "sync --model 2nn --passes 2",
    "async --model 2nn --passes 2",
    "ssp --staleness 2 --model 2nn --passes 2",
    "fedavg --model softmax --rounds 40 --clients 20 --cohort 8 --local-passes 1 --local-rate 0.1",
    "softsync --buffer 3 --model 2nn --passes 2",
    "fedasync --model softmax --clients 20 --passes 16 --local-passes 1 --local-rate 0.1",
];
const COMMON: &str = "--servers 2 --membership elastic --restarts 0";

/// Checks what can be known of a run that workers came to and went from.
fn check(run: &Path, mode: &str) {
    let name = mode.split_whitespace().next().expect("a mode has a name");
    let summary = summary(run);
    assert_eq!(summary["completed"], true, "{mode}: {summary}");
    if name == "sync" || name == "fedavg" {
        let (found, expected) = (result(run), replayed(run));
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&found) == bits(&expected), "{mode}: the result is not what the logged cohorts make");
    }
    account(run, mode, summary["pushes_partial"].as_u64().expect("a summary counts"));
    let accuracy = summary["test_accuracy"].as_f64().expect("the result is scored");
    let least = if mode.contains("2nn") { 0.94 } else { 0.88 };
    assert!(accuracy > least, "{mode}: {accuracy}");
}

/// Each push has one outcome on each shard; where each is a step, it is applied on one at least, and where it is void is
/// counted.
fn account(run: &Path, mode: &str, partial: u64) {
    let mut outcomes = std::collections::BTreeMap::new();
    for event in events(run) {
        let key = ["worker", "sequence", "shard"].map(|name| event[name].as_u64().expect("it is a number"));
        let outcome = event["event"].as_str().expect("it is a word").to_owned();
        assert!(outcomes.insert(key, outcome).is_none(), "{mode}: push {key:?} is settled twice");
    }
    let each_is_a_step = ["async", "ssp", "fedasync"].iter().any(|name| mode.starts_with(name));
    let (mut void, mut next) = (0, std::collections::BTreeMap::<u64, u64>::new());
    for (&[worker, sequence, shard], outcome) in outcomes.iter().filter(|(key, _)| key[2] == 0) {
        let other = outcomes.get(&[worker, sequence, 1]);
        let other = other.unwrap_or_else(|| panic!("{mode}: {worker}/{sequence} has no outcome on shard 1"));
        let expected = next.entry(worker).or_default();
        assert_eq!(sequence, *expected, "{mode}: a push of worker {worker} is lost on shard {shard}");
        *expected += 1;
        let both = [outcome.as_str(), other.as_str()];
        if each_is_a_step {
            assert!(both.contains(&"applied"), "{mode}: {worker}/{sequence} is {both:?}");
            void += both.iter().filter(|o| **o == "void").count() as u64;
        } else {
            let applied = both.map(|o| o == "applied");
            assert_eq!(applied[0], applied[1], "{mode}: {worker}/{sequence} is {both:?}");
        }
    }
    let per_shard = |shard| outcomes.keys().filter(|key| key[2] == shard).count();
    assert_eq!(per_shard(0), per_shard(1), "{mode}");
    assert_eq!(partial, void, "{mode}: what is void on one shard is counted");
}

#[test]
fn three_of_four_workers_are_killed_in_turn_and_the_training_ends() {
    for mode in MODES {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let running = train(&run, &format!("--mode {mode} --workers 4 {COMMON}"));
        for worker in [3, 1, 2] {
            let process = child(running.id(), &format!("worker-{worker}"), None);
            pushes(&run, 30 + count_of_pushes(&log(&run)));
            send(process, Signal::KILL);
        }
        running.end(WITHIN).well();
        check(&run, mode);
        if mode.starts_with("async") || mode.starts_with("ssp") {
            let other = folder.path().join("undisturbed");
            train(&other, &format!("--mode {mode} --workers 4 {COMMON}")).end(WITHIN).well();
            let accuracy = |run: &Path| summary(run)["test_accuracy"].as_f64().expect("it is scored");
            let (disturbed, undisturbed) = (accuracy(&run), accuracy(&other));
            assert!((disturbed - undisturbed).abs() <= 0.005, "{mode}: {disturbed}, else {undisturbed}");
        }
        for worker in [3, 1, 2] {
            let log = lines(&run);
            let named = |line: &&serde_json::Value| {
                line["event"] == "membership" && line["worker"] == worker && line["at_us"].as_u64() > Some(0)
            };
            let what: Vec<_> = log.iter().filter(named).filter_map(|line| line["what"].as_str()).collect();
            assert!(what.iter().any(|w| w.starts_with("dead") && w.contains("SIGKILL")), "{mode}: {what:?}");
            assert!(what.iter().any(|w| w.starts_with("settled at push")), "{mode}: {what:?}");
        }
    }
}

#[test]
fn a_worker_joins_after_a_third_and_another_leaves_after_two_thirds() {
    for mode in MODES {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let running = train(&run, &format!("--mode {mode} --workers 3 --workers-max 4 {COMMON}"));
        let first = child(running.id(), "worker-0", None);
        let planned = planned(&run, mode);
        let done = |share: f64| (planned as f64 * share) as usize;
        pushes(&run, done(1.0 / 3.0));
        let (identity, coordinator) = how_it_was_started(first);
        let identity = identity.replace("worker-0", "worker-3");
        let joining = start(
            "windlass-worker",
            &[
                "--identity",
                &identity,
                "--coordinator",
                &coordinator,
                "--data",
                text(&windlass_process_tests::mnist()),
            ],
            folder.path(),
        );
        pushes(&run, done(2.0 / 3.0));
        send(first, Signal::TERM);
        running.end(WITHIN).well();
        joining.end(WITHIN).well();
        check(&run, mode);
        let of = |worker: u64| {
            events(&run).iter().filter(|e| e["worker"] == worker && e["event"] == "applied").count()
        };
        assert!(of(3) > 0, "{mode}: the one that joined has contributed");
        let left = |line: &&serde_json::Value| line["worker"] == 0 && line["what"] == "left before the end";
        assert_eq!(lines(&run).iter().filter(left).count(), 1, "{mode}");
    }
}

/// Lines about pushes that a whole run has on its two shards, about.
fn planned(run: &Path, mode: &str) -> usize {
    until("the plan is there", || std::fs::metadata(run.join("plan.toml")).ok());
    let plan = windlass_process_tests::replay::plan(run);
    2 * match mode.split_whitespace().next() {
        Some("fedavg") => 40 * 8,
        Some("fedasync") => 16 * 20,
        _ => (plan.examples_target().0 / u64::from(plan.training.batch)) as usize,
    }
}

/// The identity and the coordinator's address that a process was started with.
fn how_it_was_started(process: u32) -> (String, String) {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).expect("it runs");
    let words: Vec<String> =
        line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| word == flag).expect("the flag is there");
        words[at + 1].clone()
    };
    (after("--identity"), after("--coordinator"))
}
