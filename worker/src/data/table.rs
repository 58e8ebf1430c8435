//! Reads data sets from CSV files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use csv::ByteRecord;
use windlass_common::rng::{Purpose, Rng};

use super::source::Source;
use super::{BYTES_MAX, CLASSES_MAX, DataError, Dataset, EXAMPLES_MAX, FEATURES_MAX, Features};

/// One example in this many is held out for the test, as in MNIST.
const HOLD_OUT: usize = 6;
/// The seed of the hold-out. It is fixed, so that every run and every machine is judged by the same examples.
const HOLD_OUT_SEED: u64 = 0;
/// Longest piece of a cell that an error quotes, in characters.
const QUOTE_MAX: usize = 40;

/// Loads training and test examples from two files with the same columns.
pub(super) fn load_pair(
    train: &Path,
    test: &Path,
    label_column: &str,
) -> Result<(Dataset, Dataset), DataError> {
    let train = Table::open(train, label_column)?;
    let test = Table::open(test, label_column)?;
    test.check_columns(&train)?;
    let classes = train.classes();
    let unknown = |label: &Label| DataError::UnknownLabel {
        file: test.file.clone(),
        line: label.first_line,
        found: quote(&label.text),
        train_file: train.file.clone(),
    };
    let mut test_classes = Vec::with_capacity(test.distinct.len());
    for label in &test.distinct {
        test_classes.push(*classes.get(label.text.as_str()).ok_or_else(|| unknown(label))?);
    }
    let train_classes: Vec<u32> = train.distinct.iter().map(|label| classes[label.text.as_str()]).collect();
    let count = classes.len();
    Ok((train.into_dataset(&train_classes, count), test.into_dataset(&test_classes, count)))
}

/// Loads one file and holds out a sixth of it, at least one example, for the test.
pub(super) fn load_one(file: &Path, label_column: &str) -> Result<(Dataset, Dataset), DataError> {
    let table = Table::open(file, label_column)?;
    let examples = table.labels.len();
    if examples < 2 {
        return Err(DataError::TooFewToHoldOut { file: file.to_owned() });
    }
    let classes = table.classes();
    let count = classes.len();
    let class_of: Vec<u32> = table.distinct.iter().map(|label| classes[label.text.as_str()]).collect();

    let mut order: Vec<u32> = (0..examples as u32).collect();
    Rng::new(HOLD_OUT_SEED, Purpose::Partition).shuffle(&mut order);
    let (test, train) = order.split_at_mut((examples / HOLD_OUT).max(1));
    test.sort_unstable();
    train.sort_unstable();
    let part = |indices: &[u32]| {
        let width = table.columns.len();
        let rows = indices.iter().flat_map(|&i| &table.values[i as usize * width..][..width]);
        let labels = indices.iter().map(|&i| class_of[table.labels[i as usize] as usize]).collect();
        Dataset::new(Features::Floats(rows.copied().collect()), labels, count)
    };
    Ok((part(train), part(test)))
}

/// One CSV file, its labels numbered in the order of their first appearance.
#[derive(Debug)]
struct Table {
    file: PathBuf,
    /// Names of all columns but the label.
    columns: Vec<String>,
    /// Row by row.
    values: Vec<f32>,
    /// For each row a place in `distinct`.
    labels: Vec<u32>,
    distinct: Vec<Label>,
}

#[derive(Debug)]
struct Label {
    text: String,
    first_line: u64,
}

impl Table {
    fn open(file: &Path, label_column: &str) -> Result<Self, DataError> {
        Self::read(file, Source::open(file)?, label_column)
    }

