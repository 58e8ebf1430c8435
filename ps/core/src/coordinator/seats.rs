//! Decides which servers have each shard: its primary, its standby, and who is promoted when a server is gone.
//!
//! Each time the run goes on in a new lineage, whoever joins says which copies it has and how far they are. A copy holds all
//! that the shard has shown if, in the lineage whose seats were decided last, it was the primary's, or the standby's once that
//! had all. Of those the primary's is taken; a standby's is promoted. What else is left of earlier lineages is let go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windlass_common::ids::{Incarnation, Lineage, ServerId, ShardId, Step};
use windlass_common::plan::Mode;
use windlass_common::wire::{
    Begins, Body, CheckpointStatus, Entry, Order, Phase, Reject, Resume, SeatStatus, Seats,
};

use super::checkpoints::{Checkpoints, RunState};
use super::closing::Closing;
use super::progress::Progress;
use super::rounds::Rounds;
use super::{Coordinator, Effect, Restore, Server};
use crate::shard::ShardState;
use crate::{SessionId, Time};

/// A run that goes on from copies waits so many seconds for servers that are not needed for them.
pub const SEATED_WITHIN_S: u64 = 1;

/// What a server says of a copy that it has of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Which shard.
    pub shard: ShardId,
    /// The lineage that the copy is in.
    pub lineage: Lineage,
    /// Whether it is that of the primary; otherwise it is that of a standby that had all.
    pub is_primary: bool,
    /// How far it is.
    pub state: ShardState,
    /// Whether no further round was to be opened.
    pub concluded: bool,
    /// With which pushes the coordinator closed the step before the open one.
    pub closed: Vec<Entry>,
}

/// Where the shards of a lineage are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The lineage.
    pub lineage: Lineage,
    /// The servers of each shard.
    pub seats: Vec<Seats>,
    /// For each shard the lineage of the copy that its primary goes on with; none where it begins with a checkpoint, or anew.
    pub from: Vec<Option<Lineage>>,
    /// Servers that shall have no shards as long as others can.
    #[serde(default)]
    pub drained: Vec<ServerId>,
}

impl Placed {
    /// Whether a copy that this server has is known to hold all that its shard has shown, since these seats were decided last.
    fn is_sound(&self, server: ServerId, copy: &Copy) -> bool {
        if copy.lineage == self.lineage {
            return true;
        }
        // It was chosen for this lineage, and its server was not told.
        let seats = self.seats.get(copy.shard.index());
        let from = self.from.get(copy.shard.index()).copied().flatten();
        seats.is_some_and(|seats| seats.primary == server) && from == Some(copy.lineage)
    }
}

impl Coordinator {
    /// Whether it has been decided which servers have the shards.
    pub(super) fn is_placed(&self) -> bool {
        !self.seats.is_empty()
    }

    /// Whether nothing is lost with a server: it has been drained, or the others have gone on without it.
    pub(super) fn has_no_shards(&self, server: ServerId) -> bool {
        let has = |seats: &Seats| seats.primary == server || seats.standby == Some(server);
        self.plan.cluster.replicas > 0 && self.is_placed() && !self.seats.iter().any(has)
    }

    /// The server whose copy of a shard is the one that counts.
    pub fn primary(&self, shard: ShardId) -> ServerId {
        match self.seats.get(shard.index()) {
            Some(seats) => seats.primary,
            None => self.plan.cluster.server_of(shard),
        }
    }

    /// The control stream of a server.
    pub fn session_of(&self, server: ServerId) -> Option<SessionId> {
        self.servers.get(&server).map(|server| server.session)
    }

    pub(super) fn server_joined(
        &mut self,
        session: SessionId,
        server: ServerId,
        (address, copies): (String, Vec<Copy>),
        out: &mut Vec<Effect>,
    ) {
        if self.has_ended() {
            out.push(Effect::Send { session, body: Body::Refused(Reject::Ended) });
            return;
        }
        let servers = self.plan.cluster.servers;
        if server.0 >= servers {
            let reason = Reject::UnknownServer { server: server.0, servers };
            out.push(Effect::Send { session, body: Body::Refused(reason) });
            return;
        }
        // Nobody has been told anything before the seats are decided: its last life has only been forgotten late.
        let is_again = self.plan.cluster.replicas > 0 && (!self.is_placed() || self.has_no_shards(server));
        if let Some(before) = self.servers.get(&server).filter(|_| !is_again) {
            let reason = format!("{server} joined a second time, from {address} after {}", before.address);
            self.server_gone(reason, out);
            return;
        }
        if self.is_placed() && self.drained.contains(&server) {
            self.servers.insert(server, Server { session, address, copies });
            out.push(Effect::Send { session, body: self.welcome(Resume::default(), Vec::new()) });
            return;
        }
        if self.is_placed() {
            // The run has gone on without it.
            self.server_gone(format!("{server} at {address} is there again"), out);
            return;
        }
        self.servers.insert(server, Server { session, address, copies });
        if self.plan.cluster.replicas == 0 {
            out.push(Effect::Send { session, body: self.welcome(Resume::default(), Vec::new()) });
        }
        self.place_if_possible(self.now, out);
    }

