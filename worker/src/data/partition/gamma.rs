//! Draws Dirichlet shares, in logarithms so that no concentration is too small.

use std::f64::consts::PI;

use windlass_common::rng::Rng;

/// The logarithm of a gamma deviate of this shape and scale 1 (Marsaglia and Tsang 2000, "A Simple Method for
/// Generating Gamma Variables").
///
/// A deviate of a small shape is often too small for f64 (of shape 0.001 every second one is below 10^-301), but its
/// logarithm is not. `libm` gives the same bits on every machine.
fn ln_gamma_deviate(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        // Section 6: a deviate of shape + 1, times U^(1/shape).
        let larger = ln_gamma_deviate(rng, shape + 1.0);
        return larger + libm::log(rng.unit()) / shape;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    loop {
        let x = normal_deviate(rng);
        let root = 1.0 + c * x;
        if root <= 0.0 {
            continue;
        }
        let v = root * root * root;
        let ln_v = libm::log(v);
        if libm::log(rng.unit()) < 0.5 * x * x + d - d * v + d * ln_v {
            return libm::log(d) + ln_v;
        }
    }
}

/// One standard normal deviate (Box and Muller 1958; its twin is not used).
fn normal_deviate(rng: &mut Rng) -> f64 {
    let radius = libm::sqrt(-2.0 * libm::log(rng.unit()));
    radius * libm::cos(2.0 * PI * rng.unit())
}

/// Dirichlet shares before they are divided by their sum: that can be done again for some of them alone.
#[derive(Debug)]
pub(super) struct LnShares(Vec<f64>);

impl LnShares {
    /// One draw from the Dirichlet distribution with these concentrations, all above 0.
    pub(super) fn draw(rng: &mut Rng, concentrations: impl Iterator<Item = f64>) -> Self {
        Self(concentrations.map(|concentration| ln_gamma_deviate(rng, concentration)).collect())
    }

    /// Replaces what `ends` holds by the running sums of the shares, renormalised over those that are open; the last
    /// open one ends at exactly 1, and a closed one ends where the one before it does.
    ///
    /// At least one must be open.
    pub(super) fn cumulate(&self, is_open: impl Fn(usize) -> bool, ends: &mut Vec<f64>) {
        let open = self.0.iter().enumerate().filter(|&(place, _)| is_open(place));
        let largest = open.clone().fold(f64::NEG_INFINITY, |largest, (_, &ln)| largest.max(ln));
        let total: f64 = open.clone().map(|(_, &ln)| libm::exp(ln - largest)).sum();
        let last_open = open.map(|(place, _)| place).last().expect("a share is open");
        ends.clear();
        let mut sum = 0.0;
        for (place, &ln) in self.0.iter().enumerate() {
            if is_open(place) {
                sum += libm::exp(ln - largest);
            }
            ends.push(if place < last_open { (sum / total).min(1.0) } else { 1.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_common::rng::Purpose;

    fn rng(seed: u64) -> Rng {
        Rng::new(seed, Purpose::PartitionPart(0))
    }

    fn shares(rng: &mut Rng, concentrations: &[f64]) -> Vec<f64> {
        let mut ends = vec![];
        LnShares::draw(rng, concentrations.iter().copied()).cumulate(|_| true, &mut ends);
        let starts = std::iter::once(0.0).chain(ends.iter().copied());
        ends.iter().zip(starts).map(|(end, start)| end - start).collect()
    }

    #[test]
    fn gamma_deviates_have_mean_and_variance_equal_to_their_shape() {
        for shape in [0.05, 0.5, 1.0, 2.5, 40.0] {
            let mut rng = rng(3);
            let n = 100_000;
            let values: Vec<f64> = (0..n).map(|_| ln_gamma_deviate(&mut rng, shape).exp()).collect();
            let mean = values.iter().sum::<f64>() / f64::from(n);
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
            // Four standard errors: of the mean sqrt(a / n), of the variance sqrt((2 a^2 + 6 a) / n).
            let error = |moment: f64| 4.0 * (moment / f64::from(n)).sqrt();
            assert!((mean - shape).abs() < error(shape), "shape {shape}: mean {mean}");
            let bound = error(2.0 * shape * shape + 6.0 * shape);
            assert!((variance - shape).abs() < bound, "shape {shape}: variance {variance}");
        }
    }

    #[test]
    fn the_logarithm_of_an_exponential_deviate_has_the_mean_of_theory() {
        // Shape 1: minus the Euler-Mascheroni constant; shape 0.001 as digamma(0.001) = -1000.5756.
        for (shape, expected, deviation) in [(1.0, -0.577_215_7, 1.2825), (0.001, -1000.5756, 1000.0)] {
            let mut rng = rng(5);
            let n = 50_000;
            let mean = (0..n).map(|_| ln_gamma_deviate(&mut rng, shape)).sum::<f64>() / f64::from(n);
            assert!((mean - expected).abs() < 4.0 * deviation / f64::from(n).sqrt(), "shape {shape}: {mean}");
        }
    }

    #[test]
    fn dirichlet_shares_have_the_means_and_variances_of_their_concentrations() {
        let prior = [0.5, 0.3, 0.2];
        for total in [0.1, 1.0, 10.0] {
            let (mut rng, n) = (rng(7), 40_000);
            let draws: Vec<Vec<f64>> = (0..n).map(|_| shares(&mut rng, &prior.map(|p| total * p))).collect();
            for (class, p) in prior.into_iter().enumerate() {
                let mean = draws.iter().map(|q| q[class]).sum::<f64>() / f64::from(n);
                let variance = draws.iter().map(|q| (q[class] - p).powi(2)).sum::<f64>() / f64::from(n);
                let expected = p * (1.0 - p) / (total + 1.0);
                assert!((mean - p).abs() < 4.0 * (expected / f64::from(n)).sqrt(), "{total} {class}: {mean}");
                assert!((variance / expected - 1.0).abs() < 0.05, "{total} {class}: {variance}");
            }
        }
    }

    #[test]
    fn the_smallest_concentration_gives_everything_to_one() {
        for seed in 0..100 {
            let shares = shares(&mut rng(seed), &[1e-9; 10]);
            assert!(shares.iter().any(|&share| share > 1.0 - 1e-9), "{shares:?}");
        }
    }

    #[test]
    fn closed_shares_have_no_width_and_the_others_fill_their_place() {
        let drawn = LnShares(vec![0.0, 2.0_f64.ln(), -1e12, 3.0_f64.ln()]);
        let mut ends = vec![];
        drawn.cumulate(|_| true, &mut ends);
        assert!((ends[0] - 1.0 / 6.0).abs() < 1e-12 && ends[1] == ends[2] && ends[3] == 1.0, "{ends:?}");
        drawn.cumulate(|place| place != 3 && place != 0, &mut ends);
        assert_eq!(ends, [0.0, 1.0, 1.0, 1.0]);
        // The only one left has the whole, however little it had before.
        drawn.cumulate(|place| place == 2, &mut ends);
        assert_eq!(ends, [0.0, 0.0, 1.0, 1.0]);
    }
}
