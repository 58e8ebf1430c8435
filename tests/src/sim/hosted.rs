//! Hosts shards on servers: hands them what happens, and lets out what they may show.

use std::collections::{BTreeMap, VecDeque};

use windlass_common::ids::{Lineage, ServerId, ShardId};
use windlass_common::wire::{Order, Record, Report};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::Event;
use windlass_ps_core::replica::{Gate, Passed, Released};
use windlass_ps_core::shard::{self, Effect, Reply, Shard};

use super::network::{DOWN, Place, UP};
use super::replicas::Line;
use super::{Happening, STRAY, World};
use crate::cluster::Brought;
use crate::cluster::links::Message;

/// Records that are told at once.
const RECORDS_MAX: usize = 256;

/// The primary's copy of a shard, on its server.
#[derive(Debug)]
pub(super) struct Hosted {
    pub(super) shard: Shard<Brought>,
    pub(super) lineage: Lineage,
    pub(super) gate: Gate,
    /// Of each effect that waits, how much the standby had been told before it.
    pub(super) waiting: VecDeque<u64>,
    /// Values that are on their way to a session but for their end, and what it is told behind them.
    begun: BTreeMap<SessionId, (Reply, Vec<Reply>)>,
    /// Its way to the standby, if it has one.
    pub(super) line: Option<Line>,
    /// The standby is lost after it had all: nothing is shown any more.
    pub(super) is_silent: bool,
    /// It pauses for a checkpoint.
    pub(super) is_pausing: bool,
    pub(super) unreported: Vec<Record>,
}

impl Hosted {
    pub(super) fn new(shard: Shard<Brought>, lineage: Lineage, line: Option<Line>) -> Self {
        Self {
            shard,
            lineage,
            gate: Gate::default(),
            waiting: VecDeque::new(),
            begun: BTreeMap::new(),
            line,
            is_silent: false,
            is_pausing: false,
            unreported: Vec::new(),
        }
    }
}

impl Hosted {
    /// Whether the standby has all.
    pub(super) fn is_full(&self) -> bool {
        !self.is_silent && self.line.as_ref().is_some_and(|line| line.is_reported)
    }
}

/// Whether anybody learns from an effect what the shard has done.
fn is_seen(effect: &Effect) -> bool {
    match effect {
        Effect::Fed | Effect::Report(Report::Standing(_)) => false,
        Effect::Reply { reply, .. } => !matches!(reply, Reply::Waiting { .. } | Reply::NotReached { .. }),
        Effect::Report(_) | Effect::Record(_) | Effect::Image { .. } | Effect::Final { .. } => true,
    }
}

