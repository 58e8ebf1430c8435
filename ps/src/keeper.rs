//! Keeps the parts and manifests of checkpoints on a thread of its own, so that nobody who trains waits for a disk.

use std::fs::File;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use serde::{Deserialize, Serialize};
use windlass_checkpoint::{
    LeftPart, Manifest, Pruner, ShardFile, SlicePart, Store, StoreError, write_manifest, write_shard,
};
use windlass_common::ids::{ClientId, ShardId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_ps_core::coordinator::RunState;
use windlass_ps_core::shard::{Image, ShardState};

/// Checkpoints that may wait for the thread, per shard of the process. One that finds no place is not kept, and said not to be.
const WAITING_MAX: usize = 2;

/// The name under which a file has what workers were sent of the values, where those go down in patches, beside what the optimizer
/// remembers of them.
pub(crate) const REFERENCE: &str = "pull-reference";

/// What the coordinator is told of a part that is in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) file: ShardFile,
    pub(crate) state: ShardState,
}

/// What a manifest remembers beside the values.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) run: RunState,
    /// By shard.
    pub(crate) shards: Vec<ShardState>,
    /// The counts of the run, as far as they go into the summary.
    pub(crate) tally: serde_json::Value,
}

/// Under which name what is left out of a client's pushes is kept, as a worker gave it.
fn name_of(client: ClientId, worker: WorkerId) -> String {
    format!("{}-{}", client.0, worker.0)
}

/// Whose that is, by its name.
pub(crate) fn whose(name: &str) -> Option<(ClientId, WorkerId)> {
    let (client, worker) = name.split_once('-')?;
    Some((ClientId(client.parse().ok()?), WorkerId(worker.parse().ok()?)))
}

/// What comes of keeping something.
pub(crate) type Kept<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

enum Job {
    Part { checkpoint: u64, shard: ShardId, image: Box<Image>, done: Kept<String> },
    Manifest { manifest: Box<Manifest>, keep: usize, log: Option<File>, done: Kept<()> },
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct Keeper {
    jobs: Sender<Job>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(store: Arc<dyn Store>, plan: &Plan, shards: usize) -> anyhow::Result<Self> {
        let (jobs, receiver) = channel::bounded(WAITING_MAX * shards.max(1) + 1);
        let (layout, placement) = (plan.layout()?, plan.placement()?);
        let names = plan.optimizer.state_names();
        let work = Work { store, layout, placement, names, pruner: Pruner::default() };
        thread::Builder::new().name("keeper".into()).spawn(move || work.run(&receiver))?;
        Ok(Self { jobs })
    }

    /// Keeps a shard's part of a checkpoint. `done` is told what the coordinator is to know of it, or why it is not there.
    pub(crate) fn part(&self, checkpoint: u64, shard: ShardId, image: Box<Image>, done: Kept<String>) {
        match self.jobs.try_send(Job::Part { checkpoint, shard, image, done }) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                if let Job::Part { done, .. } = job {
                    done(Err("those before it are still being written".into()));
                }
            }
        }
    }

    /// Writes the manifest of a checkpoint all of whose parts are kept, and takes away those that are too old.
    pub(crate) fn manifest(&self, manifest: Manifest, keep: u32, log: Option<File>, done: Kept<()>) {
        let job = Job::Manifest { manifest: Box::new(manifest), keep: keep as usize, log, done };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job)
            && let Job::Manifest { done, .. } = job
        {
            done(Err("those before it are still being written".into()));
        }
    }
}

struct Work {
    store: Arc<dyn Store>,
    layout: Layout,
    placement: Placement,
    names: &'static [&'static str],
    pruner: Pruner,
}

impl Work {
    fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Part { checkpoint, shard, image, done } => {
                    let kept = self.part(checkpoint, shard, &image).map_err(|e| e.to_string());
                    drop(image);
                    done(kept);
                }
                Job::Manifest { manifest, keep, log, done } => {
                    done(self.manifest(&manifest, keep, log.as_ref()));
                }
            }
        }
    }

    fn part(&self, checkpoint: u64, shard: ShardId, image: &Image) -> Result<String, StoreError> {
        let mut slices = Vec::with_capacity(image.slices.len());
        for (slice, kept) in self.placement.of_shard(shard).iter().zip(&image.slices) {
            let states = self.names.iter().copied().zip(&kept.state.vectors);
            let states = states.chain(kept.reference.iter().map(|reference| (REFERENCE, reference)));
            slices.push(SlicePart {
                variable: &self.layout.variables()[slice.variable.index()].name,
                start: slice.start,
                values: &kept.values,
                states: states.map(|(name, vector)| (name, vector.as_slice())).collect(),
                updates: kept.state.updates,
            });
        }
        let left: Vec<LeftPart<'_>> = image
            .residuals
            .iter()
            .map(|(&(client, worker), values)| LeftPart { name: name_of(client, worker), values })
            .collect();
        let file = write_shard(&*self.store, checkpoint, shard.0, &slices, &left)?;
        let part = Part { file, state: image.state.clone() };
        Ok(serde_json::to_string(&part).expect("what a shard knows can be written as JSON"))
    }

    fn manifest(&mut self, manifest: &Manifest, keep: usize, log: Option<&File>) -> Result<(), String> {
        // The log of the run holds at least what the checkpoint does.
        if let Some(log) = log {
            log.sync_data().map_err(|e| format!("the log of the run could not be synced: {e}"))?;
        }
        write_manifest(&*self.store, manifest).map_err(|e| e.to_string())?;
        self.pruner.written(manifest.number);
        // It is kept all the same; what could not be taken away is tried again with the next.
        if let Err(error) = self.pruner.prune(&self.store, keep, Some(manifest.number + 1)) {
            tracing::warn!(%error, "old checkpoints could not be taken away");
        }
        Ok(())
    }
}
