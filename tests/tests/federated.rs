//! Shows which federated runs must end with the same bits, and that rounds and buffers count what the log says.

use windlass_common::ids::{ShardId, WorkerId};
use windlass_common::optimizer::{FedAdam, FedYogi, Momentum, Nesterov, Optimizer, Sgd};
use windlass_common::plan::{Fedavg, Hosting, Mode, Stale, StalenessScaling, Weights};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{Outcome, Stop};
use windlass_tests::audit::{
    assert_closed_as_logged, assert_each_push_counts_once, assert_replays, assert_same, bits,
};
use windlass_tests::cluster::{Config, Kill, Pace, Run, constant, fedavg, local, run};
use windlass_tests::oracle::{self, Order, Weigh};
use windlass_tests::problem::{Network, Point, Points, Problem, Quadratic};
use windlass_tests::seeds::{all_seeds, seeds};

const SHARDS: [u32; 3] = [1, 2, 5];
const HOSTINGS: [Hosting; 2] = [Hosting::Fixed, Hosting::Balanced];

/// Runs to the end, which must be a good one, and judges what must hold in every run.
fn completed(config: &Config, problem: &dyn Problem) -> Run {
    let run = run(config, problem);
    assert_eq!(run.stop, Stop::Completed, "{config:?}");
    assert_each_push_counts_once(&run);
    run
}

fn each(count: u64) -> impl Iterator<Item = (u64, u32)> {
    seeds(count).flat_map(|seed| SHARDS.map(|shards| (seed, shards)))
}

