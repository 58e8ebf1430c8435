//! The law of staleness, from the log of real processes: while C workers are active, its mean is C - 1.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeMap;
use std::time::Duration;

use windlass_process_tests::{events, summary, train};

/// Mean staleness and the fewest pushes of a worker, over the time in which all workers are active. Staleness is counted
/// from the versions in the log, not taken from it.
fn mean_staleness(run: &std::path::Path, workers: usize) -> (f64, usize) {
    let events = events(run);
    let mut spans: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for event in &events {
        assert_eq!(event["event"], "applied");
        let (worker, version) = (event["worker"].as_u64().unwrap(), event["version"].as_u64().unwrap());
        let span = spans.entry(worker).or_insert((version, version));
        *span = (span.0.min(version), span.1.max(version));
    }
    assert_eq!(spans.len(), workers);
    let from = spans.values().map(|s| s.0).max().unwrap();
    let to = spans.values().map(|s| s.1).min().unwrap();
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    let mut sum = 0;
    for event in &events {
        let version = event["version"].as_u64().unwrap();
        if (from..=to).contains(&version) {
            let before = version - 1;
            sum += before - event["base"].as_u64().unwrap();
            *counts.entry(event["worker"].as_u64().unwrap()).or_default() += 1;
        }
    }
    (sum as f64 / counts.values().sum::<usize>() as f64, counts.values().copied().min().unwrap())
}

#[test]
fn mean_staleness_of_five_workers_is_four_and_of_one_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let five = folder.path().join("five");
    let within = Duration::from_secs(180);
    train(&five, "--mode async --model softmax --servers 1 --workers 5 --passes 6").end(within).well();
    let (mean, fewest) = mean_staleness(&five, 5);
    println!("5 workers: mean staleness {mean:.4}, at least {fewest} pushes each");
    assert!(fewest >= 500, "only {fewest} pushes of the slowest worker");
    assert!((mean - 4.0).abs() <= 0.2, "mean staleness {mean}");
    // The summary's is over the whole run, with its beginning and end, when fewer are active.
    let all: Vec<u64> = events(&five)
        .iter()
        .map(|e| e["version"].as_u64().unwrap() - 1 - e["base"].as_u64().unwrap())
        .collect();
    let overall = all.iter().sum::<u64>() as f64 / all.len() as f64;
    assert!((summary(&five)["staleness_mean"].as_f64().unwrap() - overall).abs() < 1e-9);

    let one = folder.path().join("one");
    train(&one, "--mode async --model softmax --servers 1 --workers 1 --passes 0.5").end(within).well();
    assert_eq!(mean_staleness(&one, 1).0, 0.0);
}

/// With backup workers a shard may close a step before another has heard of it; whoever was left behind then gets values
/// for different steps, and asks those behind again.
#[test]
fn backup_workers_go_on_where_shards_are_a_step_apart() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 1..=3 {
        let run = folder.path().join(format!("backup-{seed}"));
        let mode = "--mode sync --backup 1 --model softmax --servers 3 --workers 4 --passes 2";
        train(&run, &format!("{mode} --seed {seed}")).end(Duration::from_secs(60)).well();
        let summary = summary(&run);
        let (pushes, late) = (summary["pushes"].as_u64().unwrap(), summary["pushes_late"].as_u64().unwrap());
        let applied =
            events(&run).iter().filter(|e| e["shard"] == 2 && e["event"] == "applied").count() as u64;
        assert_eq!(
            applied,
            summary["steps"].as_u64().unwrap() * 3,
            "three pushes make a step, on every shard"
        );
        assert_eq!(pushes - late, applied);
    }
}

#[test]
fn ssp_keeps_its_bound_and_learns() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("ssp");
    let arguments = "--mode ssp --staleness 2 --model 2nn --servers 2 --workers 3 --passes 1 --batch 32";
    train(&run, arguments).end(Duration::from_secs(180)).well();
    // A worker at step t has seen the values that were released when the slowest was at t - 2 at least: no push of one
    // worker comes before a push of another that lies more than three steps back.
    for shard in 0..2 {
        let mut clocks = [0_u64; 3];
        for event in events(&run).iter().filter(|e| e["shard"] == shard) {
            let (worker, step) =
                (event["worker"].as_u64().unwrap() as usize, event["step"].as_u64().unwrap());
            let slowest = clocks.iter().min().unwrap();
            assert!(
                step <= slowest + 2,
                "worker {worker} pushed for step {step}, the slowest is at {slowest}"
            );
            clocks[worker] = step + 1;
        }
    }
    let accuracy = summary(&run)["test_accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.93, "accuracy {accuracy}");
}
