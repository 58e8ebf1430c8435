//! The worker's side of the protocol: join, pull, push, push-pull, leave.
//!
//! A [`Client`] knows nothing of models, data or training loops; whatever computes gradients can train with it.

mod blocking;
mod companion;
mod error;
mod exchange;
mod form;
mod gradient;
pub(crate) mod link;
mod making;
mod outgoing;
pub(crate) mod overlap;
mod patience;
mod pulled;
pub(crate) mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::mpsc::UnboundedReceiver;
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, ShardId, Step, VariableId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, WorkerReport};
use windlass_transport::{Connection, Endpoint, Identity, IdentityError, Limits, Meter, Pool, Role};
use windlass_worker_core::{Encoder, Event, Until, Worker};
pub use windlass_worker_core::{Taken, Work};

pub use blocking::BlockingClient;
pub use error::ClientError;
pub use gradient::Gradient;
pub use patience::{FAREWELL, LEAVE_WITHIN, Patience, SILENCE_MAX, STATUS_SILENCE_MAX};

use crate::client::exchange::Sink;
use crate::client::gradient::Gradients;
use crate::client::link::{Cuts, Link};
use crate::client::making::Making;
use crate::client::outgoing::{Going, Outgoing};
use crate::client::overlap::{Arrivals, Made};
pub(crate) use crate::client::pulled::{Buffer, Pulled};
use crate::client::session::{Hosted, Session};

/// Unused buffers for values and gradients in parts, in times of the model's bytes.
pub(crate) const POOLED_MODELS: usize = 2;

/// How to reach a run.
#[derive(Debug)]
pub struct JoinOptions {
    /// The coordinator's address, `host:port`.
    pub coordinator: String,
    /// Who this worker is.
    pub identity: Identity,
    /// How long to try to reach the coordinator and each server.
    pub connect_deadline: Duration,
    /// How long to wait for those who are connected and silent.
    pub patience: Patience,
}

impl JoinOptions {
    /// Reads the identity from its file; the deadline is 10 s, and the patience the usual one.
    ///
    /// # Errors
    /// If the file is not an identity.
    pub fn new(coordinator: impl Into<String>, identity: &Path) -> Result<Self, IdentityError> {
        let identity = Identity::load(identity)?;
        Ok(Self {
            coordinator: coordinator.into(),
            identity,
            connect_deadline: Duration::from_secs(10),
            patience: Patience::default(),
        })
    }
}

/// What is to be pushed.
#[derive(Debug)]
pub(crate) enum Pushed {
    Gradient(Gradient),
    /// What has been encoded part by part.
    Encoded,
}

/// What comes after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The values are those for this step.
    Step(Step),
    /// The training has all its examples: leave.
    Finished,
}

/// What a worker that computes ahead must know of its values and gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// The buffer, 0 or 1, with the newest values.
    pub(crate) newest: usize,
    /// The one into which the next come.
    pub(crate) incoming: usize,
    /// Whether the gradient that was computed ahead is that of the next push.
    pub(crate) is_next: bool,
}

/// A worker's place in a run.
///
/// One request is in flight at a time. When a connection breaks, the request is taken up again over a new one, under the
/// same number, so that a push counts once. Each request ends: with its answer, with the end of the run, or with an
/// error when a server says nothing for 30 s ([`Patience`]; a shard that makes a worker wait says every other second whom
/// for, and the coordinator that it lives; how long a worker may hold others up is the coordinator's to decide). A request
/// whose future is dropped before its end, or that ended with an error, leaves a client that can only be closed.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    options: JoinOptions,
    session: Session,
    connections: Vec<Connection>,
    links: Vec<Link>,
    core: Worker,
    /// What has become of the last push.
    taken: Taken,
    layout: Layout,
    placement: Placement,
    cuts: Cuts,
    gradients: Gradients,
    /// For values that are handed on slice by slice.
    pool: Pool,
    encoder: Encoder,
    /// How long gradients were encoded, and how long shards were waited for since the first values were there.
    encoding: Duration,
    exchanging: Option<Duration>,
}

