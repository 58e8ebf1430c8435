//! Carries messages as QUIC does: in order on each stream, late when a datagram is lost, not at all when a connection is.

use std::collections::VecDeque;

use windlass_common::ids::{ServerId, ShardId, WorkerId};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{Body, Order};
use windlass_ps_core::shard;

use super::config::Config;
use crate::cluster::links::Message;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A server, the first with the coordinator.
    Server(ServerId),
    /// A worker.
    Worker(WorkerId),
}

/// From the one who opened a stream to the server.
pub(super) const UP: usize = 0;
/// From the server.
pub(super) const DOWN: usize = 1;

/// Time until a loss is noticed, beyond two round trips.
const NOTICE: u64 = 25_000;
/// A message that is lost more often in a row than this is not lost again.
const LOSSES_MAX: u32 = 12;

/// One direction between two processes.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) delay: u64,
    pub(super) rate: Option<u64>,
    free_at: u64,
    /// Nothing gets through before this time.
    pub(super) cut_until: u64,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A worker's to the coordinator.
    Worker(WorkerId),
    /// A server's to the coordinator.
    Server(ServerId),
    /// A worker's to a shard.
    Shard(WorkerId, ShardId),
    /// A primary's to the standby of its shard.
    Feed(ShardId),
    /// Between the coordinator and a shard of its own process.
    Local(ShardId),
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Flying {
    pub(super) message: Message,
    /// When it was sent last.
    pub(super) departs: u64,
    pub(super) arrives: u64,
    pub(super) tries: u32,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(super) struct Way {
    pub(super) queue: VecDeque<Flying>,
    /// Something is missing: what comes after it is never read.
    pub(super) is_broken: bool,
}

/// A stream of messages; its number is also the session's.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) kind: Kind,
    /// None within one process.
    pub(super) connection: Option<usize>,
    /// Whether the server has seen it.
    pub(super) is_known: bool,
    pub(super) ways: [Way; 2],
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// `u64::MAX` while it is open.
    pub(super) closed_at: u64,
    /// Since when nothing is heard, and when something will be again.
    pub(super) quiet: Option<(u64, u64)>,
}

impl End {
    pub(super) fn is_open(&self) -> bool {
        self.closed_at == u64::MAX
    }
}

/// A connection of a worker or a server to a server.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Place,
    pub(super) server: ServerId,
    /// That of the client and that of the server.
    pub(super) ends: [End; 2],
    pub(super) streams: Vec<usize>,
}

impl Connection {
    pub(super) fn place(&self, end: usize) -> Place {
        if end == UP { self.client } else { Place::Server(self.server) }
    }
}

/// All links, connections and streams.
#[derive(Debug)]
pub(super) struct Net {
    rng: Rng,
    places: usize,
    servers: usize,
    links: Vec<Link>,
    jitter: u64,
    loss: u64,
    pub(super) connections: Vec<Connection>,
    pub(super) streams: Vec<Stream>,
    /// Connections with an end that is open.
    pub(super) open: Vec<usize>,
    pub(super) retransmissions: u64,
}

impl Net {
    pub(super) fn new(config: &Config) -> Self {
        let mut rng = Rng::new(config.seed, Purpose::Simulation(2));
        let (servers, places) = (config.servers as usize, (config.servers + config.workers_max()) as usize);
        let (least, most) = config.network.delay;
        let link =
            |_| Link { delay: least + rng.below(most - least + 1), rate: None, free_at: 0, cut_until: 0 };
        let links = (0..servers * places * 2).map(link).collect();
        let mut net = Self {
            rng,
            places,
            servers,
            links,
            jitter: config.network.jitter,
            loss: config.network.loss,
            connections: Vec::new(),
            streams: Vec::new(),
            open: Vec::new(),
            retransmissions: 0,
        };
        for &(slow, rate) in &config.network.slow {
            for server in (0..config.servers).map(|s| Place::Server(ServerId(s))).filter(|&s| s != slow) {
                net.link(slow, server).rate = Some(rate);
                net.link(server, slow).rate = Some(rate);
            }
            if let Place::Server(_) = slow {
                for worker in (0..config.workers_max()).map(|w| Place::Worker(WorkerId(w))) {
                    net.link(slow, worker).rate = Some(rate);
                    net.link(worker, slow).rate = Some(rate);
                }
            }
        }
        net
    }

    fn number(&self, place: Place) -> usize {
        match place {
            Place::Server(id) => id.index(),
            Place::Worker(id) => self.servers + id.index(),
        }
    }

    /// The direction from one process to another, of which one is a server.
    pub(super) fn link(&mut self, from: Place, to: Place) -> &mut Link {
        let at = match (from, to) {
            (_, Place::Server(server)) => (server.index() * self.places + self.number(from)) * 2,
            (Place::Server(server), _) => (server.index() * self.places + self.number(to)) * 2 + 1,
            (Place::Worker(_), Place::Worker(_)) => panic!("workers do not talk to each other"),
        };
        &mut self.links[at]
    }

