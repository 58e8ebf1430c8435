//! Says what the pushes of one step combine to, a block of a slice at a time.

use std::ops::Range;

use windlass_common::compensate::compensate;
use windlass_common::reduce::{self, Contribution, Scaled};

use super::Snapshot;

/// Pushes that make one step, in order. Each holds the shard's slices end to end.
#[derive(Clone, Copy, Debug)]
pub enum Combined<'a> {
    /// Their mean, weighted by counts.
    Mean(&'a [Contribution<'a>]),
    /// Their sum, each times its scale, divided by this number.
    Sum(&'a [Scaled<'a>], f32),
    /// One, made up for what has changed since its values.
    Compensated(Compensated<'a>),
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
    /// Writes these values of a slice that begins at `offset` and is `current` now.
    pub(super) fn write(
        self,
        offset: usize,
        current: &[f32],
        pulled: &[f32],
        range: Range<usize>,
        block: &mut [f32],
    ) {
        let gradient = &self.gradient[offset + range.start..offset + range.end];
        compensate(gradient, &current[range.clone()], &pulled[range], self.lambda, block);
    }
}

impl Combined<'_> {
    /// Writes what these values of a slice combine to. It begins at `offset`, is `current` now, and was `pulled` where that
    /// matters.
    pub(super) fn write(
        self,
        offset: usize,
        current: &[f32],
        pulled: &[f32],
        range: Range<usize>,
        block: &mut [f32],
    ) {
        let of_shard = offset + range.start..offset + range.end;
        let written = match self {
            Self::Mean(pushes) => {
                let parts = pushes.iter().map(|g| Contribution { values: &g.values[of_shard.clone()], ..*g });
                reduce::weighted_mean(parts, block)
            }
            Self::Sum(pushes, divisor) => {
                let parts = pushes.iter().map(|g| Scaled { values: &g.values[of_shard.clone()], ..*g });
                reduce::scaled_mean(parts, divisor, block)
            }
            Self::Compensated(push) => return push.write(offset, current, pulled, range, block),
        };
        written.expect("pushes are checked when they arrive");
    }
}
