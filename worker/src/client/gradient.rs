//! Lends buffers for gradients, whose bytes go to the wire without being copied.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use windlass_common::floats::Floats;

/// A gradient of the whole model, or the buffer for one: the variables end to end, as the layout says.
#[derive(Debug)]
pub struct Gradient(Arc<Floats>);

impl Gradient {
    /// A new buffer for this many values, all zero.
    pub(crate) fn new(values: usize) -> Self {
        Self(Arc::new(Floats::zeros(values)))
    }
}

impl Deref for Gradient {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Gradient {
    fn deref_mut(&mut self) -> &mut [f32] {
        Arc::get_mut(&mut self.0).expect("a gradient that has not been pushed has one owner")
    }
}

/// The buffers of one client. Two are in turn: one is computed into while the other may still be on its way.
#[derive(Debug)]
pub(crate) struct Gradients {
    len: usize,
    lent: Vec<Arc<Floats>>,
}

/// Buffers that may be on their way at once; beyond that, memory is given back.
const LENT_MAX: usize = 4;

impl Gradients {
    pub(crate) fn new(len: usize) -> Self {
        Self { len, lent: Vec::new() }
    }

    /// A buffer that nobody reads any more, or a new one.
    pub(crate) fn take(&mut self) -> Gradient {
        let free = self.lent.iter_mut().rposition(|b| Arc::get_mut(b).is_some());
        free.map_or_else(|| Gradient::new(self.len), |i| Gradient(self.lent.swap_remove(i)))
    }

    /// Notes that the buffer goes to the wire, so that it is used again once it has come back.
    pub(crate) fn lend(&mut self, gradient: Gradient) -> Arc<Floats> {
        if self.lent.len() < LENT_MAX {
            self.lent.push(Arc::clone(&gradient.0));
        }
        gradient.0
    }
}
