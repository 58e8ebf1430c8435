//! The tables of a report: at the target, at the end, what did not complete, baselines, whose data was lost.

use crate::data::{Comparison, Outcome, RunResult};
use crate::figures::{Unit, grouped, level, measured, single};
use crate::series::{Series, accuracy_of, ending, series};
use crate::statistics::mean;
use crate::table::{Column, Row, Table};

/// All tables that have something to say, in the order in which they are shown.
pub(crate) fn tables(comparison: &Comparison) -> Vec<Table> {
    let all = series(comparison);
    let all_tables =
        [at_target(comparison, &all), at_end(&all), incomplete(&all), baselines(comparison), lost(&all)];
    all_tables.into_iter().flatten().filter(|table| !table.rows.is_empty()).collect()
}

const INTERVALS: &str = "Means over the runs that are counted; ± is half the width of the 95 % Student t interval \
                         over seeds, and is missing where there is one run.";

fn row(one: &Series, cells: Vec<String>) -> Row {
    Row { series: Some(one.index), cells: [vec![one.mode.name.clone(), one.rate()], cells].concat() }
}

fn at_target(comparison: &Comparison, all: &[Series]) -> Option<Table> {
    let target = comparison.target?;
    let columns = vec![
        Column::left("mode", 0),
        Column::left("rate", 0),
        Column::left("reached", 0),
        Column::right("time", 0),
        Column::right("steps", 2),
        Column::right("pushes", 5),
        Column::right("gradient evals.", 1),
        Column::right("wire", 0),
        Column::right("wire up", 6),
        Column::right("wire down", 6),
        Column::right("payload", 4),
    ];
    let cells = |one: &Series| {
        vec![
            format!("{} of {}", one.reached().len(), one.runs().len()),
            measured(Unit::Seconds, one.at_target(|cost| cost.seconds)),
            measured(Unit::Count, one.at_target(|cost| cost.steps)),
            measured(Unit::Count, one.at_target(|cost| cost.pushes)),
            measured(Unit::Count, one.at_target(|cost| cost.gradient_evaluations)),
            measured(Unit::Bytes, one.at_target(|cost| cost.wire_bytes())),
            measured(Unit::Bytes, one.at_target(|cost| cost.wire_bytes_up)),
            measured(Unit::Bytes, one.at_target(|cost| cost.wire_bytes_down)),
            measured(Unit::Bytes, one.at_target(|cost| cost.payload_bytes())),
        ]
    };
    let mut notes = vec![
        format!(
            "The target is {} test accuracy. The crossing is interpolated between evaluations on the best \
             accuracy so far (McMahan et al., 2017).",
            level(target)
        ),
        INTERVALS.to_owned(),
    ];
    if all.iter().any(|one| one.reached().len() < one.runs().len()) {
        let note =
            "Where not all runs reached the target, the mean is over those that did, and flatters the mode.";
        notes.push(note.to_owned());
    }
    Some(Table {
        title: "At the target",
        columns,
        rows: all.iter().map(|one| row(one, cells(one))).collect(),
        notes,
    })
}

fn at_end(all: &[Series]) -> Option<Table> {
    let columns = vec![
        Column::left("mode", 0),
        Column::left("rate", 0),
        Column::left("completed", 0),
        Column::right("accuracy", 0),
        Column::right("best accuracy", 4),
        Column::right("time", 0),
        Column::right("gradient evals.", 3),
        Column::right("wire", 1),
        Column::right("staleness", 1),
        Column::right("95th percentile", 5),
        Column::right("idle", 2),
    ];
    let idle = |run: &RunResult| mean(&run.idle_share).map_or(f64::NAN, |mean| mean.value);
    let cells = |one: &Series| {
        vec![
            format!("{} of {}", one.completed().len(), one.runs().len()),
            measured(Unit::Share, one.at_end(|cost| cost.accuracy)),
            measured(Unit::Share, one.over_completed(|run| run.best_accuracy)),
            measured(Unit::Seconds, one.at_end(|cost| cost.seconds)),
            measured(Unit::Count, one.at_end(|cost| cost.gradient_evaluations)),
            measured(Unit::Bytes, one.at_end(|cost| cost.wire_bytes())),
            measured(Unit::Plain, one.over_completed(|run| run.staleness_mean)),
            measured(Unit::Plain, one.over_completed(|run| run.staleness_p95)),
            measured(Unit::Share, one.over_completed(idle)),
        ]
    };
    let mut notes = vec![INTERVALS.to_owned()];
    if all.iter().any(|one| one.completed().len() < one.runs().len()) {
        notes
            .push("Means are over the runs that completed; the others have a table of their own.".to_owned());
    }
    Some(Table {
        title: "At the end",
        columns,
        rows: all.iter().map(|one| row(one, cells(one))).collect(),
        notes,
    })
}

