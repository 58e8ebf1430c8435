//! Says in sentences what a comparison has found, and what it was.

use crate::data::{Comparison, Cost, Outcome, RateChoice};
use crate::figures::{Unit, counted, grouped, level, measured, short, single};
use crate::series::{Series, accuracy_of, series};
use crate::statistics::{Mean, mean};

/// What was found, a sentence or two for each finding.
pub(crate) fn findings(comparison: &Comparison) -> Vec<String> {
    let all = series(comparison);
    if all.is_empty() {
        return vec!["No mode was run.".to_owned()];
    }
    let mut findings = Vec::new();
    match comparison.target {
        Some(target) => findings.extend(first_at_target(&all, target)),
        None => findings.extend(best_at_end(&all)),
    }
    findings.extend(against_baselines(comparison, &all));
    findings.extend(all.iter().filter_map(losses));
    findings.extend(idleness(&all));
    findings.extend(failures(&all));
    findings
}

/// What was run and on what, as pairs of a name and its value.
pub(crate) fn facts(comparison: &Comparison) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("Model", comparison.model.clone()),
        (
            "Data",
            format!(
                "{}: {} to train on, {} to test on",
                comparison.data,
                counted(comparison.train_examples, "example"),
                grouped(comparison.test_examples)
            ),
        ),
        ("Partition", format!("{}; {}", comparison.partition, counted(comparison.clients, "client"))),
        (
            "Processes",
            format!("{}, {}", counted(comparison.workers, "worker"), counted(comparison.servers, "server")),
        ),
        ("Budget", format!("{} passes over the training data in each run", short(comparison.budget_passes))),
        ("Seeds", comparison.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
        ("Learning rate", rate_choice(&comparison.rate_choice)),
    ];
    if comparison.unused_examples > 0 {
        let unused = counted(comparison.unused_examples, "training example");
        facts.push(("Left out", format!("{unused} went to no client")));
    }
    if let Some(target) = comparison.target {
        facts.push(("Target", format!("{} test accuracy", level(target))));
    }
    let words = [("Heterogeneity", &comparison.heterogeneity), ("Machine", &comparison.machine)];
    facts.extend(words.into_iter().map(|(name, value)| (name, value.clone())));
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

fn rate_choice(choice: &RateChoice) -> String {
    match choice {
        RateChoice::Common { rate } => format!("{}, common to all modes", short(*rate)),
        RateChoice::Auto { grid, validation_examples, gradient_evaluations, seconds } => format!(
            "chosen for each mode from {} on {}; the search took {} gradient evaluations and {}, which are in no \
             other figure",
            grid.iter().map(|rate| short(*rate)).collect::<Vec<_>>().join(", "),
            counted(*validation_examples, "validation example"),
            grouped(*gradient_evaluations),
            single(Unit::Seconds, *seconds)
        ),
    }
}

type Field = fn(&Cost) -> f64;

fn first_at_target(all: &[Series], target: f64) -> Vec<String> {
    let name = level(target);
    let always = |one: &&Series| !one.runs().is_empty() && one.reached().len() == one.runs().len();
    let mut ranked: Vec<&Series> = all.iter().filter(always).collect();
    let mut findings = Vec::new();
    if ranked.is_empty() {
        let most = all.iter().map(|one| one.reached().len()).max().unwrap_or(0);
        if most == 0 {
            return vec![format!("No run reached {name} test accuracy.")];
        }
        findings.push(format!("No mode reached {name} test accuracy with every seed."));
        ranked = all.iter().filter(|one| one.reached().len() == most).collect();
    }
    let measures: [(&str, Unit, Field); 3] = [
        ("in time", Unit::Seconds, |cost| cost.seconds),
        ("in bytes on the wire", Unit::Bytes, |cost| cost.wire_bytes()),
        ("in gradient evaluations", Unit::Count, |cost| cost.gradient_evaluations),
    ];
    for (words, unit, field) in measures {
        let mut order: Vec<(&Series, Mean)> =
            ranked.iter().filter_map(|one| Some((*one, one.at_target(field)?))).collect();
        order.sort_by(|a, b| a.1.value.total_cmp(&b.1.value));
        let Some((first, best)) = order.first() else { continue };
        let first_at = if all.len() > 1 { "First at" } else { "At" };
        let mut text =
            format!("{first_at} {name} {words}: {} with {}", first.label, measured(unit, Some(*best)));
        if let Some((second, next)) = order.get(1) {
            text.push_str(&format!("; next {} with {}", second.label, measured(unit, Some(*next))));
            text.push_str(match overlap(best, next) {
                Some(true) => ". Their intervals overlap, so the order may be chance",
                Some(false) => "",
                None => ". With one run each, the order may be chance",
            });
        }
        findings.push(text + ".");
    }
    let others = all.iter().filter(|one| !ranked.iter().any(|other| other.index == one.index));
    let counts = others.map(|one| format!("{} ({} of {})", one.label, one.reached().len(), one.runs().len()));
    let counts: Vec<String> = counts.collect();
    if !counts.is_empty() {
        findings
            .push(format!("Not ranked, because not every run reached the target: {}.", counts.join(", ")));
    }
    findings
}

