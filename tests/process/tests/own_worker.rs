//! Worker programs of one's own: the examples of the worker library train under the launcher.

use std::time::Duration;

use windlass_process_tests::{model, program, start, summary, text};

#[test]
fn the_examples_train() {
    let folder = tempfile::tempdir().unwrap();
    let own_loop = program("examples/own_loop");
    let run = folder.path().join("line");
    let arguments = [
        "train",
        "--quiet",
        "--worker-program",
        text(&own_loop),
        "--variable",
        "slope:1:zeros",
        "--variable",
        "offset:1:zeros",
        "--examples",
        "100000",
        "--passes",
        "1",
        "--batch",
        "50",
        "--rate",
        "0.2",
        "--servers",
        "1",
        "--workers",
        "2",
        "--run-dir",
        text(&run),
    ];
    start("windlass", &arguments, folder.path()).end(Duration::from_secs(120)).well();
    let bytes = model(&run);
    let data = &bytes[bytes.len() - 8..];
    let values: Vec<f32> = data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut sorted = values.clone();
    sorted.sort_by(f32::total_cmp);
    assert!((sorted[0] + 1.0).abs() < 1e-3 && (sorted[1] - 2.0).abs() < 1e-3, "{values:?}");

    let own_model = program("examples/own_model");
    let run = folder.path().join("least-squares");
    let data = windlass_process_tests::mnist();
    let arguments = [
        "train",
        "--quiet",
        "--worker-program",
        text(&own_model),
        "--variable",
        "weight:784x10:zeros",
        "--variable",
        "bias:10:zeros",
        "--examples",
        "60000",
        "--passes",
        "1",
        "--rate",
        "0.01",
        "--servers",
        "1",
        "--workers",
        "2",
        "--data",
        text(&data),
        "--run-dir",
        text(&run),
    ];
    start("windlass", &arguments, folder.path()).end(Duration::from_secs(120)).well();
    let loss = summary(&run)["train_loss"].as_f64().unwrap();
    assert!(loss < 0.3, "the squared error of always answering 0.1 is 0.45, trained it is {loss}");
}
