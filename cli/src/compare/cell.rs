//! Runs one mode at one rate with one seed, or reads what an earlier run of it left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use windlass_common::exit::Exit;
use windlass_common::plan::{Goal, Plan};
use windlass_report::{ClientContribution, Cost, Outcome as Ended, Point, RunResult, crossing};

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::{KeepingFlags, RecipeFlags, SourceFlags};
use crate::judge::Judge;
use crate::programs::Programs;
use crate::recipe;
use crate::run_directory::PLAN_FILE;
use crate::signals::Interrupts;
use crate::summary::{self, Summary};
use crate::train::{Beginning, Conditions, Prepared, TIMED_OUT, carry_out};

/// How a run ended that left no complete summary.
const OUTCOME_FILE: &str = "outcome.json";

/// How often a worker that dies is restarted.
const RESTARTS: u32 = 2;
/// How long each process tries to reach the coordinator, in seconds.
const CONNECT_DEADLINE: u64 = 20;

/// One run of a comparison.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Where it leaves its files.
    pub(crate) directory: PathBuf,
    /// What it is.
    pub(crate) recipe: RecipeFlags,
    /// Where the data is.
    pub(crate) data: Option<PathBuf>,
    /// The test accuracy to reach.
    pub(crate) target: Option<f64>,
    /// Whether it is over then.
    pub(crate) stops_at_target: bool,
    /// In modes without rounds, evaluations in one pass.
    pub(crate) evaluations_per_pass: u64,
    /// How long it may take.
    pub(crate) time_limit: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) plan: Plan,
    pub(crate) judge: Arc<Judge>,
    pub(crate) summary: Summary,
    pub(crate) ended: Ended,
    /// Whether it had been run before.
    pub(crate) is_old: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    ended: Ended,
}

impl Cell {
    /// Runs it, unless it has been run with the same plan.
    ///
    /// # Errors
    /// If the flags do not make a plan, the directory holds another run, or it was interrupted. That a run diverged,
    /// failed or took too long is a result.
    pub(crate) async fn find(&self, interrupts: &mut Interrupts) -> Outcome<Found> {
        let name = self.directory.file_name().and_then(|n| n.to_str()).unwrap_or("run").to_owned();
        let source = SourceFlags {
            plan: None,
            name: Some(name.clone()),
            data: self.data.clone(),
            worker_program: None,
            checkpoints: KeepingFlags::never(),
            recipe: self.recipe.clone(),
        };
        let preparing = tokio::task::spawn_blocking(move || recipe::prepare(&source, &name));
        let (mut plan, judge) =
            preparing.await.or_fail(Exit::System, "the preparation of a run failed")??;
        if matches!(plan.goal(), Goal::Examples(_)) && self.recipe.evaluate_every.is_none() {
            plan.training.evaluate_every = (plan.data.train_examples / self.evaluations_per_pass).max(1);
        }
        let judge = Arc::new(judge.ok_or_else(|| Failure::usage("only built-in models can be compared"))?);
        if let Some((summary, ended)) = self.stored(&plan)? {
            return Ok(Found { plan, judge, summary, ended, is_old: true });
        }
        make_afresh(&self.directory, &plan)?;
        let conditions = Conditions {
            restarts: RESTARTS,
            connect_deadline: CONNECT_DEADLINE,
            target: self.target.filter(|_| self.stops_at_target),
            time_limit: Some(self.time_limit),
            quiet: true,
        };
        let prepared = Prepared {
            plan: plan.clone(),
            directory: self.directory.clone(),
            programs: Programs::find(None)?,
            judge: Some(Arc::clone(&judge)),
            beginning: Beginning::default(),
        };
        let carried = carry_out(prepared, conditions, interrupts, SystemTime::now()).await;
        let ended = match carried {
            Ok(_) => Ended::Completed,
            Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
            Err(failure) => self.ended_by(&failure),
        };
        let text = serde_json::to_string(&Stored { ended: ended.clone() }).or_exit(Exit::System)?;
        let file = self.directory.join(OUTCOME_FILE);
        fs::write(&file, text).or_fail(Exit::System, format!("could not write {}", file.display()))?;
        let summary = summary::read(&self.directory)?.unwrap_or_default();
        Ok(Found { plan, judge, summary, ended, is_old: false })
    }

    fn ended_by(&self, failure: &Failure) -> Ended {
        let details = failure.details.join(" ");
        let reason = failure.sentence();
        match reason.contains("diverged") || details.contains("diverged") {
            _ if reason.contains(TIMED_OUT) => Ended::TimedOut { after_s: self.time_limit.as_secs() },
            true => Ended::Diverged { reason },
            false => Ended::Failed { reason },
        }
    }

