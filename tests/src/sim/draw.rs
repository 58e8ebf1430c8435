//! Draws a whole simulated run from a seed.

use windlass_common::codec::Codec;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::optimizer::{Adam, FedAdam, FedYogi, Momentum, Nesterov, Optimizer, Sgd};
use windlass_common::plan::{
    Checkpoints, Codecs, Every, Fedavg, Hosting, Membership, Mode, Sampler, Stale, StalenessScaling, Weights,
};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::schedule::{Schedule, Shape};

use super::config::{Compute, Config, Disk, Fault, Launcher, Network, What};
use super::network::Place;
use crate::cluster::{fedavg, local};
use crate::problem::Bowls;

/// What goes on for long is drawn up to this.
const LONG: u64 = 30_000_000;

/// The kinds of modes that a seed can draw.
pub const KINDS: [&str; 10] =
    ["sync", "backup", "async", "ssp", "softsync", "batchsync", "fedavg", "quorum", "fedbuff", "fedasync"];

/// Numbers from a stream, in the forms that are needed here.
struct Draw(Rng);

impl Draw {
    /// From `least` to `most`, both possible.
    fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.below(most - least + 1)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.below(of.len() as u64) as usize]
    }

    /// One time in `of`.
    fn once_in(&mut self, of: u64) -> bool {
        self.0.below(of) == 0
    }

    /// From `least` to `most`, each order of magnitude with the same chance.
    fn scale(&mut self, least: u64, most: u64) -> u64 {
        let (least, most) = (least as f64, most as f64);
        (least * libm::pow(most / least, self.0.unit())) as u64
    }
}

/// The kind of mode that a seed draws, as [`KINDS`] names it.
pub fn kind(seed: u64) -> &'static str {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(0)));
    draw.one(&KINDS)
}

impl Config {
    /// The run that a seed stands for. The seed decides everything.
    pub fn drawn(seed: u64) -> Self {
        let mut draw = Draw(Rng::new(seed, Purpose::Simulation(1)));
        let workers = draw.within(1, 6) as u32;
        let servers = draw.one(&[1, 1, 2, 3]);
        let shards_per_server = draw.within(1, 2) as u32;
        let clients = workers + draw.within(0, 6) as u32;
        let mode = mode(seed, &mut draw, workers, clients);
        let pushes = draw.within(3, 25);
        let batch = draw.within(1, 4) as u32;
        let is_long = draw.once_in(12);
        let work = 2 * u64::from(batch) + u64::from(batch) / 2;
        let rate = draw.one(&[0.5, 0.1, 0.03]);
        let shape = match draw.within(0, 2) {
            0 => Shape::Constant,
            1 => Shape::Cosine { final_share: 0.01 },
            _ => Shape::Step { at: vec![0.5, 0.75], factor: 0.1 },
        };
        let mut config = Self {
            servers,
            shards_per_server,
            clients: mode.local().is_some().then_some(clients),
            dropout: if matches!(mode, Mode::Fedavg(_)) { draw.one(&[0.0, 0.0, 0.2, 0.5]) } else { 0.0 },
            optimizer: optimizer(&mut draw, &mode),
            schedule: Schedule { rate, warm_up: draw.one(&[0.0, 0.2]), shape },
            problem: Bowls { is_long, variables: 6 + draw.within(0, 3) as u32, batch },
            compute: compute(&mut draw, workers),
            network: network(&mut draw, workers, servers),
            evaluate_every: draw.one(&[1, 7, 100]),
            drift: draw.one(&[0, 1_000, 50_000]),
            shard_tick: draw.one(&[100_000, 1_000_000]),
            duplicates: draw.one(&[0, 10_000, 50_000]),
            probes: draw.one(&[0, 10_000, 50_000]),
            ..Self::new(seed, mode, workers, pushes * u64::from(workers) * work)
        };
        config.join_deadline_s = draw.one(&[30, 60, 150]);
        config.rejoin_deadline_s = draw.one(&[5, 20, 60, 150, 150, 150]);
        config.lease_s = draw.one(&[3, 10, 10, 30]);
        config.launcher = launcher(&mut draw);
        let workers_max = workers + draw.within(0, 3) as u32;
        let is_elastic = draw.once_in(2);
        if is_elastic {
            config.membership = Membership::Elastic { workers_max };
            config.clients = config.clients.map(|clients| clients.max(workers_max));
        }
        let deliveries = pushes * u64::from(workers) * u64::from(config.shards()) * 4 + 30;
        if !draw.once_in(5) {
            if draw.once_in(2) {
                // A run that must get over everything.
                let tells = config.launcher.tells;
                config.launcher = Launcher { restarts: 1000, after: (50_000, 5_000_000), tells };
                (config.join_deadline_s, config.rejoin_deadline_s) = (150, 150);
            }
            config.faults = faults(&mut draw, workers, servers, deliveries);
            if is_elastic {
                come_and_go(&mut draw, workers_max, deliveries, &mut config.faults);
            }
        }
        keep_checkpoints(seed, deliveries, &mut config);
        keep_copies(seed, deliveries, &mut config);
        config.codecs = codecs(seed);
        compensate(seed, &mut config);
        compute_ahead(seed, &mut config);
        config
    }
}

