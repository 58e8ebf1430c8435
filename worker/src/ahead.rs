//! The training loop with two gradients in flight: while one is on its way, the next is computed on the values at hand.

use std::time::{Duration, Instant};

use windlass_common::exit::Exit;
use windlass_common::ids::Step;
use windlass_common::wire::WorkerReport;
use windlass_process::{Failure, OrExit};

use crate::client::{BlockingClient, Gradient, Next};
use crate::emulation::Emulation;
use crate::models::Model;
use crate::training::{Batches, check_loss, failure, microseconds};

/// A gradient that has not been pushed.
struct Computed {
    gradient: Gradient,
    loss: f32,
    examples: u32,
}

/// One batch of this worker's own data after the other.
pub(crate) fn steps(
    client: &mut BlockingClient,
    mut model: Box<dyn Model>,
    mut batches: Batches<'_>,
) -> Result<WorkerReport, Failure> {
    client.compute_ahead().map_err(failure)?;
    // One is computed on while values come into the other.
    let mut buffers = [client.values(), client.values()];
    let mut report = WorkerReport::default();
    let mut waiting = Duration::ZERO;
    let incoming = client.ahead().map_err(failure)?.incoming;
    let mut next = client.pull(&mut buffers[incoming]).map_err(failure)?;
    let first = if let Next::Step(step) = next { step } else { Step(0) };
    let mut emulation = Emulation::new(client.plan(), client.worker(), first);
    let mut computed: Option<Computed> = None;
    let mut thrown_away = 0_u64;
    let began = Instant::now();
    while let Next::Step(step) = next {
        let mut compute = |step, values: &[f32], client: &mut BlockingClient| {
            let begun = emulation.begin();
            let (batch, examples) = batches.of(step, client.hosted())?;
            let mut gradient = client.gradient();
            let loss = model.gradient(values, batch, &mut gradient);
            emulation.end(begun).or_exit(Exit::Run)?;
            Ok::<_, Failure>(Computed { gradient, loss, examples })
        };
        let ahead = client.ahead().map_err(failure)?;
        let Computed { gradient, loss, examples } = match computed.take() {
            Some(computed) if ahead.is_next => computed,
            of_no_use => {
                thrown_away += u64::from(of_no_use.is_some());
                client.throw_away().map_err(failure)?;
                compute(step, &buffers[ahead.newest], client)?
            }
        };
        check_loss(loss, step)?;
        report.steps += 1;
        report.work += u64::from(examples);
        let work = client.batch(examples, loss);
        let incoming = std::mem::take(&mut buffers[ahead.incoming]);
        let behind = client.push_pull_behind(gradient, work, incoming).map_err(failure)?;
        computed = Some(compute(step.next(), &buffers[ahead.newest], client)?);
        let since = Instant::now();
        (next, buffers[ahead.incoming]) = client.finish(behind).map_err(failure)?;
        waiting += since.elapsed();
        if client.hosted() != batches.hosted() {
            // It is of the data that this worker had.
            thrown_away += u64::from(computed.take().is_some());
        }
    }
    report.finished = true;
    report.compute_us = microseconds(emulation.computing());
    report.active_us = microseconds(began.elapsed());
    report.exchange_us = microseconds(waiting);
    tracing::info!(
        steps = report.steps,
        thrown_away,
        computing_s = emulation.computing().as_secs_f64(),
        "finished"
    );
    Ok(report)
}
