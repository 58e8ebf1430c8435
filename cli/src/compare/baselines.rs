//! Trains what the modes are held against: all data in one place, and clients alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use windlass_common::exit::Exit;
use windlass_common::ids::ClientId;
use windlass_common::plan::{LocalWork, Plan};
use windlass_report::Baseline;
use windlass_worker::data::Owned;
use windlass_worker::emulation::Emulation;
use windlass_worker::federated::LocalTraining;
use windlass_worker::models::by_name;

use crate::failure::{OrExit, Outcome};
use crate::judge::{Judge, all_cores};

/// Examples per step where all data are in one place.
const POOLED_BATCH: u32 = 64;

/// The baselines of a plan's model, data and seed, with so many passes at this rate.
///
/// # Errors
/// If the model or its data cannot be had.
pub(crate) fn baselines(
    plan: &Plan,
    judge: &Judge,
    passes: f64,
    rate: f64,
    told: &mut dyn FnMut(&str),
) -> Outcome<Vec<Baseline>> {
    let whole = passes.ceil().max(1.0) as u32;
    let clients = judge.clients();
    told("baseline: pooled sequential SGD");
    let everything: Vec<u32> = clients.concat();
    let pooled = Owned::new(judge.train().clone(), vec![everything.clone()], plan.seed, 0.0);
    let work = LocalWork { batch: Some(POOLED_BATCH), rate, ..LocalWork::default() };
    let mut trained = Trained::begin(plan)?;
    let mut curve = vec![(0, judge.score(&trained.values, all_cores()).or_exit(Exit::System)?.accuracy())];
    for pass in 0..whole {
        trained.pass(&pooled, plan.seed, ClientId(0), pass, &work)?;
        let score = judge.score(&trained.values, all_cores()).or_exit(Exit::System)?;
        curve.push(((u64::from(pass) + 1) * everything.len() as u64, score.accuracy()));
    }
    let mut found = vec![Baseline {
        name: "pooled sequential SGD".into(),
        accuracy: curve.last().map_or(f64::NAN, |(_, accuracy)| *accuracy),
        curve,
        note: format!(
            "all data in one place, one process, batch {POOLED_BATCH}, rate {rate}, {whole} passes"
        ),
    }];
    if clients.len() > 1 {
        told(&format!("baseline: {} clients alone", clients.len()));
        let alone = alone(plan, judge, whole, rate)?;
        let note = format!("its own data only, batch 10, rate {rate}, {whole} passes");
        let mean = alone.iter().sum::<f64>() / alone.len() as f64;
        found.push(Baseline {
            name: "one client alone".into(),
            accuracy: alone[0],
            curve: Vec::new(),
            note: format!("client 0, {note}"),
        });
        found.push(Baseline {
            name: "mean of clients alone".into(),
            accuracy: mean,
            curve: Vec::new(),
            note: format!("{} clients, each {note}", alone.len()),
        });
    }
    Ok(found)
}

/// The test accuracy of each client that trains alone.
fn alone(plan: &Plan, judge: &Judge, passes: u32, rate: f64) -> Outcome<Vec<f64>> {
    let clients = judge.clients();
    let data = Owned::new(judge.train().clone(), clients.to_vec(), plan.seed, plan.clients.feature_noise);
    let work = LocalWork { rate, ..LocalWork::default() };
    let next = AtomicUsize::new(0);
    let some = || -> Outcome<Vec<(usize, f64)>> {
        let mut found = Vec::new();
        loop {
            let client = next.fetch_add(1, Ordering::Relaxed);
            if client >= clients.len() {
                return Ok(found);
            }
            let mut trained = Trained::begin(plan)?;
            for pass in 0..passes {
                trained.pass(&data, plan.seed, ClientId(client as u32), pass, &work)?;
            }
            let score = judge.score(&trained.values, 1).or_exit(Exit::System)?;
            found.push((client, score.accuracy()));
        }
    };
    let mut accuracy = vec![f64::NAN; clients.len()];
    thread::scope(|scope| {
        let threads: Vec<_> = (0..all_cores()).map(|_| scope.spawn(some)).collect();
        for thread in threads {
            for (client, found) in thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))? {
                accuracy[client] = found;
            }
        }
        Ok(accuracy)
    })
}

/// A model on its way.
struct Trained {
    model: Box<dyn windlass_worker::models::Model>,
    training: LocalTraining,
    values: Vec<f32>,
    push: Vec<f32>,
}

impl Trained {
    fn begin(plan: &Plan) -> Outcome<Self> {
        let model = by_name(&plan.model.name).or_exit(Exit::Input)?;
        let values = plan.layout().or_exit(Exit::Input)?.initial_values(plan.seed);
        let push = vec![0.0; values.len()];
        Ok(Self { model, training: LocalTraining::default(), values, push })
    }

    fn pass(
        &mut self,
        data: &Owned,
        seed: u64,
        client: ClientId,
        pass: u32,
        work: &LocalWork,
    ) -> Outcome<()> {
        let key = (seed, client, u64::from(pass));
        let (model, values, push) = (&mut *self.model, &self.values, &mut self.push);
        let trained = self.training.train(model, data, key, work, values, push, &mut Emulation::none());
        trained.or_exit(Exit::System)?;
        for (value, push) in self.values.iter_mut().zip(&self.push) {
            *value -= push;
        }
        Ok(())
    }
}
