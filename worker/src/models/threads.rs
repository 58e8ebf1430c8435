//! Spreads the gradient of one batch over several compute threads, with the same bits for the same number.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;

use rayon::prelude::*;
use windlass_common::layout::Variable;

use super::{Batch, Input, Model, ModelError, Score, by_name};

/// Values that one task of the final sum handles: 256 KiB, small enough to stay in the cache of a core.
const SUM_VALUES: usize = 65_536;

/// A model whose batches are cut into a fixed number of parts, each computed by a thread of its own.
pub struct Threaded {
    /// One instance per thread, as each needs scratch buffers of its own.
    models: Vec<Box<dyn Model>>,
    /// Gradients of all parts but the first, which goes straight into the caller's buffer.
    gradients: Vec<Vec<f32>>,
    losses: Vec<f32>,
    scores: Vec<Score>,
    pool: rayon::ThreadPool,
}

impl fmt::Debug for Threaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threaded").field("models", &self.models).finish_non_exhaustive()
    }
}

/// The model of this name on this many compute threads; with one it is the plain model and no thread is started.
///
/// # Errors
/// If there is no such model, or the threads cannot be started.
pub fn with_threads(name: &str, threads: NonZeroUsize) -> Result<Box<dyn Model>, ModelError> {
    let first = by_name(name)?;
    if threads.get() == 1 {
        return Ok(first);
    }
    let mut models = vec![first];
    for _ in 1..threads.get() {
        models.push(by_name(name)?);
    }
    Ok(Box::new(Threaded::new(models)?))
}

impl Threaded {
    /// Computes each batch on as many threads as there are instances of the model, all of the same kind.
    ///
    /// # Errors
    /// If the threads cannot be started.
    ///
    /// # Panics
    /// If `models` is empty.
    pub fn new(models: Vec<Box<dyn Model>>) -> Result<Self, ModelError> {
        assert!(!models.is_empty(), "a computation needs at least one model");
        let threads = models.len();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|source| ModelError::Threads { threads, source })?;
        Ok(Self {
            models,
            gradients: vec![Vec::new(); threads - 1],
            losses: vec![0.0; threads],
            scores: vec![Score::default(); threads],
            pool,
        })
    }
}

impl Model for Threaded {
    fn variables(&self) -> Vec<Variable> {
        self.models[0].variables()
    }

    fn input(&self) -> Input {
        self.models[0].input()
    }

    /// The mean over the batch, made of the parts' means: (c_1 g_1 + c_2 g_2 + ...) / (c_1 + c_2 + ...), summed in
    /// the order of the parts for every value, whichever thread is done first.
    fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32 {
        // A batch smaller than the number of threads leaves some idle: a mean over no examples does not exist.
        let parts = batch.len().min(self.models.len()).max(1);
        let Self { models, gradients, losses, pool, .. } = self;
        let losses = &mut losses[..parts];
        pool.install(|| {
            let buffers = std::iter::once(&mut *gradient).chain(gradients.iter_mut().map(|buffer| {
                buffer.resize(parameters.len(), 0.0);
                buffer.as_mut_slice()
            }));
            rayon::scope(|scope| {
                for (i, ((model, loss), buffer)) in
                    models.iter_mut().zip(&mut *losses).zip(buffers).enumerate()
                {
                    let part = batch.part(part(batch.len(), parts, i));
                    scope.spawn(move |_| *loss = model.gradient(parameters, part, buffer));
                }
            });
            let count = |i| part(batch.len(), parts, i).len() as f32;
            let total = batch.len() as f32;
            gradient.par_chunks_mut(SUM_VALUES).enumerate().for_each(|(i, sum)| {
                let start = i * SUM_VALUES;
                scale(sum, count(0));
                for (values, i) in gradients.iter().zip(1..parts) {
                    add_scaled(sum, count(i), &values[start..start + sum.len()]);
                }
                divide(sum, total);
            });
        });
        let weighted = losses.iter().enumerate().map(|(i, &loss)| {
            let examples = part(batch.len(), parts, i).len();
            f64::from(loss) * examples as f64
        });
        (weighted.sum::<f64>() / batch.len() as f64) as f32
    }

    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score {
        let parts = self.models.len();
        let Self { models, scores, pool, .. } = self;
        pool.scope(|scope| {
            for (i, (model, score)) in models.iter_mut().zip(&mut *scores).enumerate() {
                let part = batch.part(part(batch.len(), parts, i));
                scope.spawn(move |_| *score = model.score(parameters, part));
            }
        });
        let mut sum = Score::default();
        for &score in scores.iter() {
            sum += score;
        }
        sum
    }
}

