//! Cuts a stream into frames: a checked prefix, an opaque header and a payload whose length the header tells.
//!
//! ```text
//! bytes 0..4    magic "WNDL"
//! bytes 4..6    version of this framing, 1, little-endian as all numbers
//! bytes 6..8    reserved, 0
//! bytes 8..12   length of the header in bytes
//! bytes 12..16  reserved, 0
//! then          the header, then the payload
//! ```
//!
//! QUIC already protects every byte by an authenticated cipher, so a frame has no checksum of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rkyv::util::AlignedVec;
use tokio::time::{Instant, sleep_until, timeout};

use crate::connection::{Counters, Priority};
use crate::error::ConnectionLost;
use crate::pacing::Link;

/// The version of the framing.
pub const FRAME_VERSION: u16 = 1;
/// Bytes before the header of a frame.
pub const PREFIX_BYTES: usize = 16;

const MAGIC: [u8; 4] = *b"WNDL";
/// Space taken for prefixes and headers at a time.
const SCRATCH_BYTES: usize = 4096;
/// Payload bytes discarded at a time.
const SKIP_BYTES: usize = 64 * 1024;

/// A part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePart {
    /// The first 16 bytes.
    Prefix,
    /// The header.
    Header,
    /// The payload.
    Payload,
}

impl fmt::Display for FramePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "prefix",
            Self::Header => "header",
            Self::Payload => "payload",
        })
    }
}

/// Why a frame could not be sent or read. The stream is of no use afterwards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not carry frames.
    #[error("a frame begins with the bytes {found:02x?} instead of \"WNDL\"")]
    Magic {
        /// What it begins with.
        found: [u8; 4],
    },
    /// The peer frames in another version.
    #[error(
        "the peer sends frames of version {found}, and this process reads version {FRAME_VERSION}; use one build"
    )]
    Version {
        /// Its version.
        found: u16,
    },
    /// A reserved field is not 0.
    #[error("a frame's reserved fields are {found:?} instead of 0")]
    Reserved {
        /// The two fields, in order.
        found: (u16, u32),
    },
    /// The header is larger than allowed.
    #[error("a frame's header has {found} bytes, over the limit of {limit}")]
    HeaderTooLong {
        /// Its length.
        found: usize,
        /// The limit that the reader set.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside the {part} of a frame, after {found} of {expected} bytes")]
    Truncated {
        /// The part.
        part: FramePart,
        /// Bytes that had come.
        found: usize,
        /// Bytes that it should have.
        expected: usize,
    },
    /// The peer gave the stream up.
    #[error("the peer gave the stream up (code {code})")]
    Abandoned {
        /// The peer's number for the reason.
        code: u64,
    },
    /// The stream was ended on this side.
    #[error("the stream has been finished on this side")]
    Finished,
    /// An earlier operation was dropped in the middle of a frame.
    #[error("an earlier frame was given up in its middle, so the stream cannot go on")]
    Interrupted,
    /// The peer took nothing of what was to be sent.
    #[error("the peer has taken nothing of what was sent to it for {} s", within.as_secs_f64())]
    NotTaken {
        /// How long nothing moved: the patience of the stream.
        within: Duration,
    },
    /// The peer stopped in the middle of a frame.
    #[error(
        "the peer stopped inside the {part} of a frame, after {found} of {expected} bytes, and sent nothing more for {} s",
        within.as_secs_f64()
    )]
    Halted {
        /// The part.
        part: FramePart,
        /// Bytes that had come.
        found: usize,
        /// Bytes that it should have.
        expected: usize,
        /// How long nothing came: the patience of the stream.
        within: Duration,
    },
    /// The peer did not confirm in time.
    #[error("the peer did not confirm the end of the stream within {} s", within.as_secs_f64())]
    Unconfirmed {
        /// The deadline that passed.
        within: Duration,
    },
    /// The connection ended.
    #[error(transparent)]
    Lost(#[from] ConnectionLost),
}

impl From<quinn::WriteError> for FrameError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Abandoned { code: code.into_inner() },
            quinn::WriteError::ConnectionLost(lost) => Self::Lost(lost.into()),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::Finished,
        }
    }
}

