//! Names the two rules that make a mode.
//!
//! Each mode is a pair: how a push changes the model, and when a pull is answered. A new mode is a new pair.

use windlass_common::ids::{Step, WorkerId};
use windlass_common::plan::{Fedavg, Membership, Mode, Plan, Stale, StalenessScaling, Weights};
use windlass_common::wire::{Codec, Wait};

use crate::ledger::{Ledger, OUTCOMES_MAX};

/// How a push changes the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Apply {
    /// One push per member is held; their weighted mean, in order of rank, makes one optimizer step. Who the members are
    /// is known, so that each shard closes the step by itself.
    HoldAll,
    /// The same, but the coordinator closes the step for all shards: it knows who takes part in it.
    Hold {
        /// So many of the slowest are left out of each step.
        backup: u32,
    },
    /// Each push makes an optimizer step at once.
    Immediate {
        /// What staleness does to the learning rate.
        scaling: StalenessScaling,
        /// By which lambda a push is compensated for what has changed since its values, if it is.
        compensation: Option<f32>,
    },
    /// Each push is mixed with the newest values at once.
    Mix {
        /// What staleness does to the share of the push.
        scaling: StalenessScaling,
    },
    /// Pushes of whom the coordinator has asked are held until it closes the round; their mean, in order of the clients,
    /// makes one optimizer step.
    Round {
        /// What each counts in the mean.
        weights: Weights,
    },
    /// Pushes are held, and the first `size` that are complete on every shard make one optimizer step, decided by the
    /// coordinator.
    Buffer {
        /// Pushes that make one step.
        size: u32,
        /// What staleness does to a push.
        scaling: StalenessScaling,
        /// What becomes of a push computed on values that are no longer the newest.
        stale: Stale,
    },
}

/// When a pull for a step is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// When the step before has been applied.
    StepApplied,
    /// At once.
    AtOnce,
    /// When the slowest clock is at least the step minus `bound` (Ho et al. 2013, section 3).
    SlowestClock {
        /// Steps that a worker may be ahead.
        bound: u64,
    },
    /// When the round is open and a client of the worker is in its cohort.
    InCohort,
}

/// What becomes of the open pushes of a worker that has gone or comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// They count. It goes on with the first push that some shard lacks, and computes that again.
    AtFirst,
    /// They have been applied where they arrived, and are void on the shards that lack them. It goes on after the last that
    /// any shard has.
    AfterLast,
    /// They are void on every shard, and it numbers new ones after the last that any shard has.
    Redo,
}

/// What becomes of the open pushes of a worker that has gone or comes back in this run.
pub fn rejoin(plan: &Plan) -> Rejoin {
    match rules(plan).0 {
        Apply::HoldAll => Rejoin::AtFirst,
        Apply::Immediate { .. } | Apply::Mix { .. } => Rejoin::AfterLast,
        // Where a step may be closed without a push, some shards may have it settled as late and others lack it: under its
        // old number it could never again be complete.
        Apply::Hold { .. } | Apply::Round { .. } | Apply::Buffer { .. } => Rejoin::Redo,
    }
}

/// The two rules of a run's mode.
pub fn rules(plan: &Plan) -> (Apply, Release) {
    match &plan.mode {
        Mode::Sync { backup: 0 } if plan.cluster.membership == Membership::Fixed => {
            (Apply::HoldAll, Release::StepApplied)
        }
        &Mode::Sync { backup } => (Apply::Hold { backup }, Release::StepApplied),
        &Mode::Async { scaling, .. } | &Mode::Ssp { staleness: None, scaling, .. } => {
            (Apply::Immediate { scaling, compensation: plan.mode.compensation() }, Release::AtOnce)
        }
        &Mode::Ssp { staleness: Some(bound), scaling, .. } => {
            let compensation = plan.mode.compensation();
            (Apply::Immediate { scaling, compensation }, Release::SlowestClock { bound })
        }
        &Mode::Softsync { buffer, scaling, stale } => {
            (Apply::Buffer { size: buffer, scaling, stale }, Release::AtOnce)
        }
        &Mode::Fedbuff { buffer, scaling, .. } => {
            (Apply::Buffer { size: buffer, scaling, stale: Stale::Kept }, Release::AtOnce)
        }
        &Mode::Fedasync { scaling, .. } => (Apply::Mix { scaling }, Release::AtOnce),
        Mode::Fedavg(Fedavg { weights, .. }) => (Apply::Round { weights: *weights }, Release::InCohort),
    }
}

/// Pushes of one worker whose outcomes a shard remembers: those that may be held at once, and a few more.
pub fn outcomes_max(plan: &Plan) -> usize {
    let held = match (rules(plan).0, &plan.mode) {
        (Apply::Round { .. }, Mode::Fedavg(fedavg)) => fedavg.asked,
        (Apply::Buffer { size, .. }, _) => size,
        _ => 0,
    };
    held as usize + OUTCOMES_MAX
}