    /// Whether something that is sent now arrives.
    pub(super) fn is_up(&mut self, now: u64, from: Place, to: Place) -> bool {
        self.link(from, to).cut_until <= now
    }

    /// A round trip.
    pub(super) fn round_trip(&mut self, a: Place, b: Place) -> u64 {
        self.link(a, b).delay + self.link(b, a).delay
    }

    /// A connection that is open at both ends.
    pub(super) fn connect(&mut self, client: Place, server: ServerId) -> usize {
        let end = End { closed_at: u64::MAX, quiet: None };
        self.connections.push(Connection { client, server, ends: [end; 2], streams: Vec::new() });
        let number = self.connections.len() - 1;
        self.open.push(number);
        number
    }

    /// A stream on a connection, or within a process.
    pub(super) fn stream(&mut self, kind: Kind, connection: Option<usize>) -> usize {
        let number = self.streams.len();
        let is_known = connection.is_none();
        self.streams.push(Stream { kind, connection, is_known, ways: Default::default() });
        if let Some(connection) = connection {
            self.connections[connection].streams.push(number);
        }
        number
    }

    /// Who sends on this way of a stream, and who receives.
    pub(super) fn ends_of(&self, stream: usize, way: usize) -> (Place, Place) {
        let coordinator = Place::Server(ServerId(0));
        let Some(connection) = self.streams[stream].connection else { return (coordinator, coordinator) };
        let connection = &self.connections[connection];
        (connection.place(way), connection.place(1 - way))
    }

    /// Sends a message. Returns when the first on that way arrives, if it has just become this one.
    pub(super) fn send(&mut self, now: u64, stream: usize, way: usize, message: Message) -> Option<u64> {
        let (departs, arrives) = match self.streams[stream].connection {
            None => (now, now + 1 + self.rng.below(50)),
            Some(connection) => {
                if !self.connections[connection].ends[way].is_open() {
                    return None;
                }
                let (from, to) = self.ends_of(stream, way);
                self.pass(now, from, to, &message)
            }
        };
        let way = &mut self.streams[stream].ways[way];
        if way.is_broken {
            return None;
        }
        way.queue.push_back(Flying { message, departs, arrives, tries: 0 });
        (way.queue.len() == 1).then_some(arrives)
    }

    /// When a message that is sent now gets onto the wire for the time that counts, and when it arrives.
    fn pass(&mut self, now: u64, from: Place, to: Place, message: &Message) -> (u64, u64) {
        let notice = 2 * self.round_trip(from, to) + NOTICE;
        let link = self.link(from, to);
        let mut departs = now;
        if let Some(rate) = link.rate {
            departs = now.max(link.free_at) + bytes(message) * 1_000_000 / rate;
            link.free_at = departs;
        }
        let delay = link.delay;
        let mut losses = 0;
        while self.loss > 0 && losses < LOSSES_MAX && self.rng.below(1_000_000) < self.loss {
            // The acknowledgement of anything else on the connection ends the doubling.
            departs += notice << losses.min(2);
            losses += 1;
        }
        self.retransmissions += u64::from(losses);
        (departs, departs + delay + self.rng.below(self.jitter + 1))
    }

    /// The first message of a way did not get through at this time: it is sent again when the sender notices.
    pub(super) fn again(&mut self, now: u64, stream: usize, way: usize) -> u64 {
        self.retransmissions += 1;
        let (from, to) = self.ends_of(stream, way);
        let (notice, delay) = (2 * self.round_trip(from, to) + NOTICE, self.link(from, to).delay);
        let Some(first) = self.streams[stream].ways[way].queue.front_mut() else { return now };
        first.departs = now + (notice << first.tries.min(LOSSES_MAX));
        first.tries += 1;
        first.arrives = first.departs + delay;
        first.arrives
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }
}

/// Roughly how long a message is.
fn bytes(message: &Message) -> u64 {
    match message {
        Message::Shard(shard::Event::Request(request)) => {
            100 + request.push.as_ref().map_or(0, |(push, _)| push.payload_bytes)
        }
        Message::Reply(shard::Reply::Values { snapshot, have, slices, .. }) => {
            let changed = snapshot.changed_since(*have, slices);
            100 + changed.map(|(part, _)| part.values * 4).sum::<u64>()
        }
        Message::Control(Body::Welcome(welcome), ..) => 200 + welcome.plan.len() as u64,
        Message::Control(Body::Order { order: Order::Membership { members, .. }, .. }, ..) => {
            100 + 8 * members.len() as u64
        }
        Message::Told(told) => 100 + told.feed.payload_bytes(),
        Message::Coordinator(_)
        | Message::Shard(_)
        | Message::Control(..)
        | Message::Reply(_)
        | Message::Confirmed(_) => 100,
    }
}
