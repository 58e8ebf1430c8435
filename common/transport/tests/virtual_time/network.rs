//! A network in memory that loses, doubles, overtakes and cuts by a seed, and takes its time by tokio's clock.
//!
//! A link keeps the order of its datagrams: independent random delays would overtake all the time, and look like loss.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use windlass_common::rng::{Purpose, Rng};
use windlass_transport::bare::quinn::udp::{RecvMeta, Transmit};
use windlass_transport::bare::quinn::{AsyncUdpSocket, UdpPoller};

/// Datagrams that quinn may hand over at once, as on Linux.
const SEGMENTS_MAX: usize = 10;
/// What a socket's buffer holds, bytes; what comes when it is full is lost.
const INBOX_BYTES: usize = 4 << 20;

/// What the links do. Shares are from 0 to 1.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    /// The share that is held back, so that later ones overtake it.
    pub(crate) reordering: f64,
    pub(crate) held_back: Duration,
    /// The least and the most that a datagram takes.
    pub(crate) delay: (Duration, Duration),
    /// When nothing passes: from, to, since the beginning.
    pub(crate) cuts: Vec<(Duration, Duration)>,
}

impl Conditions {
    pub(crate) fn good() -> Self {
        let delay = Duration::from_millis(5);
        Self {
            loss: 0.0,
            duplication: 0.0,
            reordering: 0.0,
            held_back: Duration::ZERO,
            delay: (delay, delay),
            cuts: Vec::new(),
        }
    }
}

/// What became of a datagram when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Passed,
    Lost,
    Doubled,
    HeldBack,
    Cut,
}

/// A datagram that was sent: microseconds since the beginning, from and to which port, bytes of UDP payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) at_us: u128,
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) bytes: usize,
    pub(crate) fate: Fate,
}

/// All links and sockets. Each pair of addresses has a link in each direction, made when it is first used.
pub(crate) struct Network {
    seed: u64,
    conditions: Conditions,
    began: Instant,
    state: Mutex<State>,
    posted: Notify,
}

#[derive(Default)]
struct State {
    links: BTreeMap<(SocketAddr, SocketAddr), Link>,
    inboxes: BTreeMap<SocketAddr, Inbox>,
    /// By the time at which they are due and, at one time, by the order in which they were sent.
    on_their_way: BTreeMap<(Instant, u64), Datagram>,
    posted: u64,
    sent: Vec<Sent>,
    overtaken: u64,
}

struct Link {
    rng: Rng,
    /// When the last datagram that was not held back is due.
    last: Instant,
    held_until: Option<Instant>,
}

#[derive(Clone)]
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Network {
    /// Begins now; a task of the present runtime delivers.
    pub(crate) fn begin(seed: u64, conditions: Conditions) -> Arc<Self> {
        let network = Arc::new(Self {
            seed,
            conditions,
            began: Instant::now(),
            state: Mutex::default(),
            posted: Notify::new(),
        });
        tokio::spawn(deliver(Arc::clone(&network)));
        network
    }

    pub(crate) fn socket(self: &Arc<Self>, address: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        self.state().inboxes.insert(address, Inbox::default());
        Arc::new(Socket { network: Arc::clone(self), address })
    }

    /// Microseconds since the beginning.
    pub(crate) fn now_us(&self) -> u128 {
        self.began.elapsed().as_micros()
    }

    /// Every datagram so far.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.state().sent.clone()
    }

    /// How often a later datagram came first.
    pub(crate) fn overtaken(&self) -> u64 {
        self.state().overtaken
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn is_cut(&self, at: Instant) -> bool {
        let at = at - self.began;
        self.conditions.cuts.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Decides what becomes of a datagram. Each draws the same number of random numbers, whatever becomes of it.
    fn send(&self, datagram: Datagram) {
        let now = Instant::now();
        let conditions = &self.conditions;
        let (from, to, bytes) = (datagram.from.port(), datagram.to.port(), datagram.bytes.len());
        let mut state = self.state();
        let link = state.links.entry((datagram.from, datagram.to)).or_insert_with(|| {
            let link = u64::from(from) << 16 | u64::from(to);
            Link { rng: Rng::new(self.seed, Purpose::Link { link }), last: now, held_until: None }
        });
        let draw: [f64; 4] = std::array::from_fn(|_| link.rng.unit());
        let (least, most) = conditions.delay;
        let mut due = (now + least + (most - least).mul_f64(draw[3])).max(link.last);
        let mut overtakes = false;
        let fate = if self.is_cut(now) {
            Fate::Cut
        } else if draw[0] < conditions.loss {
            Fate::Lost
        } else if draw[1] < conditions.reordering {
            due += conditions.held_back;
            link.held_until = Some(due);
            Fate::HeldBack
        } else {
            link.last = due;
            overtakes = link.held_until.take_if(|held| due < *held).is_some();
            if draw[2] < conditions.duplication { Fate::Doubled } else { Fate::Passed }
        };
        state.overtaken += u64::from(overtakes);
        state.sent.push(Sent { at_us: (now - self.began).as_micros(), from, to, bytes, fate });
        let copies = match fate {
            Fate::Cut | Fate::Lost => 0,
            Fate::Passed | Fate::HeldBack => 1,
            Fate::Doubled => 2,
        };
        for _ in 0..copies {
            state.posted += 1;
            let number = state.posted;
            state.on_their_way.insert((due, number), datagram.clone());
        }
        self.posted.notify_one();
    }

    /// Takes what is due now to the sockets, and says when the next one is.
    fn take_round(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        while let Some(next) = state.on_their_way.first_entry() {
            if next.key().0 > now {
                return Some(next.key().0);
            }
            let datagram = next.remove();
            let Some(inbox) = state.inboxes.get_mut(&datagram.to) else { continue };
            if self.is_cut(now) || inbox.bytes + datagram.bytes.len() > INBOX_BYTES {
                continue;
            }
            inbox.bytes += datagram.bytes.len();
            inbox.datagrams.push_back(datagram);
            if let Some(reader) = inbox.reader.take() {
                reader.wake();
            }
        }
        None
    }
}

/// Runs until the runtime ends. Which branch is looked at first is no matter of chance.
async fn deliver(network: Arc<Network>) {
    loop {
        match network.take_round() {
            Some(next) => {
                tokio::select! {
                    biased;
                    () = network.posted.notified() => {}
                    () = sleep_until(next) => {}
                }
            }
            None => network.posted.notified().await,
        }
    }
}

/// One end of the network, as quinn wants it.
struct Socket {
    network: Arc<Network>,
    address: SocketAddr,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// The network takes whatever is sent.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for bytes in transmit.contents.chunks(size) {
            let (from, to) = (self.address, transmit.destination);
            self.network.send(Datagram { from, to, bytes: bytes.to_vec() });
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.state();
        let inbox = state.inboxes.get_mut(&self.address).unwrap();
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(datagram) = inbox.datagrams.pop_front() else { break };
            let len = datagram.bytes.len();
            inbox.bytes -= len;
            buffer[..len].copy_from_slice(&datagram.bytes);
            *meta = RecvMeta {
                addr: datagram.from,
                len,
                stride: len,
                ecn: None,
                dst_ip: Some(self.address.ip()),
            };
            filled += 1;
        }
        if filled == 0 {
            inbox.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS_MAX
    }

    /// Else quinn would not look for a larger MTU.
    fn may_fragment(&self) -> bool {
        false
    }
}
