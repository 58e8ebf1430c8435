//! The worker's side of the protocol: join, pull, push, push-pull, leave.
//!
//! A [`Client`] knows nothing of models, data or training loops; whatever computes gradients can train with it.

mod blocking;
mod companion;
mod error;
mod form;
mod gradient;
pub(crate) mod link;
mod making;
mod outgoing;
pub(crate) mod overlap;
mod patience;
pub(crate) mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{try_join, try_join_all};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use windlass_common::ids::{ClientId, ShardId, Step, VariableId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::{Every, Plan};
use windlass_common::wire::{Begins, Body, WorkerReport};
use windlass_transport::{
    Connection, ConnectionLost, Endpoint, Identity, IdentityError, Limits, Meter, Pool, Role,
};
use windlass_worker_core::{AsOf, Effect, Encoder, Event, Feedback, Pull, Push, Until, Worker};
pub use windlass_worker_core::{Taken, Work};

pub use blocking::BlockingClient;
pub use error::ClientError;
pub use gradient::Gradient;
pub use patience::{FAREWELL, LEAVE_WITHIN, Patience, SILENCE_MAX, STATUS_SILENCE_MAX};

use crate::client::gradient::Gradients;
use crate::client::link::{Cuts, Gift, Heard, Landing, Link};
use crate::client::making::Making;
use crate::client::outgoing::{Going, Outgoing};
use crate::client::overlap::{Arrival, Arrivals, Made};
use crate::client::session::{COORDINATOR, Hosted, Session};

/// How often one request is taken up again over new connections.
const REJOINS_MAX: u32 = 5;
/// How long the coordinator has to say why shards do not hear this worker any more.
const WORD: Duration = Duration::from_secs(2);
/// The pause before the first time; it grows with each.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);

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
    pub fn values(&self) -> Vec<f32> {
        vec![0.0; self.layout.total() as usize]
    }

    /// Fetches the values for the next step into `values`, which must be the buffer of the last pull: what has not
    /// changed since is not sent again.
    ///
    /// # Errors
    /// If the run has ended, a server is gone for good, or the buffer has the wrong length.
    pub async fn pull(&mut self, values: &mut [f32]) -> Result<Next, ClientError> {
        self.exchange(Event::Pull, None, Some(values)).await
    }

    /// Pushes a gradient and resolves when every shard has acknowledged it, or, where pushes are held until a round or a
    /// buffer is full, when every shard has it. Says what has become of it by then.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn push(&mut self, gradient: Gradient, work: Work) -> Result<Taken, ClientError> {
        self.exchange(Event::Push { work, pull: false }, Some(gradient), None).await?;
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
        self.exchange(Event::Push { work, pull: true }, Some(gradient), Some(values)).await
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
        gradient: Option<Gradient>,
        values: Option<&mut [f32]>,
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
        gradient: Option<Gradient>,
        values: Option<&mut [f32]>,
    ) -> Result<Next, ClientError> {
        let expected = self.layout.total() as usize;
        let lengths = [gradient.as_ref().map(|g| g.len()), values.as_ref().map(|v| v.len())];
        if let Some(found) = lengths.into_iter().flatten().find(|&l| l != expected) {
            return Err(ClientError::Length { expected, found });
        }
        let going = match (gradient, &event) {
            (Some(gradient), Event::Push { work, .. }) => self.outgoing(gradient, *work),
            _ => Going::Nothing,
        };
        self.until_answered(event, going, values.map_or(Sink::Nowhere, Sink::Buffer)).await
    }

    /// A gradient that is all there, encoded.
    fn outgoing(&mut self, mut gradient: Gradient, work: Work) -> Going {
        let begun = Instant::now();
        let encoded = self.encoder.encode(&mut gradient, work.client, self.core.step());
        self.encoding += begun.elapsed();
        Going::Whole(Outgoing::new(self.gradients.lend(gradient), encoded, &self.cuts))
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
        let next = self.exchange_all(Event::Push { work, pull: true }, Some(gradient), Some(values)).await;
        self.encoding = encoding;
        next
    }

    async fn until_answered(
        &mut self,
        event: Event,
        mut going: Going,
        mut sink: Sink<'_>,
    ) -> Result<Next, ClientError> {
        let mut effects = Vec::new();
        self.core.handle(event, &mut effects);
        let mut rejoins = 0;
        loop {
            let mut answered = self.requests(&mut effects, &mut going, &mut sink).await;
            self.session.at(self.core.step());
            if answered.as_ref().is_err_and(ClientError::is_unheard) {
                // The coordinator knows why, and is about to say so.
                let why = tokio::time::timeout(WORD, self.session.ended()).await;
                let lost = || ClientError::lost(COORDINATOR, ConnectionLost::Silent);
                answered = Err(why.unwrap_or_else(|_| lost()));
            }
            match answered {
                Ok(Some(next)) => return Ok(next),
                Ok(None) if self.core.is_busy() => {}
                Ok(None) => return Ok(Next::Step(self.core.step())),
                Err(error) if error.is_passing() && rejoins < REJOINS_MAX => {
                    sink.break_off();
                    // What had been said of the push before the break is not said again.
                    let told = std::mem::take(&mut effects);
                    self.join_until_joined(error, &mut rejoins, &mut effects).await?;
                    going.complete(&mut self.gradients, &mut self.encoder, &self.cuts).await?;
                    for effect in told {
                        match effect {
                            Effect::Feedback(feedback) => self.settle(feedback, going.outgoing()),
                            Effect::Taken(taken) => self.taken = taken,
                            Effect::Send { .. } | Effect::Ready { .. } | Effect::Give { .. } => {}
                            Effect::Finished | Effect::Failed(_) => {}
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends every request among the effects and reads until each is answered; what the answers lead to is in
    /// `effects` afterwards.
    async fn requests(
        &mut self,
        effects: &mut Vec<Effect>,
        going: &mut Going,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Next>, ClientError> {
        let mut sends: Vec<(Option<Push>, Option<Pull>)> = vec![(None, None); self.links.len()];
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { shard, push, pull } => sends[shard] = (push, pull),
                Effect::Ready { step } => return Ok(Some(Next::Step(step))),
                Effect::Finished => return Ok(Some(Next::Finished)),
                Effect::Failed(reason) => return Err(ClientError::Rejected(reason)),
                Effect::Taken(taken) => self.taken = taken,
                Effect::Feedback(feedback) => self.settle(feedback, going.outgoing()),
                // Who has joined again is asked again.
                Effect::Give { .. } => {}
            }
        }
        if sends.iter().all(|(push, pull)| push.is_none() && pull.is_none()) {
            // Joining again has settled it.
            return Ok(None);
        }
        let landings = sink.landings(&self.cuts, &self.pool, self.links.len());
        let envelope = self.session.envelope;
        let core = Mutex::new((&mut self.core, &mut *effects));
        let mut slices: Vec<Option<UnboundedReceiver<_>>> = self.links.iter().map(|_| None).collect();
        let (outgoing, making) = match &mut *going {
            Going::Nothing => (None, None),
            Going::Whole(outgoing) => (Some(&*outgoing), None),
            Going::Making(making, of_shards) => {
                slices = std::mem::take(of_shards).into_iter().map(Some).collect();
                (None, Some(making))
            }
        };
        // What a push leaves out on a shard that does not use it is known when all of the gradient is.
        let gradient = match (outgoing, &making) {
            (Some(outgoing), _) => Some(outgoing.gradient()),
            (None, Some(_)) => None,
            (None, None) => Some(&[][..]),
        };
        let encoder = Mutex::new(&mut self.encoder);
        let feeding = async {
            match making {
                Some(making) => making.complete(&encoder, &self.cuts).await,
                None => Ok(()),
            }
        };
        let (gifts, given): (Vec<_>, Vec<_>) = self.links.iter().map(|_| unbounded_channel()).unzip();
        // When nobody reads any more, nothing more is given.
        let gifts = Arc::new(gifts);
        let requests = self.links.iter_mut().zip(sends).zip(landings).zip(slices).zip(given).enumerate();
        let requests: Vec<_> = requests
            .map(|(shard, ((((link, (push, pull)), mut landing), slices), mut given))| {
                let parts = self.cuts.parts(shard);
                let all = parts.iter().map(|(part, _)| part.values as usize).sum();
                let (core, encoder, gifts) = (&core, &encoder, Arc::clone(&gifts));
                async move {
                    match (push, slices) {
                        (None, _) if pull.is_none() => {}
                        (Some(push), Some(mut slices)) => {
                            link.request_in_parts(envelope, parts, push, pull, &mut slices).await?;
                        }
                        (push, _) => {
                            let payload = outgoing.map(|outgoing| outgoing.payload(shard));
                            link.request(envelope, parts, push.zip(payload), pull).await?;
                        }
                    }
                    let is_asked = push.is_some() || pull.is_some();
                    let (outbound, inbound) = link.ways();
                    let giving = async {
                        while let Some(gift) = given.recv().await {
                            outbound.give(envelope, gift).await?;
                        }
                        Ok::<(), ClientError>(())
                    };
                    let reading = async move {
                        // Given back at the end, whatever that is.
                        let gifts = gifts;
                        if !is_asked {
                            return Ok(());
                        }
                        loop {
                            let reply = match inbound.reply(&mut landing, all).await? {
                                Heard::Reply(reply) => reply,
                                Heard::Word => continue,
                                Heard::Recall { client, values } => {
                                    let recalled = encoder.lock().recall(shard, client, &values);
                                    recalled.expect("the link has checked how many values came");
                                    continue;
                                }
                            };
                            let (core, effects) = &mut *core.lock();
                            core.handle(Event::Reply { shard, reply }, effects);
                            keep_up(effects, &mut encoder.lock(), gradient, &gifts);
                            // A shard that turns out to be a step behind is asked again when all have answered; until
                            // then it owes nothing.
                            let again =
                                |e: &Effect| matches!(e, Effect::Send { shard: to, .. } if *to == shard);
                            if let Some(Effect::Failed(reason)) = effects.last() {
                                return Err(ClientError::Rejected(reason.clone()));
                            }
                            if !core.awaits(shard) || effects.iter().any(again) {
                                return Ok(());
                            }
                        }
                    };
                    try_join(giving, reading).await.map(|_| ())
                }
            })
            .collect();
        drop(gifts);
        tokio::select! {
            answered = try_join(feeding, try_join_all(requests)) => answered.map(|_| ())?,
            error = self.session.ended() => return Err(error),
        }
        going.complete(&mut self.gradients, &mut self.encoder, &self.cuts).await?;
        // The last one to answer says how it goes on.
        let mut last = None;
        for effect in effects.iter() {
            match effect {
                Effect::Ready { step } => last = Some(Next::Step(*step)),
                Effect::Finished => last = Some(Next::Finished),
                Effect::Taken(taken) => self.taken = *taken,
                Effect::Feedback(feedback) => self.settle(*feedback, going.outgoing()),
                &Effect::Give { shard, checkpoint, of, all } => {
                    let gift = gift(&mut self.encoder, shard, checkpoint, of, all);
                    let (outbound, _) = self.links[shard].ways();
                    outbound.give(envelope, gift).await?;
                }
                Effect::Failed(_) | Effect::Send { .. } => {}
            }
        }
        effects.retain(|effect| !matches!(effect, Effect::Feedback(_) | Effect::Give { .. }));
        Ok(last)
    }

    fn settle(&mut self, feedback: Feedback, outgoing: Option<&Outgoing>) {
        self.encoder.settle(feedback, outgoing.map(Outgoing::gradient).unwrap_or_default());
    }

    /// Joins again, and once more where the network breaks meanwhile, as long as [`REJOINS_MAX`] allows.
    async fn join_until_joined(
        &mut self,
        mut error: ClientError,
        rejoins: &mut u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), ClientError> {
        loop {
            tracing::warn!(%error, "joining again");
            *rejoins += 1;
            tokio::time::sleep(REJOIN_PAUSE * *rejoins).await;
            match self.join_again(effects).await {
                Err(lost) if lost.is_passing() && *rejoins < REJOINS_MAX => error = lost,
                done => return done,
            }
        }
    }

    async fn join_again(&mut self, effects: &mut Vec<Effect>) -> Result<(), ClientError> {
        for connection in &self.connections {
            connection.close(0, "joining again");
        }
        let patience = self.options.patience;
        let mut within = self.options.connect_deadline;
        let plan = &self.session.plan;
        if plan.checkpoints.every != Every::Never || plan.cluster.replicas > 0 {
            // Whoever is gone may be started again, and the run goes on from a checkpoint or what others have.
            within = within.max(Duration::from_secs(self.session.plan.cluster.rejoin_deadline_s));
        }
        let (before, coordinator) = (self.session.envelope, &self.options.coordinator);
        self.session = Session::join(&self.endpoint, coordinator, joining(), within, patience).await?;
        if self.session.envelope.run != before.run {
            return Err(ClientError::Ended("another one has taken its place".into()));
        }
        (self.connections, self.links) =
            connect(&self.endpoint, &self.session, &self.placement, within, patience.silence).await?;
        self.session.beat(&self.connections);
        effects.clear();
        let next = self.session.welcome.next;
        let from_copies = matches!(self.session.welcome.begins, Begins::Copies { .. });
        self.core.handle(
            match self.session.envelope.lineage == before.lineage {
                true => Event::Joined { next },
                false => Event::Restored { next, from_copies },
            },
            effects,
        );
        Ok(())
    }
}

/// Does what concerns the encoder, in order, as far as that can be done before all of the gradient is there.
fn keep_up(
    effects: &mut Vec<Effect>,
    encoder: &mut Encoder,
    gradient: Option<&[f32]>,
    gifts: &[UnboundedSender<Gift>],
) {
    let mut waits = false;
    effects.retain(|effect| {
        waits |= gradient.is_none() && matches!(effect, Effect::Feedback(Feedback::Unused { .. }));
        match *effect {
            Effect::Feedback(feedback) if !waits => {
                encoder.settle(feedback, gradient.unwrap_or_default());
                false
            }
            Effect::Give { shard, checkpoint, of, all } if !waits => {
                // A stream that has broken takes nothing more, and whoever joins again is asked again.
                let _ = gifts[shard].send(gift(encoder, shard, checkpoint, of, all));
                false
            }
            _ => true,
        }
    });
}

/// What a shard is given.
fn gift(encoder: &mut Encoder, shard: usize, checkpoint: u64, of: AsOf, all: bool) -> Gift {
    let has_gone_on = of == AsOf::GoneOn;
    let residuals = if has_gone_on { Vec::new() } else { encoder.give(shard, of, all) };
    Gift { checkpoint, residuals, has_gone_on }
}

/// Where the values of a request go.
#[derive(Debug)]
enum Sink<'a> {
    Nowhere,
    Buffer(&'a mut [f32]),
    Arrivals(&'a Arrivals),
}

impl Sink<'_> {
    /// The same for each shard.
    fn landings<'b>(&'b mut self, cuts: &'b Cuts, pool: &'b Pool, shards: usize) -> Vec<Landing<'b>> {
        match self {
            Self::Nowhere => (0..shards).map(|_| Landing::Places(Vec::new())).collect(),
            Self::Buffer(values) => cuts.places(values).into_iter().map(Landing::Places).collect(),
            Self::Arrivals(to) => {
                let of = |shard| Landing::Arrivals { parts: cuts.parts(shard), pool, to };
                (0..shards).map(of).collect()
            }
        }
    }

    /// What has come so far may be of several versions.
    fn break_off(&self) {
        if let Self::Arrivals(to) = self {
            let _ = to.send(Arrival::Broken);
        }
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
