//! Names the exit codes that all programs share, so that scripts can tell failures apart.

/// Why a program ends other than well. Success is 0; 101 is a fault of ours, with a report of where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A flag is wrong or flags contradict each other.
    Usage = 2,
    /// A file is missing, damaged or does not fit: data, plan, identity, model.
    Input = 3,
    /// An address cannot be bound or a process cannot be reached.
    Network = 4,
    /// The run could not go on: somebody was lost, refused or did not come.
    Run = 5,
    /// Something on this machine failed: a full disk, a process that cannot be started.
    System = 6,
    /// Ended by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// For `--help`: every code with its meaning.
pub const HELP: &str = "Exit codes: 0 done; 2 wrong flag; 3 a file is missing, damaged or does not fit; 4 an address cannot \
be bound or reached; 5 the run could not go on; 6 this machine failed (disk, process); 130 interrupted.";