impl From<quinn::ReadError> for FrameError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Abandoned { code: code.into_inner() },
            quinn::ReadError::ConnectionLost(lost) => Self::Lost(lost.into()),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Finished,
        }
    }
}

/// The sending half of a stream of frames. Dropping it ends the stream.
#[derive(Debug)]
pub struct FrameSender {
    stream: quinn::SendStream,
    counters: Arc<Counters>,
    link: Arc<Link>,
    scratch: BytesMut,
    chunks: Vec<Bytes>,
    patience: Option<Duration>,
    /// Payload bytes sent so far of a frame that has been begun.
    begun: Option<u64>,
    interrupted: bool,
}

impl FrameSender {
    pub(crate) fn new(stream: quinn::SendStream, counters: Arc<Counters>, link: Arc<Link>) -> Self {
        Self {
            stream,
            counters,
            link,
            scratch: BytesMut::new(),
            chunks: Vec::new(),
            patience: None,
            begun: None,
            interrupted: false,
        }
    }

    /// From now on a frame of which the peer takes nothing for so long is given up. A slow peer is waited for, as long as
    /// it goes on.
    pub fn set_patience(&mut self, within: Duration) {
        self.patience = Some(within);
    }

    /// Sets the priority of what is sent from now on.
    pub fn set_priority(&self, priority: Priority) {
        // It fails only on a stream that has ended, which has nothing left to put in order.
        let _ = self.stream.set_priority(priority.level());
    }

    /// Sends one frame. The header is copied; the payload's chunks are kept, uncopied, until the peer has
    /// acknowledged them. Returns when quinn has taken all of it, which waits while the peer's window is full: until the
    /// connection ends, or until the [patience](Self::set_patience) of the stream is over.
    ///
    /// Not to be dropped midway: afterwards the stream answers only [`FrameError::Interrupted`]. The same holds after an
    /// error.
    ///
    /// # Errors
    /// When the header is longer than a frame can say, the peer took nothing for too long, it gave the stream up or the
    /// connection ended.
    pub async fn send(
        &mut self,
        header: &[u8],
        payload: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), FrameError> {
        let payload_bytes = self.put(header, payload)?;
        self.write_out().await?;
        self.count(payload_bytes);
        Ok(())
    }

