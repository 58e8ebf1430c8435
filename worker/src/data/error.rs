//! Says why data cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use super::{BYTES_MAX, CLASSES_MAX, GROUPS_MAX};

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DataError {
    #[error("cannot open {}: {source}; data is a folder or a CSV file", path.display())]
    NoSuchPath { path: PathBuf, source: io::Error },
    #[error(
        "no data in {}: neither IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte \
         and t10k-labels-idx1-ubyte, with or without .gz) nor train.csv and test.csv", folder.display()
    )]
    NothingFound { folder: PathBuf },
    #[error("no {sought} in {}; the other files of the data set are there", folder.display())]
    Missing { sought: String, folder: PathBuf },
    #[error("both {first} and {second} in {} could be the {role}; leave one data set per folder", folder.display())]
    Ambiguous { role: &'static str, first: String, second: String, folder: PathBuf },
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is not a sound gzip file: {source}", file.display())]
    Gzip { file: PathBuf, source: io::Error },
    #[error("{} starts with {found:#010x}; IDX {kind} start with {expected:#010x}", file.display())]
    Magic { file: PathBuf, kind: &'static str, found: u32, expected: u32 },
    #[error("{} ends after {found} bytes; its header promises {expected}", file.display())]
    Truncated { file: PathBuf, found: u64, expected: u64 },
    #[error("{} goes on after the {expected} bytes that its header promises", file.display())]
    Trailing { file: PathBuf, expected: u64 },
    #[error("{} has {found} {what}; at most {limit} are possible", file.display())]
    TooMany { file: PathBuf, what: &'static str, found: u64, limit: u64 },
    #[error("{} has more than {BYTES_MAX} bytes", file.display())]
    TooLarge { file: PathBuf },
    #[error("{} holds no {what}", file.display())]
    Empty { file: PathBuf, what: &'static str },
    #[error(
        "{} has {images} images and {} has {labels} labels; there must be one label per image",
        images_file.display(), labels_file.display()
    )]
    Counts { images_file: PathBuf, images: u64, labels_file: PathBuf, labels: u64 },
    #[error(
        "{} has {found} features per example and {} has {expected}; training and test must agree",
        file.display(), train_file.display()
    )]
    FeatureCount { file: PathBuf, found: usize, train_file: PathBuf, expected: usize },
    #[error(
        "{}: label {found} of example {example} (from 0) is out of range; the training labels are 0 to {largest}",
        file.display()
    )]
    LabelRange { file: PathBuf, example: usize, found: u32, largest: u32 },
    #[error("{} line {line}: label {found} does not occur in {}", file.display(), train_file.display())]
    UnknownLabel { file: PathBuf, line: u64, found: String, train_file: PathBuf },
    #[error("{} line {line}: the label is empty", file.display())]
    NoLabel { file: PathBuf, line: u64 },
    #[error(
        "{} line {line}: {found} is one label too many; at most {CLASSES_MAX} classes are possible (are these numbers \
         to be predicted?)", file.display()
    )]
    TooManyClasses { file: PathBuf, line: u64, found: String },
    #[error("{}: column {column} holds the labels, so it cannot say whose an example is", file.display())]
    GroupIsLabel { file: PathBuf, column: String },
    #[error("{} line {line}: column {column} is empty", file.display())]
    NoGroup { file: PathBuf, line: u64, column: String },
    #[error(
        "{} line {line}: {found} is one distinct value of column {column} too many; at most {GROUPS_MAX} clients are \
         possible", file.display()
    )]
    TooManyGroups { file: PathBuf, line: u64, column: String, found: String },
    #[error(
        "{} holds IDX files, which have no column {column}; clients by a column need CSV files", folder.display()
    )]
    NoColumns { folder: PathBuf, column: String },
    #[error("{} has no column {sought}; its columns are {found}", file.display())]
    NoColumn { file: PathBuf, sought: String, found: String },
    #[error("{} has two columns named {column}", file.display())]
    TwoColumns { file: PathBuf, column: String },
    #[error(
        "{} column {position} is {found}, in {} it is {expected}; training and test need the same columns",
        file.display(), train_file.display()
    )]
    Columns { file: PathBuf, position: usize, found: String, train_file: PathBuf, expected: String },
    #[error("{} line {line}, column {column}: {found:?} is not a finite number", file.display())]
    Cell { file: PathBuf, line: u64, column: String, found: String },
    #[error("{} is not a CSV file: {reason}", file.display())]
    Csv { file: PathBuf, reason: String },
    #[error("{} has 1 example; at least 2 are needed to hold one out for the test", file.display())]
    TooFewToHoldOut { file: PathBuf },
    #[error(
        "{sought} examples cannot be held out for validation: {} has {found} training examples; {}",
        source_path.display(),
        if *found < 2 { "at least 2 are needed".to_owned() } else { format!("1 to {} are possible", found - 1) }
    )]
    Validation { sought: u64, found: usize, source_path: PathBuf },
    #[error(
        "model {model} takes {features} features and {classes} classes; the data in {} has {found_features} features \
         and {found_classes} classes", source_path.display()
    )]
    Fit {
        model: String,
        features: usize,
        classes: usize,
        source_path: PathBuf,
        found_features: usize,
        found_classes: usize,
    },
    #[error("a worker needs at least one example; none was dealt to {worker}")]
    NoExamples { worker: windlass_common::ids::WorkerId },
}

impl DataError {
    pub(super) fn missing(sought: &str, folder: &Path) -> Self {
        Self::Missing { sought: sought.to_owned(), folder: folder.to_owned() }
    }
}
