//! Says what federated training is made of: the work of a client, and the rounds in which it takes part.

use serde::{Deserialize, Serialize};

use super::PlanError;

/// Most clients of one run; the coordinator and every shard keep a few bytes for each.
pub const CLIENTS_MAX: u32 = 1 << 20;
/// Most clients asked in one round; each shard holds one push of each.
pub const COHORT_MAX: u32 = 1 << 14;
/// Most rounds of one run.
pub const ROUNDS_MAX: u64 = 1 << 32;

/// What a client does with the values it has pulled, before it pushes how they have changed (McMahan et al. 2017,
/// "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1, `ClientUpdate`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalWork {
    /// Passes over the client's examples (E). Not looked at where `steps` are given.
    pub passes: u32,
    /// Steps instead of passes; they go on through as many passes as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Examples per step (B); without it all of the client's at once (B = infinity). Its own default is for that: a text
    /// that leaves it out does not mean the usual batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Learning rate of a local step.
    pub rate: f64,
    /// What the rate is multiplied by with each round.
    pub rate_decay: f64,
    /// Share of the velocity that a local step keeps; a client begins each round without any.
    pub momentum: f64,
    /// Adds this many times the value to its gradient.
    pub weight_decay: f64,
    /// Gradients longer than this (L2 norm over all values) are shortened to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2): adds this many times
    /// the distance from the pulled values to the gradient.
    pub proximal: f64,
    /// Share of a round's clients that manage only 1 to E - 1 passes, chosen by the seed (same paper, section 5.2).
    pub stragglers: f64,
    /// What becomes of the work of those.
    pub straggler_work: StragglerWork,
}

impl Default for LocalWork {
    fn default() -> Self {
        Self {
            passes: 1,
            steps: None,
            batch: Some(10),
            rate: 0.1,
            rate_decay: 1.0,
            momentum: 0.0,
            weight_decay: 0.0,
            clip_norm: None,
            proximal: 0.0,
            stragglers: 0.0,
            straggler_work: StragglerWork::Kept,
        }
    }
}

/// What becomes of the work of a client that did not manage all of its passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StragglerWork {
    /// It is pushed like that of others.
    #[default]
    Kept,
    /// The client drops out of the round.
    Dropped,
}

/// Rounds of federated averaging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fedavg {
    /// The training ends after so many.
    pub rounds: u64,
    /// Pushes that a round is closed with.
    pub cohort: u32,
    /// Clients asked in a round: the cohort and, where some are expected to fail, more (Bonawitz et al. 2019, "Towards
    /// Federated Learning at Scale", section 2.2).
    pub asked: u32,
    /// A round that is over before its cohort is complete counts if it has so many pushes; otherwise it is abandoned.
    pub quorum: u32,
    /// A round is over after so many milliseconds, whatever has come by then. That of round 0 begins with its first push
    /// or dropout, since workers load their data before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Who is asked.
    #[serde(default)]
    pub sampler: Sampler,
    /// What a client's push counts in the mean.
    #[serde(default)]
    pub weights: Weights,
    /// Which worker trains a client.
    #[serde(default)]
    pub hosting: Hosting,
    /// What a client does.
    pub local: LocalWork,
}

/// Which clients take part in a round, always by seed and round alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Sampler {
    /// Each with the same chance, without replacement.
    #[default]
    Uniform,
    /// Drawn one after the other, without replacement, each with a chance proportional to its number of examples among
    /// those that are left.
    BySize,
    /// One after the other, and again from the beginning.
    RoundRobin,
    /// These; the first list for round 0, and after the last the first again.
    List {
        /// For each round the clients asked.
        rounds: Vec<Vec<u32>>,
    },
}

/// What a client's push counts in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// The number of its examples.
    #[default]
    Examples,
    /// The same as any other.
    Uniform,
}

/// Which worker trains a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hosting {
    /// In each round the workers get about the same number of examples; every worker has the data of every client.
    #[default]
    Balanced,
    /// Client c always worker c mod n, who alone needs its data.
    Fixed,
}

impl LocalWork {
    /// Checks every number against its range.
    ///
    /// # Errors
    /// Names the flag at fault, what was found and what would be right.
    pub fn check(&self) -> Result<(), PlanError> {
        let most = u64::from(super::BATCH_MAX);
        match self.steps {
            Some(steps) => whole("--local-steps", steps, 1, most)?,
            None => whole("--local-passes", self.passes.into(), 1, 100_000)?,
        }
        if let Some(batch) = self.batch {
            whole("--batch", batch.into(), 1, most)?;
        }
        number("--local-rate", self.rate, 1e-30..=1e6)?;
        number("--local-rate-decay", self.rate_decay, 1e-6..=1.0)?;
        number("--local-momentum", self.momentum, 0.0..=0.999_999)?;
        number("--local-weight-decay", self.weight_decay, 0.0..=1e6)?;
        number("--proximal", self.proximal, 0.0..=1e6)?;
        number("--stragglers", self.stragglers, 0.0..=1.0)?;
        if let Some(norm) = self.clip_norm {
            number("--clip-norm", norm, 1e-30..=1e30)?;
        }
        if self.stragglers > 0.0 && (self.steps.is_some() || self.passes < 2) {
            return Err(PlanError::Range {
                flag: "--stragglers",
                found: self.stragglers.to_string(),
                possible: "clients that do fewer passes need --local-passes of 2 or more".into(),
            });
        }
        Ok(())
    }

