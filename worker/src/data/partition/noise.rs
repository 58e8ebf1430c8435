//! Adds noise to the features, more of it from client to client.

use windlass_common::rng::{self, Purpose};

/// Values made at a time, on the stack; even, because normal deviates are made in pairs.
const CHUNK: usize = 256;

/// Gaussian noise on the features that grows with the client: that of client k of K (from 0) has variance
/// sigma (k + 1) / K (Li et al. 2022, NIID-Bench, "noise-based feature imbalance").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeatureNoise {
    /// The variance of the last client's noise; not negative.
    pub sigma: f64,
    /// Number of clients.
    pub clients: u32,
}

impl FeatureNoise {
    /// Variance of the noise of one client, from 0.
    pub fn variance(&self, client: u32) -> f64 {
        self.sigma * (f64::from(client) + 1.0) / f64::from(self.clients)
    }

    /// Adds the noise of one example of one client to its features.
    ///
    /// It depends on nothing but the seed, the example's number and the client's variance, so an example has the same
    /// noise every time. What it does to the range of the features stays: nothing is clipped.
    pub fn add(&self, seed: u64, client: u32, example: u32, features: &mut [f32]) {
        let deviation = libm::sqrt(self.variance(client));
        if deviation == 0.0 {
            return;
        }
        let mut noise = [0.0; CHUNK];
        for (part, values) in (0_u64..).zip(features.chunks_mut(CHUNK)) {
            let noise = &mut noise[..values.len()];
            rng::normal(seed, Purpose::FeatureNoise { example }, part * CHUNK as u64, deviation, noise);
            for (value, &noise) in values.iter_mut().zip(&*noise) {
                *value += noise;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISE: FeatureNoise = FeatureNoise { sigma: 0.4, clients: 10 };

    fn noise(seed: u64, client: u32, example: u32) -> Vec<f32> {
        let mut features = vec![0.0; 785];
        NOISE.add(seed, client, example, &mut features);
        features
    }

    #[test]
    fn an_example_has_the_same_noise_every_time() {
        assert_eq!(noise(1, 3, 7), noise(1, 3, 7));
        assert_ne!(noise(1, 3, 7), noise(1, 3, 8));
        assert_ne!(noise(1, 3, 7), noise(2, 3, 7));
        let mut whole = vec![0.0; 785];
        let deviation = NOISE.variance(3).sqrt();
        rng::normal(1, Purpose::FeatureNoise { example: 7 }, 0, deviation, &mut whole);
        assert_eq!(noise(1, 3, 7), whole, "the chunks are parts of one stream");
    }

    #[test]
    fn its_variance_grows_with_the_client() {
        for (client, expected) in [(0, 0.04), (4, 0.2), (9, 0.4)] {
            assert!((NOISE.variance(client) - expected).abs() < 1e-12);
            let values: Vec<f32> = (0..100).flat_map(|example| noise(5, client, example)).collect();
            let n = values.len() as f64;
            let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
            assert!((variance / expected - 1.0).abs() < 0.03, "client {client}: {variance}");
        }
    }

    #[test]
    fn it_is_added_to_what_is_there() {
        let (mut features, zero) = (vec![0.5; 785], FeatureNoise { sigma: 0.0, clients: 3 });
        zero.add(1, 2, 7, &mut features);
        assert_eq!(features, vec![0.5; 785]);
        NOISE.add(1, 3, 7, &mut features);
        assert!(features.iter().zip(noise(1, 3, 7)).all(|(&value, noise)| value == 0.5 + noise));
    }
}
