//! How long a shard stands still for its part of a checkpoint, beside copying the same optimizer state by itself.
//!
//! The part is handed out by reference; what it costs comes with the updates after it, which write apart what they would
//! have changed in place. So the stall is the handing out, and what the updates while a keeper has the part take beyond as
//! many without one.

use std::hint::black_box;
use std::time::Instant;

use windlass_benches::machine::{median, spread, stolen, stolen_share};
use windlass_benches::setting::plan;
use windlass_common::ids::ShardId;
use windlass_common::layout::{Initial, Layout, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::placement::Placement;
use windlass_common::plan::Every;
use windlass_common::reduce::Contribution;
use windlass_ps_core::store::{Combined, Store};

/// Values of the model.
const VALUES: u64 = 64 << 20;
const ROUNDS: usize = 7;
/// Updates while a keeper has the part. The first writes the state apart, the second needs a third buffer for the values.
const UPDATES: usize = 4;

struct Bench {
    layout: Layout,
    placement: Placement,
    optimizer: Optimizer,
    gradient: Vec<f32>,
    /// What is copied into; it is there already, so that this is the memory's speed and nothing else.
    copies: Vec<Vec<f32>>,
}

/// Milliseconds.
struct Round {
    stall: f64,
    copy: f64,
    update: f64,
}

impl Bench {
    fn store(&self, every: Every) -> Store {
        let mut store = Store::new(&self.layout, &self.placement, ShardId(0), self.optimizer, 1, every);
        self.updates(&mut store, 3);
        store
    }

    /// Milliseconds of so many updates.
    fn updates(&self, store: &mut Store, count: usize) -> f64 {
        let begun = Instant::now();
        for _ in 0..count {
            store.apply(Combined::Mean(&[Contribution { values: &self.gradient, count: 64 }]), 1e-6);
        }
        begun.elapsed().as_secs_f64() * 1e3
    }

    fn round(&mut self, store: &mut Store) -> Round {
        let before = self.updates(store, UPDATES);
        let begun = Instant::now();
        let slices = store.slices();
        let handing_out = begun.elapsed().as_secs_f64() * 1e3;
        let with = self.updates(store, UPDATES);
        let begun = Instant::now();
        for (copy, state) in self.copies.iter_mut().zip(slices.iter().flat_map(|s| &s.state.vectors)) {
            copy.copy_from_slice(black_box(state));
        }
        let copy = begun.elapsed().as_secs_f64() * 1e3;
        black_box(&self.copies);
        drop(slices);
        let after = self.updates(store, UPDATES);
        let without = f64::midpoint(before, after);
        Round { stall: handing_out + with - without, copy, update: without / UPDATES as f64 }
    }
}

fn print(name: &str, rounds: &[Round]) {
    let column = |of: fn(&Round) -> f64| spread(&rounds.iter().map(of).collect::<Vec<f64>>());
    println!("{name}");
    println!("  stall, ms                {}", column(|r| r.stall));
    println!("  a copy of the state, ms  {}", column(|r| r.copy));
    println!("  an update, ms            {}", column(|r| r.update));
    println!("  stall / copy             {}", column(|r| r.stall / r.copy));
}

fn main() -> anyhow::Result<()> {
    let mut plan = plan("2nn", 1, 1)?;
    plan.model.variables = vec![Variable::new("large", &[VALUES], Initial::Zeros)];
    let optimizer: Optimizer = "adam".parse()?;
    let mut bench = Bench {
        layout: plan.layout()?,
        placement: plan.placement()?,
        optimizer,
        gradient: vec![1e-3; VALUES as usize],
        copies: vec![vec![1.0; VALUES as usize]; optimizer.state_vectors()],
    };
    let before = stolen();
    let (mut first, mut later, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut store = bench.store(Every::Seconds(60));
        first.push(bench.round(&mut store));
        later.push(bench.round(&mut store));
        drop(store);
        let mut store = bench.store(Every::Never);
        fresh.push(bench.round(&mut store));
    }
    println!("64 Mi values with Adam, {ROUNDS} rounds in turn");
    print("the first checkpoint of a run that keeps them", &first);
    print("a later one", &later);
    print("the first of a run that sets no memory aside", &fresh);
    if let Some(share) = stolen_share(before) {
        println!("stolen time {:.1} %", share * 100.0);
    }
    let worst = median(&later.iter().chain(&first).map(|r| r.stall / r.copy).collect::<Vec<f64>>());
    println!("\nmedian {worst:.2} times a copy of the state");
    Ok(())
}
