//! Holds the examples of a run: loaded from files, dealt to clients, and streamed to workers in a seeded order.

mod early;
mod error;
mod evaluate;
mod gathered;
mod idx;
mod owned;
pub mod partition;
mod planned;
mod source;
mod split;
mod stream;
mod table;
mod words;

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

pub(crate) use early::{Early, load_begun};
pub use error::DataError;
pub use evaluate::{check_fit, score};
pub use gathered::Gathered;
pub use owned::Owned;
pub use partition::{FeatureNoise, deal_iid};
pub use planned::{dealt, load_as, load_for, owned};
pub use stream::ExampleStream;

/// Most examples of one part (training or test); their numbers are 32 bits wide.
pub const EXAMPLES_MAX: u64 = u32::MAX as u64;
/// Most features of one example.
pub const FEATURES_MAX: u64 = 1 << 20;
/// Most classes.
pub const CLASSES_MAX: usize = 65_536;
/// Most distinct values of a column that says whose an example is.
pub const GROUPS_MAX: usize = 1 << 20;
/// Most bytes of one file, inflated, and of one part's features in memory (16 GiB).
pub const BYTES_MAX: u64 = 1 << 34;
/// The column of a CSV file that holds the labels, unless another is named.
pub const LABEL_COLUMN: &str = "label";

/// The features of all examples, end to end.
#[derive(Clone, Debug, PartialEq)]
pub enum Features {
    /// Pixels, which mean value / 255. They stay bytes in memory, a quarter of what 32-bit values would take.
    Bytes(Vec<u8>),
    /// Values that mean themselves.
    Floats(Vec<f32>),
}

impl Features {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }
}

/// Whose each example is, as a CSV column says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The column's name.
    pub column: String,
    /// For each example the number of its group.
    pub of_example: Vec<u32>,
    /// The column's distinct values, sorted; each has an example.
    pub names: Vec<String>,
}

/// Examples with their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    features: Features,
    labels: Vec<u32>,
    feature_count: usize,
    classes: usize,
    groups: Option<Groups>,
}

impl Dataset {
    /// Examples with `features.len() / labels.len()` features each.
    ///
    /// # Panics
    /// If there is no example or no feature, the features do not divide evenly, or a label is not below `classes`.
    pub fn new(features: Features, labels: Vec<u32>, classes: usize) -> Self {
        assert!(!labels.is_empty() && features.len() > 0, "a data set has examples with features");
        assert!(features.len().is_multiple_of(labels.len()), "every example has the same features");
        assert!(
            labels.iter().all(|&label| (label as usize) < classes),
            "labels are below the number of classes"
        );
        let feature_count = features.len() / labels.len();
        Self { features, labels, feature_count, classes, groups: None }
    }

    /// The same examples, belonging to these groups.
    ///
    /// # Panics
    /// If not every example has a group that has a name.
    #[must_use]
    pub fn with_groups(self, groups: Groups) -> Self {
        assert_eq!(groups.of_example.len(), self.len(), "every example has a group");
        let names = groups.names.len();
        assert!(groups.of_example.iter().all(|&group| (group as usize) < names), "every group has a name");
        Self { groups: Some(groups), ..self }
    }

    /// Whose each example is, if a column that says so was loaded; test examples never have it.
    pub fn groups(&self) -> Option<&Groups> {
        self.groups.as_ref()
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never true: loading refuses a file without examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one example.
    pub fn feature_count(&self) -> usize {
        self.feature_count
    }

    /// Labels are 0 to classes - 1.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The labels of all examples.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Replaces what was gathered by these examples, as they are.
    ///
    /// # Panics
    /// If there is no example of one of these numbers.
    pub fn gather(&self, indices: &[u32], gathered: &mut Gathered) {
        let Gathered { bytes, floats, labels } = gathered.emptied();
        let width = self.feature_count;
        let ranges = indices.iter().map(|&index| index as usize * width..(index as usize + 1) * width);
        match &self.features {
            Features::Bytes(values) => {
                touch(ranges.clone().map(|range| &values[range]));
                ranges.for_each(|range| bytes.extend_from_slice(&values[range]));
            }
            Features::Floats(values) => ranges.for_each(|range| floats.extend_from_slice(&values[range])),
        }
        labels.extend(indices.iter().map(|&index| self.labels[index as usize]));
    }

    fn hash(&self, hash: &mut Xxh3) {
        for size in [self.len(), self.feature_count, self.classes] {
            hash.update(&(size as u64).to_le_bytes());
        }
        match &self.features {
            Features::Bytes(values) => {
                hash.update(b"bytes");
                hash.update(values);
            }
            Features::Floats(values) => {
                hash.update(b"float");
                hash_words(hash, values, |value| value.to_le_bytes());
            }
        }
        hash_words(hash, &self.labels, |label| label.to_le_bytes());
        let Some(groups) = &self.groups else { return };
        hash.update(b"group");
        hash_words(hash, &groups.of_example, |group| group.to_le_bytes());
        for name in &groups.names {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
    }
}

/// Reads a byte of each cache line. The rows lie anywhere in memory: so many of them are on their way at once, where
/// copying one after the other would wait for each.
fn touch<'a>(rows: impl Iterator<Item = &'a [u8]>) {
    const LINE: usize = 64;
    let bytes = rows.flat_map(|row| row.iter().step_by(LINE));
    std::hint::black_box(bytes.fold(0, |all, byte| all ^ byte));
}

fn hash_words<T: Copy>(hash: &mut Xxh3, words: &[T], bytes: impl Fn(T) -> [u8; 4]) {
    let mut buffer = [[0; 4]; 256];
    for chunk in words.chunks(buffer.len()) {
        for (bytes_of_word, &word) in buffer.iter_mut().zip(chunk) {
            *bytes_of_word = bytes(word);
        }
        hash.update(buffer[..chunk.len()].as_flattened());
    }
}

/// What a run trains on, and what it is judged by.
#[derive(Clone, Debug)]
pub struct Data {
    /// The examples to learn from.
    pub train: Dataset,
    /// The examples held out.
    pub test: Dataset,
    /// The folder or file they were loaded from.
    pub source: PathBuf,
}

impl Data {
    /// A number that two machines can compare to see whether they hold the same data: the XXH3 of sizes, features and
    /// labels, independent of where they were loaded from.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.train.hash(&mut hash);
        self.test.hash(&mut hash);
        hash.digest()
    }
}

