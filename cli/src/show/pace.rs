//! Reckons how fast a run goes, from what was seen over the last seconds.

use std::collections::VecDeque;

use windlass_common::wire::Status;

/// Rates are means over this many seconds.
const WINDOW_S: f64 = 5.0;

/// How fast a run goes.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    examples: u64,
    rounds: u64,
    steps: u64,
    bytes: u64,
}

/// Rates per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    pub(crate) examples: f64,
    pub(crate) rounds: f64,
    pub(crate) steps: f64,
    /// UDP payload in both directions.
    pub(crate) bytes: f64,
}

impl Pace {
    /// Takes in how the run stands at this time, in seconds from any beginning.
    pub(crate) fn add(&mut self, at_s: f64, status: &Status) {
        let bytes = status.meter.wire_up.saturating_add(status.meter.wire_down);
        let (examples, rounds, steps) = (status.examples.0, status.rounds, status.steps);
        self.samples.push_back(Sample { at_s, examples, rounds, steps, bytes });
        // The oldest one that is kept is at least as old as the window, so that this is what the mean covers.
        while self.samples.get(1).is_some_and(|second| second.at_s <= at_s - WINDOW_S) {
            self.samples.pop_front();
        }
    }

    /// None until there is a difference to see.
    pub(crate) fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.at_s - first.at_s;
        let rate = |part: fn(&Sample) -> u64| part(last).saturating_sub(part(first)) as f64 / seconds;
        (seconds > 0.0).then(|| Rates {
            examples: rate(|s| s.examples),
            rounds: rate(|s| s.rounds),
            steps: rate(|s| s.steps),
            bytes: rate(|s| s.bytes),
        })
    }

    /// Seconds until the training has its examples, if it goes on like this.
    pub(crate) fn left_s(&self, status: &Status) -> Option<f64> {
        let rates = self.rates()?;
        let (rate, left) = match status.rounds_target {
            0 => (rates.examples, status.examples_target.0.saturating_sub(status.examples.0)),
            target => (rates.rounds, target.saturating_sub(status.rounds)),
        };
        (rate > 0.0).then(|| left as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::status;
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.rates(), None);
        for second in 0..20_u64 {
            // Ten times faster from second 10 on.
            let examples = if second < 10 { second * 100 } else { 1_000 + (second - 10) * 1_000 };
            pace.add(second as f64, &status(examples, 50_000));
        }
        let rates = pace.rates().unwrap();
        assert_eq!((rates.examples, rates.steps, rates.bytes), (1_000.0, 10.0, 4_000.0));
        assert_eq!(pace.left_s(&status(10_000, 50_000)), Some(40.0));
        assert_eq!(pace.samples.len(), 6);
    }

    #[test]
    fn a_run_that_stands_has_no_time_left_to_tell() {
        let mut pace = Pace::default();
        pace.add(0.0, &status(100, 200));
        pace.add(1.0, &status(100, 200));
        assert_eq!(pace.left_s(&status(100, 200)), None);
    }
}
