//! Takes a run on with the copies that servers have, and judges that nothing is lost by that.

use windlass_common::ids::{Lineage, ServerId, ShardId, Step};
use windlass_common::plan::Mode;
use windlass_common::wire::{Begins, Order, Record, Seats};
use windlass_ps_core::coordinator::{Effect as Decision, Placed};
use windlass_ps_core::shard::Image;

use super::World;
use super::hosted::Hosted;
use super::network::Place;
use super::restore::Era;
use super::server::FIRST;
use crate::cluster::{Kept, Source};

/// The log of the run is made safe, and shards are told how much of them it has, each time so many ticks have passed.
const LOGGED_EVERY: u64 = 10;

/// What the coordinator's process has written down of a run with replicas.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The seats that were decided last, unless the run has gone back to a checkpoint since.
    pub(super) placed: Option<Placed>,
    /// The records of each shard; none where the run went back to a checkpoint that holds what the log never did.
    pub(super) records: Vec<Vec<Option<Record>>>,
    /// How many of them are safe when the machine goes down.
    pub(super) safe: Vec<usize>,
    ticks: u64,
}

impl Written {
    pub(super) fn new(shards: u32) -> Self {
        let (records, safe) = (vec![Vec::new(); shards as usize], vec![0; shards as usize]);
        Self { records, safe, ..Self::default() }
    }

    /// The run goes back: what came later is no more.
    pub(super) fn go_back(&mut self, images: Option<&[Image]>) {
        self.placed = None;
        for (id, records) in self.records.iter_mut().enumerate() {
            records.resize(images.map_or(0, |images| images[id].state.pushes as usize), None);
            self.safe[id] = records.len();
        }
    }

    /// What is in the log stays there whatever happens.
    fn make_safe(&mut self) {
        self.safe = self.records.iter().map(Vec::len).collect();
    }

    /// The machine goes down.
    pub(super) fn crashed(&mut self) {
        for (records, safe) in self.records.iter_mut().zip(&self.safe) {
            records.truncate(*safe);
        }
    }

    /// Takes what a shard tells, but for what it has; every record comes, and what comes again is the same.
    pub(super) fn take(&mut self, shard: ShardId, records: Vec<Record>) -> Vec<Record> {
        let log = &mut self.records[shard.index()];
        let before = log.len();
        for record in records {
            let at = record.number as usize;
            assert!(at <= log.len() + 1, "the log of {shard} ends with {}, and {record:?} comes", log.len());
            match at.checked_sub(1).and_then(|at| log.get(at)) {
                Some(known) => assert_eq!(*known, Some(record), "the log of {shard} has another record {at}"),
                None => log.push(Some(record)),
            }
        }
        log[before..].iter().copied().flatten().collect()
    }
}

