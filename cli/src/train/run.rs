//! Carries a run from its first process to its last.

mod ending;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::{Membership, Plan};
use windlass_common::wire::{Phase, Status, Stop};
use windlass_transport::Role;
use windlass_worker::client::ClientError;
use windlass_worker::observer;

use ending::Ending;

use super::crew::{COORDINATOR, Crew};
use super::restarts::Restarts;
use super::verdict::{Known, Verdict, verdict};
use super::view::{Sight, View};
use super::{Beginning, Conditions};
use crate::children::{Exited, name_of};
use crate::evaluator::{Evaluation, Judged, Last};
use crate::failure::{Failure, Outcome};
use crate::figures::counted;
use crate::judge::Judge;
use crate::show::Show;
use crate::signals::{Interrupts, interrupted};

/// How long the coordinator has to say why others have gone.
const WORD: Duration = Duration::from_millis(500);
/// How long server 0 may take to write the result after it has said that the run is complete.
const LAST_WRITE: Duration = Duration::from_secs(15);

/// A run under way.
pub(super) struct Run {
    plan: Plan,
    crew: Crew,
    view: View,
    /// The test accuracy at which the run is over.
    target: Option<f64>,
    show: Show,
    /// Whether the training has begun, also before this program was started.
    has_begun: bool,
    /// Whether everybody was there once.
    all_were_there: bool,
    is_over: bool,
    /// Who has ended, and when to look again why.
    unclear: Vec<(Instant, Exited)>,
    /// When server 0 should be gone.
    deadline: Option<Instant>,
    restarts: Restarts,
    ending: Ending,
}

/// What is known of a run that has ended.
pub(super) struct Seen {
    /// How often who was restarted.
    pub(super) restarts: Restarts,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) last: Option<Last>,
    /// Whether it may be gone on with.
    pub(super) can_go_on: bool,
}

/// Something that a run waits for.
enum Happening {
    Interrupted,
    Exited(Exited),
    Seen(Sight),
    TimeToLookAgain,
    TimeToStart,
    NotKept,
    ServerStays,
}

impl Run {
    pub(super) fn new(
        plan: Plan,
        crew: Crew,
        judge: Option<Arc<Judge>>,
        conditions: Conditions,
        beginning: Beginning,
    ) -> Self {
        let Conditions { restarts, target, quiet, .. } = conditions;
        let mut show = Show::new(quiet);
        show.about(&plan);
        Self {
            restarts: Restarts::new(restarts, &plan.cluster),
            view: View::new(plan.clone(), judge, beginning.evaluations),
            plan,
            crew,
            target,
            show,
            has_begun: beginning.is_resumed,
            all_were_there: false,
            is_over: false,
            unclear: Vec::new(),
            deadline: None,
            ending: Ending::Not,
        }
    }

    /// Starts everybody and waits until the run is complete.
    ///
    /// # Errors
    /// If it cannot go on, or is interrupted. Some processes may still be alive then.
    pub(super) async fn carry(&mut self, interrupts: &mut Interrupts) -> Outcome<()> {
        tokio::select! {
            started = self.crew.start_coordinator() => started?,
            () = interrupts.next() => return Err(interrupted()),
        }
        let cluster = self.plan.cluster;
        self.show.step(&format!(
            "starting {} and {}",
            counted(cluster.servers, "server"),
            counted(cluster.workers, "worker")
        ));
        let servers = (1..cluster.servers).map(|n| Role::Server(ServerId(n)));
        for role in servers.chain(cluster.worker_ids().map(Role::Worker)) {
            self.crew.start(role)?;
        }
        self.look_again();
        loop {
            let happening = self.next(interrupts).await;
            if self.has_reached(&happening) {
                self.conclude().await;
            }
            if let Happening::Exited(exited) = &happening {
                self.tell_exit(exited).await;
            }
            if matches!(happening, Happening::Interrupted) && self.asks_for_a_last_checkpoint().await {
                continue;
            }
            if self.handle(happening)? {
                return self.finish(interrupts).await;
            }
        }
    }

    async fn next(&mut self, interrupts: &mut Interrupts) -> Happening {
        let again = self.unclear.iter().map(|(when, _)| *when).min();
        tokio::select! {
            () = interrupts.next() => Happening::Interrupted,
            exited = self.crew.children.next_exit() => Happening::Exited(exited),
            sight = self.view.next() => Happening::Seen(sight),
            () = until(again) => Happening::TimeToLookAgain,
            () = until(self.restarts.next()) => Happening::TimeToStart,
            () = until(self.ending.deadline()) => Happening::NotKept,
            () = until(self.deadline) => Happening::ServerStays,
        }
    }

