//! The client for a thread that computes: it moves the bytes itself while it has nothing else to do.
//!
//! All of the network runs on the calling thread for as long as it is in one of the methods: what it has computed goes out
//! and what it needs comes in without any other thread being woken. While it computes, nobody looks after the network at
//! first; when that takes longer than a few milliseconds, or an exchange goes on behind the computation, a companion does.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, WorkerId};
use windlass_common::plan::Plan;
use windlass_common::wire::WorkerReport;
use windlass_transport::{keep_to_a_core, own_cores};

use super::companion::Driver;
use super::overlap::{Arrival, Coming, Done, Made};
use super::pulled::{Buffer, Pulled};
use super::{Ahead, Client, ClientError, Gradient, JoinOptions, Next, Pushed, Taken, Work};

/// A worker's place in a run, for threads that compute. The methods are those of [`Client`], and wait.
pub struct BlockingClient {
    plan: Plan,
    worker: WorkerId,
    /// Whether all servers are on this machine.
    has_all_here: bool,
    values: usize,
    place: Place,
    /// A buffer for what is computed while an exchange goes on behind the computation.
    spare: Option<Gradient>,
    clients: Vec<ClientId>,
    hosted: Arc<[ClientId]>,
    // Dropped last: what is above may have tasks of its runtime.
    driver: Arc<Driver>,
}

/// An exchange that goes on behind the computation.
#[derive(Debug)]
pub(crate) struct Behind(oneshot::Receiver<(Result<Next, ClientError>, Floats)>);

/// Where the client is.
enum Place {
    Here(Box<Inner>),
    /// With an exchange that goes on behind the computation.
    Behind(JoinHandle<Box<Inner>>),
    /// Lost with an exchange that panicked.
    Nowhere,
}