    /// Begins a frame whose payload comes in pieces: sends its header and what there is of them. [`chunk`](Self::chunk) is
    /// to follow for each further piece, and [`end`](Self::end) when the payload is as long as the header says; until then no
    /// other frame can be sent. Otherwise as [`send`](Self::send), also for each piece by itself.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn begin(
        &mut self,
        header: &[u8],
        payload: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), FrameError> {
        self.begun = Some(self.put(header, payload)?);
        self.write_out().await
    }

    /// Sends the next piece of a frame that has been begun.
    ///
    /// # Errors
    /// As [`send`](Self::send), and if no frame has been begun.
    pub async fn chunk(&mut self, bytes: Bytes) -> Result<(), FrameError> {
        let sent = self.begun.filter(|_| !self.interrupted).ok_or(FrameError::Interrupted)?;
        self.begun = Some(sent + bytes.len() as u64);
        self.chunks.clear();
        self.chunks.extend((!bytes.is_empty()).then_some(bytes));
        self.write_out().await
    }

    /// Ends a frame that has been begun: its last piece has been sent.
    ///
    /// # Errors
    /// If no frame has been begun, or one was given up in its middle.
    pub fn end(&mut self) -> Result<(), FrameError> {
        let sent = self.begun.filter(|_| !self.interrupted).ok_or(FrameError::Interrupted)?;
        self.begun = None;
        self.count(sent);
        Ok(())
    }

    fn count(&self, payload_bytes: u64) {
        self.counters.payload_sent.fetch_add(payload_bytes, Ordering::Relaxed);
        self.counters.frames_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes prefix and header the first chunk of what is written out next, and the payload, whose length it gives, the others.
    fn put(&mut self, header: &[u8], payload: impl IntoIterator<Item = Bytes>) -> Result<u64, FrameError> {
        if self.interrupted || self.begun.is_some() {
            return Err(FrameError::Interrupted);
        }
        let too_long = FrameError::HeaderTooLong { found: header.len(), limit: u32::MAX as usize };
        let length = u32::try_from(header.len()).map_err(|_| too_long)?;
        self.put_prefix(length);
        self.scratch.put_slice(header);
        self.chunks.clear();
        self.chunks.push(self.scratch.split().freeze());
        self.chunks.extend(payload.into_iter().filter(|chunk| !chunk.is_empty()));
        Ok(self.chunks[1..].iter().map(|chunk| chunk.len() as u64).sum())
    }

    /// Writes the chunks at hand: where there is a rate piece by piece, each when the link would have carried it.
    async fn write_out(&mut self) -> Result<(), FrameError> {
        self.interrupted = true;
        let up = &self.link.up;
        if up.has_rate() {
            for chunk in &mut self.chunks {
                while !chunk.is_empty() {
                    let piece = chunk.split_to(up.piece(chunk.len()));
                    if let Some(until) = up.take(piece.len()) {
                        sleep_until(until).await;
                    }
                    write(&mut self.stream, self.patience, &mut [piece]).await?;
                }
            }
        } else {
            write(&mut self.stream, self.patience, &mut self.chunks).await?;
        }
        self.interrupted = false;
        self.chunks.clear();
        Ok(())
    }

    fn put_prefix(&mut self, header_length: u32) {
        // The buffer is given back to us once the peer has acknowledged it; until then more is taken.
        let needed = PREFIX_BYTES + header_length as usize;
        if self.scratch.capacity() < needed {
            self.scratch.reserve(needed.max(SCRATCH_BYTES));
        }
        self.scratch.put_slice(&MAGIC);
        self.scratch.put_u16_le(FRAME_VERSION);
        self.scratch.put_u16_le(0);
        self.scratch.put_u32_le(header_length);
        self.scratch.put_u32_le(0);
    }

    /// Ends the stream after the frames sent; the peer's reader sees its clean end.
    ///
    /// # Errors
    /// When it was ended before, or a frame was given up in its middle.
    pub fn finish(&mut self) -> Result<(), FrameError> {
        if self.interrupted || self.begun.is_some() {
            return Err(FrameError::Interrupted);
        }
        self.stream.finish().map_err(|_| FrameError::Finished)
    }

    /// Waits, after [`finish`](Self::finish), until the peer's transport has received everything, but no longer than
    /// `within`. That the peer's *program* has read it only an answer can tell. May be dropped and called again.
    ///
    /// # Errors
    /// At the deadline, or when the peer gave the stream up or the connection ended.
    pub async fn received(&mut self, within: Duration) -> Result<(), FrameError> {
        match timeout(within, self.stream.stopped()).await {
            Err(_) => Err(FrameError::Unconfirmed { within }),
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(code))) => Err(FrameError::Abandoned { code: code.into_inner() }),
            Ok(Err(quinn::StoppedError::ConnectionLost(lost))) => Err(FrameError::Lost(lost.into())),
            Ok(Err(quinn::StoppedError::ZeroRttRejected)) => Err(FrameError::Finished),
        }
    }
}

/// The receiving half of a stream of frames. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: quinn::RecvStream,
    counters: Arc<Counters>,
    link: Arc<Link>,
    prefix: [u8; PREFIX_BYTES],
    prefix_filled: usize,
    header: AlignedVec<16>,
    header_filled: usize,
    patience: Option<Duration>,
    /// When the link would have brought what was read last, if that is still to be waited for.
    due: Option<Instant>,
    interrupted: bool,
}

impl FrameReceiver {
    pub(crate) fn new(stream: quinn::RecvStream, counters: Arc<Counters>, link: Arc<Link>) -> Self {
        Self {
            stream,
            counters,
            link,
            prefix: [0; PREFIX_BYTES],
            prefix_filled: 0,
            header: AlignedVec::new(),
            header_filled: 0,
            patience: None,
            due: None,
            interrupted: false,
        }
    }

    /// From now on a frame that has begun and of which nothing more comes for so long is given up. A slow peer is waited
    /// for, as long as it goes on.
    pub fn set_patience(&mut self, within: Duration) {
        self.patience = Some(within);
    }

