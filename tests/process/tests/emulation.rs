//! Emulated unequal machines: who waits for whom, who misses a deadline, and how long bytes take on a slow link.
//!
//! Steps last as long as --step-time says, so that the figures follow from the rules. What is left to chance is a
//! machine that is too busy to keep that time: an attempt is repeated, at most twice.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::cell::Cell;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use windlass_process_tests::{events, lines, summary, train};

const WITHIN: Duration = Duration::from_secs(120);

/// Only one test at a time, so that they do not slow down each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Trains until `judge` is content with the run, at most three times.
fn attempt(arguments: &str, judge: impl Fn(&Path) -> Result<(), String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut troubles = Vec::new();
    for number in 0..3 {
        let run = folder.path().join(number.to_string());
        let ended = train(&run, arguments).end(WITHIN);
        // The machine did not keep the emulated time.
        if ended.code == Some(5) && ended.stderr.contains("give --step-time a longer time") {
            troubles.push(ended.stderr);
            continue;
        }
        ended.well();
        match judge(&run) {
            Ok(()) => return,
            Err(trouble) => troubles.push(trouble),
        }
    }
    panic!("{arguments}: {}", troubles.join("; "));
}

/// The share of its time in which each worker computed nothing, in percent, of a run that was long enough.
fn idle(run: &Path) -> Vec<f64> {
    let summary = summary(run);
    let seconds = summary["training_s"].as_f64().unwrap();
    assert!(seconds > 5.0, "{seconds} s are too short to tell");
    summary["idle_share"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap() * 100.0).collect()
}

fn mean(shares: &[f64]) -> f64 {
    shares.iter().sum::<f64>() / shares.len() as f64
}

const FOUR: &str = "--model softmax --workers 4 --servers 1 --step-time const:20ms --slow-workers 1";
/// Steps that are twice as long, where what the messages take would be too large a part.
const FOUR_LONGER: &str = "--model softmax --workers 4 --servers 1 --step-time const:40ms --slow-workers 1";

/// One of four takes four times as long: whoever waits for it is idle for three quarters of the time.
#[test]
fn three_wait_for_a_slow_one_in_sync_and_ssp_and_not_in_async() {
    let _alone = alone();
    for mode in ["--mode sync", "--mode ssp --staleness 4"] {
        attempt(&format!("{mode} {FOUR} --passes 0.32"), |run| {
            let idle = idle(run);
            let (fast, slow) = (&idle[..3], idle[3]);
            let is_so = fast.iter().all(|share| (share - 75.0).abs() <= 5.0) && slow < 25.0;
            is_so.then_some(()).ok_or_else(|| format!("idle {idle:.1?} %"))
        });
    }
    attempt(&format!("--mode async {FOUR} --passes 1.1"), |run| {
        let idle = idle(run);
        idle.iter().all(|share| *share < 20.0).then_some(()).ok_or_else(|| format!("idle {idle:.1?} %"))
    });
}

/// Where each is slow for five steps in turn, a bound that is wide enough hides it. In async nobody waits for others: what
/// its workers do not compute is what messages and this machine take, and may come on top in the other modes.
#[test]
fn a_wider_bound_hides_more_of_a_slowness_that_goes_round() {
    let _alone = alone();
    let four = format!("{FOUR_LONGER} --slow-pattern rotate:5");
    let floor = Cell::new(0.0);
    attempt(&format!("--mode async {four} --passes 0.35"), |run| {
        floor.set(mean(&idle(run)));
        (floor.get() < 15.0).then_some(()).ok_or_else(|| format!("idle {:.1} % in async", floor.get()))
    });
    let modes = [
        ("--mode sync --passes 0.16", 56.0),
        ("--mode ssp --staleness 4 --passes 0.35", 17.0),
        ("--mode ssp --staleness 8 --passes 0.4", 2.0),
    ];
    for (mode, expected) in modes {
        attempt(&format!("{mode} {four}"), |run| {
            let (idle, floor) = (idle(run), floor.get());
            let is_so = (expected - 4.0..=expected + 4.0 + floor).contains(&mean(&idle));
            let found = format!("idle {idle:.1?} %, mean {:.1} %; in async {floor:.1} %", mean(&idle));
            println!("{mode}: {found}");
            is_so.then_some(()).ok_or(found)
        });
    }
}

