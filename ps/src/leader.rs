//! Runs server 0: the coordinator beside its shards, life after life when the run goes back to a checkpoint.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, ensure};
use crossbeam::channel::{self, Sender};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use windlass_checkpoint::Store;
use windlass_common::exit::Exit;
use windlass_common::ids::{Lineage, RunId, ServerId};
use windlass_common::plan::Plan;
use windlass_common::wire::{Envelope, Stop};
use windlass_process::{Failure, OrExit};
use windlass_ps_core::SessionId;
use windlass_ps_core::coordinator::{Event, Restore};
use windlass_transport::{Endpoint, Pool};

use crate::clock;
use crate::coordinator::{self, Control, Decided, Decisions, End, Input};
use crate::keeper::Keeper;
use crate::meter::Meters;
use crate::restore;
use crate::run_directory::RunDirectory;
use crate::server::{
    FAREWELL, Guests, METER_EVERY, POOL_BYTES_MAX, Shared, at_length, connection, result, start_shard,
};
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
    pub(crate) silence: std::time::Duration,
}

/// How one life of a run begins.
pub(crate) struct Beginning {
    pub(crate) run: RunId,
    pub(crate) lineage: Lineage,
    pub(crate) restore: Option<Restore>,
    /// What was counted until the checkpoint.
    pub(crate) tally: Option<serde_json::Value>,
    pub(crate) decisions: Decisions,
}

/// Serves until the run has ended.
///
/// # Errors
/// Says why it could not begin or go on.
pub(crate) async fn lead(
    endpoint: &Endpoint,
    lead: Lead<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<Stop, Failure> {
    let store = windlass_checkpoint::open(&lead.checkpoints).or_exit(Exit::Usage)?;
    let mut goes_on = lead.resume;
    ensure_directory(&lead)?;
    let directory = RunDirectory::create(lead.run_directory, &lead.plan).or_exit(Exit::System)?;
    let mut guests = Guest {
        endpoint,
        meters: Arc::default(),
        sessions: Arc::new(AtomicU64::new(1)),
        interrupted: std::pin::pin!(interrupted),
        is_interrupted: false,
    };
    loop {
        let beginning = at_length(|| begin(&lead, &store, goes_on))?;
        match life(&lead, &directory, &store, beginning, &mut guests).await? {
            End::Stop(stop) => return Ok(stop),
            End::RollBack => goes_on = true,
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

/// Decides in which lineage the run goes on and from what, and remembers it before anybody is told.
fn begin(lead: &Lead<'_>, store: &Arc<dyn Store>, goes_on: bool) -> Result<Beginning, Failure> {
    let open = || -> anyhow::Result<Beginning> {
        let (mut decisions, decided) = Decisions::open(lead.run_directory)?;
        let now = clock::now();
        let Decided { run, lineage, lives } = decided;
        let Some(run) = run.filter(|_| goes_on) else {
            ensure!(!goes_on, "its log of decisions names no run");
            let (run, lineage) = (RunId(now.0.rotate_left(20) ^ u64::from(std::process::id())), Lineage(0));
            decisions.lineage(now, run, lineage, None)?;
            return Ok(Beginning { run, lineage, restore: None, tally: None, decisions });
        };
        let found = restore::find(store, &lead.plan, &lives)?;
        let lineage = lineage.next();
        decisions.lineage(now, run, lineage, found.restore.checkpoint)?;
        Ok(Beginning { run, lineage, restore: Some(found.restore), tally: found.tally, decisions })
    };
    open()
        .with_context(|| format!("could not begin the run in {}", lead.run_directory.display()))
        .or_exit(Exit::Input)
}

/// What outlasts one life of the run.
struct Guest<'a, F> {
    endpoint: &'a Endpoint,
    meters: Arc<Meters>,
    sessions: Arc<AtomicU64>,
    interrupted: Pin<&'a mut F>,
    is_interrupted: bool,
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
    let checkpoint = beginning.restore.as_ref().and_then(|r| r.checkpoint);
    let own = plan.cluster.shards_of(ServerId(0)).count();
    let keeper = Keeper::start(Arc::clone(store), plan, own).or_exit(Exit::System)?;
    let (inputs, receiver) = channel::bounded(coordinator::MESSAGES_MAX);
    let (ended, mut end) = oneshot::channel();
    let kept = coordinator::Kept { keeper: keeper.clone(), location: lead.checkpoints.clone() };
    coordinator::spawn(plan.clone(), beginning, directory.clone(), kept, (inputs.clone(), receiver), ended)
        .or_exit(Exit::System)?;
    let served = Arc::new(OnceLock::<Arc<Shared>>::new());
    let mut shards = Vec::new();
    for shard in plan.cluster.shards_of(ServerId(0)) {
        let (to_coordinator, shared, keeper) = (inputs.clone(), Arc::clone(&served), keeper.clone());
        let tell = move |message| {
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
                    if let Some(shared) = shared.get() {
                        measure(&to_coordinator, shared);
                    }
                    let (report, values) = result(&snapshot, partial);
                    let values = values.iter().flat_map(|v| v.iter().copied()).collect();
                    Input::Result { shard, report, values }
                }
            };
            let _ = to_coordinator.send(input);
        };
        let from = checkpoint.map(|number| (store, number));
        let link = at_length(|| start_shard(plan, envelope, shard, from, tell))?;
        coordinator::tell(&inputs, Input::LocalShard { shard, link: link.clone() }).await;
        shards.push((shard, link));
    }
    let (alive, mut all_written) = mpsc::channel(1);
    let control = Arc::new(Control {
        plan: plan.clone(),
        inputs: inputs.clone(),
        alive: Mutex::new(Some(alive)),
        sessions: Arc::clone(&lasting.sessions),
    });
    let shared = Arc::new(Shared {
        silence: lead.silence,
        envelope,
        shards,
        pool: Arc::new(Pool::new(POOL_BYTES_MAX)),
        meters: Arc::clone(&lasting.meters),
        guests: Guests::default(),
        sessions: Arc::clone(&lasting.sessions),
        control: Some(Arc::clone(&control)),
    });
    let _ = served.set(Arc::clone(&shared));
    let (session, address) = (SessionId(0), lead.advertise.clone());
    let joined = Event::ServerJoined { session, server: ServerId(0), address };
    coordinator::tell(&inputs, Input::Event(joined)).await;

    let mut every = tokio::time::interval(METER_EVERY);
    let gone = || End::Stop(Stop::Failed { reason: "the coordinator's thread is gone".into() });
    let end = loop {
        tokio::select! {
            end = &mut end => break end.unwrap_or_else(|_| gone()),
            () = &mut lasting.interrupted, if !lasting.is_interrupted => {
                lasting.is_interrupted = true;
                let reason = "server 0 was told to end".into();
                coordinator::tell(&inputs, Input::Event(Event::ShutDown { reason })).await;
            }
            incoming = lasting.endpoint.accept() => match incoming {
                Some(incoming) => {
                    tokio::spawn(connection(incoming, Arc::clone(&shared)));
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
    for (_, link) in &shared.shards {
        link.stop();
    }
    if let End::RollBack = end {
        shared.guests.close("the run goes back to its last checkpoint");
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

fn measure(inputs: &Sender<Input>, shared: &Shared) {
    let measured = Event::Measured { server: ServerId(0), meter: shared.meters.total() };
    let _ = inputs.send(Input::Event(measured));
}
