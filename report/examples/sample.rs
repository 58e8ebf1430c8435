//! Writes a report on made-up results: `cargo run -p windlass-report --example sample -- report.html`.
//!
//! The kind of report follows from the file's ending: html, json, csv or txt.

use std::process::ExitCode;

use windlass_report::{
    Baseline, ClientContribution, Comparison, Cost, ModeResult, Outcome, Point, RateChoice, RunResult,
    crossing,
};

#[path = "sample/comparison.rs"]
mod comparison;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!(
            "error: name the file to write, such as report.html, report.json, report.csv or report.txt"
        );
        return ExitCode::from(2);
    };
    let number = |at: usize, otherwise: u64| {
        std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let mut comparison = comparison::comparison(number(2, 8) as usize, number(3, 3));
    if let Some(run) = comparison.modes.get_mut(4).and_then(|mode| mode.runs.get_mut(1)) {
        diverge(run);
    }
    let text = match path.rsplit('.').next() {
        Some("json") => windlass_report::json(&comparison),
        Some("csv") => windlass_report::csv(&comparison),
        Some("txt") => windlass_report::terminal(&comparison, 100),
        _ => windlass_report::html(&comparison),
    };
    match std::fs::write(&path, text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lets a run diverge a third of the way.
fn diverge(run: &mut RunResult) {
    run.curve.truncate(16);
    for (i, point) in run.curve.iter_mut().enumerate().skip(10) {
        point.accuracy -= 0.06 * (i - 9) as f64;
        point.loss = if i == 15 { f64::NAN } else { (i - 8) as f64 };
    }
    run.at_target = None;
    run.at_end = run.curve.last().map(Cost::from);
    run.outcome = Outcome::Diverged { reason: "the loss was NaN at step 2,344".to_owned() };
    run.best_accuracy = run.curve.iter().map(|point| point.accuracy).fold(0.0, f64::max);
}
