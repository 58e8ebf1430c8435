//! What a model asks for and tells while it computes a gradient, layer by layer.

use std::ops::Range;

/// Whoever wants a gradient gives values as the forward pass comes to them, and takes the gradient as the backward pass
/// makes it. Front layers lie at the front of the flat buffers.
///
/// `done` is the share of the gradient's multiplications that are behind, from 0 to 1. By convention the forward pass is a
/// third of them, and a layer has the same share of either pass.
pub trait Passes {
    /// Number of the model's values.
    fn total(&self) -> usize;

    /// The values in `range`, which are read next. `None` if they will not come: the gradient is given up.
    fn values(&mut self, range: Range<usize>, done: f64) -> Option<&[f32]>;

    /// The last forward pass is over, with this mean loss over the batch. `None` if the gradient is of no use any more.
    fn loss(&mut self, loss: f32, done: f64) -> Option<()>;

    /// The values that were asked for last, and memory for the gradient of those in `range`: it is to be written, and then told.
    /// What it holds has no meaning, unless the batch is cut into parts whose gradients are added up: then it holds what was
    /// written there for the part before, if there was one.
    fn room(&mut self, range: Range<usize>, is_cut: bool) -> (&[f32], &mut [f32]);

    /// The gradient is final from here to where it was before, at first its end: the range for which there was room last.
    fn made(&mut self, from: usize, done: f64);
}

/// All values, and memory for all of the gradient, for whoever wants it when all of it is made.
#[derive(Debug)]
pub struct Whole<'a> {
    values: &'a [f32],
    gradient: &'a mut [f32],
    /// The values that were asked for last.
    shown: Range<usize>,
}

impl<'a> Whole<'a> {
    /// The values of all variables, end to end, and as much memory, if a gradient is computed.
    pub fn new(values: &'a [f32], gradient: &'a mut [f32]) -> Self {
        Self { values, gradient, shown: 0..0 }
    }
}

impl Passes for Whole<'_> {
    fn total(&self) -> usize {
        self.values.len()
    }

    fn values(&mut self, range: Range<usize>, _: f64) -> Option<&[f32]> {
        self.shown = range.clone();
        Some(&self.values[range])
    }

    fn loss(&mut self, _: f32, _: f64) -> Option<()> {
        Some(())
    }

    fn room(&mut self, range: Range<usize>, _: bool) -> (&[f32], &mut [f32]) {
        (&self.values[self.shown.clone()], &mut self.gradient[range])
    }

    fn made(&mut self, _: usize, _: f64) {}
}

