//! Has what is asked of all shards answered, over new connections where the old ones break.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use windlass_common::plan::Every;
use windlass_common::wire::Begins;
use windlass_transport::{ConnectionLost, Pool};
use windlass_worker_core::{AsOf, Effect, Encoder, Event, Feedback, Pull, Push};

use super::error::ClientError;
use super::link::{Cuts, Gift, Heard, Landing};
use super::outgoing::Going;
use super::overlap::{Arrival, Arrivals};
use super::pulled::Buffer;
use super::session::{COORDINATOR, Session};
use super::{Client, Next, connect, joining};

/// How often one request is taken up again over new connections.
const REJOINS_MAX: u32 = 5;
/// How long the coordinator has to say why shards do not hear this worker any more.
const WORD: Duration = Duration::from_secs(2);
/// The pause before the first time; it grows with each.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    pub(super) async fn until_answered(
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
                            Effect::Feedback(feedback) => self.encoder.settle(feedback),
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
                Effect::Feedback(feedback) => self.encoder.settle(feedback),
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
        let is_whole = making.is_none();
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
                            keep_up(effects, &mut encoder.lock(), is_whole, &gifts);
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
                Effect::Feedback(feedback) => self.encoder.settle(*feedback),
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
    is_whole: bool,
    gifts: &[UnboundedSender<Gift>],
) {
    let mut waits = false;
    effects.retain(|effect| {
        waits |= !is_whole && matches!(effect, Effect::Feedback(Feedback::Unused { .. }));
        match *effect {
            Effect::Feedback(feedback) if !waits => {
                encoder.settle(feedback);
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
pub(super) enum Sink<'a> {
    Nowhere,
    Buffer(Buffer<'a>),
    Arrivals(&'a Arrivals),
}

impl Sink<'_> {
    /// The same for each shard.
    fn landings<'b>(&'b mut self, cuts: &'b Cuts, pool: &'b Pool, shards: usize) -> Vec<Landing<'b>> {
        match self {
            Self::Nowhere => (0..shards).map(|_| Landing::Places(Vec::new())).collect(),
            Self::Buffer(buffer) => cuts.places(buffer.again()).into_iter().map(Landing::Places).collect(),
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
