//! Plays runs that keep checkpoints: their servers go down, their disk is full, and others go on from what they kept.

use windlass_common::ids::{ServerId, ShardId};
use windlass_common::optimizer::{Adam, FedYogi, Optimizer};
use windlass_common::plan::{Checkpoints, Codecs, Every, Fedavg, Hosting, Mode};
use windlass_common::wire::Stop;
use windlass_tests::audit::assert_same;
use windlass_tests::cluster::fedavg;
use windlass_tests::problem::Bowls;
use windlass_tests::seeds::{all_seeds, seeds};
use windlass_tests::sim::{Compute, Config, Counts, Fault, Launcher, What, play, play_from, verified};

const PUSHES: u64 = 24;
const ROUNDS: u64 = 12;

/// A run of 3 workers that keeps a checkpoint every other step.
fn run(seed: u64, mode: Mode, optimizer: Optimizer) -> Config {
    let problem = Bowls { is_long: false, variables: 6, batch: 2 };
    Config {
        optimizer,
        problem,
        checkpoints: Checkpoints { every: Every::Steps(2), keep: 1000 },
        server_restarts: Some((50_000, 2_000_000)),
        launcher: Launcher { restarts: 1000, after: (50_000, 500_000), tells: false },
        // Records are told once in a while: steps must not be over before.
        compute: Compute { mean: 400_000, is_exponential: false, slow: None },
        shard_tick: 100_000,
        join_deadline_s: 150,
        rejoin_deadline_s: 150,
        ..Config::new(seed, mode, 3, PUSHES * 3 * 5)
    }
}

fn rounds() -> Mode {
    Mode::Fedavg(fedavg(ROUNDS, 5, 0.1))
}

/// What is trained, with what the servers make of a gradient.
fn trainings() -> [(Mode, Optimizer, Option<u32>); 2] {
    [
        (Mode::Sync { backup: 0 }, Optimizer::Adam(Adam::default()), None),
        (rounds(), Optimizer::FedYogi(FedYogi::default()), Some(8)),
    ]
}

/// The codecs that leave something out for good, and one that leaves out nothing.
const PUSHES_AS: [&str; 4] = ["f32", "int8", "topk:20%", "sign"];

fn codecs(push: &str) -> Codecs {
    Codecs { push: push.parse().expect("it is a codec"), ..Codecs::default() }
}

/// The same rounds with each client at one worker for good.
fn fixed() -> Mode {
    Mode::Fedavg(Fedavg { hosting: Hosting::Fixed, ..fedavg(ROUNDS, 5, 0.1) })
}

#[test]
fn a_run_goes_on_from_a_checkpoint_on_any_number_of_shards() {
    for (mode, optimizer, clients) in trainings() {
        for seed in seeds(3) {
            for (servers, shards_per_server, push) in
                [(1, 1, "f32"), (2, 1, "sign"), (5, 1, "int8"), (1, 2, "topk:20%"), (2, 1, "f32")]
            {
                let codecs = codecs(push);
                let before = Config {
                    servers,
                    shards_per_server,
                    clients,
                    codecs,
                    ..run(seed, mode.clone(), optimizer)
                };
                let whole = play(&before, false);
                assert_eq!(whole.run.stop, Stop::Completed, "{before}");
                assert!(whole.kept.len() > 3, "{before} keeps {}", whole.kept.len());
                let middle = &whole.kept[whole.kept.len() / 2];
                assert!((2..20).contains(&middle.steps()), "{} steps", middle.steps());
                for (servers, shards_per_server) in [(1, 1), (2, 1), (5, 1)] {
                    let after = Config { servers, shards_per_server, ..before.clone() };
                    let rest = play_from(&after, middle);
                    assert_eq!(rest.run.stop, Stop::Completed, "{after}");
                    assert_same(&rest.run.values, &whole.run.values, &format!("{after} after {before}"));
                    let (all, left) = (whole.run.applied(ShardId(0)), rest.run.applied(ShardId(0)));
                    assert!(0 < left && left < all, "{left} of {all} pushes are left");
                }
            }
        }
    }
}

