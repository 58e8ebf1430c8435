//! Kills whole runs and their servers, and shows that they go on from their checkpoints as if nothing had happened.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use windlass_process_tests::kills::{
    FEDAVG, SYNC, WITHIN, copy_folder, gone, kill_all, killed_again_and_again, restored, resume, same,
    since_restored,
};
use windlass_process_tests::ledger::Ledger;
use windlass_process_tests::{
    child, events, lines, model, program, reach, send, start, summary, text, train, until,
};

const ASYNC: &str =
    "--mode async --model 2nn --servers 2 --workers 3 --passes 1 --batch 32 --seed 7 --name run";

#[test]
fn a_sync_run_that_is_killed_again_and_again_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    train(&whole, SYNC).end(WITHIN).well();
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    let killed = killed_again_and_again(folder.path(), SYNC, &roles, ("40steps", 5, 3700));
    same(&whole, &killed, &["steps", "pushes", "examples"]);
}

#[test]
fn a_federated_run_that_is_killed_again_and_again_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    train(&whole, FEDAVG).end(WITHIN).well();
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    let killed = killed_again_and_again(folder.path(), FEDAVG, &roles, ("4steps", 5, 480));
    same(&whole, &killed, &["rounds", "steps", "pushes", "client_tallies"]);
}

#[test]
fn no_push_that_a_checkpoint_holds_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let roles = ["server-0", "server-1", "worker-0", "worker-1", "worker-2"];
    let killed = killed_again_and_again(folder.path(), ASYNC, &roles, ("100steps", 5, 3700));
    let ledger = Ledger::read_truncated(&killed);
    assert!((0..3).all(|worker| ledger.pushes(worker) > 0));
}

#[test]
fn all_go_back_together_when_a_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    train(&whole, SYNC).end(WITHIN).well();
    let running = train(&killed, &format!("{SYNC} --checkpoint-every 60steps --restarts 3"));
    for role in ["server-1", "server-0", "server-1"] {
        reach(500, "pushes", || since_restored(&killed));
        let lineage = restored(&killed);
        let process = child(running.id(), role, None);
        send(process, Signal::KILL);
        until("it goes on", || (restored(&killed) > lineage).then_some(()));
    }
    running.end(WITHIN).well();
    assert_eq!(model(&whole), model(&killed));
    assert_eq!(summary(&whole)["steps"], summary(&killed)["steps"]);
    assert_eq!(summary(&killed)["restarts_servers"], serde_json::json!([1, 2]));
    assert_eq!(summary(&killed)["lineage"], 3);
}

#[test]
fn who_is_to_be_started_for_two_reasons_is_started_once() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed, lives] = ["whole", "killed", "lives"].map(|name| folder.path().join(name));
    train(&whole, SYNC).end(WITHIN).well();
    // When its process is killed it says that the network is gone: it is seen a moment later whether the run is, too.
    let worker = folder.path().join("worker");
    let script = [
        "#!/bin/sh",
        &format!("echo $2 >> {}", text(&lives)),
        "exec 3<&0",
        &format!("{} --exit-with-stdin \"$@\" <&3 &", text(&program("windlass-worker"))),
        "wait $!",
        "code=$?",
        "[ $code = 137 ] && exit 5",
        "exit $code",
    ];
    fs::write(&worker, script.join("\n")).unwrap();
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
    let flags = format!("{SYNC} --checkpoint-every 60steps --restarts 3 --worker-program {}", text(&worker));
    let running = train(&killed, &flags);
    reach(500, "pushes", || since_restored(&killed));
    let process = child(running.id(), "worker-1", None);
    send(child(process, "worker-1", None), Signal::KILL);
    gone(process);
    send(child(running.id(), "server-1", None), Signal::KILL);
    running.end(WITHIN).well();
    assert_eq!(model(&whole), model(&killed));
    let lives = fs::read_to_string(lives).unwrap();
    assert_eq!(lives.matches("worker-0.pem").count(), 1, "{lives}");
    // The second may come while the run goes back, and is then told to come again.
    assert!((2..=3).contains(&lives.matches("worker-1.pem").count()), "{lives}");
}

#[test]
fn a_checkpoint_of_two_servers_restores_on_others_and_a_damaged_one_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let adam = format!("{SYNC} --optimizer adam --rate 0.001");
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    train(&whole, &adam).end(WITHIN).well();
    let running = train(&run, &format!("{adam} --checkpoint-every 100steps --keep 3"));
    until("three checkpoints", || {
        (lines(&run).iter().filter(|l| l["event"] == "checkpoint").count() >= 3).then_some(())
    });
    kill_all(running, &["server-0", "server-1", "worker-0", "worker-1"]);
    for servers in ["1", "3", "5"] {
        let copy = folder.path().join(format!("on-{servers}"));
        copy_folder(&run, &copy);
        resume(&copy, &format!("--servers {servers}")).end(WITHIN).well();
        assert_eq!(model(&whole), model(&copy), "on {servers} servers");
    }
    // One byte of the newest is another: the one before it is as good, and only farther back.
    let newest = fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    let newest = newest.filter(|folder| folder.join("manifest").exists()).max().unwrap();
    let shard = newest.join("shard-001.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).unwrap();
    start("windlass", &["checkpoint", "verify", text(&run)], folder.path())
        .end(WITHIN)
        .failed(3, &["shard-001.safetensors", "checksum"]);
    resume(&run, "").end(WITHIN).well();
    let restored = lines(&run).into_iter().find(|l| l["event"] == "restored").unwrap();
    let number: u64 =
        newest.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap().parse().unwrap();
    assert_eq!(restored["checkpoint"], number - 1);
    assert_eq!(model(&whole), model(&run));
}

#[test]
fn a_place_that_cannot_be_written_stops_nothing_and_is_used_when_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let [run, place] = ["run", "place"].map(|name| folder.path().join(name));
    fs::write(&place, "in the way of a folder").unwrap();
    let flags = format!(
        "{} --passes 3 --checkpoint-every 1s --checkpoints {}",
        SYNC.replace("--passes 1", ""),
        text(&place)
    );
    let running = train(&run, &flags);
    until("a checkpoint has failed", || {
        lines(&run).into_iter().find(|l| l["event"] == "no checkpoint").map(|l| {
            assert!(l["reason"].as_str().unwrap().contains("place"), "{l}");
        })
    });
    let before = events(&run).len();
    let asked = start("windlass", &["checkpoint", "now", text(&run)], folder.path()).end(WITHIN);
    assert_ne!(asked.code, Some(0), "{}", asked.stdout);
    assert!(asked.stderr.contains("place"), "{}", asked.stderr);
    fs::remove_file(&place).unwrap();
    start("windlass", &["checkpoint", "now", text(&run)], folder.path()).end(WITHIN).well();
    assert!(events(&run).len() > before, "the training goes on");
    start("windlass", &["checkpoint", "verify", text(&place)], folder.path()).end(WITHIN).well();
    running.end(WITHIN).well();
}

#[test]
fn who_is_told_to_end_keeps_a_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    train(&whole, SYNC).end(WITHIN).well();
    let running = train(&run, &format!("{SYNC} --checkpoint-every 1000s"));
    reach(500, "pushes", || since_restored(&run));
    running.signal(Signal::TERM);
    let ended = running.end(WITHIN);
    assert_eq!(ended.code, Some(130), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("--resume"), "{}", ended.stderr);
    assert!(lines(&run).iter().any(|l| l["event"] == "checkpoint"));
    resume(&run, "").end(WITHIN).well();
    assert_eq!(model(&whole), model(&run));
}
