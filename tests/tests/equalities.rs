//! Shows which runs must end with the same bits, over orders of delivery, shards and optimizers.

use windlass_common::codec::Codec;
use windlass_common::ids::{ShardId, Step, WorkerId};
use windlass_common::optimizer::{Adam, Momentum, Nesterov, Optimizer, Sgd};
use windlass_common::plan::{Codecs, Mode, StalenessScaling};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::schedule::{Schedule, Shape};
use windlass_common::wire::{Outcome, Stop};
use windlass_tests::audit::{
    assert_bound, assert_each_push_counts_once, assert_replays, assert_same, mean_staleness,
};
use windlass_tests::check::verify;
use windlass_tests::cluster::{Config, Kill, Pushed, Run, constant, run};
use windlass_tests::oracle;
use windlass_tests::problem::{Network, Problem, Quadratic};
use windlass_tests::seeds::{all_seeds, seeds};

const SHARDS: [u32; 3] = [1, 2, 5];
const SYNC: Mode = Mode::Sync { backup: 0 };
const ASYNC: Mode = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };

fn ssp(staleness: Option<u64>) -> Mode {
    Mode::Ssp { staleness, scaling: StalenessScaling::None, compensation: None, in_flight: 1 }
}

/// Async and ssp in which workers compute ahead.
fn ahead() -> [Mode; 4] {
    let (scaling, compensation, in_flight) = (StalenessScaling::None, None, 2);
    let ssp = |staleness| Mode::Ssp { staleness, scaling, compensation, in_flight };
    [Mode::Async { scaling, compensation, in_flight }, ssp(None), ssp(Some(1)), ssp(Some(3))]
}

/// Async and ssp with this lambda, and so many gradients of a worker in flight.
fn compensated(lambda: Option<f32>, in_flight: u32) -> [Mode; 3] {
    let (scaling, compensation) = (StalenessScaling::None, lambda);
    [
        Mode::Async { scaling, compensation, in_flight },
        Mode::Async { scaling: StalenessScaling::Inverse, compensation, in_flight },
        Mode::Ssp { staleness: Some(2), scaling, compensation, in_flight },
    ]
}

fn optimizers() -> [Optimizer; 4] {
    [
        Optimizer::Sgd(Sgd { weight_decay: 0.01 }),
        Optimizer::Momentum(Momentum::default()),
        Optimizer::Nesterov(Nesterov { mu: 0.8, weight_decay: 0.001 }),
        Optimizer::Adam(Adam::default()),
    ]
}

fn cosine() -> Schedule {
    Schedule { rate: 0.1, warm_up: 0.2, shape: Shape::Cosine { final_share: 0.01 } }
}

fn ranks(count: u32) -> Vec<WorkerId> {
    (0..count).map(WorkerId).collect()
}

/// Runs to the end, which must be a good one.
fn completed(config: &Config, problem: &dyn Problem) -> Run {
    let run = run(config, problem);
    assert_eq!(run.stop, Stop::Completed, "{config:?}");
    assert_each_push_counts_once(&run);
    run
}

/// The seeds times 1, 2 and 5 shards.
fn each(count: u64) -> impl Iterator<Item = (u64, u32)> {
    seeds(count).flat_map(|seed| SHARDS.map(|shards| (seed, shards)))
}

#[test]
fn sync_is_one_process_that_accumulates_in_order_of_rank() {
    let problem = Network::uneven(1, 10, 3);
    for optimizer in optimizers() {
        // 10 + 13 + 16 + 19 examples a step, 8 steps and a little: the last one goes beyond the target.
        let base = Config { optimizer, schedule: cosine(), ..Config::new(0, SYNC, 4, 58 * 8 + 5) };
        let expected = oracle::synchronous(&base.plan(&problem), &problem, &ranks(4));
        for (seed, shards) in each(8) {
            let run = completed(&Config { shards, ..Config { seed, ..base.clone() } }, &problem);
            assert_same(&run.values, &expected, &format!("{optimizer} on {shards} shards"));
            assert_eq!(run.applied(ShardId(0)), 9 * 4);
        }
    }
}

