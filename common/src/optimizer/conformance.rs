//! Holds every optimizer against oracles written apart, and against what all of them promise.

use proptest::prelude::*;

use super::*;
use crate::rng::{Purpose, Rng};

/// One value's update in plain scalar f32, in the order of operations the kernels promise. `s` is its state.
///
/// `decay` is `None` where the plain formula, which has no such term, is meant.
fn oracle(
    optimizer: &Optimizer,
    w: f32,
    g: f32,
    s: &mut [f32; 2],
    rate: f32,
    t: i32,
    decay: Option<f32>,
) -> f32 {
    let l2 = |g: f32| if let Some(decay) = decay { g + decay * w } else { g };
    let moments = |g: f32, s: &mut [f32; 2], beta1: f64, beta2: f64, epsilon: f64| -> f32 {
        s[0] = beta1 as f32 * s[0] + (1.0 - beta1) as f32 * g;
        s[1] = beta2 as f32 * s[1] + (1.0 - beta2) as f32 * (g * g);
        let step = (f64::from(rate) / (1.0 - libm::pow(beta1, f64::from(t)))) as f32;
        let root = (1.0 / libm::sqrt(1.0 - libm::pow(beta2, f64::from(t)))) as f32;
        step * s[0] / (s[1].sqrt() * root + epsilon as f32)
    };
    match *optimizer {
        Optimizer::Sgd(_) => w - rate * l2(g),
        Optimizer::Momentum(o) => {
            s[0] = o.mu as f32 * s[0] + l2(g);
            w - rate * s[0]
        }
        Optimizer::Nesterov(o) => {
            s[0] = o.mu as f32 * s[0] + l2(g);
            w - rate * (l2(g) + o.mu as f32 * s[0])
        }
        Optimizer::Adagrad(o) => {
            s[0] += l2(g) * l2(g);
            w - rate * l2(g) / (s[0].sqrt() + o.epsilon as f32)
        }
        Optimizer::Rmsprop(o) => {
            s[0] = o.rho as f32 * s[0] + (1.0 - o.rho) as f32 * (l2(g) * l2(g));
            w - rate * l2(g) / (s[0].sqrt() + o.epsilon as f32)
        }
        Optimizer::Adam(o) => w - moments(l2(g), s, o.beta1, o.beta2, o.epsilon),
        Optimizer::Adamw(o) => {
            let shrink = decay.map(|decay| (f64::from(rate) * f64::from(decay)) as f32);
            let kept = if let Some(shrink) = shrink { w - shrink * w } else { w };
            kept - moments(g, s, o.beta1, o.beta2, o.epsilon)
        }
        Optimizer::FedAdagrad(o) => {
            s[0] = o.beta1 as f32 * s[0] + (1.0 - o.beta1) as f32 * g;
            s[1] += g * g;
            w - rate * s[0] / (s[1].sqrt() + o.tau as f32)
        }
        Optimizer::FedAdam(o) => {
            s[0] = o.beta1 as f32 * s[0] + (1.0 - o.beta1) as f32 * g;
            s[1] = o.beta2 as f32 * s[1] + (1.0 - o.beta2) as f32 * (g * g);
            w - rate * s[0] / (s[1].sqrt() + o.tau as f32)
        }
        Optimizer::FedYogi(o) => {
            s[0] = o.beta1 as f32 * s[0] + (1.0 - o.beta1) as f32 * g;
            let distance = s[1] - g * g;
            let sign = if distance == 0.0 { 0.0 } else { distance.signum() };
            s[1] -= (1.0 - o.beta2) as f32 * (g * g) * sign;
            w - rate * s[0] / (s[1].sqrt() + o.tau as f32)
        }
    }
}

