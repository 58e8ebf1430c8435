//! Makes the plan of a benchmark and serves it in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use windlass_common::ids::{ServerId, WorkerId};
use windlass_common::plan::{
    Clients, Cluster, Codecs, Data, FORMAT, Heterogeneity, LEASE_S, Membership, Mode, Model, Plan,
    STALL_DEADLINE_S, StalenessScaling, Training,
};
use windlass_common::schedule::{Schedule, Shape};
use windlass_ps::{Options, Part};
use windlass_transport::{Identity, Role, RunAuthority};
use windlass_worker::models;

/// A plan for async training of a built-in model that ends after so many pushes of one example.
///
/// # Errors
/// If there is no such model.
pub fn plan(model: &str, workers: u32, pushes: u64) -> anyhow::Result<Plan> {
    let variables = models::by_name(model)?.variables();
    Ok(Plan {
        format: FORMAT,
        name: "benchmark".into(),
        seed: 1,
        mode: Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 },
        cluster: Cluster {
            servers: 1,
            shards_per_server: 1,
            replicas: 0,
            workers,
            membership: Membership::Fixed,
            join_deadline_s: 30,
            rejoin_deadline_s: 30,
            lease_s: LEASE_S,
            stall_deadline_s: STALL_DEADLINE_S,
        },
        clients: Clients::one_per_worker(workers),
        codecs: Codecs::default(),
        heterogeneity: Heterogeneity::default(),
        training: Training {
            batch: 1,
            passes: 1.0,
            compute_threads: 1,
            evaluate_every: i64::MAX as u64,
            overlap: true,
        },
        optimizer: "sgd".parse()?,
        schedule: Schedule { rate: 1e-6, warm_up: 0.0, shape: Shape::Constant },
        checkpoints: Default::default(),
        data: Data {
            path: String::new(),
            label_column: String::new(),
            validation: 0,
            train_examples: pushes,
            fingerprint: String::new(),
        },
        model: Model { name: model.into(), variables },
    })
}

/// The identities of one server and some workers.
#[derive(Debug)]
pub struct Identities {
    /// Server 0.
    pub server: Identity,
    /// By number.
    pub workers: Vec<Identity>,
}

impl Identities {
    /// Makes them anew.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn new(workers: u32) -> anyhow::Result<Self> {
        let authority = RunAuthority::new("benchmark")?;
        let workers = (0..workers).map(|w| authority.issue(Role::Worker(WorkerId(w))));
        let workers = workers.collect::<Result<_, _>>()?;
        Ok(Self { server: authority.issue(Role::Server(ServerId(0)))?, workers })
    }
}

/// Serves the plan on a thread of its own, with the runtime of the program, and returns the address. The thread ends with
/// the run.
///
/// # Errors
/// If the server cannot be started.
pub fn serve(plan: Plan, identity: Identity, directory: &Path) -> anyhow::Result<SocketAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    let run_directory: PathBuf = directory.join("run");
    std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let options = Options {
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            part: Part::Coordinator { plan: Box::new(plan), run_directory, resume: false, checkpoints: None },
            connect_deadline: Duration::from_secs(10),
            apply_threads: 1,
        };
        let ready = move |address| {
            let _ = tell.send(address);
        };
        Ok(runtime.block_on(windlass_ps::serve(options, ready, std::future::pending()))?)
    });
    told.recv_timeout(Duration::from_secs(10)).context("the server did not start")
}
