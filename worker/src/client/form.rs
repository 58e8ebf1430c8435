//! Tells how the values in an answer are written, and applies patches to values at hand.

use windlass_common::codec::{CodecError, Patch};
use windlass_common::ids::Version;
use windlass_common::wire::{Codec, Part, Values};

/// How each slice of an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its values, as this codec writes them.
    Values(Codec),
    /// So many patches to those at hand, one for each version since.
    Patches(Patch, u64),
}

impl Form {
    /// The form of an answer to whoever has asked for so many slices and has this version of them.
    ///
    /// # Errors
    /// Says what is wrong with its slices or its length.
    pub(crate) fn of(values: &Values, asked: usize, have: Option<Version>) -> Result<Self, String> {
        let slices = values.parts.iter().map(|part| part.values);
        let mut form = Self::Values(values.codec);
        if let Some(patch) = Patch::of(values.codec) {
            let behind = have.and_then(|have| values.version.0.checked_sub(have.0));
            let found = values.parts.len();
            // All, or nothing where nothing has changed: those that are left out would be of another version than the others.
            if found != asked && (found > 0 || behind != Some(0)) {
                return Err(format!("{found} slices of {asked} that were asked for"));
            }
            let (whole, _) = Codec::F32.payload_bytes(slices.clone());
            form = match behind.filter(|_| values.payload_bytes < whole) {
                Some(behind) => Self::Patches(patch, behind),
                None => Self::Values(Codec::F32),
            };
        }
        let bytes = slices.map(|slice| form.bytes(slice)).fold(0, u64::saturating_add);
        match bytes == values.payload_bytes {
            true => Ok(form),
            false => Err(format!("a payload of {} bytes for {bytes} bytes of slices", values.payload_bytes)),
        }
    }

    /// Bytes of a slice of so many values.
    fn bytes(self, values: u64) -> u64 {
        match self {
            Self::Values(codec) => codec.payload_bytes([values]).0,
            Self::Patches(patch, count) => patch.bytes(values).saturating_mul(count),
        }
    }

    /// Bytes of a slice that has passed [`of`](Self::of), or is part of what has.
    ///
    /// # Panics
    /// If they are more than fit into memory.
    pub(crate) fn bytes_of(self, part: &Part) -> usize {
        usize::try_from(self.bytes(part.values)).expect("what comes takes no more than the values")
    }
}

/// Whether these are the patches of a slice, one after the other.
///
/// # Errors
/// Says what is wrong with the first that is none.
pub(crate) fn check(patch: Patch, bytes: &[u8], values: usize) -> Result<(), CodecError> {
    each(patch, bytes, values).try_for_each(|bytes| patch.check(bytes, values))
}

/// Brings a slice to the version that its patches lead to.
///
/// # Panics
/// If they have not passed [`check`].
pub(crate) fn apply(patch: Patch, bytes: &[u8], slice: &mut [f32]) {
    for bytes in each(patch, bytes, slice.len()) {
        patch.apply(bytes, slice).expect("patches are checked when they have come");
    }
}

fn each(patch: Patch, bytes: &[u8], values: usize) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(usize::try_from(patch.bytes(values as u64)).unwrap_or(usize::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::{Examples, Step};

    use super::*;

    /// An answer of slices with 64 and 10 values, of which a patch has 10 bytes.
    fn values(codec: &str, version: u64, parts: usize, payload_bytes: u64) -> Values {
        let parts = [Part { slice: 3, values: 64 }, Part { slice: 5, values: 10 }][..parts].to_vec();
        let (step, version, codec) = (Step(9), Version(version), codec.parse().unwrap());
        let (examples, clients) = (Examples(0), Vec::new());
        Values { step, version, examples, pushes: 0, at_us: 0, clients, codec, parts, payload_bytes }
    }

    #[test]
    fn patches_are_told_from_values_by_their_length() {
        let codec = "topk:2%".parse().unwrap();
        let patch = Patch::of(codec).unwrap();
        let of = |version, parts, bytes, have: Option<u64>| {
            Form::of(&values("topk:2%", version, parts, bytes), 2, have.map(Version))
        };
        for have in [None, Some(0), Some(6), Some(7), Some(8)] {
            assert_eq!(of(7, 2, 4 * 74, have), Ok(Form::Values(Codec::F32)), "{have:?}");
        }
        assert_eq!(of(7, 2, 10, Some(6)), Ok(Form::Patches(patch, 1)));
        assert_eq!(of(7, 2, 30, Some(4)), Ok(Form::Patches(patch, 3)));
        assert_eq!(of(7, 0, 0, Some(7)), Ok(Form::Values(Codec::F32)));
        // Too few and too many patches, or to nothing that is at hand; slices that are missing.
        for (version, parts, bytes, have) in [
            (7, 2, 10, Some(5)),
            (7, 2, 20, Some(6)),
            (7, 2, 10, None),
            (7, 2, 10, Some(8)),
            (7, 2, 0, Some(6)),
            (7, 2, 300, Some(0)),
            (7, 1, 5, Some(6)),
            (7, 1, 256, Some(6)),
            (7, 0, 0, Some(6)),
            (7, 0, 0, None),
        ] {
            assert!(of(version, parts, bytes, have).is_err(), "{version} {parts} {bytes} {have:?}");
        }
        assert_eq!(Form::of(&values("bf16", 7, 1, 128), 2, Some(Version(6))), Ok(Form::Values(Codec::Bf16)));
        assert!(Form::of(&values("bf16", 7, 1, 129), 2, None).is_err());
    }

    #[test]
    fn patches_are_applied_in_their_order() {
        let patch = Patch::of("topk:2%".parse().unwrap()).unwrap();
        let (mut reference, mut bytes) = (vec![0.0; 74], Vec::new());
        for version in 1..4 {
            let values: Vec<f32> = (0..74).map(|i| if i % 64 == 3 { version as f32 } else { 0.0 }).collect();
            patch.write(&values, &mut reference, &mut bytes);
        }
        let mut slice = vec![0.0; 74];
        assert_eq!(check(patch, &bytes, 74), Ok(()));
        assert!(check(patch, &bytes[1..], 74).is_err());
        apply(patch, &bytes, &mut slice);
        assert_eq!((slice[3], slice[67]), (3.0, 3.0));
        assert_eq!(slice, reference);
    }
}
