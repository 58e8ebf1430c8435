//! Sets a training whose shards have standbys beside the same one without.

use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::training::{Program, UNEVALUATED};

/// Measures sync with 4 workers and async with 2, on two servers, with standbys and without, in turn.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Passes over the data in each training.
    #[arg(long, default_value_t = 4.0)]
    passes: f64,
    /// Pairs of trainings in each mode.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// How pushes are written, and to their standbys with them.
    #[arg(long, default_value = "f32")]
    push_codec: String,
    #[command(flatten)]
    program: Program,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let before = stolen();
    for (mode, workers) in [("sync", "4"), ("async", "2")] {
        let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..flags.pairs {
            // Whoever is second finds a warmer machine: they take turns.
            let order = if pair % 2 == 0 { ["1", "0"] } else { ["0", "1"] };
            let mut rates = [0.0; 2];
            for replicas in order {
                rates[usize::from(replicas == "1")] = train(&flags, mode, workers, replicas)?;
            }
            let [none, both] = rates;
            println!(
                "{mode}, pair {pair}: {both:.0} steps/s with standbys, {none:.0} without, ratio {:.3}",
                both / none
            );
            with.push(both);
            without.push(none);
            ratios.push(both / none);
        }
        let Flags { model, push_codec, .. } = &flags;
        println!("\n{model}, {mode}, batch 64, pushes in {push_codec}, 2 servers, {workers} workers");
        println!("  steps/s with standbys  {}", spread(&with));
        println!("  steps/s without        {}", spread(&without));
        println!("  with / without         {}", spread(&ratios));
        println!("median ratio {:.3}\n", median(&ratios));
    }
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

fn train(flags: &Flags, mode: &str, workers: &str, replicas: &str) -> anyhow::Result<f64> {
    let passes = flags.passes.to_string();
    let mut arguments = vec!["--mode", mode, "--model", &flags.model, "--servers", "2", "--workers", workers];
    arguments.extend([
        "--batch",
        "64",
        "--passes",
        &passes,
        "--checkpoint-every",
        "never",
        "--replicas",
        replicas,
        "--push-codec",
        &flags.push_codec,
    ]);
    arguments.extend(UNEVALUATED);
    flags.program.train(&arguments)?.figure("steps_per_s")
}
