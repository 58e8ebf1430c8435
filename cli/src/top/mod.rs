//! Shows a run live: its workers, its shards, who waits for whom, and what to do.

mod json;
mod screen;
mod table;
mod terminal;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use windlass_common::exit::Exit;
use windlass_common::plan::{Every, Plan};
use windlass_common::wire::{Phase, Status, Stop};
use windlass_worker::client::ClientError;
use windlass_worker::observer::{Observer, Seen, StatusStream};

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::TopFlags;
use crate::lookout::View;
use crate::show::pace::Pace;
use crate::signals::{Interrupts, interrupted};
use screen::{Size, screen};
use terminal::Terminal;

/// Where there is no terminal, a screen or an object is printed this often.
const PRINT_EVERY: Duration = Duration::from_secs(1);
/// Characters in a line where there is no terminal.
const WIDTH: usize = 110;
const CTRL_C: u8 = 3;

/// A run that is about to go on from a checkpoint is looked for again this often, and so long each time.
const AGAIN_EVERY: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(5);

/// Shows a run until it ends, or once. One that has checkpoints is looked for again when its coordinator is gone.
///
/// # Errors
/// If it cannot be reached or is lost; if the run fails; or if interrupted, which leaves the run alone.
pub(crate) async fn run(flags: TopFlags) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    let view = View::of(&flags.run, flags.identity.as_deref())?;
    let within = Duration::from_secs(flags.connect_deadline);
    let connected = tokio::select! {
        connected = Observer::watch(&view.coordinator, &view.identity, within) => connected,
        () = interrupts.next() => return Err(interrupted()),
    };
    let statuses = connected.or_fail(Exit::Network, format!("the run {} cannot be seen", flags.run))?;
    let plan = statuses.plan().clone();
    let is_live = std::io::stdout().is_terminal() && !flags.once && !flags.json;
    let medium = match flags.json {
        true => Medium::Json,
        false if is_live => Medium::Live(Terminal::take()),
        false => Medium::Text,
    };
    let top = Top { plan, medium, pace: Pace::default(), began: Instant::now(), printed: None };
    top.show(statuses, &flags, &mut interrupts).await
}

/// Looks again for a run that was lost sight of, as long as it may wait for its servers.
async fn seen_again(flags: &TopFlags, plan: &Plan, lost: ClientError) -> Outcome<StatusStream> {
    let within = plan.cluster.join_deadline_s.max(flags.connect_deadline);
    let deadline = Instant::now() + Duration::from_secs(within);
    // Its files go when it ends; who starts it again writes them anew.
    while let (true, Ok(view)) = (Instant::now() < deadline, View::of(&flags.run, flags.identity.as_deref()))
    {
        match Observer::watch(&view.coordinator, &view.identity, AGAIN).await {
            Ok(statuses) => return Ok(statuses),
            Err(ClientError::Ended(_)) => break,
            Err(_) => tokio::time::sleep(AGAIN_EVERY).await,
        }
    }
    Err(lost).or_fail(Exit::Network, "the run can no longer be seen")
}

/// Whether a run goes on from a checkpoint when a server is lost.
fn goes_back(plan: &Plan, last: Option<&Status>) -> bool {
    let has_one = last.is_some_and(|status| status.checkpoints.newest.is_some());
    plan.checkpoints.every != Every::Never || has_one
}

/// A run and how it is shown.
struct Top {
    plan: Plan,
    medium: Medium,
    pace: Pace,
    began: Instant,
    /// When something was printed last.
    printed: Option<Instant>,
}

enum Medium {
    Live(Terminal),
    Text,
    Json,
}

impl Top {
    async fn show(
        mut self,
        mut statuses: StatusStream,
        flags: &TopFlags,
        interrupts: &mut Interrupts,
    ) -> Outcome<()> {
        let mut last: Option<Status> = None;
        let mut lost: Option<ClientError> = None;
        loop {
            let seeing = async {
                if let Some(lost) = lost.take() {
                    statuses = seen_again(flags, &self.plan, lost).await?;
                }
                Ok(statuses.next().await)
            };
            let seen = tokio::select! {
                seen = seeing => seen?,
                key = key_of(&mut self.medium) => match key {
                    b'q' | b'Q' => return Ok(()),
                    CTRL_C => return Err(interrupted()),
                    _ => continue,
                },
                () = interrupts.next() => return Err(interrupted()),
            };
            // The terminal is given back before anything is said of it.
            let seen = match seen {
                Err(error) if goes_back(&self.plan, last.as_ref()) && !flags.once => {
                    lost = Some(error);
                    continue;
                }
                seen => seen.or_fail(Exit::Network, "the run can no longer be seen")?,
            };
            match seen {
                Seen::Status(status) => {
                    if last.as_ref().is_some_and(|l| l.checkpoints.lineage != status.checkpoints.lineage) {
                        self.pace = Pace::default();
                    }
                    if status.phase == Phase::Training {
                        self.pace.add(self.began.elapsed().as_secs_f64(), &status);
                    }
                    if flags.once {
                        return self.print(&status);
                    }
                    self.status(&status)?;
                    last = Some(*status);
                }
                Seen::Stopped(stop) => return self.stopped(last, stop),
            }
        }
    }

    fn status(&mut self, status: &Status) -> Outcome<()> {
        if let Medium::Live(terminal) = &self.medium {
            let size = terminal::size().unwrap_or(Size { width: 80, height: 24 });
            terminal.draw(&screen(status, &self.plan, &self.pace, size));
            return Ok(());
        }
        if self.printed.is_none_or(|printed| printed.elapsed() >= PRINT_EVERY) {
            if self.printed.is_some() && matches!(self.medium, Medium::Text) {
                crate::print("\n")?;
            }
            self.printed = Some(Instant::now());
            return self.print(status);
        }
        Ok(())
    }

    /// The whole of it, in as many lines as it takes.
    fn print(&self, status: &Status) -> Outcome<()> {
        if let Medium::Json = self.medium {
            return crate::print(&format!("{}\n", json::line(status, &self.plan)?));
        }
        let width = terminal::size().map_or(WIDTH, |size| size.width);
        let lines = screen(status, &self.plan, &self.pace, Size { width, height: 10_000 });
        crate::print(&terminal::text(&lines, terminal::has_colour()))
    }

    /// Leaves the last screen where it can be read, and says how the run ended.
    fn stopped(mut self, last: Option<Status>, stop: Stop) -> Outcome<()> {
        if let Medium::Live(_) = self.medium {
            self.medium = Medium::Text;
        }
        if let Some(last) = last {
            if self.printed.is_some() && matches!(self.medium, Medium::Text) {
                crate::print("\n")?;
            }
            self.print(&ended(last, &stop))?;
        }
        let name = &self.plan.name;
        match stop {
            Stop::Completed if matches!(self.medium, Medium::Json) => Ok(()),
            Stop::Completed => crate::print(&format!("the run {name} is complete\n")),
            Stop::Failed { reason } => {
                Err(Failure::new(Exit::Run, format!("the run {name} could not go on: {reason}")))
            }
        }
    }
}

/// The last status, whose end may have come before it could be told.
fn ended(mut status: Status, stop: &Stop) -> Status {
    (status.phase, status.waiting) = match stop {
        Stop::Completed => (Phase::Done, String::new()),
        Stop::Failed { reason } => (Phase::Failed, reason.clone()),
    };
    status.blocked.clear();
    status.advice.clear();
    status
}

/// The next key; for ever where there are none.
async fn key_of(medium: &mut Medium) -> u8 {
    match medium {
        Medium::Live(terminal) => terminal.key().await,
        Medium::Text | Medium::Json => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
