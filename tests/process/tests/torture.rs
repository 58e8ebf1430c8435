//! Workers that are killed, stopped and started again at random moments: nothing is lost and nothing counts twice.
//!
//! Five schedules are gone through, in fedavg two, or as many as `WINDLASS_TORTURE` says. In every fifth schedule of the
//! longer form sync stops a worker for longer than the 10 s after which a silent connection is given up; in async the others
//! would end the run meanwhile.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::ops::Range;
use std::time::Duration;

use rustix::process::Signal;
use windlass_process_tests::by_hand::{ByHand, Finished};
use windlass_process_tests::ledger::Ledger;
use windlass_process_tests::schedule::{Draws, is_long, seeds};
use windlass_process_tests::{model, summary};

const WORKERS: u64 = 3;
const SYNC: &str = "--mode sync --model 2nn --passes 1 --seed 5";
const ASYNC: &str = "--mode async --model 2nn --passes 8 --seed 5";
const FEDAVG: &str = "--mode fedavg --model 2nn --clients 30 --fraction 0.4 --rounds 10 --seed 5";
/// Lines about pushes between two disturbances: of over 900 where each batch is a push, and of 120 in rounds, per shard.
const BETWEEN: Range<u64> = 60..220;
const BETWEEN_IN_ROUNDS: Range<u64> = 6..25;

/// Whose processes were killed is told with the end of the run.
fn disturbed(servers: u32, flags: &str, between: Range<u64>, seed: u64) -> (Finished, Vec<bool>) {
    let mut draws = Draws::new(seed);
    let mut run = ByHand::start(servers, WORKERS as u32, flags, None);
    let (mut lines, mut killed) = (0, vec![false; WORKERS as usize]);
    for number in 0..4 {
        lines += draws.number(between.clone());
        let (worker, kind) = (draws.number(0..WORKERS) as usize, draws.number(0..5));
        let beyond_idle = is_long() && flags == SYNC && seed % 5 == 4 && number == 1;
        let kind = if beyond_idle { 0 } else { kind };
        let (pause, after) = (draws.milliseconds(0..200), draws.milliseconds(0..400));
        let stopped = draws.milliseconds(50..1500);
        run.pushes(lines as usize);
        // The log is written a few times a second; this takes the moment away from its rhythm.
        std::thread::sleep(pause);
        println!("seed {seed}: disturbance {number} of kind {kind} for worker {worker} after {lines} lines");
        killed[worker] |= kind != 0;
        match kind {
            0 => {
                run.signal(worker, Signal::STOP);
                std::thread::sleep(if beyond_idle { Duration::from_secs(12) } else { stopped });
                run.signal(worker, Signal::CONT);
            }
            1 => {
                run.signal(worker, Signal::STOP);
                std::thread::sleep(stopped);
                run.restart(worker);
            }
            2 => {
                // Its new life is killed, too, perhaps before it has joined.
                run.restart(worker);
                std::thread::sleep(after);
                run.restart(worker);
            }
            3 => {
                let another = (worker + 1) % WORKERS as usize;
                killed[another] = true;
                run.signal(another, Signal::STOP);
                run.restart(worker);
                std::thread::sleep(after);
                run.restart(another);
            }
            _ => {
                run.signal(worker, Signal::KILL);
                std::thread::sleep(after);
                run.restart(worker);
            }
        }
    }
    (run.finish(), killed)
}

fn servers(seed: u64) -> u32 {
    1 + (seed % 2) as u32
}

#[test]
fn sync_ends_in_the_same_bytes() {
    let calm = ByHand::start(1, WORKERS as u32, SYNC, None).finish();
    for seed in seeds(5) {
        let (finished, killed) = disturbed(servers(seed), SYNC, BETWEEN, seed);
        assert_eq!(model(&calm.run), model(&finished.run), "seed {seed}");
        for name in ["steps", "pushes", "examples", "pushes_void", "pushes_late", "pushes_partial"] {
            assert_eq!(summary(&calm.run)[name], summary(&finished.run)[name], "seed {seed}: {name}");
        }
        println!("seed {seed}: the same bytes; killed {killed:?}");
    }
}

/// Pushes of a life that was ended are void and made again, so that their number is another one.
#[test]
fn fedavg_ends_in_the_same_bytes() {
    let calm = ByHand::start(1, WORKERS as u32, FEDAVG, None).finish();
    for seed in seeds(2) {
        let (finished, killed) = disturbed(servers(seed), FEDAVG, BETWEEN_IN_ROUNDS, seed);
        assert_eq!(model(&calm.run), model(&finished.run), "seed {seed}");
        for name in ["steps", "rounds", "examples", "rounds_abandoned", "pushes_late"] {
            assert_eq!(summary(&calm.run)[name], summary(&finished.run)[name], "seed {seed}: {name}");
        }
        let void = summary(&finished.run)["pushes_void"].as_u64().unwrap();
        println!("seed {seed}: the same bytes; killed {killed:?}, {void} pushes void");
    }
}

#[test]
fn async_counts_every_push_once() {
    for seed in seeds(5) {
        let (finished, killed) = disturbed(servers(seed), ASYNC, BETWEEN, seed);
        let ledger = Ledger::read(&finished.run);
        for (worker, killed) in killed.iter().enumerate() {
            let (steps, pushes) = (finished.steps(worker), ledger.pushes(worker as u64));
            println!("seed {seed}: worker {worker}, killed: {killed}, {steps} steps last, {pushes} pushes");
            // Earlier lives did not get to tell.
            assert!(if *killed { steps <= pushes } else { steps == pushes }, "seed {seed}, worker {worker}");
        }
        println!("seed {seed}: {} partial", ledger.void());
    }
}
