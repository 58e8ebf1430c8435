//! Says what the pushes of one step combine to, a block of a slice at a time.

use std::ops::Range;

use windlass_common::compensate::compensate;
use windlass_common::reduce::{self, Contribution, Scaled};

use super::{Snapshot, Source};

/// Pushes that make one step, in order. Each holds the shard's slices end to end.
#[derive(Clone, Copy, Debug)]
pub enum Combined<'a> {
    /// Their mean, weighted by counts.
    Mean(&'a [Contribution<'a>]),
    /// Their sum, each times its scale, divided by this number.
    Sum(&'a [Scaled<'a>], f32),
    /// One, made up for what has changed since its values.
    Compensated(Compensated<'a>),
    /// One whose values are made when they are needed.
    Alone(&'a dyn Source),
}

/// A push that is made up for what has changed since its values.
#[derive(Clone, Copy, Debug)]
pub struct Compensated<'a> {
    /// The shard's slices of the gradient, end to end.
    pub gradient: &'a [f32],
    /// What it was computed on.
    pub pulled: &'a Snapshot,
    /// How much of the change is made up for.
    pub lambda: f32,
}

impl Compensated<'_> {
    /// Writes these values of the shard, which are `current` now.
    pub(super) fn write(self, of_shard: Range<usize>, current: &[f32], pulled: &[f32], block: &mut [f32]) {
        compensate(&self.gradient[of_shard], current, pulled, self.lambda, block);
    }
}

impl Combined<'_> {
    /// Writes what these values of the shard combine to. They are `current` now, and were `pulled` where that matters.
    pub(super) fn write(self, of_shard: Range<usize>, current: &[f32], pulled: &[f32], block: &mut [f32]) {
        let written = match self {
            Self::Mean(pushes) => {
                let parts = pushes.iter().map(|g| Contribution { values: &g.values[of_shard.clone()], ..*g });
                reduce::weighted_mean(parts, block)
            }
            Self::Sum(pushes, divisor) => {
                let parts = pushes.iter().map(|g| Scaled { values: &g.values[of_shard.clone()], ..*g });
                reduce::scaled_mean(parts, divisor, block)
            }
            Self::Compensated(push) => return push.write(of_shard, current, pulled, block),
            Self::Alone(source) => return source.write(of_shard, block),
        };
        written.expect("pushes are checked when they arrive");
    }
}
