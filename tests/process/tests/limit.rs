//! Measures what this machine can do at best, and shows that runs are set beside it.

use std::time::Duration;

use windlass_process_tests::{mnist, start, start_with, summary, text};

const WITHIN: Duration = Duration::from_secs(240);

#[test]
fn a_run_says_how_near_it_came_to_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let (data, cache) = (mnist(), folder.path().join("cache"));
    let windlass = |arguments: &str| {
        let all: Vec<&str> = arguments.split_whitespace().chain(["--data", text(&data)]).collect();
        start_with(&[("XDG_CACHE_HOME", text(&cache))], "windlass", &all, folder.path()).end(WITHIN).well()
    };
    let recipe = "--mode async --model softmax --workers 2 --servers 1 --passes 0.2";
    let before = windlass(&format!("train --quiet {recipe} --run-dir before"));
    assert!(before.stdout.contains("windlass bench machine --plan before/plan.toml"), "{}", before.stdout);
    assert!(summary(&folder.path().join("before")).get("limit").is_none());

    let measured = windlass("bench machine --plan before/plan.toml");
    assert!(measured.stdout.contains("pushes/s on"), "{}", measured.stdout);
    assert!(cache.join("windlass/limits.json").exists());

    let after = windlass(&format!("train --quiet {recipe} --run-dir after"));
    assert!(after.stdout.contains("beside the limit"), "{}", after.stdout);
    let limit = summary(&folder.path().join("after"))["limit"].clone();
    let number = |pointer: &str| limit.pointer(pointer).and_then(|n| n.as_f64()).unwrap_or(0.0);
    let costs = ["/costs/gradient_s", "/costs/wire_s", "/costs/apply_s"].map(number);
    assert!(costs.iter().all(|seconds| *seconds > 0.0), "{limit}");
    let most = number("/cores") / costs.iter().sum::<f64>();
    assert!((number("/pushes_per_s") / most - 1.0).abs() < 1e-9 && number("/share") > 0.0, "{limit}");

    // Another batch is another limit.
    let other = windlass(&format!("train --quiet {recipe} --batch 32 --run-dir other"));
    assert!(other.stdout.contains("windlass bench machine"), "{}", other.stdout);
}

#[test]
fn a_run_over_slow_links_is_set_beside_those() {
    let folder = tempfile::tempdir().unwrap();
    let data = mnist();
    let recipe = "train --quiet --mode async --model softmax --workers 2 --servers 1 --passes 0.05 --link-rate 2mbit --run-dir run";
    let all: Vec<&str> = recipe.split_whitespace().chain(["--data", text(&data)]).collect();
    start("windlass", &all, folder.path()).end(WITHIN).well();
    let limit = summary(&folder.path().join("run"))["limit"].clone();
    // Each of two links carries 7,850 values of 4 bytes a push.
    let most = 2.0 * 250_000.0 / 31_400.0;
    let (pushes, share) = (limit["pushes_per_s"].as_f64().unwrap(), limit["share"].as_f64().unwrap());
    assert!((pushes / most - 1.0).abs() < 0.1, "{limit}");
    assert!(share > 0.1 && share < 1.1, "{limit}");
}

#[test]
fn what_has_no_limit_is_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let data = mnist();
    let refused = |arguments: &str, says: &[&str]| {
        let all: Vec<&str> = arguments.split_whitespace().chain(["--data", text(&data)]).collect();
        start("windlass", &all, folder.path()).end(WITHIN).failed(2, says);
    };
    refused("bench machine --mode fedavg --clients 10", &["no such limit", "fedavg"]);
    refused("bench machine --mode async --step-time const:5ms", &["no such limit"]);
    refused("bench machine --plan plan.toml --batch 3", &["--plan", "--batch", "the plan says that"]);
}