    /// Whether this is the evaluation that the run went on for.
    fn has_reached(&self, happening: &Happening) -> bool {
        let (Some(target), Happening::Seen(Sight::Judged(Some(Judged::Evaluated(evaluation))))) =
            (self.target, happening)
        else {
            return false;
        };
        evaluation.accuracy >= target
    }

    /// The coordinator need not wait until the silence of a worker is noticed.
    async fn tell_exit(&mut self, exited: &Exited) {
        if let (Role::Worker(worker), Some(statuses)) = (exited.role, self.view.statuses()) {
            // If it cannot be told it is gone, and the run with it.
            let _ = statuses.exited(worker, exited.process, exited.how()).await;
        }
    }

    /// Asks the coordinator to open no further round.
    async fn conclude(&mut self) {
        self.target = None;
        let Some(statuses) = self.view.statuses() else { return };
        if let Err(error) = statuses.conclude().await {
            self.show.notice(&format!("the run goes on beyond its target: {error}"));
        }
    }

    /// Whether the run is complete.
    fn handle(&mut self, happening: Happening) -> Outcome<bool> {
        match happening {
            Happening::Interrupted => return Err(interrupted()),
            Happening::Exited(exited) => return self.exited(exited, false),
            Happening::Seen(Sight::Connected(connected)) => match *connected {
                Ok(connected) => self.view.connected(connected),
                Err(error) => self.show.notice(&format!("the progress cannot be shown: {error}")),
            },
            Happening::Seen(Sight::Status(Ok(observer::Seen::Status(status)))) => self.status(*status)?,
            Happening::Seen(Sight::Status(Ok(observer::Seen::Stopped(Stop::Completed)))) => {
                self.is_over = true;
                self.view.lose_statuses();
                self.deadline = Some(Instant::now() + LAST_WRITE);
            }
            Happening::Seen(Sight::Status(Ok(observer::Seen::Stopped(Stop::Failed { reason })))) => {
                let details = self.unclear.first().map(|(_, exited)| exited.last_lines.clone());
                let sentence = format!("the run could not go on: {reason}");
                return Err(Failure::new(Exit::Run, sentence).with_details(details.unwrap_or_default()));
            }
            Happening::Seen(Sight::Status(Err(error))) => self.lost(&error),
            Happening::Seen(Sight::Judged(judged)) => self.judged(judged),
            Happening::Seen(Sight::Blind) if self.is_over => {}
            Happening::Seen(Sight::Blind) => self.look_again(),
            Happening::TimeToLookAgain => {
                let now = Instant::now();
                let due = self.unclear.extract_if(.., |(when, _)| *when <= now);
                // When a server died meanwhile, who was gone has been started again.
                let is_gone = |(_, exited): &(Instant, Exited)| !self.crew.children.has(exited.role);
                let due: Vec<_> = due.filter(is_gone).collect();
                for (_, exited) in due {
                    if self.exited(exited, true)? {
                        return Ok(true);
                    }
                }
            }
            Happening::TimeToStart => {
                for role in self.restarts.take_due(Instant::now()) {
                    self.crew.start(role)?;
                    if role == COORDINATOR {
                        self.look_again();
                    }
                }
            }
            Happening::NotKept => return Err(interrupted().with_details(vec![ending::not_kept()])),
            Happening::ServerStays => {
                let sentence =
                    format!("server 0 did not end within {} s after the run", LAST_WRITE.as_secs());
                return Err(Failure::new(Exit::Run, sentence));
            }
        }
        Ok(false)
    }

    fn status(&mut self, status: Status) -> Outcome<()> {
        let last_words = self.ending.last_words(&status.checkpoints);
        let is_training = status.phase == Phase::Training;
        self.is_over |= status.phase == Phase::Done;
        self.has_begun |= is_training;
        if let Some(sentence) = self.view.status(status.clone())? {
            self.show.taken_back();
            self.show.notice(&sentence);
        }
        // A run that goes back fails first; if it cannot go on, that is said when it stops.
        if status.phase != Phase::Failed || !self.view.survives_servers() {
            self.show.status(&status);
        }
        // Later the file of a process that was started again may not have been read yet.
        if is_training && !self.all_were_there {
            self.all_were_there = true;
            if self.restarts.are_none() {
                self.crew.all_have_joined();
            }
            self.say_who_may_join()?;
        }
        match last_words {
            Some(words) => Err(interrupted().with_details(vec![words])),
            None => Ok(()),
        }
    }

