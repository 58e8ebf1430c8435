//! Says what a simulated run consists of: the plan, the machines, the network and what goes wrong.

use std::fmt;

use windlass_common::ids::{ClientId, ServerId, WorkerId};
use windlass_common::optimizer::{Optimizer, Sgd};
use windlass_common::plan::{
    Checkpoints, Clients, Cluster, Codecs, Data, Every, FORMAT, Heterogeneity, LEASE_S, Membership, Mode,
    Model, Partition, Plan, STALL_DEADLINE_S, Training,
};
use windlass_common::schedule::Schedule;

use super::network::Place;
use crate::cluster::constant;
use crate::problem::{Bowls, Problem};

/// A simulated run. All times are in microseconds, all chances per million.
#[derive(Clone, Debug)]
pub struct Config {
    /// Decides what is left to chance.
    pub seed: u64,
    /// The way of training.
    pub mode: Mode,
    /// Worker processes.
    pub workers: u32,
    /// Server processes; the first has the coordinator.
    pub servers: u32,
    /// Shards of each server.
    pub shards_per_server: u32,
    /// Copies of each shard on other servers: 0 or 1.
    pub replicas: u32,
    /// Owners of data; without a number there is one for each worker.
    pub clients: Option<u32>,
    /// The chance of a client to drop out of a round.
    pub dropout: f64,
    /// What happens when a worker dies.
    pub membership: Membership,
    /// What the shards do with a gradient.
    pub optimizer: Optimizer,
    /// How values are written on the wire.
    pub codecs: Codecs,
    /// The learning rate.
    pub schedule: Schedule,
    /// Examples at which the training ends; of no meaning in fedavg.
    pub target: u64,
    /// So many examples or rounds are between two evaluation points.
    pub evaluate_every: u64,
    /// What is trained on.
    pub problem: Bowls,
    /// How long a step takes.
    pub compute: Compute,
    /// What the links are like.
    pub network: Network,
    /// The clocks are at most so much too fast or too slow.
    pub drift: i64,
    /// How often a shard is told the time, by its own clock.
    pub shard_tick: u64,
    /// Seconds that step 0 waits for everyone.
    pub join_deadline_s: u64,
    /// Seconds that a worker is waited for.
    pub rejoin_deadline_s: u64,
    /// Seconds after which a worker of which nothing is heard is silent.
    pub lease_s: u64,
    /// What whoever started the processes does when one ends.
    pub launcher: Launcher,
    /// The chance of a push to be delivered a second time.
    pub duplicates: u64,
    /// The chance that a push is followed by one that must be refused.
    pub probes: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// How often a checkpoint is kept, and how many.
    pub checkpoints: Checkpoints,
    /// What they are kept on.
    pub disk: Disk,
    /// The shortest and the longest time until a server that has ended badly is started again, if it is.
    pub server_restarts: Option<(u64, u64)>,
}

/// What checkpoints are kept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The shortest and the longest time that writing or reading one file takes.
    pub takes: (u64, u64),
    /// At most so much later is a new file seen.
    pub unseen: u64,
    /// The chance of a file to be lost with its machine although it was said to be written.
    pub unsynced: u64,
    /// The chance of a file to have other bytes than were written.
    pub damaged: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { takes: (100, 1_000), unseen: 0, unsynced: 0, damaged: 0 }
    }
}

/// How long a worker computes for one push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The mean.
    pub mean: u64,
    /// Whether times are drawn from an exponential distribution; otherwise all are the mean.
    pub is_exponential: bool,
    /// A worker that takes so many times as long.
    pub slow: Option<(WorkerId, u64)>,
}

/// What the links are like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Shortest and longest delay of a link; each has one of its own.
    pub delay: (u64, u64),
    /// Most that is added to the delay of a message.
    pub jitter: u64,
    /// The chance of a message to be lost, and sent again when the sender notices.
    pub loss: u64,
    /// Processes with a slow link in each direction, in bytes per second.
    pub slow: Vec<(Place, u64)>,
}

/// What whoever started the processes does when a worker ends badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launcher {
    /// How often each worker is started again.
    pub restarts: u32,
    /// The shortest and the longest time that this takes.
    pub after: (u64, u64),
    /// Whether it tells the coordinator that a process has ended.
    pub tells: bool,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When so many messages have been delivered.
    pub at: u64,
    /// What.
    pub what: What,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A process handles nothing for so long.
    Pause(Place, u64),
    /// A worker is killed.
    Crash(WorkerId),
    /// A worker that is not there is started.
    Join(WorkerId),
    /// A worker is told to go.
    Leave(WorkerId),
    /// A worker's connection to a server breaks, and the worker notices at once.
    Cut(WorkerId, ServerId),
    /// Nothing gets from the first to the second for so long, nor, if it is both ways, the other way.
    Partition {
        /// From here.
        from: Place,
        /// To there.
        to: Place,
        /// And back.
        is_both_ways: bool,
        /// For so long.
        lasts: u64,
    },
    /// A server is killed, and with server 0 the coordinator.
    CrashServer(ServerId),
    /// A server's machine goes down, and what its disk had only promised to keep is gone.
    CrashMachine(ServerId),
    /// Nothing can be written to where checkpoints are kept for so long.
    StuckDisk(u64),
    /// The result cannot be written.
    DiskFull,
    /// A worker ends the run for all.
    Abort(WorkerId),
    /// An observer has seen enough.
    Conclude,
}

