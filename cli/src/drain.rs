//! Asks a run to empty a server, and says when that is done.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use windlass_common::exit::Exit;
use windlass_common::ids::ServerId;
use windlass_common::wire::{Phase, Status, Stop};
use windlass_worker::client::ClientError;
use windlass_worker::observer::{Observer, Seen, StatusStream};

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::DrainFlags;
use crate::lookout::View;
use crate::signals::{Interrupts, interrupted};

/// How long the coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the run may take to go on without the server.
const DONE: Duration = Duration::from_secs(60);
/// Before the run is looked at again.
const AGAIN: Duration = Duration::from_millis(200);

/// Empties a server and waits until it has no shards.
///
/// # Errors
/// If the run cannot be seen or does not train; if the server cannot be emptied, or not in time; if interrupted.
pub(crate) async fn run(flags: DrainFlags) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    let view = View::of(&flags.run, flags.identity.as_deref())?;
    tokio::select! {
        drained = drain(&flags.run, &view, ServerId(flags.server)) => {
            crate::print(&format!("{}\n", drained?))
        }
        () = interrupts.next() => Err(interrupted()),
    }
}

async fn drain(run: &str, view: &View, server: ServerId) -> Outcome<String> {
    let deadline = Instant::now() + DONE;
    let failed = |sentence: String| Failure::new(Exit::Run, sentence);
    let mut asked = false;
    let mut seen_at_all = false;
    while Instant::now() < deadline {
        let connected = Observer::watch(&view.coordinator, &view.identity, ANSWER).await;
        let mut statuses = match connected {
            Ok(statuses) => statuses,
            // It goes on without the server in this very moment.
            Err(_) if seen_at_all => {
                sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(error).or_fail(Exit::Network, format!("the run {run} cannot be seen")),
        };
        seen_at_all = true;
        let servers = statuses.plan().cluster.servers;
        if server.0 >= servers {
            return Err(Failure::usage(format!("the run {run} has no {server}, only 0 to {}", servers - 1)));
        }
        while let Some(status) = next(run, &mut statuses).await? {
            if status.phase != Phase::Training {
                continue;
            }
            if status.seats.is_empty() {
                let sentence =
                    format!("{server} cannot be drained: the shards of the run {run} have no standbys");
                return Err(failed(format!("{sentence}; begin it with --replicas 1")));
            }
            let has =
                |s: &&windlass_common::wire::SeatStatus| s.primary == server || s.standby == Some(server);
            if !status.seats.iter().any(|s| has(&s)) {
                let bare = status.seats.iter().filter(|s| s.standby.is_none()).count();
                let without = match bare {
                    0 => String::new(),
                    bare => format!("; {bare} of {} shards have no standby now", status.seats.len()),
                };
                return Ok(format!("{server} has no shards any more and may be ended{without}"));
            }
            if !asked {
                statuses.drain(server).await.or_exit(Exit::Network)?;
                asked = true;
            }
        }
        sleep(AGAIN).await;
    }
    Err(failed(format!("{server} still had shards after {} s", DONE.as_secs())))
}

/// The next status; `None` when the run goes on in a new lineage, for which everybody connects anew.
async fn next(run: &str, statuses: &mut StatusStream) -> Outcome<Option<Box<Status>>> {
    let failed = |sentence: String| Failure::new(Exit::Run, sentence);
    match statuses.next().await {
        Ok(Seen::Status(status)) if status.phase == Phase::Failed => Ok(None),
        Ok(Seen::Status(status)) => Ok(Some(status)),
        Ok(Seen::Stopped(Stop::Completed)) => Err(failed(format!("the run {run} is complete"))),
        Ok(Seen::Stopped(Stop::Failed { reason })) => Err(failed(reason)),
        Err(ClientError::Rejected(reason)) => Err(failed(reason.to_string())),
        Err(_) => Ok(None),
    }
}
