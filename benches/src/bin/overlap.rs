//! How much of the communication of a step is hidden behind its computation, with steps of emulated length on emulated links.

use std::ops::Range;

use anyhow::{Context, ensure};
use clap::Parser;
use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::training::{Program, UNEVALUATED};
use windlass_common::layout::Layout;
use windlass_worker::models::{Batch, Model, Passes, by_name};

/// Sets trainings with overlap beside trainings without, in turn, and beside what arithmetic allows.
#[derive(Debug, Parser)]
struct Flags {
    /// Models to train.
    #[arg(long, value_delimiter = ',', default_value = "cnn,2nn")]
    models: Vec<String>,
    /// Emulated milliseconds of a step, one for each model.
    #[arg(long, value_delimiter = ',', default_value = "120,30")]
    step_ms: Vec<f64>,
    /// Rate of each worker's link in each direction, in Mbit/s.
    #[arg(long, default_value_t = 1000.0)]
    link_mbit: f64,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<u64>,
    /// Steps of each training.
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Pairs of trainings, with overlap and without.
    #[arg(long, default_value_t = 5)]
    pairs: u64,
    /// Examples of a batch: fewer than a step of that length is for, so that a busy machine can keep the time. Neither bytes
    /// nor the layers' shares of the time depend on it.
    #[arg(long, default_value_t = 4)]
    batch: u64,
    #[command(flatten)]
    program: Program,
}

/// Examples of the training data.
const EXAMPLES: f64 = 60_000.0;

/// Milliseconds of a step.
struct Step {
    whole: f64,
    computing: f64,
}

/// Writes down when, by the share of the work done, values are read and the gradient is made.
#[derive(Default)]
struct Schedule {
    values: Vec<f32>,
    gradient: Vec<f32>,
    /// Those that were asked for last.
    shown: Range<usize>,
    /// Values up to here are read from this share on.
    read: Vec<(usize, f64)>,
    /// The gradient is final from here on at this share.
    made: Vec<(usize, f64)>,
}

impl Passes for Schedule {
    fn total(&self) -> usize {
        self.values.len()
    }

    fn values(&mut self, range: Range<usize>, done: f64) -> Option<&[f32]> {
        if self.read.last().is_none_or(|(last, _)| range.end > *last) {
            self.read.push((range.end, done));
        }
        self.shown = range.clone();
        Some(&self.values[range])
    }

    fn loss(&mut self, _: f32, _: f64) -> Option<()> {
        Some(())
    }

    fn room(&mut self, range: Range<usize>, _: bool) -> (&[f32], &mut [f32]) {
        (&self.values[self.shown.clone()], &mut self.gradient[range])
    }

    fn made(&mut self, from: usize, done: f64) {
        self.made.push((from, done));
    }
}

impl Schedule {
    fn of(model: &mut dyn Model, batch: usize) -> anyhow::Result<Self> {
        let values = Layout::new(model.variables())?.initial_values(1);
        let input = model.input();
        let (features, labels) = (vec![0.5; batch * input.features], vec![0; batch]);
        let mut schedule = Self { gradient: vec![0.0; values.len()], values, ..Self::default() };
        model
            .gradient_with(&mut schedule, Batch::new(&features, &labels))
            .context("the gradient was not given up")?;
        Ok(schedule)
    }

    /// Milliseconds of communication that no order of the bytes could hide, of a step of so many milliseconds and a link that
    /// takes so many for a value: what the gradient takes beyond the end of the backward pass, and what the forward pass
    /// waits for values.
    fn exposed(&self, step_ms: f64, value_ms: f64) -> f64 {
        let (mut until, mut sent) = (self.values.len(), 0.0_f64);
        for &(from, done) in &self.made {
            sent = sent.max(done * step_ms) + (until - from) as f64 * value_ms;
            until = from;
        }
        let wait = self.read.iter().map(|&(end, done)| end as f64 * value_ms - done * step_ms);
        (sent - step_ms).max(0.0) + wait.fold(0.0, f64::max)
    }
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    ensure!(flags.models.len() == flags.step_ms.len(), "each model takes a time of its own");
    let before = stolen();
    let mut table = Vec::new();
    for (name, &step_ms) in flags.models.iter().zip(&flags.step_ms) {
        let mut model = by_name(name)?;
        let schedule = Schedule::of(&mut *model, usize::try_from(flags.batch)?)?;
        let value_ms = 32.0 / flags.link_mbit / 1e3;
        let both_ways = 2.0 * value_ms * schedule.values.len() as f64;
        let most = 1.0 - schedule.exposed(step_ms, value_ms) / both_ways;
        for &workers in &flags.workers {
            let (mut with, mut without, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
            for pair in 0..flags.pairs {
                let (yes, no) = (
                    step(&flags, name, step_ms, workers, true)?,
                    step(&flags, name, step_ms, workers, false)?,
                );
                let share = (no.whole - yes.whole) / (no.whole - no.computing);
                println!(
                    "{name}, {workers} workers, pair {pair}: {:.1} ms with, {:.1} ms without, {:.1} ms computing, {share:.3} hidden",
                    yes.whole, no.whole, no.computing
                );
                hidden.push(share);
                with.push(yes);
                without.push(no);
            }
            let of = |steps: &[Step], ms: fn(&Step) -> f64| steps.iter().map(ms).collect::<Vec<_>>();
            let communication: Vec<f64> = without.iter().map(|s| s.whole - s.computing).collect();
            table.push(format!(
                "{name:<5} {workers:>7}  {}  {}  {:>9.1}  {}  {both_ways:>9.1}  {}  {most:.3}",
                spread(&of(&with, |s| s.whole)),
                spread(&of(&without, |s| s.whole)),
                median(&of(&without, |s| s.computing)),
                spread(&communication),
                spread(&hidden)
            ));
        }
    }
    println!(
        "\nsync, batch {}, 1 server, {} Mbit/s in each direction; ms a step",
        flags.batch, flags.link_mbit
    );
    println!(
        "model workers  with                        without                     computing  communication               arithmetic  hidden                  at most"
    );
    table.iter().for_each(|row| println!("{row}"));
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    Ok(())
}

fn step(flags: &Flags, model: &str, step_ms: f64, workers: u64, overlap: bool) -> anyhow::Result<Step> {
    // Each worker takes so many steps; the first of them, whose values come whole, is one of them.
    let passes = (flags.steps * flags.batch * workers) as f64 / EXAMPLES;
    let texts = [workers.to_string(), passes.to_string(), flags.batch.to_string()];
    let [workers_text, passes, batch] = &texts;
    let (step_time, rate) = (format!("const:{step_ms}ms"), format!("{}mbit", flags.link_mbit));
    let mut arguments = vec!["--mode", "sync", "--servers", "1", "--model", model, "--workers", workers_text];
    arguments.extend(["--passes", passes, "--batch", batch, "--step-time", &step_time, "--link-rate", &rate]);
    arguments.extend(UNEVALUATED);
    arguments.extend((!overlap).then_some("--no-overlap"));
    let trained = flags.program.train(&arguments)?;
    let steps = trained.figure("steps")?;
    let whole = trained.figure("training_s")? * 1e3 / (steps - 1.0).max(1.0);
    Ok(Step { whole, computing: step_ms })
}
