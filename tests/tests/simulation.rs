//! Plays whole clusters that seeds draw, with everything that goes wrong in them, and verifies each.

use windlass_common::wire::Stop;
use windlass_tests::seeds::{all_seeds, seeds};
use windlass_tests::sim::{Config, Counts, Launcher, kind, play, verified};

#[test]
fn whatever_goes_wrong_a_run_is_right_or_fails_by_name() {
    let mut counts = Counts::default();
    for seed in seeds(400) {
        let config = Config::drawn(seed);
        println!("{config}");
        counts.merge(&verified(&config, false).counts);
    }
    println!("{counts}");
    for what in [
        "completed",
        "failed by name",
        "crashes",
        "cuts",
        "pauses",
        "partitions",
        "duplicates",
        "probes",
        "retransmissions",
        "late",
        "compensated",
        "computed ahead",
        "thrown away",
        "void",
        "joined again",
        "server crashes",
        "checkpoints complete",
        "restored",
        "begun anew",
        "passed over",
        "workers went back",
        "late copies",
        "promotions",
        "refills",
        "standby lost",
        "kills during refill",
        "digests compared",
    ] {
        assert!(counts.of(what) > 5 || !all_seeds(), "{what} has happened {} times", counts.of(what));
    }
    // A primary that is cut off when its standby is promoted is rare.
    assert!(counts.of("late feeds refused") > 0 || !all_seeds());
}

#[test]
fn a_seed_replays_itself() {
    for seed in seeds(30) {
        let config = Config::drawn(seed);
        let (first, second) = (play(&config, true), play(&config, true));
        assert!(first.log.len() > 20, "{config} is written down");
        assert_eq!(first.log, second.log, "{config}");
        assert_eq!(first.run.histories, second.run.histories, "{config}");
        assert_eq!(first.ends, second.ends, "{config}");
    }
}

#[test]
fn seeds_differ() {
    let (first, second) = (play(&Config::drawn(1), true), play(&Config::drawn(2), true));
    assert_ne!(first.log, second.log);
    let kinds: std::collections::BTreeSet<&str> = (0..200).map(kind).collect();
    assert_eq!(kinds.len(), 10, "{kinds:?}");
}

#[test]
fn a_run_in_which_nothing_goes_wrong_completes() {
    let mut quiet = 0;
    for seed in seeds(100) {
        // Where many datagrams are lost a last word may be too, and its worker has to come back.
        let launcher = Launcher { restarts: 1000, after: (50_000, 500_000), tells: false };
        let config = Config { faults: Vec::new(), launcher, rejoin_deadline_s: 150, ..Config::drawn(seed) };
        let played = verified(&config, false);
        assert_eq!(played.run.stop, Stop::Completed, "{config}");
        assert!(played.ends.values().all(|(at, _)| *at >= 1), "{config}");
        quiet += u64::from(played.counts.of("restarts") == 0);
    }
    assert!(quiet > 80 || !all_seeds(), "processes end by themselves in {} runs", 100 - quiet);
}
