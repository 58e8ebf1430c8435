//! The programs started by hand, in any order, with the fewest flags.

use std::net::UdpSocket;
use std::time::Duration;

use windlass_process_tests::{Running, mnist, model, start, summary, text};

#[test]
fn workers_first_then_servers_gives_the_same_bits_as_the_launcher() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let within = Duration::from_secs(120);
    let data = mnist();
    let flags =
        format!("--model softmax --servers 2 --workers 2 --passes 0.5 --seed 5 --data {}", text(&data));
    let windlass = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        start("windlass", &arguments, path)
    };
    windlass("identities --out ids --servers 2 --workers 2").end(within).well();
    windlass(&format!("plan {flags} --name by-hand --out plan.toml")).end(within).well();
    // A port that is free now; the test machine's ports are not in short supply.
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let coordinator = free.local_addr().unwrap().to_string();
    drop(free);
    let worker = |n: usize| -> Running {
        let identity = format!("ids/worker-{n}.pem");
        start("windlass-worker", &["--identity", &identity, "--coordinator", &coordinator], path)
    };
    let first = worker(1);
    let follower =
        ["--identity", "ids/server-1.pem", "--coordinator", &coordinator, "--listen", "127.0.0.1:0"];
    let follower = start("windlass-ps", &follower, path);
    let leader = ["--identity", "ids/server-0.pem", "--plan", "plan.toml", "--listen", &coordinator];
    let leader = start("windlass-ps", &leader, path);
    let second = worker(0);
    for running in [first, second, follower, leader] {
        running.end(within).well();
    }
    let by_hand = path.join("runs/by-hand");
    assert_eq!(summary(&by_hand)["completed"], true);
    let scored = windlass("eval runs/by-hand").end(within).well();
    assert!(scored.stdout.contains("accuracy"), "{}", scored.stdout);

    let launched = path.join("launched");
    windlass(&format!("train --quiet {flags} --run-dir {}", text(&launched))).end(within).well();
    assert_eq!(model(&by_hand), model(&launched));
}
