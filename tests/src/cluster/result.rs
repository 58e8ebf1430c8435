//! Holds what a simulated run came to.

use windlass_common::ids::{ShardId, Step};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::wire::{Entry, Member, Outcome, Record, Stop, Task};

use windlass_ps_core::store::Snapshot;

use super::Cluster;
use super::driver::Gradients;
use super::history::History;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub plan: Plan,
    /// Its variables end to end.
    pub layout: Layout,
    /// Which shard owns what of them.
    pub placement: Placement,
    /// How it ended.
    pub stop: Stop,
    /// The result, in layout order; empty if the run failed.
    pub values: Vec<f32>,
    /// What each shard did.
    pub histories: Vec<History>,
    /// Every gradient that was computed.
    pub gradients: Gradients,
    /// The rounds that were opened, and whom they asked.
    pub opened: Vec<(Step, Vec<Task>)>,
    /// The steps that the coordinator closed, and with which pushes.
    pub closed: Vec<(Step, Vec<Entry>)>,
    /// Who took part in each term, and how many steps had been closed when it began.
    pub terms: Vec<(usize, Vec<Member>)>,
    /// For each shard the pushes that count elsewhere and not on it.
    pub partial: Vec<u64>,
    /// Messages delivered.
    pub deliveries: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Times that a worker lost its connections.
    pub losses: u64,
    /// Microseconds for which processes were stopped and links cut, altogether.
    pub paused: u64,
}

impl Cluster<'_> {
    pub(super) fn into_run(self) -> Run {
        let (mut values, mut partial) = (Vec::new(), Vec::new());
        if self.stop == Some(Stop::Completed) {
            values = assembled(&self.layout, &self.placement, self.results.values().map(|(s, _)| s));
            partial = self.results.values().map(|(_, missing)| *missing).collect();
        }
        Run {
            plan: self.plan,
            layout: self.layout,
            placement: self.placement,
            stop: self.stop.expect("a run is over when it is handed out"),
            values,
            histories: self.histories,
            gradients: self.gradients,
            opened: self.opened,
            closed: self.closed,
            terms: Vec::new(),
            partial,
            deliveries: self.deliveries,
            deaths: self.deaths,
            losses: self.losses,
            paused: 0,
        }
    }
}

/// The values of the whole model, of those that each shard had at the end.
pub(crate) fn assembled<'a>(
    layout: &Layout,
    placement: &Placement,
    parts: impl Iterator<Item = &'a Snapshot>,
) -> Vec<f32> {
    let mut values = vec![f32::NAN; layout.total() as usize];
    for snapshot in parts {
        for (part, floats) in snapshot.changed_since(None, &[]) {
            let slice = placement.slices()[part.slice as usize];
            let start = layout.range(slice.variable).start + slice.start as usize;
            values[start..start + floats.len()].copy_from_slice(&floats);
        }
    }
    values
}

impl Run {
    /// The values that one shard owns, out of those of the whole model.
    pub fn part_of(&self, shard: ShardId, whole: &[f32]) -> Vec<f32> {
        let mut part = Vec::with_capacity(self.placement.values_of(shard) as usize);
        for slice in self.placement.of_shard(shard) {
            let start = self.layout.range(slice.variable).start + slice.start as usize;
            part.extend_from_slice(&whole[start..start + slice.len as usize]);
        }
        part
    }

    /// Pushes that changed the model, on one shard.
    pub fn applied(&self, shard: ShardId) -> usize {
        let applied = |r: &&Record| matches!(r.outcome, Outcome::Applied { .. });
        self.histories[shard.index()].records().filter(applied).count()
    }
}
