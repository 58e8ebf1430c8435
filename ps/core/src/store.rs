//! Holds a shard's slices: their immutable values, version by version, with the optimizer's state.
//!
//! An update reads the newest values and writes the next ones into another buffer, so a version that has been shown
//! never changes, and whoever reads it holds a reference, not a lock. A buffer that nobody reads any more is used
//! again. The optimizer's state changes in place, unless a checkpoint refers to it: then the next one is written apart.

mod combined;
mod hands;
mod reference;
mod written;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::Patch;
use windlass_common::ids::{Examples, ShardId, Step, Version};
use windlass_common::layout::Layout;
use windlass_common::mix::mix;
use windlass_common::optimizer::{Gradient, Optimizer, State, Update};
use windlass_common::placement::{Placement, Slice};
use windlass_common::plan::{BATCH_MAX, Codecs, Every, WORK_MAX};
use windlass_common::wire::{Codec, Part, Pull, Push, Reject};

pub use combined::{Combined, Compensated};
pub use hands::Hands;
pub use reference::{PATCHES_MAX, Sent};

use crate::Time;
use reference::{Reference, Shown};
use written::{Earlier, Written};

/// Spare buffers kept per slice, beside one for each of the optimizer's vectors; beyond that, memory is given back.
const SPARES_MAX: usize = 8;

/// The values of one slice; they never change.
pub type SliceValues = Arc<Vec<f32>>;
/// The same as they are sent.
pub type Encoded = Arc<Vec<u8>>;

/// Which slices a shard has, which is all one needs in order to check a request.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The shard.
    pub shard: ShardId,
    /// Its slices in the order of their numbers, each with its number within the run's placement and its length.
    pub parts: Vec<Part>,
    /// How values are written in pushes to it and in its answers to workers.
    pub codecs: Codecs,
}

impl Shape {
    /// The shape of one shard of a placement.
    pub fn new(placement: &Placement, shard: ShardId, codecs: Codecs) -> Self {
        Self { shard, parts: parts_of(placement, shard), codecs }
    }

    /// Values of all slices together.
    pub fn values(&self) -> u64 {
        self.parts.iter().map(|p| p.values).sum()
    }

    /// Whether a push announces every slice of this shard once, in any order and with its length, and a payload to match.
    ///
    /// # Errors
    /// Names the first slice that is not right.
    pub fn check_push(&self, push: &Push) -> Result<(), Reject> {
        if push.parts != self.parts {
            self.places(&push.parts)?;
        }
        check_codec(self.codecs.push, push.codec)?;
        let (least, most) = push.codec.payload_bytes(self.parts.iter().map(|p| p.values));
        let found = push.payload_bytes;
        if !(least..=most).contains(&found) {
            return Err(match least == most {
                true => Reject::WrongPayload { expected: least, found },
                false => Reject::PayloadRange { least, most, found },
            });
        }
        if push.examples == 0 {
            return Err(Reject::NoExamples);
        }
        if push.examples > BATCH_MAX {
            return Err(Reject::TooManyExamples { found: push.examples, most: BATCH_MAX });
        }
        if push.work == 0 || push.work > WORK_MAX {
            return Err(Reject::WrongWork { found: push.work, most: WORK_MAX });
        }
        Ok(())
    }

    /// Where these parts lie among the values of this shard, its slices end to end, if they are each of its slices once.
    ///
    /// # Errors
    /// Names the first slice that is not right.
    pub fn places(&self, parts: &[Part]) -> Result<Vec<Range<usize>>, Reject> {
        let mut end = 0;
        let own = self.parts.iter().map(|part| {
            end += part.values as usize;
            Some(end - part.values as usize..end)
        });
        let mut own: Vec<Option<Range<usize>>> = own.collect();
        let mut places = Vec::with_capacity(own.len());
        // What is longer than the shard is not gone through to its end.
        for part in parts.iter().take(own.len()) {
            let index = self.find(part.slice, Some(part.values))?;
            places.extend(own[index].take());
        }
        let expected = own.len() as u64;
        let found = if parts.len() == own.len() { places.len() } else { parts.len() } as u64;
        match found == expected {
            true => Ok(places),
            false => Err(Reject::Incomplete { shard: self.shard, expected, found }),
        }
    }

    /// Whether a worker asks for values as they are written in this run.
    ///
    /// # Errors
    /// If it asks for other ones.
    pub fn check_pull(&self, pull: &Pull) -> Result<(), Reject> {
        check_codec(self.codecs.pull, pull.codec)
    }

    /// Whether this shard has the slice, with this length if one is given.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_slice(&self, slice: u32, values: Option<u64>) -> Result<(), Reject> {
        self.find(slice, values).map(|_| ())
    }

    fn find(&self, slice: u32, values: Option<u64>) -> Result<usize, Reject> {
        let found = self.parts.binary_search_by_key(&slice, |part| part.slice);
        let index = found.map_err(|_| Reject::UnknownSlice { shard: self.shard, slice })?;
        let expected = self.parts[index].values;
        match values {
            Some(found) if found != expected => Err(Reject::WrongLength { slice, expected, found }),
            _ => Ok(index),
        }
    }
}

fn parts_of(placement: &Placement, shard: ShardId) -> Vec<Part> {
    let all = (0_u32..).zip(placement.slices());
    all.filter(|(_, s)| s.shard == shard).map(|(slice, s)| Part { slice, values: s.len }).collect()
}

