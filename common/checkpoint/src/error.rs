//! Says what can be wrong with a store and with a checkpoint in it.

use std::io;

/// Why a store did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file is not there.
    #[error("{place} has no file {name}")]
    Missing {
        /// The store.
        place: String,
        /// The file asked for.
        name: String,
    },
    /// No store has a file of this name.
    #[error(
        "{name:?} is not a file's name; right is FOLDER/FILE, each of letters, digits, '-', '_' and '.', not first"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// The disk or the service refused.
    #[error("could not {doing} {what}: {why}")]
    Failed {
        /// What was tried, such as `write`.
        doing: &'static str,
        /// The file or place.
        what: String,
        /// What kind of failure it is, so that a full disk can be told apart.
        kind: io::ErrorKind,
        /// The words of the system.
        why: String,
    },
    /// The location cannot be opened.
    #[error("{location} cannot hold checkpoints: {why}")]
    Location {
        /// What was given.
        location: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// What would be written could not be read back, so that it was not written.
    #[error("{name} was not written: {why}")]
    Unsound {
        /// The file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    pub(crate) fn failed(doing: &'static str, what: impl Into<String>, error: &io::Error) -> Self {
        Self::Failed { doing, what: what.into(), kind: error.kind(), why: error.to_string() }
    }
}

/// Why a checkpoint is not to be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A file could not be read, so that nothing is known of it.
    #[error(transparent)]
    Unread(StoreError),
    /// A file is not there.
    #[error("{file} is missing")]
    Missing {
        /// The file.
        file: String,
    },
    /// A file was cut or has grown.
    #[error("{file} has {found} bytes, right are {right}")]
    Length {
        /// The file.
        file: String,
        /// Its bytes.
        found: u64,
        /// The bytes it was written with.
        right: u64,
    },
    /// A file's bytes have changed.
    #[error("{file} has the checksum {found}, right is {right}")]
    Checksum {
        /// The file.
        file: String,
        /// XXH3 of its bytes, 128 bits in hexadecimal.
        found: String,
        /// That of the bytes it was written with.
        right: String,
    },
    /// A file is whole, but not what it should be.
    #[error("{file}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// What was found and what would be right.
        why: String,
    },
    /// No slice holds these values.
    #[error("{file}: nothing holds the values {start}..{end} of variable {variable}")]
    Gap {
        /// The manifest.
        file: String,
        /// The variable.
        variable: String,
        /// The first value that is missing.
        start: u64,
        /// The value after the last that is missing.
        end: u64,
    },
    /// Two slices hold the same values.
    #[error("{file}: two slices hold the values {start}..{end} of variable {variable}")]
    Overlap {
        /// The manifest.
        file: String,
        /// The variable.
        variable: String,
        /// The first value that is there twice.
        start: u64,
        /// The value after the last that is there twice.
        end: u64,
    },
}

impl Damage {
    /// What reading this file failed with.
    pub(crate) fn of_read(file: &str, error: StoreError) -> Self {
        match error {
            StoreError::Missing { .. } => Self::Missing { file: file.to_owned() },
            other => Self::Unread(other),
        }
    }

    pub(crate) fn malformed(file: &str, why: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_owned(), why: why.into() }
    }
}
