//! Kills whole runs and their servers, and shows that they go on from their checkpoints as if nothing had happened.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use windlass_process_tests::ledger::Ledger;
use windlass_process_tests::schedule::{Draws, seeds};
use windlass_process_tests::{
    Running, child, events, lines, model, send, start, summary, text, train, until,
};

const WITHIN: Duration = Duration::from_secs(240);
const SYNC: &str =
    "--mode sync --model 2nn --servers 2 --workers 2 --passes 1 --batch 32 --seed 7 --name run";
const FEDAVG: &str = "--mode fedavg --model 2nn --servers 2 --workers 2 --clients 20 --fraction 0.2 --local-passes 1 \
                      --batch 50 --rounds 60 --seed 7 --name run";
const ASYNC: &str =
    "--mode async --model 2nn --servers 2 --workers 3 --passes 1 --batch 32 --seed 7 --name run";

/// Goes on with a run.
fn resume(run: &Path, more: &str) -> Running {
    let arguments: Vec<&str> =
        ["train", "--quiet", "--resume", text(run)].into_iter().chain(more.split_whitespace()).collect();
    start("windlass", &arguments, run.parent().expect("a run directory lies in a folder"))
}

/// Kills every process of a run at once. The launcher stands still first: when it ends, the others are told to end, and
/// who is told to end keeps a checkpoint and takes its leave.
fn kill_all(mut running: Running, roles: &[&str]) {
    running.signal(Signal::STOP);
    let processes: Vec<u32> = roles.iter().map(|role| child(running.id(), role, None)).collect();
    for &process in &processes {
        send(process, Signal::KILL);
    }
    running.kill();
    for process in processes {
        until(&format!("process {process} is gone"), || {
            let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            (status.is_empty() || status.contains(") Z ")).then_some(())
        });
    }
}

/// How often a run has gone on from a checkpoint or from its beginning.
fn restored(run: &Path) -> usize {
    lines(run).iter().filter(|l| l["event"] == "restored").count()
}

/// Pushes that the log of a run holds since it went on last.
fn since_restored(run: &Path) -> usize {
    let all = lines(run);
    all.iter().rev().take_while(|l| l["event"] != "restored").filter(|l| l["sequence"].is_u64()).count()
}

/// The run that was killed has ended in the same bytes and counts as the other.
fn same(whole: &Path, killed: &Path, counts: &[&str]) {
    assert_eq!(model(whole), model(killed));
    for count in counts {
        if summary(whole)[count] != summary(killed)[count] {
            let unusual = |l: &Value| {
                !["applied", "opened", "closed", "checkpoint"]
                    .contains(&l["event"].as_str().unwrap_or_default())
            };
            let unusual: Vec<String> =
                lines(killed).iter().filter(|l| unusual(l)).map(Value::to_string).collect();
            let [whole, killed] = [whole, killed].map(summary);
            panic!(
                "{count}: {} and {}; {whole}; {killed}; {}",
                whole[count],
                killed[count],
                unusual.join("\n")
            );
        }
    }
}

/// A run that is killed as a whole, again and again, and goes on each time. `pushes` is how many it makes in all, on both
/// shards together.
fn killed_again_and_again(folder: &Path, flags: &str, roles: &[&str], every: &str, pushes: u64) -> PathBuf {
    let run = folder.join("killed");
    let times = seeds(5);
    let (count, mut draws) = (times.end - times.start, Draws::new(times.start));
    let mut running = train(&run, &format!("{flags} --checkpoint-every {every} --keep 1000"));
    for time in 0..count {
        until("it goes on", || (restored(&run) as u64 == time).then_some(()));
        let until_killed = draws.number(10..pushes / (count + 1)) as usize;
        until(&format!("{until_killed} pushes"), || {
            (since_restored(&run) >= until_killed && running.code().is_none()).then_some(())
        });
        kill_all(running, roles);
        running = resume(&run, "");
    }
    running.end(WITHIN).well();
    assert_eq!(restored(&run) as u64, count);
    assert_eq!(summary(&run)["lineage"], count);
    run
}

#[test]
fn a_sync_run_that_is_killed_again_and_again_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    train(&whole, SYNC).end(WITHIN).well();
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    let killed = killed_again_and_again(folder.path(), SYNC, &roles, "40steps", 3700);
    same(&whole, &killed, &["steps", "pushes", "examples"]);
}

