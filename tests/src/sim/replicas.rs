//! Carries what primaries tell their standbys, as the servers' shells do.

use std::collections::BTreeMap;

use windlass_common::ids::{Lineage, ServerId, ShardId};
use windlass_common::wire::{Feed, Report, Seats};
use windlass_ps_core::coordinator::Copy;
use windlass_ps_core::replica::{Gate, Refused, Standby};
use windlass_ps_core::shard::Floats;

use super::delivery::How;
use super::network::{DOWN, Kind, Place, UP};
use super::{Happening, World};
use crate::cluster::Brought;
use crate::cluster::links::Message;

/// Between two attempts to reach the server of a standby.
const RETRY: u64 = 100_000;
/// What is told is delivered once more within this time.
const LATE_WITHIN: u64 = 3_000_000;
/// Ways that sessions have to a standby beside the shard's.
const WAYS: usize = 2;

/// A primary's way to the standby.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Where the standby is.
    pub(super) to: ServerId,
    pub(super) stream: Option<usize>,
    /// Those beside it, for some of what comes once the standby has all.
    ways: [usize; WAYS],
    /// The number of the word that the standby has all, once that was told.
    full: Option<u64>,
    pub(super) is_reported: bool,
}

impl Line {
    fn to(to: ServerId) -> Self {
        Self { to, stream: None, ways: [0; WAYS], full: None, is_reported: false }
    }
}

/// Something that a standby is told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) lineage: Lineage,
    pub(crate) number: u64,
    pub(crate) feed: Feed,
    pub(crate) floats: Brought,
    /// How much the standby was told in this lineage, over all streams.
    pub(crate) count: u64,
    /// The digest of the primary when it had done this, where that is known.
    pub(crate) digest: Option<u64>,
}

/// A copy on a server that is not the primary's.
#[derive(Debug)]
pub(super) struct Second {
    pub(super) standby: Standby<Brought>,
    /// Over which connection it is told.
    connection: Option<usize>,
    /// How much it has done of what was told in its lineage.
    pub(super) count: u64,
    /// Of what it has been told, by number, how much that was and the primary's digest.
    heard: BTreeMap<u64, (u64, Option<u64>)>,
}

fn end_to_end(floats: Floats<Brought>) -> Brought {
    match floats {
        Floats::None => Brought::Floats(Vec::new()),
        Floats::Gradient(gradient) => gradient,
        Floats::Pieces(pieces) => {
            Brought::Floats(pieces.iter().flat_map(|piece| piece.iter().copied()).collect())
        }
    }
}

