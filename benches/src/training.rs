//! Runs whole trainings, as a user would, and reads what they came to.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// What a training came to.
#[derive(Clone, Copy, Debug)]
pub struct Trained {
    /// Optimizer steps.
    pub steps: f64,
    /// The same per second, from the first to the last.
    pub steps_per_s: f64,
    /// Checkpoints that became complete, by the log of the run.
    pub checkpoints: usize,
}

/// One whole training by `windlass`, or by the program of that name beside this one, with these flags of `windlass train`.
///
/// # Errors
/// If it cannot be started, fails, or leaves no summary.
pub fn train(windlass: Option<&Path>, data: &Path, flags: &[&str]) -> anyhow::Result<Trained> {
    let beside = std::env::current_exe()?.with_file_name("windlass");
    let program = windlass.unwrap_or(&beside);
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let mut command = Command::new(program);
    command.args(["train", "--quiet", "--evaluate-every", "1000000000"]).args(flags);
    command.arg("--data").arg(data).arg("--run-dir").arg(&run);
    let status = command.stdout(Stdio::null()).status().with_context(|| {
        format!("could not start {}; build it with cargo build --release", program.display())
    })?;
    ensure!(status.success(), "{} ended with {status}", program.display());
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(run.join("summary.json"))?)?;
    let figure = |name: &str| summary[name].as_f64().with_context(|| format!("the summary has no {name}"));
    let events = fs::read_to_string(run.join("events.jsonl"))?;
    let events = events.lines().map(serde_json::from_str::<serde_json::Value>);
    let events = events.collect::<Result<Vec<_>, _>>()?;
    let checkpoints = events.iter().filter(|event| event["event"] == "checkpoint").count();
    Ok(Trained { steps: figure("steps")?, steps_per_s: figure("steps_per_s")?, checkpoints })
}
