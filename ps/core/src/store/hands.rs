//! Divides the update of a large slice among threads that whoever drives the core has lent.

use std::fmt::Debug;

use windlass_common::optimizer::Pass;
use windlass_common::placement::BLOCK;

/// Fewest values for a thread: below twice as many a slice is updated by the shard's own.
///
/// Measured with one thread and with two of a rayon pool on two EPYC cores that others used too, in turn, best of hundreds:
/// 256 Ki values of SGD take 39 us and 57 us, 512 Ki 132 and 118, 1 Mi 419 and 301, 4 Mi 2.3 ms and 1.4; of Adam 128 Ki
/// take 48 us and 58 us, 256 Ki 98 and 85, 1 Mi 798 and 666. Waking the other thread takes about 15 us.
pub(super) const PART_MIN: usize = 512 << 10;

/// Threads for a shard, which has none of its own beside the one that drives it.
pub trait Hands: Debug + Send + Sync {
    /// How many threads there are.
    fn count(&self) -> usize;

    /// Does both, at once if a thread is free, and returns when both are done.
    fn both(&self, one: &mut (dyn FnMut() + Send), other: &mut (dyn FnMut() + Send));
}

/// Computes the update, with as many threads as its values are worth. Parts begin at multiples of [`BLOCK`] values, and
/// however many there are, the bits are the same.
pub(super) fn apply(pass: Pass<'_>, hands: Option<&dyn Hands>) {
    match hands {
        Some(hands) => divide(pass, hands, hands.count()),
        None => pass.apply(),
    }
}

fn divide(pass: Pass<'_>, hands: &dyn Hands, threads: usize) {
    let threads = threads.min(pass.values() / PART_MIN);
    if threads < 2 {
        return pass.apply();
    }
    let half = threads / 2;
    let at = (pass.values() / threads * half).next_multiple_of(BLOCK as usize);
    let (one, other) = pass.cut(at);
    let (mut one, mut other) = (Some(one), Some(other));
    hands.both(&mut || one.take().into_iter().for_each(|part| divide(part, hands, half)), &mut || {
        other.take().into_iter().for_each(|part| divide(part, hands, threads - half));
    });
}
