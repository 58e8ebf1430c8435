//! Asks workers what their codec has left out, so that it is in every checkpoint, and tells it to lives that do not know it.
//!
//! A shard that has taken its part of a checkpoint asks each worker, before it is shown anything later, for what had been left
//! out by then of the pushes that are in the part. It goes on meanwhile; the part is whole when all have answered. A worker
//! learns that a push is settled from all shards before it swaps what that has left out for what was left out before, so
//! that it can give this exactly, whichever shard asks first.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::ids::{ClientId, Incarnation, Sequence, WorkerId};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Reject, Report, Resume};

use super::{Effect, Given, Image, Part, Reply, Shard};
use crate::residuals::{Residual, Residuals, Table};
use crate::store::Pushed;
use crate::{SessionId, Time};

/// A part of a checkpoint that waits for a worker so many seconds comes to nothing. A worker answers when it asks for
/// something next, so that it may compute for so long.
pub const GIVEN_WITHIN_S: u64 = 60;

/// What a shard knows of what codecs have left out.
#[derive(Debug)]
pub(super) struct LeftOut {
    pub(super) table: Table,
    /// There are so many clients.
    clients: u32,
    /// Whether workers draw the clients that they train themselves.
    is_at_will: bool,
    lives: BTreeMap<WorkerId, Life>,
    /// The lives of which the table has all that they had at some checkpoint.
    known: BTreeMap<WorkerId, Incarnation>,
    keeping: Option<Keeping>,
}

/// What is known of the present life of a worker.
#[derive(Debug, Default)]
struct Life {
    /// The push that it began with.
    first: Sequence,
    /// The clients of which it has what there is.
    has: BTreeSet<ClientId>,
    /// It has been told of all that it gave in earlier lives.
    is_told: bool,
}

/// A part of a checkpoint that is not whole.
#[derive(Debug)]
struct Keeping {
    checkpoint: u64,
    since: Time,
    image: Box<Image>,
    owed: BTreeMap<WorkerId, Owed>,
}

/// What a worker has not given.
#[derive(Debug)]
struct Owed {
    /// The first of its pushes that is not in the part, and the first step of which none is.
    next: Resume,
    /// Where it was asked.
    asked: Option<SessionId>,
}

impl LeftOut {
    /// What is known when a shard begins; nothing is where the codec leaves nothing out for good.
    pub(super) fn new(plan: &Plan, residuals: Residuals) -> Option<Self> {
        plan.codecs.push.is_biased().then(|| Self {
            table: Table::new(plan.mode.is_hosting_balanced(), residuals),
            clients: plan.clients.count,
            is_at_will: matches!(plan.mode, Mode::Fedbuff { .. } | Mode::Fedasync { .. }),
            lives: BTreeMap::new(),
            known: BTreeMap::new(),
            keeping: None,
        })
    }

    /// A push has been taken in.
    pub(super) fn taken(&mut self, client: ClientId, worker: WorkerId, sequence: Sequence) {
        self.table.taken(client, worker, sequence);
        let life = self.lives.entry(worker).or_default();
        if !life.has.contains(&client) {
            life.has.insert(client);
        }
    }

    /// A worker has a new life, which goes on with this push.
    pub(super) fn begins(&mut self, worker: WorkerId, first: Sequence) {
        self.lives.insert(worker, Life { first, ..Life::default() });
    }

    /// In another lineage nothing is waited for.
    pub(super) fn leave_lineage(&mut self) {
        self.keeping = None;
        self.table.give_up();
        self.known.clear();
        self.lives.clear();
    }
}

impl<B: Pushed> Shard<B> {
    /// A part of a checkpoint has been taken; it is whole at once where workers have nothing to give.
    pub(super) fn keep(&mut self, now: Time, checkpoint: u64, mut image: Box<Image>, out: &mut Vec<Effect>) {
        let Some(left) = &mut self.left else {
            out.push(Effect::Image { checkpoint, image });
            return;
        };
        // The whole of them comes with the answers.
        image.residuals.clear();
        let unsettled: BTreeMap<WorkerId, Sequence> = self.ledger.unsettled().collect();
        left.table.cut(|worker| unsettled.get(&worker).copied().unwrap_or_default());
        let step = self.open;
        let owed = self.ledger.members().map(|worker| {
            let sequence = unsettled.get(&worker).copied().unwrap_or_default();
            (worker, Owed { next: Resume { sequence, step }, asked: None })
        });
        left.keeping = Some(Keeping { checkpoint, since: now, image, owed: owed.collect() });
        let parked: Vec<_> = self.parked.iter().map(|(&worker, parked)| (worker, parked.session)).collect();
        for (worker, session) in parked {
            self.ask_to_give(worker, session, out);
        }
        self.whole_if_given(out);
    }

    /// Asks a worker for what it has not given, before it is told anything else here.
    pub(super) fn ask_to_give(&mut self, worker: WorkerId, session: SessionId, out: &mut Vec<Effect>) {
        let Some(left) = &mut self.left else { return };
        let Some(Keeping { checkpoint, owed, .. }) = &mut left.keeping else { return };
        let Some(owed) = owed.get_mut(&worker).filter(|owed| owed.asked != Some(session)) else { return };
        owed.asked = Some(session);
        // Until it has given all of it, what has come may lack something.
        let known = left.known.remove(&worker);
        let all = known.is_none() || known != self.ledger.incarnation(worker);
        let reply = Reply::Keep { checkpoint: *checkpoint, next: owed.next, all };
        out.push(Effect::Reply { session, reply });
    }

