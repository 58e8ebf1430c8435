//! How long a shard stands still for its part of a checkpoint, beside copying the same optimizer state by itself.

use std::hint::black_box;
use std::time::Instant;

use windlass_benches::setting::plan;
use windlass_common::ids::ShardId;
use windlass_common::layout::{Initial, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::reduce::Contribution;
use windlass_ps_core::store::{Combined, Store};

/// Values of the model.
const VALUES: u64 = 64 << 20;
const ROUNDS: usize = 5;

fn main() -> anyhow::Result<()> {
    let mut plan = plan("2nn", 1, 1)?;
    plan.model.variables = vec![Variable::new("large", &[VALUES], Initial::Zeros)];
    let (layout, placement) = (plan.layout()?, plan.placement()?);
    let adam: Optimizer = "adam".parse()?;
    let mut store = Store::new(&layout, &placement, ShardId(0), adam, 1);
    let gradient = vec![1e-3_f32; VALUES as usize];
    store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 64 }]), 1e-6);
    drop(gradient);
    // What is copied into is there already, so that this is the memory's speed and nothing else.
    let mut copies = vec![vec![1.0_f32; VALUES as usize]; adam.state_vectors()];
    let mut ratios = Vec::new();
    println!("64 million values with Adam: milliseconds, {ROUNDS} rounds");
    for _ in 0..ROUNDS {
        let (begun, slices) = (Instant::now(), store.slices());
        let stall = begun.elapsed().as_secs_f64() * 1e3;
        let begun = Instant::now();
        for (copy, state) in copies.iter_mut().zip(slices.iter().flat_map(|s| &s.state.vectors)) {
            copy.copy_from_slice(black_box(state));
        }
        let copy = begun.elapsed().as_secs_f64() * 1e3;
        black_box(&copies);
        println!(
            "  part of a checkpoint {stall:6.0}   a copy of the state {copy:6.0}   {:.2} times",
            stall / copy
        );
        ratios.push(stall / copy);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {:.2} times a copy of the state", ratios[ROUNDS / 2]);
    Ok(())
}
