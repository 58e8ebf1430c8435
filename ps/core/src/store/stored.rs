//! Keeps a slice's newest values and what is needed to make the next ones.

use std::sync::Arc;

use windlass_common::ids::Version;
use windlass_common::optimizer::State;
use windlass_common::wire::{Codec, Part};

use super::SliceValues;
use super::written::{self, Earlier, Place, Written};

/// Most values of a slice that are written as they are sent as soon as they are made, 1 MiB of them: of larger ones the
/// sessions' threads write several versions, or slices, at once.
pub(super) const WRITTEN_MAX: usize = 1 << 18;

/// A slice.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) part: Part,
    /// Where this slice lies in the shard's part of a gradient.
    pub(super) offset: usize,
    pub(super) changed: Version,
    pub(super) current: SliceValues,
    /// Those as workers are sent them, once somebody has asked, or because somebody will.
    pub(super) written: Arc<Written>,
    /// Memory for those of the next versions.
    pub(super) earlier: Earlier,
    pub(super) state: State,
    /// Buffers as long as the slice, for values and for vectors of the state, whichever needs one.
    pub(super) spares: Vec<SliceValues>,
}

/// A slice while its next values are made.
pub(super) struct Change<'a> {
    pub(super) offset: usize,
    /// The values now; `None` where nobody reads them and they are in `next`.
    pub(super) current: Option<&'a [f32]>,
    pub(super) next: &'a mut [f32],
    pub(super) state: &'a mut State,
    pub(super) spares: &'a mut Vec<SliceValues>,
    /// Where the next values are to be written as they are sent.
    pub(super) place: Option<Place<'a>>,
}

impl Stored {
    /// Lets the next values be made: in place of those that there are, if nobody reads them.
    pub(super) fn change(&mut self, sent_in: Option<Codec>, make: impl FnOnce(Change<'_>)) {
        let Self { offset, current, state, spares, written, earlier, .. } = self;
        let (offset, len) = (*offset, current.len());
        earlier.renew(written);
        let codec = sent_in.filter(|_| earlier.are_asked_for() && len <= WRITTEN_MAX);
        let mut bytes = codec.map(|codec| written::memory(written, codec, len));
        let place = codec.zip(bytes.as_mut()).map(|(codec, bytes)| Place::new(codec, len, bytes));
        if let Some(next) = Arc::get_mut(current) {
            make(Change { offset, current: None, next, state, spares, place });
        } else {
            let mut apart = spare(spares, len);
            let next = Arc::get_mut(&mut apart).expect("a spare buffer has no readers");
            make(Change { offset, current: Some(current), next, state, spares, place });
            spares.push(std::mem::replace(current, apart));
        }
        if let Some((codec, bytes)) = codec.zip(bytes) {
            written.set(codec, bytes);
        }
    }
}

/// A buffer that nobody reads any more, or a new one. What was read last is the most likely to be in a cache.
pub(crate) fn spare(spares: &mut Vec<SliceValues>, len: usize) -> SliceValues {
    match spares.iter_mut().rposition(|s| Arc::get_mut(s).is_some()) {
        Some(free) => spares.swap_remove(free),
        None => Arc::new(vec![0.0; len]),
    }
}
