//! Says what a shard needs of the values that a push brings, however they are kept.

use std::fmt::Debug;
use std::ops::Range;

/// The values that a push brings, the shard's slices end to end.
pub trait Brought: AsRef<[f32]> + Debug + Sync {
    /// Whether all of them are in memory; otherwise some at a time cost less than all.
    fn is_at_hand(&self) -> bool {
        true
    }

    /// Writes those of a range, which lies in one slice and begins at a multiple of 64 of its values, into a block as long.
    fn write(&self, range: Range<usize>, block: &mut [f32]) {
        block.copy_from_slice(&self.as_ref()[range]);
    }
}

impl Brought for Vec<f32> {}
