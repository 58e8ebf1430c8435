//! Applying a gradient beside a triad with the same number of threads: what a shard makes of the memory's speed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use multiversion::multiversion;
use windlass_benches::machine::{last_cache_bytes, median, spread, stolen, stolen_share};
use windlass_benches::setting::plan;
use windlass_common::ids::ShardId;
use windlass_common::layout::{Initial, Layout, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::placement::Placement;
use windlass_common::plan::Every;
use windlass_common::reduce::Contribution;
use windlass_limit::processor_time;
use windlass_ps::Crew;
use windlass_ps_core::store::{Combined, Hands, Store};

/// Values in a Ki.
const KI: u64 = 1 << 10;
/// Share of the triad that an application is to reach beyond the last cache.
const SHARE: f64 = 0.7;

/// Measures every optimizer on one variable beyond the last cache beside the triad of STREAM, in turn, and on 2NN in the
/// cache.
///
/// As STREAM does, a round takes the best of several runs; a figure is the median of the rounds. On one thread a run takes
/// its processor time, so that it counts nothing of what others do meanwhile; on two it takes the wall's, since one thread
/// may end up doing the work of both where the other finds no free core.
#[derive(Debug, Parser)]
struct Flags {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Values of the variable, in Ki (2^10).
    #[arg(long, value_delimiter = ',', default_value = "16384,65536")]
    values_ki: Vec<u64>,
    /// Optimizers to measure, by name [default: all].
    #[arg(long, value_delimiter = ',')]
    optimizers: Vec<Optimizer>,
    /// Pushes whose mean is applied.
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    pushes: Vec<usize>,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u64).range(1..=2))]
    threads: Vec<u64>,
    /// Milliseconds of each measurement in a round.
    #[arg(long, default_value_t = 250)]
    millis: u64,
}

/// GB/s of the best of as many runs as there is time for, at least five.
fn best(bytes: u64, crew: Option<&Crew>, millis: u64, mut run: impl FnMut()) -> f64 {
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    for runs in 0.. {
        if runs > 4 && begun.elapsed() > Duration::from_millis(millis) {
            break;
        }
        let (processor, wall) = (processor_time(), Instant::now());
        run();
        let took = if crew.is_some() { wall.elapsed() } else { processor_time() - processor };
        best = best.min(took);
    }
    bytes as f64 / best.as_secs_f64() / 1e9
}

/// `a[i] = b[i] + s c[i]` (McCalpin 1995, "Memory Bandwidth and Machine Balance in Current High Performance Computers").
struct Triad {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Triad {
    fn new(values: usize) -> Self {
        Self { a: vec![1.0; values], b: vec![2.0; values], c: vec![0.5; values] }
    }

    /// At 12 bytes a value, which is what STREAM counts.
    fn run(&mut self, crew: Option<&Crew>, millis: u64) -> f64 {
        let s = black_box(3.0_f32);
        let Self { a, b, c } = self;
        let bytes = 12 * a.len() as u64;
        best(bytes, crew, millis, || {
            let half = a.len() / 2;
            match crew {
                None => triad(a, b, c, s),
                Some(crew) => {
                    let (a, a_rest) = a.split_at_mut(half);
                    let mut one = || triad(a, &b[..half], &c[..half], s);
                    crew.both(&mut one, &mut || triad(a_rest, &b[half..], &c[half..], s));
                }
            }
            black_box(&*a);
        })
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn triad(a: &mut [f32], b: &[f32], c: &[f32], s: f32) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + s * c;
    }
}

/// One optimizer on the mean of so many pushes.
#[derive(Clone, Copy)]
struct Case {
    optimizer: Optimizer,
    pushes: usize,
}

impl Case {
    fn name(&self) -> String {
        match self.pushes {
            1 => self.optimizer.name().into(),
            pushes => format!("{}, mean of {pushes}", self.optimizer.name()),
        }
    }

