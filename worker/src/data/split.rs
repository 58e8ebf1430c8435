//! Takes parts out of a data set, among them what is held out to judge by.

use windlass_common::rng::{Purpose, Rng};

use super::{Data, DataError, Dataset, Features, Groups};

/// The seed of what is held out. It is fixed, so that every run and every machine is judged by the same examples.
const HOLD_OUT_SEED: u64 = 0;

/// The first `held` numbers of a permutation of 0 to `examples` - 1 that depends on nothing else, and the others; both
/// in ascending order.
///
/// # Panics
/// If more are held out than there are.
pub(super) fn hold_out(examples: u32, held: usize) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..examples).collect();
    Rng::new(HOLD_OUT_SEED, Purpose::Partition).shuffle(&mut order);
    let mut rest = order.split_off(held);
    order.sort_unstable();
    rest.sort_unstable();
    (order, rest)
}

impl Dataset {
    /// These examples, in this order, of the same classes. Groups of which none is among them are gone.
    ///
    /// # Panics
    /// If there are none, or no example has one of these numbers.
    pub fn subset(&self, indices: &[u32]) -> Self {
        let features = match &self.features {
            Features::Bytes(values) => Features::Bytes(rows(values, self.feature_count, indices)),
            Features::Floats(values) => Features::Floats(rows(values, self.feature_count, indices)),
        };
        let labels = indices.iter().map(|&index| self.labels[index as usize]).collect();
        let groups = self.groups.as_ref().map(|groups| groups.subset(indices));
        Self { groups, ..Self::new(features, labels, self.classes) }
    }
}

impl Groups {
    fn subset(&self, indices: &[u32]) -> Self {
        let of_example: Vec<u32> = indices.iter().map(|&index| self.of_example[index as usize]).collect();
        let mut present = vec![false; self.names.len()];
        for &group in &of_example {
            present[group as usize] = true;
        }
        let mut next = 0;
        let renumbered: Vec<u32> = present
            .iter()
            .map(|&present| {
                let number = next;
                next += u32::from(present);
                number
            })
            .collect();
        let names = self.names.iter().zip(&present).filter(|&(_, &present)| present);
        Self {
            column: self.column.clone(),
            of_example: of_example.iter().map(|&group| renumbered[group as usize]).collect(),
            names: names.map(|(name, _)| name.clone()).collect(),
        }
    }
}

impl Data {
    /// Makes this many of the training examples the test set, in place of the one there was.
    ///
    /// They are the first of a permutation that depends on nothing but the number of training examples; both parts keep
    /// the order of the file. The fingerprint becomes another.
    ///
    /// # Errors
    /// If this many cannot be held out, because at least one must be and one must stay.
    pub fn hold_out_validation(self, examples: u64) -> Result<Self, DataError> {
        let found = self.train.len();
        if examples == 0 || examples >= found as u64 {
            return Err(DataError::Validation { sought: examples, found, source_path: self.source });
        }
        // Loading limits a data set to what 32 bits can number, and `examples` is below its size.
        let (held, rest) = hold_out(found as u32, examples as usize);
        let mut test = self.train.subset(&held);
        test.groups = None;
        Ok(Self { train: self.train.subset(&rest), test, source: self.source })
    }
}

fn rows<T: Copy>(values: &[T], width: usize, indices: &[u32]) -> Vec<T> {
    let mut rows = Vec::with_capacity(indices.len() * width);
    for &index in indices {
        rows.extend_from_slice(&values[index as usize * width..][..width]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn data(examples: u32) -> Data {
        let features = (0..examples).flat_map(|i| [i as f32, -(i as f32)]).collect();
        let train = Dataset::new(Features::Floats(features), (0..examples).map(|i| i % 3).collect(), 3);
        let test = Dataset::new(Features::Floats(vec![9.0, 9.0]), vec![0], 3);
        Data { train, test, source: PathBuf::from("some/folder") }
    }

    proptest! {
        #[test]
        fn validation_examples_come_out_of_the_training_set(examples in 2_u32..200, held in 1_u64..200) {
            prop_assume!(held < u64::from(examples));
            let whole = data(examples);
            let cut = whole.clone().hold_out_validation(held).unwrap();
            prop_assert_eq!((cut.train.len(), cut.test.len() as u64), ((examples - held as u32) as usize, held));
            let mut numbers = vec![];
            for part in [&cut.train, &cut.test] {
                let Features::Floats(values) = &part.features else { unreachable!() };
                let first: Vec<u32> = values.iter().step_by(2).map(|&value| value as u32).collect();
                prop_assert!(first.is_sorted());
                prop_assert_eq!(&whole.train.subset(&first), part);
                numbers.extend(first);
            }
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..examples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn fewer_validation_examples_are_some_of_more() {
        let (few, _) = hold_out(1000, 100);
        let (many, _) = hold_out(1000, 300);
        assert!(few.iter().all(|example| many.contains(example)));
        assert_ne!(few, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_held_out_is_said() {
        let error = |held| data(10).hold_out_validation(held).unwrap_err().to_string();
        assert_eq!(
            error(10),
            "10 examples cannot be held out for validation: some/folder has 10 training examples; 1 to 9 are possible"
        );
        assert!(error(0).starts_with("0 examples cannot"));
        let error = data(1).hold_out_validation(1).unwrap_err().to_string();
        assert!(error.ends_with("has 1 training examples; at least 2 are needed"), "{error}");
        assert!(data(10).hold_out_validation(9).is_ok());
    }

    #[test]
    fn a_subset_of_bytes_keeps_its_bytes_and_drops_empty_groups() {
        let whole =
            Dataset::new(Features::Bytes((0..8).collect()), vec![0, 1, 2, 1], 3).with_groups(Groups {
                column: "writer".into(),
                of_example: vec![2, 0, 1, 2],
                names: vec!["a".into(), "b".into(), "c".into()],
            });
        let part = whole.subset(&[3, 1]);
        assert_eq!(part.features, Features::Bytes(vec![6, 7, 2, 3]));
        assert_eq!((part.labels(), part.classes()), (&[1, 1][..], 3));
        let groups = part.groups().unwrap();
        assert_eq!((&groups.of_example[..], &groups.names[..]), (&[1, 0][..], &["a".into(), "c".into()][..]));
    }
}
