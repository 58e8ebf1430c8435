//! Measures what a push costs at least: its gradient, its bytes over bare QUIC, and its codecs and update.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, ServerId, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::plan::{Mode, Plan};
use windlass_transport::{Role, RunAuthority};
use windlass_worker::data::{self, Gathered};
use windlass_worker::models::{self, Model};

use crate::applying::Applying;
use crate::bare::{self, Payload};
use crate::processor::processor_time;

/// Processor seconds of one push, all processes together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Its gradient, of examples of the plan's data, while every core computes one.
    pub gradient_s: f64,
    /// Its bytes and those pulled for it, over bare QUIC with the endpoints of a run.
    pub wire_s: f64,
    /// Writing and reading both as their codecs do, and the update.
    pub apply_s: f64,
}

impl Costs {
    /// Pushes per second on so many cores that workers and servers share: no run can be faster.
    pub fn pushes_per_s(&self, cores: usize) -> f64 {
        cores as f64 / (self.gradient_s + self.wire_s + self.apply_s)
    }
}

/// Pushes per second that emulated links allow, if the plan has any: each worker's link carries so many bytes of a push up
/// and of what is pulled down, both at once.
pub fn links_pushes_per_s(plan: &Plan, up: f64, down: f64) -> Option<f64> {
    let rate = plan.heterogeneity.link_rate?;
    let most = up.max(down);
    (most > 0.0).then(|| f64::from(plan.cluster.workers) * rate.0 as f64 / 8.0 / most)
}

/// How long each of the costs is measured.
const MEASURED: Duration = Duration::from_millis(1500);
/// Fewest and most times that something is done to measure it.
const TIMES: (f64, f64) = (10.0, 4000.0);

/// Measures the costs of a push of this plan on a machine of so many cores. It takes some seconds and every core, and the plan's data.
///
/// # Errors
/// If workers of the plan train by themselves between pushes, its model is not built in, its data are not there, or a socket cannot
/// be had.
pub fn measure(plan: &Plan, cores: usize) -> anyhow::Result<Costs> {
    ensure!(
        plan.mode.local().is_none(),
        "a push of {} is a whole training, not one gradient: there is no limit by this formula",
        plan.mode
    );
    let layout = plan.layout()?;
    let values = Floats::from(&layout.initial_values(plan.seed)[..]);
    let (gradient_s, gradient) = gradient(plan, cores, &values, &Examples::of(plan)?)?;
    let (apply_s, payload) = codecs_and_update(plan, &layout, &values, &gradient)?;
    let wire_s = wire(plan, payload)?;
    Ok(Costs { gradient_s, wire_s, apply_s })
}

/// Pushes per second where as many workers as this machine has cores for do all of it in turn: a gradient, its bytes over bare
/// QUIC, the codecs and an update, each with a server's thread and a store of its own. That is the limit of [`Costs`] with caches
/// that the three share, as in a run, and threads that wait for each other.
///
/// # Errors
/// As [`measure`].
pub fn together(plan: &Plan, cores: usize) -> anyhow::Result<f64> {
    let layout = plan.layout()?;
    let values = Floats::from(&layout.initial_values(plan.seed)[..]);
    let workers = (cores / threads(plan).get()).max(1);
    let (examples, mut one) = (Examples::of(plan)?, Floats::zeros(values.len()));
    Computing::new(plan, &examples)?.once(&values, &mut one);
    let [up, down] = Applying::new(plan, &layout, &values)?.once(&one, &values)?;
    let payload = Payload { up, down };
    let authority = RunAuthority::new("limit")?;
    let identities = (0..workers as u32).map(|w| authority.issue(Role::Worker(WorkerId(w))));
    let identities = identities.collect::<Result<Vec<_>, _>>()?;
    let server = authority.issue(Role::Server(ServerId(0)))?;
    let servers = bare::serve(&server, &windlass_ps::limits(), payload, workers)?;
    let took = |times| {
        bare::at_once(workers, times, |worker| {
            let (mut computing, mut gradient) =
                (Computing::new(plan, &examples)?, Floats::zeros(values.len()));
            let mut applying = Applying::new(plan, &layout, &values)?;
            let server = servers[worker % servers.len()];
            let mut client = bare::Client::connect(server, &identities[worker], payload)?;
            let values = &values;
            Ok(move || {
                computing.once(values, &mut gradient);
                client.exchange()?;
                applying.once(&gradient, values).map(drop)
            })
        })
    };
    let probe = took(20)?;
    Ok(took(times(probe.wall / 20))?.per_second())
}

/// Compute threads of a worker.
fn threads(plan: &Plan) -> NonZeroUsize {
    let threads = usize::try_from(plan.training.compute_threads).ok().and_then(NonZeroUsize::new);
    threads.unwrap_or(NonZeroUsize::MIN)
}

