//! Checks a plan: each value against its limits, and those that depend on each other together.

use super::{
    BATCH_MAX, CLIENTS_MAX, COHORT_MAX, COMPENSATED_MAX, Clients, HELD_BYTES_MAX, Hosting, KEEP_MAX,
    LEFT_OUT_BYTES_MAX, Membership, Mode, Partition, Plan, PlanError, SERVERS_MAX, SHARDS_PER_SERVER_MAX,
    Sampler, WORKERS_MAX, federated,
};
use crate::optimizer::Optimizer;

impl Plan {
    /// Checks every value against its limits.
    ///
    /// # Errors
    /// Names the first value that is not possible, what was found and what would be right.
    pub fn check(&self) -> Result<(), PlanError> {
        let range = |flag, found: u64, min: u64, max: u64| {
            if (min..=max).contains(&found) {
                return Ok(());
            }
            Err(PlanError::Range {
                flag,
                found: found.to_string(),
                possible: format!("{min} to {max} is possible"),
            })
        };
        let named = !self.name.is_empty() && self.name.len() <= 128 && self.name != "." && self.name != "..";
        if !named || self.name.contains(['/', '\\', '\0', '\n']) {
            return Err(PlanError::Range {
                flag: "--name",
                found: format!("{:?}", self.name),
                possible: "1 to 128 characters without / or \\ are possible".into(),
            });
        }
        let (cluster, training) = (&self.cluster, &self.training);
        self.codecs.check()?;
        range("--seed", self.seed, 0, i64::MAX as u64)?;
        range("--servers", cluster.servers.into(), 1, SERVERS_MAX.into())?;
        range("--shards-per-server", cluster.shards_per_server.into(), 1, SHARDS_PER_SERVER_MAX.into())?;
        range("--workers", cluster.workers.into(), 1, WORKERS_MAX.into())?;
        range("--join-deadline", cluster.join_deadline_s, 1, 86_400)?;
        range("--rejoin-deadline", cluster.rejoin_deadline_s, 1, 86_400)?;
        range("--lease", cluster.lease_s, 3, 3600)?;
        range("--stall-deadline", cluster.stall_deadline_s, 1, 86_400)?;
        if let Membership::Elastic { workers_max } = cluster.membership {
            range("--workers-max", workers_max.into(), cluster.workers.into(), WORKERS_MAX.into())?;
        }
        range("--keep", self.checkpoints.keep.into(), 1, KEEP_MAX.into())?;
        range("--batch", training.batch.into(), 1, BATCH_MAX.into())?;
        range("--compute-threads", training.compute_threads.into(), 1, 1024)?;
        range("--evaluate-every", training.evaluate_every, 1, i64::MAX as u64)?;
        range("the number of training examples", self.data.train_examples, 1, u32::MAX.into())?;
        if !(training.passes > 0.0 && training.passes <= 1e6) {
            return Err(PlanError::Range {
                flag: "--passes",
                found: training.passes.to_string(),
                possible: "more than 0 and at most 1000000 is possible".into(),
            });
        }
        self.check_clients()?;
        self.check_mode()?;
        self.check_replicas()?;
        if let Mode::Sync { backup } = self.mode
            && backup >= cluster.workers
        {
            return Err(PlanError::Range {
                flag: "--backup",
                found: backup.to_string(),
                possible: format!(
                    "with {} workers at most {} may be left out",
                    cluster.workers,
                    cluster.workers - 1
                ),
            });
        }
        let sentence = |flag, e: &dyn std::fmt::Display| PlanError::Range {
            flag,
            found: "not possible".into(),
            possible: e.to_string(),
        };
        self.optimizer.check().map_err(|e| sentence("--optimizer", &e))?;
        self.schedule.check().map_err(|e| sentence("the learning rate's schedule", &e))?;
        self.placement()?;
        self.check_memory()
    }

    /// For how many there may be something that a codec has left out, each as long as the model: clients, or workers where
    /// these push for themselves; with balanced hosting each worker has its own for each client. 0 where nothing is kept of it.
    pub fn residuals_max(&self) -> u64 {
        let (workers, clients) = (u64::from(self.cluster.workers_max()), u64::from(self.clients.count));
        match &self.mode {
            _ if !self.codecs.push.is_biased() => 0,
            mode if mode.local().is_none() => workers,
            mode if mode.is_hosting_balanced() => workers * clients,
            _ => clients,
        }
    }

    /// Whether the pushes that may be held for one step, the versions that are kept, or what codecs have left out, fit into a
    /// server's memory.
    fn check_memory(&self) -> Result<(), PlanError> {
        let bytes = self.layout()?.total().saturating_mul(4) / u64::from(self.cluster.servers);
        let (residuals, most) = (self.residuals_max(), LEFT_OUT_BYTES_MAX / bytes.max(1));
        if residuals > most {
            return Err(PlanError::Range {
                flag: "--push-codec",
                found: self.codecs.push.to_string(),
                possible: format!(
                    "what it leaves out is part of checkpoints: a server would keep it {residuals} times, {bytes} bytes each, and \
                     has room for {most}; take fewer clients, --hosting fixed, more servers, or a codec that leaves out \
                     nothing for good"
                ),
            });
        }
        let pushes = "pushes of one step";
        let (flag, held, what) = match &self.mode {
            Mode::Sync { .. } => ("--workers", self.cluster.workers, pushes),
            Mode::Fedavg(fedavg) => ("--ask", fedavg.asked, pushes),
            Mode::Softsync { buffer, .. } | Mode::Fedbuff { buffer, .. } => ("--buffer", *buffer, pushes),
            mode if mode.compensation().is_some() => {
                let versions = self.cluster.workers_max().saturating_mul(mode.in_flight());
                let flag = match mode.in_flight() {
                    1 => "the number of workers",
                    _ => "twice the number of workers",
                };
                (flag, versions, "versions for --compensate")
            }
            Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => return Ok(()),
        };
        let most = HELD_BYTES_MAX / bytes.max(1);
        if u64::from(held) > most {
            return Err(PlanError::Range {
                flag,
                found: held.to_string(),
                possible: format!(
                    "a server would hold as many {what}, of {bytes} bytes each, and has room for {most}; take fewer, or \
                     more servers"
                ),
            });
        }
        Ok(())
    }

