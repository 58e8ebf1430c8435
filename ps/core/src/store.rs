//! Holds a shard's slices: their immutable values, version by version, with the optimizer's state.
//!
//! Whoever reads a version holds a reference, not a lock, and it does not change: while somebody reads it, an update
//! writes the next values into another buffer, one that nobody reads any more. Values that nobody reads change in their
//! place, as does the optimizer's state. Where workers will ask for the next values, they are also written as they are sent
//! in the same pass. So nobody reads them between two updates, and where these are made on different cores the values come
//! from the other core several times as fast as those that it has read again (docs/performance.md).

mod combined;
mod hands;
mod pushed;
mod reference;
mod shape;
mod stored;
mod written;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::Patch;
use windlass_common::ids::{Examples, ShardId, Step, Version};
use windlass_common::layout::Layout;
use windlass_common::mix::{mix, mix_in_place};
use windlass_common::optimizer::{Gradient, Optimizer, Pass, State, Together, Update};
use windlass_common::placement::{Placement, Slice};
use windlass_common::plan::Every;
use windlass_common::wire::{Codec, Part};

pub use combined::{Combined, Compensated};
pub use hands::Hands;
pub use pushed::{Pushed, Source, Undecoded};
pub use reference::{PATCHES_MAX, Sent};
pub use shape::Shape;
pub use written::OnWire;

pub(crate) use stored::spare;

use crate::Time;
use reference::{Reference, Shown};
use shape::parts_of;
use stored::{Change, Stored};
use written::{Earlier, Place, Written};

/// Spare buffers kept per slice, beside one for each of the optimizer's vectors; beyond that, memory is given back.
const SPARES_MAX: usize = 8;

/// The values of one slice, which do not change while somebody holds them.
pub type SliceValues = Arc<Vec<f32>>;
/// The same as they are sent.
pub type Encoded = Arc<Vec<u8>>;

/// The values of a shard at one moment. Cheap to clone; it never changes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// How often the shard had applied something.
    pub version: Version,
    /// The step these values are for.
    pub step: Step,
    /// Examples applied to them.
    pub examples: Examples,
    /// Pushes settled before them.
    pub pushes: u64,
    /// When they were made.
    pub made: Time,
    slices: Arc<[SnapshotSlice]>,
    /// What workers are sent, where that is not the values.
    sent: Option<Shown>,
}

#[derive(Clone, Debug)]
struct SnapshotSlice {
    part: Part,
    changed: Version,
    values: SliceValues,
    /// The same as workers are sent them.
    written: Arc<Written>,
}

impl Snapshot {
    /// All slices' values, in order.
    pub fn values(&self) -> impl Iterator<Item = &SliceValues> {
        self.slices.iter().map(|s| &s.values)
    }

    /// The slices asked for that have changed since the version that the asker has. An empty request asks for all.
    pub fn changed_since<'a>(
        &'a self,
        have: Option<Version>,
        requested: &'a [u32],
    ) -> impl Iterator<Item = (Part, SliceValues)> + 'a {
        self.slices_since(have, requested).map(|(_, s)| (s.part, s.values.clone()))
    }

    /// The same as this codec writes them, once for all who ask.
    ///
    /// # Panics
    /// If the codec does not write values by themselves.
    pub fn on_wire_since<'a>(
        &'a self,
        have: Option<Version>,
        requested: &'a [u32],
        codec: Codec,
    ) -> impl Iterator<Item = (Part, OnWire)> + 'a {
        self.slices_since(have, requested).map(move |(_, s)| (s.part, s.written.on_wire(&s.values, codec)))
    }

    fn slices_since<'a>(
        &'a self,
        have: Option<Version>,
        requested: &'a [u32],
    ) -> impl Iterator<Item = (usize, &'a SnapshotSlice)> + 'a {
        // A version beyond this one belongs to another history: everything is sent.
        let have = have.filter(|&v| v <= self.version);
        let slices = self.slices.iter().enumerate();
        slices
            .filter(move |(_, s)| requested.is_empty() || requested.contains(&s.part.slice))
            .filter(move |(_, s)| have.is_none_or(|have| s.changed > have))
    }
}

