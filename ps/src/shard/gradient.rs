//! Keeps the gradient of a push as it came: as floats, or encoded for as long as nobody wants all of them.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytemuck::cast_slice;
use bytes::Bytes;
use windlass_common::codec::Checked;
use windlass_ps_core::Brought;
use windlass_transport::{Pool, PooledFloats, bytes_of};

/// A gradient, which the shard and the way to its standby share.
#[derive(Clone, Debug)]
pub(crate) struct Gradient(Arc<Kept>);

#[derive(Debug)]
enum Kept {
    Floats(PooledFloats),
    Encoded {
        payload: Checked<EncodedBytes>,
        /// All of it, once somebody has wanted that.
        floats: OnceLock<PooledFloats>,
        pool: Arc<Pool>,
    },
}

/// So many bytes in a buffer of a pool.
#[derive(Debug)]
pub(crate) struct EncodedBytes {
    pub(crate) buffer: PooledFloats,
    pub(crate) length: usize,
}

impl AsRef<[u8]> for EncodedBytes {
    fn as_ref(&self) -> &[u8] {
        &cast_slice(&self.buffer)[..self.length]
    }
}

impl From<PooledFloats> for Gradient {
    fn from(floats: PooledFloats) -> Self {
        Self(Arc::new(Kept::Floats(floats)))
    }
}

impl AsRef<[f32]> for Kept {
    fn as_ref(&self) -> &[f32] {
        match self {
            Self::Floats(floats) => floats,
            Self::Encoded { payload, floats, pool } => floats.get_or_init(|| {
                let mut all = pool.take(payload.values());
                payload.decode(&mut all);
                all
            }),
        }
    }
}

impl AsRef<[f32]> for Gradient {
    fn as_ref(&self) -> &[f32] {
        Kept::as_ref(&self.0)
    }
}

impl Brought for Gradient {
    fn is_at_hand(&self) -> bool {
        matches!(*self.0, Kept::Floats(_))
    }

    fn write(&self, range: Range<usize>, block: &mut [f32]) {
        match &*self.0 {
            Kept::Floats(floats) => block.copy_from_slice(&floats[range]),
            Kept::Encoded { payload, .. } => payload.write(range, block),
        }
    }
}

impl Gradient {
    /// One that is decoded when it is wanted; `pool` has room for it.
    pub(crate) fn encoded(payload: Checked<EncodedBytes>, pool: Arc<Pool>) -> Self {
        Self(Arc::new(Kept::Encoded { payload, floats: OnceLock::new(), pool }))
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        bytes_of(self.0)
    }
}
