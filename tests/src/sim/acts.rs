//! Does what the coordinator decides: tells shards and workers, and writes down what is to be verified.

use windlass_common::ids::{Incarnation, ServerId};
use windlass_common::wire::{Begins, Body, Welcome};
use windlass_ps_core::coordinator::Effect;
use windlass_ps_core::{SessionId, shard};

use super::network::{DOWN, Kind};
use super::server::{FAREWELL, FIRST};
use super::{Happening, STRAY, World};
use crate::cluster::links::Message;

/// The session of the coordinator's own server.
pub(super) const OWN: SessionId = SessionId(STRAY - 1);

impl World<'_> {
    /// How much of each shard is in the log is known here alone.
    fn welcome_in_full(&self, welcome: Welcome) -> Body {
        let begins = match welcome.begins {
            Begins::Copies { .. } => Begins::Copies { logged: self.logged() },
            begins => begins,
        };
        Body::Welcome(Welcome { begins, ..welcome })
    }

    pub(super) fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Order { shard, order } => match self.coordinator.primary(shard) {
                ServerId(0) => {
                    let stream = self.locals[shard.index()];
                    self.send(stream, DOWN, Message::Shard(shard::Event::Order(order)));
                }
                server => {
                    let stream = self.orders_to[server.index()];
                    let stream = stream.expect("orders are given when every server has joined");
                    let body = Body::Order { shard, order };
                    self.send(stream, DOWN, Message::Control(body, Incarnation(0), self.lineage));
                }
            },
            Effect::Send { session, body } => {
                let body = match body {
                    Body::Welcome(welcome) => self.welcome_in_full(welcome),
                    body => body,
                };
                if let (OWN, Body::Welcome(welcome), true) = (session, &body, self.has_replicas()) {
                    let (welcome, images) = (welcome.clone(), self.first_images.take());
                    self.take_up_seats(ServerId(0), self.lineage, (&welcome.seats, &welcome.begins), images);
                }
                // The coordinator's own server hears of everything by itself.
                if session.0 < STRAY - 3 {
                    let stream = session.0 as usize;
                    let incarnation = match self.net.streams[stream].kind {
                        Kind::Worker(worker) => self.coordinator.incarnation(worker),
                        _ => Incarnation(0),
                    };
                    self.send(stream, DOWN, Message::Control(body, incarnation, self.lineage));
                }
            }
            Effect::Membership { worker, what } => {
                self.progress_at = self.now;
                self.log.note(self.now, || format!("{worker} {what}"));
                for kind in ["dead", "silent", "left before", "is heard again"] {
                    if what.starts_with(kind) {
                        self.counts.add(kind, 1);
                    }
                }
            }
            Effect::Started | Effect::Dropped { .. } => self.progress_at = self.now,
            Effect::Opened { step, tasks } => {
                self.progress_at = self.now;
                self.era().opened.push((step, tasks));
            }
            Effect::Dealt { step, tasks } => {
                let open = self.era().opened.last_mut().filter(|(open, _)| *open == step);
                open.expect("only the round that is open is dealt anew").1 = tasks;
                self.counts.add("dealt anew", 1);
            }
            Effect::Term { term, members, .. } => {
                self.lives.term = term;
                for member in &members {
                    self.lives.incarnations.insert(member.worker, member.incarnation);
                }
                let era = self.era();
                era.terms.push((era.closed.len(), members));
            }
            Effect::CheckpointCut { number } => {
                let era = self.era();
                let before = era.cuts.insert(number, (era.closed.len(), era.terms.len()));
                assert_eq!(before, None, "checkpoint {number} is cut twice");
            }
            Effect::KeepCheckpoint(complete) => self.keep_manifest(*complete),
            Effect::Checkpointed { failure, number } => {
                self.progress_at = self.now;
                self.log.note(self.now, || format!("checkpoint {number}: {failure:?}"));
                match failure {
                    None => self.counts.add("checkpoints complete", 1),
                    Some(why) => {
                        assert!(!why.is_empty(), "a checkpoint that comes to nothing says why");
                        let is_late = why.contains("postponed");
                        self.counts.add(if is_late { "postponed" } else { "checkpoints not kept" }, 1);
                    }
                }
            }
            Effect::RollBack { .. } => panic!("the run goes back before anything else is done"),
            Effect::Placed(placed) => self.placed(placed),
            Effect::Replicated { .. } => {
                self.progress_at = self.now;
                self.counts.add("replicated", 1);
            }
            Effect::Closed { step, cohort } => {
                self.progress_at = self.now;
                self.era().closed.push((step, cohort));
            }
            Effect::Store => {
                let writing = 1 + self.rng.below(50_000);
                let at = self.after(FIRST, writing);
                self.queue.push(at, Happening::Stored(self.lineage));
            }
            Effect::End(stop) => {
                assert_eq!(self.stop, None, "a run ends once");
                self.log.note(self.now, || format!("the run ends: {stop:?}"));
                self.stop = Some(stop);
                self.over_at = Some(self.now);
                let until = self.after(FIRST, FAREWELL);
                self.queue.push(self.now + 1, Happening::Farewell { server: ServerId(0), until });
            }
        }
    }
}