/// What values are made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// Examples applied.
    pub examples: Examples,
    /// Pushes settled.
    pub pushes: u64,
    /// When they were made.
    pub at: Time,
}

/// One slice at one moment, with what the optimizer remembers of it.
#[derive(Clone, Debug)]
pub struct SliceState {
    /// Its values.
    pub values: SliceValues,
    /// The optimizer's vectors, and how often it has updated the slice.
    pub state: State,
    /// What workers have of it, where values go down in patches.
    pub reference: Option<SliceValues>,
}

/// A shard's slices.
#[derive(Debug)]
pub struct Store {
    optimizer: Optimizer,
    version: Version,
    slices: Vec<Stored>,
    shown: Option<Snapshot>,
    /// Spare buffers that each slice is to have before the next update.
    room: usize,
    /// Earlier versions that are kept elsewhere, at most: so many more spare buffers are not given back.
    kept_elsewhere: usize,
    hands: Option<Arc<dyn Hands>>,
    /// How workers are sent values, where that is known and they do not go down in patches.
    sent_in: Option<Codec>,
    /// Where values go down in patches.
    reference: Option<Reference>,
}

impl Store {
    /// Makes the initial values of one shard; they follow from the seed and each variable's name alone. Where checkpoints
    /// are taken every so often, the first update sets aside the memory that this needs, for the first is to be as fast.
    pub fn new(
        layout: &Layout,
        placement: &Placement,
        shard: ShardId,
        optimizer: Optimizer,
        seed: u64,
        every: Every,
    ) -> Self {
        let mut offset = 0;
        let parts = parts_of(placement, shard);
        let slices: Vec<Stored> = placement
            .of_shard(shard)
            .iter()
            .zip(&parts)
            .map(|(slice, &part)| {
                let stored = Stored {
                    part,
                    offset,
                    changed: Version(0),
                    current: Arc::new(initial_values(layout, slice, seed)),
                    written: Arc::default(),
                    earlier: Earlier::default(),
                    state: State::new(&optimizer, slice.len as usize),
                    spares: Vec::new(),
                };
                offset += slice.len as usize;
                stored
            })
            .collect();
        let room = if every == Every::Never { 0 } else { room_for_checkpoints(&optimizer) };
        let version = Version(0);
        let (shown, hands, sent_in, reference) = (None, None, None, None);
        Self { optimizer, version, slices, shown, room, kept_elsewhere: 0, hands, sent_in, reference }
    }

    /// The slices of a checkpoint, in the order of the shape; so often had something been applied. It sets memory aside
    /// for more checkpoints, as [`new`](Self::new) does.
    ///
    /// # Panics
    /// If there are not as many, or one has another length.
    pub fn restored(
        placement: &Placement,
        shard: ShardId,
        optimizer: Optimizer,
        version: Version,
        slices: Vec<SliceState>,
    ) -> Self {
        let parts = parts_of(placement, shard);
        assert_eq!(slices.len(), parts.len(), "a checkpoint has every slice of {shard}");
        let mut offset = 0;
        let stored = |(&part, slice): (&Part, SliceState)| {
            assert_eq!(slice.values.len() as u64, part.values, "slice {} of {shard}", part.slice);
            let stored = Stored {
                part,
                offset,
                changed: version,
                current: slice.values,
                written: Arc::default(),
                earlier: Earlier::default(),
                state: slice.state,
                spares: Vec::new(),
            };
            offset += stored.current.len();
            stored
        };
        let slices: Vec<Stored> = parts.iter().zip(slices).map(stored).collect();
        let room = room_for_checkpoints(&optimizer);
        let (shown, hands, sent_in, reference) = (None, None, None, None);
        Self { optimizer, version, slices, shown, room, kept_elsewhere: 0, hands, sent_in, reference }
    }

    /// Large slices are updated by these threads from now on, with the same bits. Without them the caller's does it all.
    pub fn lend(&mut self, hands: Arc<dyn Hands>) {
        self.hands = Some(hands);
    }

    /// So many earlier versions are kept by whoever has shown them, so that as many buffers may come back for use.
    pub fn expect_kept(&mut self, versions: usize) {
        self.kept_elsewhere = versions;
    }

