//! Holds a gradient on its way, and what of it goes to each shard.

use std::sync::Arc;

use bytes::Bytes;
use windlass_transport::bytes_of;
use windlass_worker_core::Payload;

use super::link::Cuts;

/// A gradient on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    gradient: Arc<Vec<f32>>,
    payloads: Vec<Vec<Bytes>>,
}

impl Outgoing {
    /// A gradient and its encoding for each shard; without one it goes as it is, and is not copied.
    pub(crate) fn new(gradient: Arc<Vec<f32>>, encoded: Option<Vec<Payload>>, cuts: &Cuts) -> Self {
        let payloads = match encoded {
            Some(encoded) => {
                encoded.into_iter().map(|bytes| vec![Bytes::from_owner(Shared(bytes))]).collect()
            }
            None => {
                let bytes = bytes_of(Arc::clone(&gradient));
                cuts.ranges(|range| bytes.slice(range.start * 4..range.end * 4))
            }
        };
        Self { gradient, payloads }
    }

    pub(crate) fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    /// What goes to one shard, in pieces.
    pub(crate) fn payload(&self, shard: usize) -> &[Bytes] {
        &self.payloads[shard]
    }
}

/// An encoding that goes to the wire, and comes back when nobody reads it any more.
struct Shared(Payload);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
