//! Says why bytes are not an encoding of so many values.

/// Why a payload cannot be decoded. Whoever sent it is at fault: encoders never write such bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error("{values} values as {codec} take {expected} bytes; there are {found}")]
    Length { codec: &'static str, values: usize, expected: u64, found: usize },
    #[error(
        "scale {index} has the bits {bits:#010x}; a finite number of at least 0 is possible, or 0x7fc00000 for values \
         that are not finite"
    )]
    Scale { index: usize, bits: u32 },
    #[error("value {index} is encoded as -128; -127 to 127 are possible")]
    Code { index: usize },
    #[error("the bits that fill the last byte are not all 0")]
    Padding,
    #[error("a slice of top-k begins with the byte {found}; 0 (sparse) and 1 (dense) are possible")]
    Form { found: u8 },
    #[error("{found} values are said to be kept of {values}")]
    Count { found: u64, values: usize },
    #[error("the bytes end within what is kept number {number} of {count}")]
    Short { number: u64, count: u64 },
    #[error("the index of what is kept number {number} is beyond {values} values")]
    Index { number: u64, values: usize },
    #[error("an index of the block at value {start} is not above the one before it")]
    Order { start: usize },
    #[error("the next slice of the payload takes {expected} bytes, and {found} are left")]
    Payload { expected: u64, found: usize },
    #[error("{found} bytes are left over after the last index")]
    Trailing { found: usize },
}