/// One value's update as the papers write it, in f64.
fn paper(optimizer: &Optimizer, w: f64, g: f64, s: &mut [f64; 2], rate: f64, t: i32) -> f64 {
    let corrected = |g: f64, s: &mut [f64; 2], beta1: f64, beta2: f64, epsilon: f64| {
        s[0] = beta1 * s[0] + (1.0 - beta1) * g;
        s[1] = beta2 * s[1] + (1.0 - beta2) * g * g;
        let (m, v) = (s[0] / (1.0 - beta1.powi(t)), s[1] / (1.0 - beta2.powi(t)));
        m / (v.sqrt() + epsilon)
    };
    match *optimizer {
        Optimizer::Sgd(o) => w - rate * (g + o.weight_decay * w),
        Optimizer::Momentum(o) => {
            // At a constant rate the papers' velocity is -rate times ours.
            s[0] = o.mu * s[0] - rate * (g + o.weight_decay * w);
            w + s[0]
        }
        Optimizer::Nesterov(o) => {
            // Bengio et al. 2013: w + mu^2 v - (1 + mu) rate g, with the velocity before the update.
            let g = g + o.weight_decay * w;
            let next = w + o.mu * o.mu * s[0] - (1.0 + o.mu) * rate * g;
            s[0] = o.mu * s[0] - rate * g;
            next
        }
        Optimizer::Adagrad(o) => {
            let g = g + o.weight_decay * w;
            s[0] += g * g;
            w - rate * g / (o.epsilon + s[0].sqrt())
        }
        Optimizer::Rmsprop(o) => {
            let g = g + o.weight_decay * w;
            s[0] = o.rho * s[0] + (1.0 - o.rho) * g * g;
            w - rate * g / (s[0].sqrt() + o.epsilon)
        }
        Optimizer::Adam(o) => w - rate * corrected(g + o.weight_decay * w, s, o.beta1, o.beta2, o.epsilon),
        Optimizer::Adamw(o) => w - rate * (corrected(g, s, o.beta1, o.beta2, o.epsilon) + o.weight_decay * w),
        // Reddi et al. 2021, algorithm 2, by the mean difference D = -g, which is added.
        Optimizer::FedAdagrad(o) => {
            s[0] = o.beta1 * s[0] - (1.0 - o.beta1) * g;
            s[1] += g * g;
            w + rate * s[0] / (s[1].sqrt() + o.tau)
        }
        Optimizer::FedAdam(o) => {
            s[0] = o.beta1 * s[0] - (1.0 - o.beta1) * g;
            s[1] = o.beta2 * s[1] + (1.0 - o.beta2) * g * g;
            w + rate * s[0] / (s[1].sqrt() + o.tau)
        }
        Optimizer::FedYogi(o) => {
            s[0] = o.beta1 * s[0] - (1.0 - o.beta1) * g;
            s[1] -= (1.0 - o.beta2) * g * g * (s[1] - g * g).signum();
            w + rate * s[0] / (s[1].sqrt() + o.tau)
        }
    }
}

/// The weight decay, of those that have one.
fn weight_decay(optimizer: &mut Optimizer) -> Option<&mut f64> {
    let setting = optimizer.settings().into_iter().find(|setting| setting.name == "weight_decay");
    setting.map(|setting| setting.value)
}

/// Every optimizer that has a weight decay, with this one; and those that have none if it is 0.
fn decaying(decay: f64) -> Vec<Optimizer> {
    let with = |mut optimizer: Optimizer| match weight_decay(&mut optimizer) {
        Some(value) => {
            *value = decay;
            Some(optimizer)
        }
        None => (decay == 0.0).then_some(optimizer),
    };
    Optimizer::all().into_iter().filter_map(with).collect()
}

/// Every optimizer without weight decay and, where it has one, with it.
pub(super) fn cases() -> Vec<Optimizer> {
    [decaying(0.0), decaying(0.03125)].concat()
}

/// A scalar oracle's state before the first update.
fn initial<T: Copy + Default + From<f32>>(optimizer: &Optimizer) -> [T; 2] {
    let mut state = [T::default(); 2];
    for (value, initial) in state.iter_mut().zip(optimizer.initial_state()) {
        *value = T::from(initial);
    }
    state
}

