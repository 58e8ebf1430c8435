//! What a user can do wrong: each gets one clear sentence and a documented exit code, with no panic and no hang.

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use windlass_process_tests::{Ended, mnist, start, text};

const SOON: Duration = Duration::from_secs(30);

fn windlass(arguments: &str, folder: &Path) -> Ended {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    start("windlass", &arguments, folder).end(SOON)
}

/// `windlass train` on this data; the run never begins.
fn train_on(data: &Path, arguments: &str, folder: &Path) -> Ended {
    windlass(&format!("train --quiet --data {} {arguments}", text(data)), folder)
}

#[test]
fn wrong_flags() {
    let folder = tempfile::tempdir().unwrap();
    let (path, data) = (folder.path(), mnist());
    windlass("train --modle 2nn", path).failed(2, &["--modle"]);
    windlass("train --mode fast", path).failed(2, &["fast", "sync", "async", "ssp"]);
    train_on(&data, "--batch 0", path).failed(2, &["batch"]);
    train_on(&data, "--mode sync --staleness 3", path).failed(2, &["staleness", "ssp"]);
    train_on(&data, "--mode async --backup 1", path).failed(2, &["backup", "sync"]);
    train_on(&data, "--workers 2 --backup 2", path).failed(2, &["backup"]);
    train_on(&data, "--optimizer adma", path).failed(2, &["adma", "adamw"]);
    train_on(&data, "--model resnet", path).failed(2, &["resnet", "2nn"]);
    train_on(&data, "--model softmax --servers 100 --shards-per-server 32", path).failed(2, &["3200 shards"]);
    windlass("eval nowhere", path).failed(3, &["nowhere"]);
    start("windlass-ps", &["--identity", "x.pem"], path).end(SOON).failed(2, &["--plan"]);
    start("windlass-worker", &["--identity", "x.pem"], path).end(SOON).failed(2, &["--coordinator"]);
}

#[test]
fn wrong_flags_of_federated_training_and_emulation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refused = |arguments: &str, says: &[&str]| {
        let ended =
            train_on(&mnist(), &format!("--model softmax {arguments} --run-dir run"), path).failed(2, says);
        assert!(!path.join("run").exists(), "{arguments} has begun a run");
        let sentences = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(sentences, 1, "{}", ended.stderr);
    };
    let fedavg = |arguments: &str, says: &[&str]| refused(&format!("--mode fedavg {arguments}"), says);
    fedavg("--clients 60001", &["--clients is 60001", "60000 training examples"]);
    fedavg("--clients 10 --cohort 3 --quorum 4", &["--quorum is 4", "1 to 3"]);
    fedavg("--clients 10 --cohort 4 --ask 3", &["--ask is 3", "4 to 10"]);
    fedavg("--clients 10 --cohort 2 --fraction 0.5", &["--cohort", "--fraction"]);
    fedavg("--clients 5 --partition labels:1", &["labels:1", "5 labels", "at least 10 clients or labels:2"]);
    fedavg("--clients 20000 --partition dirichlet-class:0.1", &["20000 clients need 200000", "60000"]);
    fedavg("--clients 5 --target 2", &["--target is 2"]);
    fedavg("--clients 5 --rounds 2 --passes 3", &["--rounds", "--passes", "one of them"]);
    fedavg("--clients 5 --dropout 1", &["--dropout is 1"]);
    fedavg("--clients 5 --slow-workers 1", &["--slow-workers", "--step-time"]);
    fedavg("--clients 5 --round-deadline 5", &["--round-deadline", "2s"]);
    fedavg("--clients 5 --buffer 2", &["--buffer", "fedbuff"]);
    fedavg("--clients 5 --staleness 2", &["--staleness", "ssp"]);
    refused("--mode sync --rounds 3", &["--rounds is for --mode fedavg; sync"]);
    refused("--mode sync --batch inf", &["--batch inf"]);
    refused("--mode async --target 0.9", &["--target", "fedavg"]);
    refused("--mode fedbuff --fraction 0.5", &["--fraction", "fedbuff"]);
    let column = "--mode fedavg --clients 5 --partition column:x --run-dir run";
    train_on(&mnist(), column, path).failed(3, &["no column x", "CSV"]);
    assert!(!path.join("run").exists());

    windlass(&format!("plan --model softmax --data {} --out plan.toml", text(&mnist())), path).well();
    for flag in ["--rounds 4", "--clients 9", "--dropout 0.1", "--step-time const:5ms"] {
        let name = flag.split(' ').next().unwrap();
        windlass(&format!("train --quiet --plan plan.toml {flag}"), path).failed(2, &["--plan", name]);
    }
}

