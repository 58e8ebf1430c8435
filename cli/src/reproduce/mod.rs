//! Repeats the experiments of a paper: the rounds that federated averaging takes to a test accuracy.

mod tables;

use std::path::{Path, PathBuf};

use serde_json::json;
use windlass_common::exit::Exit;
use windlass_report::{Cost, Outcome as Ended, interval};

use crate::compare::{Cell, usual_recipe};
use crate::failure::{Failure, OrExit, Outcome};
use crate::figures::{bytes, grouped, percent, time};
use crate::flags::{BatchFlag, ModeName, Paper, RecipeFlags, ReproduceFlags};
use crate::signals::Interrupts;
use tables::Row;

/// Clients of every experiment (McMahan et al. 2017, section 3).
const CLIENTS: u32 = 100;
/// Fewest rounds after which a run has failed.
const ROUNDS_MIN: u64 = 100;
/// How long one run may take.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(6 * 3600);

/// One experiment at one rate: what each seed took.
struct Tried {
    rate: f64,
    costs: Vec<Option<Cost>>,
    best_accuracy: f64,
    troubles: Vec<String>,
}

/// Runs the cells of a table, one after the other.
///
/// # Errors
/// If no cell fits, results cannot be written, or it was interrupted.
pub(crate) async fn run(flags: ReproduceFlags) -> Outcome<()> {
    let Paper::Mcmahan = flags.paper;
    let rows = tables::rows(flags.table, flags.rows, &flags.cell).map_err(Failure::usage)?;
    if let Some(rate) = flags.grid.iter().find(|rate| !(**rate > 0.0 && rate.is_finite())) {
        return Err(Failure::usage(format!("--grid holds {rate}; rates are numbers above 0")));
    }
    let mut grid = flags.grid.clone();
    grid.sort_by(f64::total_cmp);
    grid.dedup();
    if flags.rounds_max == Some(0) {
        return Err(Failure::usage("--rounds-max is 0; a run has at least one round"));
    }
    let out = flags.out.clone().unwrap_or_else(|| "runs/mcmahan".into());
    let mut interrupts = Interrupts::listen()?;
    let mut found = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        crate::remark(&format!("cell {} of {}: {}", number + 1, rows.len(), row.name()));
        let mut tried = Vec::new();
        for &rate in &grid {
            tried.push(attempt(&flags, &out, row, rate, &mut interrupts).await?);
        }
        found.push(tried);
    }
    let text = report(&flags, &rows, &found);
    store(&out, &flags, &rows, &found)?;
    crate::print(&text)
}

async fn attempt(
    flags: &ReproduceFlags,
    out: &Path,
    row: &Row,
    rate: f64,
    interrupts: &mut Interrupts,
) -> Outcome<Tried> {
    let mut tried = Tried { rate, costs: Vec::new(), best_accuracy: 0.0, troubles: Vec::new() };
    for seed in 1..=u64::from(flags.seeds) {
        let cell = cell(flags, out, row, rate, seed)?;
        let found = cell.find(interrupts).await?;
        let result = found.result(seed, Some(row.target));
        tried.best_accuracy = tried.best_accuracy.max(result.best_accuracy);
        let what = match (&result.outcome, &result.at_target) {
            (_, Some(cost)) => format!("{:.1} rounds in {}", cost.steps, time(cost.seconds)),
            (Ended::Completed, None) => format!("not reached, best {}", percent(result.best_accuracy)),
            (Ended::Diverged { .. }, None) => "diverged".into(),
            (Ended::TimedOut { .. }, None) => "stopped at its time limit".into(),
            (Ended::Failed { reason }, None) => format!("failed: {reason}"),
        };
        if result.at_target.is_none() {
            tried.troubles.push(what.clone());
        }
        let again = if found.is_old { " (run before)" } else { "" };
        crate::remark(&format!("  rate {rate}, seed {seed}: {what}{again}"));
        tried.costs.push(result.at_target);
    }
    Ok(tried)
}

fn cell(flags: &ReproduceFlags, out: &Path, row: &Row, rate: f64, seed: u64) -> Outcome<Cell> {
    let mut recipe = RecipeFlags {
        model: row.model.into(),
        mode: ModeName::Fedavg,
        workers: flags.workers,
        seed,
        batch: Some(BatchFlag(row.batch)),
        ..usual_recipe()
    };
    recipe.clients.clients = Some(CLIENTS);
    recipe.clients.partition = row.partition.parse().or_fail(Exit::Usage, "--cell")?;
    recipe.federated.fraction = Some(row.fraction);
    recipe.federated.local_passes = row.passes;
    recipe.federated.local_rate = rate;
    let usual_max = row.paper.map_or(1_000, |rounds| rounds + rounds / 2).max(ROUNDS_MIN);
    recipe.federated.rounds = Some(flags.rounds_max.unwrap_or(usual_max));
    Ok(Cell {
        directory: out.join(format!("{}-rate-{rate}-seed-{seed}", row.folder())),
        recipe,
        data: flags.data.clone(),
        target: Some(row.target),
        stops_at_target: true,
        evaluations_per_pass: 1,
        time_limit: TIME_LIMIT,
    })
}