impl Client {
    /// Joins a run, and resolves when the coordinator has admitted this worker: at the latest when the plan's deadline for
    /// joining is over, at which the coordinator ends the run.
    ///
    /// # Errors
    /// If the coordinator or a server cannot be reached in time, says nothing, or refuses this worker.
    pub async fn join(options: JoinOptions) -> Result<Self, ClientError> {
        let Role::Worker(_) = options.identity.role() else {
            return Err(ClientError::WrongRole { expected: "a worker's", found: options.identity.role() });
        };
        let endpoint = Endpoint::client(&options.identity, &Limits::default())?;
        let (within, patience) = (options.connect_deadline, options.patience);
        let mut session = Session::join(&endpoint, &options.coordinator, joining(), within, patience).await?;
        endpoint.set_link_rate(session.plan.heterogeneity.link_rate);
        let layout = session.plan.layout().map_err(windlass_common::plan::PlanError::from)?;
        let placement = session.plan.placement()?;
        let (connections, links) = connect(&endpoint, &session, &placement, within, patience.silence).await?;
        session.beat(&connections);
        let mut core = Worker::new(links.len(), Until::of(&session.plan));
        core.handle(Event::Joined { next: session.welcome.next }, &mut Vec::new());
        let gradients = Gradients::new(layout.total() as usize);
        let pool = Pool::new(POOLED_MODELS * 4 * layout.total() as usize);
        let cuts = Cuts::new(&layout, &placement);
        let encoder = Encoder::of(&session.plan, &layout, &placement);
        let taken = Taken::Unused;
        Ok(Self {
            endpoint,
            options,
            session,
            connections,
            links,
            core,
            taken,
            layout,
            placement,
            cuts,
            gradients,
            pool,
            encoder,
            encoding: Duration::ZERO,
            exchanging: None,
        })
    }

    /// The run's configuration.
    pub fn plan(&self) -> &Plan {
        &self.session.plan
    }

    /// The model's variables and where each lies in a flat buffer.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Which worker this is.
    pub fn worker(&self) -> WorkerId {
        self.session.envelope.worker
    }

    /// The step that the values at hand are for; after joining, the step to begin with.
    pub fn step(&self) -> Step {
        self.core.step()
    }

    /// The clients whose data this worker has by the newest dealing; what is pushed from now on is computed by that. Where
    /// workers come and go this may change, and is to be asked after every pull.
    pub fn hosted(&mut self) -> Arc<[ClientId]> {
        let Hosted { term, clients } = self.session.hosted.borrow_and_update().clone();
        self.session.envelope.term = term;
        clients
    }

    /// In a federated round, the clients that this worker is to train on the values at hand.
    pub fn clients(&self) -> &[ClientId] {
        self.core.clients()
    }

    /// The work of one batch of this worker's own data.
    pub fn batch(&self, examples: u32, loss: f32) -> Work {
        Work { client: ClientId(self.worker().0), examples, work: examples.into(), loss }
    }

    /// Whether all servers are on this machine.
    pub(super) fn has_all_here(&self) -> bool {
        self.connections.iter().all(Connection::is_local)
    }

    /// Bytes exchanged with each server.
    pub fn meters(&self) -> Vec<Meter> {
        self.connections.iter().map(Connection::stats).collect()
    }

    /// The range of a variable's values in the flat buffers.
    ///
    /// # Errors
    /// If the model has no such variable.
    pub fn variable(&self, name: &str) -> Result<std::ops::Range<usize>, ClientError> {
        let found = self.layout.find(name).ok_or_else(|| {
            let names: Vec<&str> = self.layout.variables().iter().map(|v| v.name.as_str()).collect();
            ClientError::UnknownVariable { name: name.into(), known: names.join(", ") }
        })?;
        Ok(self.layout.range(VariableId(found.0)))
    }

    /// A buffer for a gradient of the whole model; what it holds is left from before.
    pub fn gradient(&mut self) -> Gradient {
        self.gradients.take()
    }

    /// A buffer for the values of the whole model.
    pub fn values(&self) -> Floats {
        Floats::zeros(self.layout.total() as usize)
    }

    /// Fetches the values for the next step into `values`, which must be the buffer of the last pull: what has not
    /// changed since is not sent again.
    ///
    /// # Errors
    /// If the run has ended, a server is gone for good, or the buffer has the wrong length.
    pub async fn pull(&mut self, values: &mut [f32]) -> Result<Next, ClientError> {
        self.pull_to(Buffer::Floats(values)).await
    }

