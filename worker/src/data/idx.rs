//! Reads data sets in the IDX format of MNIST.
//!
//! A big-endian magic number (0x0803 for three dimensions of bytes, 0x0801 for one), a big-endian 32-bit size per
//! dimension, then the bytes (Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database").

use std::path::{Path, PathBuf};

use super::source::Source;
use super::{BYTES_MAX, DataError, Dataset, EXAMPLES_MAX, FEATURES_MAX, Features};

/// The four files of a data set.
#[derive(Debug)]
pub(super) struct Files {
    train: Pair,
    test: Pair,
}

#[derive(Debug)]
struct Pair {
    images: PathBuf,
    labels: PathBuf,
}

/// What a file of bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Images,
    Labels,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Labels => "labels",
        }
    }

    fn dimensions(self) -> usize {
        match self {
            Self::Images => 3,
            Self::Labels => 1,
        }
    }

    /// Unsigned bytes (0x08) in that many dimensions.
    fn magic(self) -> u32 {
        0x0800 | self.dimensions() as u32
    }
}

/// The files of the data set in this folder, or nothing if none of them is there.
///
/// They are recognised by what their names contain, so that EMNIST's names are understood as well as MNIST's.
pub(super) fn find(folder: &Path) -> Result<Option<Files>, DataError> {
    let read_error = |source| DataError::Read { file: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        // Some archives unpack into folders with the names of the files. A name that is not Unicode is none of ours.
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();

    let train = |name: &str| name.contains("train");
    let test = |name: &str| !train(name) && (name.contains("t10k") || name.contains("test"));
    let images = |name: &str| name.contains("images") && name.contains("idx3");
    let labels = |name: &str| name.contains("labels") && name.contains("idx1");
    let found = [
        only(folder, &names, "training images", |n| train(n) && images(n))?,
        only(folder, &names, "training labels", |n| train(n) && labels(n))?,
        only(folder, &names, "test images", |n| test(n) && images(n))?,
        only(folder, &names, "test labels", |n| test(n) && labels(n))?,
    ];
    let [train_images, train_labels, test_images, test_labels] = match found {
        [None, None, None, None] => return Ok(None),
        found => found,
    };
    let need = |found: Option<PathBuf>, sought| found.ok_or_else(|| DataError::missing(sought, folder));
    Ok(Some(Files {
        train: Pair {
            images: need(train_images, "train-images-idx3-ubyte or train-images-idx3-ubyte.gz")?,
            labels: need(train_labels, "train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz")?,
        },
        test: Pair {
            images: need(test_images, "t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz")?,
            labels: need(test_labels, "t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz")?,
        },
    }))
}

/// The one name that fits; where a file lies beside its own compressed form, the plain one.
fn only(
    folder: &Path,
    names: &[String],
    role: &'static str,
    fits: impl Fn(&str) -> bool,
) -> Result<Option<PathBuf>, DataError> {
    let mut found: Option<&String> = None;
    for name in names.iter().filter(|name| fits(name)) {
        match found {
            None => found = Some(name),
            // Sorted, the plain name comes right before the other.
            Some(first) if name.strip_suffix(".gz") == Some(first) => {}
            Some(first) => {
                let (first, second) = (first.clone(), name.clone());
                return Err(DataError::Ambiguous { role, first, second, folder: folder.to_owned() });
            }
        }
    }
    Ok(found.map(|name| folder.join(name)))
}

/// Loads training and test examples.
pub(super) fn load(files: &Files) -> Result<(Dataset, Dataset), DataError> {
    let train = load_pair(&files.train)?;
    let test = load_pair(&files.test)?;
    if train.features != test.features {
        return Err(DataError::FeatureCount {
            file: files.test.images.clone(),
            found: test.features,
            train_file: files.train.images.clone(),
            expected: train.features,
        });
    }
    let largest = train.labels.iter().copied().max().unwrap_or(0);
    if let Some(example) = test.labels.iter().position(|&label| label > largest) {
        return Err(DataError::LabelRange {
            file: files.test.labels.clone(),
            example,
            found: u32::from(test.labels[example]),
            largest: u32::from(largest),
        });
    }
    let classes = usize::from(largest) + 1;
    Ok((train.into_dataset(classes), test.into_dataset(classes)))
}

struct Examples {
    pixels: Vec<u8>,
    labels: Vec<u8>,
    features: usize,
}

impl Examples {
    fn into_dataset(self, classes: usize) -> Dataset {
        let labels = self.labels.into_iter().map(u32::from).collect();
        Dataset::new(Features::Bytes(self.pixels), labels, classes)
    }
}

fn load_pair(pair: &Pair) -> Result<Examples, DataError> {
    // The labels come first: they are small, and a wrong pair is found out before the images are read.
    let labels = parse(&pair.labels, Source::open(&pair.labels)?, Kind::Labels)?;
    let images = parse(&pair.images, Source::open(&pair.images)?, Kind::Images)?;
    if images.examples != labels.examples {
        return Err(DataError::Counts {
            images_file: pair.images.clone(),
            images: images.examples,
            labels_file: pair.labels.clone(),
            labels: labels.examples,
        });
    }
    Ok(Examples { pixels: images.bytes, labels: labels.bytes, features: images.features as usize })
}

#[derive(Debug, PartialEq)]
struct Content {
    examples: u64,
    /// Bytes per example.
    features: u64,
    bytes: Vec<u8>,
}

/// Reads a whole file, whose header must account for every byte of it.
fn parse(file: &Path, mut source: Source<'_>, kind: Kind) -> Result<Content, DataError> {
    let owned = || file.to_owned();
    let header_len = 4 + 4 * kind.dimensions() as u64;
    let mut header = Vec::new();
    source.read_up_to(header_len, &mut header)?;
    let mut words = header.chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    let truncated = |found: u64, expected| DataError::Truncated { file: owned(), found, expected };

    // A file too short to have a magic number is truncated; one with another number is something else.
    let magic = words.next().ok_or_else(|| truncated(header.len() as u64, header_len))?;
    if magic != kind.magic() {
        return Err(DataError::Magic {
            file: owned(),
            kind: kind.name(),
            found: magic,
            expected: kind.magic(),
        });
    }
    if (header.len() as u64) < header_len {
        return Err(truncated(header.len() as u64, header_len));
    }
    let examples = words.next().map_or(0, u64::from);
    let features = words.map(u64::from).product::<u64>();
    if examples == 0 || features == 0 {
        let what = if examples == 0 { "examples" } else { "pixels" };
        return Err(DataError::Empty { file: owned(), what });
    }
    let too_many = |what, found, limit| DataError::TooMany { file: owned(), what, found, limit };
    if examples > EXAMPLES_MAX {
        return Err(too_many("examples", examples, EXAMPLES_MAX));
    }
    if features > FEATURES_MAX {
        return Err(too_many("pixels per image", features, FEATURES_MAX));
    }
    // At most 2^32 times 2^20, which fits.
    let payload = examples * features;
    if payload > BYTES_MAX {
        return Err(DataError::TooLarge { file: owned() });
    }

    let mut bytes = Vec::new();
    source.read_up_to(payload, &mut bytes)?;
    if (bytes.len() as u64) < payload {
        return Err(truncated(header_len + bytes.len() as u64, header_len + payload));
    }
    // Reading on also makes gzip compare its checksum.
    let mut rest = Vec::new();
    source.read_up_to(1, &mut rest)?;
    if !rest.is_empty() {
        return Err(DataError::Trailing { file: owned(), expected: header_len + payload });
    }
    Ok(Content { examples, features, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn file(magic: u32, sizes: &[u32], payload: &[u8]) -> Vec<u8> {
        let words = std::iter::once(&magic).chain(sizes);
        words.flat_map(|word| word.to_be_bytes()).chain(payload.iter().copied()).collect()
    }

    fn images() -> Vec<u8> {
        file(0x0803, &[3, 2, 2], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    }

    fn labels() -> Vec<u8> {
        file(0x0801, &[3], &[0, 2, 1])
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn parse_bytes(bytes: &[u8], kind: Kind) -> Result<Content, DataError> {
        let name = Path::new("some-file");
        parse(name, Source::new(name, bytes, bytes.len() as u64)?, kind)
    }

    fn error(bytes: &[u8]) -> String {
        parse_bytes(bytes, Kind::Images).unwrap_err().to_string()
    }

    #[test]
    fn a_sound_file_is_read_compressed_or_not() {
        let expected = Content { examples: 3, features: 4, bytes: (1..=12).collect() };
        assert_eq!(parse_bytes(&images(), Kind::Images).unwrap(), expected);
        assert_eq!(parse_bytes(&gzip(&images()), Kind::Images).unwrap(), expected);
        let expected = Content { examples: 3, features: 1, bytes: vec![0, 2, 1] };
        assert_eq!(parse_bytes(&labels(), Kind::Labels).unwrap(), expected);
        // Two gzip members are one file.
        let two = [gzip(&labels()[..5]), gzip(&labels()[5..])].concat();
        assert_eq!(parse_bytes(&two, Kind::Labels).unwrap(), expected);
    }

    #[test]
    fn the_nearest_malformed_kin_are_refused_with_what_was_found() {
        assert_eq!(error(&labels()), "some-file starts with 0x00000801; IDX images start with 0x00000803");
        assert_eq!(error(&images()[..27]), "some-file ends after 27 bytes; its header promises 28");
        assert_eq!(error(&images()[..15]), "some-file ends after 15 bytes; its header promises 16");
        assert_eq!(error(&[]), "some-file ends after 0 bytes; its header promises 16");
        let longer = [images(), vec![0]].concat();
        assert_eq!(error(&longer), "some-file goes on after the 28 bytes that its header promises");
        assert_eq!(error(&gzip(&longer)), error(&longer));
        assert_eq!(error(&gzip(&images()[..27])), error(&images()[..27]));
        assert_eq!(error(&file(0x0803, &[0, 2, 2], &[])), "some-file holds no examples");
        assert_eq!(error(&file(0x0803, &[1, 2, 0], &[])), "some-file holds no pixels");
        assert!(
            error(&file(0x0803, &[1, 1025, 1024], &[])).contains("1049600 pixels per image; at most 1048576")
        );
        assert!(error(&file(0x0803, &[u32::MAX; 3], &[])).contains("pixels per image"));
        assert!(error(&file(0x0803, &[u32::MAX, 1024, 1024], &[])).contains("more than 17179869184 bytes"));
        // A promise of 16 GiB costs no memory.
        assert!(error(&file(0x0803, &[1 << 24, 32, 32], &[1])).contains("ends after 17 bytes"));
        assert!(error(&gzip(&file(0x0803, &[1 << 24, 32, 32], &[1]))).contains("ends after 17 bytes"));
    }

    #[test]
    fn damage_to_a_compressed_file_is_found() {
        let sound = gzip(&images());
        for cut in 2..sound.len() {
            assert!(error(&sound[..cut]).contains("not a sound gzip file"), "cut at {cut}");
        }
        // The checksum, in the last eight bytes together with the length.
        let mut damaged = sound.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(error(&damaged).contains("not a sound gzip file"));
        assert!(error(&[sound, vec![0x55; 8]].concat()).contains("not a sound gzip file"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_whole_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for kind in [Kind::Images, Kind::Labels] {
                if let Ok(content) = parse_bytes(&bytes, kind) {
                    prop_assert_eq!(content.bytes.len() as u64, content.examples * content.features);
                }
            }
        }

        #[test]
        fn a_mutated_file_is_an_error_or_another_file_of_that_size(
            place in 0_usize..28, byte: u8, compressed: bool, cut in 0_usize..40,
        ) {
            let mut bytes = images();
            bytes[place] = byte;
            if compressed {
                bytes = gzip(&bytes);
            }
            bytes.truncate(cut.max(1) + bytes.len().saturating_sub(20));
            if let Ok(content) = parse_bytes(&bytes, Kind::Images) {
                prop_assert_eq!(content.bytes.len(), 12);
                prop_assert_eq!(content.examples * content.features, 12);
            }
        }

        #[test]
        fn a_mutated_compressed_file_does_not_panic(place in 0_usize..48, byte: u8) {
            let mut bytes = gzip(&images());
            let place = place % bytes.len();
            bytes[place] = byte;
            let _ = parse_bytes(&bytes, Kind::Images);
        }
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn load_folder(files: &[(&str, Vec<u8>)]) -> Result<(Dataset, Dataset), String> {
        let folder = folder(files);
        let found = find(folder.path()).map_err(|e| e.to_string())?.ok_or("nothing")?;
        load(&found).map_err(|e| e.to_string())
    }

    #[test]
    fn names_of_several_kinds_are_understood() {
        for prefix in ["t10k", "test", "emnist-digits-test"] {
            for ending in ["", ".gz"] {
                let test_images = format!("{prefix}-images-idx3-ubyte{ending}");
                let test_labels = format!("{prefix}-labels-idx1-ubyte");
                let (train, test) = load_folder(&[
                    ("emnist-digits-train-images-idx3-ubyte", gzip(&images())),
                    ("train-labels.idx1-ubyte", labels()),
                    (&test_images, images()),
                    (&test_labels, labels()),
                    ("README.md", vec![]),
                ])
                .unwrap();
                assert_eq!(train, test);
                assert_eq!((train.len(), train.feature_count(), train.classes()), (3, 4, 3));
            }
        }
    }

    fn four() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("train-images-idx3-ubyte", images()),
            ("train-labels-idx1-ubyte", labels()),
            ("t10k-images-idx3-ubyte", images()),
            ("t10k-labels-idx1-ubyte", labels()),
        ]
    }

    #[test]
    fn a_folder_is_not_taken_for_a_file() {
        let folder = folder(&four());
        std::fs::create_dir(folder.path().join("train-images.idx3-ubyte")).unwrap();
        assert!(load(&find(folder.path()).unwrap().unwrap()).is_ok());
    }

    #[test]
    fn a_missing_or_doubtful_file_is_named() {
        for missing in 0..4 {
            let mut files = four();
            let (name, _) = files.remove(missing);
            assert!(load_folder(&files).unwrap_err().starts_with(&format!("no {name} or {name}.gz in ")));
        }
        assert_eq!(load_folder(&[]).unwrap_err(), "nothing");
        let mut files = four();
        files.push(("train-images-idx3-ubyte.gz", vec![]));
        assert!(load_folder(&files).is_ok(), "the plain file is taken");
        files.push(("other-train-images-idx3-ubyte", images()));
        let error = load_folder(&files).unwrap_err();
        assert!(
            error.contains("other-train-images") && error.contains("could be the training images"),
            "{error}"
        );
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let with = |place: usize, bytes| {
            let mut files = four();
            files[place].1 = bytes;
            load_folder(&files).unwrap_err()
        };
        assert!(with(1, file(0x0801, &[2], &[0, 1])).contains("has 3 images"));
        assert!(with(2, file(0x0803, &[3, 1, 2], &[0; 6])).contains("has 2 features per example"));
        let error = with(3, file(0x0801, &[3], &[0, 1, 3]));
        assert!(error.contains("label 3 of example 2 (from 0) is out of range"), "{error}");
        assert!(error.contains("training labels are 0 to 2"), "{error}");
    }
}