#[test]
fn rounds_go_on_from_a_checkpoint_with_any_number_of_workers() {
    // Where clients stay with their worker, what was left out of their pushes is theirs, and goes with them.
    for (mode, push) in [(rounds(), "f32"), (fixed(), "int8"), (fixed(), "topk:20%"), (fixed(), "sign")] {
        for seed in seeds(5) {
            let optimizer = Optimizer::FedYogi(FedYogi::default());
            let before = Config {
                servers: 2,
                clients: Some(8),
                codecs: codecs(push),
                ..run(seed, mode.clone(), optimizer)
            };
            let whole = play(&before, false);
            assert_eq!(whole.run.stop, Stop::Completed, "{before}");
            assert!(whole.kept.len() > 3, "{before} keeps {}", whole.kept.len());
            for (workers, servers) in [(1, 1), (2, 5), (4, 2)] {
                let after = Config { workers, servers, ..before.clone() };
                for kept in &whole.kept {
                    let rest = play_from(&after, kept);
                    assert_eq!(rest.run.stop, Stop::Completed, "{after}");
                    assert_same(&rest.run.values, &whole.run.values, &format!("{after} after {before}"));
                }
            }
        }
    }
}

#[test]
fn with_servers_that_go_down_sync_and_rounds_end_as_if_nothing_had_happened() {
    let mut counts = Counts::default();
    for (mode, optimizer, clients) in trainings() {
        for (seed, push) in seeds(60).zip(PUSHES_AS.into_iter().cycle()) {
            let codecs = codecs(push);
            let quiet = Config { servers: 2, clients, codecs, ..run(seed, mode.clone(), optimizer) };
            let undisturbed = play(&quiet, false);
            let crash = |at, server| Fault { at, what: What::CrashServer(ServerId(server)) };
            let machine = |at, server| Fault { at, what: What::CrashMachine(ServerId(server)) };
            let at = 60 + 7 * (seed % 40);
            let faults = vec![crash(at, 1), crash(2 * at, 0), machine(3 * at, 1), machine(4 * at, 0)];
            let config = Config { faults, ..quiet };
            let played = verified(&config, false);
            assert_eq!(played.run.stop, Stop::Completed, "{config}");
            assert_same(&played.run.values, &undisturbed.run.values, &format!("{config}"));
            counts.merge(&played.counts);
        }
    }
    println!("{counts}");
    for (what, least) in [
        ("restored", 200),
        ("workers went back", 600),
        ("servers started again", 200),
        ("left out and added", 1000),
        ("left out before a checkpoint", 300),
    ] {
        assert!(counts.of(what) >= least || !all_seeds(), "{what} {} times", counts.of(what));
    }
}

#[test]
fn a_full_disk_costs_checkpoints_and_not_the_run() {
    for (mode, optimizer, clients) in trainings() {
        for seed in seeds(10) {
            let full = Fault { at: 100, what: What::StuckDisk(3_000_000) };
            let quiet = Config { servers: 2, clients, ..run(seed, mode.clone(), optimizer) };
            // What has failed is tried again after some time, in which the run goes on.
            let compute = Compute { mean: 1_500_000, ..quiet.compute };
            let config = Config { faults: vec![full], compute, ..quiet };
            let played = verified(&config, false);
            assert_eq!(played.run.stop, Stop::Completed, "{config}");
            assert!(played.counts.of("checkpoints not kept") >= 1, "{config}: {}", played.counts);
            assert_eq!(played.counts.of("rolled back"), 0, "{config}");
            let last = played.kept.last().expect("what can be written is");
            let steps = if config.clients.is_some() { ROUNDS } else { PUSHES };
            assert!(last.steps() + 4 >= steps, "{config}: the last is of step {}", last.steps());
            let complete = played.counts.of("checkpoints complete");
            assert_eq!(played.kept.len() as u64, complete, "{config}");
        }
    }
}
