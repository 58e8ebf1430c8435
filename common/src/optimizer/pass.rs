//! Leads a kernel over one slice or a part of it, wherever the gradient and the optimizer's state come from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{Optimizer, Update, assert_lengths};

/// Values at a time where the state is written apart, or values change in their place: few enough for the nearest caches,
/// and whole pages, since shorter copies were slower (512: twice as long for 64 Mi values).
const BLOCK: usize = 1024;
/// Values at a time where somebody reads the next ones as soon as they are there.
const READ_BLOCK: usize = 4 * BLOCK;
/// Most vectors of any optimizer's state.
const VECTORS_MAX: usize = 2;

/// Writes these values of a gradient, whose values now are those, into a block that is as long.
pub type Make<'a> = dyn Fn(Range<usize>, &[f32], &mut [f32]) + Sync + 'a;

/// Where the gradient of an update comes from.
#[derive(Clone, Copy)]
pub enum Gradient<'a> {
    /// It is there.
    Whole(&'a [f32]),
    /// It is written when it is needed: these values of the slice, into a block that is as long and still in the nearest
    /// cache when the optimizer reads it. It is given the values now of the same block. Each value must be the same however
    /// the slice is cut into blocks.
    Made {
        /// What writes it.
        make: &'a Make<'a>,
        /// So many values at a time, where nothing else asks for longer blocks: fewer where it is made of several others.
        together: Together,
    },
}

/// How many values of a gradient are made at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// 256: the mean of four gradients of 16 Mi values and a step of SGD took a quarter longer in blocks of 1024.
    Few,
    /// 1024: int8 decoded and applied to 199,210 values took 46 us in blocks of 256 and 38 in these.
    Many,
}

impl fmt::Debug for Gradient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(values) => f.debug_tuple("Whole").field(&values.len()).finish(),
            Self::Made { together, .. } => f.debug_tuple("Made").field(together).finish(),
        }
    }
}

