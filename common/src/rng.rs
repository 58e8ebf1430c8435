//! Random numbers keyed by what they are for, never by how many were drawn before.
//!
//! Each purpose has its own ChaCha8 stream: the 32-byte key is (seed, purpose, a, b), so that a stream depends
//! on nothing but its name and can be opened at any position. ChaCha8 is fixed by its specification (Bernstein
//! 2008, "ChaCha, a variant of Salsa20"), unlike the standard generators of most libraries.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// The initial values of the variable with this name.
    InitialValues(&'a str),
    /// How the examples are dealt to the clients.
    Partition,
    /// The order of a worker's examples in one pass.
    Shuffle {
        /// The worker whose examples are permuted.
        worker: u32,
        /// The pass over the data, from 0.
        pass: u64,
    },
    /// One part of how examples are dealt, where a rule draws more than once: a client's shares, a class's cut.
    PartitionPart(u64),
    /// The noise added to the features of one example by the client that owns it.
    FeatureNoise {
        /// The number of the example.
        example: u32,
    },
    /// The order of a client's examples in one round.
    ClientShuffle {
        /// The client whose examples are permuted.
        client: u32,
        /// The round, from 0.
        round: u64,
    },
    /// Which clients take part in a round.
    Cohort {
        /// The round, from 0.
        round: u64,
    },
    /// Whether a client drops out of a round.
    Dropout {
        /// The client.
        client: u32,
        /// The round, from 0.
        round: u64,
    },
    /// How many passes a client manages in a round.
    Straggler {
        /// The client.
        client: u32,
        /// The round, from 0.
        round: u64,
    },
    /// Which of its clients a worker trains next, where nobody chooses cohorts.
    NextClient {
        /// The worker.
        worker: u32,
        /// Its step, from 0.
        step: u64,
    },
    /// How the values of a variable are rounded, where chance decides, in what a worker or a client pushes.
    PushRounding {
        /// The worker, or in the federated modes the client.
        source: u32,
        /// The variable.
        variable: u32,
        /// The step or round, from 0.
        step: u64,
    },
    /// How the values of a variable are rounded, where chance decides, in what a server answers.
    ValuesRounding {
        /// The variable.
        variable: u32,
        /// The version of the values.
        version: u64,
    },
    /// How long an emulated step takes.
    StepTime {
        /// The worker.
        worker: u32,
        /// Its step, from 0.
        step: u64,
    },
    /// The order of delivery in a simulated cluster.
    Delivery,
    /// What a faulty link does to the datagrams on it.
    Link {
        /// The link and its direction.
        link: u64,
    },
    /// When and how processes are disturbed in a schedule of faults.
    Disturbance,
    /// What a faulty store does with one operation.
    Storage {
        /// The number of the operation, from 0.
        operation: u64,
    },
    /// One part of what is drawn for a simulated cluster: its configuration, its network, a worker's steps.
    Simulation(u64),
}

impl Purpose<'_> {
    fn key(self) -> (&'static [u8; 8], u64, u64) {
        match self {
            Self::InitialValues(name) => (b"initial\0", xxhash_rust::xxh3::xxh3_64(name.as_bytes()), 0),
            Self::Partition => (b"partitio", 0, 0),
            Self::Shuffle { worker, pass } => (b"shuffle\0", u64::from(worker), pass),
            Self::PartitionPart(part) => (b"partpart", part, 0),
            Self::FeatureNoise { example } => (b"noise\0\0\0", u64::from(example), 0),
            Self::ClientShuffle { client, round } => (b"clientsh", u64::from(client), round),
            Self::Cohort { round } => (b"cohort\0\0", round, 0),
            Self::Dropout { client, round } => (b"dropout\0", u64::from(client), round),
            Self::Straggler { client, round } => (b"straggle", u64::from(client), round),
            Self::NextClient { worker, step } => (b"nextclnt", u64::from(worker), step),
            Self::PushRounding { source, variable, step } => {
                (b"pushroun", u64::from(source) << 32 | u64::from(variable), step)
            }
            Self::ValuesRounding { variable, version } => (b"valround", u64::from(variable), version),
            Self::StepTime { worker, step } => (b"steptime", u64::from(worker), step),
            Self::Delivery => (b"delivery", 0, 0),
            Self::Link { link } => (b"link\0\0\0\0", link, 0),
            Self::Disturbance => (b"disturb\0", 0, 0),
            Self::Storage { operation } => (b"storage\0", operation, 0),
            Self::Simulation(part) => (b"simulate", part, 0),
        }
    }
}

