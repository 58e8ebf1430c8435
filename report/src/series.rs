//! A mode at one rate as it is named, coloured and summed up everywhere in a report.

use std::collections::BTreeMap;

use crate::data::{Comparison, Cost, ModeResult, Outcome, RunResult};
use crate::figures::short;
use crate::statistics::{Mean, mean};

/// One row of the comparison.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    /// Its place in the comparison; dash pattern and marker follow from it.
    pub(crate) index: usize,
    /// The place of its name among the different names; the colour follows from it.
    pub(crate) colour: usize,
    /// A name that no other row has.
    pub(crate) label: String,
    pub(crate) mode: &'a ModeResult,
}

/// What became of one client's work, over all runs of a mode.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fate {
    pub(crate) client: u64,
    pub(crate) asked: u64,
    pub(crate) aggregated: u64,
    pub(crate) late: u64,
    pub(crate) dropped: u64,
    /// Mean over the runs that measured it.
    pub(crate) accuracy: Option<f64>,
}

impl Fate {
    /// Share of the asked updates that went into the model; none if it was never asked.
    pub(crate) fn served(&self) -> Option<f64> {
        (self.asked > 0).then(|| self.aggregated as f64 / self.asked as f64)
    }
}

/// The rows of a comparison, in its order.
pub(crate) fn series(comparison: &Comparison) -> Vec<Series<'_>> {
    let mut names: Vec<&str> = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for (index, mode) in comparison.modes.iter().enumerate() {
        let colour = names.iter().position(|name| *name == mode.name).unwrap_or_else(|| {
            names.push(&mode.name);
            names.len() - 1
        });
        let is_alone = comparison.modes.iter().filter(|other| other.name == mode.name).count() == 1;
        let label = match is_alone {
            true => mode.name.clone(),
            false => format!("{}, rate {}", mode.name, short(mode.rate)),
        };
        let same = labels.iter().filter(|other| **other == label).count();
        labels.push(label.clone());
        let label = if same == 0 { label } else { format!("{label} ({})", same + 1) };
        all.push(Series { index, colour, label, mode });
    }
    all
}

impl<'a> Series<'a> {
    /// The rate, with a mark where it was chosen for this mode.
    pub(crate) fn rate(&self) -> String {
        let own = if self.mode.rate_was_chosen { " own" } else { "" };
        format!("{}{own}", short(self.mode.rate))
    }

    /// All runs, however they ended.
    pub(crate) fn runs(&self) -> &'a [RunResult] {
        &self.mode.runs
    }

    /// What the runs took to the target that reached it.
    pub(crate) fn reached(&self) -> Vec<&'a Cost> {
        self.runs().iter().filter_map(|run| run.at_target.as_ref()).collect()
    }

    /// The runs that completed.
    pub(crate) fn completed(&self) -> Vec<&'a RunResult> {
        self.runs().iter().filter(|run| run.outcome == Outcome::Completed).collect()
    }

    /// A mean over the runs that reached the target.
    pub(crate) fn at_target(&self, field: fn(&Cost) -> f64) -> Option<Mean> {
        mean(&self.reached().into_iter().map(field).collect::<Vec<_>>())
    }

    /// A mean over the ends of the runs that completed.
    pub(crate) fn at_end(&self, field: fn(&Cost) -> f64) -> Option<Mean> {
        let ends = self.completed().into_iter().filter_map(|run| run.at_end.as_ref());
        mean(&ends.map(field).collect::<Vec<_>>())
    }

    /// A mean over the runs that completed.
    pub(crate) fn over_completed(&self, field: fn(&RunResult) -> f64) -> Option<Mean> {
        mean(&self.completed().into_iter().map(field).collect::<Vec<_>>())
    }

    /// Whether clients were asked for updates.
    pub(crate) fn is_federated(&self) -> bool {
        self.runs().iter().any(|run| !run.client_contributions.is_empty())
    }

    /// Examples computed for late pushes, and that as a share of all that were computed, over all runs.
    pub(crate) fn wasted(&self) -> (u64, Option<f64>) {
        let wasted = self.runs().iter().map(|run| run.examples_late).sum();
        let known = self.runs().iter().filter_map(|run| Some((run.examples_late, run.at_end.as_ref()?)));
        let (late, all) = known.fold((0.0, 0.0), |(late, all), (run_late, end)| {
            (late + run_late as f64, all + end.gradient_evaluations)
        });
        (wasted, (all > 0.0).then_some(late / all))
    }

    /// What became of each client's work over all runs, in order of clients.
    pub(crate) fn fates(&self) -> Vec<Fate> {
        let mut fates: BTreeMap<u64, (Fate, Vec<f64>)> = BTreeMap::new();
        for part in self.runs().iter().flat_map(|run| &run.client_contributions) {
            let (fate, accuracies) = fates.entry(part.client).or_default();
            fate.client = part.client;
            fate.asked += part.asked;
            fate.aggregated += part.aggregated;
            fate.late += part.late;
            fate.dropped += part.dropped;
            accuracies.extend(part.accuracy);
        }
        let finish = |(mut fate, accuracies): (Fate, Vec<f64>)| {
            fate.accuracy = mean(&accuracies).map(|mean| mean.value);
            fate
        };
        fates.into_values().map(finish).collect()
    }

    /// The tenth of the asked clients whose updates were lost most, and the others; nobody where nothing was lost.
    pub(crate) fn worst_served(&self) -> (Vec<Fate>, Vec<Fate>) {
        let mut asked: Vec<Fate> = self.fates().into_iter().filter(|fate| fate.asked > 0).collect();
        asked.sort_by(|a, b| a.served().unwrap_or(0.0).total_cmp(&b.served().unwrap_or(0.0)));
        if asked.first().and_then(Fate::served).is_none_or(|served| served >= 1.0) {
            return (Vec::new(), Vec::new());
        }
        let others = asked.split_off(asked.len().div_ceil(10));
        (asked, others)
    }
}

