//! Turns Ctrl-C and requests to end into something that can be waited for.

use tokio::signal::unix::{Signal, SignalKind, signal};
use windlass_common::exit::Exit;

use crate::failure::{Failure, OrExit, Outcome};

/// What the person or the system may send to end the program.
pub(crate) struct Interrupts([Signal; 3]);

impl Interrupts {
    /// From here on, the signals no longer end the program by themselves.
    ///
    /// # Errors
    /// If the system does not let them be waited for.
    pub(crate) fn listen() -> Outcome<Self> {
        let listen = |kind| signal(kind).or_fail(Exit::System, "could not listen for Ctrl-C");
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    /// Waits for the next one. May be dropped and called again.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What a command that was interrupted returns.
pub(crate) fn interrupted() -> Failure {
    Failure::new(Exit::Interrupted, "interrupted")
}
