//! Finds the programs of servers and workers.

use std::path::{Path, PathBuf};

use windlass_common::exit::Exit;

use crate::failure::{Failure, Outcome};

/// What is started as server and as worker.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) server: PathBuf,
    pub(crate) worker: PathBuf,
    /// A worker of one's own understands no more than it is promised to be given.
    pub(crate) worker_is_ours: bool,
}

impl Programs {
    /// Finds both beside the running program or else in PATH; `worker` takes the place of ours.
    ///
    /// # Errors
    /// Says where the one that is missing was looked for.
    pub(crate) fn find(worker: Option<&Path>) -> Outcome<Self> {
        let server = ours("windlass-ps")?;
        match worker {
            None => Ok(Self { server, worker: ours("windlass-worker")?, worker_is_ours: true }),
            Some(own) if is_program(own) => {
                // A name without a folder would be looked for in PATH when it is started.
                let worker = std::path::absolute(own).unwrap_or_else(|_| own.to_owned());
                Ok(Self { server, worker, worker_is_ours: false })
            }
            Some(own) => {
                let what = if own.is_file() { "may not be executed" } else { "is not there" };
                Err(Failure::usage(format!("--worker-program {} {what}", own.display())))
            }
        }
    }
}

fn ours(name: &str) -> Outcome<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.clone().into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|file| is_program(file)).ok_or_else(|| {
        let beside =
            beside.map_or_else(|| "beside windlass".to_owned(), |folder| format!("in {}", folder.display()));
        let sentence =
            format!("{name} is neither {beside} nor in PATH; build it with: cargo build --release -p {name}");
        Failure::new(Exit::System, sentence)
    })
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
