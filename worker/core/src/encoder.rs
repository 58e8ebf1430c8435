//! Encodes what a worker pushes, and keeps of each push what its codec left out until the client's next one.
//!
//! Error feedback (Karimireddy et al. 2019, algorithm 1): to the gradient g what was left out so far, e, is added; the sum
//! p = g + e is sent as C(p), and p - C(p) is left out for the next time. Both are in the unit of the gradient, so that
//! what is left out takes the rate of the step in which it is sent. Of a push that does not count all of p is left out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::{Chosen, Codec, Scratch};
use windlass_common::floats::{Floats, add};
use windlass_common::ids::{ClientId, ShardId, Step, VariableId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::rng::Purpose;

use crate::event::{AsOf, Feedback, Until};

/// The encoded slices of one shard. When nobody reads them any more, their memory is used again.
pub type Payload = Arc<Vec<u8>>;

/// Payloads of one shard that may be on their way at once; beyond that, memory is given back.
const LENT_MAX: usize = 4;

/// Values that what was left out before is added to before they are encoded: few enough for the nearest cache, and whole blocks.
const PIECE: usize = 2048;

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
    /// Of each shard.
    lent: Vec<Vec<Payload>>,
    /// What the pushes of each client have left out so far.
    residuals: BTreeMap<ClientId, Residual>,
    /// The same before the pushes for a round that may not be over, of clients that have pushed for it.
    before: BTreeMap<ClientId, (Step, Option<Residual>)>,
    keeps_before: bool,
    /// The clients whose residuals are as shards have told them, and which have. Of other shards' slices nothing is known yet.
    recalled: BTreeMap<ClientId, BTreeSet<usize>>,
    /// Of what each shard has been given what it is.
    given: Vec<BTreeMap<ClientId, u64>>,
    /// Residuals that there have been.
    numbered: u64,
    /// Whose push is on its way, and for which step; what it leaves out is in `left`.
    pending: Option<(ClientId, Step)>,
    left: Floats,
    /// A buffer that is not in use.
    spare: Option<Floats>,
}

