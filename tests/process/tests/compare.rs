//! Comparisons and reproductions: nothing is run twice, what fails is a row, and what was interrupted goes on.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use windlass_process_tests::{Ended, Running, child, mnist, pushes, start, text, until};

const WITHIN: Duration = Duration::from_secs(240);
const SMALL: &str = "--model softmax --clients 10 --workers 2 --servers 1";

/// A command of `windlass` on the real MNIST, with its results in `out`.
fn command(command: &str, arguments: &str, out: &Path) -> Running {
    let data = mnist();
    let mut all: Vec<&str> = command.split_whitespace().collect();
    all.extend(["--data", text(&data), "--out", text(out)]);
    all.extend(arguments.split_whitespace());
    start("windlass", &all, out.parent().unwrap())
}

fn compare(arguments: &str, out: &Path) -> Ended {
    command("compare", arguments, out).end(WITHIN).well()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

/// Mode, rate, seed and outcome of every run in a report.
fn rows(report: &Value) -> Vec<(String, f64, u64, Value)> {
    let modes = report["modes"].as_array().unwrap().iter();
    let runs = modes.flat_map(|mode| mode["runs"].as_array().unwrap().iter().map(move |run| (mode, run)));
    let row = |(mode, run): (&Value, &Value)| {
        let name = mode["name"].as_str().unwrap().to_owned();
        (name, mode["rate"].as_f64().unwrap(), run["seed"].as_u64().unwrap(), run["outcome"].clone())
    };
    runs.map(row).collect()
}

/// When each file in the folders of the runs was last written.
fn written(runs: &Path) -> BTreeMap<String, SystemTime> {
    let mut times = BTreeMap::new();
    let folders = fs::read_dir(runs).unwrap().flatten().filter(|entry| entry.path().is_dir());
    for run in folders {
        for file in fs::read_dir(run.path()).unwrap().flatten() {
            let time = file.metadata().unwrap().modified().unwrap();
            times.insert(file.path().display().to_string(), time);
        }
    }
    times
}

#[test]
fn a_comparison_is_complete_and_repeats_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let modes = format!(
        "--modes sync,async,fedavg,fedbuff:2 {SMALL} --passes 0.5 --partition shards:2 --target 0.5 --seeds"
    );
    let first = compare(&format!("{modes} 2"), &out);
    for name in ["report.html", "report.json", "report.csv", "curves.csv"] {
        assert!(fs::metadata(out.join(name)).unwrap().len() > 100, "{name}");
        assert!(first.stdout.contains(name), "{name} is named at the end:\n{}", first.stdout);
    }
    let found = report(&out);
    let names: Vec<_> = rows(&found).into_iter().map(|(name, _, seed, _)| format!("{name} {seed}")).collect();
    let expected =
        ["sync 1", "sync 2", "async 1", "async 2", "fedavg 1", "fedavg 2", "fedbuff:2 1", "fedbuff:2 2"];
    assert_eq!(names, expected);
    assert!(rows(&found).iter().all(|(.., outcome)| outcome == "completed"), "{:?}", rows(&found));
    for mode in found["modes"].as_array().unwrap() {
        for run in mode["runs"].as_array().unwrap() {
            let accuracies = run["curve"].as_array().unwrap().iter().map(|p| p["accuracy"].as_f64().unwrap());
            let has_arrived = accuracies.fold(0.0, f64::max) >= 0.5;
            assert_eq!(run["at_target"].is_object(), has_arrived, "{}: {}", mode["name"], run["at_target"]);
        }
    }
    assert_eq!(found["baselines"].as_array().unwrap().len(), 3);
    assert_eq!(fs::read_to_string(out.join("report.csv")).unwrap().lines().count(), 9);

    let before = written(&out.join("runs"));
    let second = compare(&format!("{modes} 2"), &out);
    assert_eq!(second.stderr.matches("(run before)").count(), 8, "{}", second.stderr);
    assert!(second.took < first.took / 2, "{:?} after {:?}", second.took, first.took);
    assert_eq!(before, written(&out.join("runs")));
    assert_eq!(found["modes"], report(&out)["modes"]);
    assert_eq!(found["baselines"], report(&out)["baselines"]);

    let third = compare(&format!("{modes} 3"), &out);
    assert_eq!(third.stderr.matches("(run before)").count(), 8, "{}", third.stderr);
    let after = written(&out.join("runs"));
    assert!(before.iter().all(|(file, time)| after[file] == *time), "what was there is as it was");
    assert_eq!(rows(&report(&out)).len(), 12);

    // The same folder is not for another experiment.
    let other = command("compare", &format!("{} 2", modes.replace("--passes 0.5", "--passes 0.2")), &out);
    other.end(WITHIN).failed(2, &["another plan", "--out"]);
    assert_eq!(after, written(&out.join("runs")));
}

