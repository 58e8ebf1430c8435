//! Shows the progress of a run that was started elsewhere.

use std::sync::Arc;
use std::time::Duration;

use windlass_common::exit::Exit;
use windlass_common::wire::Stop;
use windlass_worker::observer::{Observer, Seen};

use crate::evaluator::{Evaluator, Judged};
use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::WatchFlags;
use crate::lookout::View;
use crate::problem;
use crate::show::Show;
use crate::signals::{Interrupts, interrupted};

/// Shows a run until it ends.
///
/// # Errors
/// If it cannot be reached or its data is not here; if the run fails; or if interrupted, which leaves the run alone.
pub(crate) async fn run(flags: WatchFlags) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    let address = flags.run.as_deref().or(flags.coordinator.as_deref()).expect("clap requires one of them");
    let view = View::of(address, flags.identity.as_deref())?;
    tokio::select! {
        outcome = watch(&flags, &view) => outcome,
        () = interrupts.next() => Err(interrupted()),
    }
}

async fn watch(flags: &WatchFlags, view: &View) -> Outcome<()> {
    let mut show = Show::new(flags.quiet);
    show.step(&format!("waiting for the servers of the run at {}", view.coordinator));
    let within = Duration::from_secs(flags.connect_deadline);
    let connected = Observer::connect(&view.coordinator, &view.identity, within).await;
    let (mut statuses, reader) = connected.or_exit(Exit::Network)?;
    let plan = statuses.plan().clone();
    show.about(&plan);
    let mut evaluator = match &flags.data {
        None => None,
        Some(data) => {
            let (plan_there, data) = (plan.clone(), data.clone());
            let loading = tokio::task::spawn_blocking(move || problem::of_plan(&plan_there, Some(&data)));
            let judge = loading.await.or_fail(Exit::System, "the data could not be loaded")??;
            Some(Evaluator::start(Arc::new(judge), plan.clone(), reader, 0)?)
        }
    };
    let stop = loop {
        tokio::select! {
            seen = statuses.next() => match seen.or_fail(Exit::Network, "the run can no longer be seen")? {
                Seen::Status(status) => show.status(&status),
                Seen::Stopped(stop) => break stop,
            },
            judged = next_of(&mut evaluator) => match judged {
                Some(judged) => show.judged(&judged),
                None => evaluator = None,
            },
        }
    };
    // An evaluation that is under way is still of interest; that there are no more is not.
    while let Some(judged) = next_of_started(&mut evaluator).await {
        if !matches!(judged, Judged::Lost(_) | Judged::Failed(_)) {
            show.judged(&judged);
        }
    }
    show.clear();
    match stop {
        Stop::Completed => crate::print(&format!("the run {} is complete\n", plan.name)),
        Stop::Failed { reason } => {
            Err(Failure::new(Exit::Run, format!("the run {} could not go on: {reason}", plan.name)))
        }
    }
}

/// What the evaluator says next; without one, nothing ever.
async fn next_of(evaluator: &mut Option<Evaluator>) -> Option<Judged> {
    match evaluator {
        Some(evaluator) => evaluator.next().await,
        None => std::future::pending().await,
    }
}

/// What the evaluator says next; without one, that there is nothing.
async fn next_of_started(evaluator: &mut Option<Evaluator>) -> Option<Judged> {
    evaluator.as_mut()?.next().await
}
