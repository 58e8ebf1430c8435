//! Reads pushes into memory that is used again: decoded, and where a standby may be told of them also as they were written.

use std::sync::{Arc, OnceLock};

use bytemuck::{cast_slice, cast_slice_mut};
use bytes::Bytes;
use windlass_common::codec::CodecError;
use windlass_common::wire::{Codec, Push};
use windlass_ps_core::store::{Pushed, Shape, Source, Undecoded};
use windlass_transport::{FrameError, FrameReceiver, Pool, PooledFloats, bytes_of};

/// A gradient, which the shard and the way to its standby share.
#[derive(Clone, Debug)]
pub(crate) enum Gradient {
    Floats {
        floats: Arc<PooledFloats>,
        /// Its push as it was written, if that is kept and not the floats themselves.
        written: Option<Bytes>,
    },
    Undecoded(Arc<Decodable>),
}

/// A gradient that is decoded when it is needed.
#[derive(Debug)]
pub(crate) struct Decodable {
    written: Undecoded<Memory>,
    /// Once somebody has needed all of it at once.
    floats: OnceLock<PooledFloats>,
    pool: Pool,
}

/// Bytes in memory for floats.
#[derive(Debug)]
struct Memory {
    floats: PooledFloats,
    bytes: usize,
}

impl Memory {
    fn new(pool: &Pool, bytes: usize) -> Self {
        Self { floats: pool.take(bytes.div_ceil(size_of::<f32>())), bytes }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut cast_slice_mut(&mut self.floats)[..self.bytes]
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &cast_slice(&self.floats)[..self.bytes]
    }
}

impl From<PooledFloats> for Gradient {
    fn from(floats: PooledFloats) -> Self {
        Self::Floats { floats: Arc::new(floats), written: None }
    }
}

impl Pushed for Gradient {
    fn floats(&self) -> &[f32] {
        match self {
            Self::Floats { floats, .. } => floats,
            Self::Undecoded(of) => of.floats.get_or_init(|| {
                let mut floats = of.pool.take(of.written.values());
                of.written.decode(&mut floats);
                floats
            }),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Floats { floats, .. } => floats.len(),
            Self::Undecoded(of) => of.written.values(),
        }
    }

    fn source(&self) -> Option<&dyn Source> {
        match self {
            Self::Floats { .. } => None,
            Self::Undecoded(of) => Some(&of.written),
        }
    }
}

/// The bytes of a gradient that is not decoded, on their way.
struct Sent(Arc<Decodable>);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.0.written.bytes()
    }
}

impl Gradient {
    /// The payload of its push.
    pub(crate) fn into_written(self) -> Bytes {
        match self {
            Self::Floats { floats, written } => written.unwrap_or_else(|| bytes_of(floats)),
            Self::Undecoded(of) => Bytes::from_owner(Sent(of)),
        }
    }
}

/// Where the pushes for a shard are read.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    pub(crate) shape: Arc<Shape>,
    /// Whether they are kept as they were written.
    pub(crate) keeps: bool,
    /// Whether the shard decodes them while it applies them.
    pub(crate) decodes: bool,
}

impl Intake {
    /// Reads the payload of a push that this shard's shape has been asked about, straight into place if it needs no decoding. The
    /// inner error is that of decoding it; the payload has been read all the same.
    ///
    /// The gradient is in the shard's order, whatever order it came in. What the push says is the order of its bytes: that in which
    /// they came if they are encoded, and the shard's if they are the floats themselves.
    pub(crate) async fn read(
        &self,
        receiver: &mut FrameReceiver,
        pool: &Pool,
        push: &mut Push,
    ) -> Result<Result<Gradient, CodecError>, FrameError> {
        let values = usize::try_from(self.shape.values()).expect("a shard's values are in memory");
        let in_order = push.parts == self.shape.parts;
        let places = || self.shape.places(&push.parts).expect("the push has been checked");
        if self.decodes {
            let bytes = usize::try_from(push.payload_bytes).expect("an encoded shard is in memory");
            let mut memory = Memory::new(pool, bytes);
            receiver.payload(memory.bytes_mut()).await?;
            let (floats, pool) = (OnceLock::new(), pool.clone());
            let of = |written| Gradient::Undecoded(Arc::new(Decodable { written, floats, pool }));
            return Ok(Undecoded::new(push.codec, places(), memory).map(of));
        }
        let mut floats = pool.take(values);
        if push.codec == Codec::F32 {
            if in_order {
                receiver.payload(cast_slice_mut(&mut floats)).await?;
            } else {
                for place in places() {
                    receiver.payload(cast_slice_mut(&mut floats[place])).await?;
                }
                push.parts.clone_from(&self.shape.parts);
            }
            return Ok(Ok(floats.into()));
        }
        if !self.keeps && push.codec.pieces(0).is_some() {
            let decoded = in_pieces(receiver, pool, push.codec, places(), &mut floats).await?;
            return Ok(decoded.map(|()| floats.into()));
        }
        let bytes = usize::try_from(push.payload_bytes).expect("an encoded shard is in memory");
        let mut written = Memory::new(pool, bytes);
        let into = written.bytes_mut();
        let decoded = if in_order {
            receiver.payload(into).await?;
            let lengths = push.parts.iter().map(|part| part.values as usize);
            push.codec.decode_payload(lengths, into, &mut floats)
        } else if push.parts.iter().all(|part| push.codec.fixed_bytes(part.values).is_some()) {
            slice_by_slice(receiver, push.codec, places(), into, &mut floats).await?
        } else {
            // Where one slice ends is in the bytes themselves.
            receiver.payload(into).await?;
            push.codec.decode_places(places(), into, &mut floats)
        };
        let written = self.keeps.then(|| Bytes::from_owner(written));
        Ok(decoded.map(|()| Gradient::Floats { floats: Arc::new(floats), written }))
    }
}

