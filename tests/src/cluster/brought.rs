//! Brings shards what they are pushed, as a server does.

use std::sync::Arc;

use windlass_common::wire::{Codec, Part};
use windlass_ps_core::store::{Pushed, Source, Undecoded};

/// What a push brings to a shard.
#[derive(Clone, Debug)]
pub enum Brought {
    /// Values, end to end.
    Floats(Vec<f32>),
    /// Its slices as they were written.
    Undecoded(Arc<Undecoded<Vec<u8>>>),
}

impl Brought {
    /// A payload as its worker wrote it.
    pub(super) fn undecoded(codec: Codec, parts: &[Part], payload: Vec<u8>) -> Self {
        let mut end = 0;
        let places = parts.iter().map(|part| {
            end += part.values as usize;
            end - part.values as usize..end
        });
        let undecoded = Undecoded::new(codec, places.collect(), payload);
        Self::Undecoded(Arc::new(undecoded.expect("what was encoded can be decoded")))
    }
}

impl Pushed for Brought {
    fn floats(&self) -> &[f32] {
        match self {
            Self::Floats(floats) => floats,
            Self::Undecoded(_) => panic!("a push whose values are needed once is not decoded as a whole"),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Floats(floats) => floats.len(),
            Self::Undecoded(undecoded) => undecoded.values(),
        }
    }

    fn source(&self) -> Option<&dyn Source> {
        match self {
            Self::Floats(_) => None,
            Self::Undecoded(undecoded) => Some(&**undecoded),
        }
    }
}
