//! Maps values to places on a drawing and finds round numbers for ticks.

/// An axis from `low` to `high`, drawn between two coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    from_px: f64,
    to_px: f64,
}

/// How values are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// For values above zero only.
    Log,
}

const LARGEST: f64 = 1e18;

impl Axis {
    /// An axis that covers both values; widened where they are equal, and usable whatever they are.
    pub(crate) fn new(scale: Scale, low: f64, high: f64, from_px: f64, to_px: f64) -> Self {
        let (low, high) = match scale {
            // Nothing that is measured here is as large, and the arithmetic of ticks would end.
            _ if !(low.abs() <= LARGEST && high.abs() <= LARGEST && low <= high) => (1.0, 10.0),
            Scale::Linear if high - low <= 1e-9 * high.abs().max(1e-3) => (low - 0.5, high + 0.5),
            Scale::Log if low <= 1.0 / LARGEST => (1.0, 10.0),
            Scale::Log if high / low < 1.01 => (low / 2.0, high * 2.0),
            _ => (low, high),
        };
        Self { low, high, scale, from_px, to_px }
    }

    /// A linear axis whose ends are ticks.
    pub(crate) fn round(low: f64, high: f64, most_ticks: usize, from_px: f64, to_px: f64) -> Self {
        let exact = Self::new(Scale::Linear, low, high, from_px, to_px);
        let step = exact.step(most_ticks);
        let (low, high) =
            ((exact.low / step + 1e-9).floor() * step, (exact.high / step - 1e-9).ceil() * step);
        Self::new(Scale::Linear, low, high, from_px, to_px)
    }

    pub(crate) fn low(&self) -> f64 {
        self.low
    }

    pub(crate) fn high(&self) -> f64 {
        self.high
    }

    /// Where a value lies; outside the axis for values outside it.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from_px + share * (self.to_px - self.from_px)
    }

    /// Round numbers on the axis, about as many as `most`.
    pub(crate) fn ticks(&self, most: usize) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = self.step(most);
                let (first, last) = ((self.low / step - 1e-6).ceil(), (self.high / step + 1e-6).floor());
                (0..=(last - first).clamp(0.0, 100.0) as usize).map(|i| (first + i as f64) * step).collect()
            }
            Scale::Log => self.log_ticks(most),
        }
    }

    fn log_ticks(&self, most: usize) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let within = |multiples: &[f64], stride: i32| {
            let decades = (first..=last).filter(|decade| decade.rem_euclid(stride) == 0);
            let all = decades.flat_map(|decade| multiples.iter().map(move |m| m * 10_f64.powi(decade)));
            all.filter(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick)).collect::<Vec<_>>()
        };
        let finest_first: [(&[f64], i32); 6] =
            [(&[1.0, 2.0, 5.0], 1), (&[1.0, 3.0], 1), (&[1.0], 1), (&[1.0], 2), (&[1.0], 3), (&[1.0], 6)];
        let candidates = finest_first.map(|(multiples, stride)| within(multiples, stride));
        if let Some(ticks) = candidates.into_iter().find(|ticks| (2..=most.max(2)).contains(&ticks.len())) {
            return ticks;
        }
        // Less than a factor of two or so: round numbers as on a linear axis.
        Self { scale: Scale::Linear, ..*self }.ticks(most)
    }

    /// 1, 2 or 5 times a power of ten.
    fn step(&self, most: usize) -> f64 {
        let raw = (self.high - self.low) / most.max(1) as f64;
        let decade = 10_f64.powf(raw.log10().floor());
        let multiple = [1.0, 2.0, 5.0].into_iter().find(|multiple| multiple * decade >= raw * 0.999);
        multiple.unwrap_or(10.0) * decade
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let axis = Axis::new(Scale::Linear, 3.0, 97.0, 0.0, 100.0);
        assert_eq!(axis.ticks(5), [20.0, 40.0, 60.0, 80.0]);
        let axis = Axis::round(91.3, 98.2, 5, 0.0, 100.0);
        assert_eq!((axis.low(), axis.high()), (90.0, 100.0));
        assert_eq!(Axis::new(Scale::Log, 3e5, 4e8, 0.0, 1.0).ticks(5), [1e6, 1e7, 1e8]);
        assert_eq!(Axis::new(Scale::Log, 9e5, 2.1e7, 0.0, 1.0).ticks(6), [1e6, 2e6, 5e6, 1e7, 2e7]);
        assert_eq!(Axis::new(Scale::Log, 3.0, 4.5, 0.0, 1.0).ticks(4), [3.0, 3.5, 4.0, 4.5]);
    }

    #[test]
    fn every_axis_can_be_drawn() {
        let edges = [0.0, 1.0, -5.0, 1e-300, 1e300, f64::NAN, f64::INFINITY];
        for scale in [Scale::Linear, Scale::Log] {
            for (low, high) in edges.iter().flat_map(|low| edges.iter().map(move |high| (*low, *high))) {
                let axis = Axis::new(scale, low, high, 10.0, 90.0);
                let ticks = axis.ticks(5);
                assert!(ticks.len() <= 101 && ticks.iter().all(|tick| axis.place(*tick).is_finite()));
                assert!((axis.place(axis.low()) - 10.0).abs() < 1e-6, "{scale:?} {low} {high}");
            }
        }
    }

    #[test]
    fn values_are_placed() {
        assert_eq!(Axis::new(Scale::Linear, 0.0, 10.0, 100.0, 0.0).place(2.5), 75.0);
        assert!((Axis::new(Scale::Log, 1.0, 100.0, 0.0, 100.0).place(10.0) - 50.0).abs() < 1e-9);
    }
}