/// Numbers of either sign, none of them near 0.
pub(super) fn numbers(rng: &mut Rng, len: usize) -> Vec<f32> {
    let number = |_| (0.5 + 1.5 * rng.unit()) as f32 * if rng.bits() & 1 == 0 { 1.0 } else { -1.0 };
    (0..len).map(number).collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `updates` updates of `values`, the gradients drawn from `seed` and the rate rising a little each time.
fn train(
    optimizer: &Optimizer,
    values: &[f32],
    seed: u64,
    updates: usize,
    cuts: &[usize],
) -> (Vec<f32>, Vec<State>) {
    let mut rng = Rng::new(seed, Purpose::Delivery);
    let bounds: Vec<(usize, usize)> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let mut states: Vec<State> = bounds.iter().map(|&(from, to)| State::new(optimizer, to - from)).collect();
    let mut current = values.to_vec();
    for update in 0..updates {
        let gradient = numbers(&mut rng, values.len());
        let rate = 0.01 + update as f32 * 0.001;
        let mut next = vec![f32::NAN; values.len()]; // whatever is left of it would show
        for (&(from, to), state) in bounds.iter().zip(&mut states) {
            let (current, next) = (Some(&current[from..to]), &mut next[from..to]);
            let gradient = Gradient::Whole(&gradient[from..to]);
            optimizer.update(Update { current, next, gradient, state, rate });
        }
        current = next;
    }
    (current, states)
}

#[test]
fn twenty_updates_have_the_bits_of_a_scalar_loop() {
    for optimizer in cases() {
        let mut rng = Rng::new(1, Purpose::Delivery);
        let decay = weight_decay(&mut { optimizer }).map(|decay| *decay as f32).filter(|&decay| decay != 0.0);
        // 1003 values: whole vectors and a remainder. A few special ones among them.
        let mut values = numbers(&mut rng, 1003);
        values[0] = -0.0;
        values[1] = 0.0;
        values[2] = f32::INFINITY;
        values[3] = f32::MIN_POSITIVE / 8.0;
        let (mut slow, mut memory) = (values.clone(), vec![initial(&optimizer); 1003]);
        let mut state = State::new(&optimizer, 1003);
        for t in 1..=20 {
            let mut gradient = numbers(&mut rng, 1003);
            gradient[..2].fill(-0.0);
            let rate = 0.1 / t as f32;
            let mut next = vec![f32::NAN; 1003];
            let next_values = &mut next;
            optimizer.update(Update {
                current: Some(&values),
                next: next_values,
                gradient: Gradient::Whole(&gradient),
                state: &mut state,
                rate,
            });
            values = next;
            for ((w, &g), s) in slow.iter_mut().zip(&gradient).zip(&mut memory) {
                *w = oracle(&optimizer, *w, g, s, rate, t, decay);
            }
            assert_eq!(bits(&values), bits(&slow), "{optimizer}, update {t}");
            for (i, vector) in state.vectors.iter().enumerate() {
                let slow: Vec<f32> = memory.iter().map(|s| s[i]).collect();
                assert_eq!(
                    bits(vector),
                    bits(&slow),
                    "{optimizer}, {}, update {t}",
                    optimizer.state_names()[i]
                );
            }
        }
    }
}

#[test]
fn twenty_updates_follow_the_papers() {
    for optimizer in cases() {
        let mut rng = Rng::new(2, Purpose::Delivery);
        let mut values: Vec<f32> = numbers(&mut rng, 100).iter().map(|w| w * 4.0).collect();
        let mut exact: Vec<f64> = values.iter().map(|&w| f64::from(w)).collect();
        let (mut state, mut memory) = (State::new(&optimizer, 100), vec![initial(&optimizer); 100]);
        let rate = 0.01_f32;
        for t in 1..=20 {
            let gradient = numbers(&mut rng, 100);
            let mut next = vec![0.0; 100];
            let update = Update {
                current: Some(&values),
                next: &mut next,
                gradient: Gradient::Whole(&gradient),
                state: &mut state,
                rate,
            };
            optimizer.update(update);
            values = next;
            for ((w, &g), s) in exact.iter_mut().zip(&gradient).zip(&mut memory) {
                *w = paper(&optimizer, *w, f64::from(g), s, f64::from(rate), t);
            }
            for (&found, &expected) in values.iter().zip(&exact) {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= 1e-5 * expected.abs(), "{optimizer}: {found} is not {expected} after {t}");
            }
        }
    }
}

#[test]
fn a_decay_of_zero_leaves_the_plain_formula() {
    // -0 + 0 * 1 is +0, and 0 * inf is not a number: adding a decay of 0 would be seen.
    for optimizer in &decaying(0.0) {
        for (w, g) in [(1.0, -0.0), (-0.0, -0.0), (-0.0, 0.0), (f32::INFINITY, 1.0)] {
            let (mut next, mut state) = ([f32::NAN], State::new(optimizer, 1));
            let update = Update {
                current: Some(&[w]),
                next: &mut next,
                gradient: Gradient::Whole(&[g]),
                state: &mut state,
                rate: 0.125,
            };
            optimizer.update(update);
            let expected = oracle(optimizer, w, g, &mut initial(optimizer), 0.125, 1, None);
            assert_eq!(next[0].to_bits(), expected.to_bits(), "{optimizer} at {w} with {g}");
        }
    }
}

#[test]
fn adamw_without_decay_is_adam() {
    let values = numbers(&mut Rng::new(3, Purpose::Delivery), 100);
    let named = |name| decaying(0.0).into_iter().find(|optimizer| optimizer.name() == name).unwrap();
    let (adam, _) = train(&named("adam"), &values, 4, 20, &[0, 100]);
    let (adamw, _) = train(&named("adamw"), &values, 4, 20, &[0, 100]);
    assert_eq!(bits(&adam), bits(&adamw));
}

#[test]
fn a_value_at_rest_stays() {
    for optimizer in &decaying(0.0) {
        let current = [0.0, -0.0, 1.0, -3.5, f32::MIN_POSITIVE, f32::MAX];
        let (mut next, mut state) = ([f32::NAN; 6], State::new(optimizer, 6));
        let gradient = [0.0; 6];
        let update = Update {
            current: Some(&current),
            next: &mut next,
            gradient: Gradient::Whole(&gradient),
            state: &mut state,
            rate: 0.1,
        };
        optimizer.update(update);
        assert_eq!(bits(&next), bits(&current), "{optimizer}");
    }
}