/// A client, and whether it is to end.
struct Inner {
    client: Client,
    interrupted: Interrupted,
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
        f.debug_struct("BlockingClient").field("worker", &self.worker).finish_non_exhaustive()
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
        let driver = Arc::new(Driver::new().map_err(ClientError::Thread)?);
        let mut interrupted = Interrupted { future: Box::pin(interrupted), is_so: false };
        let mut client = driver.drive(interrupted.or(Client::join(options)))?;
        let (plan, worker, values) = (client.plan().clone(), client.worker(), client.values().len());
        let (hosted, has_all_here) = (client.hosted(), client.has_all_here());
        let place = Place::Here(Box::new(Inner { client, interrupted }));
        Ok(Self {
            plan,
            worker,
            has_all_here,
            values,
            place,
            spare: None,
            clients: Vec::new(),
            hosted,
            driver,
        })
    }

    /// The run's configuration.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Which worker this is.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Keeps the calling thread, and those that it starts, to a core that other workers of the run leave to it, if that is what the
    /// plan would have where all of the run is on one machine ([`Plan::keeps_to_cores`]).
    pub(crate) fn keep_to_a_core(&self) {
        let plans_so = || own_cores().is_some_and(|cores| self.plan.keeps_to_cores(cores));
        if self.has_all_here && plans_so() {
            keep_to_a_core(self.worker.0 as usize);
        }
    }

    /// A buffer for the values of the whole model.
    pub fn values(&self) -> Floats {
        Floats::zeros(self.values)
    }

    /// As [`Client::pulled`].
    pub(crate) fn pulled(&mut self) -> Result<Pulled, ClientError> {
        Ok(here(&mut self.place, &self.driver)?.client.pulled())
    }

    /// A buffer for a gradient of the whole model; what it holds is left from before.
    pub fn gradient(&mut self) -> Gradient {
        let spare = self.spare.take();
        spare.unwrap_or_else(|| match &mut self.place {
            Place::Here(inner) => inner.client.gradient(),
            Place::Behind(_) | Place::Nowhere => Gradient::new(self.values),
        })
    }

    /// As [`Client::hosted`], as of the last request.
    pub fn hosted(&self) -> &Arc<[ClientId]> {
        &self.hosted
    }

    /// As [`Client::clients`].
    pub fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    /// As [`Client::batch`].
    pub fn batch(&self, examples: u32, loss: f32) -> Work {
        Work { client: ClientId(self.worker.0), examples, work: examples.into(), loss }
    }

    /// As [`Client::pull`].
    ///
    /// # Errors
    /// As [`Client::pull`].
    pub fn pull(&mut self, values: &mut [f32]) -> Result<Next, ClientError> {
        self.pull_to(Buffer::Floats(values))
    }

    /// As [`Client::pull_to`].
    pub(crate) fn pull_to(&mut self, values: Buffer<'_>) -> Result<Next, ClientError> {
        let inner = here(&mut self.place, &self.driver)?;
        let next = self.driver.drive(inner.interrupted.or(inner.client.pull_to(values)));
        self.take_stock();
        next
    }

    /// As [`Client::push`].
    ///
    /// # Errors
    /// As [`Client::push`].
    pub fn push(&mut self, gradient: Gradient, work: Work) -> Result<Taken, ClientError> {
        let inner = here(&mut self.place, &self.driver)?;
        let taken = self.driver.drive(inner.interrupted.or(inner.client.push(gradient, work)));
        self.take_stock();
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
        self.push_pull_to(Pushed::Gradient(gradient), work, Buffer::Floats(values))
    }

    /// As [`Client::push_pull_to`].
    pub(crate) fn push_pull_to(
        &mut self,
        pushed: Pushed,
        work: Work,
        values: Buffer<'_>,
    ) -> Result<Next, ClientError> {
        let inner = here(&mut self.place, &self.driver)?;
        let next = self.driver.drive(inner.interrupted.or(inner.client.push_pull_to(pushed, work, values)));
        self.take_stock();
        next
    }

    /// As [`Client::encode_part`].
    pub(crate) fn encode_part(
        &mut self,
        is_first: bool,
        from: usize,
        values: &mut [f32],
    ) -> Result<(), ClientError> {
        let client = ClientId(self.worker.0);
        here(&mut self.place, &self.driver)?.client.encode_part(is_first.then_some(client), from, values);
        Ok(())
    }

    /// As [`Client::drop_out`].
    ///
    /// # Errors
    /// As [`Client::drop_out`].
    pub fn drop_out(&mut self, client: ClientId) -> Result<(), ClientError> {
        let inner = here(&mut self.place, &self.driver)?;
        self.driver.drive(inner.client.drop_out(client))
    }

    /// As [`Client::leave`].
    ///
    /// # Errors
    /// As [`Client::leave`].
    pub fn leave(mut self, report: WorkerReport) -> Result<(), ClientError> {
        let client = self.out_of_place()?;
        self.driver.drive(client.leave(report))
    }

    /// As [`Client::abort`].
    ///
    /// # Errors
    /// As [`Client::abort`].
    pub fn abort(mut self, reason: String) -> Result<(), ClientError> {
        let client = self.out_of_place()?;
        self.driver.drive(client.abort(reason))
    }

    /// As [`Client::close`].
    pub fn close(mut self) {
        if let Ok(client) = self.out_of_place() {
            self.driver.drive(client.close());
        }
    }

    /// Begins to push a gradient that is still being made, and to fetch the values for the next step: where to tell what is
    /// made, and what comes. Until [`done`](Self::done) nothing else can be asked for.
    pub(crate) fn push_pull_in_parts(
        &mut self,
        work: Work,
    ) -> Result<(UnboundedSender<Made>, Coming), ClientError> {
        let ((tell, made), (arrivals, coming)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        self.behind(|mut inner| async move {
            let encoded = inner.client.encoding;
            let exchange = inner.client.push_pull_in_parts(work, made, &arrivals);
            let result = inner.interrupted.or(exchange).await;
            let client = &mut inner.client;
            let result = result.map(|next| (next, client.taken));
            let (gradient, clients) = (client.gradient(), client.clients().to_vec());
            let (hosted, encoding) = (client.hosted(), client.encoding - encoded);
            // Whoever has given its gradient up meanwhile asks for something else next.
            let _ = arrivals.send(Arrival::Done(Done { result, gradient, clients, hosted, encoding }));
            inner
        })?;
        Ok((tell, Coming::new(coming, Arc::clone(&self.driver), self.plan.cluster.shards())))
    }

    /// As [`Client::compute_ahead`].
    pub(crate) fn compute_ahead(&mut self) -> Result<(), ClientError> {
        here(&mut self.place, &self.driver)?.client.compute_ahead();
        Ok(())
    }

    /// As [`Client::ahead`].
    pub(crate) fn ahead(&mut self) -> Result<Ahead, ClientError> {
        Ok(here(&mut self.place, &self.driver)?.client.ahead())
    }

    /// The gradient that was computed ahead is not to be pushed.
    pub(crate) fn throw_away(&mut self) -> Result<(), ClientError> {
        here(&mut self.place, &self.driver)?.client.core.throw_away();
        Ok(())
    }

    /// Begins to push a gradient and to fetch values, while the calling thread computes the next gradient.
    pub(crate) fn push_pull_behind(
        &mut self,
        gradient: Gradient,
        work: Work,
        mut values: Floats,
    ) -> Result<Behind, ClientError> {
        let (tell, told) = oneshot::channel();
        // The next one is computed while the client is away with its buffers.
        let inner = here(&mut self.place, &self.driver)?;
        self.spare.get_or_insert_with(|| inner.client.gradient());
        self.behind(|mut inner| async move {
            let exchange = inner.client.push_pull_behind(gradient, work, &mut values);
            let next = inner.interrupted.or(exchange).await;
            // Whoever does not want to know any more asks for something else next.
            let _ = tell.send((next, values));
            inner
        })?;
        Ok(Behind(told))
    }

    /// Waits until such an exchange has ended: how it goes on, and the buffer of the values.
    pub(crate) fn finish(&mut self, Behind(mut told): Behind) -> Result<(Next, Floats), ClientError> {
        here(&mut self.place, &self.driver)?;
        self.take_stock();
        let (next, values) = told.try_recv().map_err(|_| ClientError::Interrupted)?;
        Ok((next?, values))
    }

    /// Takes in how an exchange in parts ended.
    pub(crate) fn done(&mut self, done: Done) -> Result<Next, ClientError> {
        self.spare = Some(done.gradient);
        (self.clients, self.hosted) = (done.clients, done.hosted);
        done.result.map(|(next, _)| next)
    }

    /// Lets an exchange go on behind the computation.
    fn behind<F>(&mut self, exchange: impl FnOnce(Box<Inner>) -> F) -> Result<(), ClientError>
    where
        F: Future<Output = Box<Inner>> + Send + 'static,
    {
        here(&mut self.place, &self.driver)?;
        if let Place::Here(inner) = std::mem::replace(&mut self.place, Place::Nowhere) {
            self.place = Place::Behind(self.driver.spawn(exchange(inner)));
        }
        Ok(())
    }

    /// What is known after an exchange.
    fn take_stock(&mut self) {
        if let Place::Here(inner) = &mut self.place {
            self.hosted = inner.client.hosted();
            self.clients.clear();
            self.clients.extend_from_slice(inner.client.clients());
        }
    }

    /// The client, which says its last word.
    fn out_of_place(&mut self) -> Result<Client, ClientError> {
        here(&mut self.place, &self.driver)?;
        match std::mem::replace(&mut self.place, Place::Nowhere) {
            Place::Here(inner) => Ok(inner.client),
            Place::Behind(_) | Place::Nowhere => Err(ClientError::Interrupted),
        }
    }
}

/// The client, once an exchange that goes on behind the computation has ended.
fn here<'a>(place: &'a mut Place, driver: &Driver) -> Result<&'a mut Inner, ClientError> {
    if let Place::Behind(exchange) = place {
        *place = driver.drive(exchange).map_or(Place::Nowhere, Place::Here);
        driver.is_behind(false);
    }
    match place {
        Place::Here(inner) => Ok(inner),
        Place::Behind(_) | Place::Nowhere => Err(ClientError::Interrupted),
    }
}
