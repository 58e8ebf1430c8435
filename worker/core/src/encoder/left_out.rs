//! Holds what a codec has left out of all values: as floats, or in half as many bytes where the codec writes blocks.

use std::ops::Range;

use windlass_common::codec::{Codec, Leftovers, LeftoversMut};
use windlass_common::floats::{Floats, add};

use super::places::{Piece, Places};

/// What is left out of each value of a model.
#[derive(Clone, Debug)]
pub(super) enum LeftOut {
    Floats(Floats),
    /// As the codec tells it, if it writes a part of the values at a time.
    Blocks(Leftovers),
}

impl LeftOut {
    /// Nothing yet; of a codec without bias nothing ever is.
    pub(super) fn nothing(codec: Codec, places: &Places) -> Self {
        match (codec.is_biased(), codec.is_narrow()) {
            (false, _) => Self::Floats(Floats::default()),
            (true, false) => Self::Floats(Floats::zeros(places.values())),
            (true, true) => Self::Blocks(Leftovers::zeros(places.blocks())),
        }
    }

    /// Whether this can become what a codec leaves out next.
    pub(super) fn is_as_told_by(&self, codec: Codec) -> bool {
        matches!(self, Self::Blocks(_)) == (codec.is_biased() && codec.is_narrow())
    }

    /// Adds it to values of a piece that lie there in the flat buffer.
    pub(super) fn add_to(&self, piece: &Piece, flat: Range<usize>, values: &mut [f32]) {
        match self {
            Self::Floats(floats) => add(values, &floats[flat]),
            Self::Blocks(blocks) => blocks.add_to(piece.blocks(&flat).start, values),
        }
    }

    /// What of it belongs to a piece.
    pub(super) fn of(&self, piece: &Piece) -> Vec<f32> {
        let mut values = vec![0.0; piece.flat.len()];
        self.add_to(piece, piece.flat.clone(), &mut values);
        values
    }

    /// Where a codec tells what it leaves out of values of a piece, if it does so by blocks.
    pub(super) fn blocks(&mut self, piece: &Piece, flat: &Range<usize>) -> Option<LeftoversMut<'_>> {
        match self {
            Self::Floats(_) => None,
            Self::Blocks(blocks) => Some(blocks.of(piece.blocks(flat))),
        }
    }

    /// All of it as floats from now on.
    pub(super) fn floats(&mut self, places: &Places) -> &mut Floats {
        if let Self::Blocks(_) = self {
            let mut floats = Floats::zeros(places.values());
            for piece in places.all() {
                self.add_to(piece, piece.flat.clone(), &mut floats[piece.flat.clone()]);
            }
            *self = Self::Floats(floats);
        }
        match self {
            Self::Floats(floats) => floats,
            Self::Blocks(_) => unreachable!("they have become floats"),
        }
    }
}
