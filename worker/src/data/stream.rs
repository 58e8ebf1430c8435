//! Gives a worker its examples in an endless order that is a function of the seed.

use windlass_common::ids::WorkerId;
use windlass_common::rng::{Purpose, Rng};

use super::DataError;

/// A worker's endless stream of examples: all of them once per pass, in an order that depends on seed, worker and pass.
#[derive(Clone, Debug)]
pub struct ExampleStream {
    seed: u64,
    worker: WorkerId,
    examples: Vec<u32>,
    /// The order of the pass that was asked for last. A cache: no answer depends on it.
    order: Vec<u32>,
    pass: Option<u64>,
}

impl ExampleStream {
    /// The stream of the worker that holds these examples; their order counts.
    ///
    /// # Errors
    /// If there are no examples.
    pub fn new(seed: u64, worker: WorkerId, examples: Vec<u32>) -> Result<Self, DataError> {
        if examples.is_empty() {
            return Err(DataError::NoExamples { worker });
        }
        Ok(Self { seed, worker, examples, order: Vec::new(), pass: None })
    }

    /// Number of examples in one pass.
    pub fn pass_len(&self) -> usize {
        self.examples.len()
    }

    /// Replaces what `out` holds by the examples at positions step * batch to (step + 1) * batch of the stream.
    ///
    /// The answer depends on nothing but the stream's own values and these arguments. A batch may cross into the next
    /// pass, or be larger than several.
    pub fn batch(&mut self, step: u64, batch: usize, out: &mut Vec<u32>) {
        out.clear();
        let pass_len = self.examples.len() as u128;
        // 128 bits hold the product of any two arguments, and passes beyond 2^64 repeat.
        let mut position = u128::from(step) * batch as u128;
        while out.len() < batch {
            let start = (position % pass_len) as usize;
            self.turn_to((position / pass_len) as u64);
            let end = self.order.len().min(start + (batch - out.len()));
            out.extend_from_slice(&self.order[start..end]);
            position += (end - start) as u128;
        }
    }

    fn turn_to(&mut self, pass: u64) {
        if self.pass == Some(pass) {
            return;
        }
        self.order.clone_from(&self.examples);
        Rng::new(self.seed, Purpose::Shuffle { worker: self.worker.0, pass }).shuffle(&mut self.order);
        self.pass = Some(pass);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(seed: u64, worker: u32, examples: u32) -> ExampleStream {
        ExampleStream::new(seed, WorkerId(worker), (100..100 + examples).collect()).unwrap()
    }

    fn batch(stream: &mut ExampleStream, step: u64, batch: usize) -> Vec<u32> {
        let mut out = vec![1, 2, 3];
        stream.batch(step, batch, &mut out);
        out
    }

    proptest! {
        #[test]
        fn any_order_of_calls_gives_the_same_answers(
            examples in 1_u32..50,
            calls in prop::collection::vec((0_u64..40, 0_usize..120), 1..20),
        ) {
            let mut used = stream(9, 3, examples);
            for (step, size) in calls {
                prop_assert_eq!(batch(&mut used, step, size), batch(&mut stream(9, 3, examples), step, size));
            }
        }

        #[test]
        fn each_pass_has_each_example_once(examples in 1_u32..50, size in 1_usize..120) {
            let mut stream = stream(9, 3, examples);
            let positions: Vec<u32> = (0..200).flat_map(|step| batch(&mut stream, step, size)).collect();
            for pass in positions.chunks_exact(examples as usize) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                prop_assert_eq!(pass, (100..100 + examples).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_stream_does_not_depend_on_the_batch_size() {
        let whole = batch(&mut stream(1, 0, 30), 0, 120);
        let mut stream = stream(1, 0, 30);
        let parts: Vec<u32> = (0..15).flat_map(|step| batch(&mut stream, step, 8)).collect();
        assert_eq!(parts, whole);
    }

    #[test]
    fn seed_worker_and_pass_each_change_the_order() {
        let order = |seed, worker, pass| batch(&mut stream(seed, worker, 100), pass, 100);
        let mut orders = [order(1, 0, 0), order(2, 0, 0), order(1, 1, 0), order(1, 0, 1)];
        orders.sort();
        assert!(orders.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_largest_arguments_are_answered() {
        assert_eq!(batch(&mut stream(1, 0, 3), u64::MAX, 5).len(), 5);
    }

    #[test]
    fn a_worker_without_examples_is_refused() {
        let error = ExampleStream::new(1, WorkerId(4), Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "a worker needs at least one example; none was dealt to worker 4");
    }
}
