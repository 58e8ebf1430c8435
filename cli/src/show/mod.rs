//! Shows how a run stands: a bar on a terminal, plain lines elsewhere.

pub(crate) mod pace;

use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use windlass_common::ids::Lineage;
use windlass_common::plan::Plan;
use windlass_common::wire::{CheckpointStatus, Phase, Status};

use crate::evaluator::{Evaluation, Judged};
use crate::figures::{bytes, grouped, percent, time};
use pace::Pace;

/// Plain lines come this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// What shows how a run stands.
pub(crate) struct Show {
    medium: Medium,
    began: Instant,
    examples_per_pass: u64,
    pace: Pace,
    accuracy: Option<f64>,
    /// When the last plain line was written.
    last_line: Option<Instant>,
    waiting: String,
}

enum Medium {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Show {
    /// Shows nothing if `quiet`, else a bar where standard error is a terminal and lines where it is not.
    pub(crate) fn new(quiet: bool) -> Self {
        let medium = match quiet {
            true => Medium::Nothing,
            false if std::io::stderr().is_terminal() => {
                let style = ProgressStyle::with_template("{bar:40} {prefix}\n{wide_msg}");
                Medium::Bar(
                    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
                )
            }
            false => Medium::Lines,
        };
        let (began, waiting) = (Instant::now(), String::new());
        let pace = Pace::default();
        Self { medium, began, examples_per_pass: 1, pace, accuracy: None, last_line: None, waiting }
    }

    /// Tells what the numbers will be about.
    pub(crate) fn about(&mut self, plan: &Plan) {
        self.examples_per_pass = plan.data.train_examples.max(1);
        if let Medium::Bar(bar) = &self.medium {
            bar.set_length(plan.goal().total());
        }
    }

    /// How the run stands now.
    pub(crate) fn status(&mut self, status: &Status) {
        if status.phase == Phase::Training {
            self.pace.add(self.began.elapsed().as_secs_f64(), status);
        }
        let is_new = status.waiting != self.waiting;
        if is_new {
            self.waiting.clone_from(&status.waiting);
        }
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        let has_news = is_new && !self.waiting.is_empty();
        match &self.medium {
            Medium::Bar(bar) => {
                bar.set_position(if status.rounds_target > 0 { status.rounds } else { status.examples.0 });
                // Two lines, so that nothing is cut off at 80 columns.
                let (progress, figures) = self.parts(status);
                bar.set_prefix(progress);
                bar.set_message(figures);
            }
            Medium::Lines if is_due || has_news => {
                self.last_line = Some(Instant::now());
                let (progress, figures) = self.parts(status);
                let separator = if progress.is_empty() || figures.is_empty() { "" } else { " | " };
                crate::remark(&format!("{progress}{separator}{figures}"));
            }
            Medium::Lines | Medium::Nothing => {}
        }
    }

    /// The run has been taken back: how fast it went is no measure of what is to come.
    pub(crate) fn taken_back(&mut self) {
        self.pace = Pace::default();
    }

    /// What the evaluator has to say.
    pub(crate) fn judged(&mut self, judged: &Judged) {
        match judged {
            Judged::Evaluated(evaluation) => {
                self.accuracy = Some(evaluation.accuracy);
                self.notice(&sentence(evaluation));
            }
            Judged::Skipped { examples } => self.notice(&format!(
                "no evaluation at {} examples: training had gone on too far when the one before was done",
                grouped(*examples)
            )),
            Judged::Lost(reason) | Judged::Failed(reason) => {
                self.notice(&format!("no further evaluations: {reason}"))
            }
        }
    }

    /// Something that a person wants to know.
    pub(crate) fn notice(&self, text: &str) {
        match &self.medium {
            Medium::Bar(bar) => bar.suspend(|| crate::remark(text)),
            Medium::Lines => crate::remark(text),
            Medium::Nothing => {}
        }
    }

