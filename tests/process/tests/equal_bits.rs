//! Equal seeds give equal bits, with real processes over QUIC, also when a worker is killed.

use std::time::Duration;

use rustix::process::Signal;
use windlass_process_tests::{child, model, pushes, send, summary, train};

const SYNC: &str = "--mode sync --model 2nn --servers 2 --workers 3 --passes 0.5 --seed 7 --name equal";
const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn two_runs_of_one_seed_end_in_the_same_bytes_and_so_does_one_whose_worker_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["first", "second", "killed", "another-seed"].map(|name| folder.path().join(name));
    train(&runs[0], SYNC).end(WITHIN).well();
    train(&runs[1], SYNC).end(WITHIN).well();
    assert_eq!(model(&runs[0]), model(&runs[1]));

    let running = train(&runs[2], SYNC);
    let worker = child(running.id(), "worker-1", None);
    pushes(&runs[2], 60);
    send(worker, Signal::KILL);
    child(running.id(), "worker-1", Some(worker));
    running.end(WITHIN).well();
    assert_eq!(model(&runs[0]), model(&runs[2]));
    let counts =
        |name: &str| runs[..3].iter().map(|r| summary(r)[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(counts("steps"), [157; 3]);
    assert_eq!(counts("pushes"), [471; 3]);

    train(&runs[3], &SYNC.replace("--seed 7", "--seed 8")).end(WITHIN).well();
    assert_ne!(model(&runs[0]), model(&runs[3]), "another seed is another training");
}

#[test]
fn the_stored_plan_repeats_the_run_and_the_number_of_shards_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let [first, again, shards] = ["first", "again", "shards"].map(|name| folder.path().join(name));
    train(&first, "--mode sync --model softmax --servers 1 --workers 2 --passes 0.5 --seed 3")
        .end(WITHIN)
        .well();
    let plan = first.join("plan.toml");
    let arguments =
        ["train", "--quiet", "--plan", plan.to_str().unwrap(), "--run-dir", again.to_str().unwrap()];
    windlass_process_tests::start("windlass", &arguments, folder.path()).end(WITHIN).well();
    assert_eq!(model(&first), model(&again));
    let more =
        "--mode sync --model softmax --servers 2 --shards-per-server 2 --workers 2 --passes 0.5 --seed 3";
    train(&shards, more).end(WITHIN).well();
    assert_eq!(model(&first), model(&shards));
}