/// An update of a slice that is counted and has yet to be computed. It can be [`cut`](Self::cut) into parts, which may be
/// computed in any order and by different threads.
#[derive(Debug)]
pub struct Pass<'a> {
    optimizer: Optimizer,
    pub(super) rate: f32,
    updates: u64,
    /// Where this part begins in the slice.
    start: usize,
    /// `None` if the values now are in `next`.
    current: Option<&'a [f32]>,
    next: &'a mut [f32],
    gradient: Gradient<'a>,
    /// As many as the optimizer has; the rest are empty.
    after: [&'a mut [f32]; VECTORS_MAX],
    /// `None` if the state before the update is in `after`.
    before: Option<[&'a [f32]; VECTORS_MAX]>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        optimizer: &Optimizer,
        before: Option<&'a [Arc<Vec<f32>>]>,
        update: Update<'a>,
    ) -> Self {
        let Update { current, next, gradient, state, rate } = update;
        let (len, vectors) = (next.len(), optimizer.state_vectors());
        assert_eq!(state.vectors.len(), vectors, "vectors of the state of {optimizer}");
        current.iter().for_each(|current| assert_lengths(len, [current.len()]));
        if let Gradient::Whole(gradient) = gradient {
            assert_lengths(len, [gradient.len()]);
        }
        state.vectors.iter().for_each(|vector| assert_lengths(len, [vector.len()]));
        let before = before.map(|before| {
            assert_eq!(before.len(), vectors, "vectors of the state before the update");
            before.iter().for_each(|vector| assert_lengths(len, [vector.len()]));
            let mut before = before.iter().map(|vector| vector.as_slice());
            std::array::from_fn(|_| before.next().unwrap_or_default())
        });
        state.updates = state.updates.checked_add(1).expect("no run has 2^64 updates");
        let updates = state.updates;
        let mut vectors = state.vectors.iter_mut().map(|vector| Arc::make_mut(vector).as_mut_slice());
        let after = std::array::from_fn(|_| vectors.next().unwrap_or_default());
        Self { optimizer: *optimizer, rate, updates, start: 0, current, next, gradient, after, before }
    }

    /// The number of this update, from 1.
    pub(super) fn updates(&self) -> u64 {
        self.updates
    }

    /// How many values it updates.
    pub fn values(&self) -> usize {
        self.next.len()
    }

    /// Its first so many values, and the others.
    ///
    /// # Panics
    /// If it has not as many.
    pub fn cut(self, at: usize) -> (Self, Self) {
        let Self { optimizer, rate, updates, start, current, next, gradient, after, before } = self;
        let (current, next) = (current.map(|current| current.split_at(at)), next.split_at_mut(at));
        let gradient = match gradient {
            Gradient::Whole(gradient) => {
                let (one, other) = gradient.split_at(at);
                (Gradient::Whole(one), Gradient::Whole(other))
            }
            made @ Gradient::Made { .. } => (made, made),
        };
        // Vectors that the optimizer does not have are empty.
        let after = after.map(|vector| vector.split_at_mut(at.min(vector.len())));
        let before = before.map(|vectors| vectors.map(|vector| vector.split_at(at.min(vector.len()))));
        let [(first, first_rest), (second, second_rest)] = after;
        let one = Self {
            optimizer,
            rate,
            updates,
            start,
            current: current.map(|(one, _)| one),
            next: next.0,
            gradient: gradient.0,
            after: [first, second],
            before: before.map(|vectors| vectors.map(|(one, _)| one)),
        };
        let other = Self {
            optimizer,
            rate,
            updates,
            start: start + at,
            current: current.map(|(_, other)| other),
            next: next.1,
            gradient: gradient.1,
            after: [first_rest, second_rest],
            before: before.map(|vectors| vectors.map(|(_, other)| other)),
        };
        (one, other)
    }

    /// Computes it, a part at a time, and calls `read` with the place of each part in the slice and its next values, which are
    /// still in the nearest cache. Parts begin at multiples of [`BLOCK`](crate::placement::BLOCK) values from its first one.
    pub fn apply_and_read(mut self, mut read: impl FnMut(usize, &[f32])) {
        while self.values() > 0 {
            let len = self.values().min(READ_BLOCK);
            self.first(len).apply();
            read(self.start, &self.next[..len]);
            self = self.cut(len).1;
        }
    }

    /// Its first so many values, of which there must be as many, while it is not needed itself.
    fn first(&mut self, len: usize) -> Pass<'_> {
        Pass {
            optimizer: self.optimizer,
            rate: self.rate,
            updates: self.updates,
            start: self.start,
            current: self.current.map(|current| &current[..len]),
            next: &mut self.next[..len],
            gradient: match self.gradient {
                Gradient::Whole(gradient) => Gradient::Whole(&gradient[..len]),
                made @ Gradient::Made { .. } => made,
            },
            // Vectors that the optimizer does not have are empty.
            after: self.after.each_mut().map(|vector| {
                let len = len.min(vector.len());
                &mut vector[..len]
            }),
            before: self.before.map(|vectors| vectors.map(|vector| &vector[..len.min(vector.len())])),
        }
    }

    /// Computes it.
    pub fn apply(self) {
        match self.optimizer {
            Optimizer::Sgd(sgd) => sgd.apply(self),
            Optimizer::Momentum(momentum) => momentum.apply(self),
            Optimizer::Nesterov(nesterov) => nesterov.apply(self),
            Optimizer::Adagrad(adagrad) => adagrad.apply(self),
            Optimizer::Rmsprop(rmsprop) => rmsprop.apply(self),
            Optimizer::Adam(adam) => adam.apply(self),
            Optimizer::Adamw(adamw) => adamw.apply(self),
            Optimizer::FedAdagrad(fedadagrad) => fedadagrad.apply(self),
            Optimizer::FedAdam(fedadam) => fedadam.apply(self),
            Optimizer::FedYogi(fedyogi) => fedyogi.apply(self),
        }
    }

    /// Calls the kernel with the values, where the next ones go, the gradient, and the state's vectors.
    ///
    /// Where the state is written apart, each block of it is copied just before the kernel changes the copy, which is then
    /// still in the nearest cache, as is a block of a gradient that is made, and the copy of a block of values that change in
    /// their place: memory is read and written once. Kernels are elementwise, so that blocks change no bits.
    pub(super) fn run<const N: usize>(self, kernel: impl Fn(&[f32], &mut [f32], &[f32], [&mut [f32]; N])) {
        let Self { start, current, next, gradient, mut after, before, .. } = self;
        let after: &mut [&mut [f32]; N] =
            (&mut after[..N]).try_into().expect("no optimizer has more vectors than VECTORS_MAX");
        if let (Gradient::Whole(gradient), None) = (gradient, before) {
            let Some(current) = current else { return in_place(next, gradient, after, kernel) };
            return kernel(current, next, gradient, after.each_mut().map(|vector| &mut **vector));
        }
        let (len, mut made, mut copied) = (next.len(), [0.0; BLOCK], [0.0; BLOCK]);
        let step = match gradient {
            Gradient::Made { together: Together::Few, .. } if before.is_none() => BLOCK / 4,
            _ => BLOCK,
        };
        for from in (0..len).step_by(step) {
            let block = from..len.min(from + step);
            for (after, before) in after.iter_mut().zip(before.iter().flatten()) {
                after[block.clone()].copy_from_slice(&before[block.clone()]);
            }
            let current = match current {
                Some(current) => &current[block.clone()],
                None => {
                    let copied = &mut copied[..block.len()];
                    copied.copy_from_slice(&next[block.clone()]);
                    &*copied
                }
            };
            let gradient = match gradient {
                Gradient::Whole(gradient) => &gradient[block.clone()],
                Gradient::Made { make, .. } => {
                    let made = &mut made[..block.len()];
                    make(start + block.start..start + block.end, current, made);
                    &*made
                }
            };
            let state = after.each_mut().map(|vector| &mut vector[block.clone()]);
            kernel(current, &mut next[block], gradient, state);
        }
    }
}

