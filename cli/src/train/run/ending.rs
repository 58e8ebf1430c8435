//! Ends a run, when its time has come or before.

use std::time::Duration;

use tokio::time::Instant;
use windlass_common::wire::CheckpointStatus;

use super::{Run, Seen};
use crate::asked::{Asked, holds};
use crate::failure::Outcome;
use crate::signals::{Interrupts, interrupted};
use crate::train::crew::COORDINATOR;
use crate::train::view::View;

/// How long the others may take to end after server 0.
const FAREWELL: Duration = Duration::from_secs(5);
/// Who was told to end and did not is killed after so long; server 0 may try in vain to keep a last checkpoint.
const GRACE: Duration = Duration::from_secs(5);
const GRACE_WITH_CHECKPOINTS: Duration = Duration::from_secs(12);
/// How long a run that is to end may take to keep a last checkpoint.
const LAST_CHECKPOINT: Duration = Duration::from_secs(10);

/// Whether the run is to end before its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Not,
    /// A last checkpoint was asked for, and has until then.
    Keeping(Asked, Instant),
    /// Nobody is waited for.
    AtOnce,
}

impl Ending {
    /// Until when a last checkpoint is waited for.
    pub(super) fn deadline(self) -> Option<Instant> {
        if let Self::Keeping(_, deadline) = self { Some(deadline) } else { None }
    }

    /// What is said when it is known what came of the last checkpoint.
    pub(super) fn last_words(self, status: &CheckpointStatus) -> Option<String> {
        let Self::Keeping(asked, _) = self else { return None };
        Some(match asked.outcome(status)? {
            Ok(kept) => format!("kept: {}", holds(&kept)),
            Err(why) => format!("no last checkpoint was kept: {why}"),
        })
    }
}

/// What is said when nothing has come of it.
pub(super) fn not_kept() -> String {
    format!("no last checkpoint was kept within {} s", LAST_CHECKPOINT.as_secs())
}

impl Run {
    /// Ends whoever is alive, and says what was seen of the run.
    pub(in crate::train) async fn end(mut self, interrupts: &mut Interrupts) -> Seen {
        let children = &mut self.crew.children;
        if !children.all_ended() {
            self.show.step(&format!("ending {}", children.names()));
            match self.ending {
                Ending::AtOnce => children.kill().await,
                // As long as the others are there, server 0 can end the run in good order.
                Ending::Keeping(..) => {
                    children.end_first(COORDINATOR, GRACE_WITH_CHECKPOINTS, interrupts.next()).await;
                }
                Ending::Not => {}
            }
            let grace = if self.view.survives_servers() { GRACE_WITH_CHECKPOINTS } else { GRACE };
            if let Some(names) = children.end(grace, interrupts.next()).await {
                self.show.notice(&format!("{names} did not end when asked to and had to be killed"));
            }
        }
        self.show.clear();
        let can_go_on = self.has_begun && !self.is_over && self.view.survives_servers();
        let View { evaluations, last, .. } = self.view;
        Seen { restarts: self.restarts, evaluations, last, can_go_on }
    }

    /// Whether a run that is told to end keeps a last checkpoint first: while it trains, if it keeps any, and only once.
    pub(super) async fn asks_for_a_last_checkpoint(&mut self) -> bool {
        if let Ending::Keeping(..) = self.ending {
            self.ending = Ending::AtOnce;
            return false;
        }
        if !self.view.survives_servers() || !self.view.is_training() {
            return false;
        }
        let Some(status) = &self.view.status else { return false };
        let asked = Asked::now(&status.checkpoints);
        let Some(statuses) = self.view.statuses() else { return false };
        if statuses.checkpoint().await.is_err() {
            return false;
        }
        self.ending = Ending::Keeping(asked, Instant::now() + LAST_CHECKPOINT);
        self.show.notice("a last checkpoint is being kept; once more ends the run at once");
        true
    }

    /// Server 0 has ended well: waits for the others and for the evaluation that is under way.
    pub(super) async fn finish(&mut self, interrupts: &mut Interrupts) -> Outcome<()> {
        self.is_over = true;
        self.show.step("the result is being scored");
        if !self.crew.children.wait_all(FAREWELL).await {
            self.show.notice(&format!("{} did not end with the run", self.crew.children.names()));
        }
        while let Some(evaluator) = self.view.evaluator() {
            tokio::select! {
                judged = evaluator.next() => self.judged(judged),
                () = interrupts.next() => return Err(interrupted()),
            }
        }
        Ok(())
    }
}
