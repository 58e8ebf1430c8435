//! Trains one client on its own data: local SGD from the values that were pulled.

use windlass_common::floats::Floats;
use windlass_common::ids::ClientId;
use windlass_common::plan::LocalWork;
use windlass_common::rng::{Purpose, Rng};

use crate::data::{Gathered, Owned};
use crate::emulation::{Emulation, StepTimeError};
use crate::models::Model;

/// What a client has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Done {
    /// Local steps.
    pub steps: u64,
    /// Examples whose gradients were computed, counted with repetition.
    pub work: u64,
    /// Mean loss over those, each at the values it was computed on.
    pub loss: f32,
}

/// Trains clients, one after the other, in buffers that are used again.
#[derive(Debug, Default)]
pub struct LocalTraining {
    order: Vec<u32>,
    gathered: Gathered,
    values: Floats,
    gradient: Floats,
    velocity: Floats,
}

impl LocalTraining {
    /// Trains a client in a round and writes its pseudo-gradient, start minus end of its values, into `push`.
    ///
    /// The order of its examples follows from (seed, client, round): one permutation after the other out of one stream,
    /// one for each pass. So the result depends neither on who trains it nor on what was trained before.
    ///
    /// ```text
    /// g = clipped gradient of the batch + weight_decay w + proximal (w - start)
    /// v = momentum v + g;   w = w - rate v                                       v = 0 at the beginning of the round
    /// ```
    ///
    /// # Errors
    /// If a step takes longer than its emulated time.
    #[allow(clippy::too_many_arguments, reason = "each is one thing that the result depends on")]
    pub fn train(
        &mut self,
        model: &mut dyn Model,
        data: &Owned,
        (seed, client, round): (u64, ClientId, u64),
        work: &LocalWork,
        start: &[f32],
        push: &mut [f32],
        emulation: &mut Emulation,
    ) -> Result<Done, StepTimeError> {
        let examples = data.of(client);
        let batch = work.batch.map_or(examples.len(), |b| (b as usize).min(examples.len()));
        let passes = passes(work, seed, client, round);
        let limit = work.steps.unwrap_or(u64::MAX);
        let rate = work.rate_in(round);
        let mut rng = Rng::new(seed, Purpose::ClientShuffle { client: client.0, round });
        self.values.make(start.len());
        self.values.copy_from_slice(start);
        self.gradient.make(start.len());
        self.velocity.make(if work.momentum == 0.0 { 0 } else { start.len() });
        self.velocity.fill(0.0);
        let (mut done, mut loss_sum) = (Done::default(), 0.0_f64);
        for _ in 0..passes {
            self.order.clear();
            self.order.extend_from_slice(examples);
            rng.shuffle(&mut self.order);
            for indices in self.order.chunks(batch) {
                if done.steps == limit {
                    break;
                }
                let step = emulation.begin();
                data.gather(indices, &mut self.gathered);
                let loss = model.gradient(&self.values, self.gathered.batch(), &mut self.gradient);
                clip(&mut self.gradient, work.clip_norm);
                let velocity = (work.momentum != 0.0).then_some(&mut *self.velocity);
                update(&mut self.values, &self.gradient, start, velocity, rate, work);
                done.steps += 1;
                done.work += indices.len() as u64;
                loss_sum += f64::from(loss) * indices.len() as f64;
                emulation.end(step)?;
            }
            if done.steps == limit {
                break;
            }
        }
        for ((push, &start), &end) in push.iter_mut().zip(start).zip(&self.values) {
            *push = start - end;
        }
        done.loss = (loss_sum / done.work as f64) as f32;
        Ok(done)
    }
}

/// How many passes a client manages in a round; as many as it takes where steps are counted.
fn passes(work: &LocalWork, seed: u64, client: ClientId, round: u64) -> u64 {
    match work.steps {
        Some(_) => u64::MAX,
        None => u64::from(straggles(work, seed, client, round).unwrap_or(work.passes)),
    }
}

/// The passes of a client that does not manage all of them in this round; 1 to E - 1 (Li et al. 2020, section 5.2).
pub fn straggles(work: &LocalWork, seed: u64, client: ClientId, round: u64) -> Option<u32> {
    if work.stragglers == 0.0 {
        return None;
    }
    let mut rng = Rng::new(seed, Purpose::Straggler { client: client.0, round });
    let is_one = rng.unit() < work.stragglers;
    is_one.then(|| 1 + rng.below(u64::from(work.passes) - 1) as u32)
}

