//! Looks at runs from outside with `windlass top`, while workers are stopped and killed.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use windlass_process_tests::{child, pushes, send, start, text, train, until};

const WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_secs(20);

/// How the run stands now; nothing if it cannot be seen.
fn seen(run: &Path) -> Option<Value> {
    let ended = start(
        "windlass",
        &["top", text(run), "--once", "--json"],
        run.parent().expect("a run lies in a folder"),
    )
    .end(LOOK);
    (ended.code == Some(0)).then(|| serde_json::from_str(&ended.stdout).expect("one JSON object"))
}

fn state(seen: &Value, worker: usize) -> &str {
    seen["workers"][worker]["state"].as_str().expect("a state is a word")
}

fn is_closed(run: &Path) -> bool {
    !run.join("coordinator").exists() && !run.join("observer.pem").exists()
}

#[test]
fn a_stopped_worker_is_silent_and_waited_for_until_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let flags =
        "--mode sync --model softmax --workers 3 --passes 1 --step-time const:20ms --lease 3 --restarts 0";
    let running = train(&run, flags);
    let worker = child(running.id(), "worker-1", None);
    pushes(&run, 30);
    let quiet = seen(&run).unwrap();
    assert_eq!((&quiet["format"], &quiet["phase"]), (&Value::from(1), &Value::from("training")));
    assert_eq!(quiet["advice"], Value::Array(Vec::new()), "{quiet}");
    send(worker, Signal::STOP);
    let silent = until("worker 1 is silent and waited for", || {
        let seen = seen(&run)?;
        (state(&seen, 1) == "silent" && seen["blocked"].as_array()?.len() >= 2).then_some(seen)
    });
    assert!(silent["workers"][1]["silent_us"].as_u64().unwrap() >= 3_000_000, "{silent}");
    let mut waiters = Vec::new();
    for blocked in silent["blocked"].as_array().unwrap() {
        assert_eq!(blocked["wait"]["for"], "pushes", "{silent}");
        assert_eq!(blocked["wait"]["missing"], serde_json::json!([1]), "{silent}");
        waiters.push(blocked["worker"].as_u64().unwrap());
    }
    waiters.sort_unstable();
    waiters.dedup();
    assert_eq!(waiters, [0, 2]);
    let advice = silent["advice"][0].as_str().unwrap();
    assert!(advice.starts_with("Worker 1 has been silent for "), "{advice}");
    assert!(advice.contains("Worker 0 and worker 2 wait for it."), "{advice}");
    assert!(silent["waiting"].as_str().unwrap().starts_with("waiting for worker 1 ("), "{silent}");
    send(worker, Signal::CONT);
    until("worker 1 goes on and nothing is wrong", || {
        let seen = seen(&run)?;
        (state(&seen, 1) == "active" && seen["advice"] == Value::Array(Vec::new())).then_some(())
    });
    running.end(WITHIN).well();
    assert!(is_closed(&run));
    let flags = ["top", text(&run)];
    start("windlass", &flags, folder.path()).end(LOOK).failed(3, &["is not under way"]);
}

#[test]
fn a_killed_worker_is_dead_and_an_elastic_run_goes_on_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let running = train(
        &run,
        "--mode async --membership elastic --model softmax --workers 3 --passes 1 --step-time const:20ms --restarts 0",
    );
    let worker = child(running.id(), "worker-2", None);
    pushes(&run, 30);
    let watching = start("windlass", &["top", text(&run)], folder.path());
    send(worker, Signal::KILL);
    let dead = until("worker 2 is dead", || seen(&run).filter(|seen| state(seen, 2) == "dead"));
    assert_eq!(dead["workers"][2]["member"], false, "{dead}");
    let advice = dead["advice"][0].as_str().unwrap();
    assert!(advice.starts_with("Worker 2 is dead (") && advice.contains("SIGKILL"), "{advice}");
    assert!(advice.contains("the training goes on without it"), "{advice}");
    running.end(WITHIN).well();
    let watched = watching.end(LOOK).well();
    assert!(watched.stdout.contains("\nWorker 2 is dead ("), "{}", watched.stdout);
    assert!(
        watched.stdout.ends_with("\nThe run is complete.\nthe run run is complete\n"),
        "{}",
        watched.stdout
    );
    assert!(!watched.stdout.contains('\x1b'), "no escapes where there is no terminal");
}

#[test]
fn a_run_that_fails_or_vanishes_ends_top_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let running = train(&run, "--mode sync --model softmax --workers 2 --passes 1000 --step-time const:20ms");
    pushes(&run, 20);
    let [top, watch] =
        ["top", "watch"].map(|command| start("windlass", &[command, text(&run)], folder.path()));
    until("both look on", || (seen(&run)?["phase"] == "training").then_some(()));
    std::fs::copy(run.join("observer.pem"), folder.path().join("observer.pem")).unwrap();
    let address = std::fs::read_to_string(run.join("coordinator")).unwrap();
    running.signal(Signal::INT);
    assert_eq!(running.end(LOOK).code, Some(130));
    assert!(is_closed(&run));
    for looking in [top, watch] {
        looking.end(LOOK).failed(5, &["the run run could not go on"]);
    }
    let flags = ["top", address.trim(), "--identity", "observer.pem", "--connect-deadline", "1"];
    start("windlass", &flags, folder.path()).end(LOOK).failed(4, &[address.trim(), "cannot be seen"]);
    start("windlass", &flags[..2], folder.path()).end(LOOK).failed(2, &["--identity FILE"]);
}
