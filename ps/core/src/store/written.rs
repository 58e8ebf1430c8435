//! Keeps a slice's values as they are sent to workers, written once for all who ask, in memory that is used again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use windlass_common::codec::Codec;

use super::{Encoded, SliceValues};

/// Buffers kept per slice that are still on their way or wait for use; beyond that, memory is given back.
const BUFFERS_MAX: usize = 4;
/// So many versions after one that was asked for, the next are expected to be asked for too. One may be overtaken by the
/// next version before anybody has come to ask.
const ASKED_FOR: u8 = 2;

/// The values of one version, once they have been written, and the memory for that until then.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// As the workers of a run are all sent them, in one codec.
    bytes: OnceLock<(Codec, Encoded)>,
    memory: Mutex<Option<Encoded>>,
    is_asked_for: AtomicBool,
}

/// Values as they go onto the wire.
#[derive(Clone, Debug)]
pub enum OnWire {
    /// Their bytes are those of the codec.
    Values(SliceValues),
    /// The bytes.
    Bytes(Encoded),
}

impl Written {
    /// These values as they are sent, written now if nobody has done so before. Those that need no encoding are not copied for
    /// that.
    pub(super) fn on_wire(&self, values: &SliceValues, codec: Codec) -> OnWire {
        self.is_asked_for.store(true, Ordering::Relaxed);
        // An observer is sent f32, whatever has been written for workers.
        let is_written_so = self.bytes.get().is_some_and(|(written, _)| *written == codec);
        if codec == Codec::F32 && !is_written_so {
            return OnWire::Values(Arc::clone(values));
        }
        OnWire::Bytes(Arc::clone(self.get(codec, |bytes| codec.encode_alone(values, bytes))))
    }

    /// Whether they have been written.
    #[cfg(test)]
    pub(super) fn is_there(&self) -> bool {
        self.bytes.get().is_some()
    }

    /// The bytes in this codec, which `encode` writes in place of others if nobody has asked before.
    ///
    /// # Panics
    /// If they have been written in another one.
    fn get(&self, codec: Codec, encode: impl FnOnce(&mut Vec<u8>)) -> &Encoded {
        let (written, bytes) = self.bytes.get_or_init(|| {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut bytes = memory.unwrap_or_default();
            encode(Arc::get_mut(&mut bytes).expect("memory for bytes has no readers"));
            (codec, bytes)
        });
        assert_eq!(*written, codec, "the workers of a run are sent values in one codec");
        bytes
    }

    /// Nobody needs to write them any more.
    pub(super) fn set(&self, codec: Codec, bytes: Encoded) {
        self.bytes.set((codec, bytes)).expect("the values of a version are written once");
    }
}

/// Memory for a slice of so many values, as long as it has to be, from what is kept in one that nobody else has.
pub(super) fn memory(written: &mut Arc<Written>, codec: Codec, len: usize) -> Encoded {
    let own = Arc::get_mut(written).expect("nobody has been shown what is as new");
    let memory = own.memory.get_mut().unwrap_or_else(PoisonError::into_inner).take();
    let mut bytes = memory.unwrap_or_default();
    let needed = codec.fixed_bytes(len as u64).expect("values are written by themselves");
    let needed = usize::try_from(needed).expect("an encoded slice is in memory");
    Arc::get_mut(&mut bytes).expect("memory for bytes has no readers").resize(needed, 0);
    bytes
}

/// Where values are written piece by piece as they are made.
#[derive(Debug)]
pub(super) struct Place<'a> {
    codec: Codec,
    len: usize,
    bytes: &'a mut [u8],
}

impl<'a> Place<'a> {
    /// For a slice of so many values.
    pub(super) fn new(codec: Codec, len: usize, bytes: &'a mut Encoded) -> Self {
        Self { codec, len, bytes: Arc::get_mut(bytes).expect("memory for bytes has no readers") }
    }

    /// Writes the values from this number on.
    pub(super) fn write(&mut self, at: usize, values: &[f32]) {
        self.codec.encode_piece(values, at, self.len, self.bytes);
    }
}

/// The buffers of earlier versions of a slice, some of which may still be read.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    buffers: Vec<Encoded>,
    /// Versions that are still expected to be asked for.
    expected: u8,
}

impl Earlier {
    /// Whether somebody is expected to ask for the next version.
    pub(super) fn are_asked_for(&self) -> bool {
        self.expected > 0
    }

    /// Makes what was written into nothing, for other values; what readers have, they keep.
    pub(super) fn renew(&mut self, written: &mut Arc<Written>) {
        let is_asked_for = written.is_asked_for.load(Ordering::Relaxed);
        self.expected = if is_asked_for { ASKED_FOR } else { self.expected.saturating_sub(1) };
        if let Some((_, bytes)) = written.bytes.get() {
            self.buffers.push(Arc::clone(bytes));
        }
        if Arc::get_mut(written).is_none() {
            // Somebody keeps the version.
            *written = Arc::default();
        }
        let own = Arc::get_mut(written).expect("nobody else has it any more");
        *own.is_asked_for.get_mut() = false;
        // The last reference within a version that nobody keeps.
        drop(own.bytes.take());
        let memory = own.memory.get_mut().unwrap_or_else(PoisonError::into_inner);
        if memory.is_none() {
            let free = self.buffers.iter_mut().rposition(|bytes| Arc::get_mut(bytes).is_some());
            *memory = free.map(|free| self.buffers.swap_remove(free));
        }
        self.buffers.truncate(BUFFERS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let (mut earlier, mut written) = (Earlier::default(), Arc::new(Written::default()));
        let write = |written: &Arc<Written>, byte: u8| -> Encoded {
            Arc::clone(written.get(Codec::Bf16, |bytes| {
                bytes.clear();
                bytes.extend_from_slice(&[byte; 100]);
            }))
        };
        let first = write(&written, 1);
        assert!(Arc::ptr_eq(&first, &write(&written, 9)), "written once");
        let place = first.as_ptr();
        earlier.renew(&mut written);
        let second = write(&written, 2);
        assert_eq!((first[0], second[0]), (1, 2));
        assert_ne!(second.as_ptr(), place, "the first is still read");
        drop(first);
        earlier.renew(&mut written);
        let third = write(&written, 3);
        assert_eq!((third.as_ptr(), third.len(), second[0]), (place, 100, 2));
        // A version that is kept elsewhere keeps what was written of it.
        let kept = Arc::clone(&written);
        earlier.renew(&mut written);
        assert_eq!(kept.get(Codec::Bf16, |_| unreachable!())[0], 3);
        assert_eq!(write(&written, 4)[0], 4);
        for byte in 0..20 {
            earlier.renew(&mut written);
            let _ = write(&written, byte);
            assert!(earlier.buffers.len() <= BUFFERS_MAX);
        }
    }

    #[test]
    fn the_next_version_is_expected_to_be_asked_for_until_two_have_not_been() {
        let (mut earlier, mut written) = (Earlier::default(), Arc::new(Written::default()));
        let values = Arc::new(vec![1.5]);
        let mut is_expected = |asked: bool| {
            if asked {
                written.on_wire(&values, Codec::Bf16);
            }
            earlier.renew(&mut written);
            earlier.are_asked_for()
        };
        let asked = [false, true, false, false, true, true, false, true, false, false, false];
        let expected = [false, true, true, false, true, true, true, true, true, false, false];
        assert_eq!(asked.map(&mut is_expected), expected);
    }
}
