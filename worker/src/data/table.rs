//! Reads data sets from CSV files.

use std::path::{Path, PathBuf};

use csv::ByteRecord;

use super::source::Source;
use super::split::hold_out;
use super::words::{Refused, Word, Words};
use super::{
    BYTES_MAX, CLASSES_MAX, DataError, Dataset, EXAMPLES_MAX, FEATURES_MAX, Features, GROUPS_MAX, Groups,
};

/// One example in this many is held out for the test, as in MNIST.
const HOLD_OUT: usize = 6;
/// Longest piece of a cell that an error quotes, in characters.
const QUOTE_MAX: usize = 40;

/// The names of the columns that are not features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    pub(super) label: &'a str,
    /// The column that says whose a training example is.
    pub(super) group: Option<&'a str>,
}

/// What becomes of the group column.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GroupUse {
    /// It must be there, and is read.
    Read,
    /// It may be there, and is left out: only training examples have an owner.
    LeaveOut,
}

/// Loads training and test examples from two files with the same columns.
pub(super) fn load_pair(
    train: &Path,
    test: &Path,
    columns: Columns<'_>,
) -> Result<(Dataset, Dataset), DataError> {
    let train = Table::open(train, columns, GroupUse::Read)?;
    let test = Table::open(test, columns, GroupUse::LeaveOut)?;
    test.check_columns(&train)?;
    let classes = train.labels.ranks();
    let unknown = |label: &Word| DataError::UnknownLabel {
        file: test.file.clone(),
        line: label.first_line,
        found: quote(&label.text),
        train_file: train.file.clone(),
    };
    let mut test_classes = Vec::with_capacity(test.labels.distinct.len());
    for label in &test.labels.distinct {
        test_classes.push(*classes.get(label.text.as_str()).ok_or_else(|| unknown(label))?);
    }
    let count = classes.len();
    let train_classes = train.label_classes();
    Ok((train.into_dataset(&train_classes, count), test.into_dataset(&test_classes, count)))
}

/// Loads one file and holds out a sixth of it, at least one example, for the test.
pub(super) fn load_one(file: &Path, columns: Columns<'_>) -> Result<(Dataset, Dataset), DataError> {
    let table = Table::open(file, columns, GroupUse::Read)?;
    let examples = table.labels.of_row.len();
    if examples < 2 {
        return Err(DataError::TooFewToHoldOut { file: file.to_owned() });
    }
    let (class_of, count) = (table.label_classes(), table.labels.distinct.len());
    let whole = table.into_dataset(&class_of, count);
    let (held, rest) = hold_out(examples as u32, (examples / HOLD_OUT).max(1));
    let mut test = whole.subset(&held);
    test.groups = None;
    Ok((whole.subset(&rest), test))
}

/// One CSV file.
#[derive(Debug)]
struct Table {
    file: PathBuf,
    /// Names of the features' columns.
    columns: Vec<String>,
    /// Row by row.
    values: Vec<f32>,
    labels: Words,
    /// The name and the words of the group column.
    groups: Option<(String, Words)>,
}

impl Table {
    fn open(file: &Path, columns: Columns<'_>, group_use: GroupUse) -> Result<Self, DataError> {
        Self::read(file, Source::open(file)?, columns, group_use)
    }

    fn read(
        file: &Path,
        source: Source<'_>,
        columns: Columns<'_>,
        group_use: GroupUse,
    ) -> Result<Self, DataError> {
        let not_csv = |error: csv::Error| csv_error(file, error);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).from_reader(source.into_reader());
        let header = reader.headers().map_err(not_csv)?.clone();
        let label_place = find_column(file, &header, columns.label)?;
        let group_place = find_group(file, &header, columns, group_use)?;
        let is_feature = |place: usize| place != label_place && Some(place) != group_place;
        let features = header.iter().enumerate().filter(|&(place, _)| is_feature(place));
        let mut table = Self {
            file: file.to_owned(),
            columns: features.map(|(_, name)| name.to_owned()).collect(),
            values: vec![],
            labels: Words::default(),
            groups: columns
                .group
                .filter(|_| group_use == GroupUse::Read)
                .map(|n| (n.to_owned(), Words::default())),
        };
        if table.columns.is_empty() {
            let what = "columns beside the labels";
            let what = if group_place.is_some() { "columns beside the labels and the clients" } else { what };
            return Err(DataError::Empty { file: file.to_owned(), what });
        }
        let too_many = |what, found, limit| DataError::TooMany { file: file.to_owned(), what, found, limit };
        if table.columns.len() as u64 > FEATURES_MAX {
            return Err(too_many("columns", table.columns.len() as u64, FEATURES_MAX));
        }

