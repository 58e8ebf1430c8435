//! Trains with biased codecs: with error feedback it converges, without it does not.
//!
//! The problems are least squares, f(x) = mean over i of (a_i x - b_i)^2 / 2 with one example at each step. All examples
//! can be fitted at once, so that nothing but the codec is in the way.

use super::*;
use crate::rng::Rng;

struct Problem {
    examples: Vec<(Vec<f32>, f32)>,
    start: Vec<f32>,
    solution: Vec<f32>,
    rate: f32,
}

impl Problem {
    fn gradient(&self, x: &[f64], step: u64) -> Vec<f64> {
        let chosen = Rng::new(5, Purpose::NextClient { worker: 0, step }).below(self.examples.len() as u64);
        let (a, b) = &self.examples[chosen as usize];
        let miss = a.iter().zip(x).map(|(&a, x)| f64::from(a) * x).sum::<f64>() - f64::from(*b);
        a.iter().map(|&a| miss * f64::from(a)).collect()
    }

    fn distance(&self, x: &[f64]) -> f64 {
        x.iter().zip(&self.solution).map(|(x, s)| (x - f64::from(*s)).powi(2)).sum::<f64>().sqrt()
    }

    fn begin(&self) -> Vec<f64> {
        self.start.iter().map(|&x| f64::from(x)).collect()
    }

    /// Trains with the kernels. Values stay in f64, so that only the codec differs from the oracle.
    fn train(&self, codec: Codec, feedback: bool, steps: u64) -> Vec<f64> {
        let mut x = self.begin();
        let (mut residual, mut decoded) = (vec![0.0_f32; x.len()], vec![0.0_f32; x.len()]);
        let blocks = x.len().div_ceil(64);
        let mut left = Leftovers::zeros(blocks);
        let (mut scratch, mut bytes) = (Scratch::default(), Vec::new());
        for step in 0..steps {
            let mut p: Vec<f32> =
                self.gradient(&x, step).iter().map(|g| (f64::from(self.rate) * g) as f32).collect();
            if feedback {
                p.iter_mut().zip(&residual).for_each(|(p, e)| *p += e);
                left.add_to(0, &mut p);
            }
            let purpose = Purpose::PushRounding { source: 0, variable: 0, step };
            let chosen = codec.prepare(&p, 1, purpose, &mut scratch);
            bytes.clear();
            match codec.is_biased() && codec.is_narrow() {
                // As a worker keeps it.
                true => {
                    bytes.resize(codec.fixed_bytes(p.len() as u64).unwrap() as usize, 0);
                    chosen.encode_piece((0, p.len()), 0, &p, Some(left.of(0..blocks)), &mut bytes);
                }
                false => chosen.encode_with_residual(0, &p, &mut residual, &mut bytes),
            }
            codec.decode(&bytes, &mut decoded).unwrap();
            x.iter_mut().zip(&decoded).for_each(|(x, &sent)| *x -= f64::from(sent));
        }
        x
    }

    /// The same in the words of Karimireddy et al., algorithm 2, without kernels, bytes or f32.
    fn oracle(&self, compress: impl Fn(&[f64]) -> Vec<f64>, feedback: bool, steps: u64) -> Vec<f64> {
        let mut x = self.begin();
        let mut e = vec![0.0; x.len()];
        for step in 0..steps {
            let g = self.gradient(&x, step);
            let kept = if feedback { 1.0 } else { 0.0 };
            let p: Vec<f64> = (0..x.len()).map(|i| f64::from(self.rate) * g[i] + kept * e[i]).collect();
            let sent = compress(&p);
            for i in 0..x.len() {
                x[i] -= sent[i];
                e[i] = p[i] - sent[i];
            }
        }
        x
    }
}

fn scaled_sign(p: &[f64]) -> Vec<f64> {
    let mean = p.iter().map(|p| p.abs()).sum::<f64>() / p.len() as f64;
    p.iter().map(|&p| if p < 0.0 { -mean } else { mean }).collect()
}

fn top_one(p: &[f64]) -> Vec<f64> {
    let mut largest = 0;
    for i in 1..p.len() {
        if p[i].abs() > p[largest].abs() {
            largest = i;
        }
    }
    (0..p.len()).map(|i| if i == largest { p[i] } else { 0.0 }).collect()
}

