//! Runs server 0: the coordinator beside its shards, life after life when the run goes back to a checkpoint.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use crossbeam::channel::{self, Sender};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use windlass_checkpoint::Store;
use windlass_common::exit::Exit;
use windlass_common::ids::{Lineage, RunId, ServerId, ShardId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Begins, Envelope, Stop};
use windlass_process::{Failure, OrExit};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::{Copy, Event, Restore};
use windlass_transport::Endpoint;

use crate::clock;
use crate::coordinator::{
    self, Control, Counted, DECISIONS_FILE, Decided, Decisions, End, Input, SeatsOnce, Settled, recount,
};
use crate::host::{Host, Life};
use crate::keeper::Keeper;
use crate::meter::Meters;
use crate::restore;
use crate::run_directory::RunDirectory;
use crate::server::{FAREWELL, Guests, METER_EVERY, Shared, at_length, connection, open_lanes, pool, result};
use crate::shard::ShardMessage;

/// What server 0 is told beside what every server is.
#[derive(Debug)]
pub(crate) struct Lead<'a> {
    pub(crate) plan: Plan,
    pub(crate) run_directory: &'a Path,
    /// The run that the directory holds is gone on with.
    pub(crate) resume: bool,
    /// Where checkpoints are kept.
    pub(crate) checkpoints: String,
    pub(crate) advertise: String,
    pub(crate) silence: Duration,
}

/// The pause before what could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// How one life of a run begins.
pub(crate) struct Beginning {
    pub(crate) run: RunId,
    pub(crate) lineage: Lineage,
    pub(crate) restore: Option<Restore>,
    /// What was counted until then.
    pub(crate) counted: Counted,
    pub(crate) decisions: Decisions,
}

/// How a run that has begun goes on.
enum GoesOn {
    /// From the copies that servers have, if there may be any; what has been counted is known if its counter lives.
    Copies(Option<Box<Counted>>),
    Checkpoint,
}

/// Serves until the run has ended.
///
/// # Errors
/// Says why it could not begin or go on.
pub(crate) async fn lead(
    endpoint: &Endpoint,
    host: Host,
    lead: Lead<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<Stop, Failure> {
    open_lanes(endpoint, &lead.plan);
    let store = windlass_checkpoint::open(&lead.checkpoints).or_exit(Exit::Usage)?;
    let mut goes_on = lead.resume.then_some(GoesOn::Copies(None));
    ensure_directory(&lead)?;
    let directory = RunDirectory::create(lead.run_directory, &lead.plan).or_exit(Exit::System)?;
    let mut guests = Guest {
        endpoint,
        meters: Arc::clone(&host.meters),
        sessions: Arc::new(AtomicU64::new(1)),
        interrupted: std::pin::pin!(interrupted),
        is_interrupted: false,
        host,
    };
    let mut has_begun = false;
    loop {
        let mut beginning = at_length(|| begin(&lead, &store, goes_on.take()))?;
        guests.write_down(&mut beginning, &lead, has_begun).await?;
        has_begun = true;
        match life(&lead, &directory, &store, beginning, &mut guests).await? {
            End::Stop(stop) => return Ok(stop),
            End::RollBack(counted) => {
                goes_on = Some(counted.map_or(GoesOn::Checkpoint, |counted| GoesOn::Copies(Some(counted))));
            }
        }
    }
}

fn ensure_directory(lead: &Lead<'_>) -> Result<(), Failure> {
    let (path, has_begun) = (lead.run_directory.display(), Decisions::exist(lead.run_directory));
    if !lead.resume && has_begun {
        let reason = anyhow!(
            "{path} holds a run that was begun; go on with it by --resume, or name another --run-dir"
        );
        return Err(reason).or_exit(Exit::Usage);
    }
    if lead.resume && !has_begun {
        let reason =
            anyhow!("{path} holds no run that could be gone on with; leave out --resume to begin one");
        return Err(reason).or_exit(Exit::Input);
    }
    Ok(())
}

/// Decides in which lineage the run goes on and from what.
fn begin(lead: &Lead<'_>, store: &Arc<dyn Store>, goes_on: Option<GoesOn>) -> Result<Beginning, Failure> {
    let open = || -> anyhow::Result<Beginning> {
        let (decisions, decided) = Decisions::open(lead.run_directory)?;
        let now = clock::now();
        let Decided { run, lineage, lives, placed } = decided;
        let Some(goes_on) = goes_on else {
            let (run, lineage) = (RunId(now.0.rotate_left(20) ^ u64::from(std::process::id())), Lineage(0));
            let counted = Counted::new(&lead.plan);
            return Ok(Beginning { run, lineage, restore: None, counted, decisions });
        };
        let run = run.context("its log of decisions names no run")?;
        let lineage = lineage.next();
        // Of a cluster with other shards nobody has copies.
        let placed = placed.filter(|p| p.seats.len() == lead.plan.cluster.shards() as usize);
        let (restore, counted) = match (goes_on, placed) {
            (GoesOn::Copies(counted), Some(placed)) => {
                let counted = match counted {
                    Some(counted) => *counted,
                    None => recount(lead.run_directory, &lead.plan, |number| {
                        restore::tally(store, &lead.plan, number)
                    })?,
                };
                // One that was being taken may have a part in the store soon.
                let next = restore::next_number(store)? + 1;
                (Restore::from_copies(placed, lives, next), counted)
            }
            _ => {
                let found = restore::find(store, &lead.plan, &lives)?;
                (found.restore, Counted::until_checkpoint(&lead.plan, found.tally))
            }
        };
        Ok(Beginning { run, lineage, restore: Some(restore), counted, decisions })
    };
    open().with_context(|| cannot_begin(lead)).or_exit(Exit::Input)
}

fn cannot_begin(lead: &Lead<'_>) -> String {
    format!("could not begin the run in {}", lead.run_directory.display())
}

/// What outlasts one life of the run.
struct Guest<'a, F> {
    endpoint: &'a Endpoint,
    meters: Arc<Meters>,
    sessions: Arc<AtomicU64>,
    interrupted: Pin<&'a mut F>,
    is_interrupted: bool,
    host: Host,
}

