//! One gradient of each model, of digits and of features that are not 0, beside the matrix products of the latter.

use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
use windlass_benches::setting::plan;
use windlass_worker::data::{self, Gathered};
use windlass_worker::models::{self, Batch};

/// A product of an m x k by a k x n matrix.
type Product = (usize, usize, usize);

/// The products of a dense layer of `inputs` by `outputs`: forward, weight gradient and, behind the first layer, input
/// gradient.
fn dense(batch: usize, inputs: usize, outputs: usize, first: bool) -> Vec<Product> {
    let mut products = vec![(batch, inputs, outputs), (inputs, batch, outputs)];
    if !first {
        products.push((batch, outputs, inputs));
    }
    products
}

/// The products of each model, convolutions taken as products over their 25-value windows.
fn products(model: &str, batch: usize) -> Vec<Product> {
    match model {
        "softmax" => dense(batch, 784, 10, true),
        "2nn" => [dense(batch, 784, 200, true), dense(batch, 200, 200, false), dense(batch, 200, 10, false)]
            .concat(),
        "cnn" => [
            dense(batch * 784, 25, 32, true),
            dense(batch * 196, 800, 64, false),
            dense(batch, 3136, 512, false),
            dense(batch, 512, 10, false),
        ]
        .concat(),
        other => unreachable!("no products are listed for {other}"),
    }
}

fn gradients(c: &mut Criterion) {
    let mut group = c.benchmark_group("gradient");
    group.sample_size(20);
    let digits = data::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mnist"))
        .expect("it is in the repository")
        .train;
    for (name, batch) in [("softmax", 64), ("2nn", 10), ("2nn", 64), ("2nn", 256), ("cnn", 64)] {
        let list = products(name, batch);
        let flops: usize = list.iter().map(|(m, k, n)| 2 * m * k * n).sum();
        group.throughput(Throughput::Elements(flops as u64));

        let mut model = models::by_name(name).expect("it is built in");
        let values =
            plan(name, 1, 1).and_then(|p| Ok(p.layout()?.initial_values(1))).expect("it is built in");
        let mut gradient = vec![0.0; values.len()];
        let mut gathered = Gathered::default();
        digits.gather(&(0..batch as u32).collect::<Vec<_>>(), &mut gathered);
        let batch_of_digits = gathered.batch();
        group.bench_function(BenchmarkId::new(format!("{name}, digits"), batch), |b| {
            b.iter(|| model.gradient(&values, batch_of_digits, &mut gradient));
        });
        let labels = batch_of_digits.labels;
        let features: Vec<f32> =
            (0..batch * model.input().features).map(|i| (1 + i % 251) as f32 / 251.0).collect();
        group.bench_function(BenchmarkId::new(format!("{name}, full"), batch), |b| {
            b.iter(|| model.gradient(&values, Batch::new(&features, labels), &mut gradient));
        });

        let mut matrices: Vec<[Array2<f32>; 3]> = list
            .iter()
            .map(|&(m, k, n)| [Array2::ones((m, k)), Array2::ones((k, n)), Array2::zeros((m, n))])
            .collect();
        group.bench_function(BenchmarkId::new(format!("{name}, products alone"), batch), |b| {
            b.iter(|| {
                for [left, right, result] in &mut matrices {
                    general_mat_mul(1.0, left, right, 0.0, result);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, gradients);
criterion_main!(benches);
