//! Shows laws of asynchronous training: how stale its gradients are, and how many more steps it makes.

use windlass_common::ids::WorkerId;
use windlass_common::plan::{Mode, StalenessScaling};
use windlass_common::wire::{Outcome, Record};
use windlass_tests::audit::mean_staleness;
use windlass_tests::cluster::{self, Pace, run};
use windlass_tests::problem::Quadratic;
use windlass_tests::seeds::seeds;
use windlass_tests::sim::{Compute, Config, Fault, Network, Place, Played, What, play};

const ASYNC: Mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
/// Workers compute the next gradient while one is on its way.
const AHEAD: Mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 2 };

#[test]
fn mean_staleness_is_one_less_than_the_workers_whatever_their_speeds() {
    let problem = Quadratic { workers: 1, batch: 1 };
    for pace in [Pace::Even, Pace::Skewed] {
        for (workers, expected) in [(1, 0.0), (2, 1.0), (5, 4.0)] {
            for seed in seeds(3) {
                let config =
                    cluster::Config { pace, shards: 2, ..cluster::Config::new(seed, ASYNC, workers, 1500) };
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

const CONSTANT: Compute = Compute { mean: 10_000, is_exponential: false, slow: None };
const EXPONENTIAL: Compute = Compute { is_exponential: true, ..CONSTANT };
const ONE_SLOW: Compute = Compute { slow: Some((WorkerId(0), 4)), ..CONSTANT };

/// The mean staleness on the first shard of a run on the virtual clock.
fn staleness(config: &Config) -> f64 {
    let played = play(config, false);
    mean_staleness(&played.run.histories[0], config.workers as usize)
}

fn on_the_clock(seed: u64, mode: Mode, workers: u32, compute: Compute, pushes: u64) -> Config {
    // Batches have 1 to 4 examples.
    let target = pushes * 5 / 2;
    Config { compute, servers: 2, ..Config::new(seed, mode, workers, target) }
}

/// Each push of a worker waits while all others push as often as they are fast: over a whole run that is once each in
/// the mean, however fast each is.
#[test]
fn mean_staleness_on_the_clock_is_one_less_than_the_workers() {
    for compute in [CONSTANT, EXPONENTIAL, ONE_SLOW] {
        for workers in [2, 4, 8, 16] {
            for seed in seeds(2) {
                let config = on_the_clock(seed, ASYNC, workers, compute, 4000);
                let (mean, expected) = (staleness(&config), f64::from(workers - 1));
                assert!((mean - expected).abs() <= 0.02 * expected, "{mean} is not {expected}: {config}");
            }
        }
    }
}

/// The premise of the law: nobody waits, and nobody stops.
#[test]
fn who_waits_or_stops_breaks_the_law() {
    let workers = 4;
    let ssp =
        Mode::Ssp { staleness: Some(1), scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
    let bounded = staleness(&on_the_clock(1, ssp, workers, ONE_SLOW, 2000));
    assert!(bounded < 2.7, "the fast wait for the slow one, so that less goes on meanwhile: {bounded}");
    let what = What::Pause(Place::Worker(WorkerId(0)), 5_000_000);
    let faults = vec![Fault { at: 500, what }];
    let paused = Config { faults, ..on_the_clock(1, ASYNC, workers, CONSTANT, 2000) };
    let played = play(&paused, false);
    let is_stale = |r: &&Record| matches!(r.outcome, Outcome::Applied { staleness, .. } if staleness > 300);
    let stale = played.run.histories[0].records().filter(is_stale).count();
    assert_eq!(stale, 1, "one gradient is as old as its worker was stopped");
}

fn steps_per_second(played: &Played) -> f64 {
    let (first, last) = played.settled.expect("something has been applied");
    let steps = played.run.histories[0].records().map(|r| r.outcome).filter_map(|outcome| match outcome {
        Outcome::Applied { version, .. } => Some(version.0),
        _ => None,
    });
    (steps.max().unwrap_or(0) - 1) as f64 / ((last - first) as f64 / 1e6)
}

/// With exponential step times a synchronous step lasts as long as the longest of P, which is H_P = 1 + 1/2 + ... + 1/P
/// means; meanwhile P workers that do not wait make P H_P steps (Dutta et al. 2018, "Slow and Stale Gradients Can Win the
/// Race", section 3).
#[test]
fn asynchronous_steps_are_as_many_more_as_the_longest_of_them_takes() {
    for workers in [4_u32, 8] {
        let harmonic: f64 = (1..=workers).map(|i| 1.0 / f64::from(i)).sum();
        let expected = f64::from(workers) * harmonic;
        let mut measured = Vec::new();
        for seed in seeds(4) {
            let steps = 1000;
            let asynchronous = on_the_clock(seed, ASYNC, workers, EXPONENTIAL, steps * u64::from(workers));
            let sync = Mode::Sync { backup: 0 };
            let synchronous = on_the_clock(seed, sync, workers, EXPONENTIAL, steps * u64::from(workers));
            let [fast, slow] =
                [asynchronous, synchronous].map(|config| steps_per_second(&play(&config, false)));
            measured.push(fast / slow);
        }
        let mean = measured.iter().sum::<f64>() / measured.len() as f64;
        // A step of P deviates by at most sqrt(pi^2 / 6) / H_P of its mean: over so many, three deviations are this.
        let deviation = 1.28 / harmonic / (1000.0 * measured.len() as f64).sqrt();
        let tolerance = 3.0 * deviation + 0.01;
        assert!(
            (mean / expected - 1.0).abs() <= tolerance,
            "{mean} times as many steps with {workers} workers, {expected} are expected: {measured:?}"
        );
    }
}

/// Of the 2n gradients under way each waits for all others: those of the other workers twice, and its own worker's one.
#[test]
fn two_gradients_in_flight_are_twice_as_stale_and_one_more() {
    for (workers, compute) in
        [(1, CONSTANT), (2, ONE_SLOW), (4, EXPONENTIAL), (8, EXPONENTIAL), (8, ONE_SLOW)]
    {
        for seed in seeds(2) {
            let config = on_the_clock(seed, AHEAD, workers, compute, 6000);
            let (mean, expected) = (staleness(&config), f64::from(2 * workers - 1));
            assert!((mean - expected).abs() <= 0.02 * expected, "{mean} is not {expected}: {config}");
        }
    }
}

/// A step takes as long as computing and the way there and back together, or with two in flight as the longer of them.
#[test]
fn two_gradients_in_flight_hide_the_way_there_and_back() {
    let one_way = 4_000;
    let network = Network { delay: (one_way, one_way), jitter: 0, loss: 0, slow: Vec::new() };
    for (mode, step) in [(ASYNC, CONSTANT.mean + 2 * one_way), (AHEAD, CONSTANT.mean)] {
        let config = on_the_clock(1, mode, 3, CONSTANT, 3000);
        let measured = steps_per_second(&play(&Config { network: network.clone(), ..config }, false));
        let expected = 3.0 * 1e6 / step as f64;
        assert!(
            (measured / expected - 1.0).abs() <= 0.01,
            "{measured} steps a second, {expected} are expected"
        );
    }
}