#[test]
fn every_codec_gives_the_same_bits_on_any_number_of_shards() {
    let problem = Network::uneven(1, 10, 3);
    for push in Codec::all() {
        for pull in Codec::for_pulls() {
            let codecs = Codecs { push, pull };
            let base = Config { codecs, schedule: cosine(), ..Config::new(0, SYNC, 4, 58 * 8 + 5) };
            let mut first = None;
            for (seed, shards) in each(2) {
                let run = completed(&Config { shards, ..Config { seed, ..base.clone() } }, &problem);
                let first = first.get_or_insert_with(|| run.values.clone());
                assert_same(&run.values, first, &format!("{push} up, {pull} down, {shards} shards"));
            }
        }
    }
}

#[test]
fn what_goes_down_in_patches_is_what_the_records_say_whoever_dies() {
    let problem = Network::uneven(7, 6, 1);
    let codecs = |push: Codec| Codecs { push, pull: "topk:5%".parse().unwrap() };
    let modes = [SYNC, ASYNC, ssp(Some(2))].into_iter().chain(compensated(Some(0.5), 1)).chain(ahead());
    for (mode, push) in modes.zip(Codec::all().into_iter().cycle()) {
        for (seed, shards) in each(5) {
            let config = Config { shards, codecs: codecs(push), ..Config::new(seed, mode.clone(), 3, 300) };
            let calm = completed(&config, &problem);
            assert_replays(&calm, &problem);
            let kills = deaths(seed, 3, calm.deliveries);
            assert_replays(&completed(&Config { kills, ..config }, &problem), &problem);
        }
    }
    // Who has died in sync is sent what the step before was computed on, and computes the same.
    let base = Config {
        optimizer: Optimizer::Adam(Adam::default()),
        codecs: codecs(Codec::F32),
        ..Config::new(0, SYNC, 3, 21 * 6)
    };
    let expected = completed(&base, &problem);
    let mut died = 0;
    for (seed, shards) in each(40) {
        let kills = deaths(seed, 3, expected.deliveries * u64::from(shards));
        let run = completed(&Config { seed, shards, kills, ..base.clone() }, &problem);
        died += run.deaths;
        assert_same(&run.values, &expected.values, &format!("{shards} shards"));
    }
    println!("{died} deaths");
    assert!(died > 100 || !all_seeds(), "workers died {died} times");
}

#[test]
fn backup_workers_who_never_answer_are_as_if_they_were_not_there() {
    let problem = Network::uneven(2, 7, 2);
    for (seed, shards) in each(20) {
        let mut rng = Rng::new(seed, Purpose::Partition);
        let mut order = ranks(5);
        rng.shuffle(&mut order);
        let backup = 1 + rng.below(2) as usize;
        let mut rest = order.split_off(backup);
        rest.sort();
        let config = Config {
            shards,
            silent: order,
            optimizer: Optimizer::Momentum(Momentum::default()),
            ..Config::new(seed, Mode::Sync { backup: backup as u32 }, 5, 300)
        };
        let run = completed(&config, &problem);
        let expected = oracle::synchronous(&run.plan, &problem, &rest);
        assert_same(&run.values, &expected, &format!("{rest:?} on {shards} shards"));
    }
}

#[test]
fn backup_workers_make_one_cohort_per_step_on_every_shard() {
    let problem = Network::uneven(2, 7, 2);
    let mut late = 0;
    for (seed, shards) in each(20) {
        let config = Config { shards, ..Config::new(seed, Mode::Sync { backup: 2 }, 5, 600) };
        let run = completed(&config, &problem);
        assert_replays(&run, &problem);
        for record in run.histories[0].records() {
            let is_late = |outcome| matches!(outcome, Some(Outcome::Late { .. }));
            let everywhere = run.histories.iter().map(|h| is_late(h.outcome(record.worker, record.sequence)));
            assert!(everywhere.eq(run.histories.iter().map(|_| is_late(Some(record.outcome)))), "{record:?}");
            late += usize::from(matches!(record.outcome, Outcome::Late { .. }));
        }
        let steps = run.histories[0].records().filter_map(|r| match r.outcome {
            Outcome::Applied { .. } => Some(r.step.0),
            _ => None,
        });
        let mut cohorts = std::collections::BTreeMap::<u64, usize>::new();
        steps.for_each(|step| *cohorts.entry(step).or_default() += 1);
        assert!(cohorts.values().all(|&size| size == 3), "three of five make a step: {cohorts:?}");
    }
    println!("{late} pushes were late");
    assert!(late > 500 || !all_seeds(), "some are late: {late}");
}

