//! Values written otherwise than as f32, with real processes: in every mode, the same bits on any number of shards, and as many
//! bytes as the codec says.

use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_process_tests::{model, start, summary, text, train};

const WITHIN: Duration = Duration::from_secs(120);
const PUSHES: [&str; 7] = ["f32", "bf16", "f16", "int8", "int8-stochastic", "topk:1%", "sign"];
const PULLS: [&str; 5] = ["f32", "bf16", "f16", "int8", "topk:10%"];
const MODES: [&str; 8] = ["sync", "async", "ssp", "softsync", "batchsync", "fedavg", "fedbuff", "fedasync"];
/// Values of the softmax model, in variables of 7840 and 10.
const VALUES: u64 = 7850;

fn run(folder: &Path, name: String, flags: &str) -> PathBuf {
    let run = folder.join(name);
    train(&run, &format!("--model softmax {flags}")).end(WITHIN).well();
    run
}

fn amount(mode: &str) -> &'static str {
    match mode {
        "fedavg" => "--clients 8 --fraction 0.5 --rounds 3",
        "fedbuff" | "fedasync" => "--clients 8 --passes 0.1",
        _ => "--passes 0.1",
    }
}

#[test]
fn every_codec_trains_in_every_mode() {
    let folder = tempfile::tempdir().unwrap();
    for (i, push) in PUSHES.into_iter().enumerate() {
        // Each codec in two modes here, one way and the other; the simulator has them all in all.
        for mode in [MODES[i], MODES[(i + 3) % MODES.len()]] {
            let pull = PULLS[i % PULLS.len()];
            let flags = format!("--mode {mode} --push-codec {push} --pull-codec {pull} {}", amount(mode));
            let run = run(folder.path(), format!("{mode}-{i}"), &flags);
            let accuracy = summary(&run)["test_accuracy"].as_f64().unwrap();
            assert!(accuracy > 0.4, "{flags}: {accuracy}");
        }
    }
}

#[test]
fn what_is_evaluated_midway_is_read_whatever_workers_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    for pull in PULLS {
        let flags = format!("--mode async --passes 0.5 --evaluate-every 10000 --pull-codec {pull}");
        let summary = summary(&run(folder.path(), format!("evaluated-{pull}"), &flags));
        let evaluations = summary["evaluations"].as_array().unwrap();
        assert!(evaluations.len() >= 4, "{pull}: {evaluations:?}");
        for midway in &evaluations[1..] {
            assert!(midway["accuracy"].as_f64().unwrap() > 0.4, "{pull}: {midway}");
        }
    }
}

#[test]
fn the_same_bits_on_one_two_and_five_shards() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, push, pull) in [
        ("sync", "bf16", "int8"),
        ("sync", "int8", "bf16"),
        ("sync", "int8-stochastic", "f16"),
        ("sync", "topk:1%", "f32"),
        ("fedavg", "sign", "int8"),
        ("sync", "topk:1%", "topk:2%"),
        ("fedavg", "f32", "topk:20%"),
    ] {
        let found = ["--servers 1", "--servers 2", "--servers 1 --shards-per-server 5"].map(|cluster| {
            let flags = format!(
                "--mode {mode} --workers 2 {cluster} --push-codec {push} --pull-codec {pull} {}",
                amount(mode)
            );
            model(&run(folder.path(), format!("{mode}-{push}-{pull}-{}", cluster.replace(' ', "")), &flags))
        });
        assert!(found.iter().all(|bytes| *bytes == found[0]), "{mode}, {push} up, {pull} down");
    }
}

#[test]
fn as_many_bytes_go_as_the_codec_says() {
    let folder = tempfile::tempdir().unwrap();
    // A scale for each block of 64 values, which begin anew with each variable.
    let scales = 7840_u64.div_ceil(64) + 1;
    for (codec, bytes) in [("f32", 4 * VALUES), ("bf16", 2 * VALUES), ("int8", VALUES + 4 * scales)] {
        let flags = format!(
            "--mode sync --workers 2 --servers 1 --passes 0.1 --push-codec {codec} --pull-codec {codec}"
        );
        let summary = summary(&run(folder.path(), codec.into(), &flags));
        let count = |name: &str| summary[name].as_u64().unwrap();
        let pushes = count("pushes");
        assert_eq!(count("payload_bytes_up"), pushes * bytes, "{codec}");
        assert_eq!(count("payload_bytes_down") % bytes, 0, "{codec}");
    }
}

#[test]
fn what_is_pulled_in_patches_is_all_of_it_once_and_a_patch_for_each_version() {
    let folder = tempfile::tempdir().unwrap();
    let flags = "--mode sync --workers 2 --servers 2 --passes 0.2 --pull-codec topk:2%";
    let summary = summary(&run(folder.path(), "patches".into(), flags));
    let count = |name: &str| summary[name].as_u64().unwrap();
    let steps = count("pushes") / 2;
    // An index and a value of each block of 64, which begin anew with each variable.
    let patch = 5 * (7840_u64.div_ceil(64) + 1);
    // Evaluation points and the result are pulled too, as they are. Nobody needs the values after the last step.
    let whole = count("payload_bytes_down") - 2 * (steps - 1) * patch;
    assert_eq!(whole % (4 * VALUES), 0, "{summary}");
    assert!(whole / (4 * VALUES) < 8, "{summary}");
}

#[test]
fn a_codec_that_there_is_not_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], says: &[&str]| {
        let run = folder.path().join("refused");
        let arguments = [&["train", "--run-dir", text(&run)], arguments].concat();
        start("windlass", &arguments, folder.path()).end(WITHIN).failed(2, says);
        assert!(!run.exists());
    };
    refused(&["--push-codec", "int4"], &["int4", "int8-stochastic", "topk:1%"]);
    refused(&["--push-codec", "topk:0"], &["share"]);
    let possible = "f32, bf16, f16, int8 and topk from 1.5625%, one of 64 values, are possible";
    refused(&["--pull-codec", "sign"], &["--pull-codec is sign", possible]);
    refused(&["--pull-codec", "topk:1%"], &["--pull-codec is topk:1%", possible]);
}