    fn read(file: &Path, source: Source<'_>, label_column: &str) -> Result<Self, DataError> {
        let not_csv = |error: csv::Error| csv_error(file, error);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(source.into_reader());
        let header = reader.headers().map_err(not_csv)?.clone();
        let label_place = find_label(file, &header, label_column)?;
        let mut columns: Vec<String> = header.iter().map(str::to_owned).collect();
        columns.remove(label_place);
        if columns.is_empty() {
            return Err(DataError::Empty { file: file.to_owned(), what: "columns beside the labels" });
        }
        let too_many = |what, found, limit| DataError::TooMany { file: file.to_owned(), what, found, limit };
        if columns.len() as u64 > FEATURES_MAX {
            return Err(too_many("columns", columns.len() as u64, FEATURES_MAX));
        }

        let mut table =
            Self { file: file.to_owned(), columns, values: vec![], labels: vec![], distinct: vec![] };
        let mut numbers = HashMap::new();
        let mut record = ByteRecord::new();
        while reader.read_byte_record(&mut record).map_err(not_csv)? {
            let line = record.position().map_or(0, csv::Position::line);
            let examples = table.labels.len() as u64 + 1;
            if examples > EXAMPLES_MAX {
                return Err(too_many("examples", examples, EXAMPLES_MAX));
            }
            if examples * table.columns.len() as u64 * 4 > BYTES_MAX {
                return Err(DataError::TooLarge { file: file.to_owned() });
            }
            for (place, cell) in record.iter().enumerate() {
                if place == label_place {
                    table.add_label(&mut numbers, cell, line)?;
                } else {
                    let value = number(cell).ok_or_else(|| DataError::Cell {
                        file: file.to_owned(),
                        line,
                        column: quote(&header[place]),
                        found: quote(&String::from_utf8_lossy(cell)),
                    })?;
                    table.values.push(value);
                }
            }
        }
        if table.labels.is_empty() {
            return Err(DataError::Empty { file: file.to_owned(), what: "examples" });
        }
        Ok(table)
    }

    fn add_label(
        &mut self,
        numbers: &mut HashMap<Vec<u8>, u32>,
        cell: &[u8],
        line: u64,
    ) -> Result<(), DataError> {
        let cell = cell.trim_ascii();
        if let Some(&known) = numbers.get(cell) {
            self.labels.push(known);
            return Ok(());
        }
        if cell.is_empty() {
            return Err(DataError::NoLabel { file: self.file.clone(), line });
        }
        let text = String::from_utf8_lossy(cell).into_owned();
        if self.distinct.len() == CLASSES_MAX {
            return Err(DataError::TooManyClasses { file: self.file.clone(), line, found: quote(&text) });
        }
        let new = self.distinct.len() as u32;
        numbers.insert(cell.to_owned(), new);
        self.labels.push(new);
        self.distinct.push(Label { text, first_line: line });
        Ok(())
    }

    /// The class of each label: its place among all of them, sorted as whole numbers if all are such, else as words.
    fn classes(&self) -> HashMap<String, u32> {
        let mut sorted: Vec<&str> = self.distinct.iter().map(|label| label.text.as_str()).collect();
        sorted.sort_unstable();
        if sorted.iter().all(|text| text.parse::<i64>().is_ok()) {
            sorted.sort_by_key(|text| text.parse::<i64>().unwrap_or(0));
        }
        sorted.iter().enumerate().map(|(class, &text)| (text.to_owned(), class as u32)).collect()
    }

    fn check_columns(&self, train: &Self) -> Result<(), DataError> {
        if self.columns.len() != train.columns.len() {
            return Err(DataError::FeatureCount {
                file: self.file.clone(),
                found: self.columns.len(),
                train_file: train.file.clone(),
                expected: train.columns.len(),
            });
        }
        match self.columns.iter().zip(&train.columns).position(|(own, other)| own != other) {
            None => Ok(()),
            Some(place) => Err(DataError::Columns {
                file: self.file.clone(),
                position: place + 1,
                found: quote(&self.columns[place]),
                train_file: train.file.clone(),
                expected: quote(&train.columns[place]),
            }),
        }
    }

