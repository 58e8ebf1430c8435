//! Writes a comparison as CSV: one row for each run, each evaluation or each client.

use crate::data::{Comparison, Cost, ModeResult, Outcome, RunResult};

const COSTS: [&str; 9] = [
    "seconds",
    "steps",
    "pushes",
    "gradient_evaluations",
    "payload_bytes_up",
    "payload_bytes_down",
    "wire_bytes_up",
    "wire_bytes_down",
    "accuracy",
];

/// One row for each mode, rate and seed. What is not known is empty; the idle shares of the workers are joined by
/// semicolons.
pub fn csv(comparison: &Comparison) -> String {
    let mut head =
        ["mode", "rate", "rate_was_chosen", "seed", "outcome", "reason"].map(String::from).to_vec();
    head.extend(COSTS.map(|cost| format!("target_{cost}")));
    head.extend(COSTS.map(|cost| format!("end_{cost}")));
    let last =
        ["best_accuracy", "staleness_mean", "staleness_p95", "idle_share", "pushes_late", "examples_late"];
    head.extend(last.map(String::from));
    let mut text = line(&head);
    for (mode, run) in runs(comparison) {
        let (outcome, reason) = match &run.outcome {
            Outcome::Completed => ("completed", String::new()),
            Outcome::Diverged { reason } => ("diverged", reason.clone()),
            Outcome::TimedOut { after_s } => ("timed_out", format!("after {after_s} s")),
            Outcome::Failed { reason } => ("failed", reason.clone()),
        };
        let mut cells = vec![
            mode.name.clone(),
            number(mode.rate),
            mode.rate_was_chosen.to_string(),
            run.seed.to_string(),
            outcome.to_owned(),
            reason,
        ];
        cells.extend(costs(run.at_target.as_ref()));
        cells.extend(costs(run.at_end.as_ref()));
        cells.extend([run.best_accuracy, run.staleness_mean, run.staleness_p95].map(number));
        cells.push(run.idle_share.iter().map(|share| number(*share)).collect::<Vec<_>>().join(";"));
        cells.extend([run.pushes_late, run.examples_late].map(|count| count.to_string()));
        text.push_str(&line(&cells));
    }
    text
}

/// One row for each evaluation of each run.
pub fn curves_csv(comparison: &Comparison) -> String {
    let mut head = ["mode", "rate", "seed"].map(String::from).to_vec();
    head.extend(COSTS.map(String::from));
    head.push("loss".to_owned());
    let mut text = line(&head);
    for (mode, run) in runs(comparison) {
        for point in &run.curve {
            let mut cells = vec![mode.name.clone(), number(mode.rate), run.seed.to_string()];
            cells.extend(costs(Some(&Cost::from(point))));
            cells.push(number(point.loss));
            text.push_str(&line(&cells));
        }
    }
    text
}

/// One row for each client of each federated run.
pub fn clients_csv(comparison: &Comparison) -> String {
    let head =
        ["mode", "rate", "seed", "client", "asked", "aggregated", "late", "dropped", "examples", "accuracy"];
    let mut text = line(&head.map(String::from));
    for (mode, run) in runs(comparison) {
        for part in &run.client_contributions {
            let mut cells = vec![mode.name.clone(), number(mode.rate), run.seed.to_string()];
            let counts = [part.client, part.asked, part.aggregated, part.late, part.dropped, part.examples];
            cells.extend(counts.map(|count| count.to_string()));
            cells.push(part.accuracy.map_or(String::new(), number));
            text.push_str(&line(&cells));
        }
    }
    text
}

fn runs(comparison: &Comparison) -> impl Iterator<Item = (&ModeResult, &RunResult)> {
    comparison.modes.iter().flat_map(|mode| mode.runs.iter().map(move |run| (mode, run)))
}

fn costs(cost: Option<&Cost>) -> Vec<String> {
    let Some(cost) = cost else { return vec![String::new(); COSTS.len()] };
    let fields = [
        cost.seconds,
        cost.steps,
        cost.pushes,
        cost.gradient_evaluations,
        cost.payload_bytes_up,
        cost.payload_bytes_down,
        cost.wire_bytes_up,
        cost.wire_bytes_down,
        cost.accuracy,
    ];
    fields.map(number).to_vec()
}

/// The shortest text that reads back as the same number; empty if it is not finite.
fn number(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

fn line(cells: &[String]) -> String {
    let quoted = |cell: &String| match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    cells.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn there_is_a_row_for_every_run_and_point_and_all_are_as_wide_as_the_head() {
        let mut comparison = sample::comparison(8, 3);
        comparison.modes[0].runs[0].at_target = None;
        let points: usize = runs(&comparison).map(|(_, run)| run.curve.len()).sum();
        let clients: usize = runs(&comparison).map(|(_, run)| run.client_contributions.len()).sum();
        let sheets = [csv(&comparison), curves_csv(&comparison), clients_csv(&comparison)];
        for (sheet, rows) in sheets.iter().zip([24, points, clients]) {
            assert_eq!(sheet.lines().count(), rows + 1);
            let width = sheet.lines().next().unwrap().split(',').count();
            assert!(sheet.lines().all(|line| line.split(',').count() == width), "{sheet}");
        }
    }

    #[test]
    fn cells_are_quoted_and_what_is_not_finite_is_empty() {
        assert_eq!(line(&["a,b".into(), "say \"x\"".into(), "c".into()]), "\"a,b\",\"say \"\"x\"\"\",c\n");
        assert_eq!([1.5, f64::NAN, f64::INFINITY].map(number), ["1.5", "", ""]);
    }
}
