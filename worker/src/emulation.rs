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
pub struct Begun {
    at: Instant,
    /// How long the step is to take, and the mean of such times; `None` is as long as it takes.
    planned: Option<(Duration, Duration)>,
    /// What earlier steps were overdue when it began.
    overdue: Duration,
    /// Time since then that was no computation.
    aside: Duration,
    /// Time since then in which it has slept in order to last.
    slept: Duration,
}

impl Begun {
    /// So much of the time since the step began was no computation: it waited, or wrote something for the wire.
    pub fn set_aside(&mut self, time: Duration) {
        self.aside += time;
    }

    /// This share of the step's computation is done: sleeps until as large a share of its time is over.
    pub fn reach(&mut self, done: f64) {
        let rest = self.rest(done);
        if !rest.is_zero() {
            let before = Instant::now();
            std::thread::sleep(rest);
            self.slept += before.elapsed();
        }
    }

    /// How long it sleeps.
    fn rest(&self, done: f64) -> Duration {
        let planned = self.planned.map_or(Duration::ZERO, |(planned, _)| planned);
        let share = planned.saturating_sub(self.overdue).mul_f64(done.clamp(0.0, 1.0));
        share.saturating_sub(self.computed())
    }

    fn computed(&self) -> Duration {
        self.at.elapsed().saturating_sub(self.aside)
    }
}

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
    pub fn begin(&self) -> Begun {
        let (at, step, worker, workers) = (Instant::now(), Step(self.step), self.worker, self.workers);
        let planned = self.heterogeneity.step_time_us(self.seed, worker, workers, step);
        let planned = planned.map(|us| {
            let mean = self.heterogeneity.mean_step_time_us(worker, workers, step).unwrap_or(us);
            (Duration::from_micros(us), Duration::from_micros(mean))
        });
        Begun { at, planned, overdue: self.overdue, aside: Duration::ZERO, slept: Duration::ZERO }
    }

    /// The step's computation has ended: sleeps until the step's time is over, and says how long that was. A step that is not
    /// ended is as if it had not begun.
    ///
    /// A distribution such as the exponential one now and then gives a time that nothing can be computed in. What such a
    /// step takes longer is taken from the sleep of those after it, so that the sum of the times is as drawn.
    ///
    /// # Errors
    /// If the computation took longer than the time drawn and than the mean of such times.
    pub fn end(&mut self, begun: Begun) -> Result<Duration, StepTimeError> {
        let step = self.step;
        self.step += 1;
        if let Some((planned, mean)) = begun.planned {
            let took = begun.computed();
            let found = took.saturating_sub(begun.slept);
            if found > planned.max(mean) {
                return Err(StepTimeError { step, planned, mean, found });
            }
            self.overdue += found.saturating_sub(planned);
            let rest = planned.saturating_sub(took);
            let caught_up = rest.min(self.overdue);
            self.overdue -= caught_up;
            std::thread::sleep(rest - caught_up);
        }
        let computed = begun.computed();
        self.computing += computed;
        Ok(computed)
    }

    /// Time in steps so far.
    pub fn computing(&self) -> Duration {
        self.computing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that began so long ago.
    fn earlier(emulation: &Emulation, ago: Duration) -> Begun {
        let begun = emulation.begin();
        Begun { at: begun.at - ago, ..begun }
    }

    #[test]
    fn a_step_lasts_as_long_as_it_should_or_is_an_error() {
        let step_time = Some("const:5ms".parse().unwrap());
        let heterogeneity = Heterogeneity { step_time, slow_workers: 1, ..Heterogeneity::default() };
        let mut emulation = Emulation { heterogeneity, worker: WorkerId(1), workers: 2, ..Emulation::none() };
        let begun = emulation.begin();
        emulation.end(begun).unwrap();
        assert!(emulation.computing() >= Duration::from_millis(20), "the last worker is 4 times slower");
        let begun = earlier(&emulation, Duration::from_secs(1));
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
            let begun = earlier(&emulation, Duration::from_micros(500));
            emulation.end(begun).unwrap();
        }
        let found = emulation.computing() + emulation.overdue;
        assert!(found >= Duration::from_micros(drawn), "{found:?} of {drawn} us");
        assert!(emulation.overdue < Duration::from_millis(5), "{:?}", emulation.overdue);
    }
    #[test]
    fn a_share_of_a_step_lasts_as_large_a_share_of_its_time_beside_what_is_no_computation() {
        let step_time = Some("const:40ms".parse().unwrap());
        let heterogeneity = Heterogeneity { step_time, ..Heterogeneity::default() };
        let mut emulation = Emulation { heterogeneity, ..Emulation::none() };
        let mut begun = earlier(&emulation, Duration::from_millis(30));
        begun.set_aside(Duration::from_millis(30));
        let at = begun.at;
        begun.reach(0.25);
        assert!(at.elapsed() >= Duration::from_millis(40), "a quarter of 40 ms behind a wait of 30");
        begun.reach(0.75);
        assert!(at.elapsed() >= Duration::from_millis(60));
        // A sleep that lasts too long is no computation that does.
        begun.reach(1.0);
        begun.slept += Duration::from_millis(50);
        begun.at -= Duration::from_millis(50);
        emulation.end(begun).unwrap();
        assert_eq!(emulation.overdue, Duration::ZERO);
        let (mut emulation, begun) = (Emulation { heterogeneity, ..Emulation::none() }, emulation.begin());
        let late = Begun { at: Instant::now() - Duration::from_millis(25), aside: Duration::ZERO, ..begun };
        assert_eq!(late.rest(0.5), Duration::ZERO, "what is late already does not sleep");
        let took = emulation.end(late).unwrap();
        assert!(took >= Duration::from_millis(40) && took == emulation.computing(), "{took:?}");
        // A given-up step counts for nothing.
        emulation.begin().reach(0.1);
        assert_eq!((emulation.step, emulation.computing()), (1, took));
    }
}