    /// A worker gives something for a checkpoint. What nobody waits for is dropped.
    pub(super) fn given(&mut self, given: Given, out: &mut Vec<Effect>) {
        let Given { session, run, lineage, worker, incarnation, checkpoint, part } = given;
        if self.hear(run, lineage, worker, incarnation).is_err() {
            return;
        }
        let (values, by_client) = (self.shape.values(), self.by_client);
        let Some(left) = &mut self.left else { return };
        let Some(keeping) = left.keeping.as_mut().filter(|k| k.checkpoint == checkpoint) else { return };
        if keeping.owed.get(&worker).is_none_or(|owed| owed.asked != Some(session)) {
            return;
        }
        match part {
            Part::Residual { client, residual } => {
                let is_its_own = if by_client { client.0 < left.clients } else { client.0 == worker.0 };
                let (expected, found) = (4 * values, 4 * residual.len() as u64);
                let reason = match is_its_own {
                    false => Reject::WrongClient { client, worker },
                    true if expected != found => Reject::WrongPayload { expected, found },
                    true => {
                        left.table.renew(client, worker, residual);
                        return;
                    }
                };
                out.push(Effect::Reply { session, reply: Reply::Rejected { sequence: None, reason } });
            }
            Part::All => {
                keeping.owed.remove(&worker);
                left.known.insert(worker, incarnation);
                self.whole_if_given(out);
            }
            Part::GoneOn => {
                let why = format!("{worker} has gone on, and what was left out of its pushes then is gone");
                self.comes_to_nothing(why, out);
            }
        }
    }

    fn whole_if_given(&mut self, out: &mut Vec<Effect>) {
        let Some(left) = &mut self.left else { return };
        if let Some(Keeping { checkpoint, mut image, .. }) = left.keeping.take_if(|k| k.owed.is_empty()) {
            left.table.complete();
            image.residuals = left.table.image();
            out.push(Effect::Image { checkpoint, image });
        }
    }

    /// The part of a checkpoint is not kept after all.
    fn comes_to_nothing(&mut self, why: String, out: &mut Vec<Effect>) {
        if let Some(checkpoint) = self.give_up_keeping() {
            out.push(Effect::Report(Report::Kept { checkpoint, part: Err(why) }));
        }
    }

    fn give_up_keeping(&mut self) -> Option<u64> {
        let left = self.left.as_mut()?;
        let keeping = left.keeping.take()?;
        left.table.give_up();
        Some(keeping.checkpoint)
    }

    /// The coordinator has given a checkpoint up.
    pub(super) fn keep_no_more(&mut self, checkpoint: u64) {
        let is_it = |left: &LeftOut| left.keeping.as_ref().is_some_and(|k| k.checkpoint == checkpoint);
        if self.left.as_ref().is_some_and(is_it) {
            self.give_up_keeping();
        }
    }

    /// Gives up a part for which somebody has been waited for too long, or who will not come any more.
    pub(super) fn look_who_owes(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Some(Keeping { since, owed, .. }) = self.left.as_ref().and_then(|left| left.keeping.as_ref())
        else {
            return;
        };
        let gone = owed.keys().find(|worker| !self.ledger.is_member(**worker));
        let why = match gone {
            Some(worker) => format!("{worker} has gone before it gave what was left out of its pushes"),
            None if now.seconds_since(*since) < GIVEN_WITHIN_S => return,
            None => {
                let late: Vec<String> = owed.keys().map(ToString::to_string).collect();
                let late = late.join(", ");
                format!("{late} did not give what was left out of pushes within {GIVEN_WITHIN_S} s")
            }
        };
        self.comes_to_nothing(why, out);
    }

    /// A worker that is about to be given values for these clients is told what has been left out of their pushes, if its life
    /// may not know that.
    pub(super) fn recall(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        clients: &[ClientId],
        out: &mut Vec<Effect>,
    ) {
        let by_client = self.by_client;
        let Some(left) = &mut self.left else { return };
        let life = left.lives.entry(worker).or_default();
        let own = [ClientId(worker.0)];
        let clients: Vec<ClientId> = match (by_client, left.is_at_will) {
            (false, _) if life.is_told => return,
            (false, _) => own.to_vec(),
            (true, true) if life.is_told => return,
            (true, true) => left.table.given_by(worker).collect(),
            (true, false) => clients.to_vec(),
        };
        life.is_told = true;
        let mut residuals: Vec<(ClientId, Residual)> = Vec::new();
        for client in clients {
            if life.has.insert(client) {
                let found = left.table.find(client, worker, life.first);
                residuals.extend(found.map(|residual| (client, residual.clone())));
            }
        }
        if !residuals.is_empty() {
            out.push(Effect::Reply { session, reply: Reply::Recall { residuals } });
        }
    }

    /// Values that are kept of what was left out.
    pub(super) fn left_out(&self) -> u64 {
        self.left.as_ref().map_or(0, |left| left.table.values())
    }
}