fn pace(seed: u64) -> Pace {
    if seed.is_multiple_of(2) { Pace::Even } else { Pace::Skewed }
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

fn optimizers() -> [(Optimizer, f64); 5] {
    [
        (Optimizer::Sgd(Sgd::default()), 1.0),
        (Optimizer::Momentum(Momentum::default()), 0.5),
        (Optimizer::Nesterov(Nesterov { mu: 0.8, weight_decay: 0.0 }), 0.5),
        (Optimizer::FedAdam(FedAdam::default()), 0.03),
        (Optimizer::FedYogi(FedYogi::default()), 0.03),
    ]
}

#[test]
fn fedavg_is_one_process_that_trains_each_client_in_turn() {
    let problem = Network::uneven(11, 8, 3);
    for (optimizer, rate) in optimizers() {
        let rounds = fedavg(20, 4, 0.1);
        let base =
            Config { optimizer, schedule: constant(rate), ..Config::federated(0, rounds.clone(), 1, 11) };
        let plan = base.plan(&problem);
        let expected = oracle::federated(&plan, &problem, Order::Rising, Weigh::AsPlanned);
        for (workers, hosting) in [1, 2, 4].into_iter().flat_map(|w| HOSTINGS.map(|h| (w, h))) {
            let mode = Mode::Fedavg(Fedavg { hosting, ..rounds.clone() });
            for (seed, shards) in each(2) {
                let (mode, pace) = (mode.clone(), pace(seed));
                let run = completed(&Config { seed, shards, workers, mode, pace, ..base.clone() }, &problem);
                let what = format!("{optimizer} with {workers} workers, {hosting:?}, on {shards} shards");
                assert_same(&run.values, &expected, &what);
                assert_eq!(assert_closed_as_logged(&run), (0, 0));
                assert_eq!(run.applied(ShardId(0)), 20 * 4);
            }
        }
    }
}

#[test]
fn uniform_weights_are_another_run() {
    let problem = Network::uneven(11, 8, 3);
    let rounds = Fedavg { weights: Weights::Uniform, ..fedavg(6, 4, 0.1) };
    for (seed, shards) in each(2) {
        let config = Config { shards, ..Config::federated(seed, rounds.clone(), 2, 11) };
        let run = completed(&config, &problem);
        let expected = oracle::federated(&run.plan, &problem, Order::Rising, Weigh::AsPlanned);
        assert_same(&run.values, &expected, "uniform weights");
        let by_examples = oracle::federated(&run.plan, &problem, Order::Rising, Weigh::Otherwise);
        assert_ne!(bits(&run.values), bits(&by_examples));
        assert_replays(&run, &problem);
    }
}

/// The premise of the comparisons above: each of these would be noticed.
#[test]
fn an_oracle_that_is_wrong_differs() {
    let problem = Network::uneven(11, 8, 3);
    let plan = Config::federated(0, fedavg(20, 4, 0.1), 1, 11).plan(&problem);
    let right = oracle::federated(&plan, &problem, Order::Rising, Weigh::AsPlanned);
    for (order, weigh) in [
        (Order::Falling, Weigh::AsPlanned),
        (Order::Rising, Weigh::Swapped),
        (Order::Rising, Weigh::Otherwise),
    ] {
        let wrong = oracle::federated(&plan, &problem, order, weigh);
        assert_ne!(bits(&right), bits(&wrong), "{order:?}, {weigh:?}");
        assert!(wrong.iter().all(|w| w.is_finite()));
    }
}

#[test]
fn fedavg_with_deaths_is_fedavg_without() {
    let problem = Network::uneven(12, 4, 3);
    let mut died = 0;
    for hosting in HOSTINGS {
        let rounds = Fedavg { hosting, ..fedavg(8, 5, 0.1) };
        let optimizer = Optimizer::FedAdam(FedAdam::default());
        let base = Config { optimizer, schedule: constant(0.03), ..Config::federated(0, rounds, 3, 9) };
        let plan = base.plan(&problem);
        let expected = oracle::federated(&plan, &problem, Order::Rising, Weigh::AsPlanned);
        for (seed, shards) in each(60) {
            let kills = deaths(seed, 3, 150 + 100 * u64::from(shards));
            let config = Config { seed, shards, kills, pace: pace(seed), ..base.clone() };
            let run = completed(&config, &problem);
            died += run.deaths;
            assert_same(&run.values, &expected, &format!("{hosting:?} on {shards} shards"));
            assert_eq!(assert_closed_as_logged(&run), (0, 0));
        }
    }
    println!("{died} deaths");
    assert!(died > 300 || !all_seeds(), "workers died {died} times");
}

#[test]
fn fedavg_over_connections_that_break_is_fedavg() {
    let problem = Network::uneven(12, 4, 3);
    let mut lost = 0;
    let base = Config::federated(0, fedavg(8, 5, 0.1), 3, 9);
    let plan = base.plan(&problem);
    let expected = oracle::federated(&plan, &problem, Order::Rising, Weigh::AsPlanned);
    for (seed, shards) in each(60) {
        let cuts = deaths(seed, 3, 150 + 100 * u64::from(shards));
        let kills = if seed.is_multiple_of(3) { deaths(seed + 1, 3, 400) } else { Vec::new() };
        let config = Config { seed, shards, cuts, kills, pace: pace(seed), ..base.clone() };
        let run = completed(&config, &problem);
        lost += run.losses;
        assert_same(&run.values, &expected, &format!("{shards} shards"));
        assert_eq!(assert_closed_as_logged(&run), (0, 0));
    }
    println!("{lost} workers cut off");
    assert!(lost > 150 || !all_seeds(), "workers were cut off {lost} times");
}

#[test]
fn every_mode_goes_on_over_connections_that_break() {
    let problem = Network::uneven(17, 4, 2);
    let none = StalenessScaling::None;
    let mut lost = 0;
    for (seed, shards) in each(60) {
        let [kept, late, fedbuff] = buffered(1 + seed as u32 % 3, StalenessScaling::Inverse);
        let rounds = Fedavg { asked: 4, quorum: 1, deadline_ms: Some(150), ..fedavg(8, 3, 0.1) };
        for mode in [
            Mode::Sync { backup: 0 },
            Mode::Sync { backup: 1 },
            Mode::Async { scaling: none, compensation: None, in_flight: 1 },
            Mode::Ssp { staleness: Some(1), scaling: none, compensation: None, in_flight: 1 },
            Mode::Fedasync { scaling: none, local: local(0.1) },
            Mode::Fedavg(rounds),
            kept,
            late,
            fedbuff,
        ] {
            let cuts = deaths(seed, 3, 100 * u64::from(shards) + 50);
            let config = Config { cuts, shards, clients: Some(5), ..Config::new(seed, mode, 3, 150) };
            let run = completed(&config, &problem);
            assert_replays(&run, &problem);
            lost += run.losses;
        }
    }
    println!("{lost} workers cut off");
    assert!(lost > 1_500 || !all_seeds(), "workers were cut off {lost} times");
}

#[test]
fn what_a_round_misses_does_not_count() {
    let problem = Network::uneven(13, 4, 3);
    let (mut died, mut late, mut void, mut empty, mut small) = (0, 0, 0, 0, 0);
    for (seed, shards) in each(100) {
        let mut rng = Rng::new(seed, Purpose::Partition);
        let (workers, cohort) = (1 + rng.below(4) as u32, 2 + rng.below(3) as u32);
        let rounds = Fedavg {
            asked: cohort + rng.below(3) as u32,
            quorum: 1 + rng.below(u64::from(cohort)) as u32,
            deadline_ms: Some(30 + rng.below(150 * u64::from(shards))),
            hosting: HOSTINGS[rng.below(2) as usize],
            ..fedavg(10, cohort, 0.1)
        };
        let kills = deaths(seed, workers, 400);
        let dropout = [0.0, 0.2, 0.6][rng.below(3) as usize];
        let config = Config { shards, kills, dropout, ..Config::federated(seed, rounds, workers, 9) };
        let run = completed(&config, &problem);
        let (abandoned, quorate) = assert_closed_as_logged(&run);
        assert_replays(&run, &problem);
        (empty, small, died) = (empty + abandoned, small + quorate, died + run.deaths);
        let count = |is: fn(&Outcome) -> bool| {
            run.histories.iter().flat_map(|h| h.records()).filter(|r| is(&r.outcome)).count()
        };
        late += count(|o| matches!(o, Outcome::Late { .. }));
        void += count(|o| matches!(o, Outcome::Void));
    }
    println!(
        "{died} deaths, {empty} rounds abandoned, {small} with a quorum, {late} pushes late, {void} void"
    );
    let enough = died > 300 && empty > 100 && small > 100 && late > 300 && void > 20;
    assert!(enough || !all_seeds(), "{died} {empty} {small} {late} {void}");
}

#[test]
fn rounds_without_a_deadline_end_all_the_same() {
    let problem = Network::uneven(13, 2, 3);
    for (seed, shards) in each(100) {
        let mut rng = Rng::new(seed, Purpose::Partition);
        let workers = 1 + rng.below(4) as u32;
        let cohort = 1 + rng.below(4) as u32;
        let rounds = Fedavg {
            asked: cohort + rng.below(3) as u32,
            quorum: 1 + rng.below(u64::from(cohort)) as u32,
            hosting: HOSTINGS[rng.below(2) as usize],
            ..fedavg(6, cohort, 0.1)
        };
        let kills = deaths(seed, workers, 300);
        let dropout = [0.0, 0.3][rng.below(2) as usize];
        let config = Config { shards, kills, dropout, ..Config::federated(seed, rounds, workers, 8) };
        let run = completed(&config, &problem);
        assert_closed_as_logged(&run);
        assert_replays(&run, &problem);
    }
}

#[test]
fn one_local_step_of_all_clients_is_a_synchronous_step() {
    for clients in [2, 4, 8] {
        let problem = Quadratic { workers: clients, batch: 32 / clients };
        let sync = Mode::Sync { backup: 0 };
        let steps = Config { schedule: constant(0.5), ..Config::new(0, sync, clients, 32 * 6) };
        let expected = oracle::synchronous(
            &steps.plan(&problem),
            &problem,
            &(0..clients).map(WorkerId).collect::<Vec<_>>(),
        );
        assert!(expected.iter().any(|w| *w != 0.0));
        for (seed, shards) in each(2) {
            let run = completed(&Config { seed, shards, pace: pace(seed), ..steps.clone() }, &problem);
            assert_same(&run.values, &expected, "sync");
            for (workers, hosting) in [1, 2, clients].into_iter().flat_map(|w| HOSTINGS.map(|h| (w, h))) {
                let rounds = Fedavg { hosting, ..fedavg(6, clients, 0.5) };
                let config = Config { shards, ..Config::federated(seed, rounds, workers, clients) };
                let run = completed(&config, &problem);
                let what = format!("{clients} clients on {workers} workers and {shards} shards");
                assert_same(&run.values, &expected, &what);
            }
        }
    }
}

/// The modes in which pushes wait in a buffer, over gradients and over clients' work.
fn buffered(size: u32, scaling: StalenessScaling) -> [Mode; 3] {
    [
        Mode::Softsync { buffer: size, scaling, stale: Stale::Kept },
        Mode::Softsync { buffer: size, scaling, stale: Stale::Late },
        Mode::Fedbuff { buffer: size, scaling, local: local(0.1) },
    ]
}

fn scalings() -> [StalenessScaling; 4] {
    [
        StalenessScaling::None,
        StalenessScaling::Inverse,
        StalenessScaling::Polynomial { exponent: 0.5 },
        StalenessScaling::Hinge { a: 2.0, b: 1.0 },
    ]
}

#[test]
fn buffers_are_what_the_records_say() {
    let problem = Network::uneven(14, 5, 2);
    let (mut late, mut stale) = (0, 0);
    for scaling in scalings() {
        for size in [1, 2, 4, 7] {
            for mode in buffered(size, scaling) {
                for (seed, shards) in each(3) {
                    let optimizer = Optimizer::Momentum(Momentum::default());
                    let config = Config {
                        shards,
                        optimizer,
                        clients: Some(9),
                        schedule: constant(0.3),
                        ..Config::new(seed, mode.clone(), 4, 400)
                    };
                    let run = completed(&config, &problem);
                    assert_closed_as_logged(&run);
                    assert_replays(&run, &problem);
                    for r in run.histories[0].records() {
                        let kept = !matches!(run.plan.mode, Mode::Softsync { stale: Stale::Late, .. });
                        match r.outcome {
                            Outcome::Applied { staleness: 0, .. } | Outcome::Void => {}
                            Outcome::Applied { .. } if kept => stale += 1,
                            Outcome::Applied { .. } => panic!("{r:?} is stale and counts"),
                            Outcome::Late { .. } => late += 1,
                        }
                    }
                }
            }
        }
    }
    println!("{late} pushes late, {stale} stale");
    assert!((late > 300 && stale > 300) || !all_seeds(), "{late} {stale}");
}

#[test]
fn buffers_with_deaths_are_what_the_records_say() {
    let problem = Network::uneven(15, 4, 2);
    let (mut died, mut void) = (0, 0);
    for (seed, shards) in each(80) {
        let mut rng = Rng::new(seed, Purpose::Delivery);
        let workers = 1 + rng.below(4) as u32;
        for mode in buffered(1 + rng.below(5) as u32, StalenessScaling::Polynomial { exponent: 0.5 }) {
            let kills = deaths(seed, workers, 60 * u64::from(shards) + 100);
            let config = Config { kills, shards, clients: Some(7), ..Config::new(seed, mode, workers, 200) };
            let run = completed(&config, &problem);
            assert_closed_as_logged(&run);
            assert_replays(&run, &problem);
            died += run.deaths;
            void += run.histories[0].records().filter(|r| r.outcome == Outcome::Void).count();
        }
    }
    println!("{died} deaths, {void} pushes void");
    assert!((died > 300 && void > 30) || !all_seeds(), "{died} {void}");
}

#[test]
fn mixing_is_what_the_records_say() {
    let problem = Network::uneven(16, 4, 2);
    let (mut died, mut partial) = (0, 0);
    for (seed, shards) in each(80) {
        let scaling = scalings()[seed as usize % 4];
        let mode = Mode::Fedasync { scaling, local: local(0.1) };
        let kills =
            if seed.is_multiple_of(3) { Vec::new() } else { deaths(seed, 4, 60 * u64::from(shards) + 100) };
        let schedule = constant(0.6);
        let config = Config { kills, shards, schedule, clients: Some(9), ..Config::new(seed, mode, 4, 300) };
        let run = completed(&config, &problem);
        assert_replays(&run, &problem);
        died += run.deaths;
        partial += run.partial.iter().sum::<u64>();
    }
    println!("{died} deaths, {partial} pushes void somewhere");
    assert!((died > 50 && partial > 5) || !all_seeds(), "{died} {partial}");
}

#[test]
fn one_worker_is_sequential_whatever_the_mode() {
    let problem = Quadratic { workers: 1, batch: 32 };
    let none = StalenessScaling::None;
    let gradients = Config {
        schedule: constant(0.5),
        ..Config::new(0, Mode::Async { scaling: none, compensation: None, in_flight: 1 }, 1, 32 * 6)
    };
    let expected = oracle::sequential(&gradients.plan(&problem), &problem);
    let with = |mode, rate| Config { mode, schedule: constant(rate), ..gradients.clone() };
    for (seed, shards) in each(4) {
        for config in [
            gradients.clone(),
            with(Mode::Softsync { buffer: 1, scaling: none, stale: Stale::Kept }, 0.5),
            with(Mode::Fedbuff { buffer: 1, scaling: none, local: local(0.5) }, 1.0),
            with(Mode::Fedasync { scaling: none, local: local(0.5) }, 1.0),
        ] {
            let run = completed(&Config { seed, shards, pace: pace(seed), ..config }, &problem);
            assert_same(&run.values, &expected, &format!("{} on {shards} shards", run.plan.mode));
        }
    }
}

#[test]
fn fedavg_ends_where_its_fixed_point_is() {
    let point = |at, examples, steps| Point { at, examples, steps };
    let two = Points(vec![point(0.0, 10, 1), point(1.0, 10, 10)]);
    assert!((two.fixed_point(0.1) - 0.8669).abs() < 5e-5, "{}", two.fixed_point(0.1));
    let three = Points(vec![point(-1.0, 10, 3), point(0.5, 25, 1), point(2.0, 5, 7)]);
    for problem in [two, three] {
        let clients = problem.0.len() as u32;
        let expected = problem.fixed_point(0.1);
        for (seed, shards) in seeds(3).zip([1, 2, 2]) {
            let rounds = fedavg(150, clients, 0.1);
            let config = Config { shards, ..Config::federated(seed, rounds, 2, clients) };
            for value in completed(&config, &problem).values {
                assert!((f64::from(value) - expected).abs() < 1e-6, "{value} is not {expected}");
            }
        }
    }
}
