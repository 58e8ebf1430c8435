//! Encodes what a worker pushes, and keeps of each push what its codec left out until the client's next one.
//!
//! Error feedback (Karimireddy et al. 2019, algorithm 1): to the gradient g what was left out so far, e, is added; the sum
//! p = g + e is sent as C(p), and p - C(p) is left out for the next time. Both are in the unit of the gradient, so that
//! what is left out takes the rate of the step in which it is sent. Of a push that does not count all of p is left out.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::{Chosen, Codec, Scratch};
use windlass_common::ids::{ClientId, ShardId, Step, VariableId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::rng::Purpose;

use crate::event::Feedback;

/// The encoded slices of one shard. When nobody reads them any more, their memory is used again.
pub type Payload = Arc<Vec<u8>>;

/// Payloads of one shard that may be on their way at once; beyond that, memory is given back.
const LENT_MAX: usize = 4;

/// One slice of a shard.
#[derive(Clone, Debug)]
struct Piece {
    variable: usize,
    /// Where it begins within the variable.
    start: u64,
    /// Where it lies in the flat buffer of the model.
    flat: Range<usize>,
}

/// Encodes the gradients of one worker.
#[derive(Clone, Debug)]
pub struct Encoder {
    codec: Codec,
    seed: u64,
    /// Where each variable lies in the flat buffer.
    variables: Vec<Range<usize>>,
    /// For each shard its slices, in the order of a payload.
    shards: Vec<Vec<Piece>>,
    chosen: Vec<Chosen>,
    scratch: Scratch,
    lent: Vec<Payload>,
    /// What the pushes of each client have left out so far.
    residuals: BTreeMap<ClientId, Vec<f32>>,
    /// Whose push is on its way; what it leaves out is in `left`.
    pending: Option<ClientId>,
    left: Vec<f32>,
}

impl Encoder {
    /// The encoder of a worker that has pushed nothing yet.
    pub fn new(codec: Codec, seed: u64, layout: &Layout, placement: &Placement) -> Self {
        let variables = (0..).map(VariableId).take(layout.variables().len());
        let variables: Vec<_> = variables.map(|variable| layout.range(variable)).collect();
        let piece = |slice: &windlass_common::placement::Slice| {
            let variable = slice.variable.index();
            let from = variables[variable].start + slice.start as usize;
            Piece { variable, start: slice.start, flat: from..from + slice.len as usize }
        };
        let shards = (0..placement.shards()).map(ShardId);
        let shards = shards.map(|id| placement.of_shard(id).iter().map(piece).collect()).collect();
        let left = if codec.is_biased() { vec![0.0; layout.total() as usize] } else { Vec::new() };
        Self {
            codec,
            seed,
            variables,
            shards,
            chosen: Vec::new(),
            scratch: Scratch::default(),
            lent: Vec::new(),
            residuals: BTreeMap::new(),
            pending: None,
            left,
        }
    }

    /// Encodes a gradient of the whole model, or a client's pseudo-gradient, into a payload for each shard. It has what
    /// was left out before added to it, and must be kept as it then is until the push is taken. `None` if there is nothing to
    /// encode: the payload is the values.
    ///
    /// # Panics
    /// If the gradient is not as long as the model.
    pub fn encode(&mut self, gradient: &mut [f32], client: ClientId, step: Step) -> Option<Vec<Payload>> {
        if self.codec == Codec::F32 {
            return None;
        }
        self.begin(client);
        self.add_residual(gradient);
        self.prepare(Some(gradient), client, step);
        Some((0..self.shards.len()).map(|shard| self.payload(shard, gradient)).collect())
    }

    /// Begins a push that is encoded slice by slice, in any order, as its values become known: with
    /// [`encode_slice`](Self::encode_slice), and [`whole`](Self::whole) when all of them are.
    ///
    /// # Panics
    /// If this codec must know a whole variable in order to encode a slice ([`Codec::is_elementwise`]).
    pub fn begin_slices(&mut self, client: ClientId, step: Step) {
        assert!(self.codec.is_elementwise(), "a slice can be encoded by itself");
        self.begin(client);
        self.prepare(None, client, step);
    }

    /// Appends one slice of a shard, the `index`-th of its payload, to `out`. Its values have what was left out before added
    /// to them.
    ///
    /// # Panics
    /// If the values are not as many as the slice has.
    pub fn encode_slice(&mut self, shard: usize, index: usize, values: &mut [f32], out: &mut Vec<u8>) {
        let Piece { variable, start, flat } = &self.shards[shard][index];
        assert_eq!(values.len(), flat.len(), "the values of a slice");
        let residual = self.pending.and_then(|client| self.residuals.get(&client));
        if let Some(residual) = residual {
            values.iter_mut().zip(&residual[flat.clone()]).for_each(|(g, e)| *g += e);
        }
        let left = if self.codec.is_biased() { Some(&mut self.left[flat.clone()]) } else { None };
        self.chosen[*variable].append(self.codec, (*start, values), left, out);
    }

    /// Adds to a gradient that was encoded slice by slice what was left out before, as to the slices. It must be kept as it
    /// then is until the push is taken.
    pub fn whole(&self, gradient: &mut [f32]) {
        self.add_residual(gradient);
    }

    fn begin(&mut self, client: ClientId) {
        if self.codec.is_biased() {
            self.pending = Some(client);
        }
    }

    fn add_residual(&self, gradient: &mut [f32]) {
        let Some(client) = self.pending else { return };
        assert_eq!(gradient.len(), self.left.len(), "a gradient has a value for each of the model");
        if let Some(residual) = self.residuals.get(&client) {
            gradient.iter_mut().zip(residual).for_each(|(g, e)| *g += e);
        }
    }

    /// Chooses what has to be known of each variable; without a gradient only what does not depend on it.
    fn prepare(&mut self, gradient: Option<&[f32]>, client: ClientId, step: Step) {
        self.chosen.clear();
        for (variable, range) in (0_u32..).zip(&self.variables) {
            let purpose = Purpose::PushRounding { source: client.0, variable, step: step.0 };
            let values = gradient.map_or(&[][..], |gradient| &gradient[range.clone()]);
            self.chosen.push(self.codec.prepare(values, self.seed, purpose, &mut self.scratch));
        }
    }

    fn payload(&mut self, shard: usize, gradient: &[f32]) -> Payload {
        let free = self.lent.iter_mut().position(|bytes| Arc::get_mut(bytes).is_some());
        let mut lent = free.map(|i| self.lent.swap_remove(i)).unwrap_or_default();
        let bytes = Arc::get_mut(&mut lent).expect("nobody reads it");
        bytes.clear();
        for Piece { variable, start, flat } in &self.shards[shard] {
            let left = if self.codec.is_biased() { Some(&mut self.left[flat.clone()]) } else { None };
            let slice = (*start, &gradient[flat.clone()]);
            self.chosen[*variable].append(self.codec, slice, left, bytes);
        }
        if self.lent.len() < LENT_MAX * self.shards.len() {
            self.lent.push(Arc::clone(&lent));
        }
        lent
    }

    /// Takes in what has become of the push that was encoded last; `gradient` is what it was encoded from.
    pub fn settle(&mut self, feedback: Feedback, gradient: &[f32]) {
        match feedback {
            Feedback::Unused { shard } if self.pending.is_some() => {
                for Piece { flat, .. } in &self.shards[shard] {
                    self.left[flat.clone()].copy_from_slice(&gradient[flat.clone()]);
                }
            }
            Feedback::Unused { .. } => {}
            Feedback::Taken => {
                if let Some(client) = self.pending.take() {
                    let len = self.left.len();
                    let residual = self.residuals.entry(client).or_insert_with(|| vec![0.0; len]);
                    std::mem::swap(residual, &mut self.left);
                }
            }
            Feedback::Undone => self.pending = None,
            Feedback::Forget => {
                self.pending = None;
                self.residuals.clear();
            }
        }
    }
}