    fn check_clients(&self) -> Result<(), PlanError> {
        let Clients { count, partition, held_out, feature_noise, sizes } = &self.clients;
        federated::number("--client-holdout", *held_out, 0.0..=0.99)?;
        federated::number("--feature-noise", *feature_noise, 0.0..=1e6)?;
        let workers = self.cluster.workers_max();
        if *partition == Partition::Own && *count != workers {
            return Err(PlanError::Range {
                flag: "--clients",
                found: count.to_string(),
                possible: format!("with --partition own each of the {workers} workers is one client"),
            });
        }
        self.heterogeneity.check(workers)?;
        federated::whole("--clients", (*count).into(), workers.into(), CLIENTS_MAX.into())?;
        if !sizes.is_empty() && sizes.len() != *count as usize {
            return Err(PlanError::Range {
                flag: "the number of clients' sizes",
                found: sizes.len().to_string(),
                possible: format!("there are {count} clients"),
            });
        }
        if let Some(client) = sizes.iter().position(|&size| size == 0) {
            return Err(PlanError::Range {
                flag: "--clients",
                found: count.to_string(),
                possible: format!("client {client} has no examples then"),
            });
        }
        Ok(())
    }

    /// A standby can do what its primary does where that follows from the pushes and orders alone.
    fn check_replicas(&self) -> Result<(), PlanError> {
        let cluster = &self.cluster;
        let refused = |possible: &str| {
            let found = cluster.replicas.to_string();
            Err(PlanError::Range { flag: "--replicas", found, possible: possible.into() })
        };
        match (&self.mode, cluster.membership) {
            _ if cluster.replicas == 0 => Ok(()),
            _ if cluster.replicas > 1 => refused("0 or 1 is possible"),
            _ if cluster.servers < 2 => refused("a copy is kept on another server: --servers 2 at least"),
            (Mode::Sync { backup: 0 }, Membership::Fixed)
            | (Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedavg(_), _) => Ok(()),
            _ => refused(
                "1 is possible in sync with fixed membership and without backup workers, async, ssp and fedavg",
            ),
        }
    }

    fn check_mode(&self) -> Result<(), PlanError> {
        match &self.mode {
            Mode::Sync { .. } => Ok(()),
            Mode::Async { compensation, .. } | Mode::Ssp { compensation, .. } => {
                self.check_compensation(*compensation)?;
                self.mode.check_in_flight()
            }
            Mode::Softsync { buffer, .. } => {
                federated::whole("--buffer", (*buffer).into(), 1, COHORT_MAX.into())
            }
            Mode::Fedavg(fedavg) => {
                fedavg.check(self.clients.count)?;
                if fedavg.hosting == Hosting::Balanced && self.clients.partition == Partition::Own {
                    return Err(PlanError::Range {
                        flag: "--hosting",
                        found: "balanced".into(),
                        possible: "with --partition own only the worker that has a client's data can train it: fixed"
                            .into(),
                    });
                }
                if fedavg.sampler == Sampler::BySize && self.clients.sizes.is_empty() {
                    return Err(PlanError::Range {
                        flag: "--sampler",
                        found: "by-size".into(),
                        possible: "the plan must then say how many examples each client has".into(),
                    });
                }
                Ok(())
            }
            Mode::Fedbuff { buffer, local, .. } => {
                federated::whole("--buffer", (*buffer).into(), 1, COHORT_MAX.into())?;
                local.check()
            }
            Mode::Fedasync { local, .. } => {
                if !matches!(self.optimizer, Optimizer::Sgd(sgd) if sgd.weight_decay == 0.0) {
                    return Err(PlanError::Range {
                        flag: "--optimizer",
                        found: self.optimizer.name().into(),
                        possible:
                            "fedasync mixes values by itself: only sgd without weight decay is possible"
                                .into(),
                    });
                }
                local.check()
            }
        }
    }

    fn check_compensation(&self, lambda: Option<f32>) -> Result<(), PlanError> {
        if let Some(lambda) = lambda.filter(|lambda| !lambda.is_finite() || *lambda < 0.0) {
            return Err(PlanError::Range {
                flag: "--compensate",
                found: lambda.to_string(),
                possible: "a finite number from 0 on is possible".into(),
            });
        }
        let workers = self.cluster.workers_max();
        if self.mode.compensation().is_some() && workers > COMPENSATED_MAX {
            return Err(PlanError::Range {
                flag: "the number of workers",
                found: workers.to_string(),
                possible: format!(
                    "with --compensate each shard keeps a version for each of them, {COMPENSATED_MAX} at most"
                ),
            });
        }
        Ok(())
    }
}