    fn stored(&self, plan: &Plan) -> Outcome<Option<(Summary, Ended)>> {
        let Ok(text) = fs::read_to_string(self.directory.join(OUTCOME_FILE)) else { return Ok(None) };
        let stored: Stored = serde_json::from_str(&text)
            .or_fail(Exit::Input, format!("{} holds no outcome", self.directory.display()))?;
        let found = fs::read_to_string(self.directory.join(PLAN_FILE)).unwrap_or_default();
        if found != plan.to_text() {
            return Err(Failure::usage(format!(
                "{} holds a run with another plan than this comparison's; choose another --out, or remove it",
                self.directory.display()
            )));
        }
        let is_finished = match &stored.ended {
            Ended::Completed | Ended::Diverged { .. } => true,
            // It may go better, or be given more time.
            Ended::TimedOut { after_s } => *after_s >= self.time_limit.as_secs(),
            Ended::Failed { .. } => false,
        };
        if !is_finished {
            return Ok(None);
        }
        Ok(Some((summary::read(&self.directory)?.unwrap_or_default(), stored.ended)))
    }
}

/// A run that was begun and has no outcome is begun again.
fn make_afresh(directory: &Path, plan: &Plan) -> Outcome<()> {
    let could_not = || format!("could not make {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).or_fail(Exit::System, could_not())?;
    }
    fs::create_dir_all(directory).or_fail(Exit::System, could_not())?;
    fs::write(directory.join(PLAN_FILE), plan.to_text()).or_fail(Exit::System, could_not())
}

impl Found {
    /// The run as the report shows it.
    pub(crate) fn result(&self, seed: u64, target: Option<f64>) -> RunResult {
        let number = |name: &str| self.summary.get(name).and_then(Value::as_f64);
        let count = |name: &str| self.summary.get(name).and_then(Value::as_u64).unwrap_or(0);
        let curve = self.curve();
        let idle = self.summary.get("idle_share").and_then(Value::as_array);
        RunResult {
            seed,
            outcome: self.ended.clone(),
            at_target: target.and_then(|target| crossing(&curve, target)),
            at_end: curve.last().map(Cost::from),
            best_accuracy: curve.iter().map(|p| p.accuracy).fold(f64::NAN, f64::max),
            staleness_mean: number("staleness_mean").unwrap_or(f64::NAN),
            staleness_p95: number("staleness_p95").unwrap_or(f64::NAN),
            idle_share: idle.into_iter().flatten().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect(),
            pushes_late: count("pushes_late"),
            examples_late: count("examples_wasted"),
            client_contributions: self.contributions(),
            curve,
        }
    }

    /// The evaluations with what had been spent. Bytes and wasted work are counted over the whole run; their share at an
    /// evaluation is that of the pushes settled by then.
    pub(crate) fn curve(&self) -> Vec<Point> {
        let total = |name: &str| self.summary.get(name).and_then(Value::as_u64).unwrap_or(0);
        let pushes_total = total("pushes").max(1) as f64;
        let started = total("started_us");
        let evaluations = self.summary.get("evaluations").and_then(Value::as_array);
        let point = |e: &Value| {
            let count = |name: &str| e[name].as_u64().unwrap_or(0);
            let pushes = count("pushes");
            let share = |name: &str| (total(name) as f64 * pushes as f64 / pushes_total).round() as u64;
            Point {
                seconds: count("at_us").saturating_sub(started) as f64 / 1e6,
                steps: e["step"].as_u64().unwrap_or(pushes),
                pushes,
                gradient_evaluations: count("examples") + share("examples_wasted"),
                payload_bytes_up: share("payload_bytes_up"),
                payload_bytes_down: share("payload_bytes_down"),
                wire_bytes_up: share("wire_bytes_up"),
                wire_bytes_down: share("wire_bytes_down"),
                accuracy: e["accuracy"].as_f64().unwrap_or(f64::NAN),
                loss: e["loss"].as_f64().unwrap_or(f64::NAN),
            }
        };
        evaluations.into_iter().flatten().map(point).collect()
    }

    fn contributions(&self) -> Vec<ClientContribution> {
        let tallies = self.summary.get("client_tallies").and_then(Value::as_array);
        let accuracy = self.summary.get("client_accuracy").and_then(Value::as_array);
        let contribution = |client: u64| {
            let tally = tallies.into_iter().flatten().find(|t| t["client"] == client);
            let count = |name: &str| tally.and_then(|t| t[name].as_u64()).unwrap_or(0);
            let index = client as usize;
            ClientContribution {
                client,
                asked: count("asked"),
                aggregated: count("aggregated"),
                late: count("late"),
                dropped: count("dropped"),
                examples: self.plan.clients.sizes.get(index).copied().unwrap_or(0).into(),
                accuracy: accuracy.and_then(|a| a.get(index)?.as_f64()),
            }
        };
        if tallies.is_none() && accuracy.is_none() {
            return Vec::new();
        }
        (0..u64::from(self.plan.clients.count)).map(contribution).collect()
    }
}
