//! Stands between workers and a server and does to their datagrams what a bad network does.
//!
//! What becomes of the n-th datagram in one direction of one client is a function of seed, client and direction; which
//! datagram is the n-th depends on the processes, so that a seed is a schedule of faults and no replay.

use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use windlass_common::rng::{Purpose, Rng};

/// How often a thread that waits for datagrams looks whether the relay has ended.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than any datagram.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;

/// What is done to datagrams, the same in both directions. Shares are from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// The share that is dropped.
    pub loss: f64,
    /// The share that is delivered twice.
    pub duplication: f64,
    /// The share that is held back for `held_back`, so that later ones overtake it.
    pub reordering: f64,
    /// How long that is.
    pub held_back: Duration,
    /// The least and the most that any datagram is delayed; those that are not held back keep their order.
    pub delay: (Duration, Duration),
}

impl Faults {
    /// A link that only takes so long, in each direction.
    pub fn none(delay: Duration) -> Self {
        Self {
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            held_back: Duration::ZERO,
            delay: (delay, delay),
        }
    }
}

/// What a relay has done to datagrams so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent on, second copies included.
    pub passed: u64,
    /// Dropped one by one.
    pub dropped: u64,
    /// Sent on twice.
    pub duplicated: u64,
    /// Overtaken by a later one.
    pub reordered: u64,
    /// Lost in a cut.
    pub cut: u64,
}

/// A UDP relay on loopback, from any number of clients to one server. It ends when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    cut_until: Mutex<Option<Instant>>,
    passed: AtomicU64,
    dropped: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    cut: AtomicU64,
}