#[test]
fn a_bound_that_never_binds_is_async() {
    let problem = Network::new(3, 10);
    for (seed, shards) in each(10) {
        let config = |mode| Config { shards, schedule: cosine(), ..Config::new(seed, mode, 4, 400) };
        let expected = completed(&config(ASYNC), &problem);
        for bound in [None, Some(1 << 40)] {
            let run = completed(&config(ssp(bound)), &problem);
            assert_same(&run.values, &expected.values, "values");
            assert!(run.histories == expected.histories, "the same things happen in the same order");
            assert_eq!(run.deliveries, expected.deliveries);
        }
    }
}

#[test]
fn one_worker_is_sequential_sgd_in_every_mode() {
    let problem = Network::new(4, 10);
    let inverse = Mode::Async { scaling: StalenessScaling::Inverse, compensation: None, in_flight: 1 };
    for optimizer in optimizers() {
        let base = Config { optimizer, schedule: cosine(), ..Config::new(0, SYNC, 1, 123) };
        let expected = oracle::sequential(&base.plan(&problem), &problem);
        let usual = [SYNC, ASYNC, inverse.clone(), ssp(None), ssp(Some(0)), ssp(Some(3))];
        // Nothing changes between a pull and the push that comes of it, so that there is nothing to make up for.
        for mode in usual.into_iter().chain(compensated(Some(0.5), 1)) {
            for (seed, shards) in each(3) {
                let run = completed(&Config { seed, shards, mode: mode.clone(), ..base.clone() }, &problem);
                assert_same(&run.values, &expected, &format!("{optimizer} in {mode} on {shards} shards"));
                assert!(run.histories.iter().all(|h| mean_staleness(h, 1) == 0.0));
            }
        }
    }
}

#[test]
fn one_worker_that_computes_ahead_is_sequential_sgd_one_step_behind() {
    let problem = Network::new(4, 10);
    for optimizer in optimizers() {
        let base = Config { optimizer, schedule: cosine(), ..Config::new(0, SYNC, 1, 123) };
        let expected = oracle::one_behind(&base.plan(&problem), &problem);
        assert_ne!(expected, oracle::sequential(&base.plan(&problem), &problem));
        for mode in ahead() {
            for (seed, shards) in each(3) {
                let run = completed(&Config { seed, shards, mode: mode.clone(), ..base.clone() }, &problem);
                assert_same(&run.values, &expected, &format!("{optimizer} in {mode} on {shards} shards"));
                assert!(run.histories.iter().all(|h| mean_staleness(h, 1) == 1.0));
            }
        }
    }
}

#[test]
fn async_is_what_the_records_say() {
    let problem = Network::uneven(5, 10, 3);
    let polynomial = StalenessScaling::Polynomial { exponent: 0.5 };
    for scaling in [StalenessScaling::None, StalenessScaling::Inverse, polynomial] {
        for optimizer in [Optimizer::Sgd(Sgd::default()), Optimizer::Adam(Adam::default())] {
            for (seed, shards) in each(5) {
                let config = Config {
                    shards,
                    optimizer,
                    schedule: cosine(),
                    ..Config::new(seed, Mode::Async { scaling, compensation: None, in_flight: 1 }, 5, 900)
                };
                let run = completed(&config, &problem);
                assert_replays(&run, &problem);
                assert_eq!(run.partial, vec![0; shards as usize]);
            }
        }
    }
}

