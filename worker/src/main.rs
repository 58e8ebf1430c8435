//! The program `windlass-worker`: one computing process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use windlass_common::exit::{self, Exit};
use windlass_process::{Failure, OrExit, interrupted, log_to_stderr, report, settle};
use windlass_transport::Identity;
use windlass_worker::client::{JoinOptions, Patience};
use windlass_worker::training::{TrainingOptions, train};

/// Computes gradients on its share of the data and trains a model together with others.
///
/// It receives the run's plan from the coordinator, and may be started before it.
#[derive(Debug, Parser)]
#[command(name = "windlass-worker", version, after_help = exit::HELP)]
struct Flags {
    /// This worker's identity, a PEM file made by `windlass identities`.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,

    /// Where server 0 is reached.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,

    /// Where this machine has the data: a folder of IDX files, a folder with train.csv and test.csv, or a CSV file
    /// [default: the path in the plan].
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    /// How long to try to reach the coordinator and each server, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    connect_deadline: u64,

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
    let connect_deadline = Duration::from_secs(flags.connect_deadline);
    let join = JoinOptions {
        coordinator: flags.coordinator,
        identity,
        connect_deadline,
        patience: Patience::default(),
    };
    train(TrainingOptions { join, data: flags.data }, interrupted(flags.exit_with_stdin))
}
