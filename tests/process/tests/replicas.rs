//! Kills servers whose shards have standbys, and shows that nothing is lost and nothing counts twice.
//!
//! Five servers are killed in each run, the coordinator's among them, or as many as `WINDLASS_TORTURE` says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use windlass_process_tests::ledger::Ledger;
use windlass_process_tests::schedule::{Draws, seeds};
use windlass_process_tests::{
    Running, child, count_of, events, lines, log, model, reach, send, since, start, summary, text, train,
    until,
};

const WITHIN: Duration = Duration::from_secs(300);
const SYNC: &str =
    "--mode sync --model 2nn --servers 2 --replicas 1 --workers 2 --batch 32 --seed 7 --name run";
const ASYNC: &str =
    "--mode async --model 2nn --servers 2 --replicas 1 --workers 3 --batch 32 --seed 7 --name run";
/// Over links, where values are on their way before the standby has confirmed, with pushes that it is told of as encoded.
const FEDAVG: &str = "--mode fedavg --model 2nn --servers 2 --replicas 1 --workers 2 --clients 20 --fraction 0.2 \
                      --local-passes 1 --batch 50 --seed 7 --name run --link-rate 1gbit --push-codec int8-stochastic";

/// The log since the run went on last, in one way or the other.
fn since_gone_on(log: &str) -> &str {
    since(&["went on", "restored"], log)
}

fn count(lines: &[Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

/// Waits until both standbys have all, and a number of pushes has been made since then.
fn until_full(run: &Path, running: &mut Running, pushes: usize) {
    let mut count = |event| {
        assert_eq!(running.code(), None, "the run goes on");
        count_of(event, since_gone_on(&log(run)))
    };
    reach(2, "standbys that have all", || count("replicated"));
    reach(pushes, "pushes", || count("applied"));
}

/// A run whose servers are killed, server 0 as often as the other; each is so after its standby had all.
fn killed(folder: &Path, flags: &str, every: u64) -> (PathBuf, Vec<f64>) {
    let (run, times) = (folder.join("killed"), seeds(5));
    let (count_of_kills, mut draws) = (times.end - times.start, Draws::new(times.start));
    let mut running = train(&run, &format!("{flags} --restarts 1000"));
    let mut waits = Vec::new();
    for time in 0..count_of_kills {
        until_full(&run, &mut running, draws.number(every / 4..every) as usize);
        let server = if time % 2 == 0 { "server-1" } else { "server-0" };
        send(child(running.id(), server, None), Signal::KILL);
        let us = |line: &Value| line["at_us"].as_u64().expect("every line has its time");
        let is_step = |line: &Value| line["event"] == "applied";
        // What had been made and not yet written is written when it has gone on.
        let (went_on, first) = until("it makes a step", || {
            let log = log(&run);
            if count_of("went on", &log) as u64 <= time || count_of("applied", since_gone_on(&log)) == 0 {
                return None;
            }
            let all = lines(&run);
            let went_on = all.iter().filter(|line| line["event"] == "went on").nth(time as usize).map(us)?;
            let first = all.iter().filter(|line| is_step(line)).map(us).filter(|at| *at > went_on).min();
            first.map(|first| (went_on, first))
        });
        let all = lines(&run);
        let before = all.iter().filter(|line| is_step(line)).map(us).filter(|at| *at < went_on).max();
        waits.push((first - before.expect("it has made steps before")) as f64 / 1e6);
    }
    running.end(WITHIN).well();
    assert_eq!(count(&lines(&run), "went on") as u64, count_of_kills);
    assert_eq!(count(&lines(&run), "restored"), 0, "nothing went back");
    waits.sort_unstable_by(f64::total_cmp);
    println!("from the last step before to the first after, in seconds: {waits:?}");
    (run, waits)
}

/// As many passes over the data as so many kills take.
fn passes(flags: &str) -> String {
    let times = seeds(5);
    format!("{flags} --passes {}", (times.end - times.start).div_ceil(5) * 3)
}

#[test]
fn a_sync_run_whose_servers_are_killed_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    train(&whole, &passes(SYNC).replace("--replicas 1", "")).end(WITHIN).well();
    let (killed, _) = killed(folder.path(), &passes(SYNC), 400);
    assert_eq!(model(&whole), model(&killed));
    for number in ["steps", "examples", "pushes"] {
        assert_eq!(summary(&whole)[number], summary(&killed)[number], "{number}");
    }
    let pushes = events(&killed);
    let settled: BTreeSet<_> =
        pushes.iter().map(|p| ["shard", "worker", "sequence"].map(|of| p[of].as_u64())).collect();
    assert_eq!(settled.len(), pushes.len(), "each push is settled once on each shard");
    assert!(pushes.iter().all(|push| push["event"] == "applied"));
}

#[test]
fn no_push_of_async_is_lost_or_doubled_when_servers_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (killed, _) = killed(folder.path(), &passes(ASYNC), 400);
    let ledger = Ledger::read(&killed);
    assert!((0..3).all(|worker| ledger.pushes(worker) > 0));
    assert!(summary(&killed)["test_accuracy"].as_f64().unwrap() > 0.93);
}

