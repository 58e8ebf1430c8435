//! Carries requests and answers between a client and one shard.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytemuck::cast_slice_mut;
use bytes::Bytes;
use rkyv::util::AlignedVec;
use tokio::sync::mpsc::UnboundedReceiver;
use windlass_common::codec::{Patch, Pieces};
use windlass_common::ids::{ClientId, ShardId, Version};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Codecs;
use windlass_common::wire::{self, Body, Codec, Envelope, Part, Values, Wait};
use windlass_transport::{Connection, FrameReceiver, FrameSender, Pool, Priority, bytes_of};
use windlass_worker_core::{Pull, Push, Reply, Work};

use super::error::ClientError;
use super::form::{self, Form};
use super::overlap::{Arrival, Arrivals};
use super::pulled::Buffer;
use super::session::{brief, next, open_stream, send};

/// A slice of the caller's buffer: its number in the placement, and where its values go.
pub(crate) type Place<'a> = (u32, Room<'a>);

/// Where the values of a slice go.
#[derive(Debug)]
pub(crate) enum Room<'a> {
    Floats(&'a mut [f32]),
    /// So many values as they come, in a codec with bytes of its own for each.
    Bytes(usize, &'a mut [u8]),
}

impl Room<'_> {
    /// For how many values it is.
    fn values(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Bytes(values, _) => *values,
        }
    }
}

/// A slice and where it lies in the flat buffer.
pub(crate) type FlatPart = (Part, Range<usize>);

