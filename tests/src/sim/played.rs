//! Sums up what a simulated run came to, each of its histories by itself.

use windlass_common::wire::Stop;

use super::restore::Era;
use super::{LINES, Played, World};
use crate::cluster::Run;
use crate::cluster::result::assembled;

impl World<'_> {
    pub(super) fn played(mut self) -> Played {
        assert!(self.over_at.is_some(), "nothing is on its way and nobody gives up: {}", self.who_waits());
        let (mut values, mut partial) = (Vec::new(), Vec::new());
        if self.stop == Some(Stop::Completed) {
            values = assembled(&self.layout, &self.placement, self.results.values().map(|(s, _)| s));
            partial = self.results.values().map(|(_, missing)| *missing).collect();
        }
        self.counts.add("retransmissions", self.net.retransmissions);
        self.counts.add("messages", self.delivered);
        self.counts.add("virtual seconds", self.now / 1_000_000);
        for (what, count) in [("misread", self.store.misread), ("files lost", self.store.lost)] {
            self.counts.add(what, count);
        }
        let kept = self.kept();
        let log = LINES.with_borrow_mut(std::mem::take);
        let stop = self.stop.take().unwrap_or(Stop::Failed { reason: "the coordinator is gone".into() });
        let mut eras = std::mem::take(&mut self.eras);
        let is_replicated = self.has_replicas();
        let last = eras.remove(&self.lineage).expect("every lineage has a history");
        let went_back = |era| {
            let stop = Stop::Failed { reason: "the run went back".into() };
            self.run_of(era, stop, Vec::new(), Vec::new())
        };
        // Of a lineage in which nothing was begun there is nothing to be said.
        let is_begun = |era: &Era| !is_replicated || era.is_begun;
        let before = eras.into_values().filter(is_begun).map(went_back).collect();
        Played {
            before,
            kept,
            run: self.run_of(last, stop, values, partial),
            counts: self.counts,
            log,
            ends: self.ends,
            over_at: self.over_at.unwrap_or(0),
            settled: self.settled,
        }
    }

    fn run_of(&self, era: Era, stop: Stop, values: Vec<f32>, partial: Vec<u64>) -> Run {
        Run {
            plan: self.plan.clone(),
            layout: self.layout.clone(),
            placement: self.placement.clone(),
            stop,
            values,
            histories: era.histories,
            gradients: era.gradients,
            opened: era.opened,
            closed: era.closed,
            terms: era.terms,
            partial,
            deliveries: self.delivered,
            deaths: self.counts.of("crashes"),
            losses: self.counts.of("joined again"),
            paused: self.paused,
        }
    }
}