/// Some runs keep checkpoints, and in those servers go down and come back. The numbers are of a stream of their own, so that
/// all else is as without.
fn keep_checkpoints(seed: u64, deliveries: u64, config: &mut Config) {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(4)));
    if !draw.once_in(3) {
        return;
    }
    let (steps, seconds) = (draw.one(&[1, 2, 3, 8]), draw.within(1, 4));
    let every = if draw.once_in(4) { Every::Seconds(seconds) } else { Every::Steps(steps) };
    config.checkpoints = Checkpoints { every, keep: draw.within(1, 3) as u32 };
    // Steps must not all be made before the coordinator has heard of the first.
    config.compute.mean = config.compute.mean.max(draw.scale(5_000, 100_000));
    config.shard_tick = 100_000;
    let least = draw.scale(50, 20_000);
    config.disk = Disk {
        takes: (least, least * draw.one(&[1, 3, 20])),
        unseen: draw.one(&[0, 0, 100_000, 3_000_000]),
        unsynced: draw.one(&[0, 0, 200_000, 1_000_000]),
        damaged: draw.one(&[0, 0, 0, 50_000, 200_000]),
    };
    let restarts = [(50_000, 500_000), (50_000, 5_000_000), (1_000_000, 20_000_000)];
    config.server_restarts = Some(draw.one(&restarts));
    if !draw.once_in(4) {
        // Workers must be there for as long as servers are.
        let tells = config.launcher.tells;
        config.launcher = Launcher { restarts: 1000, after: (50_000, 5_000_000), tells };
        (config.join_deadline_s, config.rejoin_deadline_s) = (150, 150);
    }
    for _ in 0..draw.within(0, 4) {
        let server = ServerId(draw.within(0, u64::from(config.servers) - 1) as u32);
        let what = match draw.within(0, 6) {
            0 => What::StuckDisk(draw.scale(10_000, LONG)),
            1 | 2 => What::CrashMachine(server),
            _ => What::CrashServer(server),
        };
        // Most come when there may be a checkpoint to go on from.
        let least = if draw.once_in(3) { 0 } else { deliveries / 3 };
        config.faults.push(Fault { at: draw.within(least, deliveries * 3 / 2), what });
    }
    config.faults.sort_by_key(|f| f.at);
}

