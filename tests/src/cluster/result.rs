//! Holds what a simulated run came to.

use windlass_common::ids::{ShardId, Step};
use windlass_common::plan::Plan;
use windlass_common::wire::{Entry, Outcome, Record, Stop, Task};

use super::Cluster;
use super::driver::Gradients;
use super::history::History;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// What was run.
    pub plan: Plan,
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
    /// For each shard the pushes that count elsewhere and not on it.
    pub partial: Vec<u64>,
    /// Messages delivered.
    pub deliveries: u64,
    /// Workers that died.
    pub deaths: u64,
    /// Times that a worker lost its connections.
    pub losses: u64,
}

impl Cluster<'_> {
    pub(super) fn into_run(self) -> Run {
        let mut values = Vec::new();
        let mut partial = Vec::new();
        if self.stop == Some(Stop::Completed) {
            values = vec![f32::NAN; self.layout.total() as usize];
            for (snapshot, missing) in self.results.values() {
                for (part, floats) in snapshot.changed_since(None, &[]) {
                    let slice = self.placement.slices()[part.slice as usize];
                    let start = self.layout.range(slice.variable).start + slice.start as usize;
                    values[start..start + floats.len()].copy_from_slice(&floats);
                }
                partial.push(*missing);
            }
        }
        Run {
            plan: self.plan,
            stop: self.stop.expect("a run is over when it is handed out"),
            values,
            histories: self.histories,
            gradients: self.gradients,
            opened: self.opened,
            closed: self.closed,
            partial,
            deliveries: self.deliveries,
            deaths: self.deaths,
            losses: self.losses,
        }
    }
}

impl Run {
    /// The values that one shard owns, out of those of the whole model.
    pub fn part_of(&self, shard: ShardId, whole: &[f32]) -> Vec<f32> {
        let layout = self.plan.layout().expect("a checked plan has a layout");
        let placement = self.plan.placement().expect("a checked plan can be placed");
        let slices = placement.of_shard(shard).iter();
        slices
            .flat_map(|slice| {
                let start = layout.range(slice.variable).start + slice.start as usize;
                whole[start..start + slice.len as usize].to_vec()
            })
            .collect()
    }

    /// Pushes that changed the model, on one shard.
    pub fn applied(&self, shard: ShardId) -> usize {
        let applied = |r: &&Record| matches!(r.outcome, Outcome::Applied { .. });
        self.histories[shard.index()].records().filter(applied).count()
    }
}
