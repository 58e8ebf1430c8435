//! Carries a run from its first process to its last.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use windlass_common::exit::Exit;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::{Membership, Plan};
use windlass_common::wire::{Phase, Status, Stop, WorkerState};
use windlass_transport::Role;
use windlass_worker::client::ClientError;
use windlass_worker::observer::{self, Observer, SnapshotReader, StatusStream};

use super::Conditions;
use super::crew::Crew;
use super::verdict::{Known, Verdict, verdict};
use crate::children::{Exited, name_of};
use crate::evaluator::{Evaluation, Evaluator, Judged, Last};
use crate::failure::{Failure, Outcome};
use crate::figures::counted;
use crate::judge::Judge;
use crate::show::Show;
use crate::signals::{Interrupts, interrupted};

/// How long the coordinator has to say why others have gone.
const WORD: Duration = Duration::from_millis(500);
/// How long server 0 may take to write the result after it has said that the run is complete.
const LAST_WRITE: Duration = Duration::from_secs(15);
/// How long the others may take to end after server 0.
const FAREWELL: Duration = Duration::from_secs(5);

type Connected = Result<(StatusStream, SnapshotReader), ClientError>;

/// A run under way.
pub(super) struct Run {
    plan: Plan,
    crew: Crew,
    judge: Option<Arc<Judge>>,
    restarts_max: u32,
    /// The test accuracy at which the run is over.
    target: Option<f64>,
    show: Show,
    connecting: Option<JoinHandle<Connected>>,
    statuses: Option<StatusStream>,
    evaluator: Option<Evaluator>,
    status: Option<Status>,
    is_over: bool,
    /// Who has ended, and when to look again why.
    unclear: Vec<(Instant, Exited)>,
    /// When server 0 should be gone.
    deadline: Option<Instant>,
    seen: Seen,
}

/// What is known of a run that has ended.
pub(super) struct Seen {
    /// Per worker, how often it was restarted.
    pub(super) restarts: Vec<u32>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) last: Option<Last>,
}

/// Something that a run waits for.
enum Happening {
    Interrupted,
    Exited(Exited),
    Connected(Box<Connected>),
    Seen(Result<observer::Seen, ClientError>),
    Judged(Option<Judged>),
    TimeToLookAgain,
    ServerStays,
}