    /// Reads the next frame's header into `buffer`, replacing what was there, and returns it; `None` when the stream
    /// ended cleanly between two frames. The caller then reads or skips exactly as much payload as the header says.
    ///
    /// Waits until a frame comes or the connection ends; put a deadline around it. The [patience](Self::set_patience) of
    /// the stream is that for the rest of a frame that has begun. May be dropped at any time and called again: nothing is
    /// lost.
    ///
    /// # Errors
    /// Distinguishes every way in which a frame can be malformed or cut off; `limit` is the largest header, in
    /// bytes, that is accepted.
    pub async fn header<'b>(
        &mut self,
        limit: usize,
        buffer: &'b mut AlignedVec<16>,
    ) -> Result<Option<&'b [u8]>, FrameError> {
        if self.interrupted {
            return Err(FrameError::Interrupted);
        }
        // What an earlier call had read before it was dropped.
        self.wait_for_link().await;
        while self.prefix_filled < PREFIX_BYTES {
            let found = self.prefix_filled;
            let patience = self.patience.filter(|_| found > 0);
            let reading = self.stream.read(&mut self.prefix[found..]);
            match patient(patience, reading, halted(FramePart::Prefix, found, PREFIX_BYTES)).await? {
                Some(read) => {
                    self.prefix_filled += read;
                    self.carried(read).await;
                }
                None if self.prefix_filled == 0 => return Ok(None),
                None => return Err(truncated(FramePart::Prefix, self.prefix_filled, PREFIX_BYTES)),
            }
        }
        let length = header_length(&self.prefix, limit)?;
        // Progress is kept here and not in the caller's buffer, so that a dropped call can be taken up again.
        self.header.resize(length, 0);
        while self.header_filled < length {
            let end = self.header_filled + self.link.down.piece(length - self.header_filled);
            let found = self.header_filled;
            let reading = self.stream.read(&mut self.header[found..end]);
            match patient(self.patience, reading, halted(FramePart::Header, found, length)).await? {
                Some(read) => {
                    self.header_filled += read;
                    self.carried(read).await;
                }
                None => return Err(truncated(FramePart::Header, self.header_filled, length)),
            }
        }
        (self.prefix_filled, self.header_filled) = (0, 0);
        self.counters.frames_received.fetch_add(1, Ordering::Relaxed);
        std::mem::swap(buffer, &mut self.header);
        Ok(Some(buffer))
    }

    /// Reads the next `into.len()` bytes of payload straight into place. For floats, give
    /// `bytemuck::cast_slice_mut(&mut floats)`.
    ///
    /// Waits until all has come, the connection ends or the [patience](Self::set_patience) of the stream is over. Not to
    /// be dropped midway: afterwards the stream answers only [`FrameError::Interrupted`].
    ///
    /// # Errors
    /// When the stream ends early, nothing more came for too long, the peer gave it up or the connection ended.
    pub async fn payload(&mut self, into: &mut [u8]) -> Result<(), FrameError> {
        self.begin_payload()?;
        let mut filled = 0;
        while filled < into.len() {
            let end = filled + self.link.down.piece(into.len() - filled);
            let expected = into.len();
            let reading = self.stream.read(&mut into[filled..end]);
            match patient(self.patience, reading, halted(FramePart::Payload, filled, expected)).await? {
                Some(read) => {
                    filled += read;
                    self.carried(read).await;
                }
                None => return Err(truncated(FramePart::Payload, filled, into.len())),
            }
        }
        self.end_payload(filled);
        Ok(())
    }

    /// Reads the next `bytes` of payload, as many at a time as `memory` holds, and hands out the place and the bytes of each
    /// piece, which are still in the nearest caches. Otherwise as [`payload`](Self::payload).
    ///
    /// # Errors
    /// As [`payload`](Self::payload).
    ///
    /// # Panics
    /// If `memory` is empty.
    pub async fn pieces(
        &mut self,
        bytes: usize,
        memory: &mut [u8],
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<(), FrameError> {
        assert!(!memory.is_empty(), "pieces of a payload have memory");
        let most = memory.len();
        for at in (0..bytes).step_by(most) {
            let piece = &mut memory[..(bytes - at).min(most)];
            self.payload(piece).await?;
            take(at, piece);
        }
        Ok(())
    }

    /// Reads and discards the next `bytes` of payload. Otherwise as [`payload`](Self::payload).
    ///
    /// # Errors
    /// As [`payload`](Self::payload).
    pub async fn skip_payload(&mut self, bytes: usize) -> Result<(), FrameError> {
        self.begin_payload()?;
        let mut skipped = 0;
        while skipped < bytes {
            let piece = self.link.down.piece((bytes - skipped).min(SKIP_BYTES));
            let reading = self.stream.read_chunk(piece, true);
            match patient(self.patience, reading, halted(FramePart::Payload, skipped, bytes)).await? {
                Some(chunk) => {
                    skipped += chunk.bytes.len();
                    self.carried(chunk.bytes.len()).await;
                }
                None => return Err(truncated(FramePart::Payload, skipped, bytes)),
            }
        }
        self.end_payload(skipped);
        Ok(())
    }

    /// Notes that so many bytes have been read, and waits until the link would have brought them. The note is made
    /// before the wait, so that of a dropped call nothing is lost but the waiting.
    async fn carried(&mut self, bytes: usize) {
        self.due = self.link.down.take(bytes);
        self.wait_for_link().await;
    }

    /// Waits until the link would have brought what was read last. May be dropped and called again.
    async fn wait_for_link(&mut self) {
        if let Some(until) = self.due {
            sleep_until(until).await;
            self.due = None;
        }
    }

    fn begin_payload(&mut self) -> Result<(), FrameError> {
        if self.interrupted {
            return Err(FrameError::Interrupted);
        }
        debug_assert_eq!(self.prefix_filled, 0, "a payload is read after its header");
        self.interrupted = true;
        Ok(())
    }

    fn end_payload(&mut self, bytes: usize) {
        self.interrupted = false;
        self.counters.payload_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Writes all of the chunks; each time that some of it was taken, the patience begins anew.
async fn write(
    stream: &mut quinn::SendStream,
    patience: Option<Duration>,
    mut chunks: &mut [Bytes],
) -> Result<(), FrameError> {
    while !chunks.is_empty() {
        let not_taken = |within| FrameError::NotTaken { within };
        let written = patient(patience, stream.write_chunks(chunks), not_taken).await?;
        chunks = &mut chunks[written.chunks..];
    }
    Ok(())
}

/// Waits for one piece to move, if there is a limit no longer than that.
async fn patient<T, E>(
    patience: Option<Duration>,
    moving: impl Future<Output = Result<T, E>>,
    still: impl FnOnce(Duration) -> FrameError,
) -> Result<T, FrameError>
where
    FrameError: From<E>,
{
    match patience {
        None => Ok(moving.await?),
        Some(within) => match timeout(within, moving).await {
            Ok(moved) => Ok(moved?),
            Err(_) => Err(still(within)),
        },
    }
}

fn halted(part: FramePart, found: usize, expected: usize) -> impl FnOnce(Duration) -> FrameError {
    move |within| FrameError::Halted { part, found, expected, within }
}

fn truncated(part: FramePart, found: usize, expected: usize) -> FrameError {
    FrameError::Truncated { part, found, expected }
}

/// Checks a prefix, and returns the length of the header that follows.
fn header_length(prefix: &[u8; PREFIX_BYTES], limit: usize) -> Result<usize, FrameError> {
    let [m0, m1, m2, m3, v0, v1, r0, r1, l0, l1, l2, l3, z0, z1, z2, z3] = *prefix;
    let magic = [m0, m1, m2, m3];
    if magic != MAGIC {
        return Err(FrameError::Magic { found: magic });
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != FRAME_VERSION {
        return Err(FrameError::Version { found: version });
    }
    let reserved = (u16::from_le_bytes([r0, r1]), u32::from_le_bytes([z0, z1, z2, z3]));
    if reserved != (0, 0) {
        return Err(FrameError::Reserved { found: reserved });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > limit {
        return Err(FrameError::HeaderTooLong { found: length, limit });
    }
    Ok(length)
}
