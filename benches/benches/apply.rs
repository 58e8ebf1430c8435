//! Applying one gradient to a shard, per optimizer, in bytes read and written per second.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use windlass_benches::setting::plan;
use windlass_common::ids::ShardId;
use windlass_common::layout::{Initial, Variable};
use windlass_common::optimizer::Optimizer;
use windlass_common::plan::{Every, Plan};
use windlass_common::reduce::Contribution;
use windlass_ps_core::store::{Combined, Store};

/// 2NN stays in the last cache; the large variable does not.
fn plans() -> [(&'static str, Plan); 2] {
    let small = plan("2nn", 1, 1).expect("2nn is built in");
    let mut large = small.clone();
    large.model.variables = vec![Variable::new("large", &[16 << 20], Initial::Zeros)];
    [("2nn", small), ("16Mi", large)]
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    for (name, plan) in plans() {
        let (layout, placement) = (plan.layout().expect("checked"), plan.placement().expect("checked"));
        let gradient = vec![1e-3; layout.total() as usize];
        for optimizer in Optimizer::all() {
            // Values are read and written, the gradient read; each state vector is read and written.
            let bytes = 12 + 8 * optimizer.state_vectors() as u64;
            group.throughput(Throughput::Bytes(layout.total() * bytes));
            group.sample_size(20);
            let mut store = Store::new(&layout, &placement, ShardId(0), optimizer, 1, Every::Never);
            group.bench_function(BenchmarkId::new(optimizer.name(), name), |b| {
                b.iter(|| {
                    store.apply(Combined::Mean(&[Contribution { values: &gradient, count: 64 }]), 1e-6)
                });
            });
        }
        let four = [Contribution { values: &gradient, count: 64 }; 4];
        group.throughput(Throughput::Bytes(layout.total() * (12 + 4 * 3)));
        let sgd = "sgd".parse().expect("sgd is an optimizer");
        let mut store = Store::new(&layout, &placement, ShardId(0), sgd, 1, Every::Never);
        group.bench_function(BenchmarkId::new("sgd, mean of 4", name), |b| {
            b.iter(|| store.apply(Combined::Mean(&four), 1e-6))
        });
    }
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
