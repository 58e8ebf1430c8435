//! Federated averaging with real processes: the same bits however it is spread, also when a worker is killed, and the
//! books of who was asked, who counted and who did not.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use windlass_process_tests::{child, events, model, pushes, send, summary, train};

const WITHIN: Duration = Duration::from_secs(120);
const SPREAD: &str = "--mode fedavg --model softmax --clients 12 --fraction 0.5 --rounds 6 --batch 10 \
                      --partition dirichlet:1";

/// Every line of a run's log.
fn log(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What rounds were opened, closed and abandoned, with whom.
fn cohorts(run: &Path) -> Vec<(String, u64, Vec<u64>)> {
    let is_round =
        |event: &Value| ["opened", "closed", "abandoned"].iter().any(|name| event["event"] == *name);
    let clients = |event: &Value| {
        event["clients"].as_array().unwrap().iter().map(|client| client.as_u64().unwrap()).collect()
    };
    let rounds = log(run).into_iter().filter(is_round);
    rounds.map(|e| (e["event"].as_str().unwrap().into(), e["step"].as_u64().unwrap(), clients(&e))).collect()
}

/// One number of each client's tally.
fn tally(summary: &Value, name: &str) -> Vec<u64> {
    summary["client_tallies"].as_array().unwrap().iter().map(|tally| tally[name].as_u64().unwrap()).collect()
}

/// The values of a result by the names of their variables.
fn values(run: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = model(run);
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let variables = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let read = |(name, entry): (String, Value)| {
        assert_eq!(entry["dtype"], "F32");
        let at = |i: usize| usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap();
        let floats = data[at(0)..at(1)].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (name, floats.collect())
    };
    variables.map(read).collect()
}

#[test]
fn the_result_does_not_depend_on_workers_servers_or_hosting() {
    let folder = tempfile::tempdir().unwrap();
    let runs = [(1, 1, "balanced"), (2, 2, "balanced"), (4, 3, "balanced"), (2, 3, "fixed"), (4, 1, "fixed")];
    let run = |name: &str, arguments: &str| {
        let run = folder.path().join(name);
        train(&run, arguments).end(WITHIN).well();
        run
    };
    let mut first = None;
    for (workers, servers, hosting) in runs {
        let name = format!("{workers}-{servers}-{hosting}");
        let spread = format!("{SPREAD} --workers {workers} --servers {servers} --hosting {hosting}");
        let run = run(&name, &spread);
        let found = (model(&run), cohorts(&run));
        assert_eq!(found.1.len(), 12, "{name}: six rounds are opened and closed");
        assert!(found.1.iter().all(|(_, _, clients)| clients.len() == 6), "{name}: {:?}", found.1);
        let counts = ["rounds", "pushes"].map(|count| summary(&run)[count].as_u64().unwrap());
        assert_eq!(counts, [6, 36], "{name}");
        let first = first.get_or_insert_with(|| found.clone());
        assert_eq!(first.1, found.1, "{name}: the same cohorts");
        assert!(first.0 == found.0, "{name}: the same bytes");
    }
    let (bytes, rounds) = first.unwrap();
    let seed = run("seed", &format!("{SPREAD} --workers 2 --servers 2 --seed 2"));
    assert_ne!(rounds, cohorts(&seed), "another seed asks others");
    assert!(bytes != model(&seed), "and learns something else");
    let sync = "--mode sync --model softmax --clients 12 --partition dirichlet:1 --passes 0.1 --workers 2";
    assert!(bytes != model(&run("sync", sync)));
}

#[test]
fn a_worker_killed_in_a_round_comes_back_and_the_bytes_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for hosting in ["balanced", "fixed"] {
        let [calm, killed] = ["calm", "killed"].map(|name| folder.path().join(format!("{name}-{hosting}")));
        let arguments = SPREAD.replace("--rounds 6", "--rounds 30");
        let arguments = format!("{arguments} --workers 3 --servers 2 --hosting {hosting} --name same");
        train(&calm, &arguments).end(WITHIN).well();
        let running = train(&killed, &arguments);
        let worker = child(running.id(), "worker-1", None);
        pushes(&killed, 40);
        send(worker, Signal::KILL);
        child(running.id(), "worker-1", Some(worker));
        running.end(WITHIN).well();
        assert_eq!(cohorts(&calm), cohorts(&killed), "{hosting}");
        assert!(model(&calm) == model(&killed), "{hosting}: the same bytes");
        assert_eq!(summary(&killed)["restarts"][1], 1, "{hosting}: {}", summary(&killed)["restarts"]);
        let aggregated = |run: &Path| tally(&summary(run), "aggregated");
        assert_eq!(aggregated(&calm), aggregated(&killed), "{hosting}: nobody counts twice");
    }
}

