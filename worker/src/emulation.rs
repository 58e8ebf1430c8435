//! Makes steps last as long as the plan says, so that modes are compared by rules and not by the scheduler's mood.

use std::time::{Duration, Instant};

use windlass_common::ids::{Step, WorkerId};
use windlass_common::plan::{Heterogeneity, Plan};

/// A step took longer than any time that could be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step} was to take {planned:?} and took {found:?} to compute, longer than the mean of {mean:?}; give --step-time \
     a longer time, or compute on fewer workers at once"
)]
pub struct StepTimeError {
    /// The step, counted over all of this worker's steps.
    pub step: u64,
    /// Its emulated time.
    pub planned: Duration,
    /// The mean of the times that are drawn for such steps.
    pub mean: Duration,
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
    /// What steps have taken longer than was drawn for them, and later ones sleep less for.
    overdue: Duration,
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
            overdue: Duration::ZERO,
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
            overdue: Duration::ZERO,
            computing: Duration::ZERO,
        }
    }

    /// A step begins.
    pub fn begin(&mut self) -> Begun {
        Begun(Instant::now())
    }

    /// The step's computation has ended: sleeps until the step's time is over.
    ///
    /// A distribution such as the exponential one now and then gives a time that nothing can be computed in. What such a
    /// step takes longer is taken from the sleep of those after it, so that the sum of the times is as drawn.
    ///
    /// # Errors
    /// If the computation took longer than the time drawn and than the mean of such times.
    pub fn end(&mut self, Begun(start): Begun) -> Result<(), StepTimeError> {
        let step = self.step;
        self.step += 1;
        let (worker, workers) = (self.worker, self.workers);
        if let Some(us) = self.heterogeneity.step_time_us(self.seed, worker, workers, Step(step)) {
            let mean = self.heterogeneity.mean_step_time_us(worker, workers, Step(step)).unwrap_or(us);
            let (planned, mean, found) =
                (Duration::from_micros(us), Duration::from_micros(mean), start.elapsed());
            if found > planned.max(mean) {
                return Err(StepTimeError { step, planned, mean, found });
            }
            self.overdue += found.saturating_sub(planned);
            let rest = planned.saturating_sub(found);
            let caught_up = rest.min(self.overdue);
            self.overdue -= caught_up;
            std::thread::sleep(rest - caught_up);
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

    #[test]
    fn times_that_are_too_short_are_made_up_for() {
        let step_time = Some("exp:2ms".parse().unwrap());
        let heterogeneity = Heterogeneity { step_time, ..Heterogeneity::default() };
        let mut emulation = Emulation { heterogeneity, ..Emulation::none() };
        let drawn: u64 =
            (0..200).filter_map(|step| heterogeneity.step_time_us(0, WorkerId(0), 1, Step(step))).sum();
        for _ in 0..200 {
            // Each is computed for half a millisecond, which one in five draws is shorter than.
            emulation.end(Begun(Instant::now() - Duration::from_micros(500))).unwrap();
        }
        let found = emulation.computing() + emulation.overdue;
        assert!(found >= Duration::from_micros(drawn), "{found:?} of {drawn} us");
        assert!(emulation.overdue < Duration::from_millis(5), "{:?}", emulation.overdue);
    }
}