#[test]
fn a_federated_run_that_is_killed_again_and_again_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    train(&whole, FEDAVG).end(WITHIN).well();
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    let killed = killed_again_and_again(folder.path(), FEDAVG, &roles, "4steps", 480);
    same(&whole, &killed, &["rounds", "steps", "pushes", "client_tallies"]);
}

/// What a codec leaves out of pushes is in checkpoints: in sync with each of those that leave something out for good.
#[test]
fn runs_with_codecs_that_leave_something_out_end_in_the_same_bytes() {
    let roles = ["server-0", "server-1", "worker-0", "worker-1"];
    for (mode, codec, every, pushes) in
        [(SYNC, "int8", "40steps", 3700), (SYNC, "topk:1%", "40steps", 3700), (FEDAVG, "sign", "4steps", 480)]
    {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        let flags = format!("{mode} --push-codec {codec}");
        train(&whole, &flags).end(WITHIN).well();
        let killed = killed_again_and_again(folder.path(), &flags, &roles, every, pushes);
        same(&whole, &killed, &["steps", "pushes"]);
        // With others than wrote them: what was left out is cut anew.
        if mode == SYNC {
            let running = train(&folder.path().join("cut"), &format!("{flags} --checkpoint-every 100steps"));
            let run = folder.path().join("cut");
            until("a checkpoint", || lines(&run).iter().any(|l| l["event"] == "checkpoint").then_some(()));
            kill_all(running, &roles);
            resume(&run, "--servers 3").end(WITHIN).well();
            assert_eq!(model(&whole), model(&run), "{codec} on 3 servers");
        }
    }
}

/// The same where the run goes back because a server was killed, and the workers' processes live on.
#[test]
fn what_was_left_out_goes_back_with_all_when_a_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let flags = format!("{SYNC} --push-codec sign");
    train(&whole, &flags).end(WITHIN).well();
    let running = train(&killed, &format!("{flags} --checkpoint-every 60steps --restarts 3"));
    for role in ["server-1", "server-0"] {
        until("500 pushes", || (since_restored(&killed) >= 500).then_some(()));
        let lineage = restored(&killed);
        send(child(running.id(), role, None), Signal::KILL);
        until("it goes on", || (restored(&killed) > lineage).then_some(()));
    }
    running.end(WITHIN).well();
    assert_eq!(model(&whole), model(&killed));
}

#[test]
fn no_push_that_a_checkpoint_holds_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let roles = ["server-0", "server-1", "worker-0", "worker-1", "worker-2"];
    let killed = killed_again_and_again(folder.path(), ASYNC, &roles, "100steps", 3700);
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
        until("500 pushes", || (since_restored(&killed) >= 500).then_some(()));
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
fn what_workers_were_sent_in_patches_is_restored_on_any_number_of_servers() {
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("{SYNC} --pull-codec topk:2%");
    let [whole, run] = ["whole", "run"].map(|name| folder.path().join(name));
    train(&whole, &flags).end(WITHIN).well();
    let running = train(&run, &format!("{flags} --checkpoint-every 100steps"));
    until("a checkpoint", || lines(&run).iter().any(|l| l["event"] == "checkpoint").then_some(()));
    kill_all(running, &["server-0", "server-1", "worker-0", "worker-1"]);
    for servers in ["1", "2", "5"] {
        let copy = folder.path().join(format!("on-{servers}"));
        copy_folder(&run, &copy);
        resume(&copy, &format!("--servers {servers}")).end(WITHIN).well();
        assert_eq!(restored(&copy), 1);
        assert_eq!(model(&whole), model(&copy), "on {servers} servers");
    }
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
    until("500 pushes", || (since_restored(&run) >= 500).then_some(()));
    running.signal(Signal::TERM);
    let ended = running.end(WITHIN);
    assert_eq!(ended.code, Some(130), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("--resume"), "{}", ended.stderr);
    assert!(lines(&run).iter().any(|l| l["event"] == "checkpoint"));
    resume(&run, "").end(WITHIN).well();
    assert_eq!(model(&whole), model(&run));
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = || -> std::io::Result<()> {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            match entry.file_type()?.is_dir() {
                true => copy_folder(&entry.path(), &target),
                false => drop(fs::copy(entry.path(), target)?),
            }
        }
        Ok(())
    };
    copied().expect("a test's folder can be copied");
}
