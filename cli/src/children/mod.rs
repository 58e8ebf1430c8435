//! Starts the processes of a run, keeps what they say, and ends them.

mod child;
mod tail;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use windlass_common::exit::Exit;
use windlass_transport::Role;

use crate::failure::{OrExit, Outcome};
use crate::run_directory::LOGS;
use child::{Child, Order};

/// A process that was killed is gone after this long, unless the system is in trouble.
const KILL: Duration = Duration::from_secs(3);

/// What is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) file: PathBuf,
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

/// A process has ended.
#[derive(Debug)]
pub(crate) struct Exited {
    pub(crate) role: Role,
    /// Its number.
    pub(crate) process: u32,
    pub(crate) status: ExitStatus,
    /// The last lines of its log.
    pub(crate) last_lines: Vec<String>,
}

impl Exited {
    /// How it ended, in words.
    pub(crate) fn how(&self) -> String {
        format!("its process ended {}", how(self.status))
    }

    /// Whose process it was and how it ended, in words.
    pub(crate) fn sentence(&self) -> String {
        format!("{} ended {}", name_of(self.role), how(self.status))
    }
}

/// What people call a process.
pub(crate) fn name_of(role: Role) -> String {
    match role {
        Role::Server(id) => id.to_string(),
        Role::Worker(id) => id.to_string(),
        Role::Observer => "the observer".to_owned(),
    }
}

/// How a process ended, in words.
fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    let signals = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (None, Some(number)) => match signals.iter().find(|(n, _)| *n == number) {
            Some((_, name)) => format!("by signal {number} ({name})"),
            None => format!("by signal {number}"),
        },
        (None, None) => "in an unknown way".to_owned(),
    }
}

/// All processes of a run that are alive.
pub(crate) struct Children {
    alive: BTreeMap<Role, Child>,
    logs: PathBuf,
    exits: mpsc::UnboundedReceiver<Exited>,
    exits_sender: mpsc::UnboundedSender<Exited>,
}

impl Children {
    /// None yet; what they will say is kept in the logs of this run directory.
    ///
    /// # Errors
    /// If the folder for the logs cannot be made.
    pub(crate) fn new(run_directory: &Path) -> Outcome<Self> {
        let logs = run_directory.join(LOGS);
        std::fs::create_dir_all(&logs).or_fail(Exit::System, format!("could not make {}", logs.display()))?;
        // One message per process and life, so that the channel needs no bound of its own.
        let (exits_sender, exits) = mpsc::unbounded_channel();
        Ok(Self { alive: BTreeMap::new(), logs, exits, exits_sender })
    }

    /// Starts a process. What comes back is the first line that it writes to its standard output.
    ///
    /// # Errors
    /// If the program cannot be started or its log cannot be written.
    pub(crate) fn start(&mut self, role: Role, program: &Program) -> Outcome<oneshot::Receiver<String>> {
        let log = self.logs.join(format!("{role}.log"));
        let (child, first_line) = child::start(role, program, &log, self.exits_sender.clone())?;
        self.alive.insert(role, child);
        Ok(first_line)
    }

    /// Waits until one of them ends. May be dropped and called again. Never resolves when none is alive.
    pub(crate) async fn next_exit(&mut self) -> Exited {
        let Some(exited) = self.exits.recv().await else { return std::future::pending().await };
        self.alive.remove(&exited.role);
        exited
    }