        let mut record = ByteRecord::new();
        while reader.read_byte_record(&mut record).map_err(not_csv)? {
            let line = record.position().map_or(0, csv::Position::line);
            let examples = table.labels.of_row.len() as u64 + 1;
            if examples > EXAMPLES_MAX {
                return Err(too_many("examples", examples, EXAMPLES_MAX));
            }
            if examples * table.columns.len() as u64 * 4 > BYTES_MAX {
                return Err(DataError::TooLarge { file: file.to_owned() });
            }
            for (place, cell) in record.iter().enumerate() {
                if place == label_place {
                    table.add_label(cell, line)?;
                } else if Some(place) == group_place {
                    table.add_group(cell, line)?;
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
        if table.labels.of_row.is_empty() {
            return Err(DataError::Empty { file: file.to_owned(), what: "examples" });
        }
        Ok(table)
    }

    fn add_label(&mut self, cell: &[u8], line: u64) -> Result<(), DataError> {
        let file = || self.file.clone();
        self.labels.add(cell, line, CLASSES_MAX).map_err(|refused| match refused {
            Refused::Empty => DataError::NoLabel { file: file(), line },
            Refused::TooMany { text } => {
                DataError::TooManyClasses { file: file(), line, found: quote(&text) }
            }
        })
    }

    fn add_group(&mut self, cell: &[u8], line: u64) -> Result<(), DataError> {
        let Some((column, groups)) = &mut self.groups else { return Ok(()) };
        let (file, quoted) = (|| self.file.clone(), || quote(column));
        groups.add(cell, line, GROUPS_MAX).map_err(|refused| match refused {
            Refused::Empty => DataError::NoGroup { file: file(), line, column: quoted() },
            Refused::TooMany { text } => {
                DataError::TooManyGroups { file: file(), line, column: quoted(), found: quote(&text) }
            }
        })
    }

    /// The class of each distinct label: its place among all of them, sorted.
    fn label_classes(&self) -> Vec<u32> {
        let classes = self.labels.ranks();
        self.labels.distinct.iter().map(|label| classes[label.text.as_str()]).collect()
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
        let labels = self.labels.of_row.iter().map(|&label| class_of[label as usize]).collect();
        let dataset = Dataset::new(Features::Floats(self.values), labels, classes);
        let Some((column, words)) = self.groups else { return dataset };
        let ranks = words.ranks();
        let group_of: Vec<u32> = words.distinct.iter().map(|word| ranks[word.text.as_str()]).collect();
        dataset.with_groups(Groups {
            column,
            of_example: words.of_row.iter().map(|&word| group_of[word as usize]).collect(),
            names: words.sorted().into_iter().map(str::to_owned).collect(),
        })
    }
}

fn find_group(
    file: &Path,
    header: &csv::StringRecord,
    columns: Columns<'_>,
    group_use: GroupUse,
) -> Result<Option<usize>, DataError> {
    let Some(group) = columns.group else { return Ok(None) };
    if group == columns.label {
        return Err(DataError::GroupIsLabel { file: file.to_owned(), column: group.to_owned() });
    }
    if group_use == GroupUse::LeaveOut && header.iter().all(|name| name != group) {
        return Ok(None);
    }
    find_column(file, header, group).map(Some)
}

fn find_column(file: &Path, header: &csv::StringRecord, sought: &str) -> Result<usize, DataError> {
    let mut places = header.iter().enumerate().filter(|(_, name)| *name == sought);
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => Err(DataError::TwoColumns { file: file.to_owned(), column: sought.to_owned() }),
        (None, _) if header.is_empty() => Err(DataError::Empty { file: file.to_owned(), what: "header row" }),
        (None, _) => {
            let first: Vec<String> = header.iter().take(8).map(quote).collect();
            let more = if header.len() > first.len() { " and more" } else { "" };
            let found = format!("{}{more}", first.join(", "));
            Err(DataError::NoColumn { file: file.to_owned(), sought: sought.to_owned(), found })
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
    use crate::data::Gathered;
    use proptest::prelude::*;

    const LABEL: Columns<'_> = Columns { label: "label", group: None };
    const WRITER: Columns<'_> = Columns { label: "label", group: Some("writer") };

    fn read(text: impl AsRef<[u8]>) -> Result<Table, DataError> {
        read_columns(text, LABEL)
    }

    fn read_columns(text: impl AsRef<[u8]>, columns: Columns<'_>) -> Result<Table, DataError> {
        let (name, bytes) = (Path::new("some.csv"), text.as_ref());
        Table::read(name, Source::new(name, bytes, bytes.len() as u64)?, columns, GroupUse::Read)
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
        let classes = table.labels.ranks();
        assert_eq!((classes["cat"], classes["dog"], classes.len()), (0, 1, 2));
        assert_eq!(table.into_dataset(&[1, 0], 2).labels(), [1, 0, 1]);
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
        let load = |text| load_pair(&train, &write(folder.path(), "test.csv", text), LABEL);
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
        let (train, test) = load_one(&file, Columns { label: "class", group: None }).unwrap();
        assert_eq!((train.len(), test.len()), (50, 10));
        let values = |dataset: &Dataset| {
            let mut gathered = Gathered::default();
            let all: Vec<u32> = (0..dataset.len() as u32).collect();
            dataset.gather(&all, &mut gathered);
            let Gathered { floats, labels, .. } = gathered;
            assert!(floats.is_sorted());
            assert!(floats.iter().zip(&labels).all(|(value, &label)| *value as u32 % 3 == label));
            floats
        };
        let mut all = [values(&train), values(&test)].concat();
        all.sort_by(f32::total_cmp);
        assert_eq!(all, (0..60).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(load_one(&file, Columns { label: "class", group: None }).unwrap(), (train, test));

        let two = write(folder.path(), "two.csv", "a,label\n1,0\n2,1\n");
        let (train, test) = load_one(&two, LABEL).unwrap();
        assert_eq!((train.len(), test.len()), (1, 1));
        let one = write(folder.path(), "one.csv", "a,label\n1,0\n");
        assert!(load_one(&one, LABEL).unwrap_err().to_string().contains("at least 2"));
    }

    #[test]
    fn a_group_column_is_read_and_is_no_feature() {
        let table = read_columns("writer,a,label,b\n10,1,x,2\n 9 ,3,y,4\n10,5,x,6\n", WRITER).unwrap();
        assert_eq!((&table.columns[..], table.values.len()), (&["a".to_owned(), "b".into()][..], 6));
        let dataset = table.into_dataset(&[0, 1], 2);
        let groups = dataset.groups().unwrap();
        assert_eq!((groups.column.as_str(), &groups.of_example[..]), ("writer", &[1, 0, 1][..]));
        assert_eq!(groups.names, ["9", "10"]);

        let error = |text, columns| read_columns(text, columns).unwrap_err().to_string();
        assert_eq!(error("a,label\n", WRITER), "some.csv has no column writer; its columns are a, label");
        assert_eq!(error("writer,a,label\n ,1,x\n", WRITER), "some.csv line 2: column writer is empty");
        assert_eq!(
            error("writer,label\n", WRITER),
            "some.csv holds no columns beside the labels and the clients"
        );
        let same = Columns { label: "label", group: Some("label") };
        assert_eq!(
            error("a,label\n", same),
            "some.csv: column label holds the labels, so it cannot say whose an example is"
        );
    }

    #[test]
    fn only_training_examples_have_groups() {
        let folder = tempfile::tempdir().unwrap();
        let train = write(folder.path(), "train.csv", "a,writer,label\n1,w,x\n3,v,y\n");
        for text in ["a,label\n1,x\n", "writer,a,label\nu,1,x\n"] {
            let test = write(folder.path(), "test.csv", text);
            let (train_set, test_set) = load_pair(&train, &test, WRITER).unwrap();
            assert_eq!(train_set.groups().unwrap().of_example, [1, 0]);
            assert_eq!((test_set.groups(), test_set.feature_count()), (None, 1));
        }
        let rows: String = (0..12).map(|i| format!("{i},w{i},x\n")).collect();
        let one = write(folder.path(), "one.csv", &format!("a,writer,label\n{rows}"));
        let (train_set, test_set) = load_one(&one, WRITER).unwrap();
        assert_eq!((train_set.groups().unwrap().names.len(), test_set.groups()), (10, None));
    }

    proptest! {
        #[test]
        fn any_text_is_an_error_or_a_table(text in "[a-c,\"\n0-9.-]{0,60}") {
            if let Ok(table) = read(format!("a,label,b\n{text}")) {
                prop_assert_eq!(table.values.len(), 2 * table.labels.of_row.len());
            }
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read([&b"label,a\n"[..], &bytes].concat());
            let _ = read(bytes);
        }
    }
}