/// The third counterexample of Karimireddy et al. 2019: the examples are (1, -1) + (1, 1) / 2 and (-1, 1) + (1, 1) / 2, so
/// that the signs of every gradient are those of (1, -1) or (-1, 1), and the sum of x never changes.
fn signs_go_astray() -> Problem {
    Problem {
        examples: vec![(vec![1.5, -0.5], 0.0), (vec![-0.5, 1.5], 0.0)],
        start: vec![1.0, 1.0],
        solution: vec![0.0, 0.0],
        rate: 0.05,
    }
}

/// The first value has the largest gradient in every example, now in this direction, now in that, so that none of the
/// others is ever sent.
fn one_value_drowns_the_others() -> Problem {
    let solution: Vec<f32> = (0..16).map(|i| if i == 0 { 0.0 } else { (i % 5) as f32 - 1.75 }).collect();
    let example = |i: usize, side: f32| {
        let mut a = vec![0.0; 16];
        (a[0], a[i]) = (2.0 * side, 1.0);
        (a, solution[i])
    };
    let examples = (1..16).flat_map(|i| [example(i, 1.0), example(i, -1.0)]).collect();
    Problem { examples, start: vec![0.0; 16], solution: solution.clone(), rate: 0.02 }
}

fn one_of(values: u32) -> Codec {
    Codec::TopK { share: Share::millionths(1_000_000 / values).unwrap() }
}

#[test]
fn sign_converges_with_error_feedback_and_never_without() {
    let problem = signs_go_astray();
    let distance = |feedback, steps| problem.distance(&problem.train(Codec::Sign, feedback, steps));
    assert!(distance(true, 4_000) < 1e-4, "{}", distance(true, 4_000));
    // The nearest point whose sum is 2 is where it began.
    let without = problem.train(Codec::Sign, false, 4_000);
    assert!((without[0] + without[1] - 2.0).abs() < 1e-3, "{without:?}");
    assert!(problem.distance(&without) > 2_f64.sqrt() - 1e-3, "{without:?}");
}

#[test]
fn top_k_converges_with_error_feedback_and_never_without() {
    let problem = one_value_drowns_the_others();
    let begin = problem.distance(&problem.begin());
    let with = problem.distance(&problem.train(one_of(16), true, 30_000));
    assert!(with < 1e-3 * begin, "from {begin} to {with}");
    let without = problem.train(one_of(16), false, 30_000);
    assert_eq!(without[1..], problem.begin()[1..], "only the first value has moved");
    assert!(problem.distance(&without) >= begin);
}

#[test]
fn bytes_converge_with_error_feedback() {
    for problem in [signs_go_astray(), one_value_drowns_the_others()] {
        let begin = problem.distance(&problem.begin());
        for text in ["f32", "bf16", "f16", "int8", "int8-stochastic"] {
            let end = problem.distance(&problem.train(text.parse().unwrap(), true, 30_000));
            assert!(end < 1e-3 * begin, "{text}: from {begin} to {end}");
        }
    }
}

#[test]
fn the_kernels_go_the_way_of_the_algorithm() {
    // f32 rounds every residual; over these steps that has no time to choose another value or sign.
    for feedback in [true, false] {
        let signs = signs_go_astray();
        let (found, expected) =
            (signs.train(Codec::Sign, feedback, 300), signs.oracle(scaled_sign, feedback, 300));
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4),
            "{found:?}, not {expected:?}"
        );
        let many = one_value_drowns_the_others();
        let (found, expected) = (many.train(one_of(16), feedback, 300), many.oracle(top_one, feedback, 300));
        assert!(
            found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4),
            "{found:?}, not {expected:?}"
        );
        assert!(many.distance(&expected) != many.distance(&many.begin()));
    }
    // And in the end both arrive.
    let many = one_value_drowns_the_others();
    assert!(many.distance(&many.oracle(top_one, true, 30_000)) < 1e-2);
    let signs = signs_go_astray();
    assert!(signs.distance(&signs.oracle(scaled_sign, true, 4_000)) < 1e-3);
    assert!(signs.distance(&signs.oracle(scaled_sign, false, 4_000)) > 1.41);
}