    /// The coordinator is no longer heard. With checkpoints it may have gone back, and is looked for again.
    fn lost(&mut self, error: &ClientError) {
        if self.is_over {
            self.view.lose_statuses();
        } else if self.view.survives_servers() {
            self.look_again();
        } else {
            // If the coordinator is gone its process has ended, which says more than this.
            self.view.lose_statuses();
            if self.unclear.is_empty() {
                self.show.notice(&format!("the progress is no longer shown: {error}"));
            }
        }
    }

    fn look_again(&mut self) {
        self.view.connect(self.crew.coordinator(), self.crew.observer());
    }

    /// Where workers may join later, says how.
    fn say_who_may_join(&mut self) -> Outcome<()> {
        let cluster = self.plan.cluster;
        let spare: Vec<WorkerId> = cluster.possible_workers().skip(cluster.workers as usize).collect();
        let Some((&first, others)) = spare.split_first() else { return Ok(()) };
        let mut sentence = format!("a worker may join: {}", self.crew.joining(first)?);
        for &other in others {
            self.crew.joining(other)?;
        }
        if let Some(last) = others.last() {
            sentence += &format!(" (and so on up to worker-{}.pem)", last.0);
        }
        self.show.notice(&sentence);
        Ok(())
    }

    fn judged(&mut self, judged: Option<Judged>) {
        match judged {
            None => self.view.judged_all(),
            // When the servers go, the evaluator loses them like everybody else.
            Some(Judged::Lost(_) | Judged::Failed(_)) if self.is_over => {}
            // They may be about to come back.
            Some(Judged::Lost(_)) if self.view.survives_servers() => self.view.lose_values(),
            Some(Judged::Lost(_) | Judged::Failed(_)) if !self.unclear.is_empty() => {}
            Some(judged) => {
                self.show.judged(&judged);
                if let Judged::Evaluated(evaluation) = judged {
                    self.view.evaluations.push(evaluation);
                }
            }
        }
    }

    /// Whether the run is complete.
    fn exited(&mut self, exited: Exited, has_waited: bool) -> Outcome<bool> {
        let known = Known {
            is_over: self.is_over,
            has_left: self.view.has_left(exited.role),
            has_waited,
            survives: self.view.survives_servers(),
        };
        match verdict(exited.role, exited.status, known) {
            Verdict::Fine => {}
            Verdict::Remark => {
                self.show.notice(&format!("{}, when the run needed it no more", exited.sentence()))
            }
            Verdict::Complete => return Ok(true),
            Verdict::Wait => self.unclear.push((Instant::now() + WORD, exited)),
            Verdict::Restart => self.restart(exited)?,
            Verdict::Fatal(exit) => {
                let sentence = format!("{}, and the run cannot go on without it", exited.sentence());
                return Err(Failure::new(exit, sentence).with_details(exited.last_lines));
            }
        }
        Ok(false)
    }

    fn restart(&mut self, exited: Exited) -> Outcome<()> {
        let (name, sentence, max) = (name_of(exited.role), exited.sentence(), self.restarts.max);
        let is_worker = matches!(exited.role, Role::Worker(_));
        let Some(times) = self.restarts.count(exited.role) else {
            let without = match self.plan.cluster.membership {
                _ if !is_worker => None,
                Membership::Elastic { .. } => Some("and is not restarted; the training goes on without it"),
                Membership::Fixed if self.plan.goes_on_without_workers() => {
                    Some("and its restarts are used up; the rounds go on without its clients")
                }
                Membership::Fixed => None,
            };
            if let Some(without) = without {
                self.show.notice(&format!("{sentence}, {without}"));
                return Ok(());
            }
            let sentence = format!(
                "{sentence}, and its restarts are used up (--restarts {max}): {name} is missing, and the run cannot go on \
                 without it"
            );
            return Err(Failure::new(Exit::Run, sentence).with_details(exited.last_lines));
        };
        self.show.notice(&format!("{sentence}; it is restarted (time {times} of {max})"));
        for line in exited.last_lines.iter().rev().take(3).rev() {
            self.show.notice(&format!("    {line}"));
        }
        match is_worker {
            true => self.crew.start(exited.role)?,
            false => {
                let now = Instant::now();
                self.restarts.plan(exited.role, now);
                // Everybody begins again from the checkpoint, those too that were done or given up.
                let gone = self.plan.cluster.worker_ids().map(Role::Worker);
                for role in gone.filter(|&role| !self.crew.children.has(role)) {
                    self.restarts.plan(role, now);
                }
            }
        }
        Ok(())
    }
}

pub(super) async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}