fn incomplete(all: &[Series]) -> Option<Table> {
    let columns = vec![
        Column::left("mode", 0),
        Column::left("rate", 0),
        Column::right("seed", 0),
        Column::left("what happened", 0),
        Column::right("best accuracy", 2),
        Column::left("target", 3),
    ];
    let mut rows = Vec::new();
    for one in all {
        for run in one.runs().iter().filter(|run| run.outcome != Outcome::Completed) {
            let reached = if run.at_target.is_some() { "reached before" } else { "not reached" };
            rows.push(row(
                one,
                vec![
                    run.seed.to_string(),
                    ending(&run.outcome),
                    single(Unit::Share, run.best_accuracy),
                    reached.to_owned(),
                ],
            ));
        }
    }
    Some(Table { title: "Runs that did not complete", columns, rows, notes: Vec::new() })
}

fn baselines(comparison: &Comparison) -> Option<Table> {
    let columns =
        vec![Column::left("baseline", 0), Column::right("test accuracy", 0), Column::left("note", 0)];
    let rows = comparison.baselines.iter().map(|baseline| Row {
        series: None,
        cells: vec![baseline.name.clone(), single(Unit::Share, baseline.accuracy), baseline.note.clone()],
    });
    Some(Table { title: "Baselines", columns, rows: rows.collect(), notes: Vec::new() })
}

fn lost(all: &[Series]) -> Option<Table> {
    let is_federated = all.iter().any(Series::is_federated);
    let mut columns = vec![
        Column::left("mode", 0),
        Column::left("rate", 0),
        Column::right("late pushes", 1),
        Column::right("wasted examples", 1),
        Column::right("of computed", 0),
    ];
    if is_federated {
        columns.extend([
            Column::right("asked", 5),
            Column::right("aggregated", 0),
            Column::right("late", 2),
            Column::right("dropped", 2),
            Column::right("never in", 0),
            Column::right("acc. worst 10 %", 0),
            Column::right("acc. others", 0),
        ]);
    }
    let has_losses = |one: &Series| {
        one.is_federated() || one.runs().iter().any(|run| run.pushes_late > 0 || run.examples_late > 0)
    };
    let rows = all.iter().filter(|one| has_losses(one)).map(|one| {
        let (wasted, share) = one.wasted();
        let late = one.runs().iter().map(|run| run.pushes_late).sum();
        let mut cells = vec![
            grouped(late),
            grouped(wasted),
            share.map_or("–".into(), |share| single(Unit::Share, share)),
        ];
        if is_federated {
            cells.extend(clients(one));
        }
        row(one, cells)
    });
    let mut notes = vec!["Sums over all runs of a mode, also those that did not complete.".to_owned()];
    if is_federated {
        notes.push(
            "Aggregated, late and dropped: shares of the updates that clients were asked for. Never in: clients \
             that were asked and never aggregated. Worst 10 %: the tenth of the clients with the smallest share \
             aggregated; accuracy is that of the final model on their own data."
                .to_owned(),
        );
    }
    Some(Table { title: "Whose data was lost", columns, rows: rows.collect(), notes })
}

fn clients(one: &Series) -> Vec<String> {
    let fates = one.fates();
    if fates.is_empty() {
        return vec!["–".to_owned(); 7];
    }
    let asked: u64 = fates.iter().map(|fate| fate.asked).sum();
    let share =
        |count: u64| single(Unit::Share, if asked == 0 { f64::NAN } else { count as f64 / asked as f64 });
    let never = fates.iter().filter(|fate| fate.asked > 0 && fate.aggregated == 0).count();
    let (worst, others) = one.worst_served();
    vec![
        grouped(asked),
        share(fates.iter().map(|fate| fate.aggregated).sum()),
        share(fates.iter().map(|fate| fate.late).sum()),
        share(fates.iter().map(|fate| fate.dropped).sum()),
        format!("{never} of {}", fates.len()),
        measured(Unit::Share, accuracy_of(&worst)),
        measured(Unit::Share, accuracy_of(&others)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn what_did_not_complete_has_rows() {
        let mut comparison = sample::comparison(2, 3);
        let count = |comparison: &Comparison, title: &str| {
            let all = tables(comparison);
            all.iter().find(|table| table.title == title).map_or(0, |table| table.rows.len())
        };
        assert_eq!(count(&comparison, "Runs that did not complete"), 0);
        comparison.modes[1].runs[0].outcome = Outcome::TimedOut { after_s: 600 };
        comparison.modes[1].runs[0].at_target = None;
        assert_eq!(count(&comparison, "Runs that did not complete"), 1);
        let all = tables(&comparison);
        assert_eq!(
            (all[0].rows[1].cells[2].as_str(), all[1].rows[1].cells[2].as_str()),
            ("2 of 3", "2 of 3")
        );
        assert!(all[0].notes.iter().any(|note| note.contains("flatters")));
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for modes in [0, 1, 8, 12] {
            for table in tables(&sample::comparison(modes, 2)) {
                assert!(table.rows.iter().all(|row| row.cells.len() == table.columns.len()), "{table:?}");
            }
        }
    }
}