/// Counts multiplications, to tell which share of them is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    /// Of a batch of so many examples, whose forward pass takes so many multiplications for each.
    pub(super) fn new(forward: u64, examples: usize) -> Self {
        Self { done: 0, total: 3 * forward * examples as u64 }
    }

    /// A layer that takes so many for an example has been passed through by so many examples: forward, or half of the way
    /// back, which has the gradient of its parameters and that of its input.
    pub(super) fn add(&mut self, multiplications: u64, examples: usize) {
        self.done += multiplications * examples as u64;
    }

    pub(super) fn share(&self) -> f64 {
        self.done as f64 / self.total.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::models::cnn::Sizes;
    use crate::models::{Batch, Cnn, Mlp, Model, oracle};

    /// Shows no value before it was asked for, and writes down what is asked and told.
    struct Watch {
        all: Vec<f32>,
        shown: Vec<f32>,
        asked: Vec<Range<usize>>,
        losses: Vec<f32>,
        /// Where there is room for what is made next: if a batch is not cut, the same for each part.
        room: Vec<f32>,
        place: Range<usize>,
        made: Vec<(Range<usize>, Vec<f32>)>,
        shares: Vec<f64>,
        /// So many times values are given, and then no more.
        times: usize,
    }

    impl Watch {
        fn new(all: &[f32], times: usize) -> Self {
            let (shown, all) = (Vec::new(), all.to_vec());
            let (asked, losses, made, shares) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let (room, place) = (Vec::new(), 0..0);
            Self { all, shown, asked, losses, room, place, made, shares, times }
        }
    }

    impl Passes for Watch {
        fn total(&self) -> usize {
            self.all.len()
        }

        fn values(&mut self, range: Range<usize>, done: f64) -> Option<&[f32]> {
            self.times = self.times.checked_sub(1)?;
            self.shown = self.all[range.clone()].to_vec();
            self.asked.push(range);
            self.shares.push(done);
            Some(&self.shown)
        }

        fn loss(&mut self, loss: f32, done: f64) -> Option<()> {
            self.losses.push(loss);
            self.shares.push(done);
            self.times.checked_sub(1).map(|times| self.times = times)
        }

        fn room(&mut self, range: Range<usize>, is_cut: bool) -> (&[f32], &mut [f32]) {
            self.place = range.clone();
            if is_cut {
                self.room.resize(self.all.len(), f32::NAN);
                return (&self.shown, &mut self.room[range]);
            }
            self.room.clear();
            self.room.resize(range.len(), f32::NAN);
            (&self.shown, &mut self.room)
        }

        fn made(&mut self, from: usize, done: f64) {
            let until = self.made.last().map_or(self.all.len(), |(range, _)| range.start);
            assert_eq!(self.place, from..until, "what there was room for");
            let in_room =
                if self.room.len() == self.all.len() { self.place.clone() } else { 0..until - from };
            self.made.push((from..until, self.room[in_room].to_vec()));
            self.shares.push(done);
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// The layers begin here, and the last ends at the last one.
    fn check(model: &mut dyn Model, examples: usize, layers: &[usize]) {
        let values = oracle::parameters(model, 3);
        let (features, labels) = oracle::examples(model.input(), examples);
        let batch = Batch::new(&features, &labels);
        let (mut expected, mut found) = (vec![f32::NAN; values.len()], vec![1e30; values.len()]);
        let loss = model.gradient(&values, batch, &mut expected);
        let mut watch = Watch::new(&values, usize::MAX);
        let with = model.gradient_with(&mut watch, batch).unwrap();
        assert_eq!(with.to_bits(), loss.to_bits());
        assert_eq!(watch.losses, [loss]);

        let mut end = 0;
        let mut of_layers = Vec::new();
        for range in &watch.asked {
            let is_new = range.end > end;
            assert!(!is_new || range.start <= end, "{range:?} with all behind {end}");
            end = end.max(range.end);
            of_layers.extend((is_new && layers.contains(&end)).then_some(end));
        }
        assert_eq!(of_layers, layers[1..], "each layer is asked for in turn");
        let mut until = values.len();
        for (range, values) in &watch.made {
            assert!(range.end == until && layers.contains(&range.start), "{range:?} behind {until}");
            assert_eq!(bits(values), bits(&expected[range.clone()]), "{range:?} is final");
            until = range.start;
        }
        assert_eq!(until, 0, "all of it is told");
        assert!(watch.shares.is_sorted() && watch.shares.iter().all(|share| (0.0..=1.0).contains(share)));
        assert_eq!(watch.shares.last(), Some(&1.0));

        // Given up at every place, a model is as it was.
        for times in 0..watch.asked.len() + 1 {
            let mut given_up = Watch::new(&values, times);
            assert_eq!(model.gradient_with(&mut given_up, batch), None, "{times}");
            assert!(given_up.asked.len() + given_up.losses.len() <= times + 1);
        }
        let again = model.gradient(&values, batch, &mut found);
        assert_eq!((again.to_bits(), bits(&found)), (loss.to_bits(), bits(&expected)));
    }

    fn starts(sizes: &[usize]) -> Vec<usize> {
        let mut starts = vec![0];
        for pair in sizes.windows(2) {
            starts.push(starts.last().unwrap() + pair[0] * pair[1] + pair[1]);
        }
        starts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn networks_take_and_give_layer_by_layer(
            sizes in prop::collection::vec(2_usize..12, 2..6),
            examples in prop_oneof![1_usize..40, 510_usize..515, Just(1100)],
        ) {
            check(&mut Mlp::new(&sizes), examples, &starts(&sizes));
        }

        #[test]
        fn convolutional_networks_take_and_give_layer_by_layer(
            quarter in 1_usize..3,
            filters in [1_usize..4, 1_usize..4],
            hidden in 1_usize..6,
            classes in 2_usize..4,
            examples in prop_oneof![1_usize..6, 63_usize..66, Just(130)],
        ) {
            let sizes = Sizes { side: 4 * quarter, filters, hidden, classes };
            let [first, second] = filters;
            let ends = [26 * first, (25 * first + 1) * second];
            let dense = starts(&[quarter * quarter * second, hidden, classes]);
            let convolutions = [0, ends[0]];
            let layers = dense.iter().map(|start| start + ends[0] + ends[1]);
            check(&mut Cnn::with_sizes(sizes), examples, &convolutions.into_iter().chain(layers).collect::<Vec<_>>());
        }
    }

    /// One that does not know its layers.
    #[derive(Debug)]
    struct Unlayered(Mlp);

    impl Model for Unlayered {
        fn variables(&self) -> Vec<windlass_common::layout::Variable> {
            self.0.variables()
        }

        fn input(&self) -> crate::models::Input {
            self.0.input()
        }

        fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32 {
            self.0.gradient(parameters, batch, gradient)
        }

        fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> crate::models::Score {
            self.0.score(parameters, batch)
        }
    }

    #[test]
    fn a_model_that_does_not_know_its_layers_takes_and_gives_everything() {
        let sizes = [6, 5, 4];
        check(&mut Unlayered(Mlp::new(&sizes)), 7, &[0, *starts(&sizes).last().unwrap()]);
    }

    #[test]
    fn of_two_equal_layers_each_way_back_is_twice_the_way_there() {
        let mut model = Mlp::new(&[8, 8, 8]);
        let values = oracle::parameters(&model, 3);
        let (features, labels) = oracle::examples(model.input(), 5);
        let mut watch = Watch::new(&values, usize::MAX);
        model.gradient_with(&mut watch, Batch::new(&features, &labels)).unwrap();
        // Both layers forward, the loss, the parameters of the second, its input, the first.
        let sixths = [0.0, 1.0, 2.0, 3.0, 3.0, 6.0].map(|sixths| sixths / 6.0);
        assert_eq!(watch.shares, sixths);
    }
}