/// Part number `index` of `parts`, whose sizes differ by at most one, the larger ones first.
fn part(examples: usize, parts: usize, index: usize) -> Range<usize> {
    let (size, larger) = (examples / parts, examples % parts);
    let start = index * size + index.min(larger);
    start..start + size + usize::from(index < larger)
}

fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

fn divide(values: &mut [f32], divisor: f32) {
    for value in values {
        *value /= divisor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Mlp, oracle};

    fn threaded(threads: usize) -> Threaded {
        let model = || Box::new(Mlp::new(&[20, 15, 12, 6])) as Box<dyn Model>;
        Threaded::new((0..threads).map(|_| model()).collect()).unwrap()
    }

    #[test]
    fn several_threads_give_the_gradient_of_one() {
        let mut plain = Mlp::new(&[20, 15, 12, 6]);
        let parameters = oracle::parameters(&plain, 1);
        // More examples than threads, fewer, one, and then more again.
        for (threads, sizes) in [(2, [64, 1, 7]), (3, [64, 2, 65]), (5, [3, 1, 11])] {
            let mut threaded = threaded(threads);
            for examples in sizes {
                let (features, labels) = oracle::examples(plain.input(), examples);
                let batch = Batch::new(&features, &labels);
                let (mut expected, mut found) =
                    (vec![0.0; parameters.len()], vec![f32::NAN; parameters.len()]);
                let expected_loss = plain.gradient(&parameters, batch, &mut expected);
                let loss = threaded.gradient(&parameters, batch, &mut found);
                assert!((loss - expected_loss).abs() < 1e-6, "{loss} {expected_loss}");
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
                }
                let (score, expected) = (threaded.score(&parameters, batch), plain.score(&parameters, batch));
                assert_eq!((score.correct, score.examples), (expected.correct, expected.examples));
                assert!((score.loss() - expected.loss()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_same_number_of_threads_gives_the_same_bits() {
        let parameters = oracle::parameters(&threaded(1), 2);
        let (features, labels) = oracle::examples(threaded(1).input(), 50);
        let run = || {
            let mut gradient = vec![0.0; parameters.len()];
            threaded(3).gradient(&parameters, Batch::new(&features, &labels), &mut gradient);
            gradient
        };
        let first = run();
        for _ in 0..20 {
            assert_eq!(run(), first);
        }
    }

    #[test]
    fn one_thread_is_the_plain_model() {
        let one = with_threads("softmax", NonZeroUsize::MIN).unwrap();
        assert!(format!("{one:?}").starts_with("Mlp"));
        let two = with_threads("softmax", NonZeroUsize::new(2).unwrap()).unwrap();
        assert!(format!("{two:?}").starts_with("Threaded"));
        assert!(with_threads("resnet", NonZeroUsize::MIN).is_err());
    }

    #[test]
    fn parts_cover_the_batch() {
        for (examples, parts) in [(10, 3), (3, 5), (0, 2), (64, 1), (7, 7)] {
            let ranges: Vec<_> = (0..parts).map(|i| part(examples, parts, i)).collect();
            assert_eq!(
                ranges.iter().cloned().flatten().collect::<Vec<_>>(),
                (0..examples).collect::<Vec<_>>()
            );
            let sizes: Vec<usize> = ranges.iter().map(Range::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