/// Calls the kernel with blocks of values that change in their place, where there is nothing else to be made or copied.
fn in_place<const N: usize>(
    values: &mut [f32],
    gradient: &[f32],
    state: &mut [&mut [f32]; N],
    kernel: impl Fn(&[f32], &mut [f32], &[f32], [&mut [f32]; N]),
) {
    let mut copied = [0.0; BLOCK];
    for (i, (values, gradient)) in values.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK)).enumerate() {
        let copied = &mut copied[..values.len()];
        copied.copy_from_slice(values);
        let block = i * BLOCK..i * BLOCK + values.len();
        kernel(copied, values, gradient, state.each_mut().map(|vector| &mut vector[block.clone()]));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::super::conformance::{bits, cases, numbers};
    use super::super::{Optimizer, State, Update};
    use super::{BLOCK, Gradient, READ_BLOCK, Together};
    use crate::rng::{Purpose, Rng};

    #[test]
    fn an_update_apart_has_the_same_bits_and_leaves_the_state_before() {
        for optimizer in cases() {
            // Less than a block, whole blocks, and a remainder.
            for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 300] {
                let mut rng = Rng::new(6, Purpose::Delivery);
                let mut current = numbers(&mut rng, len);
                let (mut in_place, mut apart) = (State::new(&optimizer, len), State::new(&optimizer, len));
                for rate in [0.1, 0.05, 0.025] {
                    let gradient = numbers(&mut rng, len);
                    let (mut expected, mut found) = (vec![f32::NAN; len], vec![f32::NAN; len]);
                    let (current_values, next, state) = (&current, &mut expected, &mut in_place);
                    let update = Update {
                        current: Some(current_values),
                        next,
                        gradient: Gradient::Whole(&gradient),
                        state,
                        rate,
                    };
                    optimizer.update(update);
                    let before = apart.clone();
                    apart.vectors =
                        before.vectors.iter().map(|v| Arc::new(vec![f32::NAN; v.len()])).collect();
                    let copy: Vec<Vec<u32>> = before.vectors.iter().map(|v| bits(v)).collect();
                    let (next, state) = (&mut found, &mut apart);
                    let update = Update {
                        current: Some(&current),
                        next,
                        gradient: Gradient::Whole(&gradient),
                        state,
                        rate,
                    };
                    optimizer.update_apart(&before.vectors, update);
                    assert_eq!(bits(&found), bits(&expected), "{optimizer}, {len} values");
                    assert_eq!(apart, in_place, "{optimizer}, {len} values");
                    assert_eq!(
                        before.vectors.iter().map(|v| bits(v)).collect::<Vec<_>>(),
                        copy,
                        "{optimizer}"
                    );
                    current = found;
                }
            }
        }
    }

    /// A slice's update, cut at these places and computed from the last part to the first.
    fn in_parts(optimizer: &Optimizer, before: Option<&[Arc<Vec<f32>>]>, update: Update<'_>, cuts: &[usize]) {
        let mut rest = optimizer.begin(before, update);
        for &at in cuts.iter().rev() {
            let (kept, last) = rest.cut(at);
            last.apply();
            rest = kept;
        }
        rest.apply();
    }

    #[test]
    fn parts_gradients_made_on_the_way_and_values_in_their_place_have_the_bits_of_one_update() {
        for optimizer in cases() {
            for cuts in [&[][..], &[0], &[64, 64, 1000], &[BLOCK - 64, BLOCK + 64, 2 * BLOCK]] {
                let len = 2 * BLOCK + 300;
                let mut rng = Rng::new(8, Purpose::Delivery);
                let current = numbers(&mut rng, len);
                let (mut whole, mut cut) = (State::new(&optimizer, len), State::new(&optimizer, len));
                for (together, is_state_apart, is_in_place) in every_way() {
                    let (gradient, rate) = (numbers(&mut rng, len), 0.1);
                    let (mut expected, mut found) = (vec![f32::NAN; len], vec![f32::NAN; len]);
                    optimizer.update(Update {
                        current: Some(&current),
                        next: &mut expected,
                        gradient: Gradient::Whole(&gradient),
                        state: &mut whole,
                        rate,
                    });
                    let made = |range: Range<usize>, now: &[f32], block: &mut [f32]| {
                        assert_eq!(bits(now), bits(&current[range.clone()]));
                        block.copy_from_slice(&gradient[range]);
                    };
                    let before = cut.clone();
                    if is_state_apart {
                        cut.vectors =
                            before.vectors.iter().map(|v| Arc::new(vec![f32::NAN; v.len()])).collect();
                    }
                    if is_in_place {
                        found.copy_from_slice(&current);
                    }
                    let update = Update {
                        current: (!is_in_place).then_some(&current),
                        next: &mut found,
                        gradient: match together {
                            Some(together) => Gradient::Made { make: &made, together },
                            None => Gradient::Whole(&gradient),
                        },
                        state: &mut cut,
                        rate,
                    };
                    in_parts(&optimizer, is_state_apart.then_some(&before.vectors), update, cuts);
                    assert_eq!(bits(&found), bits(&expected), "{optimizer} cut at {cuts:?}");
                    assert_eq!(cut, whole, "{optimizer} cut at {cuts:?}");
                }
            }
        }
    }

    /// Whether the gradient is made on the way, the state is written apart, and the values change in their place.
    fn every_way() -> impl Iterator<Item = (Option<Together>, bool, bool)> {
        let made = [None, Some(Together::Few), Some(Together::Many)];
        made.into_iter().flat_map(|made| (0..4).map(move |way| (made, way & 1 != 0, way & 2 != 0)))
    }

    #[test]
    fn values_that_are_read_as_they_come_are_those_of_the_update() {
        for optimizer in cases() {
            for len in [0, 1, READ_BLOCK, 2 * READ_BLOCK + 77] {
                let mut rng = Rng::new(9, Purpose::Delivery);
                let current = numbers(&mut rng, len);
                let (mut whole, mut read) = (State::new(&optimizer, len), State::new(&optimizer, len));
                for (together, is_state_apart, is_in_place) in every_way() {
                    let gradient = numbers(&mut rng, len);
                    let (mut expected, mut found) = (vec![f32::NAN; len], current.clone());
                    optimizer.update(Update {
                        current: Some(&current),
                        next: &mut expected,
                        gradient: Gradient::Whole(&gradient),
                        state: &mut whole,
                        rate: 0.1,
                    });
                    let made = |range: Range<usize>, _: &[f32], block: &mut [f32]| {
                        block.copy_from_slice(&gradient[range]);
                    };
                    let before = read.clone();
                    if is_state_apart {
                        read.vectors =
                            before.vectors.iter().map(|v| Arc::new(vec![f32::NAN; v.len()])).collect();
                    }
                    let update = Update {
                        current: (!is_in_place).then_some(&current),
                        next: &mut found,
                        gradient: match together {
                            Some(together) => Gradient::Made { make: &made, together },
                            None => Gradient::Whole(&gradient),
                        },
                        state: &mut read,
                        rate: 0.1,
                    };
                    let mut shown = Vec::new();
                    let pass = optimizer.begin(is_state_apart.then_some(&before.vectors), update);
                    pass.apply_and_read(|at, values| {
                        assert_eq!(at, shown.len());
                        assert!(at.is_multiple_of(crate::placement::BLOCK as usize));
                        shown.extend_from_slice(values);
                    });
                    assert_eq!(bits(&found), bits(&expected), "{optimizer}, {len} values");
                    assert_eq!(bits(&shown), bits(&expected), "{optimizer}, {len} values");
                    assert_eq!(read, whole, "{optimizer}, {len} values");
                }
            }
        }
    }

    #[test]
    fn an_update_leaves_a_clone_of_the_state_as_it_was() {
        for optimizer in Optimizer::all() {
            let (current, mut next) = ([1.0; 3], [f32::NAN; 3]);
            let mut state = State::new(&optimizer, 3);
            let (clone, gradient) = (state.clone(), [2.0; 3]);
            assert_eq!(state.is_shared(), optimizer.state_vectors() > 0);
            optimizer.update(Update {
                current: Some(&current),
                next: &mut next,
                gradient: Gradient::Whole(&gradient),
                state: &mut state,
                rate: 0.1,
            });
            assert_eq!(clone, State::new(&optimizer, 3), "{optimizer}");
            assert!(!state.is_shared());
        }
    }
}
