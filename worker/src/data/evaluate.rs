//! Holds a model against a whole data set.

use super::{Data, DataError, Dataset, Gathered};
use crate::models::{Input, Model, Score};

/// Checks that the model called `model` takes examples such as the data's.
///
/// # Errors
/// Says what the model takes and what the data has.
pub fn check_fit(model: &str, input: Input, data: &Data) -> Result<(), DataError> {
    let (found_features, found_classes) = (data.train.feature_count(), data.train.classes());
    if (input.features, input.classes) == (found_features, found_classes) {
        return Ok(());
    }
    Err(DataError::Fit {
        model: model.to_owned(),
        features: input.features,
        classes: input.classes,
        source_path: data.source.clone(),
        found_features,
        found_classes,
    })
}

/// Scores the model on all examples, `chunk` at a time (at least 1), which bounds the memory that is needed.
pub fn score(model: &mut dyn Model, parameters: &[f32], dataset: &Dataset, chunk: usize) -> Score {
    let (mut indices, mut gathered) = (Vec::new(), Gathered::default());
    let mut sum = Score::default();
    // Loading limits a data set to what 32 bits can number.
    let examples = dataset.len() as u32;
    let chunk = u32::try_from(chunk).unwrap_or(u32::MAX).max(1);
    let mut start = 0;
    while start < examples {
        let end = examples.min(start.saturating_add(chunk));
        indices.clear();
        indices.extend(start..end);
        dataset.gather(&indices, &mut gathered);
        sum += model.score(parameters, gathered.batch());
        start = end;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ExampleStream, Features, load};
    use crate::models::{Mlp, by_name};
    use std::path::{Path, PathBuf};
    use windlass_common::ids::WorkerId;
    use windlass_common::layout::Layout;

    fn data() -> Data {
        let features = (0..30).map(|i| i as f32 * 0.1).collect();
        let dataset = Dataset::new(Features::Floats(features), (0..10).map(|i| i % 4).collect(), 4);
        Data { train: dataset.clone(), test: dataset, source: PathBuf::from("some/folder") }
    }

    #[test]
    fn what_does_not_fit_is_said_in_numbers() {
        assert!(check_fit("mlp:3-4", Input { features: 3, classes: 4 }, &data()).is_ok());
        let input = by_name("2nn").unwrap().input();
        assert_eq!(
            check_fit("2nn", input, &data()).unwrap_err().to_string(),
            "model 2nn takes 784 features and 10 classes; the data in some/folder has 3 features and 4 classes"
        );
        assert!(check_fit("mlp:3-5", Input { features: 3, classes: 5 }, &data()).is_err());
    }

    #[test]
    fn the_score_does_not_depend_on_the_chunks() {
        let mut model = Mlp::new(&[3, 4]);
        let parameters: Vec<f32> = (0..16).map(|i| (i as f32).sin()).collect();
        let expected = score(&mut model, &parameters, &data().test, 10);
        assert_eq!(expected.examples, 10);
        for chunk in [0, 1, 3, 9, 11, usize::MAX] {
            let found = score(&mut model, &parameters, &data().test, chunk);
            assert_eq!((found.examples, found.correct), (10, expected.correct));
            assert!((found.loss() - expected.loss()).abs() < 1e-6);
        }
    }

    #[test]
    fn one_pass_over_mnist_teaches_2nn_the_digits() {
        let data = load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mnist"))).unwrap();
        let mut model = by_name("2nn").unwrap();
        check_fit("2nn", model.input(), &data).unwrap();
        let mut parameters = Layout::new(model.variables()).unwrap().initial_values(1);
        let mut gradient = vec![0.0; parameters.len()];
        let everything = (0..data.train.len() as u32).collect();
        let mut stream = ExampleStream::new(1, WorkerId(0), everything).unwrap();
        let (mut indices, mut gathered) = (Vec::new(), Gathered::default());
        let before = score(&mut *model, &parameters, &data.test, 512);
        assert!(before.accuracy() < 0.3, "{before:?}");
        for step in 0..60_000 / 64 {
            stream.batch(step, 64, &mut indices);
            data.train.gather(&indices, &mut gathered);
            model.gradient(&parameters, gathered.batch(), &mut gradient);
            for (value, slope) in parameters.iter_mut().zip(&gradient) {
                *value -= 0.1 * slope;
            }
        }
        let after = score(&mut *model, &parameters, &data.test, 512);
        assert!(after.accuracy() > 0.93, "{} after one pass", after.accuracy());
        println!("test accuracy {} after one pass", after.accuracy());
    }
}