/// In some runs each shard has a copy on another server, and any server may go. The numbers are of a stream of their own too.
fn keep_copies(seed: u64, deliveries: u64, config: &mut Config) {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(6)));
    let is_possible = match config.mode {
        Mode::Sync { backup } => backup == 0,
        Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedavg(_) => true,
        Mode::Softsync { .. } | Mode::Fedbuff { .. } | Mode::Fedasync { .. } => false,
    };
    // A fifth of all is two fifths of those in which it is possible.
    if !is_possible || draw.within(1, 5) > 2 {
        return;
    }
    if let Mode::Sync { .. } = config.mode {
        config.membership = Membership::Fixed;
        config.faults.retain(|fault| !matches!(fault.what, What::Join(_) | What::Leave(_)));
    }
    let servers = config.servers.max(draw.within(2, 4) as u32);
    (config.replicas, config.servers) = (1, servers);
    if servers == 4 {
        // The models are too small for more.
        config.shards_per_server = 1;
    }
    config.network.slow.retain(|(place, _)| matches!(place, Place::Worker(_)));
    config.compute.mean = config.compute.mean.max(draw.scale(5_000, 200_000));
    config.shard_tick = 100_000;
    let after = [None, Some((50_000, 500_000)), Some((50_000, 5_000_000)), Some((1_000_000, 20_000_000))];
    config.server_restarts = draw.one(&after);
    if !draw.once_in(4) {
        let tells = config.launcher.tells;
        config.launcher = Launcher { restarts: 1000, after: (50_000, 5_000_000), tells };
        (config.join_deadline_s, config.rejoin_deadline_s) = (150, 150);
    }
    if draw.once_in(4) {
        config.faults.retain(|fault| matches!(fault.what, What::Crash(_)));
    }
    for _ in 0..draw.one(&[0, 1, 1, 1, 2, 3, 5]) {
        let server = ServerId(draw.within(0, u64::from(servers) - 1) as u32);
        let other = ServerId((server.0 + draw.within(1, u64::from(servers) - 1) as u32) % servers);
        let (here, lasts) = (Place::Server(server), draw.scale(10_000, LONG));
        let what = match draw.within(0, 9) {
            0..=3 => What::CrashServer(server),
            4 => What::CrashMachine(server),
            5 => What::Pause(here, lasts),
            // A primary and its standby, or a server and the coordinator.
            6 | 7 => partition(&mut draw, here, Place::Server(other), lasts),
            _ if server.0 > 0 => partition(&mut draw, here, Place::Server(ServerId(0)), lasts),
            _ => What::CrashServer(server),
        };
        // A copy is filled soon after its primary begins, and after another has gone.
        let at = match draw.within(0, 3) {
            0 => draw.within(0, 60 + u64::from(servers) * 20),
            _ => draw.within(0, deliveries * 2),
        };
        config.faults.push(Fault { at, what });
        if draw.once_in(4) {
            let at = at + draw.within(1, 200);
            config.faults.push(Fault { at, what: What::CrashServer(other) });
        }
    }
    config.faults.sort_by_key(|f| f.at);
}

/// In a third of the runs values are written otherwise than as f32; not as f16, whose range is left by runs that diverge.
/// The numbers are of a stream of their own, too.
fn codecs(seed: u64) -> Codecs {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(7)));
    if !draw.once_in(3) {
        return Codecs::default();
    }
    let mut all: Vec<Codec> = Codec::all().into_iter().filter(|codec| *codec != Codec::F16).collect();
    all.push("topk:20%".parse().expect("it is a codec"));
    let push = draw.one(&all);
    let mut pulls: Vec<Codec> = Codec::for_pulls().into_iter().filter(|codec| *codec != Codec::F16).collect();
    pulls.push("topk:20%".parse().expect("it is a codec"));
    Codecs { push, pull: draw.one(&pulls) }
}

/// Half of the runs in which it is possible are compensated. A velocity swings further and further here where others are in
/// between, and the square of its gradients would soon be infinite. The numbers are of a stream of their own, too.
fn compensate(seed: u64, config: &mut Config) {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(8)));
    let drawn = draw.one(&[None, None, None, Some(0.0), Some(0.04), Some(0.04), Some(0.2), Some(0.2)]);
    let swings = matches!(config.optimizer, Optimizer::Momentum(_) | Optimizer::Nesterov(_));
    if swings {
        return;
    }
    if let Mode::Async { compensation, .. } | Mode::Ssp { compensation, .. } = &mut config.mode {
        *compensation = drawn;
    }
}

