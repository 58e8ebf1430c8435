//! Scores the result of a run on the test data.

use windlass_common::exit::Exit;

use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::percent;
use crate::flags::EvalFlags;
use crate::run_directory::{MODEL_FILE, PLAN_FILE};
use crate::{judge, model_file, problem, recipe};

/// Loads the model of a run, scores it, and prints accuracy and loss.
///
/// # Errors
/// If the directory holds no finished run, its files do not fit each other, or the data is not there.
pub(crate) fn run(flags: &EvalFlags) -> Outcome<()> {
    let (plan_file, file) = (flags.run.join(PLAN_FILE), flags.run.join(MODEL_FILE));
    if !plan_file.exists() {
        let sentence =
            format!("{} is not the directory of a run: it has no {PLAN_FILE}", flags.run.display());
        return Err(Failure::new(Exit::Input, sentence));
    }
    let plan = recipe::read(&plan_file)?;
    if !file.exists() {
        let sentence = format!("the run in {} has no result: there is no {MODEL_FILE}", flags.run.display());
        return Err(Failure::new(Exit::Input, sentence));
    }
    if !problem::is_built_in(&plan.model.name) {
        let sentence = format!(
            "the model {} of this run is not built in, so that it cannot be scored here",
            plan.model.name
        );
        return Err(Failure::new(Exit::Input, sentence));
    }
    let values = model_file::load(&file, &plan)?;
    let (judge, same_data) = problem::of_plan_on_any(&plan, flags.data.as_deref())?;
    if !same_data {
        crate::remark(
            "note: this is not the data of the run; its fingerprint is another one than the plan's",
        );
    }
    let score = judge.score(&values, judge::all_cores()).or_exit(Exit::System)?;
    if flags.json {
        let result = serde_json::json!({
            "name": plan.name,
            "model": plan.model.name,
            "mode": plan.mode.to_string(),
            "examples": score.examples,
            "test_accuracy": score.accuracy(),
            "test_loss": score.loss(),
            "same_data": same_data,
        });
        return crate::print(&format!("{result:#}\n"));
    }
    crate::print(&format!(
        "test accuracy {} ({} of {} examples), test loss {:.4}\n",
        percent(score.accuracy()),
        score.correct,
        score.examples,
        score.loss()
    ))
}