/// Where every push of a cohort is needed, who is lost for good ends the run; where a quorum is enough, it goes on.
#[test]
fn a_worker_that_dies_for_good_ends_the_run_by_name_unless_there_is_a_quorum() {
    let folder = tempfile::tempdir().unwrap();
    let [strict, tolerant] = ["strict", "tolerant"].map(|name| folder.path().join(name));
    let for_good = "--hosting fixed --workers 2 --servers 1 --restarts 0";
    let kill = |run: &Path, rounds: &str, more: &str| {
        let running = train(run, &format!("{} {for_good} {more}", SPREAD.replace("--rounds 6", rounds)));
        let worker = child(running.id(), "worker-1", None);
        pushes(run, 20);
        send(worker, Signal::KILL);
        running
    };
    let killed = Instant::now();
    kill(&strict, "--rounds 100000", "").end(WITHIN).failed(5, &["worker 1", "SIGKILL", "--restarts 0"]);
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    let reason = &summary(&strict)["reason"];
    assert!(reason.as_str().unwrap().contains("worker 1"), "{reason}");

    kill(&tolerant, "--rounds 150", "--quorum 1").end(WITHIN).well();
    let summary = summary(&tolerant);
    assert_eq!((summary["completed"].as_bool(), summary["rounds"].as_u64()), (Some(true), Some(150)));
    let closed = log(&tolerant).into_iter().filter(|event| event["event"] == "closed");
    let late = closed.filter(|event| event["step"].as_u64() > Some(100));
    let workers: Vec<u64> =
        late.flat_map(|e| e["workers"].as_array().unwrap().clone()).map(|w| w.as_u64().unwrap()).collect();
    assert!(!workers.is_empty() && workers.iter().all(|&worker| worker == 0), "{workers:?}");
}

/// One local step of each client on all it has, averaged by examples, is one step on the mean of the gradients.
#[test]
fn fedavg_with_one_whole_step_is_a_step_of_synchronous_sgd() {
    let folder = tempfile::tempdir().unwrap();
    let [federated, sync] = ["federated", "sync"].map(|name| folder.path().join(name));
    let once = "--mode fedavg --model 2nn --clients 2 --fraction 1 --local-steps 1 --batch inf --rounds 1";
    train(&federated, &format!("{once} --local-rate 0.1 --workers 2")).end(WITHIN).well();
    let once = "--mode sync --model 2nn --workers 2 --batch 30000 --rate 0.1 --schedule constant --warm-up 0";
    train(&sync, &format!("{once} --passes 1")).end(WITHIN).well();
    for run in [&federated, &sync] {
        let found = ["steps", "examples"].map(|count| summary(run)[count].as_u64().unwrap());
        assert_eq!(found, [1, 60_000], "{}", run.display());
    }
    let (federated, sync) = (values(&federated), values(&sync));
    assert_eq!(federated.keys().collect::<Vec<_>>(), sync.keys().collect::<Vec<_>>());
    assert_eq!(sync.values().map(Vec::len).sum::<usize>(), 199_210);
    for (name, sync) in &sync {
        let differences = federated[name].iter().zip(sync).map(|(a, b)| (a - b).abs());
        let most = differences.fold(0.0, f32::max);
        assert!(most <= 1e-6, "{name} differs by up to {most}");
        // Biases begin at zero: what is there now is the step.
        let moved = sync.iter().map(|v| v.abs()).fold(0.0, f32::max);
        assert!(moved > 1e-3, "{name} has not moved");
    }
}

