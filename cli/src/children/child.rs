//! Carries one process from its start to its end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use windlass_common::exit::Exit;
use windlass_process::memory_variables;
use windlass_transport::Role;

use super::tail::{Lines, Tail};
use super::{Exited, Program, name_of};
use crate::failure::{OrExit, Outcome};

/// What a process left in its pipes is read this long after its end; longer only if it has handed them on.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a process is to be told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// End in good order (SIGTERM).
    Terminate,
    /// End at once (SIGKILL).
    Kill,
}

/// A process that is alive, as far as is known.
#[derive(Debug)]
pub(super) struct Child {
    orders: mpsc::UnboundedSender<Order>,
    /// Its standard input, on which nothing is written: it ends when this program does, however that comes about, and
    /// the process with it.
    _leash: Option<ChildStdin>,
}

impl Child {
    pub(super) fn tell(&self, order: Order) {
        // It has ended if nobody listens.
        let _ = self.orders.send(order);
    }
}

struct Log {
    file: File,
    tail: Tail,
}

/// Starts a process in a group of its own, so that the terminal's Ctrl-C reaches only this program.
pub(super) fn start(
    role: Role,
    program: &Program,
    log: &Path,
    exits: mpsc::UnboundedSender<Exited>,
) -> Outcome<(Child, oneshot::Receiver<String>)> {
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.or_fail(Exit::System, format!("could not write the log {}", log.display()))?;
    let mut child = Command::new(&program.file)
        .args(&program.arguments)
        // It would start itself anew with them.
        .envs(memory_variables().iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .or_fail(Exit::System, format!("could not start {} ({})", name_of(role), program.file.display()))?;
    // A process that has been started and not waited for has a number.
    let process = child.id().unwrap_or_default();
    let leash = child.stdin.take();
    let log = Arc::new(Mutex::new(Log { file, tail: Tail::default() }));
    let (first_sender, first_line) = oneshot::channel();
    let stdout =
        child.stdout.take().map(|stream| tokio::spawn(keep(stream, Arc::clone(&log), Some(first_sender))));
    let stderr = child.stderr.take().map(|stream| tokio::spawn(keep(stream, Arc::clone(&log), None)));
    let (orders, mut queue) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                Some(order) = queue.recv() => obey(&mut child, order),
            }
        };
        let drained = async {
            for reader in [stdout, stderr].into_iter().flatten() {
                let _ = reader.await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, drained).await;
        let last_lines = log.lock().tail.lines();
        // Waiting fails only if somebody else has reaped the process, which nobody here does.
        if let Ok(status) = status {
            let _ = exits.send(Exited { role, process, status, last_lines });
        }
    });
    Ok((Child { orders, _leash: leash }, first_line))
}

fn obey(child: &mut tokio::process::Child, order: Order) {
    // The id is there until the process has been waited for, so that it is nobody else's.
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id {
        let signal = match order {
            Order::Terminate => Signal::TERM,
            Order::Kill => Signal::KILL,
        };
        let _ = kill_process(id, signal);
    }
}

/// Writes a stream to the log as it comes.
async fn keep(
    mut stream: impl AsyncRead + Unpin,
    log: Arc<Mutex<Log>>,
    mut first: Option<oneshot::Sender<String>>,
) {
    let mut buffer = vec![0; 8192];
    let mut lines = Lines::default();
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut log = log.lock();
        // A disk that is full does not keep the run from going on.
        let _ = log.file.write_all(&buffer[..count]);
        lines.push(&buffer[..count], &mut log.tail);
        if let Some(line) = &lines.first
            && let Some(first) = first.take()
        {
            let _ = first.send(line.clone());
        }
    }
    lines.end(&mut log.lock().tail);
}