impl Tried {
    /// Mean rounds, if every seed has reached the target.
    fn rounds(&self) -> Option<f64> {
        let rounds: Option<Vec<f64>> = self.costs.iter().map(|c| c.as_ref().map(|c| c.steps)).collect();
        rounds.map(|rounds| rounds.iter().sum::<f64>() / rounds.len() as f64)
    }

    fn mean(&self, part: fn(&Cost) -> f64) -> f64 {
        let parts: Vec<f64> = self.costs.iter().flatten().map(part).collect();
        parts.iter().sum::<f64>() / parts.len() as f64
    }
}

/// The rate that took fewest rounds, and whether it is interior to the grid.
fn best(tried: &[Tried]) -> Option<(&Tried, bool)> {
    let rounds = |t: &Tried| t.rounds();
    let reached = tried.iter().enumerate().filter_map(|(i, t)| rounds(t).map(|rounds| (i, rounds)));
    let (index, _) = reached.min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some((&tried[index], index > 0 && index + 1 < tried.len()))
}

fn report(flags: &ReproduceFlags, rows: &[Row], found: &[Vec<Tried>]) -> String {
    let mut text = format!(
        "McMahan et al. 2017, table {}: rounds to the target, at the best rate of {} ({} run{} each)\n\n",
        flags.table,
        flags.grid.iter().map(f64::to_string).collect::<Vec<_>>().join(", "),
        flags.seeds,
        if flags.seeds == 1 { "" } else { "s" }
    );
    let mut lines = vec![
        ["cell", "paper", "here", "rate", "interior", "wire", "gradients", "time"].map(String::from).to_vec(),
    ];
    for (row, tried) in rows.iter().zip(found) {
        let paper = row.paper.map_or("-".into(), grouped);
        lines.push(match best(tried) {
            Some((best, is_interior)) => {
                let rounds: Vec<f64> = best.costs.iter().flatten().map(|c| c.steps).collect();
                let spread = interval(&rounds).map_or_else(String::new, |(_, half)| format!(" ± {half:.0}"));
                vec![
                    row.name(),
                    paper,
                    format!("{:.0}{spread}", best.mean(|c| c.steps)),
                    best.rate.to_string(),
                    if is_interior { "yes".into() } else { "no".into() },
                    bytes(best.mean(Cost::wire_bytes)),
                    grouped(best.mean(|c| c.gradient_evaluations) as u64),
                    time(best.mean(|c| c.seconds)),
                ]
            }
            None => {
                let most = tried.iter().map(|t| t.best_accuracy).fold(0.0, f64::max);
                let mut line = vec![row.name(), paper, format!("not reached (best {})", percent(most))];
                line.resize(8, "-".into());
                line
            }
        });
    }
    let widths: Vec<usize> =
        (0..8).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text += "\nThe grid:\n";
    for (row, tried) in rows.iter().zip(found) {
        let each: Vec<String> = tried
            .iter()
            .map(|t| match t.rounds() {
                Some(rounds) => format!("{}: {rounds:.0}", t.rate),
                None => format!("{}: {}", t.rate, t.troubles.join(", ")),
            })
            .collect();
        text += &format!("  {}: {}\n", row.name(), each.join("; "));
    }
    text
}

fn store(out: &Path, flags: &ReproduceFlags, rows: &[Row], found: &[Vec<Tried>]) -> Outcome<()> {
    let cells: Vec<_> = rows
        .iter()
        .zip(found)
        .map(|(row, tried)| {
            let rates: Vec<_> = tried
                .iter()
                .map(|t| json!({ "rate": t.rate, "seeds": t.costs, "best_accuracy": t.best_accuracy }))
                .collect();
            json!({
                "cell": row.name(), "target": row.target, "rounds_in_paper": row.paper,
                "rate": best(tried).map(|(t, _)| t.rate), "is_interior": best(tried).map(|(_, is)| is),
                "rounds": best(tried).and_then(|(t, _)| t.rounds()), "grid": rates,
            })
        })
        .collect();
    let file: PathBuf = out.join(format!("table-{}.json", flags.table));
    let text = serde_json::to_string_pretty(&cells).or_exit(Exit::System)?;
    std::fs::write(&file, text).or_fail(Exit::System, format!("could not write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(rate: f64, rounds: &[Option<f64>]) -> Tried {
        let cost = |r: &Option<f64>| r.map(|steps| Cost { steps, ..Cost::default() });
        Tried { rate, costs: rounds.iter().map(cost).collect(), best_accuracy: 0.9, troubles: Vec::new() }
    }

    #[test]
    fn the_best_rate_is_the_one_with_fewest_rounds_where_all_seeds_arrive() {
        let grid = [
            tried(0.1, &[Some(60.0), Some(70.0)]),
            tried(0.2, &[Some(40.0), Some(50.0)]),
            tried(0.4, &[Some(10.0), None]),
        ];
        let (found, is_interior) = best(&grid).unwrap();
        assert_eq!((found.rate, found.rounds(), is_interior), (0.2, Some(45.0), true));
        assert!(!best(&grid[..2]).unwrap().1);
        assert!(best(&grid[2..]).is_none());
    }
}