#[test]
fn a_quadratic_bowl_is_descended_to_its_bottom() {
    let (curvature, bottom) = ([0.5, 1.0, 2.0, 5.0], [1.0, -2.0, 0.5, 3.0]);
    for optimizer in &decaying(0.0) {
        let mut values = vec![0.0_f32; 4];
        let mut state = State::new(optimizer, 4);
        // Adagrad's steps fade by themselves; the others' fade with the rate.
        let peak = if optimizer.name().ends_with("adagrad") { 1.0 } else { 0.1 };
        for t in 0..2000 {
            let gradient: Vec<f32> = (0..4).map(|i| curvature[i] * (values[i] - bottom[i])).collect();
            let rate = peak * (1.0 - t as f32 / 2000.0);
            let mut next = vec![0.0; 4];
            let update = Update {
                current: Some(&values),
                next: &mut next,
                gradient: Gradient::Whole(&gradient),
                state: &mut state,
                rate,
            };
            optimizer.update(update);
            values = next;
        }
        let error = (0..4).map(|i| (values[i] - bottom[i]).abs()).fold(0.0, f32::max);
        assert!(error < 1e-3, "{optimizer} ends at {values:?}, {error} from {bottom:?}");
        assert_eq!(state.updates, 2000);
    }
}

#[test]
fn the_state_is_as_described() {
    for optimizer in Optimizer::all() {
        let state = State::new(&optimizer, 70);
        assert_eq!(state.vectors.len(), optimizer.state_vectors());
        assert_eq!(optimizer.state_names().len(), optimizer.state_vectors());
        assert!(state.vectors.iter().all(|vector| vector.len() == 70), "{optimizer}");
        assert_eq!(state.updates, 0);
        for (vector, initial) in state.vectors.iter().zip(optimizer.initial_state()) {
            assert!(vector.iter().all(|&x| x == initial), "{optimizer}");
        }
        let (_, states) = train(&optimizer, &[1.0; 70], 5, 3, &[0, 70]);
        assert_eq!(states[0].updates, 3);
        for (vector, initial) in states[0].vectors.iter().zip(optimizer.initial_state()) {
            assert!(vector.iter().all(|&x| x != initial), "{optimizer} leaves state untouched");
        }
    }
}

#[test]
fn slices_that_do_not_belong_together_are_refused() {
    for optimizer in Optimizer::all() {
        // (values, next, gradient, state) lengths; the last is the nearest acceptable one.
        for (lengths, fits) in [
            ([3, 2, 3, 3], false),
            ([3, 3, 4, 3], false),
            ([3, 3, 3, 2], optimizer.state_vectors() == 0),
            ([3, 3, 3, 3], true),
        ] {
            let outcome = std::panic::catch_unwind(|| {
                let [current, mut next, gradient] = [0, 1, 2].map(|i| vec![0.0; lengths[i]]);
                let mut state = State::new(&optimizer, lengths[3]);
                let (current, gradient) = (Some(&current[..]), Gradient::Whole(&gradient));
                optimizer.update(Update { current, next: &mut next, gradient, state: &mut state, rate: 0.1 });
            });
            assert_eq!(outcome.is_ok(), fits, "{optimizer} with lengths {lengths:?}");
        }
        let other = if optimizer.state_vectors() == 1 { Optimizer::default() } else { Optimizer::all()[1] };
        let mut state = State::new(&other, 1);
        let outcome = std::panic::catch_unwind(move || {
            let (current, mut next) = ([0.0], [0.0]);
            optimizer.update(Update {
                current: Some(&current),
                next: &mut next,
                gradient: Gradient::Whole(&[1.0]),
                state: &mut state,
                rate: 0.1,
            });
        });
        assert!(outcome.is_err(), "{optimizer} takes the state of {other}");
    }
}

proptest! {
    #[test]
    fn cutting_into_slices_changes_no_bits(
        len in 0_usize..300,
        at in prop::collection::vec(0_usize..300, 0..5),
        seed: u64,
        updates in 1_usize..6,
    ) {
        let mut cuts: Vec<usize> = at.iter().map(|&at| at.min(len)).chain([0, len]).collect();
        cuts.sort_unstable();
        let values = numbers(&mut Rng::new(seed, Purpose::Partition), len);
        for optimizer in cases() {
            let (whole, states) = train(&optimizer, &values, seed, updates, &[0, len]);
            let (pieces, parts) = train(&optimizer, &values, seed, updates, &cuts);
            prop_assert_eq!(bits(&whole), bits(&pieces), "{} cut at {:?}", optimizer, cuts);
            for (i, vector) in states[0].vectors.iter().enumerate() {
                let joined: Vec<f32> = parts.iter().flat_map(|part| part.vectors[i].to_vec()).collect();
                prop_assert_eq!(bits(vector), bits(&joined));
            }
        }
    }
}