/// Shortens a gradient to this L2 norm (Pascanu et al. 2013, "On the difficulty of training recurrent neural networks",
/// algorithm 1).
fn clip(gradient: &mut [f32], most: Option<f64>) {
    let Some(most) = most else { return };
    let norm = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    if norm > most {
        let factor = (most / norm) as f32;
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
}

/// One local step. What is not asked for is left out rather than added as zero, so that plain SGD keeps its bits.
fn update(
    values: &mut [f32],
    gradient: &[f32],
    start: &[f32],
    velocity: Option<&mut [f32]>,
    rate: f32,
    work: &LocalWork,
) {
    let (decay, proximal, momentum) = (work.weight_decay as f32, work.proximal as f32, work.momentum as f32);
    if velocity.is_none() && decay == 0.0 && proximal == 0.0 {
        for (w, &g) in values.iter_mut().zip(gradient) {
            *w -= rate * g;
        }
        return;
    }
    let slope = |w: f32, g: f32, start: f32| {
        let g = if decay == 0.0 { g } else { g + decay * w };
        if proximal == 0.0 { g } else { g + proximal * (w - start) }
    };
    match velocity {
        None => {
            for ((w, &g), &start) in values.iter_mut().zip(gradient).zip(start) {
                *w -= rate * slope(*w, g, start);
            }
        }
        Some(velocity) => {
            for (((w, &g), &start), v) in values.iter_mut().zip(gradient).zip(start).zip(velocity) {
                *v = momentum * *v + slope(*w, g, start);
                *w -= rate * *v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::plan::StragglerWork;

    use super::*;
    use crate::data::{Dataset, Features};
    use crate::models::Mlp;

    fn data() -> Owned {
        let features = (0..30).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.2).collect();
        let train = Dataset::new(Features::Floats(features), (0..10).map(|i| i % 4).collect(), 4);
        Owned::new(train, vec![(0..6).collect(), (6..10).collect()], 1, 0.0)
    }

    fn trained(work: LocalWork, client: u32, round: u64, start: &[f32]) -> (Done, Vec<f32>) {
        let mut push = vec![f32::NAN; start.len()];
        let mut training = LocalTraining::default();
        let mut model = Mlp::new(&[3, 4]);
        let done = training.train(
            &mut model,
            &data(),
            (1, ClientId(client), round),
            &work,
            start,
            &mut push,
            &mut Emulation::none(),
        );
        (done.unwrap(), push)
    }

    const WORK: LocalWork = LocalWork {
        passes: 1,
        steps: None,
        batch: Some(4),
        rate: 0.5,
        rate_decay: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        clip_norm: None,
        proximal: 0.0,
        stragglers: 0.0,
        straggler_work: StragglerWork::Kept,
    };

    #[test]
    fn work_is_counted_in_passes_or_steps() {
        let start = vec![0.1; 16];
        let counted = |work, client| {
            let (done, _) = trained(work, client, 0, &start);
            (done.steps, done.work)
        };
        assert_eq!(counted(WORK, 0), (2, 6), "a batch of 4 and what is left");
        assert_eq!(counted(LocalWork { passes: 3, ..WORK }, 1), (3, 12));
        assert_eq!(counted(LocalWork { batch: None, ..WORK }, 0), (1, 6));
        assert_eq!(counted(LocalWork { steps: Some(5), ..WORK }, 0), (5, 4 + 2 + 4 + 2 + 4));
    }

    #[test]
    fn one_step_on_everything_is_the_gradient_times_the_rate() {
        let start: Vec<f32> = (0..16).map(|i| (i as f32).sin()).collect();
        let (_, push) = trained(LocalWork { batch: None, ..WORK }, 0, 0, &start);
        let mut gathered = Gathered::default();
        data().gather(&[0, 1, 2, 3, 4, 5], &mut gathered);
        let mut gradient = vec![0.0; 16];
        Mlp::new(&[3, 4]).gradient(&start, gathered.batch(), &mut gradient);
        for (push, gradient) in push.iter().zip(&gradient) {
            assert!((push - 0.5 * gradient).abs() < 1e-6);
        }
    }

    #[test]
    fn client_and_round_decide_and_nothing_else() {
        let start = vec![0.1; 16];
        let batch_of_two = LocalWork { batch: Some(2), passes: 2, ..WORK };
        let push = |client, round| trained(batch_of_two, client, round, &start).1;
        assert_eq!(push(0, 3), push(0, 3));
        assert_ne!(push(0, 3), push(0, 4));
        assert_ne!(push(0, 3), push(1, 3));
    }

    #[test]
    fn each_setting_does_what_its_formula_says() {
        let start = vec![0.5; 16];
        let two_steps = LocalWork { batch: None, steps: Some(2), ..WORK };
        let slow = |work: LocalWork| -> Vec<f32> {
            let (mut w, mut v) = (start.clone(), vec![0.0; 16]);
            let (mut gathered, mut g) = (Gathered::default(), vec![0.0; 16]);
            data().gather(&[0, 1, 2, 3, 4, 5], &mut gathered);
            for _ in 0..2 {
                Mlp::new(&[3, 4]).gradient(&w, gathered.batch(), &mut g);
                let norm = g.iter().map(|g| g * g).sum::<f32>().sqrt();
                let most = work.clip_norm.unwrap_or(f64::MAX) as f32;
                for i in 0..16 {
                    let g = if norm > most { g[i] * (most / norm) } else { g[i] };
                    let g = g + work.weight_decay as f32 * w[i] + work.proximal as f32 * (w[i] - start[i]);
                    v[i] = work.momentum as f32 * v[i] + g;
                    w[i] -= work.rate as f32 * v[i];
                }
            }
            start.iter().zip(&w).map(|(s, w)| s - w).collect()
        };
        for work in [
            two_steps,
            LocalWork { momentum: 0.9, ..two_steps },
            LocalWork { weight_decay: 0.1, ..two_steps },
            LocalWork { proximal: 1.0, ..two_steps },
            LocalWork { clip_norm: Some(0.01), ..two_steps },
            LocalWork { momentum: 0.5, proximal: 0.3, weight_decay: 0.2, ..two_steps },
        ] {
            let (_, push) = trained(work, 0, 0, &start);
            for (found, expected) in push.iter().zip(slow(work)) {
                assert!((found - expected).abs() < 1e-6, "{work:?}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn stragglers_manage_some_of_their_passes() {
        let work = LocalWork { passes: 5, stragglers: 0.5, ..WORK };
        let found: Vec<Option<u32>> =
            (0..1_000).map(|round| straggles(&work, 1, ClientId(0), round)).collect();
        let some = found.iter().flatten().count();
        assert!((430..570).contains(&some), "{some}");
        for passes in 1..=4 {
            assert!(found.contains(&Some(passes)));
        }
        assert!(found.iter().flatten().all(|p| (1..5).contains(p)));
        assert_eq!(straggles(&WORK, 1, ClientId(0), 0), None);
    }
}
