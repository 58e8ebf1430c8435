//! The client for a thread that computes: it moves the bytes itself while it has nothing else to do.
//!
//! All of the network runs on the calling thread for as long as it is in one of the methods: what it has computed goes out
//! and what it needs comes in without any other thread being woken. While it computes, nobody looks after the network at
//! first; when that takes longer than a few milliseconds, a companion does.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::WorkerReport;

use super::companion::Driver;
use super::{Client, ClientError, Gradient, JoinOptions, Next, Taken, Work};

/// A worker's place in a run, for threads that compute. The methods are those of [`Client`], and wait.
pub struct BlockingClient {
    client: Client,
    driver: Driver,
    interrupted: Interrupted,
    hosted: Arc<[ClientId]>,
}

/// Resolves when this worker is to end; then it stays so.
struct Interrupted {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_so: bool,
}

impl Interrupted {
    /// What the future comes to, unless this worker is interrupted before.
    async fn or<T>(
        &mut self,
        future: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        if self.is_so {
            return Err(ClientError::Interrupted);
        }
        tokio::select! {
            biased;
            () = self.future.as_mut() => {
                self.is_so = true;
                Err(ClientError::Interrupted)
            }
            done = future => done,
        }
    }
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl BlockingClient {
    /// Joins a run, and returns when the coordinator has admitted this worker. Once `interrupted` resolves, this and
    /// every later request ends with [`ClientError::Interrupted`].
    ///
    /// # Errors
    /// As [`Client::join`], and if the system gives no thread.
    pub fn join(
        options: JoinOptions,
        interrupted: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self, ClientError> {
        let driver = Driver::new().map_err(ClientError::Thread)?;
        let mut interrupted = Interrupted { future: Box::pin(interrupted), is_so: false };
        let mut client = driver.drive(interrupted.or(Client::join(options)))?;
        let hosted = client.hosted();
        Ok(Self { client, driver, interrupted, hosted })
    }

    /// The run's configuration.
    pub fn plan(&self) -> &Plan {
        self.client.plan()
    }

    /// Which worker this is.
    pub fn worker(&self) -> WorkerId {
        self.client.worker()
    }

    /// A buffer for the values of the whole model.
    pub fn values(&self) -> Vec<f32> {
        self.client.values()
    }

    /// A buffer for a gradient of the whole model; what it holds is left from before.
    pub fn gradient(&mut self) -> Gradient {
        self.client.gradient()
    }

    /// As [`Client::hosted`], as of the last request.
    pub fn hosted(&self) -> &Arc<[ClientId]> {
        &self.hosted
    }

    /// As [`Client::clients`].
    pub fn clients(&self) -> &[ClientId] {
        self.client.clients()
    }

    /// As [`Client::batch`].
    pub fn batch(&self, examples: u32, loss: f32) -> Work {
        self.client.batch(examples, loss)
    }

    /// As [`Client::pull`].
    ///
    /// # Errors
    /// As [`Client::pull`].
    pub fn pull(&mut self, values: &mut [f32]) -> Result<Next, ClientError> {
        let next = self.driver.drive(self.interrupted.or(self.client.pull(values)));
        self.hosted = self.client.hosted();
        next
    }

    /// As [`Client::push`].
    ///
    /// # Errors
    /// As [`Client::push`].
    pub fn push(&mut self, gradient: Gradient, work: Work) -> Result<Taken, ClientError> {
        let taken = self.driver.drive(self.interrupted.or(self.client.push(gradient, work)));
        self.hosted = self.client.hosted();
        taken
    }

    /// As [`Client::push_pull`].
    ///
    /// # Errors
    /// As [`Client::push_pull`].
    pub fn push_pull(
        &mut self,
        gradient: Gradient,
        work: Work,
        values: &mut [f32],
    ) -> Result<Next, ClientError> {
        let next = self.driver.drive(self.interrupted.or(self.client.push_pull(gradient, work, values)));
        self.hosted = self.client.hosted();
        next
    }

    /// As [`Client::drop_out`].
    ///
    /// # Errors
    /// As [`Client::drop_out`].
    pub fn drop_out(&mut self, client: ClientId) -> Result<(), ClientError> {
        self.driver.drive(self.client.drop_out(client))
    }

    /// As [`Client::leave`].
    ///
    /// # Errors
    /// As [`Client::leave`].
    pub fn leave(self, report: WorkerReport) -> Result<(), ClientError> {
        self.driver.drive(self.client.leave(report))
    }

    /// As [`Client::abort`].
    ///
    /// # Errors
    /// As [`Client::abort`].
    pub fn abort(self, reason: String) -> Result<(), ClientError> {
        self.driver.drive(self.client.abort(reason))
    }

    /// As [`Client::close`].
    pub fn close(self) {
        self.driver.drive(self.client.close());
    }
}