fn check_codec(expected: Codec, found: Codec) -> Result<(), Reject> {
    match expected == found {
        true => Ok(()),
        false => Err(Reject::WrongCodec { expected: expected.to_string(), found: found.to_string() }),
    }
}

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
    encoded: Arc<Written>,
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

    /// The same, as `encode` appends the values of each to an empty buffer, which it does once for all who ask.
    pub fn encoded_since<'a>(
        &'a self,
        have: Option<Version>,
        requested: &'a [u32],
        encode: impl Fn(&[f32], &mut Vec<u8>) + 'a,
    ) -> impl Iterator<Item = (Part, Encoded)> + 'a {
        self.slices_since(have, requested).map(move |(_, s)| {
            let encoded = s.encoded.get(|bytes| encode(&s.values, bytes));
            (s.part, Arc::clone(encoded))
        })
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

#[derive(Debug)]
struct Stored {
    part: Part,
    /// Where this slice lies in the shard's part of a gradient.
    offset: usize,
    changed: Version,
    current: SliceValues,
    /// Those as workers are sent them, once somebody has asked.
    encoded: Arc<Written>,
    /// Memory for those of the next versions.
    earlier: Earlier,
    state: State,
    /// Buffers as long as the slice, for values and for vectors of the state, whichever needs one.
    spares: Vec<SliceValues>,
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
                    encoded: Arc::default(),
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
        let (shown, hands, reference) = (None, None, None);
        Self { optimizer, version, slices, shown, room, kept_elsewhere: 0, hands, reference }
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
                encoded: Arc::default(),
                earlier: Earlier::default(),
                state: slice.state,
                spares: Vec::new(),
            };
            offset += stored.current.len();
            stored
        };
        let slices: Vec<Stored> = parts.iter().zip(slices).map(stored).collect();
        let room = room_for_checkpoints(&optimizer);
        let (shown, hands, reference) = (None, None, None);
        Self { optimizer, version, slices, shown, room, kept_elsewhere: 0, hands, reference }
    }

    /// Large slices are updated by these threads from now on, with the same bits. Without them the caller's does it all.
    pub fn lend(&mut self, hands: Arc<dyn Hands>) {
        self.hands = Some(hands);
    }

    /// So many earlier versions are kept by whoever has shown them, so that as many buffers may come back for use.
    pub fn expect_kept(&mut self, versions: usize) {
        self.kept_elsewhere = versions;
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
                    encoded: s.encoded.clone(),
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
            |(part, values)| SnapshotSlice { part, changed: version, values, encoded: Arc::default() };
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
            Combined::Mean(_) | Combined::Sum(..) => None,
        };
        self.next_version(|slice, next| {
            let Stored { offset, current, state, spares, .. } = slice;
            let (from, len, current) = (*offset, current.len(), current.as_slice());
            let pulled = bases.as_mut().map(|values| values.next().expect("a snapshot has every slice"));
            let pulled = pulled.map(|values| values.as_slice()).unwrap_or_default();
            let combine = |range: Range<usize>, block: &mut [f32]| {
                pushes.write(from, current, pulled, range, block);
            };
            let gradient = match pushes {
                // The mean of one is that one; there is nothing to combine.
                Combined::Mean([only]) => Gradient::Whole(&only.values[from..from + len]),
                _ => Gradient::Made(&combine),
            };
            if state.is_shared() {
                let apart = state.vectors.iter().map(|vector| spare(spares, vector.len())).collect();
                let before = std::mem::replace(&mut state.vectors, apart);
                let update = Update { current, next, gradient, state, rate };
                hands::apply(optimizer.begin(Some(&before), update), hands.as_deref());
                spares.extend(before);
            } else {
                let update = Update { current, next, gradient, state, rate };
                hands::apply(optimizer.begin(None, update), hands.as_deref());
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
            push.write(from, &slice.current, pulled, 0..len, &mut written[from..from + len]);
        }
    }

    /// Mixes the newest values with those that this push leads to from `base`, in this share.
    ///
    /// # Panics
    /// If the push or the base is not as long as the shard.
    pub fn mix(&mut self, base: &Snapshot, push: &[f32], share: f32) {
        let mut bases = base.values();
        self.next_version(|slice, next| {
            let base = bases.next().expect("a snapshot has every slice");
            mix(&slice.current, next, base, &push[slice.offset..slice.offset + base.len()], share);
        });
    }

    fn next_version(&mut self, mut make: impl FnMut(&mut Stored, &mut [f32])) {
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
            let mut next = spare(&mut slice.spares, slice.current.len());
            make(slice, Arc::get_mut(&mut next).expect("a spare buffer has no readers"));
            let before = std::mem::replace(&mut slice.current, next);
            slice.spares.push(before);
            slice.spares.truncate(spares_max);
            slice.changed = self.version;
            slice.earlier.renew(&mut slice.encoded);
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

/// A buffer that nobody reads any more, or a new one. What was read last is the most likely to be in a cache.
pub(crate) fn spare(spares: &mut Vec<SliceValues>, len: usize) -> SliceValues {
    match spares.iter_mut().rposition(|s| Arc::get_mut(s).is_some()) {
        Some(free) => spares.swap_remove(free),
        None => Arc::new(vec![0.0; len]),
    }
}

fn initial_values(layout: &Layout, slice: &Slice, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; slice.len as usize];
    layout.variables()[slice.variable.index()].fill_initial(seed, slice.start, &mut values);
    values
}
