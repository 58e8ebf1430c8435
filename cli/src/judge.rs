//! Scores a model on the test data, with the same result for any number of threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, thread};

use windlass_worker::data::{Data, Dataset, Gathered};
use windlass_worker::models::{Model, ModelError, Score, by_name};

use crate::problem::Dealing;

/// Examples that are scored at once; their scores are added up in order, whoever computed them.
const CHUNK: usize = 250;

/// A model and what it is judged by.
pub(crate) struct Judge {
    model: String,
    test: Dataset,
    train: Dataset,
    dealing: Option<Dealing>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Judge {{ model: {}, examples: {} }}", self.model, self.test.len())
    }
}

impl Judge {
    pub(crate) fn new(model: String, data: Data, dealing: Option<Dealing>) -> Self {
        Self { model, test: data.test, train: data.train, dealing }
    }

    /// Who has which of the training data, where that is known here.
    pub(crate) fn dealing(&self) -> Option<&Dealing> {
        self.dealing.as_ref()
    }

    /// The number of each client's examples, where that is known here.
    pub(crate) fn sizes(&self) -> Option<Vec<u32>> {
        self.dealing.as_ref().map(Dealing::sizes)
    }

    /// The training data.
    pub(crate) fn train(&self) -> &Dataset {
        &self.train
    }

    /// For each client the examples that it trains on; none where that is not known here.
    pub(crate) fn clients(&self) -> &[Vec<u32>] {
        self.dealing.as_ref().map_or(&[], |dealing| &dealing.clients)
    }

    /// Number of test examples.
    pub(crate) fn test_examples(&self) -> usize {
        self.test.len()
    }

    /// The score of these values on the held-out examples of each client; none for a client that holds none out.
    ///
    /// # Errors
    /// If the model cannot be made.
    pub(crate) fn score_clients(&self, values: &[f32]) -> Result<Vec<Option<Score>>, ModelError> {
        let mut model = by_name(&self.model)?;
        let mut gathered = Gathered::default();
        // Where nobody holds anything out there is nothing to say of anybody.
        let judged = self.dealing.iter().filter(|dealing| dealing.held.iter().any(|held| !held.is_empty()));
        let held = judged.flat_map(|dealing| &dealing.held);
        let score = |examples: &Vec<u32>| {
            self.train.gather(examples, &mut gathered);
            let is_judged = !examples.is_empty();
            is_judged.then(|| model.score(values, gathered.batch()))
        };
        Ok(held.map(score).collect())
    }

    /// The score of these values, laid end to end, on all of the test data.
    ///
    /// # Errors
    /// If the model cannot be made.
    pub(crate) fn score(&self, values: &[f32], threads: usize) -> Result<Score, ModelError> {
        let chunks = self.test.len().div_ceil(CHUNK);
        let threads = threads.clamp(1, chunks.max(1));
        let models = (0..threads).map(|_| by_name(&self.model)).collect::<Result<Vec<_>, _>>()?;
        let next = AtomicUsize::new(0);
        let mut parts = vec![Score::default(); chunks];
        thread::scope(|scope| {
            let next = &next;
            let work = |mut model: Box<dyn Model>| scope.spawn(move || self.some(&mut *model, values, next));
            let running: Vec<_> = models.into_iter().map(work).collect();
            for thread in running {
                for (chunk, score) in thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                    parts[chunk] = score;
                }
            }
        });
        let mut sum = Score::default();
        for part in parts {
            sum += part;
        }
        Ok(sum)
    }

    /// Scores chunks until none is left.
    fn some(&self, model: &mut dyn Model, values: &[f32], next: &AtomicUsize) -> Vec<(usize, Score)> {
        let (mut indices, mut gathered) = (Vec::new(), Gathered::default());
        let mut scores = Vec::new();
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            let start = chunk * CHUNK;
            if start >= self.test.len() {
                return scores;
            }
            indices.clear();
            // Loading limits a data set to what 32 bits can number.
            indices.extend(start as u32..self.test.len().min(start + CHUNK) as u32);
            self.test.gather(&indices, &mut gathered);
            scores.push((chunk, model.score(values, gathered.batch())));
        }
    }
}

/// Threads for a score that nobody else waits for.
pub(crate) fn all_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use windlass_worker::data::Features;

    use super::*;

    #[test]
    fn the_score_is_the_same_for_any_number_of_threads() {
        let features = (0..3 * 1_111).map(|i| (i as f32 * 0.37).sin()).collect();
        let test = Dataset::new(Features::Floats(features), (0..1_111).map(|i| i % 4).collect(), 4);
        let data = Data { train: test.clone(), test, source: "here".into() };
        let judge = Judge::new("mlp:3-4".into(), data, None);
        let values: Vec<f32> = (0..16).map(|i| (i as f32).cos()).collect();
        let alone = judge.score(&values, 1).unwrap();
        assert_eq!(alone.examples, 1_111);
        for threads in [2, 3, 5, 100] {
            assert_eq!(judge.score(&values, threads).unwrap(), alone);
        }
    }
}