    /// Whether a process in this role is alive.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.alive.contains_key(&role)
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.alive.is_empty()
    }

    /// The names of those that are alive.
    pub(crate) fn names(&self) -> String {
        self.alive.keys().map(|role| name_of(*role)).collect::<Vec<_>>().join(", ")
    }

    /// Waits until all have ended by themselves; false when some have not after this long.
    pub(crate) async fn wait_all(&mut self, within: Duration) -> bool {
        let all = async {
            while !self.all_ended() {
                self.next_exit().await;
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    /// Asks one to end before the others, and waits until it has, at most so long or until `hurry` resolves.
    pub(crate) async fn end_first(&mut self, role: Role, grace: Duration, hurry: impl Future<Output = ()>) {
        let Some(child) = self.alive.get(&role) else { return };
        child.tell(Order::Terminate);
        let ended = async {
            while self.alive.contains_key(&role) {
                self.next_exit().await;
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(grace, ended) => {}
            () = hurry => {}
        }
    }

    /// Kills all.
    pub(crate) async fn kill(&mut self) {
        self.tell(Order::Kill);
        self.wait_all(KILL).await;
    }

    /// Asks all to end, and kills those that have not after so long or when `hurry` resolves. Names who was killed.
    pub(crate) async fn end(&mut self, grace: Duration, hurry: impl Future<Output = ()>) -> Option<String> {
        self.tell(Order::Terminate);
        tokio::select! {
            done = self.wait_all(grace) => if done { return None },
            () = hurry => {}
        }
        let names = self.names();
        self.kill().await;
        Some(names)
    }

    fn tell(&self, order: Order) {
        for child in self.alive.values() {
            child.tell(order);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Instant;

    use windlass_common::ids::{ServerId, WorkerId};

    use super::*;

    fn shell(script: &str) -> Program {
        Program { file: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

    const LONG: Duration = Duration::from_secs(30);
    const WORKER: Role = Role::Worker(WorkerId(3));

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(how(ExitStatus::from_raw(5 << 8)), "with exit code 5");
        assert_eq!(how(ExitStatus::from_raw(9)), "by signal 9 (SIGKILL)");
        assert_eq!(how(ExitStatus::from_raw(40)), "by signal 40");
        assert_eq!(name_of(Role::Server(ServerId(0))), "server 0");
    }

    #[tokio::test]
    async fn what_a_process_says_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path()).unwrap();
        let script =
            "echo listening on x; i=0; while [ $i -lt 50 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
        let first = children.start(WORKER, &shell(script)).unwrap();
        assert_eq!(first.await.unwrap(), "listening on x");
        let exited = children.next_exit().await;
        assert_eq!(exited.sentence(), "worker 3 ended with exit code 3");
        assert_eq!(exited.last_lines.last().map(String::as_str), Some("line 49"));
        assert_eq!(exited.last_lines.len(), tail::LINES_KEPT);
        let log = std::fs::read_to_string(folder.path().join("logs/worker-3.log")).unwrap();
        assert!(log.contains("listening on x\n") && log.contains("line 0\n"));
        assert!(children.all_ended());
        children.start(WORKER, &shell("echo again")).unwrap();
        children.next_exit().await;
        let log = std::fs::read_to_string(folder.path().join("logs/worker-3.log")).unwrap();
        assert!(log.contains("line 49\n") && log.ends_with("again\n"));
    }

    #[tokio::test]
    async fn whoever_does_not_end_when_asked_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path()).unwrap();
        let first =
            children.start(WORKER, &shell("trap '' TERM; echo ready; while :; do sleep 0.1; done")).unwrap();
        first.await.unwrap();
        let before = Instant::now();
        let killed = children.end(LONG, tokio::time::sleep(Duration::from_millis(300))).await;
        assert_eq!(killed.as_deref(), Some("worker 3"));
        assert!(children.all_ended());
        assert!((300..3000).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
    }

    #[tokio::test]
    async fn one_ends_before_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path()).unwrap();
        const FIRST: Role = Role::Server(ServerId(0));
        let script =
            |then: &str| shell(&format!("trap '{then}' TERM; echo ready; while :; do sleep 0.05; done"));
        for (role, then) in [(FIRST, "sleep 0.3; exit 7"), (WORKER, "exit 0")] {
            children.start(role, &script(then)).unwrap().await.unwrap();
        }
        let before = Instant::now();
        children.end_first(FIRST, LONG, std::future::pending()).await;
        assert!(before.elapsed() >= Duration::from_millis(300), "{:?}", before.elapsed());
        assert_eq!(children.names(), "worker 3");
        // Nobody of this name is alive any more.
        children.end_first(FIRST, LONG, std::future::pending()).await;
        children.kill().await;
        assert!(children.all_ended());
    }

    #[tokio::test]
    async fn a_process_sees_its_input_end_with_us() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path()).unwrap();
        let first = children.start(WORKER, &shell("echo ready; cat; echo closed")).unwrap();
        first.await.unwrap();
        assert!(!children.wait_all(Duration::from_millis(100)).await);
        children.alive.clear();
        let exited = children.exits.recv().await.unwrap();
        assert_eq!(exited.last_lines, ["ready", "closed"]);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut children = Children::new(folder.path()).unwrap();
        let program = Program { file: "/no/such/program".into(), arguments: vec![] };
        let failure = children.start(WORKER, &program).unwrap_err();
        assert_eq!(failure.exit, Exit::System);
        assert!(failure.sentence().starts_with("could not start worker 3 (/no/such/program)"));
    }
}
