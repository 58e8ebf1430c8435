//! Trains a model of one's own with the built-in loop and data: one trait implemented.
//!
//! The model is a linear classifier with squared error, whose ten outputs are to be 1 for the right digit and 0 for the
//! others (Widrow and Hoff 1960).
//!
//! ```text
//! cargo build --release --examples
//! windlass train --worker-program target/release/examples/own_model --variable weight:784x10:zeros \
//!     --variable bias:10:zeros --examples 60000 --data data/mnist --passes 2 --rate 0.01
//! ```

use std::path::PathBuf;

use clap::Parser;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use windlass_common::layout::{Initial, Variable};
use windlass_worker::client::JoinOptions;
use windlass_worker::models::{Batch, Input, Model, Score};
use windlass_worker::training::{TrainingOptions, train_with};

const FEATURES: usize = 784;
const CLASSES: usize = 10;

#[derive(Debug)]
struct LeastSquares {
    /// The features of a batch as floats: those of images come as bytes.
    features: Vec<f32>,
}

impl LeastSquares {
    /// Outputs minus targets, one row per example.
    fn errors(parameters: &[f32], features: ArrayView2<'_, f32>, labels: &[u32]) -> Array2<f32> {
        let (weight, bias) = parameters.split_at(FEATURES * CLASSES);
        let weight = ArrayView2::from_shape((FEATURES, CLASSES), weight).expect("the layout says so");
        let mut errors = features.dot(&weight);
        for (mut row, &label) in errors.rows_mut().into_iter().zip(labels) {
            row.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
            row[label as usize] -= 1.0;
        }
        errors
    }
}

impl Model for LeastSquares {
    fn variables(&self) -> Vec<Variable> {
        let (inputs, outputs) = (FEATURES as u64, CLASSES as u64);
        vec![
            Variable::new("weight", &[inputs, outputs], Initial::Zeros),
            Variable::new("bias", &[outputs], Initial::Zeros),
        ]
    }

    fn input(&self) -> Input {
        Input { features: FEATURES, classes: CLASSES }
    }

    fn gradient(&mut self, parameters: &[f32], batch: Batch<'_>, gradient: &mut [f32]) -> f32 {
        let features = batch.features.floats(&mut self.features);
        let errors = Self::errors(parameters, features, batch.labels);
        let share = 1.0 / batch.len() as f32;
        let (weight, bias) = gradient.split_at_mut(FEATURES * CLASSES);
        let mut weight = ArrayViewMut2::from_shape((FEATURES, CLASSES), weight).expect("the layout says so");
        general_mat_mul(share, &features.t(), &errors, 0.0, &mut weight);
        bias.copy_from_slice((errors.sum_axis(Axis(0)) * share).as_slice().expect("a sum is contiguous"));
        0.5 * share * errors.mapv(|e| e * e).sum()
    }

    fn score(&mut self, parameters: &[f32], batch: Batch<'_>) -> Score {
        let features = batch.features.floats(&mut self.features);
        let errors = Self::errors(parameters, features, batch.labels);
        let mut score = Score { examples: batch.len() as u64, ..Score::default() };
        for (row, &label) in errors.rows().into_iter().zip(batch.labels) {
            score.loss_sum += 0.5 * row.iter().map(|&e| f64::from(e * e)).sum::<f64>();
            let output = |class: usize| row[class] + f32::from(u8::from(class == label as usize));
            let best = (0..CLASSES).max_by(|&a, &b| output(a).total_cmp(&output(b)));
            score.correct += u64::from(best == Some(label as usize));
        }
        score
    }
}

#[derive(Parser)]
struct Flags {
    #[arg(long)]
    identity: PathBuf,
    #[arg(long)]
    coordinator: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let join = JoinOptions::new(flags.coordinator, &flags.identity)?;
    let options = TrainingOptions { join, data: None };
    let interrupted = windlass_process::interrupted(false);
    train_with(options, interrupted, |_| Ok(Box::new(LeastSquares { features: Vec::new() })))?;
    Ok(())
}
