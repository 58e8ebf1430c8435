//! Makes steps last as long as the plan says, so that modes are compared by rules and not by the scheduler's mood.

use std::time::{Duration, Instant};

use windlass_common::ids::{Step, WorkerId};
use windlass_common::plan::{Heterogeneity, Plan};

/// A step took longer than the time that was to be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step} was to take {planned:?} and took {found:?} to compute; give --step-time a longer time, or compute on \
     fewer workers at once"
)]
pub struct StepTimeError {
    /// The step, counted over all of this worker's steps.
    pub step: u64,
    /// Its emulated time.
    pub planned: Duration,
    /// The time it took.
    pub found: Duration,
}

/// The clock of one worker's steps.
#[derive(Debug)]
pub struct Emulation {
    heterogeneity: Heterogeneity,
    seed: u64,
    worker: WorkerId,
    workers: u32,
    step: u64,
    /// Time in steps, with that in which a worker sleeps to make one last.
    computing: Duration,
}

/// A step that has begun.
#[derive(Debug)]
pub struct Begun(Instant);

impl Emulation {
    /// As the plan says for this worker. Steps count on from `first`.
    pub fn new(plan: &Plan, worker: WorkerId, first: Step) -> Self {
        Self {
            heterogeneity: plan.heterogeneity,
            seed: plan.seed,
            worker,
            workers: plan.cluster.workers,
            step: first.0,
            computing: Duration::ZERO,
        }
    }

    /// Steps take as long as they take.
    pub fn none() -> Self {
        Self {
            heterogeneity: Heterogeneity::default(),
            seed: 0,
            worker: WorkerId(0),
            workers: 1,
            step: 0,
            computing: Duration::ZERO,
        }
    }

    /// A step begins.
    pub fn begin(&mut self) -> Begun {
        Begun(Instant::now())
    }

    /// The step's computation has ended: sleeps until the step's time is over.
    ///
    /// # Errors
    /// If it is over already.
    pub fn end(&mut self, Begun(start): Begun) -> Result<(), StepTimeError> {
        let step = self.step;
        self.step += 1;
        let (worker, workers) = (self.worker, self.workers);
        if let Some(us) = self.heterogeneity.step_time_us(self.seed, worker, workers, Step(step)) {
            let (planned, found) = (Duration::from_micros(us), start.elapsed());
            let rest = planned.checked_sub(found).ok_or(StepTimeError { step, planned, found })?;
            std::thread::sleep(rest);
        }
        self.computing += start.elapsed();
        Ok(())
    }

    /// Time in steps so far.
    pub fn computing(&self) -> Duration {
        self.computing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_lasts_as_long_as_it_should_or_is_an_error() {
        let step_time = Some("const:5ms".parse().unwrap());
        let heterogeneity = Heterogeneity { step_time, slow_workers: 1, ..Heterogeneity::default() };
        let mut emulation = Emulation { heterogeneity, worker: WorkerId(1), workers: 2, ..Emulation::none() };
        let begun = emulation.begin();
        emulation.end(begun).unwrap();
        assert!(emulation.computing() >= Duration::from_millis(20), "the last worker is 4 times slower");
        let begun = Begun(Instant::now() - Duration::from_secs(1));
        let error = emulation.end(begun).unwrap_err();
        assert_eq!((error.step, error.planned), (1, Duration::from_millis(20)));
        assert!(error.to_string().contains("--step-time"));
    }
}
