//! Makes up a comparison with the shape of a real one, for the example and for tests.

use super::{
    Baseline, ClientContribution, Comparison, Cost, ModeResult, Outcome, Point, RateChoice, RunResult,
    crossing,
};

/// How a made-up mode behaves.
struct Manner {
    name: &'static str,
    rate: f64,
    rate_was_chosen: bool,
    /// Gradient evaluations in which the error falls by a factor e.
    pace: f64,
    /// Accuracy that it approaches.
    ceiling: f64,
    examples_per_second: f64,
    examples_per_push: u64,
    staleness: f64,
    idle: f64,
    /// Share of the pushes that come late.
    late: f64,
    is_federated: bool,
}

#[rustfmt::skip]
const MANNERS: [Manner; 12] = [
    Manner { name: "sync", rate: 0.1, rate_was_chosen: false, pace: 52e3, ceiling: 0.979, examples_per_second: 9e3, examples_per_push: 64, staleness: 0.0, idle: 0.58, late: 0.0, is_federated: false },
    Manner { name: "sync:backup=1", rate: 0.1, rate_was_chosen: false, pace: 55e3, ceiling: 0.978, examples_per_second: 14e3, examples_per_push: 64, staleness: 0.0, idle: 0.31, late: 0.24, is_federated: false },
    Manner { name: "ssp:4", rate: 0.1, rate_was_chosen: false, pace: 48e3, ceiling: 0.977, examples_per_second: 13e3, examples_per_push: 64, staleness: 3.1, idle: 0.35, late: 0.0, is_federated: false },
    Manner { name: "ssp:4", rate: 0.03162, rate_was_chosen: true, pace: 66e3, ceiling: 0.979, examples_per_second: 13e3, examples_per_push: 64, staleness: 3.2, idle: 0.34, late: 0.0, is_federated: false },
    Manner { name: "async", rate: 0.1, rate_was_chosen: false, pace: 45e3, ceiling: 0.974, examples_per_second: 19e3, examples_per_push: 64, staleness: 4.8, idle: 0.09, late: 0.0, is_federated: false },
    Manner { name: "async", rate: 0.03162, rate_was_chosen: true, pace: 60e3, ceiling: 0.978, examples_per_second: 19e3, examples_per_push: 64, staleness: 4.9, idle: 0.08, late: 0.0, is_federated: false },
    Manner { name: "fedavg", rate: 0.1, rate_was_chosen: false, pace: 95e3, ceiling: 0.976, examples_per_second: 10e3, examples_per_push: 3000, staleness: 0.0, idle: 0.44, late: 0.0, is_federated: true },
    Manner { name: "fedavg:deadline=2", rate: 0.1, rate_was_chosen: false, pace: 99e3, ceiling: 0.972, examples_per_second: 16e3, examples_per_push: 3000, staleness: 0.0, idle: 0.17, late: 0.14, is_federated: true },
    Manner { name: "fedbuff:10", rate: 0.1, rate_was_chosen: false, pace: 110e3, ceiling: 0.974, examples_per_second: 17e3, examples_per_push: 3000, staleness: 1.8, idle: 0.06, late: 0.03, is_federated: true },
    Manner { name: "ssp:16", rate: 0.1, rate_was_chosen: false, pace: 47e3, ceiling: 0.976, examples_per_second: 16e3, examples_per_push: 64, staleness: 4.4, idle: 0.2, late: 0.0, is_federated: false },
    Manner { name: "sync:backup=2", rate: 0.1, rate_was_chosen: false, pace: 61e3, ceiling: 0.975, examples_per_second: 17e3, examples_per_push: 64, staleness: 0.0, idle: 0.2, late: 0.45, is_federated: false },
    Manner { name: "ssp:0", rate: 0.1, rate_was_chosen: false, pace: 51e3, ceiling: 0.978, examples_per_second: 9e3, examples_per_push: 64, staleness: 1.4, idle: 0.57, late: 0.0, is_federated: false },
];

const TARGET: f64 = 0.97;
const CLIENTS: u64 = 100;
const BUDGET_PASSES: f64 = 8.0;
const TRAIN_EXAMPLES: u64 = 60_000;
/// Bytes of the values of 2NN, one way.
const PAYLOAD_BYTES: u64 = 199_210 * 4;

/// A comparison of up to twelve modes, each with this many seeds. Every run completes.
pub(crate) fn comparison(modes: usize, seeds: u64) -> Comparison {
    let seeds: Vec<u64> = (1..=seeds).collect();
    let run_all = |manner: &Manner| ModeResult {
        name: manner.name.to_owned(),
        rate: manner.rate,
        rate_was_chosen: manner.rate_was_chosen,
        runs: seeds.iter().map(|seed| run(manner, *seed)).collect(),
    };
    Comparison {
        title: "Training modes on MNIST with slow workers".to_owned(),
        command: "windlass compare --model 2nn --modes sync,sync:backup=1,ssp:4,async,fedavg --clients 100 \
                  --partition dirichlet:0.3 --seeds 1,2,3 --target 0.97 --rates common,auto"
            .to_owned(),
        model: "2nn (784-200-200-10, 199,210 values)".to_owned(),
        data: "MNIST".to_owned(),
        train_examples: TRAIN_EXAMPLES,
        test_examples: 10_000,
        partition: "Dirichlet over classes, alpha 0.3".to_owned(),
        clients: CLIENTS,
        workers: 4,
        servers: 2,
        target: Some(TARGET),
        budget_passes: BUDGET_PASSES,
        seeds: seeds.clone(),
        heterogeneity:
            "worker 3 is three times as slow as the others; clients differ log-normally, sigma 0.5".to_owned(),
        machine: "2 cores of a shared virtual machine (AMD EPYC), loopback".to_owned(),
        rate_choice: RateChoice::Auto {
            grid: vec![0.01, 0.03162, 0.1, 0.3162],
            validation_examples: 5000,
            gradient_evaluations: 1_920_000,
            seconds: 184.2,
        },
        modes: MANNERS.iter().take(modes).map(run_all).collect(),
        baselines: baselines(),
        class_counts: class_counts(),
        unused_examples: 37,
    }
}

