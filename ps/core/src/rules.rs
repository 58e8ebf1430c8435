//! Names the two rules that make a mode.
//!
//! Each mode is a pair: how a push changes the model, and when a pull is answered. A new mode is a new pair.

use windlass_common::ids::Step;
use windlass_common::plan::{Mode, StalenessScaling};
use windlass_common::wire::Wait;

use crate::ledger::Ledger;

/// How a push changes the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Apply {
    /// One push per member is held; their weighted mean, in order of rank, makes one optimizer step.
    Hold {
        /// So many of the slowest are left out of each step, decided once for all shards by the coordinator.
        backup: u32,
    },
    /// Each push makes an optimizer step at once.
    Immediate {
        /// What staleness does to the learning rate.
        scaling: StalenessScaling,
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
}

/// The two rules of a mode.
pub fn rules(mode: &Mode) -> (Apply, Release) {
    match *mode {
        Mode::Sync { backup } => (Apply::Hold { backup }, Release::StepApplied),
        Mode::Async { scaling } | Mode::Ssp { staleness: None, scaling } => {
            (Apply::Immediate { scaling }, Release::AtOnce)
        }
        Mode::Ssp { staleness: Some(bound), scaling } => {
            (Apply::Immediate { scaling }, Release::SlowestClock { bound })
        }
    }
}

impl Release {
    /// Whom a pull for `step` has to wait for; `None` if it may be answered. `open` is the first step that has not
    /// been applied, `missing` tells who has not pushed for it.
    pub fn wait(
        self,
        step: Step,
        open: Step,
        ledger: &Ledger,
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
