//! Says who takes part in a run, and how long whoever is missing is waited for.

use serde::{Deserialize, Serialize};

use super::Membership;
use crate::ids::{ServerId, ShardId, WorkerId};
use crate::wire::Seats;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Parameter-server processes.
    pub servers: u32,
    /// Shards, each with its thread, per server process.
    pub shards_per_server: u32,
    /// Copies of each shard, on other servers, that are kept equal to it: 0 or 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replicas: u32,
    /// Worker processes at the start.
    pub workers: u32,
    /// What happens when a worker dies.
    pub membership: Membership,
    /// Step 0 waits at most this long for the planned servers and workers. Seconds.
    pub join_deadline_s: u64,
    /// A worker that was lost is waited for at most this long, and a training that lacks all of them for the first. Seconds.
    pub rejoin_deadline_s: u64,
    /// A worker of which nothing has been heard for so long is silent. Seconds.
    #[serde(default = "lease_s")]
    pub lease_s: u64,
    /// A worker that others wait for, and that makes no step for so long, is given up. Seconds.
    #[serde(default = "stall_deadline_s")]
    pub stall_deadline_s: u64,
}

/// Seconds after which a worker of which nothing is heard is silent, unless a plan says otherwise.
pub const LEASE_S: u64 = 10;
/// Seconds after which a worker that makes no step is given up if others wait for it, unless a plan says otherwise.
pub const STALL_DEADLINE_S: u64 = 600;

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn lease_s() -> u64 {
    LEASE_S
}

fn stall_deadline_s() -> u64 {
    STALL_DEADLINE_S
}

impl Cluster {
    /// Number of shards over all servers.
    pub fn shards(&self) -> u32 {
        self.servers.saturating_mul(self.shards_per_server)
    }

    /// The server that hosts a shard.
    pub fn server_of(&self, shard: ShardId) -> ServerId {
        ServerId(shard.0 / self.shards_per_server)
    }

    /// The shards of one server, in order.
    pub fn shards_of(&self, server: ServerId) -> impl Iterator<Item = ShardId> + use<> {
        let first = server.0 * self.shards_per_server;
        (first..first + self.shards_per_server).map(ShardId)
    }

    /// Which servers have each shard when a run begins: the standby's is the one after the primary's.
    pub fn seats(&self) -> Vec<Seats> {
        let seats = |shard| {
            let primary = self.server_of(shard);
            let standby = (self.replicas > 0).then_some(ServerId((primary.0 + 1) % self.servers));
            Seats { primary, standby }
        };
        (0..self.shards()).map(ShardId).map(seats).collect()
    }

    /// The workers of the start, in the order of their ranks.
    pub fn worker_ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.workers).map(WorkerId)
    }

    /// Most workers that may take part.
    pub fn workers_max(&self) -> u32 {
        match self.membership {
            Membership::Fixed => self.workers,
            Membership::Elastic { workers_max } => workers_max,
        }
    }

    /// All workers that may ever take part, in the order of their ranks.
    pub fn possible_workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..self.workers_max()).map(WorkerId)
    }
}