/// Loads a data set; the labels of CSV files are in the column `label`.
///
/// - A folder with four IDX files, gzip or not: images and labels, training (`train` in the name) and test (`t10k` or
///   `test`), for example `train-images-idx3-ubyte.gz` or `emnist-digits-test-labels-idx1-ubyte`.
/// - A folder with `train.csv` and `test.csv`.
/// - One CSV file, of which one example in six is held out for the test: the first sixth of a permutation that
///   depends on nothing but the number of examples. Both parts keep the order of the file.
///
/// CSV files begin with a row of column names; all columns but the label are numbers, taken as they are. Labels are
/// words or whole numbers; sorted, they become the classes 0, 1, 2 and so on.
///
/// # Errors
/// Names the file at fault, what was found there and what would be right.
pub fn load(path: &Path) -> Result<Data, DataError> {
    load_with_label_column(path, LABEL_COLUMN)
}

/// Like [`load`], with the labels of CSV files in the column of this name.
///
/// # Errors
/// Names the file at fault, what was found there and what would be right.
pub fn load_with_label_column(path: &Path, label_column: &str) -> Result<Data, DataError> {
    load_with_columns(path, label_column, None)
}

/// Like [`load_with_label_column`], with a column of CSV files that says whose each training example is.
///
/// That column holds words or whole numbers and is not a feature; the training examples get their [`Groups`] from it.
/// A test file may do without it.
///
/// # Errors
/// Names the file at fault, what was found there and what would be right. IDX files have no such column.
pub fn load_with_columns(
    path: &Path,
    label_column: &str,
    group_column: Option<&str>,
) -> Result<Data, DataError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| DataError::NoSuchPath { path: path.to_owned(), source })?;
    let columns = table::Columns { label: label_column, group: group_column };
    let (train, test) = if !metadata.is_dir() {
        table::load_one(path, columns)?
    } else if let Some(files) = idx::find(path)? {
        if let Some(column) = group_column {
            return Err(DataError::NoColumns { folder: path.to_owned(), column: column.to_owned() });
        }
        idx::load(&files)?
    } else {
        let (train, test) = (path.join("train.csv"), path.join("test.csv"));
        match (train.is_file(), test.is_file()) {
            (true, true) => table::load_pair(&train, &test, columns)?,
            (true, false) => return Err(DataError::missing("test.csv", path)),
            (false, true) => return Err(DataError::missing("train.csv", path)),
            (false, false) => return Err(DataError::NothingFound { folder: path.to_owned() }),
        }
    };
    Ok(Data { train, test, source: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mnist");

    #[test]
    fn mnist_is_loaded_as_it_is() {
        let data = load(Path::new(MNIST)).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (60_000, 10_000));
        assert_eq!((data.train.feature_count(), data.train.classes()), (784, 10));
        assert_eq!((data.test.feature_count(), data.test.classes()), (784, 10));
        assert_eq!(data.train.labels()[..10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]);
        assert_eq!(data.test.labels()[..5], [7, 2, 1, 0, 4]);
        // Sums of all pixels, as known from their mean of 33.318 and 33.791.
        let sum = |dataset: &Dataset| match &dataset.features {
            Features::Bytes(pixels) => pixels.iter().map(|&p| u64::from(p)).sum::<u64>(),
            Features::Floats(_) => unreachable!(),
        };
        assert_eq!((sum(&data.train) as f64 / 47.04e6 * 1e3).round(), 33_318.0);
        assert_eq!((sum(&data.test) as f64 / 7.84e6 * 1e3).round(), 33_791.0);
        let again = load(Path::new(MNIST)).unwrap();
        assert_eq!(data.fingerprint(), again.fingerprint());
    }

    fn bytes() -> Dataset {
        Dataset::new(Features::Bytes(vec![0, 51, 255, 1, 2, 3]), vec![1, 0, 2], 3)
    }

    #[test]
    fn what_is_gathered_is_as_it_was() {
        let floats = Dataset::new(Features::Floats(vec![-1.5, 300.0]), vec![0, 1], 2);
        // Nothing is left of what was there before, also of another kind.
        let mut gathered = Gathered { bytes: vec![9; 100], floats: vec![9.0; 100], labels: vec![7; 100] };
        for _ in 0..2 {
            bytes().gather(&[1, 0, 1], &mut gathered);
            let batch = gathered.batch();
            let models::Features::Bytes(features) = batch.features else { panic!("{batch:?}") };
            assert_eq!(features, ndarray::array![[255, 1], [0, 51], [255, 1]]);
            assert_eq!(batch.labels, [0, 1, 0]);
            floats.gather(&[1, 0], &mut gathered);
            let batch = gathered.batch();
            let models::Features::Floats(features) = batch.features else { panic!("{batch:?}") };
            assert_eq!(features, ndarray::array![[300.0], [-1.5]]);
            assert_eq!(batch.labels, [1, 0]);
        }
        bytes().gather(&[], &mut gathered);
        assert!(gathered.batch().is_empty());
    }

    #[test]
    fn a_fingerprint_tells_any_two_data_sets_apart() {
        let of =
            |train: Dataset, test: Dataset| Data { train, test, source: PathBuf::from("x") }.fingerprint();
        let make = |features: &[u8], labels: &[u32], classes| {
            Dataset::new(Features::Bytes(features.to_vec()), labels.to_vec(), classes)
        };
        let floats = |features: &[f32]| Dataset::new(Features::Floats(features.to_vec()), vec![1, 0, 2], 3);
        let grouped = |groups: &[u32], names: [&str; 2]| {
            let (column, names) = ("writer".to_owned(), names.map(str::to_owned).to_vec());
            bytes().with_groups(Groups { column, of_example: groups.to_vec(), names })
        };
        let mut prints = vec![
            of(bytes(), bytes()),
            of(make(&[0, 51, 255, 1, 2, 4], &[1, 0, 2], 3), bytes()),
            of(make(&[0, 51, 255, 1, 2, 3], &[1, 0, 1], 3), bytes()),
            of(make(&[0, 51, 255, 1, 2, 3], &[1, 0, 2], 4), bytes()),
            of(make(&[0, 51, 255], &[1, 0, 2], 3), bytes()),
            of(bytes(), make(&[0, 51, 255], &[1, 0, 2], 3)),
            of(floats(&[0.0; 3]), bytes()),
            of(floats(&[0.0, 0.0, -0.0]), bytes()),
            of(grouped(&[0, 1, 0], ["v", "w"]), bytes()),
            of(grouped(&[0, 1, 1], ["v", "w"]), bytes()),
            of(grouped(&[0, 1, 0], ["v", "u"]), bytes()),
        ];
        assert_eq!(prints[0], of(bytes(), bytes()));
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 11);
    }

    #[test]
    fn a_long_list_is_hashed_as_one() {
        let words: Vec<u32> = (0..1000).collect();
        let (mut parts, mut whole) = (Xxh3::new(), Xxh3::new());
        hash_words(&mut parts, &words, |w| w.to_le_bytes());
        whole.update(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(parts.digest(), whole.digest());
    }

    #[test]
    fn what_cannot_be_loaded_is_said_with_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| load(path).unwrap_err().to_string();
        assert!(error(&folder.path().join("absent")).contains("absent"));
        let nothing = error(folder.path());
        assert!(nothing.contains("train-images-idx3-ubyte") && nothing.contains("train.csv"), "{nothing}");
        std::fs::write(folder.path().join("train.csv"), "a,label\n1,2\n").unwrap();
        assert!(error(folder.path()).starts_with("no test.csv in "));
        std::fs::rename(folder.path().join("train.csv"), folder.path().join("test.csv")).unwrap();
        assert!(error(folder.path()).starts_with("no train.csv in "));
        let columns =
            load_with_columns(Path::new(MNIST), LABEL_COLUMN, Some("writer")).unwrap_err().to_string();
        assert!(columns.contains("mnist holds IDX files, which have no column writer; "), "{columns}");
    }
}