    fn into_dataset(self, class_of: &[u32], classes: usize) -> Dataset {
        let labels = self.labels.iter().map(|&label| class_of[label as usize]).collect();
        Dataset::new(Features::Floats(self.values), labels, classes)
    }
}

fn find_label(file: &Path, header: &csv::StringRecord, label_column: &str) -> Result<usize, DataError> {
    let mut places = header.iter().enumerate().filter(|(_, name)| *name == label_column);
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => {
            Err(DataError::TwoLabelColumns { file: file.to_owned(), column: label_column.to_owned() })
        }
        (None, _) if header.is_empty() => Err(DataError::Empty { file: file.to_owned(), what: "header row" }),
        (None, _) => {
            let first: Vec<String> = header.iter().take(8).map(quote).collect();
            let more = if header.len() > first.len() { " and more" } else { "" };
            let found = format!("{}{more}", first.join(", "));
            Err(DataError::NoLabelColumn { file: file.to_owned(), sought: label_column.to_owned(), found })
        }
    }
}

fn number(cell: &[u8]) -> Option<f32> {
    let value: f32 = std::str::from_utf8(cell.trim_ascii()).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// The beginning of a text, so that a file of anything at all cannot flood a terminal.
fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn csv_error(file: &Path, error: csv::Error) -> DataError {
    let file = file.to_owned();
    let line = |position: &Option<csv::Position>| position.as_ref().map_or(0, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => DataError::Csv {
            file,
            reason: format!("line {} has {len} cells, the header has {expected_len}", line(pos)),
        },
        csv::ErrorKind::Utf8 { pos, .. } => {
            DataError::Csv { file, reason: format!("line {} is not UTF-8", line(pos)) }
        }
        csv::ErrorKind::Io(source) if source.kind() == std::io::ErrorKind::FileTooLarge => {
            DataError::TooLarge { file }
        }
        _ => DataError::Csv { file, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: impl AsRef<[u8]>) -> Result<Table, DataError> {
        let (name, bytes) = (Path::new("some.csv"), text.as_ref());
        Table::read(name, Source::new(name, bytes, bytes.len() as u64)?, "label")
    }

    fn error(text: impl AsRef<[u8]>) -> String {
        read(text).unwrap_err().to_string()
    }

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn columns_are_read_as_numbers_and_labels() {
        let table = read("\u{feff}a, label ,\"b\"\n1, dog ,-2.5e1\r\n3,cat,4\n5,dog,\"6\"\n").unwrap();
        assert_eq!(table.columns, ["a", "b"]);
        assert_eq!(table.values, [1.0, -25.0, 3.0, 4.0, 5.0, 6.0]);
        let classes = table.classes();
        assert_eq!((classes["cat"], classes["dog"], classes.len()), (0, 1, 2));
        assert_eq!(table.into_dataset(&[1, 0], 2).labels(), [1, 0, 1]);
    }

    #[test]
    fn whole_numbers_are_sorted_as_numbers() {
        let classes = read("label,a\n10,0\n9,0\n-1,0\n").unwrap().classes();
        assert_eq!((classes["-1"], classes["9"], classes["10"]), (0, 1, 2));
        let classes = read("label,a\n10,0\n9,0\nx,0\n").unwrap().classes();
        assert_eq!((classes["10"], classes["9"], classes["x"]), (0, 1, 2));
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_column() {
        assert_eq!(
            error("a,label,b\n1,x,2\n1,x,two\n"),
            "some.csv line 3, column b: \"two\" is not a finite number"
        );
        for bad in ["nan", "inf", "1e99", "", "0x1", "1 2"] {
            let found = error(format!("a,label\n{bad},x\n"));
            assert_eq!(found, format!("some.csv line 2, column a: {bad:?} is not a finite number"));
        }
        assert_eq!(error("a,label\n1,\n"), "some.csv line 2: the label is empty");
        assert_eq!(error("a,b\n1,2\n"), "some.csv has no column label; its columns are a, b");
        assert!(error("a,b,c,d,e,f,g,h,i\n").ends_with("g, h and more"));
        assert_eq!(error("label,a,label\n1,2,3\n"), "some.csv has two columns named label");
        assert_eq!(
            error("a,label\n1,x\n1\n"),
            "some.csv is not a CSV file: line 3 has 1 cells, the header has 2"
        );
        assert_eq!(error("label\nx\n"), "some.csv holds no columns beside the labels");
        assert_eq!(error("a,label\n"), "some.csv holds no examples");
        assert_eq!(error(""), "some.csv holds no header row");
        let long = error(format!("a,label\n{},x\n", "9x".repeat(1000)));
        assert!(long.len() < 150, "{long}");
        assert!(error(b"\xff,label\n1,2\n").contains("not UTF-8"));
    }

    #[test]
    fn a_number_to_be_predicted_is_not_a_class() {
        let rows: String = (0..=CLASSES_MAX).map(|i| format!("0,{i}.5\n")).collect();
        let error = error(format!("a,label\n{rows}"));
        assert!(error.starts_with("some.csv line 65538: 65536.5 is one label too many"), "{error}");
    }

    #[test]
    fn training_and_test_share_columns_and_classes() {
        let folder = tempfile::tempdir().unwrap();
        let train = write(folder.path(), "train.csv", "a,b,label\n1,2,x\n3,4,z\n5,6,y\n");
        let load = |text| load_pair(&train, &write(folder.path(), "test.csv", text), "label");
        let (train_set, test_set) = load("label,a,b\nz,1,2\nx,3,4\n").unwrap();
        assert_eq!((train_set.labels(), test_set.labels()), (&[0, 2, 1][..], &[2, 0][..]));
        assert_eq!((train_set.classes(), test_set.classes()), (3, 3));
        let error = |text| load(text).unwrap_err().to_string();
        let unknown = error("a,b,label\n1,2,x\n1,2,w\n");
        assert!(unknown.contains("test.csv line 3: label w does not occur in"), "{unknown}");
        assert!(error("a,c,label\n1,2,x\n").contains("column 2 is c"));
        assert!(error("a,label\n1,x\n").contains("has 1 features per example"));
    }

    #[test]
    fn one_file_is_cut_in_the_same_way_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let rows: String = (0..60).map(|i| format!("{i},{}\n", i % 3)).collect();
        let file = write(folder.path(), "data.csv", &format!("a,class\n{rows}"));
        let (train, test) = load_one(&file, "class").unwrap();
        assert_eq!((train.len(), test.len()), (50, 10));
        let values = |dataset: &Dataset| {
            let (mut features, mut labels) = (vec![], vec![]);
            let all: Vec<u32> = (0..dataset.len() as u32).collect();
            dataset.gather(&all, &mut features, &mut labels);
            assert!(features.is_sorted());
            assert!(features.iter().zip(&labels).all(|(value, &label)| *value as u32 % 3 == label));
            features
        };
        let mut all = [values(&train), values(&test)].concat();
        all.sort_by(f32::total_cmp);
        assert_eq!(all, (0..60).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(load_one(&file, "class").unwrap(), (train, test));

        let two = write(folder.path(), "two.csv", "a,label\n1,0\n2,1\n");
        let (train, test) = load_one(&two, "label").unwrap();
        assert_eq!((train.len(), test.len()), (1, 1));
        let one = write(folder.path(), "one.csv", "a,label\n1,0\n");
        assert!(load_one(&one, "label").unwrap_err().to_string().contains("at least 2"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_table(text in "[a-c,\"\n0-9.-]{0,60}") {
            if let Ok(table) = read(format!("a,label,b\n{text}")) {
                prop_assert_eq!(table.values.len(), 2 * table.labels.len());
            }
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read([&b"label,a\n"[..], &bytes].concat());
            let _ = read(bytes);
        }
    }
}
