//! Starts the real programs, watches them with a deadline, and reads what they leave behind.
//!
//! The programs are taken from the folder that the environment variable `WINDLASS_BIN` names, else from the release
//! folder beside this test's own. Build them first: `cargo build --release --bins`.

pub mod by_hand;
pub mod kills;
pub mod ledger;
pub mod relay;
pub mod replay;
pub mod schedule;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How often something that is waited for is looked at, if it does not take long to look.
const LOOK: Duration = Duration::from_millis(5);
/// How much longer than looking the pause after it is: a log takes a while to read, and those who write it need the cores.
const PAUSE: u32 = 5;

/// The path of a program.
///
/// # Panics
/// If it has not been built.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("WINDLASS_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().expect("a test has a path");
        let target = own.ancestors().nth(3).expect("a test lies in target/PROFILE/deps");
        target.join("release")
    });
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run cargo build --release --bins first", path.display());
    path
}

/// The real MNIST of this repository.
pub fn mnist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/mnist")
}

/// A program that runs. It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    what: String,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed as errors and log.
    pub stderr: String,
    /// From its start.
    pub took: Duration,
}

/// Starts a program with these arguments, in this folder.
///
/// # Panics
/// If it cannot be started.
pub fn start(name: &str, arguments: &[&str], folder: &Path) -> Running {
    start_with(&[], name, arguments, folder)
}

/// The same, with environment variables.
///
/// # Panics
/// If it cannot be started.
pub fn start_with(environment: &[(&str, &str)], name: &str, arguments: &[&str], folder: &Path) -> Running {
    let mut command = Command::new(program(name));
    command.envs(environment.iter().copied());
    // With --exit-with-stdin it ends with this process, however that ends.
    command.args(arguments).current_dir(folder).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is a program");
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Running { child, stdout, stderr, what: format!("{name} {}", arguments.join(" ")) }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it has not within this time: nothing here may hang.
    pub fn end(mut self, within: Duration) -> Ended {
        let start = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            if start.elapsed() > within {
                let _ = self.child.kill();
                let (out, err) = (self.text(true), self.text(false));
                panic!("{} had not ended after {within:?}\n{out}\n{err}", self.what);
            }
            std::thread::sleep(LOOK);
        };
        let (stdout, stderr) = (self.text(true), self.text(false));
        Ended { code: status.code(), stdout, stderr, took: start.elapsed() }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.code().is_some()
    }

    /// Its exit code, none if a signal ended it; or none at all while it runs.
    pub fn code(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().ok().flatten().map(|status| status.code())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills it if it still runs, and tells how it ended and all that it said.
    pub fn last_words(mut self) -> String {
        let code = self.code();
        self.kill();
        let (out, err) = (self.text(true), self.text(false));
        format!("== {} ended with {code:?}\n{out}{err}", self.what)
    }

    fn text(&mut self, out: bool) -> String {
        let collector = if out { self.stdout.take() } else { self.stderr.take() };
        collector.and_then(|c| c.join().ok()).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        send(self.id(), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that a test has started.
///
/// # Panics
/// If there is no such process.
pub fn send(process: u32, signal: Signal) {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id is positive");
    kill_process(id, signal).expect("the process is there");
}

impl Ended {
    /// Checks that it ended well.
    ///
    /// # Panics
    /// If it did not.
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Checks that it ended with this code and one sentence that says all of this, without a panic.
    ///
    /// # Panics
    /// If it did not.
    pub fn failed(self, code: i32, says: &[&str]) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
        for word in says {
            assert!(stderr.contains(word), "{word:?} is not in\n{stderr}");
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
        self
    }
}

/// `windlass train` on the real MNIST with these further arguments and this run directory.
pub fn train(run: &Path, arguments: &str) -> Running {
    let data = mnist();
    let mut all = vec!["train", "--quiet", "--data", text(&data), "--run-dir", text(run)];
    all.extend(arguments.split_whitespace());
    start("windlass", &all, run.parent().expect("a run directory lies in a folder"))
}

/// A path as text.
///
/// # Panics
/// If it is not.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// The process of a run's child with this identity, such as `worker-1`, once there is one that is not `but`.
///
/// # Panics
/// If there is none within 20 s.
pub fn child(parent: u32, identity: &str, but: Option<u32>) -> u32 {
    until(&format!("{identity} runs"), || {
        let children =
            fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let others = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let all = others
            .map(|t| fs::read_to_string(t.path().join("children")).unwrap_or_default())
            .fold(children, |all, more| all + " " + &more);
        let mut ids = all.split_whitespace().filter_map(|id| id.parse().ok());
        ids.find(|&id: &u32| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            but != Some(id) && String::from_utf8_lossy(&line).contains(&format!("{identity}.pem"))
        })
    })
}

/// Waits until the log of a run holds this many lines about pushes.
///
/// # Panics
/// If for 20 s there is no further one.
pub fn pushes(run: &Path, count: usize) {
    reach(count, "pushes", || count_of_pushes(&log(run)));
}

/// Looks again and again until a count that grows is so high. How long that takes depends on what else the machine does; that it
/// grows at all does not.
///
/// # Panics
/// If for 20 s it does not grow.
pub fn reach(count: usize, of: &str, mut look: impl FnMut() -> usize) {
    let mut seen = look();
    while seen < count {
        seen = until(&format!("there are more than {seen} of {count} {of}"), || {
            Some(look()).filter(|&now| now > seen)
        });
    }
}

/// Looks again and again until there is an answer.
///
/// # Panics
/// If there is none within 20 s.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(pause(begun));
    }
}

/// The pause after looking, which began then.
fn pause(begun: Instant) -> Duration {
    LOOK.max(begun.elapsed() * PAUSE)
}

/// The text of a run's log, as far as it is written. To count in it takes a fraction of what [`lines`] does, and leaves the cores
/// to those who write it.
pub fn log(run: &Path) -> String {
    fs::read_to_string(run.join("events.jsonl")).unwrap_or_default()
}

/// How many lines of a log tell of this.
pub fn count_of(event: &str, log: &str) -> usize {
    log.matches(&format!("\"event\":\"{event}\"")).count()
}

/// How many lines of a log are about pushes.
pub fn count_of_pushes(log: &str) -> usize {
    log.matches("\"sequence\":").count()
}

/// What a log holds since the run went on last in one of these ways.
pub fn since<'a>(events: &[&str], log: &'a str) -> &'a str {
    let last = |event: &&str| log.rfind(&format!("\"event\":\"{event}\""));
    &log[events.iter().filter_map(last).max().unwrap_or(0)..]
}

/// The lines of a run's log, as far as they are written.
pub fn lines(run: &Path) -> Vec<Value> {
    log(run).lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect()
}

/// The applied, late and void pushes in a run's log, as far as they are written.
pub fn events(run: &Path) -> Vec<Value> {
    lines(run).into_iter().filter(|v| v["sequence"].is_u64()).collect()
}

/// A run's summary.
///
/// # Panics
/// If there is none.
pub fn summary(run: &Path) -> Value {
    let bytes = fs::read(run.join("summary.json")).expect("a run that ended has a summary");
    serde_json::from_slice(&bytes).expect("the summary is JSON")
}

/// The bytes of a run's result.
///
/// # Panics
/// If there is none.
pub fn model(run: &Path) -> Vec<u8> {
    fs::read(run.join("model.safetensors")).expect("a complete run has a result")
}
