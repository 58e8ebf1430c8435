//! Does what one shard is told, in turn, and says what follows: whoever has something for it works at this desk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Receiver;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use windlass_common::wire::{Feed, Record, Report, Standing};
use windlass_ps_core::SessionId;
use windlass_ps_core::replica::{Gate, Passed, Released};
use windlass_ps_core::shard::{Effect, Event, Reply, Shard};
use windlass_transport::Connection;

use super::{Answer, Input, ShardMessage};
use crate::clock;
use crate::gradient::Gradient;
use crate::meter::Meters;
use crate::replication::{OwnWay, Told, Way};

/// Records are told to the coordinator when there are this many, or at the next tick.
const RECORDS_MAX: usize = 256;
/// A standby that is being filled may be so far behind; then whoever pushes waits for it.
const UNCONFIRMED_MAX: u64 = 64;

/// The way to a session.
struct Addressee {
    answers: mpsc::Sender<Answer>,
    connection: Connection,
    /// What is sent to it takes its time, on a network or an emulated link.
    is_far: bool,
    /// What it is sent waits for this before its end.
    end: Option<oneshot::Sender<()>>,
}

/// A shard and what its process knows beside it.
pub(super) struct Desk {
    pub(super) shard: Shard<Gradient>,
    /// What waits for the desk, to be counted.
    queue: Receiver<Input>,
    sessions: HashMap<SessionId, Addressee>,
    records: Vec<Record>,
    effects: Vec<Effect>,
    /// What is shown waits for the standby.
    gate: Gate,
    standby: Option<(mpsc::UnboundedSender<Told>, Way)>,
    /// The way to it, for sessions once it has all.
    way: Arc<Mutex<Option<Way>>>,
    /// Where whoever works at the desk tells the standby what it brings.
    own: Option<mpsc::UnboundedSender<Told>>,
    /// Whether links to all workers are emulated.
    has_links: bool,
    /// Whether workers are sent receipts: each would wake one for nothing where they do not matter.
    sends_receipts: bool,
    /// The standby has all when it has confirmed this.
    full_at: Option<u64>,
    meters: Arc<Meters>,
    /// What the coordinator is to be told, in order.
    pub(super) outbox: Vec<ShardMessage>,
}

impl Desk {
    /// A desk at which `early` is to be acted upon first.
    pub(super) fn new(
        shard: Shard<Gradient>,
        early: Vec<Effect>,
        (queue, way): (Receiver<Input>, Arc<Mutex<Option<Way>>>),
        (meters, has_links): (Arc<Meters>, bool),
    ) -> Self {
        let sends_receipts = shard.receipts_matter();
        let mut desk = Self {
            shard,
            queue,
            sessions: HashMap::new(),
            records: Vec::with_capacity(RECORDS_MAX),
            effects: early,
            gate: Gate::default(),
            standby: None,
            way,
            own: None,
            has_links,
            sends_receipts,
            full_at: None,
            meters,
            outbox: Vec::new(),
        };
        desk.act();
        desk
    }

    /// Handles one event.
    pub(super) fn handle(&mut self, event: Event<Gradient>) {
        let begun = Instant::now();
        if let Event::Closed { session } = event {
            self.sessions.remove(&session);
        }
        self.shard.handle(clock::now(), event, &mut self.effects);
        self.act();
        let is_far_behind = self.gate.unconfirmed() > UNCONFIRMED_MAX;
        if is_far_behind && self.standby.is_some() && !self.gate.is_shut() {
            self.shut();
        }
        self.meters.worked(begun.elapsed());
    }

    /// Looks at the clock, and tells what has gathered.
    pub(super) fn tick(&mut self) {
        self.shard.handle(clock::now(), Event::Tick, &mut self.effects);
        self.act();
        self.tell_records();
    }

    /// Takes up what a session brings that has its `own` way to the standby, or another.
    pub(super) fn take_from(&mut self, input: Input, own: Option<&OwnWay>) {
        if let (Some(own), Some((_, way))) = (own, &self.standby) {
            self.own = own.tell.get().filter(|_| own.feed == way.feed).cloned();
        }
        self.take(input);
        self.own = None;
    }

    /// Takes up what has waited; false if it is the end.
    pub(super) fn take(&mut self, input: Input) -> bool {
        match input {
            Input::Attach { session, answers, connection } => {
                let is_far = self.has_links || !connection.is_local();
                self.sessions.insert(session, Addressee { answers, connection, is_far, end: None });
            }
            Input::Event(event, _place) => self.handle(event),
            // Whoever has lost a standby that had all waits for the coordinator.
            Input::Replicate(..) if self.gate.is_shut() => {}
            Input::Replicate(tell, way) => {
                self.gate = Gate::default();
                self.standby = Some((tell, *way));
                self.shard.begin_feeding(&mut self.effects);
                self.act();
            }
            Input::Confirmed(number) => self.confirmed(number),
            Input::StandbyGone(why) => self.standby_gone(why),
            Input::Wake => {}
            Input::Stop => return false,
        }
        true
    }