impl World<'_> {
    pub(super) fn hosted(&mut self, server: ServerId, id: ShardId) -> Option<&mut Hosted> {
        self.hosted.get_mut(&(server, id)).filter(|_| self.followers[server.index()].serves)
    }

    pub(super) fn shard_tick(&mut self, server: ServerId, shard: ShardId, life: u32) {
        let place = Place::Server(server);
        if self.is_running(place) && self.followers[server.index()].life == life {
            self.shard(server, shard, shard::Event::Tick);
            self.tell_records(server, shard);
            let at = self.after(place, self.config.shard_tick);
            self.queue.push(at, Happening::ShardTick(server, shard, life));
        }
    }

    /// Something happens to a shard, where its server has it.
    pub(super) fn shard(&mut self, server: ServerId, id: ShardId, event: shard::Event<Brought>) {
        let place = Place::Server(server);
        if !self.is_running(place) {
            return;
        }
        let at = self.local(place);
        let Some(hosted) = self.hosted(server, id) else { return };
        let is_quiet = matches!(event, shard::Event::Tick);
        match event {
            shard::Event::Order(Order::Pause { .. }) => hosted.is_pausing = true,
            shard::Event::Order(Order::GoOn { .. }) => hosted.is_pausing = false,
            _ => {}
        }
        let lineage = hosted.lineage;
        let mut effects = Vec::new();
        let era = self.eras.get_mut(&lineage).expect("every lineage has a history");
        let history = &mut era.histories[id.index()];
        history.begin(&event);
        let hosted = self.hosted.get_mut(&(server, id)).expect("it was there");
        hosted.shard.handle(at, event, &mut effects);
        let told = history.fed();
        if !is_quiet || !effects.is_empty() {
            let newest = hosted.shard.snapshot().version;
            history.end(at, &effects, newest);
        }
        self.act_on(server, id, told, effects);
    }

    /// Tells the standby, and shows what may be shown; the standby had been told so much before.
    pub(super) fn act_on(&mut self, server: ServerId, id: ShardId, mut told: u64, effects: Vec<Effect>) {
        let last = effects.iter().rposition(|effect| matches!(effect, Effect::Fed));
        for (number, effect) in effects.into_iter().enumerate() {
            if let Effect::Fed = effect {
                told += 1;
                self.tell_standby(server, id, told, last == Some(number));
                continue;
            }
            let Some(hosted) = self.hosted(server, id) else { return };
            if hosted.is_silent {
                continue;
            }
            let may_begin = self.rng.below(2) == 0;
            let Some(hosted) = self.hosted(server, id) else { return };
            match hosted.gate.pass(effect, |_| may_begin) {
                Passed::Now(effect) => self.show(server, id, told, effect),
                Passed::Waits => {
                    hosted.waiting.push_back(told);
                    self.counts.add("waited for a standby", 1);
                }
                Passed::Begun(session, reply) => {
                    hosted.waiting.push_back(told);
                    let before = hosted.begun.insert(session, (reply, Vec::new()));
                    assert!(before.is_none(), "a session is sent values in the middle of others");
                    self.counts.add("values begun before a standby had confirmed", 1);
                }
            }
        }
    }

    /// Acts upon what waits no longer, before which the standby had been told so much.
    pub(super) fn release(&mut self, server: ServerId, id: ShardId, told: u64, released: Released) {
        let session = match released {
            Released::Effect(effect) => return self.show(server, id, told, effect),
            Released::End(session) => session,
        };
        let Some((values, behind)) = self.hosted(server, id).and_then(|h| h.begun.remove(&session)) else {
            panic!("values end that were not begun");
        };
        for reply in std::iter::once(values).chain(behind) {
            self.show(server, id, told, Effect::Reply { session, reply });
        }
    }

    /// Acts upon an effect before which the standby had been told so much.
    pub(super) fn show(&mut self, server: ServerId, id: ShardId, told: u64, effect: Effect) {
        let Some(hosted) = self.hosted(server, id) else { return };
        let lineage = hosted.lineage;
        if is_seen(&effect) {
            self.seen(lineage, id, told);
        }
        match effect {
            Effect::Record(record) => {
                self.progress_at = self.now;
                self.settled.get_or_insert((self.now, self.now)).1 = self.now;
                let Some(hosted) = self.hosted(server, id) else { return };
                hosted.unreported.push(record);
                if hosted.unreported.len() >= RECORDS_MAX {
                    self.tell_records(server, id);
                }
            }
            Effect::Reply { session, reply } => {
                if let Some((_, behind)) = self.hosted(server, id).and_then(|h| h.begun.get_mut(&session)) {
                    behind.push(reply);
                } else if session.0 < STRAY {
                    self.send(session.0 as usize, DOWN, Message::Reply(reply));
                }
            }
            Effect::Report(report) => {
                if let (Report::Taken { .. }, Some(hosted)) = (&report, self.hosted(server, id)) {
                    hosted.is_pausing = false;
                }
                self.report(server, id, report);
            }
            Effect::Fed => {}
            Effect::Image { checkpoint, image } => {
                self.keep_part(server, id, checkpoint, *image);
            }
            Effect::Final { snapshot, partial } => {
                self.tell_records(server, id);
                let (version, examples) = (snapshot.version, snapshot.examples);
                let payload_bytes = self.placement.values_of(id) * 4;
                if lineage == self.lineage {
                    self.results.insert(id, (snapshot, partial));
                }
                self.report(server, id, Report::Final { version, examples, partial, payload_bytes });
            }
        }
    }

    fn tell_records(&mut self, server: ServerId, shard: ShardId) {
        let Some(hosted) = self.hosted(server, shard).filter(|hosted| !hosted.is_silent) else { return };
        let records = std::mem::take(&mut hosted.unreported);
        if !records.is_empty() {
            self.report(server, shard, Report::Records(records));
        }
    }

    pub(super) fn report(&mut self, server: ServerId, shard: ShardId, report: Report) {
        let event = Event::Report { shard, report };
        let stream = match server {
            ServerId(0) => self.locals.get(shard.index()).copied(),
            _ => self.followers[server.index()].control,
        };
        if let Some(stream) = stream {
            self.send(stream, UP, Message::Coordinator(event));
        }
    }

    /// A server's process, or its life, is over: it has no shards any more.
    pub(super) fn drop_shards(&mut self, server: ServerId) {
        if self.has_replicas() {
            let hosted = self.hosted.iter().filter(|((of, _), _)| *of == server);
            for (&(_, id), hosted) in hosted {
                self.ghosts.insert((server, id, hosted.lineage), (hosted.shard.state(), None));
            }
            let seconds = self.standbys.iter().filter(|((of, _), _)| *of == server);
            for (&(_, id), second) in seconds {
                if let Some(shard) = second.standby.full() {
                    let of = (server, id, second.standby.lineage());
                    self.ghosts.insert(of, (shard.state(), Some(second.count)));
                }
            }
        }
        self.hosted.retain(|(of, _), _| *of != server);
        self.standbys.retain(|(of, _), _| *of != server);
        self.followers[server.index()].serves = false;
    }
}