/// Reads slices that belong in these places and decodes each a piece at a time, while the next are on their way.
async fn in_pieces(
    receiver: &mut FrameReceiver,
    pool: &Pool,
    codec: Codec,
    places: Vec<std::ops::Range<usize>>,
    floats: &mut [f32],
) -> Result<Result<(), CodecError>, FrameError> {
    let pieces = |values: usize| codec.pieces(values).expect("slices in this codec have pieces");
    let longest = places.iter().map(|place| pieces(place.len()).memory()).max().unwrap_or_default();
    let mut memory = pool.take(longest.div_ceil(size_of::<f32>()));
    let memory: &mut [u8] = cast_slice_mut(&mut memory);
    let mut decoded = Ok(());
    for place in places {
        let pieces = pieces(place.len());
        let (head, memory) = memory[..pieces.memory()].split_at_mut(pieces.head);
        receiver.payload(head).await?;
        let floats = &mut floats[place];
        let read = receiver.pieces(pieces.value * floats.len(), memory, |at, bytes| {
            let (at, values) = (at / pieces.value, bytes.len() / pieces.value);
            // What follows bytes that cannot be decoded is read all the same: the next frame is behind them.
            if decoded.is_ok() {
                decoded = codec.decode_piece(head, at, bytes, &mut floats[at..at + values]);
            }
        });
        read.await?;
    }
    Ok(decoded)
}

