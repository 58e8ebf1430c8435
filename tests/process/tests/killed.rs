//! Processes that are killed: nothing freezes, and what cannot go on says who is missing.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass_process_tests::{child, events, pushes, send, summary, train};

const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn a_worker_killed_in_async_or_ssp_comes_back_and_every_push_counts_once_or_is_void() {
    for mode in ["--mode async", "--mode ssp --staleness 2"] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let running = train(&run, &format!("{mode} --model 2nn --servers 2 --workers 3 --passes 1"));
        let worker = child(running.id(), "worker-2", None);
        pushes(&run, 100);
        send(worker, Signal::KILL);
        running.end(WITHIN).well();
        let (mut outcomes, mut void) = (std::collections::BTreeMap::new(), 0);
        for event in events(&run) {
            let key = [&event["shard"], &event["worker"], &event["sequence"]].map(|v| v.as_u64().unwrap());
            let outcome = event["event"].as_str().unwrap().to_owned();
            void += u64::from(outcome == "void");
            assert!(outcomes.insert(key, outcome).is_none(), "{mode}: push {key:?} is settled twice");
        }
        for worker in 0..3 {
            let of = |shard| outcomes.keys().filter(|k| k[0] == shard && k[1] == worker).count();
            assert_eq!(of(0), of(1), "{mode}: worker {worker} has as many pushes on each shard");
        }
        assert_eq!(summary(&run)["pushes_partial"], void, "{mode}");
        assert!(summary(&run)["test_accuracy"].as_f64().unwrap() > 0.9, "{mode}");
    }
}

#[test]
fn without_restarts_all_stop_and_say_who_is_missing() {
    for mode in ["sync", "async", "ssp"] {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let running =
            train(&run, &format!("--mode {mode} --model 2nn --workers 2 --passes 1000 --restarts 0"));
        let worker = child(running.id(), "worker-1", None);
        pushes(&run, 20);
        let killed = Instant::now();
        send(worker, Signal::KILL);
        running.end(WITHIN).failed(5, &["worker 1", "SIGKILL"]);
        assert!(killed.elapsed() < Duration::from_secs(10), "{mode}: {:?}", killed.elapsed());
    }
}

#[test]
fn without_checkpoints_a_server_that_dies_ends_the_run_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let running =
        train(&run, "--mode sync --model 2nn --servers 2 --workers 2 --passes 1000 --checkpoint-every never");
    let server = child(running.id(), "server-1", None);
    pushes(&run, 20);
    send(server, Signal::KILL);
    let ended = running.end(WITHIN).failed(5, &["server 1", "SIGKILL"]);
    assert!(ended.took < Duration::from_secs(30));
}

#[test]
fn ctrl_c_ends_every_child() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let running = train(&run, "--mode async --model 2nn --servers 2 --workers 2 --passes 1000");
    let names = ["server-0", "server-1", "worker-0", "worker-1"];
    let children = names.map(|name| child(running.id(), name, None));
    pushes(&run, 20);
    running.signal(Signal::INT);
    let ended = running.end(Duration::from_secs(15));
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    for (name, id) in names.iter().zip(children) {
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists(), "{name} lives on");
    }
}

#[test]
fn children_do_not_outlive_a_launcher_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let running = train(&run, "--mode async --model softmax --servers 1 --workers 1 --passes 1000");
    let children = ["server-0", "worker-0"].map(|name| child(running.id(), name, None));
    pushes(&run, 20);
    running.signal(Signal::KILL);
    for id in children {
        windlass_process_tests::until("the child has ended", || {
            let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // An orphan that nobody waits for may stay as a zombie where no init process runs.
            (status.is_empty() || status.contains(") Z ")).then_some(())
        });
    }
}
