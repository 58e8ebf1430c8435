//! The program `windlass-ps`: one parameter-server process.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use windlass_common::exit::{self, Exit};
use windlass_common::plan::Plan;
use windlass_process::{Failure, OrExit, interrupted, log_to_stderr, report, settle};
use windlass_ps::{Options, Part, serve};
use windlass_transport::Identity;

/// Holds a part of a model's variables and applies what workers push.
///
/// Server 0 coordinates the run and needs its plan; every other server needs the coordinator's address. They may start
/// in any order.
#[derive(Debug, Parser)]
#[command(name = "windlass-ps", version, after_help = exit::HELP)]
struct Flags {
    /// This server's identity, a PEM file made by `windlass identities`.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,

    /// The run's plan, made by `windlass plan`. For server 0, which coordinates the run.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "coordinator",
        conflicts_with = "coordinator"
    )]
    plan: Option<PathBuf>,

    /// Where server 0 is reached. For every other server.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Option<String>,

    /// Where to listen; port 0 takes any that is free. The first line of output tells which.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7171")]
    listen: SocketAddr,

    /// Where workers reach this server, if not at the address it is seen at and the port it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,

    /// Where the run leaves its plan, log, model and summary [default: runs/NAME]. For server 0.
    #[arg(long, value_name = "DIR", conflicts_with = "coordinator")]
    run_dir: Option<PathBuf>,

    /// Go on with the run in --run-dir from its newest sound checkpoint, or from its beginning if it has none. For server 0.
    #[arg(long, conflicts_with = "coordinator")]
    resume: bool,

    /// Where checkpoints are kept: a folder that every server can reach, or s3://BUCKET/PREFIX, gs:// or az:// in a build
    /// with --features object-store [default: RUN_DIR/checkpoints]. For server 0.
    #[arg(long, value_name = "LOCATION", conflicts_with = "coordinator")]
    checkpoints: Option<String>,

    /// How long to try to reach the coordinator, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    connect_deadline: u64,

    /// With how many threads this server's shards apply large slices (from 2^20 values); with 1, each on its own.
    #[arg(long, value_name = "THREADS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    apply_threads: u64,

    /// End when standard input ends, and with it the process that started this one.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn main() -> ExitCode {
    settle();
    let flags = Flags::parse();
    log_to_stderr();
    report(run(flags))
}

fn run(flags: Flags) -> Result<(), Failure> {
    let identity = Identity::load(&flags.identity).or_exit(Exit::Input)?;
    let part = match (flags.plan, flags.coordinator) {
        (Some(path), _) => {
            let name = || format!("could not use the plan {}", path.display());
            let text = std::fs::read_to_string(&path).with_context(name).or_exit(Exit::Input)?;
            let plan = Plan::parse(&text).with_context(name).or_exit(Exit::Input)?;
            let run_directory = flags.run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&plan.name));
            let (resume, checkpoints) = (flags.resume, flags.checkpoints);
            Part::Coordinator { plan: Box::new(plan), run_directory, resume, checkpoints }
        }
        (None, Some(coordinator)) => Part::Follower { coordinator },
        (None, None) => unreachable!("one of --plan and --coordinator is required"),
    };
    let options = Options {
        identity,
        listen: flags.listen,
        advertise: flags.advertise,
        part,
        connect_deadline: Duration::from_secs(flags.connect_deadline),
        apply_threads: flags.apply_threads as usize,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")
        .or_exit(Exit::System)?;
    runtime.block_on(async {
        let ready = |address| {
            // Whoever started this process may not be listening; that changes nothing.
            let _ = writeln!(std::io::stdout(), "listening on {address}");
        };
        serve(options, ready, interrupted(flags.exit_with_stdin)).await
    })
}