/// Reads slices that belong in these places and decodes each when it has come, while the next are on their way.
async fn slice_by_slice(
    receiver: &mut FrameReceiver,
    codec: Codec,
    places: Vec<std::ops::Range<usize>>,
    mut into: &mut [u8],
    floats: &mut [f32],
) -> Result<Result<(), CodecError>, FrameError> {
    let mut decoded = Ok(());
    for place in places {
        let (bytes, _) = codec.payload_bytes([place.len() as u64]);
        let (piece, rest) = into.split_at_mut(usize::try_from(bytes).expect("an encoded shard is in memory"));
        receiver.payload(piece).await?;
        // What follows one that cannot be decoded is read all the same: the next frame is behind it.
        decoded = decoded.and(codec.decode_payload([place.len()], piece, &mut floats[place]));
        into = rest;
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use rkyv::util::AlignedVec;
    use windlass_common::codec::{Rounding, Scratch};
    use windlass_common::ids::{ClientId, Sequence, ServerId, ShardId, Step, Version, WorkerId};
    use windlass_common::plan::Codecs;
    use windlass_common::rng::Purpose;
    use windlass_common::wire::Part;
    use windlass_transport::{Endpoint, FrameSender, Limits, Priority, Role, RunAuthority};

    use super::*;

    /// The first is more than a piece in each codec that has pieces.
    const LENGTHS: [usize; 3] = [40_000, 64, 100];

    /// A shard of three slices, each a variable.
    fn intake(codec: Codec, keeps: bool, decodes: bool) -> Intake {
        let parts = LENGTHS.iter().enumerate();
        let parts = parts.map(|(i, &len)| Part { slice: i as u32, values: len as u64 }).collect();
        let codecs = Codecs { push: codec, pull: Codec::F32 };
        Intake { shape: Arc::new(Shape { shard: ShardId(0), parts, codecs }), keeps, decodes }
    }

    /// A push of slices in this order, its payload, and what that is read as.
    fn push(codec: Codec, order: &[u32]) -> (Push, Vec<u8>, Vec<f32>) {
        let (mut payload, mut expected) = (Vec::new(), LENGTHS.map(|len| vec![0.0; len]));
        for &slice in order {
            let into = &mut expected[slice as usize];
            let values: Vec<f32> = (0..into.len()).map(|i| (i as f32 * 0.7 + slice as f32).sin()).collect();
            let purpose = Purpose::PushRounding { source: 0, variable: slice, step: 0 };
            let chosen = codec.prepare(&values, 1, purpose, &mut Scratch::default());
            let begins = payload.len();
            chosen.append(codec, (0, &values), None, &mut payload);
            codec.decode_payload([values.len()], &payload[begins..], into).unwrap();
        }
        let part = |&slice: &u32| Part { slice, values: LENGTHS[slice as usize] as u64 };
        let push = Push {
            sequence: Sequence(0),
            step: Step(0),
            base: Version(0),
            client: ClientId(0),
            examples: 1,
            work: 1,
            loss: 0.0,
            codec,
            parts: order.iter().map(part).collect(),
            payload_bytes: payload.len() as u64,
        };
        (push, payload, expected.concat())
    }

    /// Both ends of a stream. The endpoints are to be kept.
    async fn stream() -> (FrameSender, FrameReceiver, [Endpoint; 2]) {
        let (run, limits) = (RunAuthority::new("run").unwrap(), Limits::default());
        let [server, worker] = [Role::Server(ServerId(0)), Role::Worker(WorkerId(0))];
        let server =
            Endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), &run.issue(server).unwrap(), &limits).unwrap();
        let worker = Endpoint::client(&run.issue(worker).unwrap(), &limits).unwrap();
        let address = server.local_address().unwrap();
        let (accepted, connected) = tokio::join!(
            async { server.accept().await.unwrap().finish().await.unwrap() },
            worker.connect(address, Role::Server(ServerId(0)), Duration::from_secs(60)),
        );
        let (mut sender, _) = connected.unwrap().open_stream(Priority::Normal).await.unwrap();
        // The peer knows of the stream when something has come on it.
        sender.send(b"first", []).await.unwrap();
        let (_, mut receiver) = accepted.accept_stream().await.unwrap();
        assert!(receiver.header(16, &mut AlignedVec::new()).await.unwrap().is_some());
        (sender, receiver, [server, worker])
    }

    #[tokio::test]
    async fn a_standby_reads_what_the_primary_keeps_as_the_primary_has_read_it() {
        let (mut sender, mut receiver, _endpoints) = stream().await;
        let pool = Pool::new(1 << 20);
        for codec in ["f32", "bf16", "f16", "int8", "int8-stochastic", "topk:5%", "sign"] {
            let codec: Codec = codec.parse().unwrap();
            for (order, once) in
                [([0, 1, 2], false), ([2, 0, 1], false), ([0, 1, 2], true), ([2, 0, 1], true)]
            {
                let (mut told, payload, expected) = push(codec, &order);
                let decodes = once && codec != Codec::F32 && codec.pieces(0).is_some();
                let primary = intake(codec, true, decodes);
                primary.shape.check_push(&told).unwrap();
                let mut sent = vec![payload];
                // The standby is told what the primary then says of the push.
                for reads in [primary, intake(codec, false, decodes)] {
                    let payload = Bytes::from(sent.pop().unwrap());
                    sender.send(b"push", [payload.clone()]).await.unwrap();
                    receiver.header(16, &mut AlignedVec::new()).await.unwrap();
                    let read = reads.read(&mut receiver, &pool, &mut told).await.unwrap().unwrap();
                    assert_eq!(read.source().is_some(), decodes, "{codec}");
                    if let Some(source) = read.source() {
                        // A block of each slice, and the last values.
                        for of_shard in
                            [64..1000, 39_936..40_000, 40_000..40_064, 40_064..40_164, 40_128..40_164]
                        {
                            let mut block = vec![f32::NAN; of_shard.len()];
                            source.write(of_shard.clone(), &mut block);
                            assert_eq!(block, expected[of_shard], "{codec} in order {order:?}");
                        }
                    }
                    assert_eq!(
                        (read.count(), read.floats()),
                        (expected.len(), &expected[..]),
                        "{codec} in order {order:?}"
                    );
                    reads.shape.check_push(&told).unwrap();
                    let is_as_it_came = codec != Codec::F32 || order == [0, 1, 2];
                    if reads.keeps {
                        let written = read.into_written();
                        assert!(!is_as_it_came || written == payload, "{codec} in order {order:?}");
                        assert_eq!(written.len() as u64, told.payload_bytes);
                        sent.push(written.to_vec());
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_push_that_cannot_be_decoded_is_read_to_its_end() {
        let (mut sender, mut receiver, _endpoints) = stream().await;
        let (pool, codec) = (Pool::new(1 << 20), Codec::Int8 { rounding: Rounding::Nearest });
        for (order, keeps, decodes) in [
            ([0, 1, 2], true, false),
            ([2, 0, 1], true, false),
            ([0, 1, 2], false, false),
            ([2, 0, 1], false, false),
            ([0, 1, 2], false, true),
            ([2, 0, 1], true, true),
        ] {
            let (mut told, mut payload, _) = push(codec, &order);
            // A scale that is no number that one can be.
            payload[..4].copy_from_slice(&(-1.0_f32).to_le_bytes());
            for bytes in [payload, Vec::new()] {
                sender.send(b"push", [Bytes::from(bytes)]).await.unwrap();
            }
            receiver.header(16, &mut AlignedVec::new()).await.unwrap();
            let read = intake(codec, keeps, decodes).read(&mut receiver, &pool, &mut told).await.unwrap();
            assert!(matches!(read, Err(CodecError::Scale { index: 0, .. })), "{read:?}");
            let mut next = AlignedVec::new();
            assert_eq!(receiver.header(16, &mut next).await.unwrap(), Some(&b"push"[..]));
        }
    }
}
