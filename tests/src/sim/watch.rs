//! Notices when a run stands still, or when somebody has not ended in time.

use std::fmt::Write as _;

use windlass_ps_core::coordinator::{FINISHED_WITHIN_S, RESULT_WITHIN_S};

use super::World;
use super::server::PATIENCE;

/// How often it is looked at.
pub(super) const EVERY: u64 = 5_000_000;
/// When the run is over, or its coordinator gone, everybody has ended so much later; who was stopped, so much after that.
/// It is the sum of a step, an idle timeout, a pause, the time to reach a server, and what clocks differ.
const ENDED_WITHIN: u64 = 60_000_000;
/// Beyond every deadline of the plan, the run may stand still for so long.
const BEYOND: u64 = 60_000_000;

impl World<'_> {
    pub(super) fn watch(&mut self) {
        if let Some(over_at) = self.over_at {
            for (place, process) in &self.processes {
                let since = over_at.max(process.paused.1);
                let patience = if self.config.survives_servers() { PATIENCE } else { 0 };
                let is_late = process.is_running && self.now > since + ENDED_WITHIN + patience;
                assert!(!is_late, "{place} has not ended within 60 s of the run: {}", self.who_waits());
            }
        } else {
            let deadlines = [self.config.join_deadline_s, self.config.rejoin_deadline_s, FINISHED_WITHIN_S];
            let longest = deadlines.into_iter().max().unwrap_or(0).max(RESULT_WITHIN_S);
            let paused = self.processes.values().map(|p| p.paused.1).max().unwrap_or(0);
            let since = self.progress_at.max(paused.min(self.now));
            let most = longest * 1_100_000 + BEYOND;
            assert!(
                self.now < since + most,
                "the run has stood still since {} s: {}",
                since as f64 / 1e6,
                self.who_waits()
            );
        }
        self.queue.push(self.now + EVERY, super::Happening::Watch);
    }

    /// Who waits for whom, in words.
    pub(super) fn who_waits(&self) -> String {
        let mut text = String::new();
        for (place, process) in &self.processes {
            let state = match (process.is_running, process.is_paused(self.now)) {
                (false, _) => "off",
                (true, true) => "stopped",
                (true, false) => "running",
            };
            let _ = write!(text, "{place} {state}");
            if let super::Place::Worker(worker) = place {
                let _ = write!(text, " ({})", self.seats[worker.index()].in_words());
            }
            text.push_str("; ");
        }
        let status = self.coordinator.status();
        let _ = write!(text, "the coordinator is {:?} {}", status.phase, status.waiting);
        let era = &self.eras[&self.lineage];
        for shard in &era.histories {
            let last = shard.entries().iter().rev().find_map(|entry| match entry {
                crate::cluster::Entry::Handled { at, newest } => Some((at.0, newest.0)),
                _ => None,
            });
            let _ = write!(text, "; a shard's last: {last:?}");
        }
        text
    }
}
