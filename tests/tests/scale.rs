//! Shows that a cluster as large as the limits allow runs in reasonable time: 1,000 workers on 64 shards.

use std::time::Instant;

use windlass_common::plan::{Mode, StalenessScaling};
use windlass_common::wire::Stop;
use windlass_tests::problem::Bowls;
use windlass_tests::sim::{Compute, Config, play};

const WORKERS: u32 = 1000;

fn large(mode: Mode, pushes: u64) -> Config {
    Config {
        servers: 8,
        shards_per_server: 8,
        problem: Bowls { is_long: false, variables: 64, batch: 1 },
        compute: Compute { mean: 1_000_000, is_exponential: true, slow: None },
        shard_tick: 1_000_000,
        ..Config::new(1, mode, WORKERS, pushes * u64::from(WORKERS) * 5 / 2)
    }
}

fn completes(config: &Config) {
    let begun = Instant::now();
    let played = play(config, false);
    println!("{} in {:.1} s: {}", config.mode, begun.elapsed().as_secs_f64(), played.counts);
    assert_eq!(played.run.stop, Stop::Completed);
    let settled = played.run.histories.iter().map(|h| h.records().count());
    assert!(settled.min().unwrap_or(0) >= WORKERS as usize, "everybody has pushed to every shard");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes with assertions: run it with --release")]
fn a_thousand_workers_take_synchronous_steps() {
    completes(&large(Mode::Sync { backup: 0 }, 3));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes with assertions: run it with --release")]
fn a_thousand_workers_take_asynchronous_steps() {
    completes(&large(Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 }, 3));
}