impl Config {
    /// A run on one server with one shard, constant steps of 10 ms, fast links and nothing that goes wrong.
    pub fn new(seed: u64, mode: Mode, workers: u32, target: u64) -> Self {
        Self {
            seed,
            mode,
            workers,
            servers: 1,
            shards_per_server: 1,
            replicas: 0,
            clients: None,
            dropout: 0.0,
            membership: Membership::Fixed,
            optimizer: Optimizer::Sgd(Sgd::default()),
            codecs: Codecs::default(),
            schedule: constant(0.1),
            target,
            evaluate_every: 1 << 40,
            problem: Bowls { is_long: false, variables: 6, batch: 1 },
            compute: Compute { mean: 10_000, is_exponential: false, slow: None },
            network: Network { delay: (20, 50), jitter: 5, loss: 0, slow: Vec::new() },
            drift: 0,
            shard_tick: 1_000_000,
            join_deadline_s: 60,
            rejoin_deadline_s: 60,
            lease_s: LEASE_S,
            launcher: Launcher { restarts: 0, after: (0, 1), tells: false },
            duplicates: 0,
            probes: 0,
            faults: Vec::new(),
            checkpoints: Checkpoints::default(),
            disk: Disk::default(),
            server_restarts: None,
        }
    }

    /// Whether servers may go: others have copies, or the run goes back to its last checkpoint when they are started again.
    pub fn survives_servers(&self) -> bool {
        self.replicas > 0 || self.keeps_checkpoints() && self.server_restarts.is_some()
    }

    /// Whether there may be something to go back to.
    pub fn keeps_checkpoints(&self) -> bool {
        self.checkpoints.every != Every::Never
    }

    /// Most workers that may take part.
    pub fn workers_max(&self) -> u32 {
        match self.membership {
            Membership::Fixed => self.workers,
            Membership::Elastic { workers_max } => workers_max,
        }
    }

    /// Number of shards over all servers.
    pub fn shards(&self) -> u32 {
        self.servers * self.shards_per_server
    }

    /// The plan of this run.
    ///
    /// # Panics
    /// If the plan is not possible: then whoever made the configuration is wrong.
    pub fn plan(&self) -> Plan {
        let clients = self.clients.unwrap_or(self.workers_max());
        let plan = Plan {
            format: FORMAT,
            name: "simulated".into(),
            seed: 1 + self.seed % 1000,
            mode: self.mode.clone(),
            cluster: Cluster {
                servers: self.servers,
                shards_per_server: self.shards_per_server,
                replicas: self.replicas,
                workers: self.workers,
                membership: self.membership,
                join_deadline_s: self.join_deadline_s,
                rejoin_deadline_s: self.rejoin_deadline_s,
                lease_s: self.lease_s,
                stall_deadline_s: STALL_DEADLINE_S,
            },
            clients: Clients {
                count: clients,
                partition: Partition::Iid,
                held_out: 0.0,
                feature_noise: 0.0,
                sizes: (0..clients).map(|c| self.problem.client(ClientId(c)).examples).collect(),
            },
            heterogeneity: Heterogeneity { dropout: self.dropout, ..Heterogeneity::default() },
            training: Training {
                batch: 1,
                passes: 1.0,
                compute_threads: 1,
                evaluate_every: self.evaluate_every,
                overlap: true,
            },
            codecs: self.codecs,
            optimizer: self.optimizer,
            schedule: self.schedule.clone(),
            checkpoints: self.checkpoints,
            data: Data {
                path: String::new(),
                label_column: String::new(),
                validation: 0,
                train_examples: self.target,
                fingerprint: "0".repeat(16),
            },
            model: Model { name: "simulated".into(), variables: self.problem.variables() },
        };
        plan.check().unwrap_or_else(|e| panic!("{e}: {self}"));
        plan
    }

