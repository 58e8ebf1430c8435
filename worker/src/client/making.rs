//! Takes in a gradient while it is being made, and hands each of its slices on to the stream of its shard.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use windlass_common::codec::Codec;
use windlass_transport::{PooledFloats, bytes_of};
use windlass_worker_core::Encoder;

use super::error::ClientError;
use super::gradient::{Gradient, Gradients};
use super::link::Cuts;
use super::outgoing::{Outgoing, Shared};
use super::overlap::Made;

/// A gradient of which parts go to the wire while others are still being made: from its end to its front.
#[derive(Debug)]
pub(crate) struct Making {
    made: UnboundedReceiver<Made>,
    codec: Codec,
    /// From here on it has been made.
    from: usize,
    whole: Option<Gradient>,
    /// To each shard's stream, which takes the slices from the last to the first.
    queues: Vec<UnboundedSender<Bytes>>,
    /// What has been encoded, in the same order: it is sent again as it is if it has to be.
    encoded: Vec<Vec<Bytes>>,
}

impl Making {
    /// A gradient of so many values, of which nothing has been made, and for each shard what is made of its slices.
    pub(crate) fn new(
        made: UnboundedReceiver<Made>,
        codec: Codec,
        values: usize,
        shards: usize,
    ) -> (Self, Vec<UnboundedReceiver<Bytes>>) {
        let (queues, slices) = (0..shards).map(|_| unbounded_channel()).unzip();
        let encoded = vec![Vec::new(); shards];
        (Self { made, codec, from: values, whole: None, queues, encoded }, slices)
    }

    /// Takes in what is made until it is all. May be dropped at any time and called again.
    ///
    /// # Errors
    /// If whoever made it has given it up.
    pub(crate) async fn complete(
        &mut self,
        encoder: &Mutex<&mut Encoder>,
        cuts: &Cuts,
    ) -> Result<(), ClientError> {
        while self.whole.is_none() {
            match self.made.recv().await {
                Some(Made::Part { from, values }) => self.take(from, values, &mut encoder.lock(), cuts),
                Some(Made::Whole(gradient)) => self.whole = Some(gradient),
                None => return Err(ClientError::Interrupted),
            }
        }
        Ok(())
    }

    fn take(&mut self, from: usize, mut values: PooledFloats, encoder: &mut Encoder, cuts: &Cuts) {
        let until = std::mem::replace(&mut self.from, from);
        // A stream that has broken takes nothing more, and the push is sent again over another.
        if self.codec == Codec::F32 {
            let bytes = bytes_of(Arc::new(values));
            for (range, shard, _) in cuts.within(from..until).rev() {
                let _ =
                    self.queues[shard].send(bytes.slice((range.start - from) * 4..(range.end - from) * 4));
            }
            return;
        }
        for (range, shard, index) in cuts.within(from..until).rev() {
            let values = &mut values[range.start - from..range.end - from];
            let encoded = Bytes::from_owner(Shared(encoder.encode_slice(shard, index, values)));
            self.encoded[shard].push(encoded.clone());
            let _ = self.queues[shard].send(encoded);
        }
    }

    /// The gradient as it may have to be sent again.
    ///
    /// # Panics
    /// If it is not complete.
    pub(crate) fn into_outgoing(self, gradients: &mut Gradients, cuts: &Cuts) -> Outgoing {
        let gradient = self.whole.expect("the gradient is complete");
        assert_eq!(self.from, 0, "every part of the gradient was told");
        let gradient = gradients.lend(gradient);
        if self.codec == Codec::F32 {
            return Outgoing::as_it_is(gradient, cuts);
        }
        let in_order = |mut slices: Vec<Bytes>| {
            slices.reverse();
            slices
        };
        Outgoing::in_slices(self.encoded.into_iter().map(in_order).collect())
    }
}
