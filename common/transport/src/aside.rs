//! Runs work on a thread with a runtime of its own, where waking one more thread for it would take longer than it does.

use std::future::Future;
use std::io;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Work on a thread of its own. It is told to end when this is dropped, and nobody waits for it.
#[derive(Debug)]
pub struct Aside {
    _ends: oneshot::Sender<()>,
}

impl Aside {
    /// Starts a thread of this name that does what `begin` says on a runtime of its own. Waits for what that gives to be handed
    /// out, so it must not take long; it also gives what is to be done at the end. Tasks that it spawns run until then.
    ///
    /// # Errors
    /// Those of `begin`, and when the system gives no thread or no runtime.
    pub fn start<T, E, F, End>(name: &str, begin: impl FnOnce() -> F + Send + 'static) -> Result<(T, Self), E>
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
        F: Future<Output = Result<(T, End), E>>,
        End: Future<Output = ()>,
    {
        let (ends, ended) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        // All of it is made where it is dropped.
        let run = move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell.send(Err(error.into()))),
            };
            runtime.block_on(async {
                match begin().await {
                    Ok((begun, end)) => {
                        let _ = tell.send(Ok(begun));
                        let _ = ended.await;
                        end.await;
                    }
                    Err(error) => drop(tell.send(Err(error))),
                }
            });
        };
        thread::Builder::new().name(name.into()).spawn(run)?;
        let begun = told.recv().map_err(io::Error::other)??;
        Ok((begun, Self { _ends: ends }))
    }
}
