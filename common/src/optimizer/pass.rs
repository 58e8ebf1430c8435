//! Leads a kernel over one slice, whether the optimizer's state changes in place or is written apart.

use std::sync::Arc;

use super::{Update, assert_lengths};

/// Values at a time where the state is written apart: few enough for the nearest caches, and whole pages, since shorter
/// copies were slower (512: twice as long for 64 Mi values).
const BLOCK: usize = 1024;

/// One update, counted, with where the state's vectors before it are.
pub(super) struct Pass<'a> {
    pub(super) rate: f32,
    update: Update<'a>,
    /// `None` if they are in the state itself.
    before: Option<&'a [Arc<Vec<f32>>]>,
}

impl<'a> Pass<'a> {
    pub(super) fn in_place(update: Update<'a>) -> Self {
        update.state.updates = update.state.updates.checked_add(1).expect("no run has 2^64 updates");
        Self { rate: update.rate, update, before: None }
    }

    pub(super) fn apart(before: &'a [Arc<Vec<f32>>], update: Update<'a>) -> Self {
        Self { before: Some(before), ..Self::in_place(update) }
    }

    /// The number of this update, from 1.
    pub(super) fn updates(&self) -> u64 {
        self.update.state.updates
    }

    /// Calls the kernel with the values, where the next ones go, the gradient, and the state's vectors.
    ///
    /// Apart, each block of the state is copied just before the kernel changes the copy, which is then still in the
    /// nearest cache: memory is read and written once, as if the kernel read one vector and wrote another. Kernels are
    /// elementwise, so that blocks change no bits.
    pub(super) fn run<const N: usize>(self, kernel: impl Fn(&[f32], &mut [f32], &[f32], [&mut [f32]; N])) {
        let Update { current, next, gradient, state, rate: _ } = self.update;
        let Some(before) = self.before else { return kernel(current, next, gradient, state.parts()) };
        let mut after: [&mut [f32]; N] = state.parts();
        let len = current.len();
        assert_eq!(before.len(), N, "vectors of the state before the update");
        assert_lengths(len, [next.len(), gradient.len()]);
        before.iter().for_each(|vector| assert_lengths(len, [vector.len()]));
        after.iter().for_each(|vector| assert_lengths(len, [vector.len()]));
        for from in (0..len).step_by(BLOCK) {
            let block = from..len.min(from + BLOCK);
            for (after, before) in after.iter_mut().zip(before) {
                after[block.clone()].copy_from_slice(&before[block.clone()]);
            }
            let state = after.each_mut().map(|vector| &mut vector[block.clone()]);
            kernel(&current[block.clone()], &mut next[block.clone()], &gradient[block.clone()], state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::conformance::{bits, cases, numbers};
    use super::super::{Optimizer, State, Update};
    use super::BLOCK;
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
                    let update = Update { current: current_values, next, gradient: &gradient, state, rate };
                    optimizer.update(update);
                    let before = apart.clone();
                    apart.vectors =
                        before.vectors.iter().map(|v| Arc::new(vec![f32::NAN; v.len()])).collect();
                    let copy: Vec<Vec<u32>> = before.vectors.iter().map(|v| bits(v)).collect();
                    let (next, state) = (&mut found, &mut apart);
                    let update = Update { current: &current, next, gradient: &gradient, state, rate };
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

    #[test]
    fn an_update_leaves_a_clone_of_the_state_as_it_was() {
        for optimizer in Optimizer::all() {
            let (current, mut next) = ([1.0; 3], [f32::NAN; 3]);
            let mut state = State::new(&optimizer, 3);
            let (clone, gradient) = (state.clone(), [2.0; 3]);
            assert_eq!(state.is_shared(), optimizer.state_vectors() > 0);
            optimizer.update(Update {
                current: &current,
                next: &mut next,
                gradient: &gradient,
                state: &mut state,
                rate: 0.1,
            });
            assert_eq!(clone, State::new(&optimizer, 3), "{optimizer}");
            assert!(!state.is_shared());
        }
    }
}
