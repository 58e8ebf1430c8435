//! Lets each mode choose its learning rate from one grid, on training examples that are held out for it.

use std::time::Instant;

use windlass_report::{Outcome as Ended, RateChoice};

use super::{Cell, Comparing, ModeSpec};
use crate::failure::Outcome;
use crate::figures::percent;
use crate::flags::ModeRate;
use crate::signals::Interrupts;

/// Training examples held out for the choice, unless there are few.
const VALIDATION: u64 = 5_000;
/// The ratio of one rate of a grid to the next where it has to grow (McMahan et al. 2017, section 3).
const RATIO: f64 = 2.154_434_690_031_884;
/// How often a grid may grow.
const GROWTH_MAX: usize = 3;

/// The rates that were chosen, and what that has cost.
pub(super) struct Chosen {
    pub(super) rates: Vec<ModeRate>,
    pub(super) choice: RateChoice,
}

/// Tries every rate of the grid in every mode. If the best is at the edge the grid grows there, so that it is interior.
pub(super) async fn choose(comparing: &Comparing, interrupts: &mut Interrupts) -> Outcome<Chosen> {
    let began = Instant::now();
    let (mut rates, mut evaluations, mut seconds) = (Vec::new(), 0, 0.0);
    let mut tried = comparing.flags.grid.clone();
    for mode in &comparing.flags.modes {
        let mut grid: Vec<(f64, f64)> = Vec::new();
        let mut open = comparing.flags.grid.clone();
        for growth in 0..=GROWTH_MAX {
            for rate in open.drain(..) {
                let found = trial(comparing, mode, rate).find(interrupts).await?;
                let result = found.result(comparing.flags.recipe.seed, None);
                let score = match (&result.outcome, &result.at_end) {
                    (Ended::Completed, Some(end)) => end.accuracy,
                    _ => f64::NEG_INFINITY,
                };
                evaluations += result.at_end.as_ref().map_or(0.0, |end| end.gradient_evaluations) as u64;
                seconds += result.at_end.as_ref().map_or(0.0, |end| end.seconds);
                let shown = if score.is_finite() { percent(score) } else { "no result".into() };
                crate::remark(&format!("choosing the rate of {mode}: {rate} gives {shown}"));
                grid.push((rate, score));
            }
            grid.sort_by(|a, b| a.0.total_cmp(&b.0));
            let best = best_of(&grid);
            if growth == GROWTH_MAX {
                break;
            }
            if best == 0 {
                open.push(beside(grid[0].0, -1));
            } else if best + 1 == grid.len() {
                open.push(beside(grid[best].0, 1));
            } else {
                break;
            }
            tried.extend(&open);
        }
        rates.push(ModeRate(mode.clone(), grid[best_of(&grid)].0));
    }
    tried.sort_by(f64::total_cmp);
    tried.dedup();
    // A comparison that goes on has taken most of that time before.
    let seconds = f64::max(seconds, began.elapsed().as_secs_f64());
    let choice = RateChoice::Auto {
        grid: tried,
        validation_examples: VALIDATION,
        gradient_evaluations: evaluations,
        seconds,
    };
    Ok(Chosen { rates, choice })
}

fn best_of(grid: &[(f64, f64)]) -> usize {
    (0..grid.len()).rev().max_by(|&a, &b| grid[a].1.total_cmp(&grid[b].1)).unwrap_or(0)
}

/// The rate a third of a decade beside this one, with three digits, which are enough and make names of folders that can be
/// read. Rates of the usual series stay in it.
fn beside(rate: f64, steps: i32) -> f64 {
    let third = (3.0 * rate.log10()).round();
    let usual = 10_f64.powf(third / 3.0);
    let from = if (usual / rate - 1.0).abs() < 0.01 { usual } else { rate };
    let found = from * RATIO.powi(steps);
    format!("{found:.2e}").parse().unwrap_or(found)
}

fn trial(comparing: &Comparing, mode: &ModeSpec, rate: f64) -> Cell {
    let mut cell = comparing.cell(mode, rate, comparing.flags.recipe.seed);
    let name = cell.directory.file_name().map(|n| n.to_owned()).unwrap_or_default();
    cell.directory = comparing.out.join("rates").join(name);
    cell.recipe.clients.validation = VALIDATION;
    cell.recipe.passes = Some(comparing.flags.grid_passes);
    if let Some(rounds) = &mut cell.recipe.federated.rounds {
        *rounds = (*rounds).div_ceil(4);
        cell.recipe.passes = None;
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_found_and_the_lower_of_equals() {
        assert_eq!(best_of(&[(0.1, 0.9), (0.2, 0.95), (0.4, f64::NEG_INFINITY)]), 1);
        assert_eq!(best_of(&[(0.1, 0.9), (0.2, 0.9)]), 0);
    }

    #[test]
    fn a_grid_grows_by_a_third_of_a_decade() {
        assert_eq!(beside(0.1, 1), 0.215);
        assert_eq!([beside(0.215, 1), beside(0.464, 1)], [0.464, 1.0]);
        assert_eq!(beside(0.0464, -1), 0.0215);
        assert_eq!(beside(0.05, 1), 0.108);
    }
}
