//! Measures how much of the processors' time was given to others than this machine.

/// Processor time of the whole machine, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks {
    stolen: u64,
    all: u64,
}

impl Ticks {
    /// The ticks until now; none where the system does not count them.
    pub(crate) fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Reads the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. What follows, the
    /// time of guests, is part of user and nice.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.lines().next()?.split_ascii_whitespace();
        if words.next() != Some("cpu") {
            return None;
        }
        let ticks: Vec<u64> = words.take(8).map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(Self { stolen: *ticks.get(7)?, all: ticks.iter().sum() })
    }

    /// The share of the time since `earlier` that was stolen, 0 to 1; none if no time has passed.
    pub(crate) fn stolen_share_since(self, earlier: Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all).filter(|&all| all > 0)?;
        let stolen = self.stolen.checked_sub(earlier.stolen)?;
        Some(stolen as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_what_counts() {
        let text = "cpu  100 1 20 300 4 0 5 70 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n";
        assert_eq!(Ticks::parse(text), Some(Ticks { stolen: 70, all: 500 }));
        for text in ["", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 3\n", "cpu 1 2 3 4 5 6 7 x\n"] {
            assert_eq!(Ticks::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_share_is_that_of_the_time_between() {
        let (before, after) = (Ticks { stolen: 70, all: 500 }, Ticks { stolen: 80, all: 700 });
        assert_eq!(after.stolen_share_since(before), Some(0.05));
        assert_eq!(after.stolen_share_since(after), None);
        assert_eq!(before.stolen_share_since(after), None);
    }
}
