//! The built-in training loop: pull, take a batch, compute its gradient, push.

use std::future::Future;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use windlass_common::exit::Exit;
use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::plan::{Membership, Plan};
use windlass_common::wire::WorkerReport;
use windlass_process::{Failure, OrExit};

use crate::ahead;
use crate::client::{BlockingClient, ClientError, JoinOptions, Next, Pushed};
use crate::data::{self, Early, ExampleStream, Gathered, Owned};
use crate::emulation::Emulation;
use crate::federated;
use crate::models::{self, Batch, Model};
use crate::overlap::{Computed, Overlap, Passing};

/// What a training worker is told at its start; everything else is in the plan.
#[derive(Debug)]
pub struct TrainingOptions {
    /// How to reach the run.
    pub join: JoinOptions,
    /// Where this machine has the data, if not where the plan says. If it is known here, it is read while the run is joined.
    pub data: Option<PathBuf>,
}

/// Trains the built-in model that the plan names. Otherwise as [`train_with`].
///
/// # Errors
/// As [`train_with`].
pub fn train(
    options: TrainingOptions,
    interrupted: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    train_with(options, interrupted, |plan| {
        let threads = usize::try_from(plan.training.compute_threads).ok().and_then(NonZeroUsize::new);
        Ok(models::with_threads(&plan.model.name, threads.unwrap_or(NonZeroUsize::MIN))?)
    })
}

/// Trains the model that `model` makes, until the run has all its examples or `interrupted` resolves. Another thread
/// moves the bytes while the calling one computes.
///
/// # Errors
/// If the run cannot be joined or ends otherwise than complete, the data or model do not fit the plan, or the loss is no
/// longer a number.
pub fn train_with(
    options: TrainingOptions,
    interrupted: impl Future<Output = ()> + Send + 'static,
    model: impl FnOnce(&Plan) -> anyhow::Result<Box<dyn Model>>,
) -> Result<(), Failure> {
    let begun = options.data.as_deref().and_then(Early::begin);
    let mut client = BlockingClient::join(options.join, interrupted).map_err(failure)?;
    let trained = model(client.plan())
        .or_exit(Exit::Input)
        .and_then(|model| prepare(model, client.plan(), client.worker(), (options.data, begun)))
        .and_then(|prepared| train_as_planned(&mut client, prepared));
    match trained {
        Ok(report) => client.leave(report).map_err(failure),
        Err(failure) if failure.exit == Exit::Interrupted && is_elastic(client.plan()) => {
            tracing::info!("leaving the training, which goes on without this worker");
            client.leave(WorkerReport::default()).map_err(self::failure)
        }
        Err(failure) if failure.error.is::<ClientError>() => {
            client.close();
            Err(failure)
        }
        Err(failure) => {
            // The fault is this worker's own, and the others would wait for it in vain.
            let _ = client.abort(failure.to_string());
            Err(failure)
        }
    }
}

/// Whether a worker may leave without ending the run.
fn is_elastic(plan: &Plan) -> bool {
    matches!(plan.cluster.membership, Membership::Elastic { .. })
}

/// The loop of the mode.
fn train_as_planned(client: &mut BlockingClient, prepared: Prepared) -> Result<WorkerReport, Failure> {
    let Prepared { model, data } = prepared;
    match client.plan().mode.local().copied() {
        Some(work) => federated::train(client, model, data, work),
        None if client.plan().mode.in_flight() > 1 => {
            let batches = Batches::new(&client.plan().clone(), client, &data)?;
            ahead::steps(client, model, batches)
        }
        None => steps(client, model, &data),
    }
}

/// One batch of this worker's own data after the other.
fn steps(
    client: &mut BlockingClient,
    mut model: Box<dyn Model>,
    data: &Owned,
) -> Result<WorkerReport, Failure> {
    let plan = client.plan().clone();
    client.keep_to_a_core();
    let mut batches = Batches::new(&plan, client, data)?;
    let mut values = client.pulled().map_err(failure)?;
    let mut overlap = Overlap::new(&plan, values.len());
    let mut report = WorkerReport::default();
    let mut next = client.pull_to(values.buffer()).map_err(failure)?;
    let mut coming = None;
    let first = if let Next::Step(step) = next { step } else { Step(0) };
    let mut emulation = Emulation::new(&plan, client.worker(), first);
    let began = Instant::now();
    while let Next::Step(step) = next {
        let begun = emulation.begin();
        let (batch, examples) = batches.of(step, client.hosted())?;
        let of = (step, begun, examples);
        let mut passing = Passing::new(&mut overlap, client, &mut values, of, coming.take());
        let Some(loss) = model.gradient_with(&mut passing, batch) else {
            next = passing.give_up().map_err(failure)?;
            continue;
        };
        let (begun, computed) = passing.done();
        overlap.computed(emulation.end(begun).or_exit(Exit::Run)?);
        check_loss(loss, step)?;
        report.steps += 1;
        report.work += u64::from(examples);
        let work = client.batch(examples, loss);
        let pushed = match computed {
            Computed::Pushing(pushing, gradient) => overlap.push(pushing, gradient, client, &mut values),
            Computed::Whole(gradient) => {
                let next = client.push_pull_to(Pushed::Gradient(gradient), work, values.buffer());
                next.map(|next| (next, None))
            }
            Computed::Encoded => {
                client.push_pull_to(Pushed::Encoded, work, values.buffer()).map(|next| (next, None))
            }
        };
        (next, coming) = pushed.map_err(failure)?;
    }
    report.finished = true;
    report.compute_us = microseconds(emulation.computing());
    report.active_us = microseconds(began.elapsed());
    // The client adds what it has measured itself.
    report.encode_us = microseconds(overlap.times().copying);
    report.exchange_us = microseconds(overlap.times().exchange);
    let (in_parts, given_up) = overlap.counts();
    let computing_s = emulation.computing().as_secs_f64();
    tracing::info!(steps = report.steps, in_parts, given_up, computing_s, "finished");
    Ok(report)
}

