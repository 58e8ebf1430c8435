//! Counts how often each process has been started again, and says when the next is due.

use std::time::Duration;

use tokio::time::Instant;
use windlass_common::plan::Cluster;
use windlass_transport::Role;

/// Before a server is started again, so that one that ends at once is not started in a tight loop.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// How often who was started again.
#[derive(Debug)]
pub(super) struct Restarts {
    pub(super) max: u32,
    /// By number.
    pub(super) workers: Vec<u32>,
    /// By number.
    pub(super) servers: Vec<u32>,
    /// Who is to be started, and when.
    due: Vec<(Instant, Role)>,
}

impl Restarts {
    /// None yet; at most so many of each.
    pub(super) fn new(max: u32, cluster: &Cluster) -> Self {
        let zeros = |count: u32| vec![0; count as usize];
        Self { max, workers: zeros(cluster.workers), servers: zeros(cluster.servers), due: Vec::new() }
    }

    fn times(&mut self, role: Role) -> Option<&mut u32> {
        match role {
            Role::Server(id) => self.servers.get_mut(id.index()),
            Role::Worker(id) => self.workers.get_mut(id.0 as usize),
            Role::Observer => None,
        }
    }

    /// Counts one more, and says the how manieth it is; `None` if they are used up.
    pub(super) fn count(&mut self, role: Role) -> Option<u32> {
        let max = self.max;
        let times = self.times(role).filter(|times| **times < max)?;
        *times += 1;
        Some(*times)
    }

    /// Whether nobody has been started again.
    pub(super) fn are_none(&self) -> bool {
        self.workers.iter().chain(&self.servers).all(|&times| times == 0)
    }

    /// It is to be started after a pause.
    pub(super) fn plan(&mut self, role: Role, now: Instant) {
        // It may be planned already, when several servers have died.
        if self.due.iter().all(|(_, planned)| *planned != role) {
            self.due.push((now + PAUSE, role));
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.iter().map(|(when, _)| *when).min()
    }

    /// Who is due, and no longer planned.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Role> {
        self.due.extract_if(.., |(when, _)| *when <= now).map(|(_, role)| role).collect()
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::{ServerId, WorkerId};

    use super::*;
    use crate::problem::tests::plan_of_model;

    #[test]
    fn each_process_is_started_so_often_and_servers_after_a_pause() {
        let plan = plan_of_model("softmax", 2, 1);
        let mut restarts = Restarts::new(2, &plan.cluster);
        let (server, worker) = (Role::Server(ServerId(1)), Role::Worker(WorkerId(1)));
        assert!(restarts.are_none());
        assert_eq!([server, server, server].map(|role| restarts.count(role)), [Some(1), Some(2), None]);
        assert_eq!(restarts.count(worker), Some(1));
        assert_eq!(restarts.count(Role::Observer), None);
        assert_eq!((&restarts.servers[..], &restarts.workers[..]), (&[0, 2][..], &[0, 1][..]));
        assert!(!restarts.are_none());
        let now = Instant::now();
        assert_eq!(restarts.next(), None);
        restarts.plan(server, now);
        assert_eq!(restarts.next(), Some(now + PAUSE));
        assert!(restarts.take_due(now).is_empty());
        assert_eq!(restarts.take_due(now + PAUSE), [server]);
        assert_eq!(restarts.next(), None);
    }
}