#[test]
fn compensated_pushes_are_what_the_records_say() {
    let problem = Network::uneven(5, 10, 3);
    for optimizer in [Optimizer::Sgd(Sgd::default()), Optimizer::Adam(Adam::default())] {
        for (seed, shards) in each(5) {
            for in_flight in [1, 2] {
                let with = compensated(Some(0.5), in_flight);
                for (plain, mode) in compensated(None, in_flight).into_iter().zip(with) {
                    let config =
                        Config { shards, optimizer, schedule: cosine(), ..Config::new(seed, mode, 5, 900) };
                    let run = completed(&config, &problem);
                    assert_replays(&run, &problem);
                    let counts = verify(&run, &problem);
                    assert!(counts.of("compensated") > 0, "{}: {counts}", config.mode);
                    assert_eq!(counts.of("stale without their values"), 0, "{}: {counts}", config.mode);
                    let without = completed(&Config { mode: plain, ..config.clone() }, &problem);
                    assert!(run.values != without.values, "{} makes a difference", config.mode);
                }
            }
        }
    }
}

#[test]
fn a_lambda_of_0_is_none() {
    let problem = Network::uneven(5, 10, 3);
    for optimizer in optimizers() {
        for (seed, shards) in each(3) {
            for (plain, mode) in compensated(None, 1).into_iter().zip(compensated(Some(0.0), 1)) {
                let config =
                    Config { shards, optimizer, schedule: cosine(), ..Config::new(seed, plain, 5, 900) };
                let expected = completed(&config, &problem);
                let run = completed(&Config { mode, ..config.clone() }, &problem);
                assert_same(&run.values, &expected.values, &format!("{} on {shards} shards", config.mode));
                assert!(run.histories == expected.histories, "the same things happen in the same order");
            }
        }
    }
}

#[test]
fn ssp_keeps_its_bound_and_is_what_the_records_say() {
    let problem = Network::new(6, 10);
    let [_, _, one_ahead, three_ahead] = ahead();
    let alone = [0, 1, 3].map(|bound| (ssp(Some(bound)), bound));
    for (mode, bound) in alone.into_iter().chain([(one_ahead, 1), (three_ahead, 3)]) {
        let mut waited = 0;
        for (seed, shards) in each(8) {
            let config = Config { shards, ..Config::new(seed, mode.clone(), 5, 800) };
            let run = completed(&config, &problem);
            waited += assert_bound(&run, bound);
            assert_replays(&run, &problem);
        }
        println!("{mode:?}: {waited} waits");
        assert!(waited > 100 || !all_seeds(), "in {mode:?} some have to wait: {waited}");
    }
}

/// One to three deaths at moments that the seed chooses, some of them of the same worker.
fn deaths(seed: u64, workers: u32, deliveries: u64) -> Vec<Kill> {
    let mut rng = Rng::new(seed, Purpose::Partition);
    let count = 1 + rng.below(3);
    let mut kill = || Kill {
        worker: WorkerId(rng.below(u64::from(workers)) as u32),
        at: rng.below(deliveries),
        back_after: Some(rng.below(60)),
    };
    (0..count).map(|_| kill()).collect()
}

#[test]
fn sync_with_deaths_is_sync_without() {
    let problem = Network::uneven(7, 6, 1);
    let base = Config { optimizer: Optimizer::Adam(Adam::default()), ..Config::new(0, SYNC, 3, 21 * 6) };
    let expected = oracle::synchronous(&base.plan(&problem), &problem, &ranks(3));
    let undisturbed = SHARDS.map(|shards| completed(&Config { shards, ..base.clone() }, &problem).deliveries);
    let mut died = 0;
    for seed in seeds(200) {
        for (shards, deliveries) in SHARDS.into_iter().zip(undisturbed) {
            let kills = deaths(seed, 3, deliveries);
            let pace = Config::new(seed, SYNC, 3, 1).pace;
            let run = completed(&Config { seed, shards, kills, pace, ..base.clone() }, &problem);
            died += run.deaths;
            assert_same(&run.values, &expected, &format!("{shards} shards"));
            assert_eq!(run.partial, vec![0; shards as usize], "nothing is void");
            for ((worker, incarnation, sequence), pushed) in &run.gradients {
                let first = run.gradients.iter().find(|((w, _, s), _)| (w, s) == (worker, sequence));
                let (_, first) = first.expect("it is there itself");
                // Whichever process has computed it.
                let first = Pushed { process: pushed.process, ..first.clone() };
                assert!(
                    first == *pushed,
                    "{worker} computes push {sequence} again in incarnation {incarnation}"
                );
            }
        }
    }
    println!("{died} deaths");
    assert!(died > 500 || !all_seeds(), "workers died {died} times");
}

