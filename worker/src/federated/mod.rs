//! The built-in loops of federated training: pull, train clients on their own data, push how the values have changed.

mod local;

use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use windlass_common::cohort;
use windlass_common::exit::Exit;
use windlass_common::floats::Floats;
use windlass_common::ids::{ClientId, Step};
use windlass_common::plan::{LocalWork, Mode, StragglerWork};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::WorkerReport;
use windlass_process::{Failure, OrExit};

pub use local::{Done, LocalTraining, straggles};

use crate::client::{BlockingClient, Gradient, Next, Taken, Work};
use crate::data::Owned;
use crate::emulation::Emulation;
use crate::models::Model;
use crate::training::failure;

/// What a worker needs to train its clients.
struct Trainer<'a> {
    client: &'a mut BlockingClient,
    model: Box<dyn Model>,
    data: Owned,
    seed: u64,
    work: LocalWork,
    dropout: f64,
    training: LocalTraining,
    emulation: Emulation,
    values: Floats,
    report: WorkerReport,
}

/// Trains clients until the run has all its rounds or examples.
///
/// # Errors
/// If the run ends otherwise than complete, or a client's loss is no longer a number.
pub(crate) fn train(
    client: &mut BlockingClient,
    model: Box<dyn Model>,
    data: Owned,
    work: LocalWork,
) -> Result<WorkerReport, Failure> {
    let plan = client.plan().clone();
    let values = client.values();
    let emulation = Emulation::new(&plan, client.worker(), Step(0));
    let mut trainer = Trainer {
        seed: plan.seed,
        dropout: plan.heterogeneity.dropout,
        client,
        model,
        data,
        work,
        training: LocalTraining::default(),
        emulation,
        values,
        report: WorkerReport::default(),
    };
    let first = trainer.client.pull(&mut trainer.values).map_err(failure)?;
    let began = Instant::now();
    match plan.mode {
        Mode::Fedavg(_) => trainer.rounds(first)?,
        _ => trainer.at_will(first)?,
    }
    let microseconds = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(WorkerReport {
        finished: true,
        compute_us: microseconds(trainer.emulation.computing()),
        active_us: microseconds(began.elapsed()),
        ..trainer.report
    })
}

impl Trainer<'_> {
    /// In each round, trains those of this worker's clients that are in the cohort.
    fn rounds(&mut self, first: Next) -> Result<(), Failure> {
        let mut next = first;
        while let Next::Step(round) = next {
            let (gone, staying): (Vec<_>, Vec<_>) =
                self.client.clients().iter().partition(|&&client| self.drops_out(client, round));
            for client in gone {
                self.client.drop_out(client).map_err(failure)?;
            }
            for client in staying {
                let (push, work) = self.trained(client, round)?;
                if self.client.push(push, work).map_err(failure)? == Taken::Unused {
                    // The round is closed, or has to be begun again.
                    break;
                }
            }
            next = self.client.pull(&mut self.values).map_err(failure)?;
        }
        Ok(())
    }

    /// One of this worker's clients after the other, whenever it is done with the one before.
    fn at_will(&mut self, first: Next) -> Result<(), Failure> {
        let worker = self.client.worker();
        let mut next = first;
        let mut draw = 0;
        while let Next::Step(step) = next {
            // Draws run ahead of steps where clients drop out; none is used twice.
            draw = step.0.max(draw);
            let hosted = Arc::clone(self.client.hosted());
            let mut client = cohort::next_client(self.seed, worker, draw, &hosted);
            while self.drops_out(client, Step(draw)) {
                // It is as if it had never begun; another takes its place.
                draw += 1;
                client = cohort::next_client(self.seed, worker, draw, &hosted);
            }
            let (push, work) = self.trained(client, step)?;
            draw += 1;
            next = self.client.push_pull(push, work, &mut self.values).map_err(failure)?;
        }
        Ok(())
    }

    fn drops_out(&self, client: ClientId, round: Step) -> bool {
        let purpose = Purpose::Dropout { client: client.0, round: round.0 };
        let by_chance = self.dropout > 0.0 && Rng::new(self.seed, purpose).unit() < self.dropout;
        let for_lack_of_time = self.work.straggler_work == StragglerWork::Dropped
            && straggles(&self.work, self.seed, client, round.0).is_some();
        by_chance || for_lack_of_time
    }

    fn trained(&mut self, client: ClientId, round: Step) -> Result<(Gradient, Work), Failure> {
        let mut push = self.client.gradient();
        let done = self
            .training
            .train(
                &mut *self.model,
                &self.data,
                (self.seed, client, round.0),
                &self.work,
                &self.values,
                &mut push,
                &mut self.emulation,
            )
            .or_exit(Exit::Run)?;
        let loss = done.loss;
        if !loss.is_finite() || !push.iter().all(|x| x.is_finite()) {
            let reason = anyhow!(
                "the loss of {client} is {loss} in round {round}: the training diverged; lower --local-rate"
            );
            return Err(reason).or_exit(Exit::Run);
        }
        self.report.steps += 1;
        self.report.work += done.work;
        let examples = u32::try_from(self.data.of(client).len()).expect("examples are numbered with 32 bits");
        Ok((push, Work { client, examples, work: done.work, loss }))
    }
}