#[test]
fn who_drops_out_follows_from_the_seed_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = "--mode fedavg --model softmax --clients 10 --fraction 1 --rounds 8 --dropout 0.3";
    let runs = [2, 3].map(|workers| {
        let run = folder.path().join(workers.to_string());
        train(&run, &format!("{rounds} --workers {workers} --servers 2")).end(WITHIN).well();
        run
    });
    assert!(model(&runs[0]) == model(&runs[1]), "dropouts do not depend on the workers");
    assert_eq!(cohorts(&runs[0]), cohorts(&runs[1]));
    let summary = summary(&runs[0]);
    let [asked, aggregated, late, dropped] =
        ["asked", "aggregated", "late", "dropped"].map(|name| tally(&summary, name));
    assert_eq!(asked, [8; 10]);
    for client in 0..10 {
        let found = aggregated[client] + late[client] + dropped[client];
        assert_eq!(found, 8, "client {client} of {}", summary["client_tallies"]);
    }
    let dropped: u64 = dropped.iter().sum();
    assert!((10..=38).contains(&dropped), "{dropped} of 80 dropped out where 24 are to be expected");
    // A push is late where its round was abandoned: with fewer than half of the cohort.
    let late: u64 = late.iter().sum();
    assert_eq!(
        (summary["pushes_late"].as_u64(), summary["pushes"].as_u64()),
        (Some(late), Some(80 - dropped))
    );
    let abandoned = summary["rounds_abandoned"].as_u64().unwrap();
    assert_eq!(summary["steps"].as_u64(), Some(8 - abandoned));
    let closed = cohorts(&runs[0]).into_iter().filter(|(event, ..)| event == "closed");
    assert!(closed.into_iter().all(|(_, _, clients)| (5..=10).contains(&clients.len())));
}

#[test]
fn of_those_asked_the_first_make_the_cohort() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let rounds = "--mode fedavg --model softmax --clients 12 --cohort 4 --ask 6 --rounds 10";
    train(&run, &format!("{rounds} --workers 3 --servers 2")).end(WITHIN).well();
    let rounds = cohorts(&run);
    let opened: BTreeMap<u64, &Vec<u64>> = rounds
        .iter()
        .filter(|(event, ..)| event == "opened")
        .map(|(_, round, clients)| (*round, clients))
        .collect();
    let closed: Vec<_> = rounds.iter().filter(|(event, ..)| event == "closed").collect();
    assert_eq!((opened.len(), closed.len()), (10, 10));
    for (_, round, clients) in closed {
        assert_eq!((opened[round].len(), clients.len()), (6, 4), "round {round}");
        assert!(clients.iter().all(|client| opened[round].contains(client)), "round {round}");
    }
    let summary = summary(&run);
    let [asked, aggregated, late] = ["asked", "aggregated", "late"].map(|name| tally(&summary, name));
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    assert_eq!((sum(&asked), sum(&aggregated)), (60, 40));
    assert!((0..asked.len()).all(|i| aggregated[i] + late[i] <= asked[i]), "{}", summary["client_tallies"]);
    assert_eq!(summary["pushes_late"].as_u64(), Some(sum(&late)));
    assert_eq!(summary["pushes"].as_u64(), Some(40 + sum(&late)));
    // What the log says about pushes is what the summary says.
    let count =
        |event: &str| events(&run).iter().filter(|e| e["shard"] == 0 && e["event"] == event).count() as u64;
    assert_eq!((count("applied"), count("late")), (40, sum(&late)));
}