/// The batches of one worker, whose data may change with whom it hosts.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    data: &'a Owned,
    seed: u64,
    worker: WorkerId,
    size: usize,
    hosted: Arc<[ClientId]>,
    stream: ExampleStream,
    indices: Vec<u32>,
    gathered: Gathered,
}

impl<'a> Batches<'a> {
    fn new(plan: &Plan, client: &BlockingClient, data: &'a Owned) -> Result<Self, Failure> {
        let (seed, worker, hosted) = (plan.seed, client.worker(), Arc::clone(client.hosted()));
        let stream = ExampleStream::new(seed, worker, data.union(&hosted)).or_exit(Exit::Input)?;
        let size = plan.training.batch as usize;
        let (indices, gathered) = Default::default();
        Ok(Self { data, seed, worker, size, hosted, stream, indices, gathered })
    }

    /// Whose data they are of.
    pub(crate) fn hosted(&self) -> &Arc<[ClientId]> {
        &self.hosted
    }

    /// The batch of a step, and its examples, for a worker that hosts these clients.
    pub(crate) fn of(&mut self, step: Step, hosted: &Arc<[ClientId]>) -> Result<(Batch<'_>, u32), Failure> {
        if *hosted != self.hosted {
            self.hosted = Arc::clone(hosted);
            let data = self.data.union(hosted);
            self.stream = ExampleStream::new(self.seed, self.worker, data).or_exit(Exit::Input)?;
        }
        self.stream.batch(step.0, self.size, &mut self.indices);
        self.data.gather(&self.indices, &mut self.gathered);
        let examples = u32::try_from(self.indices.len()).expect("a checked plan has a batch below 2^24");
        Ok((self.gathered.batch(), examples))
    }
}

/// # Errors
/// If the training has diverged.
pub(crate) fn check_loss(loss: f32, step: Step) -> Result<(), Failure> {
    if loss.is_finite() {
        return Ok(());
    }
    let reason = anyhow!("the loss is {loss} at step {step}: the training diverged; lower --rate");
    Err(reason).or_exit(Exit::Run)
}

pub(crate) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

struct Prepared {
    model: Box<dyn Model>,
    data: Owned,
}

/// The model and the data, which is checked against the plan and dealt as it says.
fn prepare(
    model: Box<dyn Model>,
    plan: &Plan,
    worker: WorkerId,
    (path, begun): (Option<PathBuf>, Option<Early>),
) -> Result<Prepared, Failure> {
    if model.variables() != plan.model.variables {
        let reason = anyhow!("this program's model {} has other variables than the plan", plan.model.name);
        return Err(reason).or_exit(Exit::Input);
    }
    let path = path.unwrap_or_else(|| PathBuf::from(&plan.data.path));
    let data =
        data::load_begun(plan, &path, begun).context("the data cannot be used").or_exit(Exit::Input)?;
    data::check_fit(&plan.model.name, model.input(), &data).or_exit(Exit::Input)?;
    let fingerprint = format!("{:016x}", data.fingerprint());
    if !plan.data.fingerprint.is_empty() && fingerprint != plan.data.fingerprint {
        let reason = anyhow!(
            "{} holds other data than the run was planned with (fingerprint {fingerprint}, the plan says {})",
            path.display(),
            plan.data.fingerprint
        );
        return Err(reason).or_exit(Exit::Input);
    }
    let data = data::owned(plan, data, worker).or_exit(Exit::Input)?;
    Ok(Prepared { model, data })
}

pub(crate) fn failure(error: ClientError) -> Failure {
    Failure { exit: error.exit(), error: error.into() }
}
