//! Lets one at a time work on a shard: the session that has a request for it, or the shard's own thread.
//!
//! A request for a small shard is done by the task that has read it, if nothing waits and nobody else is at it: handing it to another
//! thread, and the answer back, takes longer than the work. Everything else goes through a queue to the thread, which also
//! looks at the clock and tells the coordinator what there is to tell.

mod desk;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Select, Sender, TryRecvError, TrySendError};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use windlass_common::ids::ShardId;
use windlass_common::wire::{Order, Report};
use windlass_ps_core::SessionId;
use windlass_ps_core::shard::{Effect, Event, Image, Reply, Shard};
use windlass_ps_core::store::Snapshot;
use windlass_transport::Connection;

use crate::gradient::{Gradient, Intake};
use crate::meter::Meters;
use crate::replication::{OwnWay, Told, Way};
use crate::shard::desk::Desk;

/// Requests that may wait for a shard; a session that finds no place stops reading its stream.
pub(crate) const REQUESTS_MAX: usize = 256;
/// Orders that may wait for a shard. There is one per change of membership and, with backup workers, one per step.
const ORDERS_MAX: usize = 4096;
/// Requests taken up before the clock is looked at again.
const BATCH_MAX: usize = 16;
/// Messages for the coordinator that may wait while sessions work on a shard; then requests go through the queue.
const OUTBOX_MAX: usize = 16;
/// Values of a shard up to which sessions work on it themselves. Applying a push of as many takes about 0.05 ms.
pub(crate) const AT_ONCE_MAX: u64 = 1 << 18;
const TICK: Duration = Duration::from_millis(100);

/// What a session is to write.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// If there is one, the end of the frame waits for this; when nobody can say so any more, it is never sent.
    pub(crate) ends: Option<oneshot::Receiver<()>>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, ends: None }
    }
}

/// What a shard's thread is told.
pub(crate) enum Input {
    /// Answers for this session go there; if it does not take them, its connection is closed.
    Attach { session: SessionId, answers: mpsc::Sender<Answer>, connection: Connection },
    /// Something has happened.
    Event(Event<Gradient>, Option<OwnedSemaphorePermit>),
    /// A standby is reached: it is told there what happens, and sessions may find ways of their own beside this one.
    Replicate(mpsc::UnboundedSender<Told>, Box<Way>),
    /// It has done everything up to this number.
    Confirmed(u64),
    /// It is gone.
    StandbyGone(String),
    /// There is something for the coordinator.
    Wake,
    /// The run is over.
    Stop,
}

/// What a shard tells the coordinator.
#[derive(Debug)]
pub(crate) enum ShardMessage {
    Report(Report),
    /// Its part of a checkpoint, to be kept.
    Image {
        checkpoint: u64,
        image: Box<Image>,
    },
    Final {
        snapshot: Snapshot,
        partial: u64,
    },
}

/// The way to a shard.
#[derive(Clone)]
pub(crate) struct ShardLink {
    pub(crate) intake: Intake,
    /// Nothing once the thread has ended.
    desk: Arc<Mutex<Option<Desk>>>,
    inputs: Sender<Input>,
    places: Arc<Semaphore>,
    /// To the standby, for sessions, if it has all and is told each push by itself.
    way: Arc<Mutex<Option<Way>>>,
}

impl ShardLink {
    /// Does a request, or hands it over, waiting for a place. What it brings is told the standby by the session's `own` way, if
    /// there is one and it is done at once.
    pub(crate) async fn request(&self, event: Event<Gradient>, own: Option<&OwnWay>) {
        let input = Input::Event(event, None);
        let input =
            if self.intake.shape.values() > AT_ONCE_MAX { Some(input) } else { self.at_once(input, own) };
        let Some(Input::Event(event, _)) = input else { return };
        let permit = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        self.put(Input::Event(event, Some(permit)));
    }

    /// A way to the standby by which this session may tell it what it brings: the one it has, or one that is begun.
    pub(crate) fn own_way(&self, has: Option<OwnWay>) -> Option<OwnWay> {
        let way = self.way.lock();
        let way = way.as_ref()?;
        Some(has.filter(|own| own.feed == way.feed).unwrap_or_else(|| way.beside(self)))
    }

    /// Does what is the next if nobody has to wait for it; otherwise gives it back.
    fn at_once(&self, input: Input, own: Option<&OwnWay>) -> Option<Input> {
        let Some(mut desk) = self.desk.try_lock() else { return Some(input) };
        // What waits is taken up by the thread, which has the desk meanwhile: so the order of a sender's inputs is kept.
        let Some(desk) = desk.as_mut().filter(|d| self.inputs.is_empty() && d.outbox.len() < OUTBOX_MAX)
        else {
            return Some(input);
        };
        let told = desk.outbox.len();
        desk.take_from(input, own);
        if desk.outbox.len() > told {
            self.put(Input::Wake);
        }
        None
    }

