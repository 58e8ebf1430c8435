//! What every program of Windlass does alike: how it logs, how it is told to end, and with which exit code it ends.

mod memory;
mod scheduling;

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use windlass_common::exit::Exit;

pub use memory::memory_variables;

/// What a program that trains or measures does first thing: it has the system keep freed memory at hand, for which it starts
/// anew, and put off none of its threads for another.
pub fn settle() {
    memory::keep_memory();
    scheduling::put_nobody_off();
}

/// The environment variable that sets what is logged, such as `debug` or `windlass_ps=debug,info`.
pub const LOG_VARIABLE: &str = "WINDLASS_LOG";

/// Why a program ends other than well: a sentence, and the exit code for the shell.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub struct Failure {
    /// For the shell.
    pub exit: Exit,
    /// In words.
    pub error: anyhow::Error,
}

/// Gives an error the exit code that it ends the program with.
pub trait OrExit<T> {
    /// The value, or a failure with this exit code.
    ///
    /// # Errors
    /// If it is an error.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: error.into() })
    }
}

/// Sends the log to stderr; what is logged is set by [`LOG_VARIABLE`]. A panic, which is a fault of ours, ends the process
/// from now on: it is missed then, rather than going on without one of its threads.
pub fn log_to_stderr() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info,quinn=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Prints the failure, if it is one, as `error: ...` and gives the exit code.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, error }) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit.code())
        }
    }
}

/// Resolves when the process is asked to end: by Ctrl-C, by SIGTERM, or, `with_stdin`, by the end of its standard
/// input, which comes when the process that started it is no more. By design it waits as long as nobody asks.
pub async fn interrupted(with_stdin: bool) {
    let (told, mut stdin_ended) = tokio::sync::oneshot::channel();
    if with_stdin {
        // A thread of its own: reading standard input cannot be given up, and must not hold the runtime's end.
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while matches!(std::io::stdin().read(&mut bytes), Ok(1..)) {}
            let _ = told.send(());
        });
    }
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        tracing::warn!("this system gives no signals; only SIGKILL ends this process early");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = &mut stdin_ended, if with_stdin => {}
    }
}