#[test]
fn async_and_ssp_with_deaths_count_each_push_once_or_void() {
    let problem = Network::new(8, 10);
    let (mut died, mut partial) = (0, 0);
    let [ahead, _, ssp_ahead, _] = ahead();
    let modes = [
        (ASYNC, None),
        (ssp(Some(0)), Some(0)),
        (ssp(Some(2)), Some(2)),
        (ahead, None),
        (ssp_ahead, Some(1)),
    ];
    for (mode, bound) in modes {
        for (seed, shards) in each(100) {
            let kills = deaths(seed, 4, 100 * u64::from(shards) + 50);
            let run =
                completed(&Config { kills, shards, ..Config::new(seed, mode.clone(), 4, 200) }, &problem);
            assert_replays(&run, &problem);
            bound.map(|bound| assert_bound(&run, bound));
            died += run.deaths;
            partial += run.partial.iter().sum::<u64>();
        }
    }
    println!("{died} deaths, {partial} pushes void somewhere");
    assert!(
        !all_seeds() || (died > 500 && partial > 50),
        "{died} died, {partial} pushes were void somewhere"
    );
}

#[test]
fn sync_with_backup_workers_and_deaths_is_what_the_records_say() {
    let problem = Network::uneven(9, 5, 2);
    let mut died = 0;
    for (seed, shards) in each(100) {
        let kills = deaths(seed, 4, 150 * u64::from(shards));
        let run = completed(
            &Config { kills, shards, ..Config::new(seed, Mode::Sync { backup: 1 }, 4, 250) },
            &problem,
        );
        assert_replays(&run, &problem);
        died += run.deaths;
    }
    println!("{died} deaths");
    assert!(died > 300 || !all_seeds(), "workers died {died} times");
}

#[test]
fn where_nothing_rounds_batches_may_be_cut_over_workers() {
    for optimizer in
        [Optimizer::Sgd(Sgd::default()), Optimizer::Momentum(Momentum { mu: 0.5, weight_decay: 0.0 })]
    {
        let one = Quadratic { workers: 1, batch: 32 };
        let base = Config { optimizer, schedule: constant(0.5), ..Config::new(0, SYNC, 1, 32 * 6) };
        let expected = oracle::sequential(&base.plan(&one), &one);
        assert!(expected.iter().any(|w| *w != 0.0));
        for (seed, shards) in each(4) {
            for mode in [SYNC, ASYNC, ssp(Some(1))] {
                let what = format!("one worker in {mode}");
                let run = completed(&Config { seed, shards, mode, ..base.clone() }, &one);
                assert_same(&run.values, &expected, &what);
            }
            for workers in [2, 4, 8] {
                let many = Quadratic { workers, batch: 32 / workers };
                let run = completed(&Config { seed, shards, workers, ..base.clone() }, &many);
                assert_same(&run.values, &expected, &format!("{workers} workers on {shards} shards"));
            }
        }
    }
}

/// The premise of the test above: it would hold for no other reason.
#[test]
fn on_the_dyadic_problem_nothing_rounds() {
    let problem = Quadratic { workers: 1, batch: 32 };
    let plan = Config { schedule: constant(0.5), ..Config::new(0, SYNC, 1, 32 * 6) }.plan(&problem);
    let found = oracle::sequential(&plan, &problem);
    let mut exact = vec![0.0_f64; found.len()];
    for step in 0..6 {
        let mut gradient = vec![0.0; found.len()];
        // At 0 the gradient is minus the mean target, which is a small multiple of 1/32.
        problem.gradient(WorkerId(0), Step(step), &vec![0.0; found.len()], &mut gradient);
        exact.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 0.5 * (*w + f64::from(g)));
    }
    assert!(exact.iter().zip(&found).all(|(exact, found)| *exact == f64::from(*found)));
}
