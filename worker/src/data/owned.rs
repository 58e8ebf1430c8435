//! Holds the training examples together with whose they are.

use windlass_common::ids::ClientId;

use super::{Dataset, FeatureNoise, Gathered};

/// The training examples and their owners.
#[derive(Clone, Debug)]
pub struct Owned {
    train: Dataset,
    clients: Vec<Vec<u32>>,
    noise: Option<Noise>,
}

/// Noise on the features, by owner.
#[derive(Clone, Debug)]
struct Noise {
    seed: u64,
    noise: FeatureNoise,
    /// The owner of each example.
    owners: Vec<u32>,
}

impl Owned {
    /// The examples of these clients. With `sigma` above 0 their features get noise that grows with the client.
    pub fn new(train: Dataset, clients: Vec<Vec<u32>>, seed: u64, sigma: f64) -> Self {
        let noise = (sigma > 0.0).then(|| {
            let mut owners = vec![0; train.len()];
            for (client, examples) in (0_u32..).zip(&clients) {
                examples.iter().for_each(|&example| owners[example as usize] = client);
            }
            Noise { seed, noise: FeatureNoise { sigma, clients: clients.len() as u32 }, owners }
        });
        Self { train, clients, noise }
    }

    /// The numbers of one client's examples.
    ///
    /// # Panics
    /// If there is no such client.
    pub fn of(&self, client: ClientId) -> &[u32] {
        &self.clients[client.index()]
    }

    /// The numbers of the examples of these clients together, one client after the other.
    pub fn union(&self, clients: &[ClientId]) -> Vec<u32> {
        clients.iter().flat_map(|&client| self.of(client)).copied().collect()
    }

    /// As [`Dataset::gather`], with the owners' noise.
    ///
    /// # Panics
    /// As [`Dataset::gather`].
    pub fn gather(&self, indices: &[u32], gathered: &mut Gathered) {
        self.train.gather(indices, gathered);
        if let Some(Noise { seed, noise, owners }) = &self.noise {
            let floats = gathered.as_floats();
            for (row, &example) in floats.chunks_exact_mut(self.train.feature_count()).zip(indices) {
                noise.add(*seed, owners[example as usize], example, row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Features;

    #[test]
    fn each_example_has_the_noise_of_its_owner() {
        let train = Dataset::new(Features::Floats(vec![1.0; 8]), vec![0; 4], 1);
        let gathered = |owned: &Owned, indices: &[u32]| {
            let mut gathered = Gathered::default();
            owned.gather(indices, &mut gathered);
            gathered.as_floats().to_vec()
        };
        let plain = Owned::new(train.clone(), vec![vec![2, 0], vec![1, 3]], 1, 0.0);
        assert_eq!(gathered(&plain, &[3, 0]), [1.0; 4]);
        assert_eq!(plain.union(&[ClientId(1), ClientId(0)]), [1, 3, 2, 0]);
        let noisy = Owned::new(train, vec![vec![2, 0], vec![1, 3]], 1, 1.0);
        let both = gathered(&noisy, &[3, 0]);
        assert!(both.iter().all(|&x| x != 1.0));
        assert_eq!(both[2..], gathered(&noisy, &[0])[..]);
        // Bytes are floats then.
        let train = Dataset::new(Features::Bytes(vec![51, 255]), vec![0; 2], 1);
        let plain = Owned::new(train.clone(), vec![vec![0, 1]], 1, 0.0);
        assert_eq!(gathered(&plain, &[1, 0]), [1.0, 0.2]);
        let noisy = gathered(&Owned::new(train, vec![vec![], vec![0, 1]], 1, 1.0), &[1, 0]);
        assert!(noisy[0] != 1.0 && noisy[1] != 0.2 && (noisy[0] - 1.0).abs() < 10.0, "{noisy:?}");
    }
}
