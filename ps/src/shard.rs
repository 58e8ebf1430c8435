//! Runs each shard on a thread of its own, which nobody else locks.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use windlass_common::ids::ShardId;
use windlass_common::wire::{Order, Record, Report, Standing};
use windlass_ps_core::SessionId;
use windlass_ps_core::replica::Gate;
use windlass_ps_core::shard::{Effect, Event, Image, Reply, Shard};
use windlass_ps_core::store::{Shape, Snapshot};
use windlass_transport::{Connection, PooledFloats, bytes_of};

use crate::clock;
use crate::meter::Meters;
use crate::replication::Told;

/// Requests that may wait for a shard; a session that finds no place stops reading its stream.
pub(crate) const REQUESTS_MAX: usize = 256;
/// Orders that may wait for a shard. There is one per change of membership and, with backup workers, one per step.
const ORDERS_MAX: usize = 4096;
/// Requests taken up before the clock is looked at again.
const BATCH_MAX: usize = 16;
/// Records are told to the coordinator when there are this many, or at the next tick.
const RECORDS_MAX: usize = 256;
/// A standby that is being filled may be so far behind; then whoever pushes waits for it.
const UNCONFIRMED_MAX: u64 = 64;
const TICK: Duration = Duration::from_millis(100);

/// A gradient, which the shard and the way to its standby share.
#[derive(Clone, Debug)]
pub(crate) struct Gradient(Arc<PooledFloats>);

impl From<PooledFloats> for Gradient {
    fn from(floats: PooledFloats) -> Self {
        Self(Arc::new(floats))
    }
}

impl AsRef<[f32]> for Gradient {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

impl Gradient {
    pub(crate) fn into_bytes(self) -> Bytes {
        bytes_of(self.0)
    }
}

/// What a shard's thread is told.
pub(crate) enum Input {
    /// Answers for this session go there; if it does not take them, its connection is closed.
    Attach { session: SessionId, replies: mpsc::Sender<Reply>, connection: Connection },
    /// Something has happened.
    Event(Event<Gradient>, Option<OwnedSemaphorePermit>),
    /// A standby is reached: it is told this way what happens.
    Replicate(mpsc::UnboundedSender<Told>),
    /// It has done everything up to this number.
    Confirmed(u64),
    /// It is gone.
    StandbyGone(String),
    /// The run is over.
    Stop,
}

/// What a shard tells the coordinator.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    Report(Report),
    /// Its part of a checkpoint, to be kept.
    Image {
        checkpoint: u64,
        image: Box<Image>,
    },
    Final {
        snapshot: Snapshot,
        partial: u64,
    },
}

/// The way to a shard's thread.
#[derive(Clone)]
pub(crate) struct ShardLink {
    pub(crate) shape: Arc<Shape>,
    inputs: Sender<Input>,
    places: Arc<Semaphore>,
}

impl ShardLink {
    /// Hands over a request, waiting for a place.
    pub(crate) async fn request(&self, event: Event<Gradient>) {
        let permit = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        self.put(Input::Event(event, Some(permit)));
    }

    /// Says where the answers for a session go.
    pub(crate) fn attach(&self, session: SessionId, replies: mpsc::Sender<Reply>, connection: Connection) {
        self.put(Input::Attach { session, replies, connection });
    }

    /// Hands over an order.
    pub(crate) fn order(&self, order: Order) {
        self.put(Input::Event(Event::Order(order), None));
    }

    /// Says that a session has ended.
    pub(crate) fn closed(&self, session: SessionId) {
        self.put(Input::Event(Event::Closed { session }, None));
    }

    /// Tells a standby what happens, from the whole on; false if the thread has ended.
    pub(crate) fn replicate(&self, tell: mpsc::UnboundedSender<Told>) -> bool {
        self.inputs.send(Input::Replicate(tell)).is_ok()
    }

    /// The standby has done so much.
    pub(crate) fn confirmed(&self, number: u64) {
        self.put(Input::Confirmed(number));
    }

    /// The standby is gone; false if the thread has ended.
    pub(crate) fn standby_gone(&self, why: String) -> bool {
        self.inputs.send(Input::StandbyGone(why)).is_ok()
    }

    /// Ends the thread, which gives the shard back.
    pub(crate) fn stop(&self) {
        self.put(Input::Stop);
    }

    fn put(&self, input: Input) {
        match self.inputs.try_send(input) {
            // The thread has ended with the run; what comes too late has nowhere to go.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(input)) => {
                tracing::warn!(
                    limit = REQUESTS_MAX + ORDERS_MAX,
                    "a shard's queue is full; its sender waits"
                );
                let _ = self.inputs.send(input);
            }
        }
    }
}

/// Starts the thread of a shard, which has to act upon `early` first. `tell` brings its reports to the coordinator, and waits if it must.
///
/// # Errors
/// If the system gives no thread.
pub(crate) fn spawn(
    id: ShardId,
    shard: Shard<Gradient>,
    early: Vec<Effect>,
    meters: Arc<Meters>,
    tell: impl FnMut(ShardMessage) + Send + 'static,
) -> std::io::Result<(ShardLink, JoinHandle<Shard<Gradient>>)> {
    let (inputs, receiver) = channel::bounded(REQUESTS_MAX + ORDERS_MAX);
    let shape = Arc::new(shard.shape().clone());
    let thread = Thread {
        shard,
        queue: receiver,
        sessions: HashMap::new(),
        records: Vec::with_capacity(RECORDS_MAX),
        effects: early,
        gate: Gate::default(),
        standby: None,
        full_at: None,
        meters,
        tell,
    };
    let thread = std::thread::Builder::new().name(format!("shard-{}", id.0)).spawn(move || thread.run())?;
    Ok((ShardLink { shape, inputs, places: Arc::new(Semaphore::new(REQUESTS_MAX)) }, thread))
}

