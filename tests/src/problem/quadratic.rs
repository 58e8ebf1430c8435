//! Poses a quadratic in which nothing rounds, so that what is equal in real arithmetic is equal bit for bit.

use windlass_common::ids::{Step, WorkerId};
use windlass_common::layout::{Initial, Variable};

use super::Problem;

/// Loss (w - x)^2 / 2 per value and example, with small whole numbers for x.
///
/// The examples of a step are numbered over all workers: worker k of n, with batch B, has number k B to (k + 1) B - 1
/// of the n B examples of the step. So one worker with batch n B sees what n workers with batch B see.
#[derive(Clone, Copy, Debug)]
pub struct Quadratic {
    /// How many workers share the examples of a step: n, a power of two.
    pub workers: u32,
    /// Examples per worker and step: B, a power of two.
    pub batch: u32,
}

impl Quadratic {
    /// Values of its first variable, which is large enough to be cut.
    pub const LONG: u64 = 1100;
    /// Values of each of the other variables.
    pub const SHORT: u64 = 70;

    /// The target of one value in one example.
    fn target(example: u64, value: u64) -> f32 {
        let mixed =
            (example + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value.wrapping_mul(0xd1b5_4a32_d192_ed03);
        ((mixed >> 40) % 9) as f32 - 4.0
    }

    fn first_example(&self, worker: WorkerId, step: Step) -> u64 {
        let (workers, batch) = (u64::from(self.workers), u64::from(self.batch));
        step.0 * workers * batch + u64::from(worker.0) * batch
    }
}

impl Problem for Quadratic {
    fn variables(&self) -> Vec<Variable> {
        let short = (0..4).map(|i| Variable::new(format!("short{i}"), &[Self::SHORT], Initial::Zeros));
        [Variable::new("long", &[Self::LONG], Initial::Zeros)].into_iter().chain(short).collect()
    }

    fn examples(&self, _: WorkerId, _: Step) -> u32 {
        self.batch
    }

    fn gradient(&self, worker: WorkerId, step: Step, values: &[f32], gradient: &mut [f32]) -> f32 {
        assert!(self.batch.is_power_of_two() && self.workers.is_power_of_two(), "else the mean rounds");
        let first = self.first_example(worker, step);
        for (i, (g, w)) in gradient.iter_mut().zip(values).enumerate() {
            let sum: f32 = (0..u64::from(self.batch)).map(|j| w - Self::target(first + j, i as u64)).sum();
            *g = sum / self.batch as f32;
        }
        values.iter().map(|w| w * w).sum::<f32>() / values.len() as f32
    }
}
