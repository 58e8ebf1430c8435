//! How long trainings take over slow links until they are as accurate as asked, with each codec, in turn.

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::training::{CodecPair, Program, Trained};

/// Measures the time to an accuracy over emulated links, for pairs of codecs. The first pair is what others are set beside.
#[derive(Debug, Parser)]
struct Flags {
    /// Pairs of codecs, PUSH/PULL.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "f32/f32,bf16/bf16,f16/f16,int8/int8,int8-stochastic/int8,sign/int8,topk:1%/int8"
    )]
    codecs: Vec<CodecPair>,
    /// Rate of each worker's link in each direction.
    #[arg(long, default_value = "100mbit")]
    link_rate: String,
    /// Test accuracy to reach, from 0 to 1.
    #[arg(long, default_value_t = 0.97)]
    target: f64,
    /// Passes over the data in each training: one that never is as accurate is shown with inf seconds.
    #[arg(long, default_value_t = 3.0)]
    passes: f64,
    /// Rate of the optimizer, SGD.
    #[arg(long, default_value_t = 0.4)]
    rate: f64,
    /// The model to train.
    #[arg(long, default_value = "2nn")]
    model: String,
    /// Workers, each with a link of its own.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Rounds; in each every pair of codecs is trained once, with one seed. With the codecs above one takes nine minutes by
    /// the bytes of each, of which f32 has three.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    #[command(flatten)]
    program: Program,
}

/// The accuracy is taken each time so many more examples have been applied.
const EVALUATE_EVERY: &str = "6000";

/// What a training came to.
struct Row {
    /// Seconds from the start of the training to the first evaluation that reaches the target; infinite if none does.
    seconds: f64,
    accuracy: f64,
    /// Payload bytes of a push and of what is pulled for it.
    bytes: [f64; 2],
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    ensure!(!flags.codecs.is_empty() && flags.rounds > 0, "there is nothing to measure");
    let before = stolen();
    let mut rows: Vec<Vec<Row>> = flags.codecs.iter().map(|_| Vec::new()).collect();
    for round in 0..flags.rounds {
        for (codecs, rows) in flags.codecs.iter().zip(&mut rows) {
            let row = train(&flags, codecs, round + 1)?;
            println!(
                "round {round}, {codecs}: {:.1} s to {}, {:.2} % at the end",
                row.seconds,
                flags.target,
                row.accuracy * 100.0
            );
            rows.push(row);
        }
    }
    let Flags { model, workers, link_rate, target, .. } = &flags;
    println!("\n{model}, batch 64, async, 1 server, {workers} workers at {link_rate} in each direction");
    println!("push/pull              kB up  kB down  seconds to {target}              times shorter");
    let seconds = |rows: &[Row]| rows.iter().map(|row| row.seconds).collect::<Vec<_>>();
    for (codecs, own) in flags.codecs.iter().zip(&rows) {
        let ratios: Vec<f64> =
            seconds(&rows[0]).iter().zip(seconds(own)).map(|(first, own)| first / own).collect();
        let bytes = |i: usize| median(&own.iter().map(|row| row.bytes[i]).collect::<Vec<_>>()) / 1e3;
        println!(
            "{:<21} {:>6.1}  {:>7.1}  {}  {}",
            codecs.to_string(),
            bytes(0),
            bytes(1),
            spread(&seconds(own)),
            spread(&ratios)
        );
    }
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

fn train(flags: &Flags, codecs: &CodecPair, seed: u64) -> anyhow::Result<Row> {
    let texts =
        [flags.workers.to_string(), flags.passes.to_string(), flags.rate.to_string(), seed.to_string()];
    let [workers, passes, rate, seed] = &texts;
    let mut arguments = vec!["--mode", "async", "--servers", "1", "--batch", "64", "--model", &flags.model];
    arguments.extend(["--workers", workers, "--passes", passes, "--rate", rate, "--seed", seed]);
    arguments.extend(["--link-rate", &flags.link_rate, "--evaluate-every", EVALUATE_EVERY]);
    arguments.extend(codecs.flags());
    let trained = flags.program.train(&arguments)?;
    let pushes = trained.figure("pushes")?;
    let bytes =
        [trained.figure("payload_bytes_up")? / pushes, trained.figure("payload_bytes_down")? / pushes];
    let accuracy = trained.figure("test_accuracy")?;
    let seconds = seconds_to(&trained, flags.target)?.unwrap_or(f64::INFINITY);
    Ok(Row { seconds, accuracy, bytes })
}

/// Seconds from the start of a training to its first evaluation that is as accurate as asked, if there is one.
fn seconds_to(trained: &Trained, target: f64) -> anyhow::Result<Option<f64>> {
    let started = trained.figure("started_us")?;
    let evaluations = trained.summary["evaluations"].as_array().context("the summary has no evaluations")?;
    let reached = evaluations.iter().find(|e| e["accuracy"].as_f64().is_some_and(|a| a >= target));
    Ok(reached.and_then(|e| e["at_us"].as_f64()).map(|at| (at - started) / 1e6))
}
