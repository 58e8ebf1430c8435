//! The program `windlass`: starts, watches, scores and plans training runs.

mod asked;
mod checkpoint;
mod children;
mod compare;
mod drain;
mod eval;
mod evaluator;
mod failure;
mod figures;
mod flags;
mod identities;
mod judge;
mod lookout;
mod machine;
mod model_file;
mod plan;
mod problem;
mod programs;
mod recipe;
mod reproduce;
mod run_directory;
mod show;
mod signals;
mod stolen;
mod summary;
mod top;
mod train;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use tracing_subscriber::EnvFilter;
use windlass_common::exit::Exit;

use crate::failure::{Failure, OrExit, Outcome};
use crate::flags::{BenchCommand, BenchFlags, Command};

fn main() -> ExitCode {
    let began = SystemTime::now();
    let cli = flags::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match run(cli.command, began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn run(command: Command, began: SystemTime) -> Outcome<()> {
    match command {
        Command::Train(flags) => on_runtime(train::run(flags, began)),
        Command::Compare(flags) => on_runtime(compare::run(flags)),
        Command::Reproduce(flags) => on_runtime(reproduce::run(flags)),
        Command::Plan(flags) => plan::run(&flags),
        Command::Eval(flags) => eval::run(&flags),
        Command::Identities(flags) => identities::run(&flags),
        Command::Watch(flags) => on_runtime(watch::run(flags)),
        Command::Checkpoint(flags) => checkpoint::run(flags),
        Command::Drain(flags) => on_runtime(drain::run(flags)),
        Command::Top(flags) => on_runtime(top::run(flags)),
        Command::Bench(BenchFlags { what: BenchCommand::Machine(flags) }) => {
            // As in servers and workers.
            windlass_process::settle();
            machine::run(&flags)
        }
    }
}

/// Runs a command that talks to other processes. Two threads are enough to watch, and leave the cores to the run.
fn on_runtime(command: impl Future<Output = Outcome<()>>) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_fail(Exit::System, "could not start the threads that talk to other processes")?;
    let outcome = runtime.block_on(command);
    // A thread that still loads data or scores a snapshot is not worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// Tells the person what went wrong. Where nobody can read it there is nobody to tell that to either.
fn complain(failure: &Failure) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {}", failure.sentence());
    for line in &failure.details {
        let _ = writeln!(stderr, "    {line}");
    }
}

/// Writes a result to standard output. Whoever closes it early, such as `head`, has had enough.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).or_fail(Exit::System, "could not write to standard output")
        }
        _ => Ok(()),
    }
}

/// Writes a remark to standard error, if somebody listens.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
