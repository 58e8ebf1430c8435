//! Training over a bad network: sync ends in the same bytes, async loses no push and counts none twice.
//!
//! The long form goes through as many schedules as `WINDLASS_TORTURE` says; in every fifth of them one cut is longer than
//! the 10 s after which a silent connection is given up.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use windlass_process_tests::by_hand::{ByHand, Finished};
use windlass_process_tests::ledger::Ledger;
use windlass_process_tests::model;
use windlass_process_tests::relay::{Counts, Faults};
use windlass_process_tests::schedule::{Draws, seeds};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const SYNC: &str = "--mode sync --model softmax --passes 0.4 --seed 11";
const ASYNC: &str = "--mode async --model softmax --passes 0.4 --seed 11";
/// Longer than the transport's idle timeout.
const BEYOND_IDLE: Duration = Duration::from_secs(12);

/// 2 % loss, 1 % duplicates, three cuts of 2 s, and so much reordering that even where little is under way something is
/// overtaken.
fn bad() -> (Faults, [Duration; 3]) {
    let faults = Faults {
        loss: 0.02,
        duplication: 0.01,
        reordering: 0.08,
        held_back: Duration::from_millis(15),
        delay: (Duration::from_millis(1), Duration::from_millis(4)),
    };
    (faults, [SECONDS(2); 3])
}

/// What a seed of the long form does.
fn drawn(seed: u64) -> (Faults, [Duration; 3]) {
    let mut draws = Draws::new(seed);
    let faults = draws.faults();
    let mut cuts = [(); 3].map(|()| draws.milliseconds(100..2500));
    if seed % 5 == 4 {
        cuts[1] = BEYOND_IDLE;
    }
    (faults, cuts)
}

/// Trains through relays that cut everything three times, each time when some pushes more have got through.
fn disturbed(servers: u32, flags: &str, seed: u64, (faults, cuts): (Faults, [Duration; 3])) -> Finished {
    println!("seed {seed}: {faults:?}, cuts {cuts:?}");
    let mut run = ByHand::start(servers, 2, flags, Some((&faults, seed)));
    for (number, cut) in cuts.into_iter().enumerate() {
        run.pushes((number + 1) * 60);
        run.cut(cut);
    }
    let finished = run.finish();
    println!("seed {seed}: {:?}", finished.counts);
    for worker in finished.workers.iter().filter(|_| cuts.contains(&BEYOND_IDLE)) {
        assert!(
            worker.stderr.contains("joining again"),
            "a silent connection is given up: {}",
            worker.stderr
        );
    }
    assert_eq!(finished.counts.len(), servers as usize);
    for counts in &finished.counts {
        let &Counts { passed, dropped, duplicated, reordered, cut } = counts;
        assert!([passed, dropped, duplicated, reordered, cut].iter().all(|&n| n > 0), "{counts:?}");
    }
    finished
}

fn check_async(finished: &Finished) {
    let ledger = Ledger::read(&finished.run);
    for worker in 0..finished.workers.len() {
        let (steps, pushes) = (finished.steps(worker), ledger.pushes(worker as u64));
        println!("worker {worker}: {steps} steps, {pushes} pushes");
        assert_eq!(steps, pushes, "worker {worker} computed as many gradients as the log has pushes of it");
    }
}

#[test]
fn sync_ends_in_the_same_bytes() {
    let good = ByHand::start(1, 2, SYNC, None).finish();
    let bad = disturbed(1, SYNC, 1, bad());
    assert_eq!(model(&good.run), model(&bad.run));
}

#[test]
fn async_counts_every_push_once() {
    check_async(&disturbed(2, ASYNC, 2, bad()));
}

#[test]
#[ignore = "the long form, for scripts/torture.sh"]
fn so_they_do_over_other_bad_networks() {
    let good = ByHand::start(1, 2, SYNC, None).finish();
    for seed in seeds(5) {
        let servers = 1 + (seed % 2) as u32;
        assert_eq!(model(&good.run), model(&disturbed(servers, SYNC, seed, drawn(seed)).run), "seed {seed}");
        check_async(&disturbed(servers, ASYNC, seed, drawn(seed)));
    }
}
