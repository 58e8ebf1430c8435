//! Encoding and decoding a variable, per codec, and patches to it, in bytes of f32 per second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use windlass_common::codec::{Codec, Patch, Scratch};
use windlass_common::rng::{Purpose, normal};

/// As many values as 2NN has, which stay in the last cache, and as many as do not.
const SIZES: [(&str, usize); 2] = [("2nn", 199_210), ("16Mi", 16 << 20)];
const PURPOSE: Purpose<'static> = Purpose::PushRounding { source: 0, variable: 0, step: 0 };

fn cases() -> Vec<Codec> {
    let others = ["topk:0.1%", "topk:10%"].map(|text| text.parse().expect("topk is a codec"));
    Codec::all().into_iter().chain(others).collect()
}

fn codecs(c: &mut Criterion) {
    let mut group = c.benchmark_group("codecs");
    group.sample_size(20);
    for (size, len) in SIZES {
        let mut variable = vec![0.0; len];
        normal(1, Purpose::InitialValues("bench"), 0, 1e-3, &mut variable);
        let (mut residual, mut decoded) = (vec![0.0; len], vec![0.0; len]);
        let (mut scratch, mut bytes) = (Scratch::default(), Vec::new());
        group.throughput(Throughput::Bytes(4 * len as u64));
        for codec in cases() {
            let name = |what: &str| BenchmarkId::new(format!("{codec}, {what}"), size);
            // With what is chosen for the whole variable.
            group.bench_function(name("encode"), |b| {
                b.iter(|| {
                    bytes.clear();
                    let variable = black_box(&variable);
                    codec.prepare(variable, 1, PURPOSE, &mut scratch).encode(0, variable, &mut bytes);
                });
            });
            group.bench_function(name("encode with residual"), |b| {
                b.iter(|| {
                    bytes.clear();
                    let variable = black_box(&variable);
                    let chosen = codec.prepare(variable, 1, PURPOSE, &mut scratch);
                    chosen.encode_with_residual(0, variable, &mut residual, &mut bytes);
                });
            });
            group.bench_function(name("decode"), |b| {
                b.iter(|| codec.decode(black_box(&bytes), &mut decoded).expect("just encoded"));
            });
            group.bench_function(name("decode and add"), |b| {
                b.iter(|| codec.decode_add(black_box(&bytes), &mut decoded).expect("just encoded"));
            });
        }
    }
    group.finish();
}

/// Patches to the values of a version, to a reference that begins as they were before: written as a shard does after each
/// update, and applied as a worker does.
fn patches(c: &mut Criterion) {
    let mut group = c.benchmark_group("patches");
    group.sample_size(20);
    for (size, len) in SIZES {
        let (mut values, mut reference) = (vec![0.0; len], vec![0.0; len]);
        normal(1, Purpose::InitialValues("bench"), 0, 1e-3, &mut values);
        let mut bytes = Vec::new();
        group.throughput(Throughput::Bytes(4 * len as u64));
        for share in ["topk:2%", "topk:5%", "topk:20%"] {
            let patch = Patch::of(share.parse().expect("topk is a codec")).expect("there are patches");
            let name = |what: &str| BenchmarkId::new(format!("{share}, {what}"), size);
            group.bench_function(name("write"), |b| {
                b.iter(|| {
                    bytes.clear();
                    patch.write(black_box(&values), &mut reference, &mut bytes);
                });
            });
            group.bench_function(name("apply"), |b| {
                b.iter(|| patch.apply(black_box(&bytes), &mut reference).expect("just written"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, codecs, patches);
criterion_main!(benches);
