//! Kills runs as a whole, goes on with them, and counts what their logs then hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::schedule::{Draws, seeds};
use crate::{
    Running, child, count_of, count_of_pushes, lines, log, model, reach, send, since, start, summary, text,
    train, until,
};

/// How long a run may take to end.
pub const WITHIN: Duration = Duration::from_secs(240);

/// What is killed: a training in sync, and one in rounds.
pub const SYNC: &str =
    "--mode sync --model 2nn --servers 2 --workers 2 --passes 1 --batch 32 --seed 7 --name run";
/// See [`SYNC`].
pub const FEDAVG: &str = "--mode fedavg --model 2nn --servers 2 --workers 2 --clients 20 --fraction 0.2 --local-passes 1 \
                          --batch 50 --rounds 60 --seed 7 --name run";

/// Goes on with a run.
pub fn resume(run: &Path, more: &str) -> Running {
    let arguments: Vec<&str> =
        ["train", "--quiet", "--resume", text(run)].into_iter().chain(more.split_whitespace()).collect();
    start("windlass", &arguments, run.parent().expect("a run directory lies in a folder"))
}

/// Kills every process of a run at once. The launcher stands still first: when it ends, the others are told to end, and
/// who is told to end keeps a checkpoint and takes its leave.
pub fn kill_all(mut running: Running, roles: &[&str]) {
    running.signal(Signal::STOP);
    let processes: Vec<u32> = roles.iter().map(|role| child(running.id(), role, None)).collect();
    for &process in &processes {
        send(process, Signal::KILL);
    }
    running.kill();
    processes.into_iter().for_each(gone);
}

/// Waits until a process has ended.
///
/// # Panics
/// If it has not within 20 s.
pub fn gone(process: u32) {
    until(&format!("process {process} is gone"), || {
        let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        (status.is_empty() || status.contains(") Z ")).then_some(())
    });
}

/// How often a run has gone on from a checkpoint or from its beginning.
pub fn restored(run: &Path) -> usize {
    count_of("restored", &log(run))
}

/// Pushes that the log of a run holds since it went on last.
pub fn since_restored(run: &Path) -> usize {
    count_of_pushes(since(&["restored"], &log(run)))
}

/// The run that was killed has ended in the same bytes and counts as the other.
pub fn same(whole: &Path, killed: &Path, counts: &[&str]) {
    let is_same = model(whole) == model(killed);
    assert!(
        is_same,
        "other bytes: {}\nwithout kills: {}\nwith: {}",
        summary(whole),
        story(whole),
        story(killed)
    );
    for count in counts {
        let [one, other] = [whole, killed].map(|run| summary(run)[count].clone());
        assert!(one == other, "{count}: {one} and {other}; {}; {}", summary(whole), story(killed));
    }
}

/// What happened to a run beside its steps: from its log, and from what its processes warned of.
fn story(run: &Path) -> String {
    let usual = ["applied", "opened", "closed", "checkpoint"];
    let is_unusual = |l: &Value| !usual.contains(&l["event"].as_str().unwrap_or_default());
    let mut said: Vec<String> = lines(run).iter().filter(|l| is_unusual(l)).map(Value::to_string).collect();
    for log in fs::read_dir(run.join("logs")).into_iter().flatten().flatten() {
        said.push(format!("{}:", log.path().display()));
        said.push(fs::read_to_string(log.path()).unwrap_or_default());
    }
    said.join("\n")
}

/// A run that is killed as a whole, again and again, and goes on each time: so many times, if nobody asks for more. `pushes` is
/// how many it makes in all, on both shards together.
pub fn killed_again_and_again(
    folder: &Path,
    flags: &str,
    roles: &[&str],
    (every, times, pushes): (&str, u64, u64),
) -> PathBuf {
    let run = folder.join("killed");
    let times = seeds(times);
    let (count, mut draws) = (times.end - times.start, Draws::new(times.start));
    let mut running = train(&run, &format!("{flags} --checkpoint-every {every} --keep 1000"));
    for time in 0..count {
        until("it goes on", || (restored(&run) as u64 >= time).then_some(()));
        went_on(&run, time);
        let until_killed = draws.number(10..pushes / (count + 1)) as usize;
        reach(until_killed, "pushes", || {
            assert_eq!(running.code(), None, "it runs until it is killed for the {time}. time");
            since_restored(&run)
        });
        kill_all(running, roles);
        running = resume(&run, "");
    }
    running.end(WITHIN).well();
    went_on(&run, count);
    assert_eq!(summary(&run)["lineage"], count);
    run
}

/// It went on as often as it was killed.
fn went_on(run: &Path, killed: u64) {
    let restored = restored(run) as u64;
    assert!(restored == killed, "gone on {restored} times, killed {killed}: {}", story(run));
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
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