impl World<'_> {
    /// Somebody has seen what a shard has done, the standby having been told so much before.
    pub(super) fn seen(&mut self, lineage: Lineage, id: ShardId, told: u64) {
        let era = self.eras.get_mut(&lineage).expect("every lineage has a history");
        let seen = &mut era.seen[id.index()];
        *seen = (*seen).max(Some(told));
        if let Some(promoted) = era.promoted[id.index()] {
            assert!(
                told <= promoted,
                "{id} shows in lineage {lineage} what it has done after it was told {promoted}, where its copy was promoted"
            );
            self.counts.add("shown by the deposed", 1);
        }
    }

    /// It has been decided where the shards are: it is written down, and what is gone on with must hold all that was seen.
    pub(super) fn placed(&mut self, placed: Placed) {
        if let Err(why) = self.store.decide(self.now) {
            self.counts.add("seats not written", 1);
            self.end(FIRST, format!("where the shards are cannot be written down: {why}"), false);
            return;
        }
        let lineage = self.lineage;
        assert_eq!(placed.lineage, lineage, "seats are those of the lineage that begins");
        self.log.note(self.now, || format!("placed: {:?}, from {:?}", placed.seats, placed.from));
        if placed.from.iter().any(Option::is_some) {
            self.go_on_with_copies(&placed);
        }
        // Shards are about to be told what they need not tell again.
        self.written.make_safe();
        self.written.placed = Some(placed);
        self.era().is_begun = true;
    }

    fn go_on_with_copies(&mut self, placed: &Placed) {
        let last = self.written.placed.as_ref().expect("copies are of a lineage that was placed").lineage;
        let mut era = Era::new(self.config.shards());
        let (mut open, mut promotions) = (Step(0), 0);
        for (at, seats) in placed.seats.iter().enumerate() {
            let (id, server) = (ShardId(at as u32), seats.primary);
            let from = placed.from[at].expect("all shards are gone on with");
            let hosted = self.hosted.get(&(server, id)).filter(|hosted| hosted.lineage == from);
            let second = self.standbys.get(&(server, id)).filter(|second| second.standby.lineage() == from);
            let (state, told) = match (hosted, second) {
                (Some(hosted), _) => (hosted.shard.state(), None),
                (None, Some(second)) => {
                    let shard = second.standby.full();
                    let shard = shard.unwrap_or_else(|| {
                        panic!("the copy of {id} on {server} that is promoted has not all")
                    });
                    (shard.state(), Some(second.count))
                }
                // It has gone since it joined.
                (None, None) => match self.ghosts.get(&(server, id, from)) {
                    Some(ghost) => ghost.clone(),
                    None => panic!("{server} never had a copy of {id} of lineage {from}"),
                },
            };
            open = open.max(state.open);
            let before = self.eras.get_mut(&from).expect("every lineage has a history");
            if let Some(told) = told {
                promotions += 1;
                let is_there = |((of, its), hosted): (&(ServerId, ShardId), &Hosted)| {
                    *its == id && hosted.lineage == from && self.coordinator.session_of(*of).is_some()
                };
                let is_needed = !self.hosted.iter().any(is_there);
                assert!(
                    is_needed || from < last,
                    "the standby of {id} on {server} is promoted, and its primary is there"
                );
                let seen = before.seen[at].unwrap_or(0);
                assert!(
                    seen <= told,
                    "{id}: the copy on {server} has done what it was told up to {told}, and what came after {seen} was seen"
                );
                before.promoted[at] = Some(told);
            }
            era.histories[at] = before.histories[at].done_by_copy(told);
            for (key, pushed) in &before.gradients {
                era.gradients.entry(*key).or_insert_with(|| pushed.clone());
            }
            // In no lineage since then has anybody seen anything of the shard.
            let since =
                self.eras.range(from.next()..).filter(|(lineage, era)| **lineage <= last && era.is_begun);
            for (lineage, era) in since {
                let is_unseen = era.seen[at].is_none();
                assert!(is_unseen, "{id} goes on from lineage {from}, and lineage {lineage} has shown more");
            }
            let told_of: Vec<Record> =
                era.histories[at].records().filter(|r| r.number > 0).copied().collect();
            let logged = &self.written.records[at];
            let is_same = |(at, known): (usize, &Option<Record>)| {
                known.is_none_or(|known| told_of.get(at) == Some(&known))
            };
            let is_done = logged.iter().enumerate().all(is_same);
            assert!(is_done, "the log of {id} has what its copy has not done");
        }
        let before = &self.eras[&last];
        if matches!(self.plan.mode, Mode::Fedavg(_)) {
            let closed = (open.0 as usize).min(before.closed.len());
            era.opened = before.opened[..closed.min(before.opened.len())].to_vec();
            era.closed = before.closed[..closed].to_vec();
            assert_eq!(closed as u64, open.0, "copies have closed a round that the coordinator did not");
            era.terms = before.terms.iter().filter(|(at, _)| *at <= closed).cloned().collect();
        }
        self.counts.add("promotions", promotions);
        self.counts.add("gone on with copies", 1);
        self.eras.insert(self.lineage, era);
    }

    /// A server makes the shards whose primary it is now.
    pub(super) fn take_up_seats(
        &mut self,
        server: ServerId,
        lineage: Lineage,
        (seats, begins): (&[Seats], &Begins),
        images: Option<Vec<Image>>,
    ) {
        let mut again = Vec::new();
        if let Begins::Copies { logged } = begins {
            let (mut firsts, mut seconds) =
                (std::mem::take(&mut self.hosted), std::mem::take(&mut self.standbys));
            for (id, _) in (0..).map(ShardId).zip(seats).filter(|(_, seats)| seats.primary == server) {
                let (shard, source) = match (firsts.remove(&(server, id)), seconds.remove(&(server, id))) {
                    (Some(hosted), _) => (Some(hosted.shard), Source::Primary),
                    (None, Some(second)) => (second.standby.into_full(), Source::Standby),
                    (None, None) => (None, Source::Standby),
                };
                let shard =
                    shard.unwrap_or_else(|| panic!("{server} has not the copy of {id} that it goes on with"));
                let mut effects = Vec::new();
                let shard = shard.into_lineage(lineage, logged[id.index()], &mut effects);
                again.push((id, shard, source, effects));
            }
            (self.hosted, self.standbys) = (firsts, seconds);
            self.drop_shards(server);
            self.followers[server.index()].lineage = lineage;
        } else {
            self.make_shards(server, lineage, images);
        }
        self.followers[server.index()].serves = true;
        let copies: Vec<_> = again
            .into_iter()
            .map(|(id, shard, source, effects)| {
                let kept = Kept::of((lineage, 0), &shard.image());
                let era = self.eras.get_mut(&lineage).expect("a lineage has a history");
                era.histories[id.index()].go_on(kept, source);
                self.hosted.insert((server, id), Hosted::new(shard, lineage, None));
                (id, effects)
            })
            .collect();
        for (id, effects) in copies {
            self.act_on(server, id, 0, effects);
        }
        self.take_seats(server, lineage, seats);
    }

    /// A server's process is about to end. As long as every standby has all, that loses nothing.
    pub(super) fn is_endangered_by_an_end(&mut self) {
        if self.has_replicas() && self.over_at.is_none() && !self.is_all_full() {
            self.is_endangered = true;
            self.counts.add("kills during refill", 1);
        }
    }

    /// Whether each shard has two copies with all that it has shown.
    pub(super) fn is_all_full(&self) -> bool {
        let is_full = |id: ShardId| {
            self.hosted.iter().any(|((server, its), hosted)| {
                let serves = self.followers[server.index()].serves && self.is_running(Place::Server(*server));
                let copy = hosted.line.as_ref().and_then(|line| self.standbys.get(&(line.to, id)));
                let has_copy = copy.is_some_and(|second| second.standby.full().is_some());
                *its == id && hosted.lineage == self.lineage && serves && hosted.is_full() && has_copy
            })
        };
        (0..self.config.shards()).map(ShardId).all(is_full)
    }

    /// The copies are given up: then a process has ended before every standby had all.
    pub(super) fn gives_copies_up(&mut self, why: &str) {
        if self.written.placed.is_none() {
            return;
        }
        self.counts.add("copies given up", 1);
        // A round that is closed with nobody is closed before all shards have heard of the one before.
        let is_apart = why.contains("too far apart");
        assert!(self.is_endangered || is_apart, "copies are given up, and nothing was lost: {why}");
    }

    /// How many records of each shard are in the log.
    pub(super) fn logged(&self) -> Vec<u64> {
        self.written.records.iter().map(|records| records.len() as u64).collect()
    }

    /// The log is made safe, and the shards may forget what is in it.
    pub(super) fn tell_logged_if_due(&mut self) {
        self.written.ticks += 1;
        let is_placed = self.written.placed.as_ref().is_some_and(|placed| placed.lineage == self.lineage);
        if !self.written.ticks.is_multiple_of(LOGGED_EVERY) || !is_placed || self.stop.is_some() {
            return;
        }
        self.written.make_safe();
        for (id, records) in (0..).map(ShardId).zip(self.logged()) {
            self.act(Decision::Order { shard: id, order: Order::Logged { records } });
        }
    }
}