    /// What happens while there is no status yet.
    pub(crate) fn step(&self, text: &str) {
        match &self.medium {
            Medium::Bar(bar) => bar.set_message(text.to_owned()),
            Medium::Lines => crate::remark(text),
            Medium::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if let Medium::Bar(bar) = &self.medium {
            bar.finish_and_clear();
        }
    }

    /// How far the run is and how long it takes, and all else there is to say.
    fn parts(&self, status: &Status) -> (String, String) {
        let words = match status.phase {
            Phase::Training => return (self.progress(status), self.figures(status)),
            Phase::Gathering if status.waiting.is_empty() => "servers and workers are joining".to_owned(),
            Phase::Gathering => status.waiting.clone(),
            Phase::Finishing => "the result is being collected".to_owned(),
            Phase::Done => "the result is written".to_owned(),
            Phase::Failed => format!("the run has failed: {}", status.waiting),
        };
        (String::new(), words)
    }

    fn progress(&self, status: &Status) -> String {
        if status.rounds_target > 0 {
            let rounds = format!("round {} of {}", grouped(status.rounds), grouped(status.rounds_target));
            return match self.pace.left_s(status) {
                Some(left) => format!("{rounds} | {} left", time(left)),
                None => rounds,
            };
        }
        let passes = |examples: u64| examples as f64 / self.examples_per_pass as f64;
        let (done, all) = (passes(status.examples.0), short(passes(status.examples_target.0)));
        match self.pace.left_s(status) {
            Some(left) => format!("pass {done:.2} of {all} | {} left", time(left)),
            None => format!("pass {done:.2} of {all}"),
        }
    }

    fn figures(&self, status: &Status) -> String {
        let mut parts = Vec::new();
        parts.extend(status.loss.map(|loss| format!("loss {loss:.4}")));
        parts.extend(self.accuracy.map(|accuracy| format!("accuracy {}", percent(accuracy))));
        if let Some(rates) = self.pace.rates() {
            parts.push(format!("{:.1} steps/s", rates.steps));
            parts.push(format!("{}/s on the wire", bytes(rates.bytes)));
        }
        parts.extend(checkpoints(&status.checkpoints, now_us()));
        if !status.waiting.is_empty() {
            parts.push(status.waiting.clone());
        }
        parts.join(" | ")
    }
}

/// Microseconds since 1970, by the clock of this machine.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// How the checkpoints stand: how often the run was taken back, and how old the newest is.
pub(crate) fn checkpoints(status: &CheckpointStatus, now_us: u64) -> Vec<String> {
    let mut parts = Vec::new();
    if status.lineage > Lineage(0) {
        parts.push(format!("lineage {}", status.lineage));
    }
    let age = |at_us: u64| time(now_us.saturating_sub(at_us) as f64 / 1e6);
    parts.extend(status.newest.map(|c| format!("checkpoint {}, {} ago", c.number, age(c.at_us))));
    parts
}

fn sentence(evaluation: &Evaluation) -> String {
    let at = match evaluation.step {
        Some(step) => format!("step {}, the same on every shard", grouped(step)),
        None => format!("the {}", evaluation.consistent),
    };
    format!(
        "evaluation at {} examples ({at}): accuracy {}, loss {:.4}",
        grouped(evaluation.examples),
        percent(evaluation.accuracy),
        evaluation.loss
    )
}

/// A number of passes, without digits that say nothing.
fn short(passes: f64) -> String {
    let text = format!("{passes:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use windlass_common::ids::{Examples, Term};
    use windlass_common::wire::Meter;

    use super::*;

    /// A status in training; 100 examples are a step, and each example is 4 bytes on the wire.
    pub(crate) fn status(examples: u64, target: u64) -> Status {
        Status {
            phase: Phase::Training,
            term: Term(1),
            examples: Examples(examples),
            examples_target: Examples(target),
            rounds: 0,
            rounds_target: 0,
            steps: examples / 100,
            pushes: examples / 100,
            loss: Some(0.25),
            first_applied_us: None,
            seats: Vec::new(),
            checkpoints: CheckpointStatus::default(),
            meter: Meter { wire_up: examples * 3, wire_down: examples, ..Meter::default() },
            workers: Vec::new(),
            shards: Vec::new(),
            blocked: Vec::new(),
            advice: Vec::new(),
            waiting: String::new(),
        }
    }

    #[test]
    fn a_line_says_how_the_run_stands() {
        let mut show = Show { examples_per_pass: 1000, ..Show::new(true) };
        let parts = |show: &Show, status: &Status| {
            let (progress, figures) = show.parts(status);
            format!("{progress}; {figures}")
        };
        assert_eq!(parts(&show, &status(250, 2000)), "pass 0.25 of 2; loss 0.2500");
        show.pace.add(0.0, &status(0, 2500));
        show.pace.add(1.0, &status(500, 2500));
        show.accuracy = Some(0.9);
        let mut now = status(500, 2500);
        let figures = "loss 0.2500 | accuracy 90.00 % | 5.0 steps/s | 2.0 kB/s on the wire";
        assert_eq!(parts(&show, &now), format!("pass 0.50 of 2.5 | 4 s left; {figures}"));
        now.waiting = "waiting for worker 1 to come back".into();
        assert!(parts(&show, &now).ends_with("on the wire | waiting for worker 1 to come back"));
        now.phase = Phase::Gathering;
        assert_eq!(show.parts(&now), (String::new(), now.waiting.clone()));
    }

    #[test]
    fn the_newest_checkpoint_is_named_with_its_age() {
        let mut status = CheckpointStatus::default();
        assert!(checkpoints(&status, 9).is_empty());
        status.newest = Some(crate::asked::tests::kept(3, 76_800));
        assert_eq!(checkpoints(&status, 12_000_005), ["checkpoint 3, 12 s ago"]);
        status.lineage = Lineage(2);
        assert_eq!(checkpoints(&status, 0), ["lineage 2", "checkpoint 3, 0 s ago"]);
    }

    #[test]
    fn an_evaluation_says_what_its_values_have_in_common() {
        let mut evaluation = Evaluation {
            examples: 60_000,
            pushes: 700,
            at_us: 0,
            step: Some(235),
            accuracy: 0.9431,
            loss: 0.19,
            consistent: "one step",
        };
        assert_eq!(
            sentence(&evaluation),
            "evaluation at 60,000 examples (step 235, the same on every shard): accuracy 94.31 %, loss 0.1900"
        );
        (evaluation.step, evaluation.consistent) = (None, "newest of each shard");
        assert!(sentence(&evaluation).contains("(the newest of each shard)"));
    }
}