#[test]
fn wrong_flags_of_comparisons_and_reproductions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refused = |command: &str, code: i32, says: &[&str]| {
        windlass(&format!("{command} --out out"), path).failed(code, says);
        assert!(!path.join("out").exists(), "{command} has left something");
    };
    let data = format!("--model softmax --data {}", text(&mnist()));
    refused("compare --modes fast", 2, &["fast", "sync", "fedavg"]);
    refused("compare --modes async:2", 2, &["async takes no parameter"]);
    refused(&format!("compare {data} --target 2"), 2, &["--target is 2"]);
    refused(&format!("compare {data} --mode async"), 2, &["--mode", "--modes"]);
    refused(&format!("compare {data} --grid 0,1"), 2, &["--grid", "above 0"]);
    refused(
        &format!("compare {data} --modes sync --rate auto --mode-rates async=1"),
        2,
        &["async", "--modes"],
    );
    refused(&format!("compare {data} --clients 60001"), 2, &["--clients is 60001"]);
    refused("compare --data nowhere", 3, &["nowhere"]);
    refused("reproduce mcmahan --table 3", 2, &["--table is 3"]);
    refused("reproduce mcmahan --table 4 --cell E=7", 2, &["no cell with E=7"]);
    refused("reproduce mcmahan --table 4 --cell rate=7", 2, &["rate=7", "C=0.1"]);
}

/// It cannot be known before the first step is computed.
#[test]
fn a_step_time_that_is_shorter_than_the_computation() {
    let folder = tempfile::tempdir().unwrap();
    let short = "--model cnn --workers 1 --servers 1 --batch 256 --step-time const:1ms";
    train_on(&mnist(), short, folder.path()).failed(5, &["worker 0", "was to take 1ms", "--step-time"]);
}

#[test]
fn data_that_is_missing_truncated_or_corrupt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    train_on(&path.join("nowhere"), "", path).failed(3, &["nowhere"]);
    train_on(path, "", path).failed(3, &["train-images"]);

    let copy = path.join("copy");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(mnist()).unwrap().flatten() {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let images = copy.join("train-images-idx3-ubyte.gz");
    let whole = fs::read(&images).unwrap();
    fs::write(&images, &whole[..whole.len() / 2]).unwrap();
    train_on(&copy, "", path).failed(3, &["train-images-idx3-ubyte.gz"]);
    let mut corrupt = whole.clone();
    corrupt[whole.len() / 2] ^= 0x55;
    fs::write(&images, &corrupt).unwrap();
    train_on(&copy, "", path).failed(3, &["train-images-idx3-ubyte.gz"]);

    // Not compressed, and one byte short.
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(whole.as_slice()).read_to_end(&mut bytes).unwrap();
    fs::remove_file(&images).unwrap();
    let plain = copy.join("train-images-idx3-ubyte");
    fs::write(&plain, &bytes[..bytes.len() - 1]).unwrap();
    train_on(&copy, "", path).failed(3, &["train-images-idx3-ubyte", "47040016", "47040015"]);
    bytes[3] = 1;
    fs::write(&plain, &bytes).unwrap();
    train_on(&copy, "", path).failed(3, &["train-images-idx3-ubyte"]);
}

#[test]
fn a_model_that_does_not_fit_the_data() {
    let folder = tempfile::tempdir().unwrap();
    let ended = train_on(&mnist(), "--model mlp:100-50-10", folder.path());
    ended.failed(3, &["100 features", "784 features"]);
    let csv = folder.path().join("points.csv");
    let mut file = fs::File::create(&csv).unwrap();
    writeln!(file, "x,y,label").unwrap();
    for i in 0..60 {
        writeln!(file, "{i},{},{}", i * 2, i % 3).unwrap();
    }
    train_on(&csv, "--model 2nn", folder.path()).failed(3, &["784", "2 features"]);
    train_on(&csv, "--model mlp:2-8-3 --label-column kind", folder.path()).failed(3, &["kind"]);
}

#[test]
fn an_address_that_is_taken_or_answers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    windlass("identities --out ids --servers 2 --workers 1", path).well();
    windlass(&format!("plan --model softmax --out plan.toml --data {}", text(&mnist())), path).well();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server = ["--identity", "ids/server-0.pem", "--plan", "plan.toml", "--listen", &address];
    start("windlass-ps", &server, path).end(SOON).failed(4, &[&address]);
    let worker = ["--identity", "ids/worker-0.pem", "--coordinator", &address, "--connect-deadline", "2"];
    let ended = start("windlass-worker", &worker, path).end(SOON).failed(4, &[&address, "2 s"]);
    assert!(ended.took < Duration::from_secs(8), "{:?}", ended.took);
    let follower = ["--identity", "ids/server-1.pem", "--coordinator", &address, "--connect-deadline", "2"];
    let follower: Vec<&str> = follower.into_iter().chain(["--listen", "127.0.0.1:0"]).collect();
    start("windlass-ps", &follower, path).end(SOON).failed(4, &[&address, "2 s"]);
    // Server 1 cannot coordinate, and a worker is no server.
    let wrong = ["--identity", "ids/server-1.pem", "--plan", "plan.toml", "--listen", "127.0.0.1:0"];
    start("windlass-ps", &wrong, path).end(SOON).failed(2, &["server 0"]);
    fs::write(path.join("broken.toml"), "format = 1\nname = ").unwrap();
    let broken = ["--identity", "ids/server-0.pem", "--plan", "broken.toml", "--listen", "127.0.0.1:0"];
    start("windlass-ps", &broken, path).end(SOON).failed(3, &["broken.toml"]);
    windlass("identities --out ids --servers 2 --workers 1", path).failed(2, &["ids"]);
}