    /// The learning rate in a round.
    pub fn rate_in(&self, round: u64) -> f32 {
        // Beyond 2^31 rounds nothing is left of a rate that falls, and one that does not is as it was.
        let times = i32::try_from(round).unwrap_or(i32::MAX);
        (self.rate * libm::pow(self.rate_decay, f64::from(times))) as f32
    }
}

impl Fedavg {
    /// Checks every number against its range and against this many clients.
    ///
    /// # Errors
    /// Names the flag at fault, what was found and what would be right.
    pub fn check(&self, clients: u32) -> Result<(), PlanError> {
        whole("--rounds", self.rounds, 1, ROUNDS_MAX)?;
        whole("--cohort", self.cohort.into(), 1, clients.min(COHORT_MAX).into())?;
        whole("--ask", self.asked.into(), self.cohort.into(), clients.min(COHORT_MAX).into())?;
        whole("--quorum", self.quorum.into(), 1, self.cohort.into())?;
        if let Some(ms) = self.deadline_ms {
            whole("--round-deadline", ms, 1, 86_400_000)?;
        }
        if let Sampler::List { rounds } = &self.sampler {
            let sound = |list: &Vec<u32>| {
                let mut sorted = list.clone();
                sorted.sort_unstable();
                sorted.dedup();
                sorted.len() == list.len()
                    && list.len() == self.asked as usize
                    && sorted.last().is_some_and(|&last| last < clients)
            };
            if rounds.is_empty() || !rounds.iter().all(sound) {
                return Err(PlanError::Range {
                    flag: "--sampler",
                    found: "a list that is not possible".into(),
                    possible: format!(
                        "each round names {} different clients from 0 to {}",
                        self.asked,
                        clients - 1
                    ),
                });
            }
        }
        self.local.check()
    }
}

pub(super) fn whole(flag: &'static str, found: u64, min: u64, max: u64) -> Result<(), PlanError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    let possible = format!("{min} to {max} is possible");
    Err(PlanError::Range { flag, found: found.to_string(), possible })
}

pub(super) fn number(
    flag: &'static str,
    found: f64,
    range: std::ops::RangeInclusive<f64>,
) -> Result<(), PlanError> {
    if range.contains(&found) {
        return Ok(());
    }
    let possible = format!("{} to {} is possible", range.start(), range.end());
    Err(PlanError::Range { flag, found: found.to_string(), possible })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fedavg() -> Fedavg {
        Fedavg {
            rounds: 100,
            cohort: 10,
            asked: 12,
            quorum: 5,
            deadline_ms: None,
            sampler: Sampler::Uniform,
            weights: Weights::Examples,
            hosting: Hosting::Balanced,
            local: LocalWork::default(),
        }
    }

    #[test]
    fn what_is_not_possible_is_named() {
        assert_eq!(fedavg().check(100), Ok(()));
        let sentence = |fedavg: Fedavg, clients| fedavg.check(clients).unwrap_err().to_string();
        assert_eq!(sentence(Fedavg { quorum: 11, ..fedavg() }, 100), "--quorum is 11; 1 to 10 is possible");
        assert_eq!(sentence(fedavg(), 11), "--ask is 12; 10 to 11 is possible");
        assert_eq!(sentence(fedavg(), 9), "--cohort is 10; 1 to 9 is possible");
        let rounds = vec![vec![0; 12]];
        let twice = sentence(Fedavg { sampler: Sampler::List { rounds }, ..fedavg() }, 100);
        assert!(twice.contains("12 different clients from 0 to 99"), "{twice}");
        let local = LocalWork { stragglers: 0.5, ..LocalWork::default() };
        assert!(sentence(Fedavg { local, ..fedavg() }, 100).contains("--local-passes of 2 or more"));
    }

    #[test]
    fn a_text_without_a_batch_means_all_examples() {
        for batch in [None, Some(10), Some(600)] {
            let local = LocalWork { batch, ..LocalWork::default() };
            let text = toml::to_string(&local).unwrap();
            assert_eq!(toml::from_str::<LocalWork>(&text), Ok(local), "{text}");
        }
    }

    #[test]
    fn a_rate_decays_by_round() {
        let local = LocalWork { rate: 0.5, rate_decay: 0.5, ..LocalWork::default() };
        assert_eq!([local.rate_in(0), local.rate_in(1), local.rate_in(3)], [0.5, 0.25, 0.0625]);
        assert_eq!(LocalWork::default().rate_in(u64::MAX), 0.1);
    }
}