    /// Bytes a value: each push is read, the values and each vector of the state are read and written.
    fn bytes(&self) -> u64 {
        (4 * self.pushes + 8 + 8 * self.optimizer.state_vectors()) as u64
    }
}

struct Setting {
    layout: Layout,
    placement: Placement,
    gradients: Vec<Vec<f32>>,
}

impl Setting {
    /// 2NN, or one variable of so many values.
    fn new(values: Option<u64>, pushes: usize) -> anyhow::Result<Self> {
        let mut plan = plan("2nn", 1, 1)?;
        if let Some(values) = values {
            plan.model.variables = vec![Variable::new("large", &[values], Initial::Zeros)];
        }
        let (layout, placement) = (plan.layout()?, plan.placement()?);
        let gradients = (0..pushes).map(|_| vec![1e-3; layout.total() as usize]).collect();
        Ok(Self { layout, placement, gradients })
    }

    /// A store that has all its buffers.
    fn run(&self, case: Case, crew: Option<&Arc<Crew>>, millis: u64) -> f64 {
        let Self { layout, placement, gradients } = self;
        let mut store = Store::new(layout, placement, ShardId(0), case.optimizer, 1, Every::Never);
        crew.into_iter().for_each(|crew| store.lend(crew.clone()));
        let push = |values| Contribution { values, count: 64 };
        let pushes: Vec<_> = gradients[..case.pushes].iter().map(|gradient| push(gradient)).collect();
        // Several in one run where one would be too short for the clock.
        let repeats = (1 << 20) / layout.total() + 1;
        let mut run = || (0..repeats).for_each(|_| store.apply(Combined::Mean(&pushes), 1e-6));
        // Memory is there only once it has been written to: the values' two buffers after two updates.
        (0..3).for_each(|_| run());
        best(case.bytes() * layout.total() * repeats, crew.map(Arc::as_ref), millis, run)
    }
}

/// Measures all cases on one variable with so many threads, and says whether each reaches its share of the triad.
fn measure(flags: &Flags, cases: &[Case], values: u64, threads: u64) -> anyhow::Result<()> {
    let setting = Setting::new(Some(values), flags.pushes.iter().copied().max().unwrap_or(1))?;
    let cache = last_cache_bytes().context("the system does not tell the size of its last cache")?;
    // STREAM asks that each array is four times the last cache.
    let mut triad = Triad::new(usize::try_from(values)?.max(cache));
    let crew = if threads > 1 { Some(Arc::new(Crew::new(threads as usize)?)) } else { None };
    println!(
        "\n{:.2} Mi values, {threads} thread(s); arrays of the triad {} MiB, last cache {} MiB",
        values as f64 / f64::from(1 << 20),
        (triad.a.len() * 4) >> 20,
        cache >> 20
    );
    let mut found = vec![Vec::new(); cases.len()];
    for _ in 0..flags.rounds {
        for (&case, found) in cases.iter().zip(&mut found) {
            let bare = triad.run(crew.as_deref(), flags.millis);
            found.push((bare, setting.run(case, crew.as_ref(), flags.millis)));
        }
    }
    let column =
        |found: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| -> Vec<f64> { found.iter().map(of).collect() };
    println!("  triad: GB/s {}", spread(&column(&found.concat(), |&(bare, _)| bare)));
    for (case, found) in cases.iter().zip(&found) {
        let shares = column(found, |(bare, own)| own / bare);
        println!(
            "  {:22} {:2} bytes a value, GB/s {:24} of the triad {}{}",
            case.name(),
            case.bytes(),
            spread(&column(found, |&(_, own)| own)),
            spread(&shares),
            if median(&shares) < SHARE { "  BELOW" } else { "" }
        );
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let mut flags = Flags::parse();
    if flags.optimizers.is_empty() {
        flags.optimizers = Optimizer::all().to_vec();
    }
    let before = stolen();
    let cases: Vec<Case> = (flags.pushes.iter())
        .flat_map(|&pushes| flags.optimizers.iter().map(move |&optimizer| Case { optimizer, pushes }))
        .collect();
    for &values in &flags.values_ki {
        for &threads in &flags.threads {
            measure(&flags, &cases, values * KI, threads)?;
        }
    }
    let small = Setting::new(None, flags.pushes.iter().copied().max().unwrap_or(1))?;
    println!("\n2NN ({} values, in the cache), 1 thread", small.layout.total());
    for case in cases {
        let round = |_| small.run(case, None, flags.millis / 4);
        println!("  {:22} GB/s {}", case.name(), spread(&(0..flags.rounds).map(round).collect::<Vec<f64>>()));
    }
    if let Some(share) = stolen_share(before) {
        println!("\nstolen time {:.1} %", share * 100.0);
    }
    Ok(())
}
