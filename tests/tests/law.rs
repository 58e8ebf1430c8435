//! Shows laws of asynchronous training: how stale its gradients are, and how many more steps it makes.

use std::collections::VecDeque;

use windlass_common::ids::{
    ClientId, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::plan::{Mode, StalenessScaling};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{Codec, Member, Order, Outcome, Pull, Push, Record};
use windlass_ps_core::shard::{Effect, Event, Reply, Request, Shard};
use windlass_ps_core::{SessionId, Time};
use windlass_tests::audit::mean_staleness;
use windlass_tests::cluster::{self, Pace, run};
use windlass_tests::problem::Quadratic;
use windlass_tests::seeds::seeds;
use windlass_tests::sim::{Compute, Config, Fault, Place, Played, What, play};

const ASYNC: Mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };

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
    let ssp = Mode::Ssp { staleness: Some(1), scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
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

/// The mean staleness of what a shard applies when each worker has two gradients in flight: it computes the next on the
/// values at hand while one is on its way and is answered. Whose gradient is done next is drawn.
fn staleness_with_two_in_flight(workers: u32, seed: u64, pushes: u64) -> f64 {
    let problem = Quadratic { workers, batch: 1 };
    let config = cluster::Config { shards: 1, ..cluster::Config::new(seed, ASYNC, workers, 1 << 20) };
    let (run, lineage, incarnation) = (RunId(1), Lineage(0), Incarnation(1));
    let mut shard =
        Shard::new(&config.plan(&problem), run, lineage, ShardId(0)).expect("a plan of tests can be placed");
    let mut out = Vec::new();
    let members = (0..workers).map(|w| Member { worker: WorkerId(w), incarnation }).collect();
    let joined = Order::Membership { term: Term(1), members, departed: Vec::new() };
    for order in [joined, Order::Start] {
        shard.handle(Time(0), Event::Order(order), &mut out);
    }
    let parts = shard.shape().parts.clone();
    let values = shard.shape().values();
    // Per worker the versions that its two gradients are computed on, the older first.
    let mut bases = vec![VecDeque::from([Version(0), Version(0)]); workers as usize];
    let mut next = vec![0_u64; workers as usize];
    let mut rng = Rng::new(seed, Purpose::Delivery);
    let mut sum = 0;
    for _ in 0..pushes {
        let w = rng.below(u64::from(workers)) as usize;
        let (worker, sequence, step) = (WorkerId(w as u32), Sequence(next[w]), Step(next[w]));
        next[w] += 1;
        let push = Push {
            sequence,
            step,
            base: bases[w].pop_front().expect("two gradients are in flight"),
            client: ClientId(worker.0),
            examples: 1,
            work: 1,
            loss: 0.0,
            codec: Codec::F32,
            parts: parts.clone(),
            payload_bytes: 4 * values,
        };
        let pull = Pull { step: step.next(), have: None, slices: Vec::new(), codec: Codec::F32 };
        let gradient = vec![0.0; values as usize];
        let request = Request {
            session: SessionId(u64::from(worker.0)),
            run,
            lineage,
            worker,
            term: Term(1),
            incarnation,
            push: Some((push, gradient)),
            pull: Some(pull),
        };
        out.clear();
        shard.handle(Time(0), Event::Request(request), &mut out);
        for effect in &out {
            match effect {
                Effect::Reply {
                    reply: Reply::Settled { outcome: Outcome::Applied { staleness, .. }, .. },
                    ..
                } => {
                    sum += staleness;
                }
                Effect::Reply { reply: Reply::Values { snapshot, .. }, .. } => {
                    bases[w].push_back(snapshot.version)
                }
                Effect::Reply { reply, .. } => panic!("{reply:?}"),
                _ => {}
            }
        }
    }
    sum as f64 / pushes as f64
}

/// Of the 2C gradients under way each waits for all others: those of the other workers twice, and its own worker's one.
#[test]
fn two_gradients_in_flight_are_twice_as_stale_and_one_more() {
    for workers in [1_u32, 2, 4, 8] {
        let expected = f64::from(2 * workers - 1);
        for seed in seeds(2) {
            let mean = staleness_with_two_in_flight(workers, seed, 20_000);
            assert!((mean - expected).abs() <= 0.02 * expected, "{mean} with {workers} workers, seed {seed}");
        }
    }
}
