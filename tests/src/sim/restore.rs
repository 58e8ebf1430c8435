//! Keeps checkpoints, and takes the run back to the last that is complete: what the servers' shells do around the cores.

use std::rc::Rc;

use windlass_common::ids::{Lineage, ServerId, ShardId, WorkerId};
use windlass_common::wire::{Begins, Order, Report};
use windlass_ps_core::coordinator::{Complete, Coordinator, Event, Restore, RunState};
use windlass_ps_core::shard::{self, Image, Shard, ShardState};

use super::delivery::How;
use super::hosted::Hosted;
use super::network::{DOWN, Kind, Place, UP};
use super::server::{FIRST, LAUNCHER};
use super::store::{Content, Name};
use super::{Happening, World};
use crate::cluster::{Gradients, History, Kept};

/// A part that cannot be read is read so often.
const READINGS: u32 = 3;
/// Whoever has ended well is started again within this time if the run goes back to before its end.
const AGAIN_WITHIN: u64 = 1_000_000;
/// The pause before the beginning of a lineage that could not be written down is tried again.
const WRITE_AGAIN: u64 = 1_000_000;

/// One history of the run, from its beginning or from a checkpoint on.
#[derive(Debug, Default)]
pub(super) struct Era {
    /// What it goes on from.
    pub(super) base: Option<(Lineage, u64)>,
    pub(super) histories: Vec<History>,
    pub(super) gradients: Gradients,
    pub(super) opened: Vec<(windlass_common::ids::Step, Vec<windlass_common::wire::Task>)>,
    pub(super) closed: Vec<(windlass_common::ids::Step, Vec<windlass_common::wire::Entry>)>,
    pub(super) terms: Vec<(usize, Vec<windlass_common::wire::Member>)>,
    /// Whether it has been decided where its shards are.
    pub(super) is_begun: bool,
    /// Of each shard how much its standby had been told before the last that anybody has seen, and what its copy had done when
    /// that was promoted.
    pub(super) seen: Vec<Option<u64>>,
    pub(super) promoted: Vec<Option<u64>>,
    /// Steps closed, and terms begun, when each checkpoint was cut.
    pub(super) cuts: std::collections::BTreeMap<u64, (usize, usize)>,
}

impl Era {
    pub(super) fn new(shards: u32) -> Self {
        let none = vec![None; shards as usize];
        let histories = vec![History::default(); shards as usize];
        Self { histories, seen: none.clone(), promoted: none, ..Self::default() }
    }

    /// What of this history belongs to a checkpoint that was taken in it.
    fn up_to(&self, checkpoint: (Lineage, u64)) -> Self {
        let histories: Vec<History> = self.histories.iter().map(|h| h.up_to(Some(checkpoint))).collect();
        let settled: std::collections::BTreeSet<_> = histories
            .iter()
            .flat_map(|h| h.records().map(|r| (r.worker, r.incarnation, r.sequence)))
            .collect();
        let gradients = self.gradients.iter().filter(|(key, _)| settled.contains(key));
        let (closed, terms) = self.cuts[&checkpoint.1];
        Self {
            base: Some(checkpoint),
            gradients: gradients.map(|(key, pushed)| (*key, pushed.clone())).collect(),
            histories,
            // The round that was open is opened anew.
            opened: self.opened[..closed.min(self.opened.len())].to_vec(),
            closed: self.closed[..closed].to_vec(),
            terms: self.terms[..terms].to_vec(),
            cuts: Default::default(),
            seen: vec![None; self.seen.len()],
            promoted: vec![None; self.seen.len()],
            is_begun: false,
        }
    }
}

