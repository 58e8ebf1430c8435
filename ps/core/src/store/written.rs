//! Keeps a slice's values as they are sent to workers, written once for all who ask, in memory that is used again.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Encoded;

/// Buffers kept per slice that are still on their way or wait for use; beyond that, memory is given back.
const WRITTEN_MAX: usize = 4;

/// The values of one version, once somebody has asked, and the memory for them until then.
#[derive(Debug, Default)]
pub(super) struct Written {
    bytes: OnceLock<Encoded>,
    memory: Mutex<Option<Encoded>>,
}

impl Written {
    /// The bytes, which `encode` appends to an empty buffer if nobody has asked before.
    pub(super) fn get(&self, encode: impl FnOnce(&mut Vec<u8>)) -> &Encoded {
        self.bytes.get_or_init(|| {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut bytes = memory.unwrap_or_default();
            let empty = Arc::get_mut(&mut bytes).expect("memory for bytes has no readers");
            empty.clear();
            encode(empty);
            bytes
        })
    }
}

/// The buffers of earlier versions of a slice, some of which may still be read.
#[derive(Debug, Default)]
pub(super) struct Earlier(Vec<Encoded>);

impl Earlier {
    /// Makes what was written into nothing, for other values; what readers have, they keep.
    pub(super) fn renew(&mut self, written: &mut Arc<Written>) {
        if let Some(bytes) = written.bytes.get() {
            self.0.push(Arc::clone(bytes));
        } else if Arc::get_mut(written).is_some() {
            // Nobody has asked, and nobody can: it is as new.
            return;
        }
        // The last reference within a version that nobody keeps.
        match Arc::get_mut(written) {
            Some(own) => drop(own.bytes.take()),
            None => *written = Arc::default(),
        }
        let free = self.0.iter_mut().position(|bytes| Arc::get_mut(bytes).is_some());
        let memory = free.map(|free| self.0.swap_remove(free));
        self.0.truncate(WRITTEN_MAX);
        let Some(own) = Arc::get_mut(written) else { return };
        let place = own.memory.get_mut().unwrap_or_else(PoisonError::into_inner);
        if memory.is_some() {
            *place = memory;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let (mut earlier, mut written) = (Earlier::default(), Arc::new(Written::default()));
        let write = |written: &Arc<Written>, byte: u8| -> Encoded {
            Arc::clone(written.get(|bytes| bytes.extend_from_slice(&[byte; 100])))
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
        assert_eq!(kept.get(|_| unreachable!())[0], 3);
        assert_eq!(write(&written, 4)[0], 4);
        for byte in 0..20 {
            earlier.renew(&mut written);
            let _ = write(&written, byte);
            assert!(earlier.0.len() <= WRITTEN_MAX);
        }
    }
}