#[test]
fn a_rate_that_diverges_is_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // The decay multiplies the values by -99 in each step, until no number is left.
    let arguments = format!("--modes sync,async {SMALL} --passes 0.1 --no-baselines --weight-decay 0.1");
    let ended = compare(&format!("{arguments} --mode-rates sync=1000"), &out);
    assert!(ended.stdout.contains("diverged"), "{}", ended.stdout);
    let rows = rows(&report(&out));
    let shape: Vec<_> = rows.iter().map(|(name, rate, ..)| (name.as_str(), *rate)).collect();
    assert_eq!(shape, [("sync", 0.1), ("sync", 1000.0), ("async", 0.1)]);
    let outcomes: Vec<_> = rows.into_iter().map(|(.., outcome)| outcome).collect();
    assert!(outcomes[0] == "completed" && outcomes[2] == "completed", "{outcomes:?}");
    let reason = outcomes[1]["diverged"]["reason"].as_str().unwrap();
    assert!(reason.contains("NaN") || reason.contains("inf"), "{reason}");
    let sheet = fs::read_to_string(out.join("report.csv")).unwrap();
    assert!(sheet.lines().any(|line| line.starts_with("sync,1000,true,1,diverged,")), "{sheet}");
    let again = compare(&format!("{arguments} --mode-rates sync=1000"), &out);
    assert_eq!(again.stderr.matches("(run before)").count(), 3, "{}", again.stderr);
}

#[test]
fn each_mode_chooses_its_rate_from_a_grid() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = format!("--modes sync {SMALL} --passes 0.1 --no-baselines");
    let grid = "--rate auto --grid 0.05,0.1 --grid-passes 0.1";
    let ended = compare(&format!("{arguments} {grid}"), &out);
    let found = report(&out);
    let choice = &found["rate_choice"]["auto"];
    let tried: Vec<f64> = choice["grid"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
    assert!(tried.contains(&0.05) && tried.contains(&0.1), "{tried:?}");
    assert!(choice["gradient_evaluations"].as_u64().unwrap() > 0, "{choice}");
    assert_eq!(ended.stderr.matches("choosing the rate of sync").count(), tried.len(), "{}", ended.stderr);
    // The best of its trials, by the lines that a person reads.
    let score = |rate: f64| -> f64 {
        let head = format!("choosing the rate of sync: {rate} gives ");
        let line = ended.stderr.lines().find_map(|line| line.strip_prefix(&head)).unwrap();
        line.trim_end_matches(" %").parse().unwrap()
    };
    let best =
        tried.iter().copied().max_by(|&a, &b| score(a).total_cmp(&score(b)).then(b.total_cmp(&a))).unwrap();
    let modes = found["modes"].as_array().unwrap();
    let rates: Vec<_> =
        modes.iter().map(|m| (m["rate"].as_f64().unwrap(), m["rate_was_chosen"] == true)).collect();
    assert_eq!(rates, [(0.1, false), (best, true)], "{}", ended.stderr);
}

