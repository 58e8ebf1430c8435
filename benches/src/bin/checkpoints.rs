//! Sets a training that keeps checkpoints beside the same one that keeps none.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::training::{Program, Trained, UNEVALUATED};

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
    #[command(flatten)]
    program: Program,
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
        let [kept_per_s, none_per_s] = [kept.figure("steps_per_s")?, none.figure("steps_per_s")?];
        let ratio = kept_per_s / none_per_s;
        println!(
            "pair {pair}: {:.0} steps/s with {} checkpoints, {:.0} without, ratio {ratio:.3}",
            kept_per_s, kept.checkpoints, none_per_s
        );
        apart.push(kept.figure("steps")? / kept.checkpoints as f64);
        with.push(kept_per_s);
        without.push(none_per_s);
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

fn train(flags: &Flags, every: &str) -> anyhow::Result<Trained> {
    let (workers, passes) = (flags.workers.to_string(), flags.passes.to_string());
    let mut arguments = vec!["--mode", "async", "--servers", "1", "--checkpoint-every", every];
    arguments.extend(["--model", &flags.model, "--optimizer", &flags.optimizer]);
    arguments.extend(["--workers", &workers, "--passes", &passes]);
    let elsewhere = flags.checkpoints.as_ref().map(tempfile::tempdir_in).transpose()?;
    let elsewhere = elsewhere.as_ref().map(|folder| folder.path().display().to_string());
    if let Some(elsewhere) = &elsewhere {
        arguments.extend(["--checkpoints", elsewhere]);
    }
    arguments.extend(UNEVALUATED);
    flags.program.train(&arguments)
}
