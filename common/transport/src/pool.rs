//! Keeps buffers of floats for reuse, and lends floats to the wire without copying.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use bytes::Bytes;
use windlass_common::floats::Floats;

/// Buffers are made in steps of this many floats, the unit in which slices of variables start.
const CLASS_LEAST: usize = 64;

/// Buffers of floats that are reused, by length. Clones share them.
///
/// It limits what it *keeps*; what is taken at once is limited by whoever takes (connections, streams, queues).
#[derive(Clone)]
pub struct Pool {
    shelves: Arc<Shelves>,
}

struct Shelves {
    kept_bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    buffers: BTreeMap<usize, Shelf>,
}

/// Buffers of one length, each with the thread that has given it back. The one that was given back last is taken first, so that those
/// at the front idle longest, but before all others one of the same thread, whose caches may have it.
#[derive(Default)]
struct Shelf {
    buffers: Vec<(ThreadId, Floats)>,
    /// The least that there have been since [`Pool::shed`] was called last: so many were not needed.
    least: usize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Pool {{ kept_bytes: {}, kept_bytes_max: {} }}",
            self.kept_bytes(),
            self.shelves.kept_bytes_max
        )
    }
}

impl Pool {
    /// An empty pool that keeps at most this many bytes of unused buffers.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self { shelves: Arc::new(Shelves { kept_bytes_max, kept: Mutex::default() }) }
    }

    /// A buffer of `len` floats, to be overwritten: a reused one holds what it held before, a new one zeros.
    pub fn take(&self, len: usize) -> PooledFloats {
        let class = class_of(len);
        let reused = self.shelves.lock().take(class);
        let buffer = reused.unwrap_or_else(|| Floats::zeros(class));
        PooledFloats { buffer, len, home: Arc::clone(&self.shelves) }
    }

    /// Frees the buffers that have not been needed since this was called last.
    pub fn shed(&self) {
        let mut freed = Vec::new();
        let mut kept = self.shelves.lock();
        let mut bytes = 0;
        for shelf in kept.buffers.values_mut() {
            freed.extend(shelf.buffers.drain(..shelf.least).inspect(|(_, buffer)| bytes += bytes_in(buffer)));
            shelf.least = shelf.buffers.len();
        }
        kept.bytes -= bytes;
        kept.buffers.retain(|_, shelf| !shelf.buffers.is_empty());
        // Giving memory back takes long enough that nobody should wait for it.
        drop(kept);
        drop(freed);
    }

    /// Bytes of unused buffers at present.
    pub fn kept_bytes(&self) -> usize {
        self.shelves.lock().bytes
    }
}

impl Shelves {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held; and a pool that were poisoned would still be a valid pool.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn take(&mut self, class: usize) -> Option<Floats> {
        let shelf = self.buffers.get_mut(&class)?;
        let here = thread::current().id();
        let own = shelf.buffers.iter().rposition(|(thread, _)| *thread == here);
        let last = shelf.buffers.len().checked_sub(1)?;
        let (_, buffer) = shelf.buffers.remove(own.unwrap_or(last));
        shelf.least = shelf.least.min(shelf.buffers.len());
        self.bytes -= bytes_in(&buffer);
        Some(buffer)
    }
}

fn bytes_in(buffer: &[f32]) -> usize {
    size_of_val(buffer)
}

/// The length of the buffers that serve requests of `len`: eight classes to each doubling, so that at most an eighth is
/// unused and lengths that differ a little share their buffers.
fn class_of(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(CLASS_LEAST);
    len.max(1).next_multiple_of(step)
}

/// A buffer of floats on loan from a [`Pool`], to which it returns when dropped.
pub struct PooledFloats {
    buffer: Floats,
    len: usize,
    home: Arc<Shelves>,
}

impl fmt::Debug for PooledFloats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PooledFloats({} floats)", self.len)
    }
}

impl Deref for PooledFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for PooledFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl AsRef<[f32]> for PooledFloats {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl Drop for PooledFloats {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let bytes = bytes_in(&buffer);
        let mut kept = self.home.lock();
        if kept.bytes + bytes <= self.home.kept_bytes_max {
            kept.bytes += bytes;
            kept.buffers.entry(buffer.len()).or_default().buffers.push((thread::current().id(), buffer));
        }
    }
}