/// A stream of random numbers for one purpose.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// Opens the stream of this purpose at its beginning.
    pub fn new(seed: u64, purpose: Purpose<'_>) -> Self {
        let (tag, a, b) = purpose.key();
        let mut key = [0_u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(tag);
        key[16..24].copy_from_slice(&a.to_le_bytes());
        key[24..].copy_from_slice(&b.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A whole number below `bound`, without bias (Lemire 2019, "Fast Random Integer Generation in an Interval").
    ///
    /// # Panics
    /// If `bound` is 0: there is no such number.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let low = product as u64;
            if low >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in (0, 1), never 0, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) * (1.0 / (1_u64 << 53) as f64)
    }

    /// Puts the items into a random order (Fisher and Yates; Durstenfeld 1964).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// Fills `values` with the normal deviates number `start..start + values.len()` of a stream, times `deviation`.
///
/// Box and Muller (1958): each pair of deviates takes one pair of uniform numbers, so that any part of a variable
/// can be made without making what is before it. `libm` is used because it gives the same bits on every machine.
///
/// # Panics
/// If `start` is odd: a pair is made whole.
pub fn normal(seed: u64, purpose: Purpose<'_>, start: u64, deviation: f64, values: &mut [f32]) {
    assert!(start.is_multiple_of(2), "normal deviates are made in pairs");
    let mut rng = Rng::new(seed, purpose);
    // A pair of deviates takes two u64, which are four words of the generator.
    rng.0.set_word_pos(u128::from(start / 2) * 4);
    for pair in values.chunks_mut(2) {
        let radius = deviation * libm::sqrt(-2.0 * libm::log(rng.unit()));
        let angle = 2.0 * std::f64::consts::PI * rng.unit();
        pair[0] = (radius * libm::cos(angle)) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * libm::sin(angle)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_variable_is_the_same_as_in_the_whole() {
        let purpose = Purpose::InitialValues("dense1/weight");
        let mut whole = vec![0.0; 1001];
        normal(7, purpose, 0, 0.5, &mut whole);
        for start in [0, 64, 128, 640, 998] {
            let mut part = vec![0.0; 1001 - start];
            normal(7, purpose, start as u64, 0.5, &mut part);
            assert_eq!(part, whole[start..], "from {start}");
        }
    }

    #[test]
    fn normal_deviates_have_the_moments_of_a_normal_distribution() {
        let mut values = vec![0.0; 200_000];
        normal(1, Purpose::InitialValues("w"), 0, 2.0, &mut values);
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let moment = |k: i32| values.iter().map(|&x| (f64::from(x) - mean).powi(k)).sum::<f64>() / n;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((moment(2) - 4.0).abs() < 0.05, "variance {}", moment(2));
        assert!((moment(4) / moment(2).powi(2) - 3.0).abs() < 0.06, "kurtosis");
    }

    #[test]
    fn purposes_do_not_share_a_stream() {
        let mut first: Vec<u64> = [
            Purpose::InitialValues("a"),
            Purpose::InitialValues("b"),
            Purpose::Partition,
            Purpose::Shuffle { worker: 0, pass: 0 },
            Purpose::Shuffle { worker: 0, pass: 1 },
            Purpose::Shuffle { worker: 1, pass: 0 },
            Purpose::PartitionPart(0),
            Purpose::PartitionPart(1),
            Purpose::FeatureNoise { example: 0 },
            Purpose::ClientShuffle { client: 0, round: 0 },
            Purpose::ClientShuffle { client: 1, round: 0 },
            Purpose::ClientShuffle { client: 0, round: 1 },
            Purpose::Cohort { round: 0 },
            Purpose::Cohort { round: 1 },
            Purpose::Dropout { client: 0, round: 0 },
            Purpose::Straggler { client: 0, round: 0 },
            Purpose::NextClient { worker: 0, step: 0 },
            Purpose::StepTime { worker: 0, step: 0 },
            Purpose::PushRounding { source: 0, variable: 0, step: 0 },
            Purpose::PushRounding { source: 1, variable: 0, step: 0 },
            Purpose::PushRounding { source: 0, variable: 1, step: 0 },
            Purpose::PushRounding { source: 0, variable: 0, step: 1 },
            Purpose::ValuesRounding { variable: 0, version: 0 },
            Purpose::ValuesRounding { variable: 1, version: 0 },
            Purpose::ValuesRounding { variable: 0, version: 1 },
            Purpose::Delivery,
            Purpose::Link { link: 0 },
            Purpose::Link { link: 1 },
            Purpose::Disturbance,
            Purpose::Storage { operation: 0 },
            Purpose::Simulation(0),
            Purpose::Simulation(1),
        ]
        .map(|p| Rng::new(7, p).bits())
        .to_vec();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 32);
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = Rng::new(3, Purpose::Delivery);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_600..10_400).contains(&c)), "{counts:?}");
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Rng::new(1, Purpose::Shuffle { worker: 2, pass: 3 }).shuffle(&mut items);
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