const SLOW_THIRD: &str = "--mode fedavg --model softmax --clients 6 --fraction 1 --local-steps 5 --rounds 8 \
                          --workers 3 --servers 1 --hosting fixed --step-time const:20ms --slow-workers 1 \
                          --slow-factor 10 --round-deadline 700ms";

fn tally(summary: &Value, name: &str) -> Vec<u64> {
    summary["client_tallies"].as_array().unwrap().iter().map(|tally| tally[name].as_u64().unwrap()).collect()
}

/// A client of the slow worker takes 1 s and a round 0.7 s; the two clients of each other worker take 0.2 s together.
#[test]
fn who_misses_every_deadline_is_never_aggregated() {
    let _alone = alone();
    attempt(SLOW_THIRD, |run| {
        let summary = summary(run);
        let [asked, aggregated, late] = ["asked", "aggregated", "late"].map(|name| tally(&summary, name));
        assert_eq!(asked, [8; 6]);
        if (aggregated[2], aggregated[5]) != (0, 0) {
            // In the first round, whose deadline begins with the first push for it.
            return Err(format!("the slow one got in: {}", summary["client_tallies"]));
        }
        assert!(late[2] + late[5] > 0, "the slow one has pushed too late: {}", summary["client_tallies"]);
        assert_eq!(summary["pushes_late"].as_u64(), Some(late.iter().sum()));
        let in_log = events(run).iter().filter(|e| e["event"] == "late").count() as u64;
        assert_eq!(summary["pushes_late"].as_u64(), Some(in_log));
        // Loading data falls into the first round.
        let others = [0, 1, 3, 4].map(|client| aggregated[client]);
        others.iter().all(|&n| n >= 6).then_some(()).ok_or_else(|| format!("aggregated {aggregated:?}"))
    });
}

#[test]
fn a_round_without_its_quorum_is_abandoned() {
    let _alone = alone();
    attempt(&format!("{} --quorum 5", SLOW_THIRD.replace("--rounds 8", "--rounds 4")), |run| {
        let summary = summary(run);
        let count = |name: &str| summary[name].as_u64().unwrap();
        // The deadline of the first round begins with the first push for it: if the others take long to load the data, the
        // slow one's first client is in time. All later rounds begin when they are opened.
        let abandoned: Vec<u64> = lines(run)
            .iter()
            .filter(|line| line["event"] == "abandoned")
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        assert!(abandoned.ends_with(&[1, 2, 3]) && abandoned.len() <= 4, "{abandoned:?}");
        let closed = u64::from(abandoned.len() == 3);
        assert_eq!([count("rounds"), count("rounds_abandoned"), count("steps")], [4, 4 - closed, closed]);
        let aggregated = tally(&summary, "aggregated");
        let quorum = if closed == 1 { 5..=6 } else { 0..=0 };
        assert!(quorum.contains(&aggregated.iter().sum::<u64>()), "{aggregated:?}");
        assert!(aggregated.iter().all(|&n| n <= closed), "{aggregated:?}");
        assert_eq!(count("pushes"), count("pushes_late") + aggregated.iter().sum::<u64>());
        Ok(())
    });
}

/// The values of softmax are 31,400 bytes, in each direction and step. An idle link makes up for at most 2 ms.
#[test]
fn bytes_take_their_time_on_a_slow_link() {
    let _alone = alone();
    let sync =
        "--mode sync --model softmax --workers 2 --servers 1 --batch 32 --passes 0.1 --evaluate-every 60000";
    for (rate, bits_per_ms) in [("20mbit", 20_000.0), ("100mbit", 100_000.0)] {
        attempt(&format!("{sync} --link-rate {rate}"), |run| {
            let summary = summary(run);
            let between = summary["steps"].as_f64().unwrap() - 1.0;
            let each_way_ms = 31_400.0 * 8.0 / bits_per_ms - 2.0;
            let (found, least) = (summary["training_s"].as_f64().unwrap(), between * 2.0 * each_way_ms / 1e3);
            assert!(
                found >= least,
                "{between} steps at {rate} took {found} s, at least {least} s were needed"
            );
            Ok(())
        });
    }
}