    /// Workers are sent values in this codec from now on. While somebody asks for each version, values are written so as they
    /// are made.
    ///
    /// # Panics
    /// If it does not write values by themselves.
    pub fn send_in(&mut self, codec: Codec) {
        assert!(codec.is_for_values_alone(), "{codec} does not write values by themselves");
        self.sent_in = Some(codec);
    }

    /// Values go down in patches from now on. Workers have this reference, or what there is now.
    ///
    /// # Panics
    /// If it has not the shape of the values.
    pub fn refer(&mut self, patch: Patch, reference: Option<Vec<SliceValues>>) {
        let slices = reference.unwrap_or_else(|| {
            let copied = |s: &Stored| Arc::new(s.current.to_vec());
            self.slices.iter().map(copied).collect()
        });
        let parts: Vec<Part> = self.slices.iter().map(|s| s.part).collect();
        let is_as_long = slices.iter().map(|s| s.len() as u64).eq(parts.iter().map(|part| part.values));
        assert!(is_as_long, "a reference has every value of its shard");
        let mut reference = Reference::new(patch, parts, slices);
        if self.room > 0 {
            reference.make_room();
        }
        self.reference = Some(reference);
    }

    /// All slices with what the optimizer remembers of them, in order. Nothing is copied, and nothing that is applied
    /// later changes what has been handed out.
    pub fn slices(&self) -> Vec<SliceState> {
        let slice = |(i, s): (usize, &Stored)| SliceState {
            values: s.current.clone(),
            state: s.state.clone(),
            reference: self.reference.as_ref().map(|reference| reference.slices()[i].clone()),
        };
        self.slices.iter().enumerate().map(slice).collect()
    }

    /// How often something has been applied.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Memory of the newest values, the optimizer's state and what is kept to be sent in patches, in bytes.
    pub fn bytes(&self) -> u64 {
        let copies = 1 + self.optimizer.state_names().len() as u64;
        let reference = self.reference.as_ref().map_or(0, Reference::bytes);
        self.slices.iter().map(|s| 4 * s.current.len() as u64 * copies).sum::<u64>() + reference
    }

    /// The values now, for this step. Made once per version and shared by all who ask.
    pub fn snapshot(&mut self, step: Step, of: Made) -> Snapshot {
        let version = self.version;
        if let Some(shown) = self.shown.as_ref().filter(|s| s.version == version && s.step == step) {
            return shown.clone();
        }
        let (slices, sent) = match &self.shown {
            Some(shown) if shown.version == version => (shown.slices.clone(), shown.sent.clone()),
            _ => {
                let slice = |s: &Stored| SnapshotSlice {
                    part: s.part,
                    changed: s.changed,
                    values: s.current.clone(),
                    written: s.written.clone(),
                };
                let sent = self.reference.as_ref().map(Reference::shown);
                (self.slices.iter().map(slice).collect(), sent)
            }
        };
        let Made { examples, pushes, at: made } = of;
        let snapshot = Snapshot { version, step, examples, pushes, made, slices, sent };
        self.shown = Some(snapshot.clone());
        snapshot
    }

    /// The values as they were shown at an earlier version.
    pub(crate) fn shown_before(
        version: Version,
        step: Step,
        of: Made,
        slices: Vec<(Part, SliceValues)>,
    ) -> Snapshot {
        let slice =
            |(part, values)| SnapshotSlice { part, changed: version, values, written: Arc::default() };
        let Made { examples, pushes, at: made } = of;
        let slices = slices.into_iter().map(slice).collect();
        Snapshot { version, step, examples, pushes, made, slices, sent: None }
    }

