//! Sets a training that keeps checkpoints beside the same one that keeps none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};

/// Measures async training with one server, with checkpoints and without, in turn.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// The optimizer.
    #[arg(long, default_value = "adam")]
    optimizer: String,
    /// How often a checkpoint is kept, by a run that keeps them.
    #[arg(long, default_value = "500steps")]
    every: String,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Passes over the data in each training.
    #[arg(long, default_value_t = 8.0)]
    passes: f64,
    /// Pairs of trainings.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Where checkpoints are kept [default: in the run's directory, under that for temporary files].
    #[arg(long)]
    checkpoints: Option<PathBuf>,
    /// The program that trains [default: beside this one].
    #[arg(long)]
    windlass: Option<PathBuf>,
    /// The data to train on.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mnist"))]
    data: PathBuf,
}

/// What a training came to.
struct Trained {
    steps: f64,
    steps_per_s: f64,
    checkpoints: usize,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let before = stolen();
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut apart = Vec::new();
    for pair in 0..flags.pairs {
        // Whoever is second finds a warmer machine: they take turns.
        let (kept, none) = if pair % 2 == 0 {
            let kept = train(&flags, &flags.every)?;
            (kept, train(&flags, "never")?)
        } else {
            let none = train(&flags, "never")?;
            (train(&flags, &flags.every)?, none)
        };
        ensure!(kept.checkpoints > 0, "no checkpoint was kept");
        ensure!(none.checkpoints == 0, "a training that was to keep no checkpoint has kept one");
        let ratio = kept.steps_per_s / none.steps_per_s;
        println!(
            "pair {pair}: {:.0} steps/s with {} checkpoints, {:.0} without, ratio {ratio:.3}",
            kept.steps_per_s, kept.checkpoints, none.steps_per_s
        );
        apart.push(kept.steps / kept.checkpoints as f64);
        with.push(kept.steps_per_s);
        without.push(none.steps_per_s);
        ratios.push(ratio);
    }
    println!(
        "\n{} with {}, async, 1 server, {} workers, a checkpoint every {}",
        flags.model, flags.optimizer, flags.workers, flags.every
    );
    println!("  steps/s with checkpoints  {}", spread(&with));
    println!("  steps/s without           {}", spread(&without));
    println!("  with / without            {}", spread(&ratios));
    println!("  steps per checkpoint kept {}", spread(&apart));
    if let Some(share) = stolen_share(before) {
        println!("  stolen time               {:.1} %", share * 100.0);
    }
    println!("median ratio {:.3}", median(&ratios));
    Ok(())
}

/// One whole training.
fn train(flags: &Flags, every: &str) -> anyhow::Result<Trained> {
    let beside = std::env::current_exe()?.with_file_name("windlass");
    let program = flags.windlass.clone().unwrap_or(beside);
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let mut command = Command::new(&program);
    command
        .args(["train", "--quiet", "--mode", "async", "--servers", "1", "--evaluate-every", "1000000000"])
        .args(["--model", &flags.model, "--optimizer", &flags.optimizer, "--checkpoint-every", every])
        .args(["--workers", &flags.workers.to_string(), "--passes", &flags.passes.to_string()])
        .arg("--data")
        .arg(&flags.data)
        .arg("--run-dir")
        .arg(&run);
    let elsewhere = flags.checkpoints.as_ref().map(tempfile::tempdir_in).transpose()?;
    if let Some(elsewhere) = &elsewhere {
        command.arg("--checkpoints").arg(elsewhere.path());
    }
    let status = command.stdout(Stdio::null()).status().with_context(|| {
        format!("could not start {}; build it with cargo build --release", program.display())
    })?;
    ensure!(status.success(), "{} ended with {status}", program.display());
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(run.join("summary.json"))?)?;
    let figure = |name: &str| summary[name].as_f64().with_context(|| format!("the summary has no {name}"));
    Ok(Trained {
        steps: figure("steps")?,
        steps_per_s: figure("steps_per_s")?,
        checkpoints: checkpoints(&run.join("events.jsonl"))?,
    })
}

/// Checkpoints that became complete, by the log of the run.
fn checkpoints(events: &Path) -> anyhow::Result<usize> {
    let events = fs::read_to_string(events)?;
    let events = events.lines().map(serde_json::from_str::<serde_json::Value>);
    let events = events.collect::<Result<Vec<_>, _>>()?;
    Ok(events.iter().filter(|event| event["event"] == "checkpoint").count())
}