#[test]
fn an_interrupted_comparison_leaves_nothing_behind_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = format!("--modes sync,async {SMALL} --passes 2 --no-baselines");
    let running = command("compare", &arguments, &out);
    until("the first run is over", || out.join("runs/sync-0.1-1/outcome.json").exists().then_some(()));
    let interrupted = out.join("runs/async-0.1-1");
    pushes(&interrupted, 20);
    let children = ["server-0", "worker-0", "worker-1"].map(|name| child(running.id(), name, None));
    running.signal(Signal::INT);
    let ended = running.end(Duration::from_secs(20));
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    for id in children {
        assert!(!Path::new(&format!("/proc/{id}")).exists(), "process {id} lives on");
    }
    assert!(!interrupted.join("outcome.json").exists() && !out.join("report.json").exists());
    let before = written(&out.join("runs"));
    let ended = compare(&arguments, &out);
    assert_eq!(ended.stderr.matches("(run before)").count(), 1, "{}", ended.stderr);
    let after = written(&out.join("runs"));
    let of_first = |name: &&String| name.contains("sync-0.1-1") && !name.contains("async");
    assert!(before.keys().filter(of_first).count() > 3);
    assert!(before.keys().filter(of_first).all(|file| before[file] == after[file]));
    let outcomes: Vec<_> =
        rows(&report(&out)).into_iter().map(|(name, _, _, outcome)| (name, outcome)).collect();
    assert_eq!(outcomes, ["sync", "async"].map(|name| (name.to_owned(), Value::from("completed"))));
}

/// They take as long as the runs, and no child is there that could be ended.
#[test]
fn baselines_can_be_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let long = "--modes sync --model 2nn --clients 10 --workers 1 --servers 1 --passes 50 --time-limit 1s";
    let running = command("compare", long, &out);
    until("the run is over", || out.join("runs/sync-0.1-1/outcome.json").exists().then_some(()));
    running.signal(Signal::INT);
    let ended = running.end(Duration::from_secs(10));
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(!out.join("report.json").exists() && !out.join("baselines.json").exists());
}

#[test]
fn baselines_are_those_of_the_comparison_that_shows_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let notes = |arguments: &str| {
        compare(&format!("{SMALL} --passes 0.02 {arguments}"), &out);
        let baselines = report(&out)["baselines"].as_array().unwrap().clone();
        baselines
            .into_iter()
            .map(|baseline| baseline["note"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(notes("--modes sync --rate 0.1").iter().all(|note| note.contains("rate 0.1,")));
    let notes = notes("--modes async --rate 0.05");
    assert!(notes.iter().all(|note| note.contains("rate 0.05,")), "{notes:?}");
}

/// The plan in a run's folder has to say what the flags say, or it is not known again.
#[test]
fn whole_batches_are_the_same_plan_the_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments =
        "--modes fedavg --model softmax --clients 100 --batch inf --passes 0.2 --workers 2 --no-baselines";
    compare(arguments, &out);
    let again = compare(arguments, &out);
    assert_eq!(again.stderr.matches("(run before)").count(), 1, "{}", again.stderr);
    let plan = fs::read_to_string(out.join("runs/fedavg-0.1-1/plan.toml")).unwrap();
    assert!(!plan.contains("batch = 10"), "{plan}");
}

#[test]
fn a_table_says_plainly_what_was_not_reached_and_repeats_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = "--table 4 --cell E=1,B=50,partition=iid --grid 0.1 --rounds-max 3 --workers 2";
    let reproduce = || command("reproduce mcmahan", arguments, &out).end(WITHIN).well();
    let first = reproduce();
    let table: Value = serde_json::from_slice(&fs::read(out.join("table-4.json")).unwrap()).unwrap();
    let [cell] = table.as_array().unwrap().as_slice() else { panic!("one cell was asked for: {table}") };
    assert!(cell["rounds"].is_null() && cell["rounds_in_paper"] == 144, "{cell}");
    let best = cell["grid"][0]["best_accuracy"].as_f64().unwrap();
    assert!((0.5..0.97).contains(&best), "{best}");
    let says = format!("not reached (best {:.2} %)", best * 100.0);
    assert!(first.stdout.contains(&says), "{says:?} is not in\n{}", first.stdout);
    let before = written(&out);
    let second = reproduce();
    assert!(second.stderr.contains("(run before)"), "{}", second.stderr);
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(before, written(&out));
}