impl World<'_> {
    /// A shard has taken its part of a checkpoint: its server writes it.
    pub(super) fn keep_part(&mut self, server: ServerId, shard: ShardId, checkpoint: u64, image: Image) {
        let lineage = self.followers[server.index()].lineage;
        let name = Name::Part(lineage, checkpoint, shard);
        self.store.write(self.now, name, server, Content::Part(Rc::new(image)));
        let life = self.followers[server.index()].life;
        let at = self.now + self.store.takes();
        self.queue.push(at, Happening::PartWritten { lineage, checkpoint, server, shard, life });
    }

    pub(super) fn part_written(
        &mut self,
        (lineage, checkpoint): (Lineage, u64),
        server: ServerId,
        shard: ShardId,
        life: u32,
    ) {
        let follower = self.followers[server.index()];
        if !self.is_running(Place::Server(server)) || follower.life != life {
            return;
        }
        let kept = self.store.written(self.now, Name::Part(lineage, checkpoint, shard));
        self.counts.add(if kept.is_ok() { "parts kept" } else { "parts not kept" }, 1);
        let is_there = self.hosted(server, shard).is_some_and(|hosted| !hosted.is_silent);
        if follower.lineage == lineage && is_there {
            let part = kept.map(|sum| sum.to_string());
            self.report(server, shard, Report::Kept { checkpoint, part });
        }
    }

    /// Every part is there: the coordinator's process writes the manifest.
    pub(super) fn keep_manifest(&mut self, complete: Complete) {
        let (lineage, number) = (self.lineage, complete.number);
        for shard in (0..self.config.shards()).map(ShardId) {
            let is_kept = self.store.was_written(Name::Part(lineage, number, shard));
            assert!(is_kept, "the manifest of checkpoint {number} comes before the part of {shard} is kept");
        }
        let content = Content::Manifest(Rc::new(complete));
        self.store.write(self.now, Name::Manifest(lineage, number), ServerId(0), content);
        let life = self.followers[0].life;
        let at = self.now + self.store.takes();
        self.queue.push(at, Happening::ManifestWritten { lineage, number, life });
    }

    pub(super) fn manifest_written(&mut self, lineage: Lineage, number: u64, life: u32) {
        if !self.is_running(FIRST) || self.followers[0].life != life {
            return;
        }
        let kept = self.store.written(self.now, Name::Manifest(lineage, number)).map(|_| ());
        if kept.is_ok() {
            self.counts.add("checkpoints", 1);
            let keep = self.config.checkpoints.keep as usize;
            for old in self.store.manifests(self.now).into_iter().skip(keep) {
                self.store.remove(old);
            }
        }
        if lineage == self.lineage && !self.is_restoring {
            self.coordinate(Event::CheckpointKept { number, kept });
        }
    }

    /// The run goes back: the coordinator is no more, and everybody who was connected has to join again.
    pub(super) fn roll_back(&mut self, why: &str, keeps: bool) {
        self.log.note(self.now, || format!("the run goes back: {why}"));
        self.counts.add("rolled back", 1);
        self.progress_at = self.now;
        self.without_coordinator();
        if self.has_replicas() {
            if !keeps {
                self.gives_copies_up(why);
            }
            self.end_life(ServerId(0));
        }
        self.gives_copies_up = !keeps;
        self.writes_until = self.after(FIRST, self.config.rejoin_deadline_s * 1_000_000);
        for connection in
            self.connections_of(FIRST).into_iter().filter(|_| !self.has_replicas()).collect::<Vec<_>>()
        {
            self.close(connection, DOWN, How::ByWord);
        }
        let life = self.followers[0].life;
        let at = self.now + self.store.takes();
        self.queue.push(at, Happening::Restore { life });
    }

    /// From now on there is no coordinator, nor are there shards of its process.
    pub(super) fn without_coordinator(&mut self) {
        self.is_restoring = true;
        self.deadline = None;
        self.followers[0].is_welcome = false;
        self.orders_to.fill(None);
        self.locals.clear();
        match self.has_replicas() {
            true => self.followers[0].serves = false,
            false => self.drop_shards(ServerId(0)),
        }
    }

    /// The coordinator's process has a look at what has been kept, and goes on from the newest of it that is whole.
    pub(super) fn restore(&mut self, life: u32) {
        if !self.is_running(FIRST) || self.followers[0].life != life || !self.is_restoring {
            return;
        }
        let placed = self.written.placed.clone().filter(|_| !self.gives_copies_up);
        let base = if placed.is_some() { None } else { self.newest_checkpoint() };
        let lineage = Lineage(self.store.lineage().map_or(0, |last| last.0 + 1));
        if let Err(why) = self.store.begin_lineage(self.now, lineage) {
            self.counts.add("lineages not begun", 1);
            if self.now >= self.writes_until {
                self.end(FIRST, format!("lineage {lineage} cannot be begun: {why}"), false);
            } else {
                let at = self.after(FIRST, WRITE_AGAIN);
                self.queue.push(at, Happening::Restore { life });
            }
            return;
        }
        assert!(self.eras.keys().all(|before| *before < lineage), "lineage {lineage} has been before");
        let next = self.store.next(self.now);
        let restore = match &base {
            Some((checkpoint, complete, images)) => {
                self.counts.add("restored", 1);
                let states: Vec<ShardState> = images.iter().map(|image| image.state.clone()).collect();
                Restore::new(checkpoint.1, complete.state.clone(), &states, next)
            }
            None if let Some(placed) = placed.clone() => {
                Restore::from_copies(placed, self.lives.clone(), next)
            }
            None => {
                self.counts.add("begun anew", 1);
                Restore::from_the_beginning(RunState::default(), next)
            }
        };
        let from = base.as_ref().map(|(checkpoint, ..)| *checkpoint);
        self.log.note(self.now, || format!("lineage {lineage} begins, from {from:?}"));
        if placed.is_none() {
            let images = base.as_ref().map(|(_, _, images)| images.as_slice());
            self.written.go_back(images);
            (self.gives_copies_up, self.is_endangered) = (false, true);
            self.lives = restore.state.clone();
        }
        let era = match from {
            Some(checkpoint) => match self.resumed.take() {
                Some(era) => era,
                None => self.era_of(checkpoint).up_to(checkpoint),
            },
            None => Era::new(self.config.shards()),
        };
        self.eras.insert(lineage, era);
        (self.lineage, self.is_restoring) = (lineage, false);
        self.progress_at = self.now;
        self.results.clear();
        let shards = 0..self.config.shards();
        self.locals = shards.map(ShardId).map(|shard| self.net.stream(Kind::Local(shard), None)).collect();
        let now = self.local(FIRST);
        self.coordinator = Coordinator::restored(self.plan.clone(), self.run, lineage, restore, now);
        let images = base.map(|(_, _, images)| images);
        match self.has_replicas() {
            true => self.first_images = images,
            false => self.make_shards(ServerId(0), lineage, images),
        }
        self.begin_coordinator();
        self.start_who_has_left();
    }

    /// The history in which a checkpoint was taken.
    fn era_of(&self, (lineage, _): (Lineage, u64)) -> &Era {
        &self.eras[&lineage]
    }

    pub(super) fn begin_coordinator(&mut self) {
        self.followers[0].is_welcome = true;
        // The coordinator's own server has a session that nothing is sent to.
        let session = super::acts::OWN;
        let address = FIRST.to_string();
        let copies = self.copies_of(ServerId(0));
        self.coordinate(Event::ServerJoined { session, server: ServerId(0), address, copies });
        self.coordinate(Event::ObserverJoined { session: LAUNCHER });
    }

    /// The newest checkpoint that is complete, with what is in it.
    #[allow(clippy::type_complexity)]
    fn newest_checkpoint(&mut self) -> Option<((Lineage, u64), Rc<Complete>, Vec<Image>)> {
        for checkpoint in self.store.manifests(self.now) {
            match self.whole(checkpoint) {
                Ok((complete, images)) => return Some((checkpoint, complete, images)),
                Err(why) => {
                    self.log.note(self.now, || format!("checkpoint {checkpoint:?} is passed over: {why}"));
                    self.counts.add("passed over", 1);
                }
            }
        }
        None
    }

    pub(super) fn whole(
        &mut self,
        (lineage, number): (Lineage, u64),
    ) -> Result<(Rc<Complete>, Vec<Image>), String> {
        let Content::Manifest(complete) = self.store.read(self.now, Name::Manifest(lineage, number))? else {
            return Err("it is no manifest".into());
        };
        let images =
            (0..complete.parts.len() as u32).map(|shard| self.read_part(lineage, number, ShardId(shard)));
        let images = images.collect::<Result<Vec<Image>, String>>()?;
        Ok((complete, images))
    }

    fn read_part(&mut self, lineage: Lineage, number: u64, shard: ShardId) -> Result<Image, String> {
        match self.store.read(self.now, Name::Part(lineage, number, shard))? {
            Content::Part(image) => Ok((*image).clone()),
            Content::Manifest(_) => Err("it is no part".into()),
        }
    }

    /// A server other than the first has been welcomed, and has read what its shards begin with.
    pub(super) fn made(&mut self, server: ServerId, life: u32, lineage: Lineage) {
        let place = Place::Server(server);
        let follower = self.followers[server.index()];
        if !self.is_running(place) || follower.life != life || follower.joins != Some(lineage) {
            return;
        }
        let (seats, begins) = self.welcomes[server.index()].clone();
        let images = match self.eras[&lineage].base {
            _ if matches!(begins, Begins::Copies { .. }) => None,
            None => None,
            Some((of, number)) => match self.images_of(server, of, number) {
                Ok(images) => Some(images),
                Err(why) => {
                    self.counts.add("parts not read", 1);
                    self.end(place, why, false);
                    return;
                }
            },
        };
        match self.has_replicas() {
            true => self.take_up_seats(server, lineage, (&seats, &begins), images),
            false => self.make_shards(server, lineage, images),
        }
        let follower = &mut self.followers[server.index()];
        (follower.joins, follower.is_welcome) = (None, true);
        for (shard, order) in std::mem::take(&mut self.backlog[server.index()]) {
            self.shard(server, shard, shard::Event::Order(order));
        }
    }

    /// The images of a server's shards, where those of the others are not looked at.
    fn images_of(&mut self, server: ServerId, lineage: Lineage, number: u64) -> Result<Vec<Image>, String> {
        let mut images = vec![None; self.config.shards() as usize];
        for shard in self.plan.cluster.shards_of(server) {
            let mut read = self.read_part(lineage, number, shard);
            for _ in 1..READINGS {
                read = read.or_else(|_| self.read_part(lineage, number, shard));
            }
            images[shard.index()] = Some(read?);
        }
        let none = Image::default;
        Ok(images.into_iter().map(|image| image.unwrap_or_else(none)).collect())
    }

    pub(super) fn make_shards(&mut self, server: ServerId, lineage: Lineage, images: Option<Vec<Image>>) {
        self.drop_shards(server);
        (self.followers[server.index()].lineage, self.followers[server.index()].serves) = (lineage, true);
        for id in self.plan.cluster.shards_of(server) {
            let shard = match &images {
                Some(images) => {
                    Shard::restored(&self.plan, self.run, lineage, id, images[id.index()].clone())
                }
                None => Shard::new(&self.plan, self.run, lineage, id),
            };
            let shard = shard.expect("a checked plan can be placed");
            let era = self.eras.get_mut(&lineage).expect("a lineage has a history");
            if lineage > Lineage(0) {
                let kept = era.base.map(|checkpoint| Kept::of(checkpoint, &shard.image()));
                era.histories[id.index()].restore(lineage, kept);
            }
            self.hosted.insert((server, id), Hosted::new(shard, lineage, None));
        }
    }

    /// A server other than the first has lost the coordinator: it lets go of what it has and tries to join again.
    pub(super) fn follower_cut(&mut self, server: ServerId) {
        let place = Place::Server(server);
        if !self.config.survives_servers() {
            self.end(place, "the coordinator is gone".into(), false);
            return;
        }
        self.counts.add("servers joined again", 1);
        if self.has_replicas() {
            // What it has it keeps, and offers when it joins.
            self.followers[server.index()].serves = false;
            self.end_life(server);
            self.connect_follower(server);
            return;
        }
        self.drop_shards(server);
        for connection in self.connections_of(place) {
            let end = if self.net.connections[connection].client == place { UP } else { DOWN };
            self.close(connection, end, How::ByWord);
        }
        self.connect_follower(server);
    }

    /// An order for a shard of a follower, which may yet have to read what its shards begin with.
    pub(super) fn follower_ordered(&mut self, server: ServerId, shard: ShardId, order: Order) {
        if self.followers[server.index()].joins.is_some() {
            self.backlog[server.index()].push((shard, order));
        } else {
            self.shard(server, shard, shard::Event::Order(order));
        }
    }

    /// Who had left in good order is needed again where the run has gone back to before that.
    fn start_who_has_left(&mut self) {
        for worker in (0..self.config.workers).map(WorkerId) {
            if self.seats[worker.index()].has_left && !self.is_running(Place::Worker(worker)) {
                self.start_again(worker);
            }
        }
    }

    pub(super) fn start_again(&mut self, worker: WorkerId) {
        let at = self.now + self.rng.below(AGAIN_WITHIN);
        let seat = self.seat(worker);
        if !seat.is_due {
            seat.is_due = true;
            self.counts.add("started again after its end", 1);
            self.queue.push(at, Happening::Start(Place::Worker(worker)));
        }
    }

    /// A server's process has ended badly, or was killed: whoever has started it does so again.
    pub(super) fn server_ended(&mut self, server: ServerId) {
        self.followers[server.index()].control = None;
        self.followers[server.index()].is_welcome = false;
        if !self.config.survives_servers() {
            return;
        }
        if server == ServerId(0) {
            self.without_coordinator();
            self.gives_copies_up = false;
        }
        self.drop_shards(server);
        let Some((least, most)) = self.config.server_restarts else {
            if server == ServerId(0) {
                self.over_at.get_or_insert(self.now);
            }
            return;
        };
        if self.over_at.is_none() {
            let at = self.now + least + self.rng.below(most - least + 1);
            self.queue.push(at, Happening::Start(Place::Server(server)));
        }
    }

    /// A server has come back to its address: it knows none of the connections that its peers still think they have.
    pub(super) fn forget_connections(&mut self, server: ServerId) {
        for connection in self.net.open.clone() {
            let this = &self.net.connections[connection];
            if this.server == server && !this.ends[DOWN].is_open() && this.ends[UP].is_open() {
                let at = self.now + 1 + self.rng.below(super::IDLE / 3);
                self.queue.push(at, Happening::Closed { connection, end: UP, is_word: false });
            }
        }
    }
}