/// Batches that gradients are computed of in turn, so that no processor learns where in them the values are that are not 0.
const BATCHES: usize = 16;

/// Batches of the plan's data.
struct Examples([Gathered; BATCHES]);

impl Examples {
    fn of(plan: &Plan) -> anyhow::Result<Self> {
        let path = Path::new(&plan.data.path);
        let loaded = data::load_for(plan, path).context("a gradient's cost depends on the data")?;
        data::check_fit(&plan.model.name, models::by_name(&plan.model.name)?.input(), &loaded)?;
        let owned = data::owned(plan, loaded, WorkerId(0))?;
        let mut all = (0..plan.clients.count).flat_map(|client| owned.of(ClientId(client))).copied().cycle();
        let mut batches = Self(Default::default());
        for batch in &mut batches.0 {
            let indices: Vec<u32> = all.by_ref().take(plan.training.batch as usize).collect();
            owned.gather(&indices, batch);
        }
        Ok(batches)
    }
}

/// What computes gradients.
struct Computing<'a> {
    model: Box<dyn Model>,
    batches: std::iter::Cycle<std::slice::Iter<'a, Gathered>>,
}

impl<'a> Computing<'a> {
    fn new(plan: &Plan, examples: &'a Examples) -> anyhow::Result<Self> {
        let model = models::with_threads(&plan.model.name, threads(plan))?;
        Ok(Self { model, batches: examples.0.iter().cycle() })
    }

    fn once(&mut self, values: &[f32], gradient: &mut [f32]) {
        let batch = self.batches.next().expect("they begin anew").batch();
        black_box(self.model.gradient(values, batch, gradient));
    }
}

/// Processor seconds of a gradient, and one.
fn gradient(plan: &Plan, cores: usize, values: &[f32], examples: &Examples) -> anyhow::Result<(f64, Floats)> {
    let (mut computing, mut one) = (Computing::new(plan, examples)?, Floats::zeros(values.len()));
    let begun = Instant::now();
    computing.once(values, &mut one);
    let times = times(begun.elapsed());
    let workers = (cores / threads(plan).get()).max(1);
    let took = bare::at_once(workers, times, |_| {
        let (mut computing, mut gradient) = (Computing::new(plan, examples)?, Floats::zeros(values.len()));
        Ok(move || {
            computing.once(values, &mut gradient);
            Ok(())
        })
    })?;
    Ok((took.core_seconds(), one))
}

/// Processor seconds of writing and reading a gradient and values as they travel, and of the update; and their bytes.
fn codecs_and_update(
    plan: &Plan,
    layout: &Layout,
    values: &[f32],
    gradient: &[f32],
) -> anyhow::Result<(f64, Payload)> {
    let mut applying = Applying::new(plan, layout, values)?;
    let begun = Instant::now();
    let [up, down] = applying.once(gradient, values)?;
    let times = times(begun.elapsed());
    for _ in 0..times / 10 {
        applying.once(gradient, values)?;
    }
    let before = processor_time();
    for _ in 0..times {
        applying.once(gradient, values)?;
    }
    Ok(((processor_time() - before).as_secs_f64() / times as f64, Payload { up, down }))
}

/// Processor seconds of an exchange of so many bytes over bare QUIC, by as many workers at once as the plan has.
fn wire(plan: &Plan, payload: Payload) -> anyhow::Result<f64> {
    let authority = RunAuthority::new("limit")?;
    let workers = (0..plan.cluster.workers).map(|w| authority.issue(Role::Worker(WorkerId(w))));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let server = authority.issue(Role::Server(ServerId(0)))?;
    let servers = bare::serve(&server, &windlass_ps::limits(), payload, workers.len())?;
    let probe = bare::exchange(&servers, &workers[..1], payload, 20)?;
    let times = times(probe.wall / 20) / u64::from(plan.cluster.workers).max(1);
    let took = bare::exchange(&servers, &workers, payload, times.max(TIMES.0 as u64));
    Ok(took.context("bytes could not be exchanged over loopback")?.core_seconds())
}

/// How often something that takes so long is done in the time there is.
fn times(took: Duration) -> u64 {
    (MEASURED.as_secs_f64() / took.as_secs_f64().max(1e-9)).clamp(TIMES.0, TIMES.1) as u64
}

/// Whether the costs of a push bound the pushes of this plan: not where workers train by themselves between pushes, or their
/// computing is emulated.
pub fn has_limit(plan: &Plan) -> bool {
    let is_emulated = plan.heterogeneity.step_time.is_some();
    !is_emulated && !matches!(plan.mode, Mode::Fedavg(_) | Mode::Fedbuff { .. } | Mode::Fedasync { .. })
}