    /// Decides where the shards are, once everybody is there who is needed for that.
    pub(super) fn place_if_possible(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.is_placed() || self.has_ended() {
            return;
        }
        let is_complete = self.servers.len() == self.plan.cluster.servers as usize;
        let before = self.restore.as_ref().and_then(|restore| restore.placed.clone());
        match before {
            Some(before) if is_complete || now >= self.began.plus_seconds(SEATED_WITHIN_S) => {
                self.go_on_from_copies(now, &before, is_complete, out);
            }
            None if is_complete => {
                self.seats = self.plan.cluster.seats();
                self.tell_seats(vec![None; self.seats.len()], out);
                self.begin_when_placed(out);
            }
            _ => {}
        }
    }

    fn go_on_from_copies(&mut self, now: Time, before: &Placed, is_complete: bool, out: &mut Vec<Effect>) {
        let mut chosen = BTreeMap::<ShardId, (ServerId, &Copy)>::new();
        for (&server, copy) in self.servers.iter().flat_map(|(id, s)| s.copies.iter().map(move |c| (id, c))) {
            // Two that are sound hold all that was shown; the primary's may hold more.
            let rank =
                |server, copy: &Copy| (copy.lineage, !before.drained.contains(&server), copy.is_primary);
            let is_better =
                chosen.get(&copy.shard).is_none_or(|&(at, other)| rank(at, other) < rank(server, copy));
            if before.is_sound(server, copy) && is_better {
                chosen.insert(copy.shard, (server, copy));
            }
        }
        let shards = self.plan.cluster.shards();
        let lacking: Vec<String> =
            (0..shards).map(ShardId).filter(|s| !chosen.contains_key(s)).map(|s| s.to_string()).collect();
        let copies: Vec<Copy> = chosen.values().map(|(_, copy)| (*copy).clone()).collect();
        let open = copies.iter().map(|copy| copy.state.open).max().unwrap_or_default();
        let is_one_behind = |copy: &Copy| copy.state.open == open || copy.state.open.next() == open;
        if !lacking.is_empty() {
            if is_complete {
                let why = format!("no server has all of {}", lacking.join(", "));
                self.server_gone(why, out);
            }
            return;
        }
        if !copies.iter().all(is_one_behind) {
            self.server_gone("the copies of the shards are of steps too far apart".into(), out);
            return;
        }
        self.drained = before.drained.clone();
        self.seats = self.seats_for(chosen.values().map(|(server, _)| *server).collect());
        let from = copies.iter().map(|copy| Some(copy.lineage)).collect();
        self.restore_from(now, &copies, open);
        self.tell_seats(from, out);
        // A step that the coordinator had closed is closed on every shard.
        if self.rounds.is_some()
            && let Some(ahead) = copies.iter().find(|copy| copy.state.open == open)
        {
            for behind in copies.iter().filter(|copy| copy.state.open < open) {
                let (step, cohort) = (behind.state.open, ahead.closed.clone());
                out.push(Effect::Order { shard: behind.shard, order: Order::Close { step, cohort } });
            }
        }
        self.begin_when_placed(out);
    }

    /// The standby of a shard is the next server that is there.
    fn seats_for(&self, primaries: Vec<ServerId>) -> Vec<Seats> {
        let there = self.servers.keys().copied();
        let there: Vec<ServerId> = there.filter(|server| !self.drained.contains(server)).collect();
        let seats = |primary| {
            let after = there.iter().find(|server| **server > primary);
            let standby = after.or(there.first()).copied().filter(|server| *server != primary);
            Seats { primary, standby }
        };
        primaries.into_iter().map(seats).collect()
    }

    fn restore_from(&mut self, now: Time, copies: &[Copy], open: Step) {
        let Some(before) = self.restore.take() else { return };
        let states: Vec<ShardState> = copies.iter().map(|copy| copy.state.clone()).collect();
        let is_round = self.rounds.is_some();
        let state = RunState {
            open: if is_round { open } else { Step(0) },
            rounds: if is_round { open.0 } else { 0 },
            concluded: copies.iter().any(|copy| copy.concluded),
            ..before.state.clone()
        };
        let restore = Restore {
            checkpoint: before.checkpoint,
            at_us: before.at_us,
            placed: before.placed,
            ..Restore::new(0, state, &states, before.next)
        };
        let state = &restore.state;
        let is_elastic = self.is_elastic();
        for (id, worker) in &mut self.workers {
            let last = state.incarnations.get(id).copied().unwrap_or_default();
            // Who has joined meanwhile needs a life that no copy knows.
            let least = if worker.pending.is_some() { last.next() } else { last };
            worker.incarnation = worker.incarnation.max(least);
            if is_elastic && !worker.is_active() && last > Incarnation(0) {
                // It may have gone at the same time, and pushed to some shards only: it is settled like any that departs.
                worker.fence();
            }
        }
        self.closing = Closing::new(&self.plan, state.open);
        if let Mode::Fedavg(fedavg) = &self.plan.mode {
            self.rounds = Some(Rounds::new(&self.plan, fedavg, state.rounds, state.concluded));
        }
        self.progress = Progress::from(state.examples, state.steps);
        let status = std::mem::take(&mut self.checkpoints.status);
        self.checkpoints = Checkpoints::new(&self.plan, self.lineage, Some(&restore), now);
        self.checkpoints.status = CheckpointStatus { is_kept: true, ..status };
        self.restore = Some(restore);
    }