fn run(manner: &Manner, seed: u64) -> RunResult {
    let mut noise = Noise(seed * 1000 + manner.name.len() as u64 * 77 + (manner.rate * 1e4) as u64);
    let speed = manner.examples_per_second * (1.0 + 0.06 * noise.centred());
    let pace = manner.pace * (1.0 + 0.05 * noise.centred());
    let ceiling = manner.ceiling + 0.001 * noise.centred();
    let budget = TRAIN_EXAMPLES as f64 * BUDGET_PASSES;
    let point = |i: u64, wobble: f64| {
        let examples = (budget * i as f64 / 48.0) as u64;
        let pushes = examples / manner.examples_per_push;
        let fallen =
            0.75 * (-(examples as f64) / (0.3 * pace)).exp() + 0.13 * (-(examples as f64) / pace).exp();
        let accuracy = ceiling - fallen + 0.0015 * wobble * (1.0 + 30.0 * fallen);
        let payload = pushes * PAYLOAD_BYTES;
        Point {
            seconds: examples as f64 / speed,
            steps: if manner.staleness == 0.0 { pushes / 4 } else { pushes },
            pushes,
            gradient_evaluations: examples,
            payload_bytes_up: payload,
            payload_bytes_down: payload + PAYLOAD_BYTES * 4,
            wire_bytes_up: payload / 100 * 104 + 9000,
            wire_bytes_down: payload / 100 * 105 + PAYLOAD_BYTES * 4,
            accuracy,
            loss: 2.0 * (1.0 - accuracy),
        }
    };
    let curve: Vec<Point> = (0..=48).map(|i| point(i, noise.centred())).collect();
    let pushes = curve.last().map_or(0, |point| point.pushes);
    let pushes_late = (pushes as f64 * manner.late) as u64;
    let clients = if manner.is_federated { CLIENTS } else { 0 };
    RunResult {
        seed,
        outcome: Outcome::Completed,
        at_target: crossing(&curve, TARGET),
        at_end: curve.last().map(Cost::from),
        best_accuracy: curve.iter().map(|point| point.accuracy).fold(0.0, f64::max),
        staleness_mean: manner.staleness * (1.0 + 0.1 * noise.centred()),
        staleness_p95: (manner.staleness * 2.0).round(),
        idle_share: (0..4)
            .map(|w| manner.idle * (if w == 3 { 0.3 } else { 1.2 + 0.1 * noise.centred() }))
            .collect(),
        pushes_late,
        examples_late: pushes_late * manner.examples_per_push,
        client_contributions: (0..clients).map(|client| contribution(manner, client, &mut noise)).collect(),
        curve,
    }
}

/// Every seventh client is slow, and its updates are the ones that come late.
fn contribution(manner: &Manner, client: u64, noise: &mut Noise) -> ClientContribution {
    let is_slow = client % 7 == 3;
    let asked = 12 + (noise.centred() * 4.0) as u64;
    let lost = if is_slow { (manner.late * 7.0).min(1.0) } else { manner.late * 0.1 };
    let late = (asked as f64 * lost * (0.5 + 0.5 * noise.centred().abs())).round() as u64;
    let dropped = u64::from(noise.centred() > 0.85).min(asked - late);
    let aggregated = asked - late - dropped;
    let served = aggregated as f64 / asked.max(1) as f64;
    ClientContribution {
        client,
        asked,
        aggregated,
        late,
        dropped,
        examples: 600,
        accuracy: Some((0.93 + 0.05 * served + 0.025 * noise.centred()).min(1.0)),
    }
}

fn baselines() -> Vec<Baseline> {
    let curve = |pace: f64, ceiling: f64| {
        (0..=24).map(|i| (i * 20_000, ceiling - 0.85 * (-(i as f64) * 20e3 / pace).exp())).collect()
    };
    let baseline = |name: &str, accuracy, curve, note: &str| Baseline {
        name: name.to_owned(),
        accuracy,
        curve,
        note: note.to_owned(),
    };
    vec![
        baseline(
            "pooled sequential SGD",
            0.9813,
            curve(28e3, 0.9813),
            "one process, all data, rate 0.1, 8 passes",
        ),
        baseline(
            "best client alone",
            0.861,
            Vec::new(),
            "client 14, 600 examples, 8 passes over all data's worth",
        ),
        baseline("mean of clients alone", 0.612, Vec::new(), "over 100 clients, each on its own examples"),
    ]
}

fn class_counts() -> Vec<Vec<u64>> {
    let mut noise = Noise(5);
    let share = |noise: &mut Noise| (noise.centred() + 1.0).powi(9);
    let row = |noise: &mut Noise| {
        let shares: Vec<f64> = (0..10).map(|_| share(noise)).collect();
        let sum: f64 = shares.iter().sum();
        shares.iter().map(|share| (600.0 * share / sum) as u64).collect()
    };
    (0..CLIENTS).map(|_| row(&mut noise)).collect()
}

/// Noise that is the same every time.
struct Noise(u64);

impl Noise {
    /// Uniform between -1 and 1 (SplitMix64).
    fn centred(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}