    /// Pushes a gradient and resolves when every shard has acknowledged it, or, where pushes are held until a round or a
    /// buffer is full, when every shard has it. Says what has become of it by then.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn push(&mut self, gradient: Gradient, work: Work) -> Result<Taken, ClientError> {
        self.exchange(Event::Push { work, pull: false }, Some(Pushed::Gradient(gradient)), None).await?;
        Ok(self.taken)
    }

    /// Pushes a gradient and fetches the values for the next step, in one round trip.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn push_pull(
        &mut self,
        gradient: Gradient,
        work: Work,
        values: &mut [f32],
    ) -> Result<Next, ClientError> {
        self.push_pull_to(Pushed::Gradient(gradient), work, Buffer::Floats(values)).await
    }

    /// Says that a client will not push in this round, so that nobody waits for it.
    ///
    /// # Errors
    /// If the coordinator is gone, or takes nothing for too long.
    pub async fn drop_out(&mut self, client: ClientId) -> Result<(), ClientError> {
        let step = self.core.step();
        self.session.say(Body::Dropped { client, step }).await
    }

    /// Leaves the run. Leaving before [`Next::Finished`] ends it for all where its membership is fixed; where it is elastic
    /// the others go on, and this worker may join again.
    ///
    /// # Errors
    /// If the coordinator could not be told within [`Patience::farewell`].
    pub async fn leave(mut self, report: WorkerReport) -> Result<(), ClientError> {
        let within = self.options.patience.leave;
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (encode_us, exchange_us) = (us(self.encoding), us(self.exchanging.unwrap_or_default()));
        // Of exchanges in parts only whoever computed meanwhile knows how long it waited for them.
        let (encode_us, exchange_us) = (report.encode_us + encode_us, report.exchange_us + exchange_us);
        let report = WorkerReport { encode_us, exchange_us, ..report };
        let told = self.session.say_last(Body::Leave(report), within).await;
        self.endpoint.shutdown(self.options.patience.farewell).await;
        told
    }

    /// Ends the run for all, and says why.
    ///
    /// # Errors
    /// If the coordinator could not be told within [`Patience::farewell`].
    pub async fn abort(mut self, reason: String) -> Result<(), ClientError> {
        let within = self.options.patience.farewell;
        let told = self.session.say_last(Body::Abort { reason }, within).await;
        self.endpoint.shutdown(within).await;
        told
    }

    /// Closes every connection without a word; this worker may join again.
    pub async fn close(self) {
        self.endpoint.shutdown(self.options.patience.farewell).await;
    }

    async fn exchange(
        &mut self,
        event: Event,
        gradient: Option<Pushed>,
        values: Option<Buffer<'_>>,
    ) -> Result<Next, ClientError> {
        let (begun, encoded) = (Instant::now(), self.encoding);
        let next = self.exchange_all(event, gradient, values).await;
        let took = begun.elapsed().saturating_sub(self.encoding - encoded);
        self.exchanging = Some(self.exchanging.map_or(Duration::ZERO, |before| before + took));
        next
    }

    async fn exchange_all(
        &mut self,
        event: Event,
        gradient: Option<Pushed>,
        values: Option<Buffer<'_>>,
    ) -> Result<Next, ClientError> {
        let expected = self.layout.total() as usize;
        let of_gradient = |pushed: &Pushed| match pushed {
            Pushed::Gradient(gradient) => Some(gradient.len()),
            Pushed::Encoded => None,
        };
        let lengths = [gradient.as_ref().and_then(of_gradient), values.as_ref().map(Buffer::len)];
        if let Some(found) = lengths.into_iter().flatten().find(|&l| l != expected) {
            return Err(ClientError::Length { expected, found });
        }
        let going = match (gradient, &event) {
            (Some(Pushed::Gradient(gradient)), Event::Push { work, .. }) => self.outgoing(gradient, *work),
            (Some(Pushed::Encoded), Event::Push { .. }) => {
                Going::Whole(Outgoing::encoded(self.encoder.end_parts()))
            }
            _ => Going::Nothing,
        };
        self.until_answered(event, going, values.map_or(Sink::Nowhere, Sink::Buffer)).await
    }

    /// Encodes a part of the next push's gradient, from number `from` of the flat buffer on, as it is made; with the first part comes
    /// whose gradient it is. Its memory is free then, and when all parts are encoded,
    /// [`push_pull_to`](Self::push_pull_to) pushes them.
    pub(crate) fn encode_part(&mut self, first_of: Option<ClientId>, from: usize, values: &mut [f32]) {
        let begun = Instant::now();
        if let Some(client) = first_of {
            self.encoder.begin_parts(client, self.core.step());
        }
        self.encoder.encode_part(from, values);
        self.encoding += begun.elapsed();
    }

    /// As [`pull`](Self::pull), wherever the values go.
    pub(crate) async fn pull_to(&mut self, values: Buffer<'_>) -> Result<Next, ClientError> {
        self.exchange(Event::Pull, None, Some(values)).await
    }

    /// As [`push_pull`](Self::push_pull), of whatever is pushed, and wherever the values go.
    pub(crate) async fn push_pull_to(
        &mut self,
        pushed: Pushed,
        work: Work,
        values: Buffer<'_>,
    ) -> Result<Next, ClientError> {
        self.exchange(Event::Push { work, pull: true }, Some(pushed), Some(values)).await
    }

    /// Memory for the values of the whole model, as they come.
    pub(crate) fn pulled(&self) -> Pulled {
        Pulled::new(self.session.plan.codecs.pull, &self.cuts)
    }

    /// A gradient that is all there, encoded.
    fn outgoing(&mut self, mut gradient: Gradient, work: Work) -> Going {
        let begun = Instant::now();
        let encoded = self.encoder.encode(&mut gradient, work.client, self.core.step());
        self.encoding += begun.elapsed();
        let gradient = self.gradients.lend(gradient);
        Going::Whole(match encoded {
            Some(encoded) => Outgoing::encoded(encoded),
            None => Outgoing::as_it_is(gradient, &self.cuts),
        })
    }

    /// Pushes a gradient that is still being made, as it is made, and fetches the values for the next step, which are handed
    /// on as they come. Where the codec must know all of the gradient, it is pushed when it is done.
    ///
    /// # Errors
    /// As [`pull`](Self::pull), and [`ClientError::Interrupted`] if the gradient was given up.
    pub(crate) async fn push_pull_in_parts(
        &mut self,
        work: Work,
        mut made: UnboundedReceiver<Made>,
        arrivals: &Arrivals,
    ) -> Result<Next, ClientError> {
        let codec = self.session.plan.codecs.push;
        let going = if codec.is_elementwise() {
            self.encoder.begin_slices(work.client, self.core.step());
            let (making, slices) = Making::new(made, codec, self.layout.total() as usize, self.links.len());
            Going::Making(making, slices)
        } else {
            let Some(Made::Whole(gradient)) = made.recv().await else { return Err(ClientError::Interrupted) };
            self.outgoing(gradient, work)
        };
        self.until_answered(Event::Push { work, pull: true }, going, Sink::Arrivals(arrivals)).await
    }

    /// From now on the next gradient is computed while a push is on its way, if the plan has two in flight: values then come into
    /// the one of two buffers that [`Ahead`] names.
    pub(crate) fn compute_ahead(&mut self) {
        let core = std::mem::replace(&mut self.core, Worker::new(0, Until::Settled));
        self.core = core.with_in_flight(self.session.plan.mode.in_flight());
    }

    /// Of whoever computes ahead: which values are where, and what the gradient that is computed ahead is good for.
    pub(crate) fn ahead(&self) -> Ahead {
        let core = &self.core;
        Ahead { newest: core.newest(), incoming: core.incoming(), is_next: core.is_ahead() }
    }

    /// As [`push_pull`](Self::push_pull), for an exchange whose time nobody spends.
    pub(crate) async fn push_pull_behind(
        &mut self,
        gradient: Gradient,
        work: Work,
        values: &mut [f32],
    ) -> Result<Next, ClientError> {
        let encoding = self.encoding;
        let (pushed, values) = (Pushed::Gradient(gradient), Buffer::Floats(values));
        let next = self.exchange_all(Event::Push { work, pull: true }, Some(pushed), Some(values)).await;
        self.encoding = encoding;
        next
    }
}

/// The first message of a worker.
fn joining() -> Body {
    Body::JoinWorker { process: std::process::id() }
}

/// A connection to every server and a stream to every shard.
async fn connect(
    endpoint: &Endpoint,
    session: &Session,
    placement: &Placement,
    within: Duration,
    silence: Duration,
) -> Result<(Vec<Connection>, Vec<Link>), ClientError> {
    let (connections, of_shards) = session.connect_to_servers(endpoint, placement.shards(), within).await?;
    let links = (0..).map(ShardId).zip(&of_shards);
    let (envelope, codecs) = (session.envelope, session.plan.codecs);
    let links = links.map(|(shard, connection)| Link::open(connection, shard, envelope, codecs, silence));
    let links = try_join_all(links).await?;
    Ok((connections, links))
}
