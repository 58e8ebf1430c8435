//! Trains a model on this machine: makes a run, carries it to its end, and reports.

mod course;
mod crew;
mod restarts;
mod resume;
mod run;
mod verdict;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use windlass_common::exit::Exit;
use windlass_common::plan::{Goal, Plan};
use windlass_worker::models::Score;

use crate::evaluator::{Evaluation, Last};
use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::{counted, time};
use crate::flags::TrainFlags;
use crate::judge::{self, Judge};
use crate::machine;
use crate::programs::Programs;
use crate::run_directory::{self, LOGS, MODEL_FILE, PLAN_FILE, Place};
use crate::signals::{Interrupts, interrupted};
use crate::stolen::Ticks;
use crate::summary::{self, Addition, Spread, Summary};
use crate::{model_file, problem, recipe};
use crew::Crew;
use run::{Run, Seen};

/// Everything that is checked and known before a process is started.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) directory: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) judge: Option<Arc<Judge>>,
    pub(crate) beginning: Beginning,
}

/// From what a run begins.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// It goes on from what is in its directory.
    pub(crate) is_resumed: bool,
    /// Where its checkpoints are kept, unless in its directory.
    pub(crate) checkpoints: Option<String>,
    /// What was evaluated before.
    pub(crate) evaluations: Vec<Evaluation>,
}

/// How a run is carried through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// How often each worker is restarted, and where there are checkpoints each server.
    pub(crate) restarts: u32,
    /// How long each process tries to reach the coordinator, in seconds.
    pub(crate) connect_deadline: u64,
    /// The test accuracy at which a run of rounds is over.
    pub(crate) target: Option<f64>,
    /// How long it may take.
    pub(crate) time_limit: Option<Duration>,
    pub(crate) quiet: bool,
}

/// Trains as the flags say.
///
/// # Errors
/// Says why the run could not be made or could not go on, or that it was interrupted.
pub(crate) async fn run(flags: Box<TrainFlags>, began: SystemTime) -> Outcome<()> {
    let mut interrupts = Interrupts::listen()?;
    if let Some(directory) = &flags.resume {
        tokio::select! {
            checked = resume::check(directory) => checked?,
            () = interrupts.next() => return Err(interrupted()),
        }
    }
    let for_thread = flags.clone();
    let preparing = tokio::task::spawn_blocking(move || match &for_thread.resume {
        Some(directory) => resume::prepare(&for_thread, directory),
        None => prepare(&for_thread),
    });
    let prepared = tokio::select! {
        prepared = preparing => prepared.or_fail(Exit::System, "the preparation of the run failed")??,
        () = interrupts.next() => return Err(interrupted()),
    };
    let conditions = Conditions {
        restarts: flags.restarts,
        connect_deadline: flags.connect_deadline,
        target: flags.target,
        time_limit: None,
        quiet: flags.quiet,
    };
    let own_worker = (!prepared.programs.worker_is_ours).then(|| prepared.programs.worker.clone());
    let (plan, directory) = (prepared.plan.clone(), prepared.directory.clone());
    let summary = carry_out(prepared, conditions, &mut interrupts, began).await?;
    crate::print(&farewell(&plan, &directory, began, &summary, own_worker.as_deref()))
}

/// Carries a prepared run to its end, and completes its summary.
///
/// # Errors
/// Says why it could not go on, or that it was interrupted.
pub(crate) async fn carry_out(
    prepared: Prepared,
    conditions: Conditions,
    interrupts: &mut Interrupts,
    began: SystemTime,
) -> Outcome<Summary> {
    let ticks = Ticks::now();
    let Prepared { plan, directory, programs, judge, beginning } = prepared;
    let crew = Crew::new(&plan, &directory, programs, conditions.connect_deadline, &beginning)?;
    let mut run = Run::new(plan.clone(), crew, judge.clone(), conditions, beginning);
    let outcome = tokio::select! {
        outcome = run.carry(interrupts) => outcome,
        () = limited(conditions.time_limit) => Err(Failure::new(Exit::Run, TIMED_OUT)),
    };
    let seen = run.end(interrupts).await;
    let addition = Addition {
        test_accuracy: None,
        test_loss: None,
        launch_to_first_step_s: None,
        stolen_cpu_share: ticks.and_then(|before| Ticks::now()?.stolen_share_since(before)),
        restarts: seen.restarts.workers.clone(),
        restarts_servers: seen.restarts.servers.clone(),
        client_accuracy: Vec::new(),
        client_accuracy_spread: None,
        limit: None,
        evaluations: seen.evaluations.clone(),
    };
    if let Err(failure) = outcome {
        let failure = report_failure(failure, &directory, began, addition);
        return Err(if seen.can_go_on { with_way_on(failure, &directory) } else { failure });
    }
    let reporting =
        tokio::task::spawn_blocking(move || report(&plan, &directory, began, addition, judge, seen));
    tokio::select! {
        reported = reporting => reported.or_fail(Exit::System, "the report of the run failed")?,
        () = interrupts.next() => Err(interrupted()),
    }
}

/// What is said of a run that took too long.
pub(crate) const TIMED_OUT: &str = "the run was stopped at its time limit";