/// In a third of the runs in which it is possible workers compute ahead. The numbers are of a stream of their own, too.
fn compute_ahead(seed: u64, config: &mut Config) {
    let mut draw = Draw(Rng::new(seed, Purpose::Simulation(9)));
    let is_drawn = draw.once_in(3);
    if let Mode::Async { in_flight, .. } | Mode::Ssp { staleness: None | Some(1..), in_flight, .. } =
        &mut config.mode
    {
        *in_flight = 1 + u32::from(is_drawn);
    }
}

fn scaling(draw: &mut Draw) -> StalenessScaling {
    match draw.within(0, 3) {
        0 => StalenessScaling::None,
        1 => StalenessScaling::Inverse,
        2 => StalenessScaling::Polynomial { exponent: 0.5 },
        _ => StalenessScaling::Hinge { a: 2.0, b: 1.0 },
    }
}

fn mode(seed: u64, draw: &mut Draw, workers: u32, clients: u32) -> Mode {
    let scaling = scaling(draw);
    let buffer = draw.within(1, u64::from(workers) + 2) as u32;
    let work = local(draw.one(&[0.1, 0.3]));
    match kind(seed) {
        "backup" if workers > 1 => Mode::Sync { backup: draw.within(1, u64::from(workers) - 1) as u32 },
        "sync" | "backup" => Mode::Sync { backup: 0 },
        "async" => Mode::Async { scaling, compensation: None, in_flight: 1 },
        "ssp" => {
            let staleness = draw.one(&[Some(0), Some(1), Some(2), Some(5), None]);
            Mode::Ssp { staleness, scaling, compensation: None, in_flight: 1 }
        }
        "softsync" => Mode::Softsync { buffer, scaling, stale: Stale::Kept },
        "batchsync" => Mode::Softsync { buffer, scaling, stale: Stale::Late },
        "fedbuff" => Mode::Fedbuff { buffer, scaling, local: work },
        "fedasync" => Mode::Fedasync { scaling, local: work },
        kind => {
            let cohort = draw.within(1, u64::from(clients)) as u32;
            let mut rounds = Fedavg {
                sampler: match draw.within(0, 3) {
                    0 => Sampler::BySize,
                    1 => Sampler::RoundRobin,
                    _ => Sampler::Uniform,
                },
                weights: draw.one(&[Weights::Examples, Weights::Uniform]),
                hosting: draw.one(&[Hosting::Balanced, Hosting::Fixed]),
                ..fedavg(draw.within(2, 15), cohort, work.rate)
            };
            if kind == "quorum" {
                rounds.asked = draw.within(u64::from(cohort), u64::from(clients)) as u32;
                rounds.quorum = draw.within(1, u64::from(cohort)) as u32;
                rounds.deadline_ms = draw.one(&[None, Some(50), Some(500), Some(5_000)]);
            }
            Mode::Fedavg(rounds)
        }
    }
}

fn optimizer(draw: &mut Draw, mode: &Mode) -> Optimizer {
    let drawn = draw.one(&[
        Optimizer::Sgd(Sgd::default()),
        Optimizer::Momentum(Momentum::default()),
        Optimizer::Nesterov(Nesterov { mu: 0.8, weight_decay: 0.0 }),
        Optimizer::Adam(Adam::default()),
        Optimizer::FedAdam(FedAdam::default()),
        Optimizer::FedYogi(FedYogi::default()),
    ]);
    if matches!(mode, Mode::Fedasync { .. }) { Optimizer::Sgd(Sgd::default()) } else { drawn }
}

fn compute(draw: &mut Draw, workers: u32) -> Compute {
    let slow = draw.once_in(3).then(|| {
        let worker = WorkerId(draw.within(0, u64::from(workers) - 1) as u32);
        (worker, draw.within(2, 8))
    });
    Compute { mean: draw.scale(500, 500_000), is_exponential: draw.once_in(2), slow }
}