/// What is left out of the pushes of one client.
#[derive(Clone, Debug)]
struct Residual {
    /// Which of all that there have been.
    number: u64,
    values: Floats,
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
        let left = Floats::zeros(if codec.is_biased() { layout.total() as usize } else { 0 });
        let given = vec![BTreeMap::new(); placement.shards() as usize];
        let lent = vec![Vec::new(); placement.shards() as usize];
        Self {
            codec,
            seed,
            variables,
            shards,
            chosen: Vec::new(),
            scratch: Scratch::default(),
            lent,
            residuals: BTreeMap::new(),
            before: BTreeMap::new(),
            keeps_before: false,
            recalled: BTreeMap::new(),
            given,
            numbered: 0,
            pending: None,
            left,
            spare: None,
        }
    }

    /// The same encoder, of pushes that are held until a round is over: until then it remembers what had been left out before
    /// them, and a push that is made again for the same round is encoded as if the first had never been.
    #[must_use]
    pub fn in_rounds(self) -> Self {
        Self { keeps_before: self.codec.is_biased(), ..self }
    }

    /// The encoder for what workers push in a run.
    pub fn of(plan: &Plan, layout: &Layout, placement: &Placement) -> Self {
        let encoder = Self::new(plan.codecs.push, plan.seed, layout, placement);
        if Until::of(plan) == Until::HeldInRound { encoder.in_rounds() } else { encoder }
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
        let values = self.variables.last().map_or(0, |variable| variable.end);
        assert_eq!(gradient.len(), values, "a gradient has a value for each of the model");
        self.begin(client, step);
        let shards = 0..self.shards.len();
        if self.codec.pieces(0).is_some() {
            self.prepare(None, client, step);
            return Some(shards.map(|shard| self.payload_by_pieces(shard, gradient)).collect());
        }
        self.add_residual(gradient);
        self.prepare(Some(gradient), client, step);
        Some(shards.map(|shard| self.payload(shard, gradient)).collect())
    }

    /// Begins a push that is encoded slice by slice, in any order, as its values become known: with
    /// [`encode_slice`](Self::encode_slice), and [`whole`](Self::whole) when all of them are.
    ///
    /// # Panics
    /// If this codec must know a whole variable in order to encode a slice ([`Codec::is_elementwise`]).
    pub fn begin_slices(&mut self, client: ClientId, step: Step) {
        assert!(self.codec.is_elementwise(), "a slice can be encoded by itself");
        self.begin(client, step);
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
        let residual = self.pending.and_then(|(client, _)| self.residuals.get(&client));
        if let Some(residual) = residual {
            add(values, &residual.values[flat.clone()]);
        }
        let left = if self.codec.is_biased() { Some(&mut self.left[flat.clone()]) } else { None };
        self.chosen[*variable].append(self.codec, (*start, values), left, out);
    }

    /// Adds to a gradient that was encoded slice by slice what was left out before, as to the slices. It must be kept as it
    /// then is until the push is taken.
    pub fn whole(&self, gradient: &mut [f32]) {
        self.add_residual(gradient);
    }

    fn begin(&mut self, client: ClientId, step: Step) {
        if !self.codec.is_biased() {
            return;
        }
        self.pending = Some((client, step));
        self.recalled.remove(&client);
        // A later step is known only when the rounds before it are over.
        for (_, (_, residual)) in self.before.extract_if(.., |_, (of, _)| *of < step) {
            self.spare = residual.map(|residual| residual.values).or(self.spare.take());
        }
        if let Some((_, before)) = self.before.remove(&client) {
            match before {
                Some(residual) => drop(self.residuals.insert(client, residual)),
                None => drop(self.residuals.remove(&client)),
            }
        }
    }

    fn add_residual(&self, gradient: &mut [f32]) {
        let Some((client, _)) = self.pending else { return };
        if let Some(residual) = self.residuals.get(&client) {
            add(gradient, &residual.values);
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

    /// The payload of a gradient to which what was left out before is added here, piece by piece, so that memory is gone through once.
    fn payload_by_pieces(&mut self, shard: usize, gradient: &mut [f32]) -> Payload {
        let mut lent = self.memory(shard);
        let bytes = Arc::get_mut(&mut lent).expect("nobody reads it");
        let (needed, _) =
            self.codec.payload_bytes(self.shards[shard].iter().map(|piece| piece.flat.len() as u64));
        bytes.resize(usize::try_from(needed).expect("encoded values are in memory"), 0);
        let mut rest = bytes.as_mut_slice();
        let residual = self.pending.and_then(|(client, _)| self.residuals.get(&client));
        for Piece { variable, start, flat } in &self.shards[shard] {
            let len = self.codec.fixed_bytes(flat.len() as u64).expect("pieces have a known length");
            let (slice, after) = rest.split_at_mut(usize::try_from(len).expect("it is part of a payload"));
            for at in (0..flat.len()).step_by(PIECE) {
                let range = flat.start + at..flat.end.min(flat.start + at + PIECE);
                let values = &mut gradient[range.clone()];
                if let Some(residual) = residual {
                    add(values, &residual.values[range.clone()]);
                }
                let left = if self.codec.is_biased() { Some(&mut self.left[range]) } else { None };
                self.chosen[*variable].encode_piece((*start, flat.len()), at, values, left, slice);
            }
            rest = after;
        }
        self.lend(shard, &lent);
        lent
    }

    /// Memory for a payload, of one that nobody reads any more if there is such.
    fn memory(&mut self, shard: usize) -> Payload {
        let lent = &mut self.lent[shard];
        let free = lent.iter_mut().rposition(|bytes| Arc::get_mut(bytes).is_some());
        free.map(|i| lent.swap_remove(i)).unwrap_or_default()
    }

    /// Keeps it for use when nobody reads it any more.
    fn lend(&mut self, shard: usize, payload: &Payload) {
        let lent = &mut self.lent[shard];
        if lent.len() < LENT_MAX {
            lent.push(Arc::clone(payload));
        }
    }

    fn payload(&mut self, shard: usize, gradient: &[f32]) -> Payload {
        let mut lent = self.memory(shard);
        let bytes = Arc::get_mut(&mut lent).expect("nobody reads it");
        bytes.clear();
        for Piece { variable, start, flat } in &self.shards[shard] {
            let left = if self.codec.is_biased() { Some(&mut self.left[flat.clone()]) } else { None };
            let slice = (*start, &gradient[flat.clone()]);
            self.chosen[*variable].append(self.codec, slice, left, bytes);
        }
        self.lend(shard, &lent);
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
                if let Some((client, step)) = self.pending.take() {
                    self.swap(client, step);
                }
            }
            Feedback::Undone => self.pending = None,
            Feedback::Forget => {
                self.pending = None;
                self.residuals.clear();
                self.before.clear();
                self.recalled.clear();
            }
        }
    }

    /// What a client's push has left out takes the place of what had been left out before it.
    fn swap(&mut self, client: ClientId, step: Step) {
        self.numbered += 1;
        let len = self.left.len();
        let left = Residual { number: self.numbered, values: std::mem::take(&mut self.left) };
        let before = self.residuals.insert(client, left);
        if self.keeps_before {
            self.before.insert(client, (step, before));
        } else if let Some(before) = before {
            // Two buffers in turn, so that little memory is touched.
            self.spare = Some(before.values);
        }
        self.left = self.spare.take().unwrap_or_else(|| Floats::zeros(len));
    }

    /// A shard tells what has been left out of a client's pushes: its slices end to end. It says nothing new of a client whose
    /// residual is known here.
    ///
    /// # Errors
    /// If they are not as many values as the shard has, which it says.
    pub fn recall(&mut self, shard: usize, client: ClientId, values: &[f32]) -> Result<(), usize> {
        let expected = self.shards[shard].iter().map(|piece| piece.flat.len()).sum();
        if values.len() != expected || self.left.is_empty() {
            return Err(expected);
        }
        let is_known = self.residuals.contains_key(&client) && !self.recalled.contains_key(&client);
        if is_known || self.pending.is_some_and(|(pending, _)| pending == client) {
            return Ok(());
        }
        let len = self.left.len();
        self.numbered += 1;
        let number = self.numbered;
        let residual =
            self.residuals.entry(client).or_insert_with(|| Residual { number, values: Floats::zeros(len) });
        let mut rest = values;
        for Piece { flat, .. } in &self.shards[shard] {
            let (now, later) = rest.split_at(flat.len());
            residual.values[flat.clone()].copy_from_slice(now);
            rest = later;
        }
        self.recalled.entry(client).or_default().insert(shard);
        self.given[shard].insert(client, residual.number);
        Ok(())
    }

    /// What a shard is given for a checkpoint, by client: its slices end to end. With `all` it is given everything, otherwise
    /// what it has not been given as it is; in either case nothing of what it may be about to tell itself.
    pub fn give(&mut self, shard: usize, of: AsOf, all: bool) -> Vec<(ClientId, Vec<f32>)> {
        if all {
            self.given[shard].clear();
        }
        let mut gives = Vec::new();
        for (&client, residual) in &self.residuals {
            if self.recalled.get(&client).is_some_and(|told| !told.contains(&shard)) {
                continue;
            }
            let as_of_then = match (of, self.before.get(&client)) {
                (AsOf::Before(step), Some((pushed, before))) if *pushed >= step => before.as_ref(),
                _ => Some(residual),
            };
            let Some(Residual { number, values }) = as_of_then else { continue };
            if self.given[shard].insert(client, *number) == Some(*number) {
                continue;
            }
            let pieces = self.shards[shard].iter().flat_map(|piece| &values[piece.flat.clone()]);
            gives.push((client, pieces.copied().collect()));
        }
        gives
    }
}