async fn limited(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn prepare(flags: &TrainFlags) -> Outcome<Prepared> {
    let source = &flags.source;
    let base = match &source.plan {
        Some(file) => recipe::read(file)?.name,
        None => recipe::base_name(&source.recipe),
    };
    let place = Place::of(source.name.as_deref(), flags.run_dir.as_deref(), &base)?;
    let programs = Programs::find(source.worker_program.as_deref())?;
    let (mut plan, judge) = recipe::prepare(source, place.name())?;
    check_target(flags.target, &plan)?;
    let (name, directory) = place.claim()?;
    plan.name = name;
    plan.check().or_exit(Exit::Usage)?;
    run_directory::write_whole(&directory, PLAN_FILE, &plan.to_text())?;
    let location = flags.checkpoints.as_deref();
    let checkpoints =
        location.map(|location| run_directory::keep_location(&directory, location)).transpose()?;
    let beginning = Beginning { checkpoints, ..Beginning::default() };
    Ok(Prepared { plan, directory, programs, judge: judge.map(Arc::new), beginning })
}

fn check_target(target: Option<f64>, plan: &Plan) -> Outcome<()> {
    let Some(target) = target else { return Ok(()) };
    if !(target > 0.0 && target <= 1.0) {
        return Err(Failure::usage(format!(
            "--target is {target}; an accuracy is more than 0 and at most 1"
        )));
    }
    if !matches!(plan.goal(), Goal::Rounds(_)) {
        return Err(Failure::usage(format!(
            "--target ends rounds of --mode fedavg; {} goes on to its last example: leave it out",
            plan.mode
        )));
    }
    Ok(())
}

/// Scores the result and completes the summary.
fn report(
    plan: &Plan,
    directory: &Path,
    began: SystemTime,
    mut addition: Addition,
    judge: Option<Arc<Judge>>,
    seen: Seen,
) -> Outcome<Summary> {
    let values = model_file::load(&directory.join(MODEL_FILE), plan)?;
    let Some(mut summary) = summary::read(directory)? else {
        return Err(Failure::new(Exit::Run, format!("server 0 left no summary in {}", directory.display())));
    };
    if let Some(judge) = judge {
        let score = match seen.last {
            Some(Last { values: scored, score }) if is_same(&scored, &values) => score,
            _ => judge.score(&values, judge::all_cores()).or_exit(Exit::System)?,
        };
        let number = |name: &str| summary.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let last = addition.evaluations.last();
        let result = Evaluation {
            pushes: number("pushes"),
            at_us: last.map_or(0, |e| e.at_us).max(number("last_step_us")),
            ..Evaluation::new(plan, number("examples"), number("steps"), &score)
        };
        (addition.test_accuracy, addition.test_loss) = (Some(result.accuracy), Some(result.loss));
        let clients = judge.score_clients(&values).or_exit(Exit::System)?;
        addition.client_accuracy = clients.iter().map(|s| s.as_ref().map(Score::accuracy)).collect();
        addition.client_accuracy_spread =
            Spread::of(addition.client_accuracy.iter().flatten().copied().collect());
        // The result stands at the end of the list, also where no evaluation point falls on it.
        if addition.evaluations.last().is_none_or(|last| last.examples < result.examples) {
            addition.evaluations.push(result);
        }
    }
    addition.limit = machine::limit(plan, &summary);
    summary::merge(&mut summary, began, addition, None);
    summary::write(directory, &summary)?;
    Ok(summary)
}

/// What a person wants to know at the end, and may want to do next.
fn farewell(
    plan: &Plan,
    directory: &Path,
    began: SystemTime,
    summary: &Summary,
    own_worker: Option<&Path>,
) -> String {
    let took = time(began.elapsed().unwrap_or_default().as_secs_f64());
    let (model, mode, path) = (&plan.model.name, &plan.mode, directory.display());
    let (servers, workers) =
        (counted(plan.cluster.servers, "server"), counted(plan.cluster.workers, "worker"));
    let table = summary::table(summary);
    let score = match problem::is_built_in(model) {
        true => format!("Score it again:  windlass eval {path}\n"),
        false => String::new(),
    };
    let program = own_worker.map_or_else(String::new, |file| format!(" --worker-program {}", file.display()));
    let unmeasured = match !summary.contains_key("limit") && machine::has_limit(plan) {
        true => format!("Its limit here:  windlass bench machine --plan {path}/{PLAN_FILE}\n"),
        false => String::new(),
    };
    format!(
        "{model}, {mode}, {servers}, {workers}: done in {took}\n{table}\nEverything is in {path}\n{score}\
         Repeat it:       windlass train --plan {path}/{PLAN_FILE}{program}\n{unmeasured}"
    )
}

/// Whether two models are the same, bit for bit.
fn is_same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Completes the summary of a run that failed, as far as there is one, and says where to look.
fn report_failure(mut failure: Failure, directory: &Path, began: SystemTime, addition: Addition) -> Failure {
    let merged = summary::read(directory).and_then(|summary| {
        let Some(mut summary) = summary else { return Ok(()) };
        summary::merge(&mut summary, began, addition, Some(&failure.sentence()));
        summary::write(directory, &summary)
    });
    if let Err(second) = merged {
        failure.details.push(second.sentence());
    }
    if failure.exit != Exit::Interrupted {
        failure.details.push(format!("what each process wrote is in {}", directory.join(LOGS).display()));
    }
    failure
}

/// Says in the end how the run goes on.
fn with_way_on(mut failure: Failure, directory: &Path) -> Failure {
    failure.details.push(format!("to go on with it:  windlass train --resume {}", directory.display()));
    failure
}
