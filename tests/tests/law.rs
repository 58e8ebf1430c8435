//! Shows a law of asynchronous training: C workers with one gradient in flight each have a mean staleness of C - 1.

use windlass_common::plan::{Mode, StalenessScaling};
use windlass_tests::audit::mean_staleness;
use windlass_tests::cluster::{Config, Pace, run};
use windlass_tests::problem::Quadratic;
use windlass_tests::seeds::seeds;

#[test]
fn mean_staleness_is_one_less_than_the_workers_whatever_their_speeds() {
    let problem = Quadratic { workers: 1, batch: 1 };
    for pace in [Pace::Even, Pace::Skewed] {
        for (workers, expected) in [(1, 0.0), (2, 1.0), (5, 4.0)] {
            for seed in seeds(3) {
                let mode = Mode::Async { scaling: StalenessScaling::None };
                let config = Config { pace, shards: 2, ..Config::new(seed, mode, workers, 1500) };
                let run = run(&config, &problem);
                for history in &run.histories {
                    let mean = mean_staleness(history, workers as usize);
                    assert!(
                        (mean - expected).abs() <= 0.05 * expected,
                        "{mean} with {workers} workers, {config:?}"
                    );
                }
            }
        }
    }
}
