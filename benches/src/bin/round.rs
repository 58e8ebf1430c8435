//! Sets a round of federated averaging beside the bare computation of its clients and its evaluation.

use anyhow::ensure;
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::training::Program;
use windlass_common::ids::ClientId;
use windlass_common::layout::Layout;
use windlass_common::plan::LocalWork;
use windlass_limit::processor_time;
use windlass_worker::data::{Owned, deal_iid, load, score};
use windlass_worker::emulation::Emulation;
use windlass_worker::federated::LocalTraining;
use windlass_worker::models;

/// Measures rounds of federated averaging (100 clients, C = 0.1, E = 1, B = 10 unless told otherwise), with the evaluation
/// of each, beside the bare computation of both on all cores.
#[derive(Debug, Parser)]
struct Flags {
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Clients, of which a tenth is in each round.
    #[arg(long, default_value_t = 100)]
    clients: u32,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Servers.
    #[arg(long, default_value_t = 1)]
    servers: u32,
    /// Rounds of each training.
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Measurements.
    #[arg(long, default_value_t = 5)]
    measurements: usize,
    /// Cores that all processes share [default: those of this machine].
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
    let mut rows = Vec::new();
    for number in 0..flags.measurements {
        let (local, evaluation) = bare(&flags)?;
        let bound = (local + evaluation) / cores as f64;
        let took = train(&flags)?;
        println!(
            "{number}: clients {:.0} ms, evaluation {:.0} ms of processor time; bare round {:.0} ms, trained at {:.0} ms",
            local * 1e3,
            evaluation * 1e3,
            bound * 1e3,
            took * 1e3
        );
        rows.push([took * 1e3, bound * 1e3, bound / took * 100.0]);
    }
    let column = |i: usize| rows.iter().map(|r| r[i]).collect::<Vec<f64>>();
    println!(
        "\n{}, {} clients, C = 0.1, E = 1, B = 10, {} workers, {cores} cores",
        flags.model, flags.clients, flags.workers
    );
    println!("  round with evaluation, ms  {}", spread(&column(0)));
    println!("  bare computation, ms       {}", spread(&column(1)));
    println!("  bare share of the round, % {}", spread(&column(2)));
    if let Some(share) = stolen_share(before) {
        println!("  stolen time                {:.1} %", share * 100.0);
    }
    ensure!(median(&column(0)) > 0.0, "no training ran");
    Ok(())
}

/// Processor seconds of the clients of one round, and of one evaluation.
fn bare(flags: &Flags) -> anyhow::Result<(f64, f64)> {
    let data = load(&flags.program.data)?;
    let mut model = models::by_name(&flags.model)?;
    let start = Layout::new(model.variables())?.initial_values(1);
    let dealt = deal_iid(1, data.train.len(), flags.clients as usize);
    let owned = Owned::new(data.train, dealt, 1, 0.0);
    let mut training = LocalTraining::default();
    let mut push = vec![0.0; start.len()];
    let work = LocalWork::default();
    let cohort = (flags.clients / 10).max(1);
    let mut round = |number| -> anyhow::Result<()> {
        for client in 0..cohort {
            let key = (1, ClientId(client), number);
            training.train(&mut *model, &owned, key, &work, &start, &mut push, &mut Emulation::none())?;
        }
        Ok(())
    };
    round(0)?;
    let before = processor_time();
    round(1)?;
    let local = (processor_time() - before).as_secs_f64();
    let before = processor_time();
    score(&mut *models::by_name(&flags.model)?, &start, &data.test, 250);
    Ok((local, (processor_time() - before).as_secs_f64()))
}

/// Seconds of a round of a whole training, from the first step to the last.
fn train(flags: &Flags) -> anyhow::Result<f64> {
    let [clients, workers, servers, rounds] =
        [flags.clients, flags.workers, flags.servers, flags.rounds].map(|n| n.to_string());
    let mut arguments = vec!["--mode", "fedavg", "--fraction", "0.1", "--local-passes", "1", "--batch", "10"];
    arguments.extend(["--model", &flags.model, "--clients", &clients, "--rounds", &rounds]);
    arguments.extend(["--workers", &workers, "--servers", &servers]);
    let trained = flags.program.train(&arguments)?;
    let seconds = trained.figure("training_s")?;
    let evaluated = trained.summary["evaluations"].as_array().map_or(0, Vec::len);
    ensure!(evaluated >= flags.rounds as usize, "only {evaluated} of {} rounds were evaluated", flags.rounds);
    Ok(seconds / f64::from(flags.rounds - 1))
}