impl Run {
    pub(super) fn new(plan: Plan, crew: Crew, judge: Option<Arc<Judge>>, conditions: Conditions) -> Self {
        let Conditions { restarts: restarts_max, target, quiet, .. } = conditions;
        let mut show = Show::new(quiet);
        show.about(&plan);
        let restarts = vec![0; plan.cluster.workers as usize];
        Self {
            plan,
            crew,
            judge,
            restarts_max,
            target,
            show,
            connecting: None,
            statuses: None,
            evaluator: None,
            status: None,
            is_over: false,
            unclear: Vec::new(),
            deadline: None,
            seen: Seen { restarts, evaluations: Vec::new(), last: None },
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
        let (coordinator, identity) = (self.crew.coordinator().to_owned(), self.crew.observer().clone());
        let within = Duration::from_secs(cluster.join_deadline_s);
        let connecting = async move { Observer::connect(&coordinator, &identity, within).await };
        self.connecting = Some(tokio::spawn(connecting));
        loop {
            let happening = self.next(interrupts).await;
            if self.has_reached(&happening) {
                self.conclude().await;
            }
            if let Happening::Exited(exited) = &happening {
                self.tell_exit(exited).await;
            }
            if self.handle(happening)? {
                return self.finish(interrupts).await;
            }
        }
    }

    /// Ends whoever is alive, and says what was seen of the run.
    pub(super) async fn end(mut self, interrupts: &mut Interrupts) -> Seen {
        if !self.crew.children.all_ended() {
            self.show.step(&format!("ending {}", self.crew.children.names()));
            if let Some(names) = self.crew.children.end(interrupts.next()).await {
                self.show.notice(&format!("{names} did not end when asked to and had to be killed"));
            }
        }
        self.show.clear();
        self.seen
    }

    async fn next(&mut self, interrupts: &mut Interrupts) -> Happening {
        let again = self.unclear.iter().map(|(when, _)| *when).min();
        tokio::select! {
            () = interrupts.next() => Happening::Interrupted,
            exited = self.crew.children.next_exit() => Happening::Exited(exited),
            connected = joined(&mut self.connecting) => Happening::Connected(Box::new(connected)),
            seen = async {
                match &mut self.statuses {
                    Some(statuses) => statuses.next().await,
                    None => pending().await,
                }
            } => Happening::Seen(seen),
            judged = async {
                match &mut self.evaluator {
                    Some(evaluator) => evaluator.next().await,
                    None => pending().await,
                }
            } => Happening::Judged(judged),
            () = until(again) => Happening::TimeToLookAgain,
            () = until(self.deadline) => Happening::ServerStays,
        }
    }

    /// Whether this is the evaluation that the run went on for.
    fn has_reached(&self, happening: &Happening) -> bool {
        let (Some(target), Happening::Judged(Some(Judged::Evaluated(evaluation)))) = (self.target, happening)
        else {
            return false;
        };
        evaluation.accuracy >= target
    }

    /// The coordinator need not wait until the silence of a worker is noticed.
    async fn tell_exit(&mut self, exited: &Exited) {
        if let (Role::Worker(worker), Some(statuses)) = (exited.role, &mut self.statuses) {
            // If it cannot be told it is gone, and the run with it.
            let _ = statuses.exited(worker, exited.process, exited.how()).await;
        }
    }

    /// Asks the coordinator to open no further round.
    async fn conclude(&mut self) {
        self.target = None;
        let Some(statuses) = &mut self.statuses else { return };
        if let Err(error) = statuses.conclude().await {
            self.show.notice(&format!("the run goes on beyond its target: {error}"));
        }
    }

    /// Whether the run is complete.
    fn handle(&mut self, happening: Happening) -> Outcome<bool> {
        match happening {
            Happening::Interrupted => return Err(interrupted()),
            Happening::Exited(exited) => return self.exited(exited, false),
            Happening::Connected(connected) => self.connected(*connected)?,
            Happening::Seen(Ok(observer::Seen::Status(status))) => {
                self.show.status(&status);
                self.is_over |= status.phase == Phase::Done;
                // Later the file of a worker that was started again may not have been read yet.
                let is_first = self.status.as_ref().is_none_or(|before| before.phase == Phase::Gathering);
                if is_first
                    && status.phase == Phase::Training
                    && self.seen.restarts.iter().all(|&times| times == 0)
                {
                    self.crew.all_have_joined();
                    self.say_who_may_join()?;
                }
                self.status = Some(*status);
            }
            Happening::Seen(Ok(observer::Seen::Stopped(Stop::Completed))) => {
                self.is_over = true;
                self.statuses = None;
                self.deadline = Some(Instant::now() + LAST_WRITE);
            }
            Happening::Seen(Ok(observer::Seen::Stopped(Stop::Failed { reason }))) => {
                let details = self.unclear.first().map(|(_, exited)| exited.last_lines.clone());
                let sentence = format!("the run could not go on: {reason}");
                return Err(Failure::new(Exit::Run, sentence).with_details(details.unwrap_or_default()));
            }
            Happening::Seen(Err(error)) => {
                // If the coordinator is gone its process has ended, which says more than this.
                self.statuses = None;
                if !self.is_over && self.unclear.is_empty() {
                    self.show.notice(&format!("the progress is no longer shown: {error}"));
                }
            }
            Happening::Judged(judged) => self.judged(judged),
            Happening::TimeToLookAgain => {
                let now = Instant::now();
                let due = self.unclear.extract_if(.., |(when, _)| *when <= now).collect::<Vec<_>>();
                for (_, exited) in due {
                    if self.exited(exited, true)? {
                        return Ok(true);
                    }
                }
            }
            Happening::ServerStays => {
                let sentence =
                    format!("server 0 did not end within {} s after the run", LAST_WRITE.as_secs());
                return Err(Failure::new(Exit::Run, sentence));
            }
        }
        Ok(false)
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

    fn connected(&mut self, connected: Connected) -> Outcome<()> {
        self.connecting = None;
        match connected {
            Ok((statuses, reader)) => {
                self.statuses = Some(statuses);
                if let Some(judge) = &self.judge {
                    self.evaluator = Some(Evaluator::start(Arc::clone(judge), self.plan.clone(), reader)?);
                }
            }
            Err(error) => self.show.notice(&format!("the progress cannot be shown: {error}")),
        }
        Ok(())
    }

    fn judged(&mut self, judged: Option<Judged>) {
        match judged {
            None => self.seen.last = self.evaluator.take().and_then(Evaluator::into_last),
            // When the servers go, the evaluator loses them like everybody else.
            Some(Judged::Failed(_)) if self.is_over || !self.unclear.is_empty() => {}
            Some(judged) => {
                self.show.judged(&judged);
                if let Judged::Evaluated(evaluation) = judged {
                    self.seen.evaluations.push(evaluation);
                }
            }
        }
    }

    /// Whether the run is complete.
    fn exited(&mut self, exited: Exited, has_waited: bool) -> Outcome<bool> {
        let known = Known { is_over: self.is_over, has_left: self.has_left(exited.role), has_waited };
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

    fn has_left(&self, role: Role) -> bool {
        let (Role::Worker(id), Some(status)) = (role, &self.status) else { return false };
        status.workers.iter().any(|w| w.worker == id && w.state == WorkerState::Left)
    }

    fn restart(&mut self, exited: Exited) -> Outcome<()> {
        let (name, sentence) = (name_of(exited.role), exited.sentence());
        let Role::Worker(WorkerId(number)) = exited.role else { return Ok(()) };
        let times = &mut self.seen.restarts[number as usize];
        let is_elastic = self.plan.cluster.membership != Membership::Fixed;
        if *times >= self.restarts_max && is_elastic {
            self.show.notice(&format!("{sentence}, and is not restarted; the training goes on without it"));
            return Ok(());
        }
        if *times >= self.restarts_max && self.plan.goes_on_without_workers() {
            self.show.notice(&format!(
                "{sentence}, and its restarts are used up; the rounds go on without its clients"
            ));
            return Ok(());
        }
        if *times >= self.restarts_max {
            let sentence = format!(
                "{sentence}, and its restarts are used up (--restarts {}): {name} is missing, and the run cannot go on \
                 without it",
                self.restarts_max
            );
            return Err(Failure::new(Exit::Run, sentence).with_details(exited.last_lines));
        }
        *times += 1;
        self.show.notice(&format!("{sentence}; it is restarted (time {times} of {})", self.restarts_max));
        for line in exited.last_lines.iter().rev().take(3).rev() {
            self.show.notice(&format!("    {line}"));
        }
        self.crew.start(exited.role)?;
        Ok(())
    }

    /// Server 0 has ended well: waits for the others and for the evaluation that is under way.
    async fn finish(&mut self, interrupts: &mut Interrupts) -> Outcome<()> {
        self.is_over = true;
        self.show.step("the result is being scored");
        if !self.crew.children.wait_all(FAREWELL).await {
            self.show.notice(&format!("{} did not end with the run", self.crew.children.names()));
        }
        while let Some(evaluator) = &mut self.evaluator {
            tokio::select! {
                judged = evaluator.next() => self.judged(judged),
                () = interrupts.next() => return Err(interrupted()),
            }
        }
        Ok(())
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

/// The result of a task, if there is one to wait for.
async fn joined(task: &mut Option<JoinHandle<Connected>>) -> Connected {
    let Some(task) = task else { return pending().await };
    match task.await {
        Ok(connected) => connected,
        // The task is neither cancelled nor does it panic; if it does, so does this one.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