/// The mean accuracy of the clients that it was measured on.
pub(crate) fn accuracy_of(fates: &[Fate]) -> Option<Mean> {
    mean(&fates.iter().filter_map(|fate| fate.accuracy).collect::<Vec<_>>())
        .map(|mean| Mean { half_width: None, ..mean })
}

/// A sentence about the rows that a figure has nothing to draw of, so that none is missing without a word; empty
/// if there are none.
pub(crate) fn missing<'a>(why: &str, rows: impl Iterator<Item = &'a Series<'a>>) -> String {
    let labels: Vec<&str> = rows.map(|one| one.label.as_str()).collect();
    if labels.is_empty() {
        String::new()
    } else {
        format!(" Not shown, because {why}: {}.", labels.join(", "))
    }
}

/// How a run ended, in words.
pub(crate) fn ending(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed => "completed".to_owned(),
        Outcome::Diverged { reason } => format!("diverged: {reason}"),
        Outcome::TimedOut { after_s } => format!("stopped after {after_s} s"),
        Outcome::Failed { reason } => format!("failed: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn labels_differ_and_colours_follow_the_name() {
        let mut comparison = sample::comparison(3, 1);
        comparison.modes.push(comparison.modes[0].clone());
        comparison.modes[3].rate = 0.05;
        comparison.modes.push(comparison.modes[3].clone());
        let all = series(&comparison);
        let labels: Vec<&str> = all.iter().map(|one| one.label.as_str()).collect();
        assert_eq!(labels[0], "sync, rate 0.1");
        assert_eq!(labels[3..], ["sync, rate 0.05", "sync, rate 0.05 (2)"]);
        assert_eq!(all.iter().map(|one| one.colour).collect::<Vec<_>>(), [0, 1, 2, 0, 0]);
    }

    #[test]
    fn means_say_over_how_many_runs_they_are() {
        let mut comparison = sample::comparison(1, 3);
        comparison.modes[0].runs[1].outcome = Outcome::Diverged { reason: "loss is NaN".into() };
        comparison.modes[0].runs[1].at_target = None;
        let all = series(&comparison);
        assert_eq!(all[0].at_target(|cost| cost.seconds).unwrap().runs, 2);
        assert_eq!(all[0].at_end(|cost| cost.seconds).unwrap().runs, 2);
    }

    #[test]
    fn the_worst_served_clients_come_apart() {
        let comparison = sample::comparison(8, 3);
        let all = series(&comparison);
        let federated = all.iter().find(|one| one.is_federated()).unwrap();
        let (worst, others) = federated.worst_served();
        assert_eq!((worst.len(), others.len()), (10, 90));
        let served = |fates: &[Fate]| fates.iter().filter_map(Fate::served).sum::<f64>() / fates.len() as f64;
        assert!(served(&worst) < served(&others));
    }
}
