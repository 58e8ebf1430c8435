//! A small plan for tests, to be changed where a test needs another.

use windlass_common::layout::{Initial, Variable};
use windlass_common::plan::{Clients, Cluster, Data, FORMAT, Membership, Mode, Model, Plan, Training};

/// One variable of 8192 values, on servers with a shard each; its membership is fixed.
pub(crate) fn plan(mode: Mode, servers: u32, workers: u32) -> Plan {
    Plan {
        format: FORMAT,
        name: "sample".into(),
        seed: 1,
        mode,
        cluster: Cluster {
            servers,
            shards_per_server: 1,
            replicas: 0,
            workers,
            membership: Membership::Fixed,
            join_deadline_s: 60,
            rejoin_deadline_s: 30,
            lease_s: 5,
            stall_deadline_s: 600,
        },
        clients: Clients::one_per_worker(workers),
        heterogeneity: Default::default(),
        training: Training {
            batch: 1,
            passes: 1000.0,
            compute_threads: 1,
            evaluate_every: 1 << 40,
            overlap: true,
        },
        codecs: Default::default(),
        optimizer: Default::default(),
        schedule: Default::default(),
        checkpoints: Default::default(),
        data: Data {
            path: String::new(),
            label_column: String::new(),
            validation: 0,
            train_examples: 1000,
            fingerprint: "0".repeat(16),
        },
        model: Model {
            name: "line".into(),
            variables: vec![Variable::new("weight", &[8192], Initial::Zeros)],
        },
    }
}
