//! Turns a finished comparison of training modes into a terminal table, CSV, JSON and one HTML page.
//!
//! Nothing here does IO: a [`Comparison`] goes in, and every function gives a `String` back.

mod data;
mod figures;
mod html;
mod series;
mod sheets;
mod statistics;
mod table;
mod tables;
mod terminal;
mod words;

pub use data::{
    Baseline, ClientContribution, Comparison, Cost, ModeResult, Outcome, Point, RateChoice, RunResult,
};
pub use html::html;
pub use sheets::{clients_csv, csv, curves_csv};
pub use statistics::{Mean, crossing, interval, mean, t_quantile};
pub use terminal::terminal;

/// The comparison as JSON, which reads back into a [`Comparison`].
///
/// JSON has no NaN and no infinity: a diverged loss is written as `null` and read back as NaN.
pub fn json(comparison: &Comparison) -> String {
    serde_json::to_string_pretty(comparison).expect("the keys are strings, and writing to memory cannot fail")
}

#[cfg(test)]
#[path = "../examples/sample/comparison.rs"]
mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_reads_back_also_after_divergence() {
        let mut comparison = sample::comparison(3, 2);
        let same: Comparison = serde_json::from_str(&json(&comparison)).unwrap();
        assert!(same == comparison, "a comparison does not read back");
        comparison.modes[0].runs[0].curve[1].loss = f64::NAN;
        comparison.modes[0].runs[0].best_accuracy = f64::INFINITY;
        let same: Comparison = serde_json::from_str(&json(&comparison)).unwrap();
        assert!(same.modes[0].runs[0].curve[1].loss.is_nan());
        assert!(same.modes[0].runs[0].best_accuracy.is_nan());
    }
}
