//! Sums up what several seeds have given, without hiding how many they were.

use crate::data::{Cost, Point};

/// Two-sided 95 % quantiles of Student's t distribution for 1 to 30 degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A mean over runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Half the width of the 95 % confidence interval; none for a single run.
    pub half_width: Option<f64>,
    /// The runs it is over.
    pub runs: usize,
}

/// The mean of the finite values, and what can be said of its spread; none if there are no values.
pub fn mean(values: &[f64]) -> Option<Mean> {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let runs = finite.len();
    if runs == 0 {
        return None;
    }
    let value = finite.iter().sum::<f64>() / runs as f64;
    Some(Mean { value, half_width: interval(&finite).map(|(_, half_width)| half_width), runs })
}

/// The mean and the half-width of its 95 % Student t interval; none for fewer than two finite values, of which
/// no spread can be known.
pub fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = finite.len() as f64;
    if finite.len() < 2 {
        return None;
    }
    let mean = finite.iter().sum::<f64>() / count;
    let variance = finite.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some((mean, t_quantile(finite.len() - 1) * (variance / count).sqrt()))
}

/// The two-sided 95 % quantile of Student's t distribution; infinite for no degrees of freedom.
pub fn t_quantile(degrees_of_freedom: usize) -> f64 {
    match degrees_of_freedom {
        0 => f64::INFINITY,
        1..=30 => T_95[degrees_of_freedom - 1],
        // Cornish and Fisher's expansion around the normal quantile; off by less than 0.0001 from 31 on.
        _ => {
            let (z, v) = (1.959_964_f64, degrees_of_freedom as f64);
            z + (z.powi(3) + z) / (4.0 * v)
                + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * v.powi(2))
        }
    }
}

/// What it took to reach the target, by the rule of McMahan et al. (2017): the curve is made monotone by taking
/// the best accuracy so far, and the crossing is interpolated between the two evaluations around it.
///
/// Evaluations without a finite accuracy are passed over. A curve that begins at or above the target crosses at
/// its first point. None if the target is never reached.
pub fn crossing(curve: &[Point], target: f64) -> Option<Cost> {
    let mut before: Option<(&Point, f64)> = None;
    for point in curve.iter().filter(|point| point.accuracy.is_finite()) {
        let Some((previous, best)) = before else {
            if point.accuracy >= target {
                return Some(Cost::from(point));
            }
            before = Some((point, point.accuracy));
            continue;
        };
        if point.accuracy >= target {
            // Below the target before and not below it now, so the divisor is positive.
            let share = (target - best) / (point.accuracy - best);
            return Some(between(&Cost::from(previous), &Cost::from(point), share, target));
        }
        before = Some((point, best.max(point.accuracy)));
    }
    None
}

fn between(from: &Cost, to: &Cost, share: f64, accuracy: f64) -> Cost {
    let mix = |field: fn(&Cost) -> f64| field(from) + share * (field(to) - field(from));
    Cost {
        seconds: mix(|cost| cost.seconds),
        steps: mix(|cost| cost.steps),
        pushes: mix(|cost| cost.pushes),
        gradient_evaluations: mix(|cost| cost.gradient_evaluations),
        payload_bytes_up: mix(|cost| cost.payload_bytes_up),
        payload_bytes_down: mix(|cost| cost.payload_bytes_down),
        wire_bytes_up: mix(|cost| cost.wire_bytes_up),
        wire_bytes_down: mix(|cost| cost.wire_bytes_down),
        accuracy,
    }
}

/// The mean of several curves `(x, y)`, each in order of x, where all of them have values.
pub(crate) fn mean_curve(curves: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let begin = curves.iter().map(|curve| curve.first().map_or(f64::INFINITY, |at| at.0));
    let end = curves.iter().map(|curve| curve.last().map_or(f64::NEG_INFINITY, |at| at.0));
    let (begin, end) = (begin.fold(f64::NEG_INFINITY, f64::max), end.fold(f64::INFINITY, f64::min));
    let mut places: Vec<f64> = curves.iter().flatten().map(|at| at.0).collect();
    places.retain(|x| (begin..=end).contains(x));
    places.sort_by(f64::total_cmp);
    places.dedup();
    let count = curves.len() as f64;
    places.iter().map(|x| (*x, curves.iter().map(|curve| value_at(curve, *x)).sum::<f64>() / count)).collect()
}

