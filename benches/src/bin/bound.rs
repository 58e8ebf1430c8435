//! Sets a whole training beside what this machine could do at best: cores / (c + q + a).
//!
//! c is the processor time of one gradient, q that of one bare push-pull of the same bytes, and a that of the codecs and of
//! applying one gradient. On one machine all three share the cores, so that their sum bounds the steps per second. Each of them is
//! measured alone, with warm caches; beside that stands what one gets who does all three in turn on every core.

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::setting::plan;
use windlass_benches::training::{CodecPair, Program, UNEVALUATED};
use windlass_limit::{measure, together};
use windlass_worker::data::LABEL_COLUMN;

/// Measures async training with one server beside cores / (c + q + a), everything in turn.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Examples per step.
    #[arg(long, default_value_t = 64)]
    batch: u32,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Pairs of codecs, PUSH/PULL.
    #[arg(long, value_delimiter = ',', default_value = "f32/f32,bf16/bf16,int8/int8")]
    codecs: Vec<CodecPair>,
    /// Passes over the data in each training.
    #[arg(long, default_value_t = 4.0)]
    passes: f64,
    /// Rounds of measurements.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cores that servers and workers share [default: those of this machine].
    #[arg(long)]
    cores: Option<usize>,
    #[command(flatten)]
    program: Program,
}

fn main() -> anyhow::Result<()> {
    windlass_process::settle();
    let flags = Flags::parse();
    let cores = match flags.cores {
        Some(cores) => cores,
        None => std::thread::available_parallelism()?.get(),
    };
    let before = stolen();
    let mut rows: Vec<Vec<[f64; 6]>> = flags.codecs.iter().map(|_| Vec::new()).collect();
    for round in 0..flags.rounds {
        for (codecs, rows) in flags.codecs.iter().zip(&mut rows) {
            let mut plan = plan(&flags.model, flags.workers, 1)?;
            plan.training.batch = flags.batch;
            plan.codecs = codecs.codecs;
            plan.data.path =
                flags.program.data.to_str().context("a path of another kind than text")?.to_owned();
            plan.data.label_column = LABEL_COLUMN.into();
            let costs = measure(&plan, cores)?;
            let in_turn = together(&plan, cores)?;
            let (steps, launch) = train(&flags, codecs)?;
            let bound = costs.pushes_per_s(cores);
            println!(
                "round {round}, {codecs}: c {:.3} ms, q {:.3} ms, a {:.3} ms; bound {bound:.0} steps/s, in turn \
                 {in_turn:.0}; trained at {steps:.0} steps/s, {:.0} and {:.0} % of them; {launch:.2} s from launch to the first step",
                costs.gradient_s * 1e3,
                costs.wire_s * 1e3,
                costs.apply_s * 1e3,
                steps / bound * 100.0,
                steps / in_turn * 100.0
            );
            rows.push([steps, bound, steps / bound, in_turn, steps / in_turn, launch]);
        }
    }
    for (codecs, rows) in flags.codecs.iter().zip(&rows) {
        let column = |i: usize| rows.iter().map(|r| r[i]).collect::<Vec<f64>>();
        println!(
            "\n{} batch {}, async, 1 server, {} workers, {codecs}, {cores} cores",
            flags.model, flags.batch, flags.workers
        );
        println!("  steps/s            {}", spread(&column(0)));
        println!("  bound, steps/s     {}", spread(&column(1)));
        println!("  share of the bound {}", spread(&column(2)));
        println!("  in turn, steps/s   {}", spread(&column(3)));
        println!("  share of that      {}", spread(&column(4)));
        println!("  launch to step, s  {}", spread(&column(5)));
        ensure!(median(&column(0)) > 0.0, "no training ran");
    }
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

/// Steps per second of a whole training, and seconds from its launch to its first step.
fn train(flags: &Flags, codecs: &CodecPair) -> anyhow::Result<(f64, f64)> {
    let [batch, workers, passes] =
        [flags.batch.to_string(), flags.workers.to_string(), flags.passes.to_string()];
    let mut arguments = vec!["--mode", "async", "--servers", "1", "--model", &flags.model];
    arguments.extend(["--batch", &batch, "--workers", &workers, "--passes", &passes]);
    arguments.extend(UNEVALUATED);
    arguments.extend(codecs.flags());
    let trained = flags.program.train(&arguments)?;
    Ok((trained.figure("steps_per_s")?, trained.figure("launch_to_first_step_s")?))
}
