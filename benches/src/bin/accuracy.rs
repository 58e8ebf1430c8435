//! What each codec costs in accuracy: trainings with equal seeds, in pairs.

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::training::{CodecPair, Program, UNEVALUATED};
use windlass_report::interval;

/// Sets the accuracy of trainings with codecs beside the same ones with the first pair of codecs, seed by seed.
#[derive(Debug, Parser)]
struct Flags {
    /// Pairs of codecs, PUSH/PULL.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "f32/f32,bf16/bf16,f16/f16,int8/int8,topk:1%/f32,topk:1%/int8,sign/bf16"
    )]
    codecs: Vec<CodecPair>,
    /// The mode.
    #[arg(long, default_value = "sync")]
    mode: String,
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Passes over the data in each training.
    #[arg(long, default_value_t = 10.0)]
    passes: f64,
    /// Seeds; each gives one training of every pair of codecs.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    #[command(flatten)]
    program: Program,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    ensure!(flags.codecs.len() > 1, "there is nothing to compare: name more than one pair of codecs");
    let mut rows: Vec<Vec<f64>> = flags.codecs.iter().map(|_| Vec::new()).collect();
    for seed in 1..=flags.seeds {
        for (codecs, row) in flags.codecs.iter().zip(&mut rows) {
            let accuracy = train(&flags, codecs, seed)? * 100.0;
            println!("seed {seed}, {codecs}: {accuracy:.2} %");
            row.push(accuracy);
        }
    }
    let Flags { model, mode, passes, seeds, .. } = &flags;
    println!("\n{model}, {mode}, 2 workers, batch 64, {passes} passes, cosine to zero, {seeds} seeds");
    println!("push/pull              accuracy, %  points beside {}, mean and 95 % interval", flags.codecs[0]);
    for (codecs, row) in flags.codecs.iter().zip(&rows) {
        let differences: Vec<f64> = row.iter().zip(&rows[0]).map(|(own, first)| own - first).collect();
        let (accuracy, _) = interval(row).context("two seeds at least make an interval")?;
        let (mean, half) = interval(&differences).context("two seeds at least make an interval")?;
        println!(
            "{:<21} {accuracy:>12.3}  {mean:+.3} ({:+.3} to {:+.3})",
            codecs.to_string(),
            mean - half,
            mean + half
        );
    }
    Ok(())
}

fn train(flags: &Flags, codecs: &CodecPair, seed: u64) -> anyhow::Result<f64> {
    let [passes, seed] = [flags.passes.to_string(), seed.to_string()];
    let mut arguments = vec!["--mode", &flags.mode, "--servers", "1", "--workers", "2", "--batch", "64"];
    arguments.extend([
        "--model",
        &flags.model,
        "--schedule",
        "cosine:0",
        "--passes",
        &passes,
        "--seed",
        &seed,
    ]);
    arguments.extend(UNEVALUATED);
    arguments.extend(codecs.flags());
    flags.program.train(&arguments)?.figure("test_accuracy")
}