impl<F: Future<Output = ()>> Guest<'_, F> {
    /// Remembers how a life begins, before anybody is told. Where others wait for the run to go on, what can be freed on a
    /// full disk in time does not end it.
    async fn write_down(
        &mut self,
        beginning: &mut Beginning,
        lead: &Lead<'_>,
        others_wait: bool,
    ) -> Result<(), Failure> {
        let patience = if others_wait { lead.plan.cluster.rejoin_deadline_s } else { 0 };
        let give_up = Instant::now() + Duration::from_secs(patience);
        loop {
            let Err(error) = at_length(|| beginning.write_down()) else { return Ok(()) };
            if Instant::now() >= give_up || self.is_interrupted {
                return Err(error).with_context(|| cannot_begin(lead)).or_exit(Exit::System);
            }
            tracing::warn!(
                lineage = beginning.lineage.0,
                "the run waits to go on: {} cannot be written: {error}; trying again until {patience} s have passed",
                lead.run_directory.join(DECISIONS_FILE).display()
            );
            tokio::select! {
                () = sleep(WRITE_AGAIN) => {}
                () = &mut self.interrupted, if !self.is_interrupted => self.is_interrupted = true,
            }
        }
    }
}

impl Beginning {
    fn write_down(&mut self) -> io::Result<()> {
        let checkpoint = self.restore.as_ref().and_then(|restore| restore.checkpoint);
        let is_from_copies = self.restore.as_ref().is_some_and(|restore| restore.placed.is_some());
        self.decisions.lineage(clock::now(), self.run, self.lineage, checkpoint, is_from_copies)
    }
}