    /// Says where the answers for a session go.
    pub(crate) fn attach(&self, session: SessionId, answers: mpsc::Sender<Answer>, connection: Connection) {
        self.put(Input::Attach { session, answers, connection });
    }

    /// Hands over an order.
    pub(crate) fn order(&self, order: Order) {
        self.put(Input::Event(Event::Order(order), None));
    }

    /// Says that a session has ended.
    pub(crate) fn closed(&self, session: SessionId) {
        self.put(Input::Event(Event::Closed { session }, None));
    }

    /// Tells a standby what happens, from the whole on; false if the thread has ended.
    pub(crate) fn replicate(&self, tell: mpsc::UnboundedSender<Told>, way: Way) -> bool {
        self.inputs.send(Input::Replicate(tell, Box::new(way))).is_ok()
    }

    /// The standby has done so much.
    pub(crate) fn confirmed(&self, number: u64) {
        if let Some(input) = self.at_once(Input::Confirmed(number), None) {
            self.put(input);
        }
    }

    /// The standby is gone; false if the thread has ended.
    pub(crate) fn standby_gone(&self, why: String) -> bool {
        self.inputs.send(Input::StandbyGone(why)).is_ok()
    }

    /// Ends the thread, which gives the shard back.
    pub(crate) fn stop(&self) {
        self.put(Input::Stop);
    }

    fn put(&self, input: Input) {
        match self.inputs.try_send(input) {
            // The thread has ended with the run; what comes too late has nowhere to go.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(input)) => {
                tracing::warn!(
                    limit = REQUESTS_MAX + ORDERS_MAX,
                    "a shard's queue is full; its sender waits"
                );
                let _ = self.inputs.send(input);
            }
        }
    }
}

/// Lets a shard be worked on, which has to act upon `early` first, and starts its thread. `tell` brings its reports to the
/// coordinator, and waits if it must. `has_links` says that links to all workers are emulated.
///
/// # Errors
/// If the system gives no thread.
pub(crate) fn spawn(
    id: ShardId,
    shard: Shard<Gradient>,
    early: Vec<Effect>,
    (meters, has_links): (Arc<Meters>, bool),
    tell: impl FnMut(ShardMessage) + Send + 'static,
) -> std::io::Result<(ShardLink, JoinHandle<Shard<Gradient>>)> {
    let (inputs, receiver) = channel::bounded(REQUESTS_MAX + ORDERS_MAX);
    let (keeps, decodes) = (shard.is_replicated(), shard.decodes());
    let intake = Intake { shape: Arc::new(shard.shape().clone()), keeps, decodes };
    let way = Arc::default();
    let told = (receiver.clone(), Arc::clone(&way));
    let desk = Arc::new(Mutex::new(Some(Desk::new(shard, early, told, (meters, has_links)))));
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let link = ShardLink { intake, desk: Arc::clone(&desk), inputs, places, way };
    let thread = std::thread::Builder::new().name(format!("shard-{}", id.0));
    let thread = thread.spawn(move || run(&desk, &receiver, tell))?;
    Ok((link, thread))
}

/// Takes up what waits, looks at the clock and tells the coordinator, until it is stopped.
fn run(
    desk: &Mutex<Option<Desk>>,
    queue: &Receiver<Input>,
    mut tell: impl FnMut(ShardMessage),
) -> Shard<Gradient> {
    let mut ready = Select::new();
    ready.recv(queue);
    let mut outbox = Vec::new();
    let mut next_tick = Instant::now() + TICK;
    loop {
        {
            let mut place = desk.lock();
            let at_work = place.as_mut().expect("only this thread takes the desk away");
            let mut goes_on = true;
            for _ in 0..BATCH_MAX {
                goes_on = match queue.try_recv() {
                    Ok(input) => at_work.take(input),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => false,
                };
                if !goes_on {
                    break;
                }
            }
            if goes_on && Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                at_work.tick();
            }
            std::mem::swap(&mut outbox, &mut at_work.outbox);
            if !goes_on {
                let desk = place.take().expect("it was there just now");
                drop(place);
                outbox.drain(..).for_each(&mut tell);
                return desk.shard;
            }
        }
        // The coordinator may let it wait, but not whoever works on the shard.
        outbox.drain(..).for_each(&mut tell);
        let _ = ready.ready_deadline(next_tick);
    }
}