struct Thread<F> {
    shard: Shard<Gradient>,
    queue: Receiver<Input>,
    sessions: HashMap<SessionId, (mpsc::Sender<Reply>, Connection)>,
    records: Vec<Record>,
    effects: Vec<Effect>,
    /// What is shown waits for the standby.
    gate: Gate,
    standby: Option<mpsc::UnboundedSender<Told>>,
    /// The standby has all when it has confirmed this.
    full_at: Option<u64>,
    meters: Arc<Meters>,
    tell: F,
}

impl<F: FnMut(ShardMessage)> Thread<F> {
    fn run(mut self) -> Shard<Gradient> {
        let inputs = self.queue.clone();
        self.act();
        let mut next_tick = Instant::now() + TICK;
        loop {
            match inputs.recv_deadline(next_tick) {
                Ok(first) => {
                    let begun = Instant::now();
                    for input in std::iter::once(first).chain(inputs.try_iter().take(BATCH_MAX - 1)) {
                        if !self.take(input) {
                            return self.shard;
                        }
                    }
                    self.meters.worked(begun.elapsed());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.shard,
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.shard.handle(clock::now(), Event::Tick, &mut self.effects);
                self.act();
                self.tell_records();
            }
        }
    }

    fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Attach { session, replies, connection } => {
                self.sessions.insert(session, (replies, connection));
            }
            Input::Event(event, _place) => {
                if let Event::Closed { session } = event {
                    self.sessions.remove(&session);
                }
                self.shard.handle(clock::now(), event, &mut self.effects);
                self.act();
                let is_far_behind = self.gate.unconfirmed() > UNCONFIRMED_MAX;
                if is_far_behind && self.standby.is_some() && !self.gate.is_shut() {
                    self.shut();
                }
            }
            // Whoever has lost a standby that had all waits for the coordinator.
            Input::Replicate(_) if self.gate.is_shut() => {}
            Input::Replicate(tell) => {
                self.gate = Gate::default();
                self.standby = Some(tell);
                self.shard.begin_feeding(&mut self.effects);
                self.act();
            }
            Input::Confirmed(number) => self.confirmed(number),
            Input::StandbyGone(why) => self.standby_gone(why),
            Input::Stop => return false,
        }
        true
    }

    fn act(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            if let Some(effect) = self.gate.pass(effect) {
                self.carry_out(effect);
            }
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Fed => self.feed(),
            Effect::Reply { session, reply } => self.reply(session, reply),
            Effect::Record(record) => {
                self.records.push(record);
                if self.records.len() >= RECORDS_MAX {
                    self.tell_records();
                }
            }
            Effect::Report(Report::Standing(standing)) => {
                let queue = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
                (self.tell)(ShardMessage::Report(Report::Standing(Standing { queue, ..standing })));
            }
            Effect::Report(report) => (self.tell)(ShardMessage::Report(report)),
            Effect::Image { checkpoint, image } => {
                // What the checkpoint holds is told before it is said to be taken.
                self.tell_records();
                (self.tell)(ShardMessage::Image { checkpoint, image });
            }
            Effect::Final { snapshot, partial } => {
                self.tell_records();
                (self.tell)(ShardMessage::Final { snapshot, partial });
            }
        }
    }

    fn feed(&mut self) {
        let number = self.gate.number();
        let Some((feed, floats)) = self.shard.next_feed() else { return };
        if let Some(standby) = &self.standby {
            // If nobody listens any more, that is told by whoever did.
            let _ = standby.send(Told { number, feed, floats });
        }
    }

    fn confirmed(&mut self, number: u64) {
        let mut shown = Vec::new();
        self.gate.confirmed(number, &mut shown);
        for effect in shown {
            self.carry_out(effect);
        }
        match self.full_at {
            // What it was told first has taken long; what is on its way will not.
            None if self.standby.is_some() => self.shut(),
            Some(full) if number >= full => {
                self.full_at = Some(u64::MAX);
                (self.tell)(ShardMessage::Report(Report::Replicated));
            }
            _ => {}
        }
    }

    /// From here on nothing is shown that the standby has not confirmed.
    fn shut(&mut self) {
        self.shard.told_all(&mut self.effects);
        self.act();
        self.gate.shut();
        self.full_at = Some(self.gate.told());
    }

    fn standby_gone(&mut self, why: String) {
        if self.standby.take().is_none() {
            return;
        }
        if self.gate.is_shut() {
            // Nothing is shown any more before the coordinator has decided.
            (self.tell)(ShardMessage::Report(Report::StandbyLost { why }));
        } else {
            self.shard.end_feeding();
        }
    }

    fn reply(&mut self, session: SessionId, reply: Reply) {
        let Some((replies, connection)) = self.sessions.get(&session) else { return };
        if let Err(error) = replies.try_send(reply) {
            // A peer that does not read its answers is cut off rather than waited for: it asks again and finds them.
            tracing::warn!(peer = %connection.peer(), %error, "a connection is closed: its peer does not take answers");
            connection.close(1, "answers were not taken");
            self.sessions.remove(&session);
        }
    }

    fn tell_records(&mut self) {
        if !self.records.is_empty() {
            let records = std::mem::replace(&mut self.records, Vec::with_capacity(RECORDS_MAX));
            (self.tell)(ShardMessage::Report(Report::Records(records)));
        }
    }
}