/// The value of a curve that is not empty, between its points on a straight line.
fn value_at(curve: &[(f64, f64)], x: f64) -> f64 {
    let next = curve.partition_point(|at| at.0 < x).min(curve.len() - 1);
    let (to, from) = (curve[next], curve[next.saturating_sub(1)]);
    if to.0 <= from.0 {
        return to.1;
    }
    from.1 + (to.1 - from.1) * ((x - from.0) / (to.0 - from.0)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        assert_eq!([1, 2, 4].map(t_quantile), [12.706, 4.303, 2.776]);
        for (degrees, quantile) in [(31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)] {
            assert!((t_quantile(degrees) - quantile).abs() < 2e-4, "{degrees}: {}", t_quantile(degrees));
        }
        assert!((t_quantile(1_000_000) - 1.96).abs() < 1e-4);
    }

    #[test]
    fn an_interval_needs_two_values() {
        assert_eq!((interval(&[]), interval(&[1.0]), interval(&[1.0, f64::NAN])), (None, None, None));
        let (centre, half_width) = interval(&[1.0, 2.0, 3.0]).unwrap();
        assert!((centre - 2.0).abs() < 1e-12 && (half_width - 4.303 / 3.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(mean(&[5.0]), Some(Mean { value: 5.0, half_width: None, runs: 1 }));
        assert_eq!(mean(&[5.0, f64::INFINITY]).unwrap().runs, 1);
        assert_eq!(mean(&[f64::NAN]), None);
    }

    fn curve(accuracies: &[f64]) -> Vec<Point> {
        let point = |i: usize| i as u64;
        let with = |(i, accuracy): (usize, &f64)| Point {
            seconds: i as f64 * 10.0,
            steps: point(i),
            wire_bytes_up: point(i) * 1000,
            accuracy: *accuracy,
            ..Point::default()
        };
        accuracies.iter().enumerate().map(with).collect()
    }

    #[test]
    fn a_crossing_lies_between_evaluations() {
        let cost = crossing(&curve(&[0.90, 0.96, 0.98]), 0.97).unwrap();
        for (found, right) in [(cost.steps, 1.5), (cost.seconds, 15.0), (cost.wire_bytes_up, 1500.0)] {
            assert!((found - right).abs() < 1e-9, "{found} is not {right}");
        }
        assert_eq!((cost.pushes, cost.accuracy), (0.0, 0.97));
    }

    #[test]
    fn a_crossing_counts_from_the_best_so_far() {
        // The dip to 0.5 is filled up to 0.96: the crossing is half-way between steps 2 and 3.
        let cost = crossing(&curve(&[0.90, 0.96, 0.5, 0.98]), 0.97).unwrap();
        assert!((cost.steps - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_crossing_at_the_edges() {
        assert_eq!(crossing(&[], 0.5), None);
        assert_eq!(crossing(&curve(&[0.4]), 0.5), None);
        assert_eq!(crossing(&curve(&[0.5]), 0.5).unwrap().steps, 0.0);
        assert_eq!(crossing(&curve(&[0.2, 0.5]), 0.5).unwrap().steps, 1.0);
        // Half-way between steps 0 and 2.
        assert_eq!(crossing(&curve(&[0.25, f64::NAN, 0.75]), 0.5).unwrap().steps, 1.0);
        assert_eq!(crossing(&curve(&[f64::NAN]), 0.4), None);
    }

    #[test]
    fn a_mean_curve_covers_what_all_curves_cover() {
        let curves = [vec![(0.0, 0.0), (2.0, 2.0), (9.0, 9.0)], vec![(1.0, 3.0), (3.0, 5.0)]];
        assert_eq!(mean_curve(&curves), [(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]);
        assert_eq!(mean_curve(&curves[..1]), curves[0]);
        assert_eq!(mean_curve(&[]), []);
        assert_eq!(mean_curve(&[vec![], curves[0].clone()]), []);
    }
}