/// Floats as bytes for the wire, without a copy: the floats live until the last of the bytes, and every part sliced
/// from them, is dropped. `Arc<Vec<f32>>`, `Arc<Floats>`, `Arc<[f32]>` and `Arc<PooledFloats>` will do.
pub fn bytes_of<T>(owner: Arc<T>) -> Bytes
where
    T: AsRef<[f32]> + Send + Sync + ?Sized + 'static,
{
    Bytes::from_owner(Lent(owner))
}

struct Lent<T: ?Sized>(Arc<T>);

impl<T: AsRef<[f32]> + ?Sized> AsRef<[u8]> for Lent<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(T::as_ref(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_content_and_serves_a_like_length() {
        let pool = Pool::new(1 << 20);
        let mut first = pool.take(1000);
        assert!(first.iter().all(|value| *value == 0.0));
        first.fill(7.0);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(pool.kept_bytes(), 1024 * 4);
        let again = pool.take(990);
        assert_eq!((again.as_ptr(), again.len(), pool.kept_bytes()), (place, 990, 0));
        assert!(again.iter().all(|value| *value == 7.0));
        assert_ne!(pool.take(990).as_ptr(), place);
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let pool = Pool::new(3 * 64 * 4);
        let taken: Vec<_> = (0..5).map(|_| pool.take(64)).collect();
        drop(taken);
        assert_eq!(pool.kept_bytes(), 3 * 64 * 4);
        assert_eq!(Pool::new(0).take(0).len(), 0);
    }

    #[test]
    fn what_is_not_needed_is_shed_and_what_is_stays() {
        let pool = Pool::new(1 << 20);
        let taken: Vec<_> = (0..3).map(|_| pool.take(64)).collect();
        drop(taken);
        // Since they came back nothing has been asked for, but before that all were.
        pool.shed();
        assert_eq!(pool.kept_bytes(), 3 * 64 * 4);
        let place = drop_and_place(pool.take(64));
        pool.shed();
        assert_eq!(pool.kept_bytes(), 64 * 4, "two idled while one was in use");
        assert_eq!(drop_and_place(pool.take(64)), place);
        pool.shed();
        assert_eq!(pool.kept_bytes(), 64 * 4, "it was in use again");
        pool.shed();
        assert_eq!(pool.kept_bytes(), 0);
        assert_eq!(pool.take(64).len(), 64);
    }

    #[test]
    fn a_thread_gets_its_own_buffers_before_those_of_others() {
        let pool = Pool::new(1 << 20);
        let [mine, other] = [0, 1].map(|_| pool.take(64));
        let (place, others) = (mine.as_ptr() as usize, other.as_ptr() as usize);
        drop(mine);
        let there = pool.clone();
        let elsewhere = move || {
            drop(other);
            let (first, second) = (there.take(64), there.take(64));
            [first.as_ptr() as usize, second.as_ptr() as usize]
        };
        assert_eq!(
            thread::spawn(elsewhere).join().unwrap(),
            [others, place],
            "and those of others before new ones"
        );
        // All are of the thread that is gone, and whoever comes gets them.
        let again = [0, 1].map(|_| pool.take(64)).map(|buffer| buffer.as_ptr() as usize);
        assert!(again.contains(&place) && again.contains(&others));
    }

    fn drop_and_place(buffer: PooledFloats) -> *const f32 {
        buffer.as_ptr()
    }

    #[test]
    fn classes_hold_their_length_and_waste_at_most_an_eighth() {
        for len in (0..70_000).chain([199_210, 1_663_370, (1 << 31) + 1]) {
            let class = class_of(len);
            assert!(class >= len && class - len <= (len / 8).max(64), "{len} is served by {class}");
            assert_eq!(class_of(class), class, "a returned buffer must be found again");
        }
    }

    #[test]
    fn bytes_are_the_floats_themselves_and_return_them_to_the_pool() {
        let pool = Pool::new(1 << 20);
        let mut floats = pool.take(2);
        floats.copy_from_slice(&[1.0, -2.0]);
        let place = floats.as_ptr().cast::<u8>();
        let bytes = bytes_of(Arc::new(floats));
        assert_eq!((bytes.as_ptr(), &bytes[..]), (place, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0][..]));
        let part = bytes.slice(4..);
        drop(bytes);
        assert_eq!((&part[..], pool.kept_bytes()), (&[0, 0, 0, 0xc0][..], 0));
        drop(part);
        assert_eq!(pool.kept_bytes(), 64 * 4);
        assert_eq!(bytes_of::<[f32]>(Arc::from([0.5f32])).len(), 4);
        assert_eq!(bytes_of(Arc::new(vec![0.5f32; 3])).len(), 12);
    }
}
