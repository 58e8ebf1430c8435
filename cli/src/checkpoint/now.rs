//! Asks a run for a checkpoint, and says what came of it.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use windlass_common::exit::Exit;
use windlass_common::wire::{Phase, Stop};
use windlass_worker::observer::{Observer, Seen};

use crate::asked::{Asked, holds};
use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::NowFlags;
use crate::lookout::View;
use crate::signals::{Interrupts, interrupted};

/// How long the coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the checkpoint may take.
const KEPT: Duration = Duration::from_secs(30);

/// Asks for a checkpoint and waits until it is kept.
///
/// # Errors
/// If the run cannot be seen or does not train; if the checkpoint comes to nothing, or to nothing in time; if interrupted.
pub(crate) async fn run(flags: NowFlags) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    let view = View::of(&flags.run, flags.identity.as_deref())?;
    tokio::select! {
        kept = keep(&flags.run, &view) => crate::print(&format!("{}\n", kept?)),
        () = interrupts.next() => Err(interrupted()),
    }
}

async fn keep(run: &str, view: &View) -> Outcome<String> {
    let connected = Observer::watch(&view.coordinator, &view.identity, ANSWER).await;
    let mut statuses = connected.or_fail(Exit::Network, format!("the run {run} cannot be seen"))?;
    let failed = |sentence: String| Failure::new(Exit::Run, sentence);
    let deadline = Instant::now() + KEPT;
    let mut asked: Option<Asked> = None;
    loop {
        let Ok(seen) = timeout_at(deadline, statuses.next()).await else {
            return Err(failed(format!("no checkpoint was kept within {} s", KEPT.as_secs())));
        };
        let status = match seen.or_fail(Exit::Network, "the run can no longer be seen")? {
            Seen::Status(status) => status,
            Seen::Stopped(Stop::Completed) => return Err(failed(format!("the run {run} is complete"))),
            Seen::Stopped(Stop::Failed { reason }) => {
                return Err(failed(format!("the run {run} has failed: {reason}")));
            }
        };
        match asked {
            Some(asked) => match asked.outcome(&status.checkpoints) {
                Some(Ok(kept)) => return Ok(holds(&kept)),
                Some(Err(why)) => return Err(failed(why)),
                None => {}
            },
            None if status.phase == Phase::Training => {
                statuses.checkpoint().await.or_exit(Exit::Network)?;
                asked = Some(Asked::now(&status.checkpoints));
            }
            // It begins in a moment, and the deadline is for both.
            None if status.phase == Phase::Gathering => {}
            None => {
                return Err(failed(format!("the run {run} trains no more, and its result is no checkpoint")));
            }
        }
    }
}
