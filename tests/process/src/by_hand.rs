//! Starts the programs of a run one by one, the workers through relays if that is asked for, and starts workers again.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::relay::{Counts, Faults, Relay};
use crate::{Ended, LOOK, Running, count_of_pushes, log, mnist, pause, start, text};

/// Nothing that is done here takes so long.
const WITHIN: Duration = Duration::from_secs(240);

/// A run whose processes are started one by one. What still runs is killed when it is dropped.
#[derive(Debug)]
pub struct ByHand {
    folder: TempDir,
    servers: Vec<Running>,
    workers: Vec<Running>,
    relays: Vec<Relay>,
    /// Where workers reach the coordinator.
    coordinator: SocketAddr,
    run: PathBuf,
}

/// How a run that was started by hand ended.
#[derive(Debug)]
pub struct Finished {
    /// Where it left what it made; the folder lives as long as this.
    pub run: PathBuf,
    /// The last life of each worker, in order.
    pub workers: Vec<Ended>,
    /// What each server's relay did; none without faults.
    pub counts: Vec<Counts>,
    _folder: TempDir,
}

impl Finished {
    /// The steps that the last life of a worker computed, as it said itself.
    ///
    /// # Panics
    /// If it did not.
    pub fn steps(&self, worker: usize) -> u64 {
        let said = &self.workers[worker].stderr;
        let (_, after) = said.rsplit_once("steps=").expect("a worker tells its steps when it ends");
        let number = after.split_whitespace().next().and_then(|number| number.parse().ok());
        number.expect("steps are a number")
    }
}

impl ByHand {
    /// Makes identities and a plan with these flags on the real MNIST, and starts everything; with `faults` the workers
    /// reach each server through a relay of its own.
    ///
    /// # Panics
    /// If something cannot be made or started.
    pub fn start(servers: u32, workers: u32, flags: &str, faults: Option<(&Faults, u64)>) -> Self {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let path = folder.path();
        let data = mnist();
        let windlass = |arguments: &str| {
            let arguments: Vec<&str> = arguments.split_whitespace().collect();
            start("windlass", &arguments, path).end(WITHIN).well();
        };
        windlass(&format!("identities --out ids --servers {servers} --workers {workers}"));
        windlass(&format!(
            "plan {flags} --servers {servers} --workers {workers} --data {} --name run --out plan.toml",
            text(&data)
        ));
        // Ports that are free now; the test machine's ports are not in short supply.
        let free: Vec<UdpSocket> = (0..servers)
            .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free"))
            .collect();
        let addresses: Vec<SocketAddr> =
            free.iter().map(|socket| socket.local_addr().expect("it is bound")).collect();
        let relays: Vec<Relay> = match faults {
            Some((faults, seed)) => (0..)
                .zip(&addresses)
                .map(|(server, &address)| {
                    let seed = seed.wrapping_mul(1 << 8).wrapping_add(server);
                    Relay::start(address, faults.clone(), seed).expect("a relay needs two sockets")
                })
                .collect(),
            None => Vec::new(),
        };
        drop(free);
        let reached = |server: usize| relays.get(server).map_or(addresses[server], Relay::address);
        let (leader, coordinator) = (addresses[0].to_string(), reached(0));
        let servers = (0..servers as usize).map(|server| {
            let (identity, listen) = (format!("ids/server-{server}.pem"), addresses[server].to_string());
            let advertise = reached(server).to_string();
            let part = if server == 0 { ["--plan", "plan.toml"] } else { ["--coordinator", &leader] };
            let common = [
                "--identity",
                &identity,
                "--listen",
                &listen,
                "--advertise",
                &advertise,
                "--exit-with-stdin",
            ];
            start("windlass-ps", &[&common[..], &part].concat(), path)
        });
        let servers = servers.collect();
        let run = path.join("runs/run");
        let mut this = Self { folder, servers, workers: Vec::new(), relays, coordinator, run };
        this.workers = (0..workers as usize).map(|worker| this.worker(worker)).collect();
        this
    }

    fn worker(&self, worker: usize) -> Running {
        let identity = format!("ids/worker-{worker}.pem");
        let coordinator = self.coordinator.to_string();
        let reached = ["--identity", &identity, "--coordinator", &coordinator];
        let arguments = [&reached[..], &["--connect-deadline", "60", "--exit-with-stdin"]].concat();
        start("windlass-worker", &arguments, self.folder.path())
    }

    /// Waits until the run's log holds this many lines about pushes. It is written a few times a second.
    ///
    /// # Panics
    /// If it does not in time, or a program has ended before: the run was to go on for longer.
    pub fn pushes(&mut self, count: usize) {
        let start = Instant::now();
        loop {
            let begun = Instant::now();
            if count_of_pushes(&log(&self.run)) >= count {
                return;
            }
            let ended = self.servers.iter_mut().chain(&mut self.workers).any(Running::has_ended);
            if ended || start.elapsed() > WITHIN {
                let found = count_of_pushes(&log(&self.run));
                self.give_up(&format!("the log has {found} pushes of {count}"));
            }
            std::thread::sleep(pause(begun));
        }
    }

    /// Sends a signal to a worker.
    pub fn signal(&self, worker: usize, signal: Signal) {
        self.workers[worker].signal(signal);
    }

    /// Kills a worker, if it still runs, and starts it again with the same identity.
    pub fn restart(&mut self, worker: usize) {
        // Dropping the one that it replaces would come too late: there must be one of each identity.
        self.workers[worker].kill();
        self.workers[worker] = self.worker(worker);
    }

    /// Waits until all have ended, and well.
    ///
    /// # Panics
    /// If one did not, with what all of them said.
    pub fn finish(mut self) -> Finished {
        let start = Instant::now();
        loop {
            let all = self.servers.iter_mut().chain(&mut self.workers);
            let codes: Vec<Option<Option<i32>>> = all.map(Running::code).collect();
            if codes.iter().all(|code| *code == Some(Some(0))) {
                break;
            }
            if codes.iter().any(|code| code.is_some_and(|code| code != Some(0))) {
                self.give_up("a program has not ended well");
            }
            if start.elapsed() > WITHIN {
                self.give_up("some had not ended in time");
            }
            std::thread::sleep(LOOK);
        }
        let counts = self.relays.iter().map(Relay::counts).collect();
        let workers = self.workers.drain(..).map(|worker| worker.end(WITHIN)).collect();
        Finished { run: self.run, workers, counts, _folder: self.folder }
    }

    /// Cuts all workers off from all servers for so long, and waits until that is over.
    pub fn cut(&self, lasts: Duration) {
        for relay in &self.relays {
            relay.cut(lasts);
        }
        std::thread::sleep(lasts);
    }

    fn give_up(&mut self, why: &str) -> ! {
        // Those that are well get a moment to say that they miss the others.
        std::thread::sleep(Duration::from_secs(1));
        let mut said = String::new();
        for running in self.servers.drain(..).chain(self.workers.drain(..)) {
            said += &running.last_words();
        }
        let counts: Vec<Counts> = self.relays.iter().map(Relay::counts).collect();
        panic!("{why}; relays {counts:?}\n{said}");
    }
}
