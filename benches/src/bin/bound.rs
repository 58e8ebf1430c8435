//! Sets a whole training beside what this machine could do at best: cores / (c + q + a).
//!
//! c is the processor time of one gradient, q that of one bare push-pull of the same bytes, and a that of applying one
//! gradient. On one machine all three share the cores, so that their sum bounds the steps per second.

use std::sync::Arc;

use anyhow::ensure;

use clap::Parser;
use windlass_benches::bare;
use windlass_benches::machine::{median, processor_time, spread, stolen, stolen_share};
use windlass_benches::setting::{Identities, plan};
use windlass_benches::training::{Program, UNEVALUATED};
use windlass_common::ids::ShardId;
use windlass_common::plan::Every;
use windlass_common::reduce::Contribution;
use windlass_ps_core::store::{Combined, Store};
use windlass_worker::models::{self, Batch};

/// Measures async training with one server beside cores / (c + q + a), everything in turn.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Examples per step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: u32,
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

/// Gradients of each thread in one measurement.
const GRADIENTS: u64 = 500;

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let cores = match flags.cores {
        Some(cores) => cores,
        None => std::thread::available_parallelism()?.get(),
    };
    let values = usize::try_from(plan(&flags.model, 1, 1)?.layout()?.total())?;
    let before = stolen();
    let mut rows = Vec::new();
    for round in 0..flags.rounds {
        let alone = gradient(&flags, 1)?;
        let c = gradient(&flags, cores)?;
        let identities = Identities::new(flags.workers)?;
        let address = bare::serve(identities.server, windlass_ps::limits(), values)?;
        let q = bare::exchange(address, &identities.workers, values, 1000)?.core_seconds();
        let a = apply(&flags)?;
        let (steps, launch) = train(&flags)?;
        let bound = cores as f64 / (c + q + a);
        println!(
            "round {round}: c {:.3} ms ({:.3} with the other cores idle), q {:.3} ms, a {:.3} ms; bound {bound:.0} steps/s; trained at {steps:.0} steps/s, \
             {:.0} % of it; {launch:.2} s from launch to the first step",
            c * 1e3,
            alone * 1e3,
            q * 1e3,
            a * 1e3,
            steps / bound * 100.0
        );
        rows.push([steps, bound, steps / bound, launch]);
    }
    let column = |i: usize| rows.iter().map(|r| r[i]).collect::<Vec<f64>>();
    println!(
        "\n{} batch {}, async, 1 server, {} workers, f32, {cores} cores",
        flags.model, flags.batch, flags.workers
    );
    println!("  steps/s            {}", spread(&column(0)));
    println!("  bound, steps/s     {}", spread(&column(1)));
    println!("  share of the bound {}", spread(&column(2)));
    println!("  launch to step, s  {}", spread(&column(3)));
    if let Some(share) = stolen_share(before) {
        println!("  stolen time        {:.1} %", share * 100.0);
    }
    ensure!(median(&column(0)) > 0.0, "no training ran");
    Ok(())
}

/// Processor seconds of one gradient, while so many threads compute one each.
fn gradient(flags: &Flags, threads: usize) -> anyhow::Result<f64> {
    let values = plan(&flags.model, 1, 1)?.layout()?.initial_values(1);
    let took = bare::at_once(threads, GRADIENTS, |_| {
        let mut model = models::by_name(&flags.model)?;
        let mut gradient = vec![0.0; values.len()];
        let features = vec![0.25; flags.batch * model.input().features];
        let labels: Vec<u32> = (0..flags.batch as u32).map(|i| i % model.input().classes as u32).collect();
        let values = &values;
        Ok(move || {
            model.gradient(values, Batch::new(&features, &labels), &mut gradient);
            Ok(())
        })
    })?;
    Ok(took.core_seconds())
}

/// Processor seconds of applying one gradient to one shard.
fn apply(flags: &Flags) -> anyhow::Result<f64> {
    let plan = plan(&flags.model, 1, 1)?;
    let (layout, placement) = (plan.layout()?, plan.placement()?);
    let mut store = Store::new(&layout, &placement, ShardId(0), plan.optimizer, 1, Every::Never);
    let gradient = Arc::new(vec![1e-3; layout.total() as usize]);
    let before = processor_time();
    const COUNT: u32 = 2000;
    for _ in 0..COUNT {
        store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 64 }]), 1e-6);
    }
    Ok((processor_time() - before).as_secs_f64() / f64::from(COUNT))
}

/// Steps per second of a whole training, and seconds from its launch to its first step.
fn train(flags: &Flags) -> anyhow::Result<(f64, f64)> {
    let [batch, workers, passes] =
        [flags.batch.to_string(), flags.workers.to_string(), flags.passes.to_string()];
    let mut arguments = vec!["--mode", "async", "--servers", "1", "--model", &flags.model];
    arguments.extend(["--batch", &batch, "--workers", &workers, "--passes", &passes]);
    arguments.extend(UNEVALUATED);
    let trained = flags.program.train(&arguments)?;
    Ok((trained.figure("steps_per_s")?, trained.figure("launch_to_first_step_s")?))
}