async fn life<F: Future<Output = ()>>(
    lead: &Lead<'_>,
    directory: &RunDirectory,
    store: &Arc<dyn Store>,
    beginning: Beginning,
    lasting: &mut Guest<'_, F>,
) -> Result<End, Failure> {
    let plan = &lead.plan;
    let envelope = Envelope { run: beginning.run, lineage: beginning.lineage, ..Envelope::default() };
    let own = plan.cluster.shards() as usize;
    let keeper = Keeper::start(Arc::clone(store), plan, own).or_exit(Exit::System)?;
    let (inputs, receiver) = channel::bounded(coordinator::MESSAGES_MAX);
    let (ended, mut end) = oneshot::channel();
    let (settle, mut settled) = mpsc::channel::<Settled>(1);
    let seats = SeatsOnce::default();
    let is_settled_now = plan.cluster.replicas == 0;
    let from_checkpoint = beginning.restore.as_ref().and_then(|r| r.checkpoint);
    let kept = coordinator::Kept { keeper: keeper.clone(), location: lead.checkpoints.clone() };
    coordinator::spawn(
        plan.clone(),
        beginning,
        directory.clone(),
        kept,
        (inputs.clone(), receiver),
        (settle.clone(), Arc::clone(&seats), ended),
    )
    .or_exit(Exit::System)?;
    let (alive, mut all_written) = mpsc::channel(1);
    let control = Arc::new(Control {
        plan: plan.clone(),
        inputs: inputs.clone(),
        alive: Mutex::new(Some(alive)),
        sessions: Arc::clone(&lasting.sessions),
        seats,
    });
    let shared = Arc::new(Shared {
        silence: lead.silence,
        envelope,
        hosted: OnceLock::new(),
        pool: pool(),
        meters: Arc::clone(&lasting.meters),
        guests: Guests::default(),
        sessions: Arc::clone(&lasting.sessions),
        control: Some(Arc::clone(&control)),
    });
    let tell = |shard: ShardId| {
        let (to_coordinator, meters, keeper) = (inputs.clone(), Arc::clone(&shared.meters), keeper.clone());
        move |message| {
            let input = match message {
                ShardMessage::Report(report) => Input::Event(Event::Report { shard, report }),
                ShardMessage::Image { checkpoint, image } => {
                    let told = to_coordinator.clone();
                    let done = Box::new(move |part| {
                        let report = windlass_common::wire::Report::Kept { checkpoint, part };
                        let _ = told.send(Input::Event(Event::Report { shard, report }));
                    });
                    keeper.part(checkpoint, shard, image, done);
                    return;
                }
                ShardMessage::Final { snapshot, partial } => {
                    measure(&to_coordinator, &meters);
                    let (report, values) = result(&snapshot, partial);
                    let values = values.iter().flat_map(|v| v.iter().copied()).collect();
                    Input::Result { shard, report, values }
                }
            };
            let _ = to_coordinator.send(input);
        }
    };
    if is_settled_now {
        let begins = from_checkpoint.map_or(Begins::Anew, Begins::Checkpoint);
        let _ = settle.try_send(Settled { seats: plan.cluster.seats(), begins, addresses: Vec::new() });
    }
    let joining = Joins { address: lead.advertise.clone(), copies: lasting.host.copies() };
    if !is_settled_now {
        joining.join(&inputs).await;
    }

    let mut every = tokio::time::interval(METER_EVERY);
    let gone = || End::Stop(Stop::Failed { reason: "the coordinator's thread is gone".into() });
    let end = loop {
        tokio::select! {
            Some(settled) = settled.recv() => {
                let Settled { seats, begins, addresses } = settled;
                let begins = Life { plan, envelope, seats, begins: &begins, store };
                let hosted = at_length(|| lasting.host.start(&begins, &tell))?;
                for (shard, link) in &hosted.shards {
                    let (shard, link) = (*shard, link.clone());
                    coordinator::tell(&inputs, Input::LocalShard { shard, link }).await;
                }
                lasting.host.feed(&hosted, &addresses, (lasting.endpoint, envelope), lead.silence)?;
                let _ = shared.hosted.set(hosted);
                if is_settled_now {
                    joining.join(&inputs).await;
                }
            }
            end = &mut end => break end.unwrap_or_else(|_| gone()),
            () = &mut lasting.interrupted, if !lasting.is_interrupted => {
                lasting.is_interrupted = true;
                let reason = "server 0 was told to end".into();
                coordinator::tell(&inputs, Input::Event(Event::ShutDown { reason })).await;
            }
            incoming = lasting.endpoint.accept() => match incoming {
                Some(incoming) => {
                    incoming.spawn(|incoming| connection(incoming, Arc::clone(&shared)));
                }
                None => break End::Stop(Stop::Failed { reason: "the socket of server 0 is gone".into() }),
            },
            _ = every.tick() => {
                let meter = shared.meters.total();
                let measured = Event::Measured { server: ServerId(0), meter };
                coordinator::tell(&inputs, Input::Event(measured)).await;
            }
        }
    };
    if let Some(hosted) = shared.hosted.get() {
        at_length(|| lasting.host.stop(hosted));
    }
    if let End::RollBack(counted) = &end {
        shared.guests.close(coordinator::in_words(counted.is_some()));
        return Ok(match lasting.is_interrupted {
            true => End::Stop(Stop::Failed { reason: "server 0 was told to end".into() }),
            false => end,
        });
    }
    // The last messages are on their way; each control stream holds a token until its peer has them.
    control.alive.lock().take();
    let _ = timeout(FAREWELL, async { while all_written.recv().await.is_some() {} }).await;
    Ok(end)
}

/// Where server 0 is, and what it has, as the coordinator is told once its shards may be given orders.
struct Joins {
    address: String,
    copies: Vec<Copy>,
}

impl Joins {
    async fn join(&self, inputs: &Sender<Input>) {
        let (session, address, copies) = (SessionId(0), self.address.clone(), self.copies.clone());
        let joined = Event::ServerJoined { session, server: ServerId(0), address, copies };
        coordinator::tell(inputs, Input::Event(joined)).await;
    }
}

fn measure(inputs: &Sender<Input>, meters: &Meters) {
    let measured = Event::Measured { server: ServerId(0), meter: meters.total() };
    let _ = inputs.send(Input::Event(measured));
}