/// What serves a worker feeds the standbys, too: it ends with the worker, and they are as full as before.
#[test]
fn a_worker_that_is_killed_takes_no_standby_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut running = train(&run, &format!("{ASYNC} --push-codec topk:1% --passes 6 --restarts 5"));
    for worker in ["worker-0", "worker-1"] {
        until_full(&run, &mut running, 200);
        let before = count_of("membership", &log(&run));
        send(child(running.id(), worker, None), Signal::KILL);
        until("it has joined again", || (count_of("membership", &log(&run)) > before).then_some(()));
    }
    running.end(WITHIN).well();
    let all = lines(&run);
    let found = ["replicated", "went on", "restored"].map(|event| count(&all, event));
    assert_eq!(found, [2, 0, 0], "both standbys are full once, and stay so");
    let ledger = Ledger::read(&run);
    assert!((0..3).all(|worker| ledger.pushes(worker) > 0));
}

#[test]
fn a_federated_run_whose_servers_are_killed_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let times = seeds(5);
    let flags = format!("{FEDAVG} --rounds {}", 20 + 10 * (times.end - times.start));
    train(&whole, &flags.replace("--replicas 1", "")).end(WITHIN).well();
    let (killed, _) = killed(folder.path(), &flags, 40);
    assert_eq!(model(&whole), model(&killed));
    for number in ["rounds", "steps"] {
        assert_eq!(summary(&whole)[number], summary(&killed)[number], "{number}");
    }
}

#[test]
fn who_is_killed_before_its_standby_has_all_costs_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    let flags = format!("{SYNC} --passes 2");
    train(&whole, &flags).end(WITHIN).well();
    let mut running = train(&run, &format!("{flags} --checkpoint-every 40steps --restarts 9"));
    until_full(&run, &mut running, 300);
    // The second goes while the first is not yet there, so that what it alone has is lost.
    let [first, second] = ["server-1", "server-0"].map(|server| child(running.id(), server, None));
    send(first, Signal::KILL);
    send(second, Signal::KILL);
    until("it goes back", || {
        lines(&run).into_iter().find(|line| line["event"] == "rolled back").map(|line| {
            let reason = line["reason"].as_str().unwrap();
            assert!(reason.contains("no server has all of shard 0, shard 1"), "{reason}");
        })
    });
    running.end(WITHIN).well();
    assert_eq!(count(&lines(&run), "restored"), 1);
    assert_eq!(model(&whole), model(&run));

    let run = folder.path().join("without");
    let mut running = train(&run, &format!("{flags} --checkpoint-every never --restarts 9"));
    until_full(&run, &mut running, 300);
    let [first, second] = ["server-1", "server-0"].map(|server| child(running.id(), server, None));
    send(first, Signal::KILL);
    send(second, Signal::KILL);
    let ended = running.end(WITHIN);
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("no server has all of shard 0, shard 1"), "{}", ended.stderr);
}

#[test]
fn a_server_is_emptied_while_the_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let flags = ASYNC.replace("--servers 2", "--servers 3");
    let running = train(&run, &format!("{flags} --push-codec bf16 --passes 2"));
    until("standbys that have all", || (count(&lines(&run), "replicated") == 3).then_some(()));
    let drain = |server| start("windlass", &["drain", server, text(&run)], folder.path()).end(WITHIN);
    drain("0").failed(5, &["it has the coordinator"]);
    drain("7").failed(2, &["has no server 7, only 0 to 2"]);
    let drained = drain("2").well();
    assert!(drained.stdout.contains("server 2 has no shards any more"), "{}", drained.stdout);
    let went_on = lines(&run).into_iter().find(|line| line["event"] == "went on").unwrap();
    for seats in ["primaries", "standbys"] {
        assert!(went_on[seats].as_array().unwrap().iter().all(|server| *server != 2), "{went_on}");
    }
    running.end(WITHIN).well();
    Ledger::read(&run);
}