/// Whether two intervals overlap; none where a side has no interval.
fn overlap(one: &Mean, other: &Mean) -> Option<bool> {
    Some((one.value - other.value).abs() <= one.half_width? + other.half_width?)
}

fn best_at_end(all: &[Series]) -> Option<String> {
    let best = all
        .iter()
        .filter_map(|one| Some((one, one.at_end(|cost| cost.accuracy)?)))
        .max_by(|a, b| a.1.value.total_cmp(&b.1.value));
    let (one, accuracy) = best?;
    let runs = match accuracy.runs {
        runs if runs == one.runs().len() => String::new(),
        runs => format!(" over {runs} of {} runs", one.runs().len()),
    };
    Some(format!(
        "Best test accuracy at the end: {} with {}{runs}.",
        one.label,
        measured(Unit::Share, Some(accuracy))
    ))
}

fn against_baselines(comparison: &Comparison, all: &[Series]) -> Option<String> {
    let ends = all.iter().filter_map(|one| one.at_end(|cost| cost.accuracy)).map(|mean| mean.value);
    let (low, high) =
        ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| (low.min(end), high.max(end)));
    if comparison.baselines.is_empty() || !low.is_finite() {
        return None;
    }
    let described = comparison
        .baselines
        .iter()
        .map(|baseline| format!("{} {}", baseline.name, single(Unit::Share, baseline.accuracy)));
    let described = described.collect::<Vec<_>>().join(", ");
    let (low, high) = (single(Unit::Share, low), single(Unit::Share, high));
    Some(match low == high {
        true => format!("Test accuracy at the end was {low}; for comparison: {described}."),
        false => format!("The modes ended between {low} and {high}; for comparison: {described}."),
    })
}

fn losses(one: &Series) -> Option<String> {
    let (wasted, share) = one.wasted();
    let pushes: u64 = one.runs().iter().map(|run| run.pushes_late).sum();
    let fates = one.fates();
    let total = |field: fn(&crate::series::Fate) -> u64| fates.iter().map(field).sum::<u64>();
    let (asked, late, dropped) =
        (total(|fate| fate.asked), total(|fate| fate.late), total(|fate| fate.dropped));
    if pushes == 0 && wasted == 0 && late + dropped == 0 {
        return None;
    }
    let runs = counted(one.runs().len() as u64, "run");
    let share = share.map_or(String::new(), |share| format!(", {} of all", single(Unit::Share, share)));
    let mut text = format!("Lost to stragglers by {}, over {runs}: ", one.label);
    if asked == 0 {
        let noun = if pushes == 1 { "late push" } else { "late pushes" };
        text.push_str(&format!("{} {noun} ({}{share})", grouped(pushes), counted(wasted, "example")));
        return Some(text + ".");
    }
    let vain = match wasted {
        0 => String::new(),
        _ => format!(" ({} computed in vain{share})", counted(wasted, "example")),
    };
    let never = fates.iter().filter(|fate| fate.asked > 0 && fate.aggregated == 0).count();
    let never = match never {
        0 => "every client that was asked got into the model at least once".to_owned(),
        _ => format!("{never} of {} never got into the model", counted(fates.len() as u64, "client")),
    };
    text.push_str(&format!(
        "of {} asked for, {} came late and {} not at all{vain}; {never}",
        counted(asked, "update"),
        grouped(late),
        grouped(dropped),
    ));
    let (worst, others) = one.worst_served();
    if let (Some(worst), Some(others)) = (accuracy_of(&worst), accuracy_of(&others)) {
        text.push_str(&format!(
            ". The tenth of the clients that lost most has {} accuracy, the others {}",
            measured(Unit::Share, Some(worst)),
            measured(Unit::Share, Some(others))
        ));
    }
    Some(text + ".")
}

