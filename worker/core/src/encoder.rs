//! Encodes what a worker pushes, and keeps of each push what its codec left out until the client's next one.
//!
//! Error feedback (Karimireddy et al. 2019, algorithm 1): to the gradient g what was left out so far, e, is added; the sum
//! p = g + e is sent as C(p), and p - C(p) is left out for the next time. Both are in the unit of the gradient, so that
//! what is left out takes the rate of the step in which it is sent. Of a push that does not count all of p is left out, which is
//! what was left out of it and what was sent: neither g nor p has to be kept.

mod left_out;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use windlass_common::codec::{Chosen, Codec, Scratch};
use windlass_common::floats::{Floats, add};
use windlass_common::ids::{ClientId, Step, VariableId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::rng::Purpose;

use crate::event::{AsOf, Feedback, Until};
use left_out::LeftOut;
use places::{Piece, Places};

/// The encoded slices of one shard. When nobody reads them any more, their memory is used again.
pub type Payload = Arc<Vec<u8>>;

/// Payloads of one shard that may be on their way at once; beyond that, memory is given back.
const LENT_MAX: usize = 4;

/// Values that what was left out before is added to before they are encoded: few enough for the nearest cache, and whole blocks.
const AT_ONCE: usize = 2048;

const KEPT: &str = "a codec with a bias, and no other, tells what it leaves out";

/// Encodes the gradients of one worker.
#[derive(Clone, Debug)]
pub struct Encoder {
    codec: Codec,
    seed: u64,
    /// Where each variable lies in the flat buffer.
    variables: Vec<Range<usize>>,
    places: Places,
    chosen: Vec<Chosen>,
    scratch: Scratch,
    /// Of each shard.
    lent: Vec<Vec<Payload>>,
    /// The payloads of a push that is encoded in parts, until all of them are there.
    parts: Vec<Payload>,
    /// What was encoded for each shard of the push that is on its way, with the slices that it is of.
    sent: Vec<Vec<(Range<usize>, Payload)>>,
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
    left: LeftOut,
    /// Memory for that which is not in use.
    spare: Option<LeftOut>,
}

/// What is left out of the pushes of one client.
#[derive(Clone, Debug)]
struct Residual {
    /// Which of all that there have been.
    number: u64,
    values: LeftOut,
}

impl Encoder {
    /// The encoder of a worker that has pushed nothing yet.
    pub fn new(codec: Codec, seed: u64, layout: &Layout, placement: &Placement) -> Self {
        let variables = (0..).map(VariableId).take(layout.variables().len());
        let variables: Vec<_> = variables.map(|variable| layout.range(variable)).collect();
        let places = Places::new(codec, &variables, placement);
        let left = LeftOut::nothing(codec, &places);
        let given = vec![BTreeMap::new(); placement.shards() as usize];
        let (lent, sent) = (vec![Vec::new(); given.len()], vec![Vec::new(); given.len()]);
        Self {
            codec,
            seed,
            variables,
            places,
            chosen: Vec::new(),
            scratch: Scratch::default(),
            lent,
            parts: Vec::new(),
            sent,
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

    /// Encodes a gradient of the whole model, or a client's pseudo-gradient, into a payload for each shard. It has what was left out
    /// before added to it. `None` if there is nothing to encode: the payload is the values.
    ///
    /// # Panics
    /// If the gradient is not as long as the model.
    pub fn encode(&mut self, gradient: &mut [f32], client: ClientId, step: Step) -> Option<Vec<Payload>> {
        if self.codec == Codec::F32 {
            return None;
        }
        let values = self.variables.last().map_or(0, |variable| variable.end);
        assert_eq!(gradient.len(), values, "a gradient has a value for each of the model");
        if Self::takes_parts(self.codec) {
            self.begin_parts(client, step);
            self.encode_part(0, gradient);
            return Some(self.end_parts());
        }
        self.begin(client, step);
        if let Some(residual) = self.pending.and_then(|(client, _)| self.residuals.get(&client)) {
            for piece in self.places.all() {
                residual.values.add_to(piece, piece.flat.clone(), &mut gradient[piece.flat.clone()]);
            }
        }
        self.prepare(Some(gradient), client, step);
        let all = (0..self.places.shards()).map(|shard| self.payload(shard, gradient)).collect();
        Some(self.keep(all))
    }

    /// Whether parts of a gradient can be encoded as it is made, by [`encode_part`](Self::encode_part).
    pub fn takes_parts(codec: Codec) -> bool {
        codec.is_narrow()
    }

    /// Begins a push that is encoded part by part, in any order, as its values become known. Payloads that were begun before and not
    /// ended are void.
    ///
    /// # Panics
    /// If this codec [takes no parts](Self::takes_parts).
    pub fn begin_parts(&mut self, client: ClientId, step: Step) {
        assert!(Self::takes_parts(self.codec), "a part can be encoded by itself");
        self.begin(client, step);
        self.prepare(None, client, step);
        self.parts.clear();
        for shard in 0..self.places.shards() {
            let mut payload = self.memory(shard);
            Arc::get_mut(&mut payload).expect("nobody reads it").resize(self.places.bytes(shard), 0);
            self.parts.push(payload);
        }
    }

    /// Encodes the values from number `from` of the flat buffer on. They have what was left out before added to them.
    ///
    /// # Panics
    /// If a variable's values are cut at another number than a multiple of 64.
    pub fn encode_part(&mut self, from: usize, values: &mut [f32]) {
        let residual = self.pending.and_then(|(client, _)| self.residuals.get(&client));
        for (shard, piece, within) in self.places.within(from..from + values.len()) {
            let Piece { variable, start, flat, bytes, .. } = piece;
            let payload = Arc::get_mut(&mut self.parts[shard]).expect("nobody reads it yet");
            let slice = &mut payload[bytes.clone()];
            for at in within.clone().step_by(AT_ONCE) {
                let range = at..within.end.min(at + AT_ONCE);
                let values = &mut values[range.start - from..range.end - from];
                if let Some(residual) = residual {
                    residual.values.add_to(piece, range.clone(), values);
                }
                let left = self.left.blocks(piece, &range);
                assert_eq!(left.is_some(), self.codec.is_biased(), "{KEPT}");
                let of_slice = (*start, flat.len());
                self.chosen[*variable].encode_piece(of_slice, at - flat.start, values, left, slice);
            }
        }
    }

    /// The payloads of a push of which every part has been encoded.
    pub fn end_parts(&mut self) -> Vec<Payload> {
        let parts = std::mem::take(&mut self.parts);
        for (shard, payload) in parts.iter().enumerate() {
            self.lend(shard, payload);
        }
        self.keep(parts)
    }

    /// Begins a push that is encoded slice by slice, in any order, as its values become known: with
    /// [`encode_slice`](Self::encode_slice).
    ///
    /// # Panics
    /// If this codec must know a whole variable in order to encode a slice ([`Codec::is_elementwise`]).
    pub fn begin_slices(&mut self, client: ClientId, step: Step) {
        assert!(self.codec.is_elementwise(), "a slice can be encoded by itself");
        self.begin(client, step);
        self.prepare(None, client, step);
    }

    /// Encodes one slice of a shard, the `index`-th of its payload. Its values have what was left out before added to them.
    ///
    /// # Panics
    /// If the values are not as many as the slice has.
    pub fn encode_slice(&mut self, shard: usize, index: usize, values: &mut [f32]) -> Payload {
        let piece = &self.places.of(shard)[index];
        let Piece { variable, start, flat, bytes, .. } = piece;
        assert_eq!(values.len(), flat.len(), "the values of a slice");
        if let Some(residual) = self.pending.and_then(|(client, _)| self.residuals.get(&client)) {
            residual.values.add_to(piece, flat.clone(), values);
        }
        let mut out = vec![0; bytes.len()];
        let left = self.left.blocks(piece, flat);
        assert_eq!(left.is_some(), self.codec.is_biased(), "{KEPT}");
        self.chosen[*variable].encode_piece((*start, flat.len()), 0, values, left, &mut out);
        let encoded = Payload::new(out);
        if self.codec.is_biased() {
            self.sent[shard].push((index..index + 1, Arc::clone(&encoded)));
        }
        encoded
    }

    fn begin(&mut self, client: ClientId, step: Step) {
        if !self.codec.is_biased() {
            return;
        }
        self.pending = Some((client, step));
        self.sent.iter_mut().for_each(Vec::clear);
        if !self.left.is_as_told_by(self.codec) {
            // Some of a push that never was had been left out.
            self.left = LeftOut::nothing(self.codec, &self.places);
        }
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

    /// Chooses what has to be known of each variable; without a gradient only what does not depend on it.
    fn prepare(&mut self, gradient: Option<&[f32]>, client: ClientId, step: Step) {
        self.chosen.clear();
        for (variable, range) in (0_u32..).zip(&self.variables) {
            let purpose = Purpose::PushRounding { source: client.0, variable, step: step.0 };
            let values = gradient.map_or(&[][..], |gradient| &gradient[range.clone()]);
            self.chosen.push(self.codec.prepare(values, self.seed, purpose, &mut self.scratch));
        }
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
        let mut left = self.codec.is_biased().then(|| self.left.floats(&self.places));
        for Piece { variable, start, flat, .. } in self.places.of(shard) {
            let left = left.as_mut().map(|left| &mut left[flat.clone()]);
            let slice = (*start, &gradient[flat.clone()]);
            self.chosen[*variable].append(self.codec, slice, left, bytes);
        }
        self.lend(shard, &lent);
        lent
    }

    /// Keeps what was encoded for each shard until it is known what has become of it.
    fn keep(&mut self, payloads: Vec<Payload>) -> Vec<Payload> {
        if self.codec.is_biased() {
            for (shard, payload) in payloads.iter().enumerate() {
                self.sent[shard].push((0..self.places.of(shard).len(), Arc::clone(payload)));
            }
        }
        payloads
    }

    /// Takes in what has become of the push that was encoded last.
    pub fn settle(&mut self, feedback: Feedback) {
        match feedback {
            Feedback::Unused { shard } if self.pending.is_some() => {
                // Said twice it is so once.
                for (slices, payload) in std::mem::take(&mut self.sent[shard]) {
                    self.leave_out(shard, slices, &payload);
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

    /// Adds what was sent of these slices of a shard to what was left out of them.
    fn leave_out(&mut self, shard: usize, slices: Range<usize>, payload: &[u8]) {
        let slices = &self.places.of(shard)[slices];
        let lengths = || slices.iter().map(|piece| piece.flat.len());
        let mut values = vec![0.0; lengths().sum()];
        self.codec.decode_payload(lengths(), payload, &mut values).expect("it was encoded here");
        let mut rest = values.as_slice();
        let left = self.left.floats(&self.places);
        for Piece { flat, .. } in slices {
            let (now, later) = rest.split_at(flat.len());
            add(&mut left[flat.clone()], now);
            rest = later;
        }
    }

    /// What a client's push has left out takes the place of what had been left out before it.
    fn swap(&mut self, client: ClientId, step: Step) {
        self.numbered += 1;
        let left = std::mem::replace(&mut self.left, LeftOut::Floats(Floats::default()));
        let left = Residual { number: self.numbered, values: left };
        let before = self.residuals.insert(client, left);
        if self.keeps_before {
            self.before.insert(client, (step, before));
        } else if let Some(before) = before {
            // Two in turn, so that little memory is touched.
            self.spare = Some(before.values);
        }
        let spare = self.spare.take().filter(|spare| spare.is_as_told_by(self.codec));
        self.left = spare.unwrap_or_else(|| LeftOut::nothing(self.codec, &self.places));
    }

    /// A shard tells what has been left out of a client's pushes: its slices end to end. It says nothing new of a client whose
    /// residual is known here.
    ///
    /// # Errors
    /// If they are not as many values as the shard has, which it says.
    pub fn recall(&mut self, shard: usize, client: ClientId, values: &[f32]) -> Result<(), usize> {
        let expected = self.places.of(shard).iter().map(|piece| piece.flat.len()).sum();
        if values.len() != expected || !self.codec.is_biased() {
            return Err(expected);
        }
        let is_known = self.residuals.contains_key(&client) && !self.recalled.contains_key(&client);
        if is_known || self.pending.is_some_and(|(pending, _)| pending == client) {
            return Ok(());
        }
        self.numbered += 1;
        let number = self.numbered;
        let nothing = || Residual { number, values: LeftOut::nothing(self.codec, &self.places) };
        let residual = self.residuals.entry(client).or_insert_with(nothing);
        let floats = residual.values.floats(&self.places);
        let mut rest = values;
        for Piece { flat, .. } in self.places.of(shard) {
            let (now, later) = rest.split_at(flat.len());
            floats[flat.clone()].copy_from_slice(now);
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
            let pieces = self.places.of(shard).iter().flat_map(|piece| values.of(piece));
            gives.push((client, pieces.collect()));
        }
        gives
    }
}