impl World<'_> {
    pub(super) fn has_replicas(&self) -> bool {
        self.config.replicas > 0
    }

    /// A server has been told which seats it has: it makes room for standbys, and looks for those of its own shards.
    pub(super) fn take_seats(&mut self, server: ServerId, lineage: Lineage, seats: &[Seats]) {
        for (id, seats) in (0..).map(ShardId).zip(seats) {
            if seats.standby == Some(server) {
                let standby = Standby::new(self.run, lineage, id);
                self.standbys.insert(
                    (server, id),
                    Second { standby, connection: None, count: 0, heard: BTreeMap::new() },
                );
            }
            if let (true, Some(to)) = (seats.primary == server, seats.standby) {
                if let Some(hosted) = self.hosted.get_mut(&(server, id)) {
                    hosted.line = Some(Line::to(to));
                }
                self.queue.push(self.now + 1, Happening::Dial { server, shard: id, lineage, is_done: false });
            }
        }
    }

    /// A primary tries to reach the server of its standby; with `is_done` the handshake has been made.
    pub(super) fn dial(&mut self, server: ServerId, id: ShardId, lineage: Lineage, is_done: bool) {
        let from = Place::Server(server);
        let (now, is_running) = (self.now, self.is_running(from));
        let Some(hosted) = self.hosted(server, id).filter(|h| is_running && h.lineage == lineage) else {
            return;
        };
        let Some(to) = hosted.line.as_ref().filter(|line| line.stream.is_none()).map(|line| line.to) else {
            return;
        };
        if !self.gets_through(from, to) {
            let at = now + RETRY / 2 + self.rng.below(RETRY);
            self.queue.push(at, Happening::Dial { server, shard: id, lineage, is_done: false });
            return;
        }
        if !is_done {
            let at = now + self.net.round_trip(from, Place::Server(to)) * 3 / 2;
            self.queue.push(at, Happening::Dial { server, shard: id, lineage, is_done: true });
            return;
        }
        let connection = self.net.connect(from, to);
        let mut stream = || self.net.stream(Kind::Feed(id), Some(connection));
        let (stream, ways) = (stream(), [stream(), stream()]);
        self.counts.add("refills", 1);
        let mut effects = Vec::new();
        let Some(hosted) = self.hosted(server, id) else { return };
        hosted.line = Some(Line { stream: Some(stream), ways, ..Line::to(to) });
        hosted.gate = Gate::default();
        hosted.shard.begin_feeding(&mut effects);
        let history = self.history(lineage, id);
        let told = history.fed();
        history.feed(effects.len(), true);
        self.act_on(server, id, told, effects);
    }

    fn history(&mut self, lineage: Lineage, id: ShardId) -> &mut crate::cluster::History {
        let era = self.eras.get_mut(&lineage).expect("every lineage has a history");
        &mut era.histories[id.index()]
    }

    /// The standby is told what comes next, as the so many-th thing of this lineage.
    pub(super) fn tell_standby(&mut self, server: ServerId, id: ShardId, count: u64, is_last: bool) {
        let Some(hosted) = self.hosted(server, id) else { return };
        let (feed, floats) = hosted.shard.next_feed().expect("each word of it stands for one");
        let (number, lineage) = (hosted.gate.number(), hosted.lineage);
        let digest = is_last.then(|| hosted.shard.digest());
        let Some(line) = &mut hosted.line else { return };
        if feed == Feed::Full {
            line.full = Some(number);
        }
        let way = if line.is_reported { self.rng.below(1 + WAYS as u64) as usize } else { 0 };
        let Some(hosted) = self.hosted(server, id) else { return };
        let Some(line) = &hosted.line else { return };
        let stream = if way == 0 { line.stream } else { line.stream.map(|_| line.ways[way - 1]) };
        if let Some(stream) = stream {
            let told = Told { lineage, number, feed, floats: end_to_end(floats), count, digest };
            self.send(stream, UP, Message::Told(Box::new(told)));
        }
    }

    /// Something arrives at the server of a standby.
    pub(super) fn standby_told(&mut self, server: ServerId, id: ShardId, stream: usize, told: Told) {
        if self.net.below(1_000_000) < self.config.duplicates.max(20_000) {
            let at = self.now + 1 + self.net.below(LATE_WITHIN);
            self.queue.push(at, Happening::Late { server, shard: id, told: Box::new(told.clone()) });
        }
        let lineage = self.followers[server.index()].lineage;
        let Told { number, count, digest, .. } = told;
        let is_begun = matches!(told.feed, Feed::Whole(_));
        let serves = self.followers[server.index()].serves;
        let plan = &self.plan;
        let connection = self.net.streams[stream].connection;
        let taken = match self.standbys.get_mut(&(server, id)).filter(|_| serves) {
            None => Err("it is no standby".to_owned()),
            // Another stream has taken its place.
            Some(second) if told.lineage == lineage && second.connection != connection && !is_begun => {
                Err("it is fed by another stream".to_owned())
            }
            Some(second) => {
                if is_begun {
                    second.heard.clear();
                }
                let taken = second.standby.take(plan, told.lineage, number, told.feed, told.floats);
                taken.map_err(|refused| match refused {
                    Refused::Feed(error) => panic!("{id} on s{}: the copy cannot follow: {error}", server.0),
                    other => other.to_string(),
                })
            }
        };
        let Some(connection) = connection else { return };
        match taken {
            Ok(confirmed) => {
                assert_eq!(told.lineage, lineage, "the standby of {id} takes what another lineage tells it");
                let second = self.standbys.get_mut(&(server, id)).expect("it has taken something");
                second.connection = Some(connection);
                second.heard.insert(number, (count, digest));
                let Some(number) = confirmed else {
                    self.counts.add("fed before what was told before", 1);
                    return;
                };
                let confirmed = second.heard.get(&number).copied();
                let (count, digest) = confirmed.expect("the standby confirms what it was not told");
                let missing = (second.count + 1..count).find(|n| !second.heard.values().any(|(c, _)| c == n));
                assert!(
                    is_begun || missing.is_none(),
                    "the standby of {id} confirms {missing:?}, which it was not told"
                );
                second.heard.retain(|&heard, _| heard > number);
                second.count = count;
                if let (Some(shard), Some(expected)) = (second.standby.full(), digest) {
                    self.counts.add("digests compared", 1);
                    assert_eq!(shard.digest(), expected, "the standby of {id} is other than its primary was");
                }
                self.send(stream, DOWN, Message::Confirmed(number));
            }
            Err(why) => {
                self.counts.add("feeds refused", 1);
                self.log.note(self.now, || format!("s{} refuses to be told of {id}: {why}", server.0));
                self.close(connection, DOWN, How::ByWord);
            }
        }
    }

    /// Something that a primary of an earlier lineage told is delivered after another has begun.
    pub(super) fn late(&mut self, server: ServerId, id: ShardId, told: Told) {
        let follower = self.followers[server.index()];
        let is_there = self.is_running(Place::Server(server)) && follower.serves;
        if !is_there || told.lineage >= follower.lineage {
            return;
        }
        let Some(second) = self.standbys.get_mut(&(server, id)) else { return };
        let taken = second.standby.take(&self.plan, told.lineage, told.number, told.feed, told.floats);
        let is_fenced = matches!(taken, Err(Refused::Lineage { .. }));
        assert!(is_fenced, "the standby of {id} is told by lineage {} and answers {taken:?}", told.lineage);
        self.counts.add("late feeds refused", 1);
    }

    /// The standby has done everything up to this number.
    pub(super) fn feed_confirmed(&mut self, server: ServerId, id: ShardId, stream: usize, number: u64) {
        let Some(hosted) = self.hosted(server, id) else { return };
        let is_of = |line: &Line| {
            line.stream.is_some() && (line.stream == Some(stream) || line.ways.contains(&stream))
        };
        if hosted.is_silent || !hosted.line.as_ref().is_some_and(is_of) {
            return;
        }
        let mut shown = Vec::new();
        hosted.gate.confirmed(number, &mut shown);
        for released in shown {
            let told = self.hosted(server, id).and_then(|hosted| hosted.waiting.pop_front());
            self.release(server, id, told.expect("it waited"), released);
        }
        let Some(hosted) = self.hosted(server, id) else { return };
        let lineage = hosted.lineage;
        if !hosted.gate.is_shut() {
            let mut effects = Vec::new();
            hosted.shard.told_all(&mut effects);
            let history = self.history(lineage, id);
            let told = history.fed();
            history.feed(effects.len(), false);
            self.act_on(server, id, told, effects);
            if let Some(hosted) = self.hosted(server, id) {
                hosted.gate.shut();
            }
        } else if let Some(line) = &mut hosted.line
            && !line.is_reported
            && line.full.is_some_and(|full| full <= number)
        {
            line.is_reported = true;
            self.is_endangered &= !self.is_all_full();
            self.report(server, id, Report::Replicated);
        }
    }

    /// A connection of a primary to its standby is lost.
    pub(super) fn feed_lost(&mut self, server: ServerId, connection: usize) {
        let streams = self.net.connections[connection].streams.clone();
        let is_on = |line: &Line| line.stream.is_some_and(|stream| streams.contains(&stream));
        let shards: Vec<ShardId> = (0..self.config.shards()).map(ShardId).collect();
        for id in shards {
            let Some(hosted) = self.hosted(server, id).filter(|h| h.line.as_ref().is_some_and(is_on)) else {
                continue;
            };
            let lineage = hosted.lineage;
            if hosted.gate.is_shut() {
                hosted.is_silent = true;
                self.counts.add("standby lost", 1);
                self.report(server, id, Report::StandbyLost { why: "its connection is gone".into() });
                continue;
            }
            hosted.shard.end_feeding();
            hosted.gate = Gate::default();
            if let Some(line) = &mut hosted.line {
                line.stream = None;
            }
            assert!(hosted.waiting.is_empty(), "nothing waits for a standby that has not all");
            self.counts.add("lost during refill", 1);
            let at = self.now + RETRY;
            self.queue.push(at, Happening::Dial { server, shard: id, lineage, is_done: false });
        }
    }

    /// What a server says of its copies when it joins.
    pub(super) fn copies_of(&self, server: ServerId) -> Vec<Copy> {
        if !self.has_replicas() {
            return Vec::new();
        }
        let of_it = |of: &ServerId| *of == server;
        let mut copies = BTreeMap::new();
        for ((_, id), hosted) in self.hosted.iter().filter(|((of, _), _)| of_it(of)) {
            copies.insert((*id, 0), copy(*id, hosted.lineage, true, &hosted.shard));
        }
        for ((_, id), second) in self.standbys.iter().filter(|((of, _), _)| of_it(of)) {
            if let Some(shard) = second.standby.full() {
                copies.insert((*id, 1), copy(*id, second.standby.lineage(), false, shard));
            }
        }
        copies.into_values().collect()
    }

    /// A server's life is over: it closes its connections, but for some over which others feed it.
    pub(super) fn end_life(&mut self, server: ServerId) {
        let place = Place::Server(server);
        for connection in self.connections_of(place) {
            let this = &self.net.connections[connection];
            let end = if this.client == place { UP } else { DOWN };
            let is_feed = this.streams.iter().any(|&s| matches!(self.net.streams[s].kind, Kind::Feed(_)));
            match is_feed && self.rng.below(2) == 0 {
                true if end == DOWN => {}
                true => self.close(connection, end, How::Silently),
                false => self.close(connection, end, How::ByWord),
            }
        }
    }
}

fn copy(
    shard: ShardId,
    lineage: Lineage,
    is_primary: bool,
    of: &windlass_ps_core::shard::Shard<Brought>,
) -> Copy {
    let (state, concluded, closed) = (of.state(), of.is_concluded(), of.closed().to_vec());
    Copy { shard, lineage, is_primary, state, concluded, closed }
}