    fn act(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            let sessions = &self.sessions;
            let is_far = |to| sessions.get(&to).is_some_and(|addressee: &Addressee| addressee.is_far);
            match self.gate.pass(effect, is_far) {
                Passed::Now(effect) => self.carry_out(effect),
                Passed::Begun(session, reply) => {
                    let (end, ends) = oneshot::channel();
                    self.answer(session, Answer { reply, ends: Some(ends) });
                    if let Some(addressee) = self.sessions.get_mut(&session) {
                        addressee.end = Some(end);
                    }
                }
                Passed::Waits => {}
            }
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Fed => self.feed(),
            Effect::Reply { reply: Reply::Held { .. }, .. } if !self.sends_receipts => {}
            Effect::Reply { session, reply } => self.answer(session, reply.into()),
            Effect::Record(record) => {
                self.records.push(record);
                if self.records.len() >= RECORDS_MAX {
                    self.tell_records();
                }
            }
            Effect::Report(Report::Standing(standing)) => {
                let queue = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
                self.outbox.push(ShardMessage::Report(Report::Standing(Standing { queue, ..standing })));
            }
            Effect::Report(report) => {
                // What a checkpoint holds is told before it is said to be taken.
                if let Report::Taken { .. } = report {
                    self.tell_records();
                }
                self.outbox.push(ShardMessage::Report(report));
            }
            Effect::Image { checkpoint, image } => {
                self.outbox.push(ShardMessage::Image { checkpoint, image });
            }
            Effect::Final { snapshot, partial } => {
                self.tell_records();
                self.outbox.push(ShardMessage::Final { snapshot, partial });
            }
        }
    }

    fn feed(&mut self) {
        let number = self.gate.number();
        let Some((feed, floats)) = self.shard.next_feed() else { return };
        let is_brought = matches!(feed, Feed::Push { .. });
        let mut told = Told { number, feed, floats };
        if let Some(own) = self.own.as_ref().filter(|_| is_brought) {
            match own.send(told) {
                Ok(()) => return,
                Err(mpsc::error::SendError(back)) => told = back,
            }
        }
        if let Some((standby, _)) = &self.standby {
            // If nobody listens any more, that is told by whoever did.
            let _ = standby.send(told);
        }
    }

    fn confirmed(&mut self, number: u64) {
        let mut shown = Vec::new();
        self.gate.confirmed(number, &mut shown);
        for released in shown {
            match released {
                Released::Effect(effect) => self.carry_out(effect),
                Released::End(session) => {
                    let end = self.sessions.get_mut(&session).and_then(|addressee| addressee.end.take());
                    // Nobody waits for it any more where the stream has ended.
                    let _ = end.map(|end| end.send(()));
                }
            }
        }
        match self.full_at {
            // What it was told first has taken long; what is on its way will not.
            None if self.standby.is_some() => self.shut(),
            Some(full) if number >= full => {
                self.full_at = Some(u64::MAX);
                if self.shard.tells_pushes() {
                    *self.way.lock() = self.standby.as_ref().map(|(_, way)| way.clone());
                }
                self.outbox.push(ShardMessage::Report(Report::Replicated));
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
        *self.way.lock() = None;
        if self.gate.is_shut() {
            // Nothing is shown any more before the coordinator has decided.
            self.outbox.push(ShardMessage::Report(Report::StandbyLost { why }));
        } else {
            self.shard.end_feeding();
        }
    }

    fn answer(&mut self, session: SessionId, answer: Answer) {
        let Some(Addressee { answers, connection, .. }) = self.sessions.get(&session) else { return };
        if let Err(error) = answers.try_send(answer) {
            // A peer that does not read its answers is cut off rather than waited for: it asks again and finds them.
            tracing::warn!(peer = %connection.peer(), %error, "a connection is closed: its peer does not take answers");
            connection.close(1, "answers were not taken");
            self.sessions.remove(&session);
        }
    }

    fn tell_records(&mut self) {
        if !self.records.is_empty() {
            let records = std::mem::replace(&mut self.records, Vec::with_capacity(RECORDS_MAX));
            self.outbox.push(ShardMessage::Report(Report::Records(records)));
        }
    }
}
