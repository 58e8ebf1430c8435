//! Looks at the run as an observer: how it stands, and how good its model is, also when it has been taken back.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use windlass_common::ids::WorkerId;
use windlass_common::plan::{Every, Plan};
use windlass_common::wire::{Phase, Status, WorkerState};
use windlass_transport::{Identity, Role};
use windlass_worker::client::ClientError;
use windlass_worker::observer::{self, Observer, SnapshotReader, StatusStream};

use super::course;
use crate::evaluator::{Evaluation, Evaluator, Judged, Last};
use crate::failure::Outcome;
use crate::judge::Judge;

/// Between two attempts to see again a run that is being taken back.
const PAUSE: Duration = Duration::from_millis(200);
/// Whoever can no longer be had values of says why within so long, or is looked for again.
const BLIND: Duration = Duration::from_secs(1);
/// An attempt may be kept by servers that are gone meanwhile; then another one finds those that have taken their place.
const ATTEMPT: Duration = Duration::from_secs(5);

type Connected = Result<(StatusStream, SnapshotReader), ClientError>;

/// Something that is seen.
pub(super) enum Sight {
    Connected(Box<Connected>),
    Status(Result<observer::Seen, ClientError>),
    Judged(Option<Judged>),
    /// Values have not been seen for a while, and nobody has said why.
    Blind,
}

/// What is seen of a run.
pub(super) struct View {
    plan: Plan,
    judge: Option<Arc<Judge>>,
    connecting: Option<JoinHandle<Connected>>,
    statuses: Option<StatusStream>,
    /// Until it is known with which point the evaluator begins.
    reader: Option<SnapshotReader>,
    evaluator: Option<Evaluator>,
    /// When to look for the run again, unless something is heard of it before.
    blind: Option<Instant>,
    pub(super) status: Option<Status>,
    pub(super) evaluations: Vec<Evaluation>,
    pub(super) last: Option<Last>,
}

impl View {
    /// Sees nothing yet.
    pub(super) fn new(plan: Plan, judge: Option<Arc<Judge>>, evaluations: Vec<Evaluation>) -> Self {
        Self {
            plan,
            judge,
            connecting: None,
            statuses: None,
            reader: None,
            evaluator: None,
            blind: None,
            status: None,
            evaluations,
            last: None,
        }
    }

    /// Whether the run can go on when a server is lost: from a copy that another has, or from a checkpoint.
    pub(super) fn survives_servers(&self) -> bool {
        let newest = self.status.as_ref().and_then(|status| status.checkpoints.newest);
        self.plan.cluster.replicas > 0 || self.plan.checkpoints.every != Every::Never || newest.is_some()
    }

    /// Connects to the run, once more if need be. What was seen last stays known.
    pub(super) fn connect(&mut self, coordinator: &str, identity: &Identity) {
        (self.statuses, self.reader, self.evaluator, self.blind) = (None, None, None, None);
        let (coordinator, identity) = (coordinator.to_owned(), identity.clone());
        let within = Duration::from_secs(self.plan.cluster.join_deadline_s);
        let connecting = match self.survives_servers() {
            true => tokio::spawn(connect_again(coordinator, identity, within)),
            false => tokio::spawn(async move { Observer::connect(&coordinator, &identity, within).await }),
        };
        if let Some(before) = self.connecting.replace(connecting) {
            before.abort();
        }
    }

    /// The run can be seen from now on.
    pub(super) fn connected(&mut self, (statuses, reader): (StatusStream, SnapshotReader)) {
        (self.statuses, self.reader) = (Some(statuses), Some(reader));
    }

    /// The servers give no more values. The run may have ended, or been taken back, which the coordinator says.
    pub(super) fn lose_values(&mut self) {
        (self.evaluator, self.blind) = (None, Some(Instant::now() + BLIND));
    }

    /// No status will come any more.
    pub(super) fn lose_statuses(&mut self) {
        self.statuses = None;
    }

    /// Waits for what is seen next. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Sight {
        tokio::select! {
            connected = joined(&mut self.connecting) => {
                self.connecting = None;
                Sight::Connected(Box::new(connected))
            }
            seen = async {
                match &mut self.statuses {
                    Some(statuses) => statuses.next().await,
                    None => pending().await,
                }
            } => Sight::Status(seen),
            judged = async {
                match &mut self.evaluator {
                    Some(evaluator) => evaluator.next().await,
                    None => pending().await,
                }
            } => Sight::Judged(judged),
            () = super::run::until(self.blind) => {
                self.blind = None;
                Sight::Blind
            }
        }
    }

    /// Takes in how the run stands, and says from where it goes on if it has been taken back.
    ///
    /// # Errors
    /// If the evaluator cannot be started.
    pub(super) fn status(&mut self, status: Status) -> Outcome<Option<String>> {
        let is_back = course::was_taken_back(self.status.as_ref(), &status);
        let sentence = is_back.then(|| course::sentence(self.status.as_ref(), &status));
        if is_back {
            course::forget(&mut self.evaluations, &status);
        }
        if let (Some(reader), Some(judge)) = (self.reader.take(), &self.judge) {
            let first = course::next_point(&self.plan, &self.evaluations, &status, is_back);
            self.evaluator = Some(Evaluator::start(Arc::clone(judge), self.plan.clone(), reader, first)?);
        }
        self.status = Some(status);
        Ok(sentence)
    }

    /// There are no more evaluations: what was scored last is known now.
    pub(super) fn judged_all(&mut self) {
        self.last = self.evaluator.take().and_then(Evaluator::into_last);
    }

    /// The evaluator, while it is at work.
    pub(super) fn evaluator(&mut self) -> Option<&mut Evaluator> {
        self.evaluator.as_mut()
    }

    /// The way to the coordinator, while there is one.
    pub(super) fn statuses(&mut self) -> Option<&mut StatusStream> {
        self.statuses.as_mut()
    }

    /// Whether the training was under way when the run was seen last.
    pub(super) fn is_training(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.phase == Phase::Training)
    }

    /// Whether the worker in this role has left in good order.
    pub(super) fn has_left(&self, role: Role) -> bool {
        let (Role::Worker(id), Some(status)) = (role, &self.status) else { return false };
        let is_it = |worker: WorkerId, state| worker == id && state == WorkerState::Left;
        status.workers.iter().any(|w| is_it(w.worker, w.state))
    }
}

/// Tries until the deadline, since the run may be taken back once more meanwhile.
async fn connect_again(coordinator: String, identity: Identity, within: Duration) -> Connected {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = timeout(ATTEMPT.min(left), Observer::connect(&coordinator, &identity, left)).await;
        match attempt {
            Ok(Err(error @ ClientError::Ended(_))) => return Err(error),
            Ok(Err(error)) if left <= PAUSE => return Err(error),
            Err(_) if left <= ATTEMPT => {
                return Err(ClientError::Gone(format!("it did not answer within {} s", within.as_secs())));
            }
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(_)) => sleep(PAUSE).await,
            Err(_) => {}
        }
    }
}

/// The result of a task, if there is one to wait for.
async fn joined(task: &mut Option<JoinHandle<Connected>>) -> Connected {
    let Some(task) = task else { return pending().await };
    match task.await {
        Ok(connected) => connected,
        // The task is not cancelled while it is waited for, nor does it panic; if it does, so does this one.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