fn idleness(all: &[Series]) -> Option<String> {
    let idle = |one: &Series| {
        let shares: Vec<f64> = one.runs().iter().flat_map(|run| run.idle_share.clone()).collect();
        mean(&shares).map(|mean| mean.value)
    };
    let mut order: Vec<(&Series, f64)> = all.iter().filter_map(|one| Some((one, idle(one)?))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (most, least) = (order.first()?, order.last()?);
    if most.0.index == least.0.index {
        return Some(format!("Workers waited {} of their time.", single(Unit::Share, most.1)));
    }
    Some(format!(
        "Workers waited most in {} ({} of their time) and least in {} ({}).",
        most.0.label,
        single(Unit::Share, most.1),
        least.0.label,
        single(Unit::Share, least.1)
    ))
}

fn failures(all: &[Series]) -> Option<String> {
    let runs = all.iter().flat_map(|one| one.runs().iter().map(move |run| (one, run)));
    let total = runs.clone().count();
    let bad: Vec<String> = runs
        .filter(|(_, run)| run.outcome != Outcome::Completed)
        .map(|(one, run)| {
            let word = match run.outcome {
                Outcome::Completed => "completed",
                Outcome::Diverged { .. } => "diverged",
                Outcome::TimedOut { .. } => "was stopped by its time limit",
                Outcome::Failed { .. } => "failed",
            };
            format!("{} with seed {} {word}", one.label, run.seed)
        })
        .collect();
    let (count, total) = (bad.len(), counted(total as u64, "run"));
    match count {
        0 => Some(format!("All {total} completed.").replace("All 1 run", "The one run")),
        _ => Some(format!("Of {total}, {count} did not complete: {}.", bad.join("; "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn text(comparison: &Comparison) -> String {
        findings(comparison).join("\n")
    }

    #[test]
    fn the_first_at_the_target_is_named() {
        let mut comparison = sample::comparison(3, 3);
        for (mode, seconds) in comparison.modes.iter_mut().zip([30.0, 10.0, 20.0]) {
            for (run, jitter) in mode.runs.iter_mut().zip([-0.1, 0.0, 0.1]) {
                run.at_target = Some(Cost { seconds: seconds + jitter, ..Cost::default() });
            }
        }
        let (first, next) = (comparison.modes[1].name.clone(), comparison.modes[2].name.clone());
        let found = text(&comparison);
        let right = format!("in time: {first} with 10.0 ± 0.2 s; next {next} with 20.0 ± 0.2 s.");
        assert!(found.contains(&right), "{found}");
        // A mode that reached the target with two seeds of three is not ranked, however fast.
        comparison.modes[1].runs[0].at_target = None;
        let found = text(&comparison);
        assert!(found.contains(&format!("in time: {next} with")), "{found}");
        assert!(found.contains(&format!("not every run reached the target: {first} (2 of 3).")), "{found}");
    }

    #[test]
    fn overlapping_intervals_are_owned_up_to() {
        let mut comparison = sample::comparison(2, 2);
        for mode in &mut comparison.modes {
            for (run, seconds) in mode.runs.iter_mut().zip([10.0, 12.0]) {
                run.at_target = Some(Cost { seconds, ..Cost::default() });
            }
        }
        assert!(text(&comparison).contains("the order may be chance"));
    }

    #[test]
    fn runs_that_did_not_complete_are_named() {
        let mut comparison = sample::comparison(1, 2);
        assert!(text(&comparison).contains("All 2 runs completed."));
        comparison.modes[0].runs[1].outcome = Outcome::Failed { reason: "killed".into() };
        assert!(text(&comparison).contains("Of 2 runs, 1 did not complete: sync with seed 2 failed."));
        comparison.target = None;
        assert!(text(&comparison).contains("Best test accuracy at the end: sync with"));
        assert!(text(&comparison).contains("over 1 of 2 runs"));
        comparison.modes.clear();
        assert_eq!(text(&comparison), "No mode was run.");
    }
}
