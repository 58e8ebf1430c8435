//! Keeps what workers are sent where values go down in patches: a reference that follows the values, and the last patches to it.
//!
//! All workers share one reference. Each version brings it nearer to the values by one patch, whether somebody asks for that
//! version or not, so that it follows from the values alone. Who has the reference of some versions ago is sent the patches
//! since, and who has none or is too far behind all of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::Patch;
use windlass_common::ids::Version;
use windlass_common::wire::Part;

use super::{Encoded, SliceValues, Snapshot, SnapshotSlice, spare};

/// Most patches that are kept. They never have as many bytes as the reference.
pub const PATCHES_MAX: usize = 64;

/// Values that are copied at once where the reference is written apart: whole blocks, in the nearest cache.
const COPIED: usize = 4096;

/// What workers are sent of a shard, and how it follows the values.
#[derive(Debug)]
pub(super) struct Reference {
    patch: Patch,
    parts: Vec<Part>,
    slices: Vec<SliceValues>,
    /// Of each slice, buffers that may still be read.
    spares: Vec<Vec<SliceValues>>,
    /// The last patches of all slices, end to end, up to that of the newest version.
    patches: VecDeque<Encoded>,
    patches_max: usize,
    /// Memory of patches that have been given up.
    spare_patches: Vec<Encoded>,
}

impl Reference {
    /// A reference that is here now; there are no patches that lead to it.
    pub(super) fn new(patch: Patch, parts: Vec<Part>, slices: Vec<SliceValues>) -> Self {
        let values: u64 = parts.iter().map(|part| part.values).sum();
        let each: u64 = parts.iter().map(|part| patch.bytes(part.values)).sum();
        let fewer = (4 * values).saturating_sub(1) / each.max(1);
        let patches_max = usize::try_from(fewer).unwrap_or(usize::MAX).min(PATCHES_MAX);
        let spares = slices.iter().map(|_| Vec::new()).collect();
        let (patches, spare_patches) = (VecDeque::new(), Vec::new());
        Self { patch, parts, slices, spares, patches, patches_max, spare_patches }
    }

    /// Sets memory aside, so that the first checkpoint is as fast as others.
    pub(super) fn make_room(&mut self) {
        for (spares, slice) in self.spares.iter_mut().zip(&self.slices) {
            // Not zeros: memory of zeros is there only once it is written to.
            spares.push(Arc::new(vec![f32::NAN; slice.len()]));
        }
    }

    /// Follows the values of the next version. In place, unless somebody refers to the reference as it was.
    pub(super) fn follow<'a>(&mut self, values: impl Iterator<Item = &'a SliceValues>, spares_max: usize) {
        let mut written = self.memory();
        let bytes = Arc::get_mut(&mut written).expect("nobody reads it");
        for ((values, reference), spares) in values.zip(&mut self.slices).zip(&mut self.spares) {
            if let Some(reference) = Arc::get_mut(reference) {
                self.patch.write(values, reference, bytes);
                continue;
            }
            let mut next = spare(spares, values.len());
            let apart = Arc::get_mut(&mut next).expect("a spare buffer has no readers");
            let pieces = values.chunks(COPIED).zip(reference.chunks(COPIED)).zip(apart.chunks_mut(COPIED));
            for ((values, before), reference) in pieces {
                reference.copy_from_slice(before);
                self.patch.write(values, reference, bytes);
            }
            spares.push(std::mem::replace(reference, next));
            spares.truncate(spares_max);
        }
        self.patches.push_back(written);
        while self.patches.len() > self.patches_max {
            self.spare_patches.extend(self.patches.pop_front());
        }
    }

    /// Memory for a patch, empty.
    fn memory(&mut self) -> Encoded {
        let free = self.spare_patches.iter_mut().position(|bytes| Arc::get_mut(bytes).is_some());
        let mut memory = free.map(|i| self.spare_patches.swap_remove(i)).unwrap_or_default();
        // What is still on its way is freed when it has arrived.
        self.spare_patches.truncate(1);
        if let Some(bytes) = Arc::get_mut(&mut memory) {
            bytes.clear();
        }
        memory
    }

    /// All of it, in order.
    pub(super) fn slices(&self) -> &[SliceValues] {
        &self.slices
    }

    /// Bytes of the reference and of the patches that are kept.
    pub(super) fn bytes(&self) -> u64 {
        let values: u64 = self.slices.iter().map(|slice| 4 * slice.len() as u64).sum();
        values + self.patches.iter().map(|patch| patch.len() as u64).sum::<u64>()
    }

    /// What there is to send of it now.
    pub(super) fn shown(&self) -> Shown {
        let mut end = 0;
        let places = self.parts.iter().map(|part| {
            let start = end;
            end += self.patch.bytes(part.values) as usize;
            start..end
        });
        Shown {
            slices: self.slices.as_slice().into(),
            places: places.collect(),
            patches: self.patches.iter().cloned().collect(),
        }
    }
}

/// A reference at one version, and the patches that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    slices: Arc<[SliceValues]>,
    /// Where the bytes of each slice are in a patch.
    places: Arc<[Range<usize>]>,
    patches: Arc<[Encoded]>,
}

impl Shown {
    /// The patches that lead here from so many versions ago, if they are all there.
    fn since(&self, behind: u64) -> Option<&[Encoded]> {
        let first = self.patches.len().checked_sub(usize::try_from(behind).ok()?)?;
        Some(&self.patches[first..])
    }
}

/// What a worker is sent of one slice.
#[derive(Clone, Debug)]
pub enum Sent<'a> {
    /// All of it.
    Whole(SliceValues),
    /// What is to be applied to the version that the worker has, one after the other: these bytes of each.
    Patches(&'a [Encoded], Range<usize>),
}

impl Snapshot {
    /// What a worker is sent of these values where they go down in patches: of the slices asked for those that have changed since
    /// the version that it has. An empty request asks for all.
    pub fn sent_since<'a>(
        &'a self,
        have: Option<Version>,
        requested: &'a [u32],
    ) -> impl Iterator<Item = (Part, Sent<'a>)> + 'a {
        let behind = have.and_then(|have| self.version.0.checked_sub(have.0));
        let patches = behind.zip(self.sent.as_ref()).and_then(|(behind, sent)| sent.since(behind));
        self.slices_since(have, requested).map(move |(index, slice)| {
            let sent = match (&self.sent, patches) {
                (Some(sent), Some(patches)) => Sent::Patches(patches, sent.places[index].clone()),
                (Some(sent), None) => Sent::Whole(sent.slices[index].clone()),
                (None, _) => Sent::Whole(slice.values.clone()),
            };
            (slice.part, sent)
        })
    }

    /// The values as a worker has them that was sent this snapshot, as far as it depends on what others were sent: where they go
    /// down in patches the reference. They can be sent again, as a whole.
    #[must_use]
    pub fn as_pulled(self) -> Self {
        let Some(sent) = &self.sent else { return self };
        let slices = self.slices.iter().zip(&*sent.slices);
        let slices = slices.map(|(slice, reference)| SnapshotSlice {
            values: reference.clone(),
            written: Arc::default(),
            ..*slice
        });
        Self { slices: slices.collect(), sent: None, ..self }
    }

    /// The values alone, for whoever is no worker.
    #[must_use]
    pub fn without_reference(self) -> Self {
        Self { sent: None, ..self }
    }
}

#[cfg(test)]
mod tests;