    /// Has the seats written down, and then tells the servers. Without standbys they know them from the plan.
    fn tell_seats(&self, from: Vec<Option<Lineage>>, out: &mut Vec<Effect>) {
        if self.plan.cluster.replicas == 0 {
            return;
        }
        out.push(self.decided(from));
        let sessions = self.servers.values().map(|server| server.session);
        out.extend(sessions.map(|session| {
            let body = self.welcome(Resume::default(), Vec::new());
            Effect::Send { session, body }
        }));
    }

    fn decided(&self, from: Vec<Option<Lineage>>) -> Effect {
        let (lineage, seats, drained) = (self.lineage, self.seats.clone(), self.drained.clone());
        Effect::Placed(Placed { lineage, seats, from, drained })
    }

    fn begin_when_placed(&mut self, out: &mut Vec<Effect>) {
        self.admit(&[], out);
        for &session in &self.observers {
            self.welcome_observer(session, out);
        }
    }

    /// What the shards begin with. How much of each is in the log is known to whoever keeps it.
    pub fn begins(&self) -> Begins {
        match &self.restore {
            Some(Restore { placed: Some(_), .. }) => Begins::Copies { logged: Vec::new() },
            Some(Restore { checkpoint: Some(number), .. }) => Begins::Checkpoint(*number),
            _ => Begins::Anew,
        }
    }

    /// The addresses of all servers, in order; that of one that is away is empty.
    pub fn addresses(&self) -> Vec<String> {
        let address = |id| self.servers.get(&ServerId(id)).map(|s| s.address.clone()).unwrap_or_default();
        (0..self.plan.cluster.servers).map(address).collect()
    }

    /// Empties a server: the run goes on with the standbys of its shards, and it gets none again.
    pub(super) fn drain(&mut self, session: SessionId, server: ServerId, out: &mut Vec<Effect>) {
        if !self.observers.contains(&session) {
            return;
        }
        let shards = (0..).map(ShardId).zip(&self.seats);
        let bare = shards.filter(|(_, seats)| seats.primary == server).find(|(s, _)| !self.full.contains(s));
        let others = self.servers.keys().filter(|s| **s != server && !self.drained.contains(s)).count();
        let reason = if self.plan.cluster.replicas == 0 {
            "its shards have no standbys; begin the run with --replicas 1".into()
        } else if server == ServerId(0) {
            "it has the coordinator".into()
        } else if self.phase != Phase::Training || others == 0 {
            "nobody could take its shards now".into()
        } else if let Some((shard, _)) = bare {
            format!("the standby of {shard} has not all yet; try again in a moment")
        } else {
            String::new()
        };
        if !reason.is_empty() {
            let reason = Reject::CannotDrain { server, reason };
            out.push(Effect::Send { session, body: Body::Refused(reason) });
            return;
        }
        if !self.drained.contains(&server) {
            self.drained.push(server);
        }
        if !self.has_no_shards(server) {
            out.push(self.decided(vec![None; self.seats.len()]));
            self.server_gone(format!("{server} is drained"), out);
        }
    }

    /// Which servers have each shard, where they are kept more than once.
    pub(super) fn seat_statuses(&self) -> Vec<SeatStatus> {
        if self.plan.cluster.replicas == 0 {
            return Vec::new();
        }
        let shards = (0..).map(ShardId).zip(&self.seats);
        shards
            .map(|(shard, &Seats { primary, standby })| {
                let is_full = self.full.contains(&shard);
                SeatStatus { shard, primary, standby, is_full }
            })
            .collect()
    }

    pub(super) fn standby_lost(&mut self, shard: ShardId, why: &str, out: &mut Vec<Effect>) {
        let standby = self.seats.get(shard.index()).and_then(|seats| seats.standby);
        let whose = standby.map_or_else(String::new, |server| format!(" on {server}"));
        self.server_gone(format!("the standby of {shard}{whose} is lost: {why}"), out);
    }

    /// Shards whose standby has all.
    pub(super) fn replicated(&mut self, shard: ShardId, out: &mut Vec<Effect>) {
        if self.full.insert(shard) {
            let standby = self.seats.get(shard.index()).and_then(|seats| seats.standby);
            out.push(Effect::Replicated { shard, standby: standby.unwrap_or_default() });
        }
    }
}

#[cfg(test)]
mod tests;