/// Versions beside the newest that a shard keeps at most for pushes that are yet to come, where a push is applied by what it
/// was computed on: for each gradient that a worker has in flight one that it was sent.
pub fn versions_kept(plan: &Plan) -> usize {
    let each = if rules(plan).0.keeps_bases() { plan.mode.in_flight() } else { 0 };
    each as usize * plan.cluster.workers_max() as usize
}

impl Apply {
    /// Whether a push in this codec is decoded while it is applied, a block at a time: where it is applied as soon as it comes, and
    /// none of its values is needed a second time.
    pub fn decodes(self, codec: Codec) -> bool {
        let needs_values_once = matches!(self, Self::Immediate { compensation: None, .. });
        needs_values_once && codec.is_narrow()
    }

    /// Whether a push is applied by the values that it was computed on, too.
    pub fn keeps_bases(self) -> bool {
        matches!(self, Self::Mix { .. } | Self::Immediate { compensation: Some(_), .. })
    }

    /// Where nobody waits for others: a worker with so many pushes held gets its next values when some of them have been
    /// taken out. By itself it has filled the buffer then, and only the coordinator's word is missing; without a limit,
    /// one that is faster than that word would fill the shard's memory.
    pub fn held_max(self) -> Option<usize> {
        match self {
            Self::Buffer { size, stale: Stale::Kept, .. } => Some(size as usize),
            // A push may be late on one shard and held on another, where it waits in vain until the next step: there has
            // to be room for one that is complete.
            Self::Buffer { size, stale: Stale::Late, .. } => Some(size as usize + 1),
            Self::HoldAll
            | Self::Hold { .. }
            | Self::Immediate { .. }
            | Self::Mix { .. }
            | Self::Round { .. } => None,
        }
    }
}

impl Release {
    /// Whom a pull for `step` has to wait for; `None` if it may be answered. `open` is the first step that has not
    /// been applied, `has_task` whether a client of the worker is wanted for it, `missing` tells who has not pushed.
    pub fn wait(
        self,
        step: Step,
        open: Step,
        ledger: &Ledger,
        has_task: impl FnOnce() -> bool,
        missing: impl FnOnce() -> Wait,
    ) -> Option<Wait> {
        match self {
            Self::AtOnce => None,
            Self::StepApplied => (step > open).then(missing),
            Self::SlowestClock { bound } => {
                let needed = Step(step.0.saturating_sub(bound));
                let (worker, clock) = ledger.slowest()?;
                (clock < needed).then_some(Wait::Slowest { worker, clock, needed })
            }
            // Clients of a worker that has gone may have been dealt to one that was done with the round.
            Self::InCohort if has_task() => None,
            Self::InCohort if step > open => Some(missing()),
            Self::InCohort => Some(Wait::Cohort { step: open }),
        }
    }
}

/// The learning rate for a push of this staleness. Inverse divides, which rounds once; the others multiply by their
/// factor.
pub fn scaled_rate(scaling: StalenessScaling, rate: f32, staleness: u64) -> f32 {
    match scaling {
        StalenessScaling::None => rate,
        StalenessScaling::Inverse => rate / staleness.max(1) as f32,
        StalenessScaling::Polynomial { .. } | StalenessScaling::Hinge { .. } => {
            rate * scaling.factor(staleness)
        }
    }
}

/// The members whose pushes are missing, of those that have to push.
pub fn missing(expected: impl Iterator<Item = WorkerId>, step: Step) -> Wait {
    let missing: Vec<WorkerId> = expected.collect();
    match missing.is_empty() {
        true => Wait::Close { step },
        false => Wait::Pushes { step, missing },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_scales_the_rate_as_the_rule_says() {
        let rate = |text: &str, staleness| scaled_rate(text.parse().unwrap(), 0.1, staleness);
        assert_eq!([0, 1, 3].map(|staleness| rate("none", staleness)), [0.1; 3]);
        // Divided, which rounds once: 0.1 times a rounded 1 / 5 is another number.
        assert_eq!(
            [0, 1, 3, 5].map(|staleness| rate("inverse", staleness)),
            [0.1, 0.1, 0.1 / 3.0, 0.1 / 5.0]
        );
        assert_ne!(0.1_f32 * (1.0 / 5.0), 0.1 / 5.0);
        assert_eq!([0, 3].map(|staleness| rate("polynomial", staleness)), [0.1, 0.05]);
        assert_eq!([0, 4, 5].map(|staleness| rate("hinge:10:4", staleness)), [0.1, 0.1, 0.1 * (1.0 / 11.0)]);
    }
}
