//! Holds what of a gradient on its way goes to each shard.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use windlass_common::floats::Floats;
use windlass_transport::bytes_of;
use windlass_worker_core::{Encoder, Payload};

use super::error::ClientError;
use super::gradient::Gradients;
use super::link::Cuts;
use super::making::Making;

/// A gradient on its way.
#[derive(Debug)]
pub(crate) struct Outgoing {
    payloads: Vec<Vec<Bytes>>,
}

impl Outgoing {
    /// A gradient that goes as it is, and is not copied.
    pub(crate) fn as_it_is(gradient: Arc<Floats>, cuts: &Cuts) -> Self {
        let bytes = bytes_of(gradient);
        Self { payloads: cuts.ranges(|range| bytes.slice(range.start * 4..range.end * 4)) }
    }

    /// The encoding of a gradient for each shard.
    pub(crate) fn encoded(payloads: Vec<Payload>) -> Self {
        let bytes = |payload| vec![Bytes::from_owner(Shared(payload))];
        Self { payloads: payloads.into_iter().map(bytes).collect() }
    }

    /// A gradient whose slices have been encoded one by one, for each shard in order.
    pub(crate) fn in_slices(payloads: Vec<Vec<Bytes>>) -> Self {
        Self { payloads }
    }

    /// What goes to one shard, in pieces.
    pub(crate) fn payload(&self, shard: usize) -> &[Bytes] {
        &self.payloads[shard]
    }
}

/// What a request pushes.
#[derive(Debug)]
pub(crate) enum Going {
    Nothing,
    /// A gradient that is all there.
    Whole(Outgoing),
    /// One that is being made, and for each shard what is made of its slices.
    Making(Making, Vec<UnboundedReceiver<Bytes>>),
}

impl Going {
    /// Waits until a gradient that is being made is all there.
    ///
    /// # Errors
    /// If whoever made it has given it up.
    pub(crate) async fn complete(
        &mut self,
        gradients: &mut Gradients,
        encoder: &mut Encoder,
        cuts: &Cuts,
    ) -> Result<(), ClientError> {
        if let Self::Making(making, _) = self {
            making.complete(&Mutex::new(&mut *encoder), cuts).await?;
        }
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Making(making, _) => Self::Whole(making.into_outgoing(gradients, cuts)),
            going => going,
        };
        Ok(())
    }
}

/// An encoding that goes to the wire, and comes back when nobody reads it any more.
pub(crate) struct Shared(pub(crate) Payload);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