    /// Makes one optimizer step with what these pushes combine to, in one pass over memory: of several pushes a block is
    /// combined when the optimizer is about to read it. Nothing is allocated once the buffers are there.
    ///
    /// # Panics
    /// If there is no push, or one is not as long as the shard.
    pub fn apply(&mut self, pushes: Combined<'_>, rate: f32) {
        let (optimizer, hands) = (self.optimizer, self.hands.clone());
        let mut bases = match pushes {
            Combined::Compensated(push) => Some(push.pulled.values()),
            Combined::Mean(_) | Combined::Sum(..) | Combined::Alone(_) => None,
        };
        self.next_version(|change| {
            let Change { offset: from, current, next, state, spares, place } = change;
            let len = next.len();
            let pulled = bases.as_mut().map(|values| values.next().expect("a snapshot has every slice"));
            let combine = |range: Range<usize>, current: &[f32], block: &mut [f32]| {
                let pulled = pulled.map(|values| &values[range.clone()]).unwrap_or_default();
                pushes.write(from + range.start..from + range.end, current, pulled, block);
            };
            let gradient = match pushes {
                // The mean of one is that one; there is nothing to combine.
                Combined::Mean([only]) => Gradient::Whole(&only.values[from..from + len]),
                Combined::Alone(_) => Gradient::Made { make: &combine, together: Together::Many },
                _ => Gradient::Made { make: &combine, together: Together::Few },
            };
            if state.is_shared() {
                let apart = state.vectors.iter().map(|vector| spare(spares, vector.len())).collect();
                let before = std::mem::replace(&mut state.vectors, apart);
                let update = Update { current, next, gradient, state, rate };
                run(optimizer.begin(Some(&before), update), place, hands.as_deref());
                spares.extend(before);
            } else {
                let update = Update { current, next, gradient, state, rate };
                run(optimizer.begin(None, update), place, hands.as_deref());
            }
        });
    }

    /// Writes a compensated push as [`apply`](Self::apply) applies it now, the shard's slices end to end.
    ///
    /// # Panics
    /// If the push, what it was computed on or `written` is not as long as the shard.
    pub fn write_compensated(&self, push: Compensated<'_>, written: &mut [f32]) {
        for (slice, pulled) in self.slices.iter().zip(push.pulled.values()) {
            let (from, len) = (slice.offset, slice.current.len());
            push.write(from..from + len, &slice.current, pulled, &mut written[from..from + len]);
        }
    }

    /// Mixes the newest values with those that this push leads to from `base`, in this share.
    ///
    /// # Panics
    /// If the push or the base is not as long as the shard.
    pub fn mix(&mut self, base: &Snapshot, push: &[f32], share: f32) {
        let mut bases = base.values();
        self.next_version(|Change { offset, current, next, place, .. }| {
            let base = bases.next().expect("a snapshot has every slice");
            let push = &push[offset..offset + base.len()];
            match current {
                Some(current) => mix(current, next, base, push, share),
                None => mix_in_place(next, base, push, share),
            }
            if let Some(mut place) = place {
                place.write(0, next);
            }
        });
    }

    fn next_version(&mut self, mut make: impl FnMut(Change<'_>)) {
        self.version = self.version.next();
        self.shown = None;
        let (room, spares_max) = (
            std::mem::take(&mut self.room),
            SPARES_MAX + self.optimizer.state_vectors() + self.kept_elsewhere,
        );
        for slice in &mut self.slices {
            while slice.spares.len() < room {
                // Not zeros: memory of zeros is there only once it is written to.
                slice.spares.push(Arc::new(vec![f32::NAN; slice.current.len()]));
            }
            slice.change(self.sent_in, &mut make);
            slice.spares.truncate(spares_max);
            slice.changed = self.version;
        }
        if let Some(reference) = &mut self.reference {
            reference.follow(self.slices.iter().map(|s| &s.current), spares_max);
        }
    }
}

/// Spare buffers with which updates need no new memory while one checkpoint is written: for the values after each of
/// two updates, and for each of the optimizer's vectors.
fn room_for_checkpoints(optimizer: &Optimizer) -> usize {
    2 + optimizer.state_vectors()
}

/// Computes the update, and writes the values as they are sent if there is a place for that.
fn run(pass: Pass<'_>, place: Option<Place<'_>>, hands: Option<&dyn Hands>) {
    match place {
        Some(mut place) => pass.apply_and_read(|at, values| place.write(at, values)),
        None => hands::apply(pass, hands),
    }
}

fn initial_values(layout: &Layout, slice: &Slice, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; slice.len as usize];
    layout.variables()[slice.variable.index()].fill_initial(seed, slice.start, &mut values);
    values
}