impl Shared {
    fn is_cut(&self, now: Instant) -> bool {
        self.cut_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Relay {
    /// Relays to the server at this address, where nobody needs to listen yet.
    ///
    /// # Errors
    /// If no socket or thread can be had.
    pub fn start(target: SocketAddr, faults: Faults, seed: u64) -> io::Result<Self> {
        let front = socket()?;
        let address = front.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (post, parcels) = mpsc::channel();
        let delivering = Arc::clone(&shared);
        let postman = std::thread::Builder::new()
            .name("relay-post".into())
            .spawn(move || deliver(&delivering, &parcels))?;
        let entrance =
            Entrance { front: Arc::new(front), target, faults, seed, shared: Arc::clone(&shared), post };
        let reader = std::thread::Builder::new().name("relay-front".into()).spawn(move || entrance.read())?;
        Ok(Self { address, shared, threads: vec![reader, postman] })
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes for so long, in either direction.
    pub fn cut(&self, lasts: Duration) {
        let until = Instant::now() + lasts;
        *self.shared.cut_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed: read(&self.shared.passed),
            dropped: read(&self.shared.dropped),
            duplicated: read(&self.shared.duplicated),
            reordered: read(&self.shared.reordered),
            cut: read(&self.shared.cut),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A socket on loopback whose reader looks up every now and then.
fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

/// A datagram on its way. The one that is due first, and of those the one that came first, is the greatest.
struct Parcel {
    due: Instant,
    number: u64,
    from: Arc<UdpSocket>,
    /// None where the socket is connected.
    to: Option<SocketAddr>,
    bytes: Vec<u8>,
}

impl Parcel {
    fn rank(&self) -> std::cmp::Reverse<(Instant, u64)> {
        std::cmp::Reverse((self.due, self.number))
    }
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Parcel {}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parcel {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// Sends each datagram when it is due.
fn deliver(shared: &Shared, parcels: &Receiver<Parcel>) {
    let mut waiting: BinaryHeap<Parcel> = BinaryHeap::new();
    let mut arrived = 0;
    while !shared.has_ended() {
        let now = Instant::now();
        let pause = waiting.peek().map_or(LOOK, |next| next.due.saturating_duration_since(now).min(LOOK));
        match parcels.recv_timeout(pause) {
            Ok(mut parcel) => {
                arrived += 1;
                parcel.number = arrived;
                waiting.push(parcel);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        while waiting.peek().is_some_and(|next| next.due <= now) {
            let Some(parcel) = waiting.pop() else { break };
            if shared.is_cut(now) {
                count(&shared.cut);
                continue;
            }
            // Where nobody listens, the datagram is lost, as on any network.
            let sent = match parcel.to {
                Some(to) => parcel.from.send_to(&parcel.bytes, to),
                None => parcel.from.send(&parcel.bytes),
            };
            if sent.is_ok() {
                count(&shared.passed);
            }
        }
    }
}

/// Where the clients' datagrams come in.
struct Entrance {
    front: Arc<UdpSocket>,
    target: SocketAddr,
    faults: Faults,
    seed: u64,
    shared: Arc<Shared>,
    post: Sender<Parcel>,
}

impl Entrance {
    /// Takes datagrams of all clients, and gives each client a socket and a thread for what the server answers.
    fn read(self) {
        let mut clients: BTreeMap<SocketAddr, (Line, JoinHandle<()>)> = BTreeMap::new();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while !self.shared.has_ended() {
            let Some((length, client)) = received(self.front.recv_from(&mut buffer)) else { continue };
            let number = clients.len() as u64;
            let (line, _) = match clients.entry(client) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => match self.open(client, number) {
                    Ok(opened) => place.insert(opened),
                    // Without a socket for it, what this client sends is lost.
                    Err(_) => continue,
                },
            };
            line.take(&buffer[..length]);
        }
        for (_, (_, back)) in clients {
            let _ = back.join();
        }
    }

    fn open(&self, client: SocketAddr, number: u64) -> io::Result<(Line, JoinHandle<()>)> {
        let upstream = socket()?;
        upstream.connect(self.target)?;
        let upstream = Arc::new(upstream);
        let line = |direction: u64, from: &Arc<UdpSocket>, to| Line {
            rng: Rng::new(self.seed, Purpose::Link { link: number * 2 + direction }),
            faults: self.faults.clone(),
            last: Instant::now(),
            held_until: None,
            from: Arc::clone(from),
            to,
            shared: Arc::clone(&self.shared),
            post: self.post.clone(),
        };
        let mut down = line(1, &self.front, Some(client));
        let up = line(0, &upstream, None);
        let back = std::thread::Builder::new().name("relay-back".into()).spawn(move || {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            while !down.shared.has_ended() {
                if let Some(length) = received(upstream.recv(&mut buffer)) {
                    down.take(&buffer[..length]);
                }
            }
        })?;
        Ok((up, back))
    }
}

/// What came, if anything did. A socket whose peer is not there reports errors that say nothing about the next datagram.
fn received<T>(result: io::Result<T>) -> Option<T> {
    if let Err(error) = &result
        && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    result.ok()
}

/// One direction of one client.
struct Line {
    rng: Rng,
    faults: Faults,
    /// When the last datagram that was not held back is due.
    last: Instant,
    /// When the last one that was held back, and that nobody has overtaken yet, is due.
    held_until: Option<Instant>,
    from: Arc<UdpSocket>,
    to: Option<SocketAddr>,
    shared: Arc<Shared>,
    post: Sender<Parcel>,
}

impl Line {
    /// Decides what becomes of a datagram. Each draws the same number of random numbers, whatever becomes of it.
    fn take(&mut self, bytes: &[u8]) {
        let draw: [f64; 4] = std::array::from_fn(|_| self.rng.unit());
        let now = Instant::now();
        if self.shared.is_cut(now) {
            count(&self.shared.cut);
            return;
        }
        if draw[0] < self.faults.loss {
            count(&self.shared.dropped);
            return;
        }
        let (least, most) = self.faults.delay;
        let due = (now + least + (most - least).mul_f64(draw[3])).max(self.last);
        let due = if draw[1] < self.faults.reordering {
            self.held_until = Some(due + self.faults.held_back);
            due + self.faults.held_back
        } else {
            self.last = due;
            if self.held_until.take_if(|held| due < *held).is_some() {
                count(&self.shared.reordered);
            }
            due
        };
        let copies = if draw[2] < self.faults.duplication { 2 } else { 1 };
        if copies == 2 {
            count(&self.shared.duplicated);
        }
        for _ in 0..copies {
            let (from, to) = (Arc::clone(&self.from), self.to);
            // The postman is gone when the relay ends, and the datagram with it.
            let _ = self.post.send(Parcel { due, number: 0, from, to, bytes: bytes.to_vec() });
        }
    }
}

#[cfg(test)]
mod tests;