fn network(draw: &mut Draw, workers: u32, servers: u32) -> Network {
    let least = draw.scale(20, 20_000);
    let slow = draw.once_in(6).then(|| (place(draw, workers, servers), draw.scale(50_000, 10_000_000)));
    Network {
        delay: (least, least * draw.one(&[1, 2, 10])),
        jitter: draw.one(&[0, least / 2, 5 * least]),
        loss: draw.one(&[0, 0, 1_000, 20_000, 100_000]),
        slow: slow.into_iter().collect(),
    }
}

fn launcher(draw: &mut Draw) -> Launcher {
    let after = draw.one(&[(50_000, 500_000), (50_000, 5_000_000), (1_000_000, 200_000_000)]);
    Launcher { restarts: draw.one(&[0, 1, 3, 1000]), after, tells: draw.once_in(2) }
}

fn place(draw: &mut Draw, workers: u32, servers: u32) -> Place {
    match draw.within(0, u64::from(workers + servers) - 1) as u32 {
        worker if worker < workers => Place::Worker(WorkerId(worker)),
        other => Place::Server(ServerId(other - workers)),
    }
}

fn faults(draw: &mut Draw, workers: u32, servers: u32, deliveries: u64) -> Vec<Fault> {
    let count = draw.one(&[1, 1, 2, 2, 3, 4, 6, 10]);
    let has_deadly = draw.once_in(8);
    let mut faults: Vec<Fault> = (0..count)
        .map(|number| {
            // At any time, and rather often while everyone is joining.
            let at = if draw.once_in(5) { draw.within(0, 60) } else { draw.within(0, deliveries) };
            let what = if number == 0 && has_deadly {
                deadly(draw, workers, servers)
            } else {
                fault(draw, workers, servers)
            };
            Fault { at, what }
        })
        .collect();
    faults.sort_by_key(|f| f.at);
    faults
}

/// Workers join and leave by themselves. Worker 0 does not leave: somebody has to be there at the end.
fn come_and_go(draw: &mut Draw, workers_max: u32, deliveries: u64, faults: &mut Vec<Fault>) {
    for _ in 0..draw.within(0, 4) {
        let worker = WorkerId(draw.within(0, u64::from(workers_max) - 1) as u32);
        let what = if worker.0 > 0 && draw.once_in(2) { What::Leave(worker) } else { What::Join(worker) };
        faults.push(Fault { at: draw.within(0, deliveries), what });
    }
    faults.sort_by_key(|f| f.at);
}

fn deadly(draw: &mut Draw, workers: u32, servers: u32) -> What {
    match draw.within(0, 5) {
        0 => What::DiskFull,
        1 => What::Abort(WorkerId(draw.within(0, u64::from(workers) - 1) as u32)),
        _ => What::CrashServer(ServerId(draw.within(0, u64::from(servers) - 1) as u32)),
    }
}

fn fault(draw: &mut Draw, workers: u32, servers: u32) -> What {
    let worker = WorkerId(draw.within(0, u64::from(workers) - 1) as u32);
    let server = ServerId(draw.within(0, u64::from(servers) - 1) as u32);
    let lasts = draw.scale(10_000, LONG);
    // Servers that are away for long end the run; most are not.
    let short = if draw.once_in(4) { lasts } else { lasts.min(2_000_000) };
    match draw.within(0, 9) {
        0 if draw.once_in(4) => What::Conclude,
        0..=2 => What::Crash(worker),
        3 => What::Pause(Place::Worker(worker), lasts),
        4 => What::Pause(Place::Server(server), short),
        5 | 6 => What::Cut(worker, server),
        7 | 8 => partition(draw, Place::Worker(worker), Place::Server(server), lasts),
        _ if server.0 > 0 => partition(draw, Place::Server(ServerId(0)), Place::Server(server), short),
        _ => What::Crash(worker),
    }
}

fn partition(draw: &mut Draw, a: Place, b: Place, lasts: u64) -> What {
    let (from, to) = if draw.once_in(2) { (a, b) } else { (b, a) };
    What::Partition { from, to, is_both_ways: draw.once_in(2), lasts }
}