    /// Whether everything that goes wrong is such that the run must get over it: no server is away for long, and workers
    /// come back before the others give them up.
    pub fn must_complete(&self) -> bool {
        let away = |fault: &Fault| match fault.what {
            What::DiskFull | What::Abort(_) => u64::MAX,
            What::CrashServer(_) | What::CrashMachine(_) if self.server_restarts.is_none() => u64::MAX,
            _ if self.survives_servers() && self.keeps_checkpoints() => 0,
            What::CrashServer(_) | What::CrashMachine(_) => u64::MAX,
            // Before and after it, up to a keep-alive may pass in which nothing is heard.
            What::Pause(Place::Server(_), lasts) => lasts + 6_800_000,
            What::Partition { from: Place::Server(_), to: Place::Server(_), lasts, .. } => lasts + 6_800_000,
            What::Pause(..)
            | What::Partition { .. }
            | What::Crash(_)
            | What::Join(_)
            | What::Leave(_)
            | What::Cut(..)
            | What::StuckDisk(_)
            | What::Conclude => 0,
        };
        // Servers give each other up when nothing is heard for the idle timeout, by clocks that differ.
        self.faults.iter().map(away).fold(0, u64::saturating_add) <= 9_900_000
            // Where much is lost, a last word may be, and whoever said it has to come back for it.
            && (self.faults.is_empty() && self.network.loss <= 1_000
                || (self.launcher.restarts >= 100
                    && self.launcher.after.1 <= 5_000_000
                    && self.rejoin_deadline_s >= 150
                    && self.join_deadline_s >= 150))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(id) => write!(f, "s{}", id.0),
            Self::Worker(id) => write!(f, "w{}", id.0),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{} ", self.at)?;
        match self.what {
            What::Pause(place, lasts) => write!(f, "pause {place} {}ms", lasts / 1000),
            What::Crash(worker) => write!(f, "crash w{}", worker.0),
            What::Join(worker) => write!(f, "join w{}", worker.0),
            What::Leave(worker) => write!(f, "leave w{}", worker.0),
            What::Cut(worker, server) => write!(f, "cut w{}-s{}", worker.0, server.0),
            What::Partition { from, to, is_both_ways, lasts } => {
                let arrow = if is_both_ways { "<->" } else { "->" };
                write!(f, "partition {from}{arrow}{to} {}ms", lasts / 1000)
            }
            What::CrashServer(server) => write!(f, "crash s{}", server.0),
            What::CrashMachine(server) => write!(f, "crash machine s{}", server.0),
            What::StuckDisk(lasts) => write!(f, "stuck disk {}ms", lasts / 1000),
            What::DiskFull => f.write_str("disk full"),
            What::Abort(worker) => write!(f, "abort w{}", worker.0),
            What::Conclude => f.write_str("conclude"),
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, mode, workers, servers, shards_per_server, optimizer, target, .. } = self;
        write!(f, "seed {seed}: {mode:?}, {workers} workers, {servers}x{shards_per_server} shards")?;
        if let Membership::Elastic { workers_max } = self.membership {
            write!(f, ", elastic up to {workers_max}")?;
        }
        if let Some(clients) = self.clients {
            write!(f, ", {clients} clients")?;
        }
        write!(f, ", {optimizer}, rate {}, target {target}, ", self.schedule.rate)?;
        if self.codecs != Codecs::default() {
            write!(f, "{} up, {} down, ", self.codecs.push, self.codecs.pull)?;
        }
        let Compute { mean, is_exponential, slow } = self.compute;
        write!(f, "steps {}{mean}us", if is_exponential { "exponential " } else { "" })?;
        if let Some((worker, factor)) = slow {
            write!(f, " w{} x{factor}", worker.0)?;
        }
        let Network { delay, jitter, loss, slow } = &self.network;
        write!(f, ", delay {}-{}us jitter {jitter}us loss {loss}ppm", delay.0, delay.1)?;
        for (place, rate) in slow {
            write!(f, ", {place} {rate}B/s")?;
        }
        let Launcher { restarts, after, tells } = self.launcher;
        let (drift, rejoin, lease) = (self.drift, self.rejoin_deadline_s, self.lease_s);
        write!(f, ", drift {drift}, rejoin {rejoin}s, lease {lease}s, {restarts} restarts")?;
        write!(f, " after {}-{}ms{}", after.0 / 1000, after.1 / 1000, if tells { " told" } else { "" })?;
        if self.replicas > 0 {
            write!(f, ", {} replicas", self.replicas)?;
        }
        if self.survives_servers() {
            let Disk { takes, unseen, unsynced, damaged } = self.disk;
            write!(f, ", checkpoints every {} keep {}", self.checkpoints.every, self.checkpoints.keep)?;
            write!(f, " ({}-{}us, unseen {unseen}us", takes.0, takes.1)?;
            write!(f, ", unsynced {unsynced}ppm damaged {damaged}ppm)")?;
            if let Some((least, most)) = self.server_restarts {
                write!(f, ", servers again after {}-{}ms", least / 1000, most / 1000)?;
            }
        }
        f.write_str(", [")?;
        for (i, fault) in self.faults.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}