/// Where the values of a shard go.
#[derive(Debug)]
pub(crate) enum Landing<'a> {
    /// Straight into their places; there are none where no values are asked for.
    Places(Vec<Place<'a>>),
    /// To whoever uses each slice as soon as it has come.
    Arrivals { parts: &'a [FlatPart], pool: &'a Pool, to: &'a Arrivals },
}

/// What a shard has said.
#[derive(Debug)]
pub(crate) enum Heard {
    Reply(Reply),
    /// What has been left out of the pushes of a client, the shard's slices end to end.
    Recall {
        client: ClientId,
        values: Vec<f32>,
    },
    /// A word of explanation.
    Word,
}

/// What a worker gives a shard for a checkpoint, by client.
#[derive(Debug)]
pub(crate) struct Gift {
    pub(crate) checkpoint: u64,
    pub(crate) residuals: Vec<(ClientId, Vec<f32>)>,
    /// It does not know any more what is wanted.
    pub(crate) has_gone_on: bool,
}

/// A stream to one shard.
#[derive(Debug)]
pub(crate) struct Link {
    outbound: Outbound,
    inbound: Inbound,
    codecs: Codecs,
}

/// What goes to the shard.
#[derive(Debug)]
pub(crate) struct Outbound {
    shard: ShardId,
    sender: FrameSender,
    buffer: AlignedVec<16>,
}

/// What comes from the shard.
#[derive(Debug)]
pub(crate) struct Inbound {
    shard: ShardId,
    receiver: FrameReceiver,
    incoming: AlignedVec<16>,
    /// How long the shard may say nothing.
    silence: Duration,
    /// The version at hand when the last pull was made.
    have: Option<Version>,
    codecs: Codecs,
    /// Values as they came, before they are decoded.
    encoded: Vec<u8>,
}

impl Link {
    pub(crate) async fn open(
        connection: &Connection,
        shard: ShardId,
        envelope: Envelope,
        codecs: Codecs,
        silence: Duration,
    ) -> Result<Self, ClientError> {
        let (mut sender, receiver) = open_stream(connection, Priority::Normal, shard, silence).await?;
        let mut buffer = AlignedVec::new();
        send(&mut sender, &mut buffer, envelope.header(Body::Open { shard }), shard).await?;
        let incoming = AlignedVec::new();
        let (have, encoded) = (None, Vec::new());
        let outbound = Outbound { shard, sender, buffer };
        let inbound = Inbound { shard, receiver, incoming, silence, have, codecs, encoded };
        Ok(Self { outbound, inbound, codecs })
    }

    /// Both ways, of which one may be waited for beside the other.
    pub(crate) fn ways(&mut self) -> (&mut Outbound, &mut Inbound) {
        (&mut self.outbound, &mut self.inbound)
    }

    /// Sends a push with its payload, a pull or both.
    pub(crate) async fn request(
        &mut self,
        envelope: Envelope,
        parts: &[FlatPart],
        push: Option<(Push, &[Bytes])>,
        pull: Option<Pull>,
    ) -> Result<(), ClientError> {
        let (body, payload) = match (push, self.pull(pull)) {
            (None, None) => return Ok(()),
            (None, Some(pull)) => (Body::Pull(pull), Vec::new()),
            (Some((push, payload)), pull) => {
                let payload_bytes = payload.iter().map(|b| b.len() as u64).sum();
                let parts = parts.iter().map(|(part, _)| *part).collect();
                (Body::Push { push: self.push(push, parts, payload_bytes), pull }, payload.to_vec())
            }
        };
        self.outbound.send(envelope, body, payload).await
    }

    /// Sends a push whose slices are made one by one, from the last to the first, with a pull or without: each when it is
    /// there.
    pub(crate) async fn request_in_parts(
        &mut self,
        envelope: Envelope,
        parts: &[FlatPart],
        push: Push,
        pull: Option<Pull>,
        slices: &mut UnboundedReceiver<Bytes>,
    ) -> Result<(), ClientError> {
        let parts: Vec<Part> = parts.iter().rev().map(|(part, _)| *part).collect();
        let (count, shard) = (parts.len(), self.outbound.shard);
        let (payload_bytes, _) = self.codecs.push.payload_bytes(parts.iter().map(|part| part.values));
        let pull = self.pull(pull);
        let body = Body::Push { push: self.push(push, parts, payload_bytes), pull };
        let Outbound { sender, buffer, .. } = &mut self.outbound;
        encode(buffer, envelope, body)?;
        let lost = |e| ClientError::lost(shard, e);
        for number in 0..count {
            let bytes = slices.recv().await.ok_or(ClientError::Interrupted)?;
            if number == 0 {
                sender.begin(buffer, []).await.map_err(lost)?;
            }
            sender.chunk(bytes).await.map_err(lost)?;
        }
        sender.end().map_err(lost)
    }

    fn pull(&mut self, pull: Option<Pull>) -> Option<wire::Pull> {
        let codec = self.codecs.pull;
        self.inbound.have = pull.and_then(|p| p.have);
        pull.map(|Pull { step, have }| wire::Pull { step, have, slices: Vec::new(), codec })
    }

    fn push(&self, push: Push, parts: Vec<Part>, payload_bytes: u64) -> wire::Push {
        let codec = self.codecs.push;
        let Push { sequence, step, base, work: Work { client, examples, work, loss } } = push;
        wire::Push { sequence, step, base, client, examples, work, loss, codec, parts, payload_bytes }
    }

    /// Reads the payload of values into their places. `whole` says that each place must be filled.
    pub(crate) async fn receive(
        &mut self,
        values: &Values,
        places: &mut [Place<'_>],
        whole: bool,
    ) -> Result<(), ClientError> {
        self.inbound.receive(values, places, whole).await
    }

    pub(crate) async fn send(&mut self, envelope: Envelope, body: Body) -> Result<(), ClientError> {
        self.outbound.send(envelope, body, Vec::new()).await
    }

    /// What the shard says next.
    pub(crate) async fn next(&mut self) -> Result<Body, ClientError> {
        self.inbound.next().await
    }
}

fn encode(buffer: &mut AlignedVec<16>, envelope: Envelope, body: Body) -> Result<(), ClientError> {
    envelope.header(body).encode(buffer).map_err(|e| ClientError::wire("this process", &e))
}

impl Outbound {
    async fn send(&mut self, envelope: Envelope, body: Body, payload: Vec<Bytes>) -> Result<(), ClientError> {
        encode(&mut self.buffer, envelope, body)?;
        self.sender.send(&self.buffer, payload).await.map_err(|e| ClientError::lost(self.shard, e))
    }

    /// Gives the shard what it wants for a checkpoint.
    pub(crate) async fn give(&mut self, envelope: Envelope, gift: Gift) -> Result<(), ClientError> {
        let Gift { checkpoint, residuals, has_gone_on } = gift;
        for (client, values) in residuals {
            let payload_bytes = 4 * values.len() as u64;
            let body = Body::Residual { checkpoint, client, payload_bytes };
            self.send(envelope, body, vec![bytes_of(Arc::new(values))]).await?;
        }
        self.send(envelope, Body::Given { checkpoint, has_gone_on }, Vec::new()).await
    }
}

impl Inbound {
    /// Reads one answer; values go where they belong. The shard has so many of them in all.
    pub(crate) async fn reply(
        &mut self,
        landing: &mut Landing<'_>,
        all: usize,
    ) -> Result<Heard, ClientError> {
        Ok(Heard::Reply(match self.next().await? {
            Body::Held { sequence, .. } => Reply::Held { sequence },
            Body::Settled { sequence, outcome } => Reply::Settled { sequence, outcome },
            Body::Finished { .. } => Reply::Finished,
            Body::Rejected { reason, .. } | Body::Refused(reason) => Reply::Rejected(reason),
            Body::Values(values) => {
                match landing {
                    Landing::Places(places) => self.receive(&values, places, self.have.is_none()).await?,
                    Landing::Arrivals { parts, pool, to } => self.hand_on(&values, parts, pool, to).await?,
                }
                let wire::Values { step, version, clients, .. } = values;
                Reply::Values { step, version, clients }
            }
            Body::Keep { checkpoint, next, all } => Reply::Keep { checkpoint, next, all },
            Body::Recall { client, payload_bytes } => {
                let expected = 4 * all as u64;
                if payload_bytes != expected || !self.codecs.push.is_biased() {
                    let what =
                        format!("{payload_bytes} bytes left out of the pushes of {client}, not {expected}");
                    return Err(ClientError::protocol(self.shard, what));
                }
                let mut values = vec![0.0; all];
                let read = self.receiver.payload(cast_slice_mut(&mut values)).await;
                read.map_err(|e| ClientError::lost(self.shard, e))?;
                return Ok(Heard::Recall { client, values });
            }
            Body::Waiting { step, wait } => {
                tracing::info!(shard = self.shard.0, step = step.0, "{}", in_words(&wait));
                return Ok(Heard::Word);
            }
            other => return Err(ClientError::protocol(self.shard, brief(&other))),
        }))
    }

    async fn receive(
        &mut self,
        values: &Values,
        places: &mut [Place<'_>],
        whole: bool,
    ) -> Result<(), ClientError> {
        let form = self.check(values, places.len(), whole)?;
        // Parts come in the order of the slices, so each is looked for behind the one before.
        let mut rest = places.iter_mut();
        for part in &values.parts {
            let place = rest.find(|(slice, _)| *slice == part.slice);
            let place = place.filter(|(_, place)| place.values() as u64 == part.values);
            let (_, place) = place.ok_or_else(|| self.not_asked_for(part))?;
            match (form, place) {
                (Form::Values(codec), Room::Floats(place)) => self.read(codec, part, place).await?,
                (Form::Values(codec), Room::Bytes(values, place)) => {
                    self.read_encoded(codec, part, *values, place).await?;
                }
                (Form::Patches(patch, _), Room::Floats(place)) => {
                    form::apply(patch, self.patches(patch, form, part).await?, place);
                }
                (Form::Patches(..), Room::Bytes(..)) => unreachable!("what patches change are floats"),
            }
        }
        Ok(())
    }

    /// Reads the payload of values and hands each slice on when it has come.
    async fn hand_on(
        &mut self,
        values: &Values,
        parts: &[FlatPart],
        pool: &Pool,
        to: &Arrivals,
    ) -> Result<(), ClientError> {
        let form = self.check(values, parts.len(), self.have.is_none())?;
        let mut rest = parts.iter();
        let own = |part: &Part| match rest.find(|(own, _)| own == part) {
            Some((_, range)) => Ok(range.clone()),
            None => Err(self.not_asked_for(part)),
        };
        let ranges = values.parts.iter().map(own).collect::<Result<Vec<_>, _>>()?;
        let shard = self.shard.index();
        let there = |next: usize| ranges.get(next).map_or(usize::MAX, |range| range.start);
        // Whoever does not listen any more hears from the exchange how it ended.
        let _ = to.send(Arrival::Shown { shard, step: values.step, there: there(0) });
        for (i, (part, range)) in values.parts.iter().zip(&ranges).enumerate() {
            let there = there(i + 1);
            let _ = to.send(match form {
                Form::Values(codec) if codec.is_narrow() => {
                    let bytes = form.bytes_of(part);
                    let mut memory = pool.take(bytes.div_ceil(4));
                    let encoded = &mut cast_slice_mut(&mut memory)[..bytes];
                    self.read_encoded(codec, part, range.len(), encoded).await?;
                    Arrival::Slice { shard, slice: range.clone(), memory, there }
                }
                Form::Values(codec) => {
                    let mut memory = pool.take(range.len());
                    self.read(codec, part, &mut memory).await?;
                    Arrival::Slice { shard, slice: range.clone(), memory, there }
                }
                Form::Patches(patch, _) => {
                    let bytes = self.patches(patch, form, part).await?.to_vec();
                    Arrival::Patches { shard, slice: range.clone(), patch, bytes, there }
                }
            });
        }
        Ok(())
    }

    /// How values are written, if it is as they are in this run; and whether they are of as many of the `asked` slices as they
    /// must be.
    fn check(&self, values: &Values, asked: usize, whole: bool) -> Result<Form, ClientError> {
        let found = values.parts.len();
        if whole && found != asked {
            let what = format!("{found} slices of {asked} that were asked for");
            return Err(ClientError::protocol(self.shard, what));
        }
        if values.codec != self.codecs.pull {
            let what = format!("values as {} where they are {} in this run", values.codec, self.codecs.pull);
            return Err(ClientError::protocol(self.shard, what));
        }
        Form::of(values, asked, self.have).map_err(|what| ClientError::protocol(self.shard, what))
    }

    fn not_asked_for(&self, part: &Part) -> ClientError {
        let what = format!("slice {} with {} values, which was not asked for", part.slice, part.values);
        ClientError::protocol(self.shard, what)
    }

    /// Reads one slice, straight into its place if it needs no decoding.
    async fn read(&mut self, codec: Codec, part: &Part, place: &mut [f32]) -> Result<(), ClientError> {
        if codec == Codec::F32 {
            let read = self.receiver.payload(cast_slice_mut(place)).await;
            return read.map_err(|e| ClientError::lost(self.shard, e));
        }
        if let Some(pieces) = codec.pieces(place.len()) {
            return self.read_pieces(codec, pieces, part, place).await;
        }
        let (bytes, _) = codec.payload_bytes([part.values]);
        let bytes = usize::try_from(bytes).expect("encoded values take no more than the values");
        self.encoded.resize(self.encoded.len().max(bytes), 0);
        let encoded = &mut self.encoded[..bytes];
        self.receiver.payload(encoded).await.map_err(|e| ClientError::lost(self.shard, e))?;
        let decoded = codec.decode_payload([place.len()], encoded, place);
        decoded.map_err(|e| ClientError::protocol(self.shard, format!("slice {}: {e}", part.slice)))
    }

    /// Reads one slice and decodes each piece as it comes.
    async fn read_pieces(
        &mut self,
        codec: Codec,
        pieces: Pieces,
        part: &Part,
        place: &mut [f32],
    ) -> Result<(), ClientError> {
        let lost = |e| ClientError::lost(self.shard, e);
        self.encoded.resize(self.encoded.len().max(pieces.memory()), 0);
        let (head, memory) = self.encoded[..pieces.memory()].split_at_mut(pieces.head);
        self.receiver.payload(head).await.map_err(lost)?;
        let mut decoded = Ok(());
        let read = self.receiver.pieces(pieces.value * place.len(), memory, |at, bytes| {
            let (at, values) = (at / pieces.value, bytes.len() / pieces.value);
            let place = &mut place[at..at + values];
            if decoded.is_ok() {
                decoded = codec.decode_piece(head, at, bytes, place);
            }
        });
        read.await.map_err(lost)?;
        decoded.map_err(|e| ClientError::protocol(self.shard, format!("slice {}: {e}", part.slice)))
    }

    /// Reads one slice of so many values as it comes.
    async fn read_encoded(
        &mut self,
        codec: Codec,
        part: &Part,
        values: usize,
        place: &mut [u8],
    ) -> Result<(), ClientError> {
        self.receiver.payload(place).await.map_err(|e| ClientError::lost(self.shard, e))?;
        let checked = codec.check(place, values);
        checked.map_err(|e| ClientError::protocol(self.shard, format!("slice {}: {e}", part.slice)))
    }

    /// Reads the patches to one slice.
    async fn patches(&mut self, patch: Patch, form: Form, part: &Part) -> Result<&[u8], ClientError> {
        let bytes = form.bytes_of(part);
        self.encoded.resize(self.encoded.len().max(bytes), 0);
        let encoded = &mut self.encoded[..bytes];
        self.receiver.payload(encoded).await.map_err(|e| ClientError::lost(self.shard, e))?;
        match form::check(patch, encoded, part.values as usize) {
            Ok(()) => Ok(encoded),
            Err(e) => Err(ClientError::protocol(self.shard, format!("slice {}: {e}", part.slice))),
        }
    }

    async fn next(&mut self) -> Result<Body, ClientError> {
        let next = next(&mut self.receiver, &mut self.incoming, self.shard, self.silence);
        next.await.map(|header| header.body)
    }
}

/// Where each slice lies in a flat buffer of the whole model.
#[derive(Debug)]
pub(crate) struct Cuts {
    /// For each shard its slices, in the order in which a payload holds them.
    shards: Vec<Vec<FlatPart>>,
    /// Where every slice lies, its shard and its place in the payload of that, in the order of the flat buffer.
    flat: Vec<(Range<usize>, usize, usize)>,
}

impl Cuts {
    pub(crate) fn new(layout: &Layout, placement: &Placement) -> Self {
        let mut shards = vec![Vec::new(); placement.shards() as usize];
        let mut flat = Vec::new();
        for (slice, s) in (0_u32..).zip(placement.slices()) {
            let start = layout.range(s.variable).start + s.start as usize;
            let range = start..start + s.len as usize;
            let parts: &mut Vec<FlatPart> = &mut shards[s.shard.index()];
            flat.push((range.clone(), s.shard.index(), parts.len()));
            parts.push((Part { slice, values: s.len }, range));
        }
        flat.sort_unstable_by_key(|(range, ..)| range.start);
        Self { shards, flat }
    }

    /// The slices that begin in a range of the flat buffer, in its order: where each lies, its shard, and its place in the
    /// payload of that.
    pub(crate) fn within(
        &self,
        range: Range<usize>,
    ) -> impl DoubleEndedIterator<Item = (&Range<usize>, usize, usize)> {
        let before = |end: usize| self.flat.partition_point(|(slice, ..)| slice.start < end);
        let found = &self.flat[before(range.start)..before(range.end)];
        found.iter().map(|(range, shard, index)| (range, *shard, *index))
    }

    /// Something for each shard and each of its slices, made from where that lies.
    pub(crate) fn ranges<T>(&self, make: impl Fn(&Range<usize>) -> T) -> Vec<Vec<T>> {
        self.shards.iter().map(|parts| parts.iter().map(|(_, range)| make(range)).collect()).collect()
    }

    /// The slices of one shard.
    pub(crate) fn parts(&self, shard: usize) -> &[FlatPart] {
        &self.shards[shard]
    }

    /// Where all slices lie, in the order of the flat buffer.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = Range<usize>> {
        self.flat.iter().map(|(range, ..)| range.clone())
    }

    /// Splits a buffer into each shard's slices. Within a shard slices are numbered in the order of the buffer.
    pub(crate) fn places<'a>(&self, buffer: Buffer<'a>) -> Vec<Vec<Place<'a>>> {
        match buffer {
            Buffer::Floats(mut rest) => self.of_shards(self.in_order().map(move |range| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(range.len());
                rest = later;
                Room::Floats(now)
            })),
            Buffer::Bytes(encoded) => self.of_shards(encoded.places()),
        }
    }

    /// Something for each slice, in the order of the flat buffer, as each shard's with the numbers of its slices.
    fn of_shards<T>(&self, in_order: impl Iterator<Item = T>) -> Vec<Vec<(u32, T)>> {
        let mut of_shards: Vec<_> = self.shards.iter().map(|s| Vec::with_capacity(s.len())).collect();
        for ((_, shard, index), of_slice) in self.flat.iter().zip(in_order) {
            let (part, _) = &self.shards[*shard][*index];
            of_shards[*shard].push((part.slice, of_slice));
        }
        of_shards
    }
}

/// Whom a parked pull waits for.
fn in_words(wait: &Wait) -> String {
    match wait {
        Wait::Start => "waiting for the planned servers and workers to join".into(),
        Wait::Pushes { step, missing } => {
            let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
            format!("waiting for the pushes of {} for step {step}", names.join(", "))
        }
        Wait::Cohort { step } => format!("none of this worker's clients is in round {step}"),
        Wait::Close { step } => format!("waiting for the coordinator to close step {step}"),
        Wait::Slowest { worker, clock, needed } => {
            format!("waiting for {worker}, which is at step {clock} and must reach step {needed}")
        }
    }
}
