//! What a comparison of training modes has found.

use serde::{Deserialize, Deserializer, Serialize};

/// A finished comparison: what was run, on what, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The heading of the report.
    pub title: String,
    /// The command that repeats the comparison.
    pub command: String,
    /// The model, such as `2nn`.
    pub model: String,
    /// The data, such as `MNIST`.
    pub data: String,
    /// Examples that the modes train on.
    pub train_examples: u64,
    /// Examples that accuracy is measured on.
    pub test_examples: u64,
    /// How the examples were dealt to the clients, in words.
    pub partition: String,
    /// Owners of data; as many as workers where not federated.
    pub clients: u64,
    /// Worker processes.
    pub workers: u64,
    /// Server processes.
    pub servers: u64,
    /// The test accuracy to reach, 0 to 1.
    pub target: Option<f64>,
    /// Passes over the training data that each run was given.
    pub budget_passes: f64,
    /// The seeds; each mode ran once with each.
    pub seeds: Vec<u64>,
    /// How workers or clients differ in speed, in words; empty if they do not.
    pub heterogeneity: String,
    /// The machine, in words.
    pub machine: String,
    /// How the learning rates were found.
    pub rate_choice: RateChoice,
    /// The modes in the order in which they are shown. A mode may be there twice, with different rates.
    pub modes: Vec<ModeResult>,
    /// What the modes are held against.
    pub baselines: Vec<Baseline>,
    /// Examples by client, then by class; empty if not known.
    pub class_counts: Vec<Vec<u64>>,
    /// Training examples that no client was dealt.
    pub unused_examples: u64,
}

/// How the learning rates were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateChoice {
    /// One rate for all modes.
    Common {
        /// The rate.
        rate: f64,
    },
    /// Each mode's rate was chosen from a grid by its accuracy on validation examples.
    Auto {
        /// The rates that were tried.
        grid: Vec<f64>,
        /// Examples that the choice was made on; they are not test examples.
        validation_examples: u64,
        /// Examples whose gradients the search computed.
        gradient_evaluations: u64,
        /// How long the search took.
        seconds: f64,
    },
}

/// All runs of one mode at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeResult {
    /// The mode as on the command line, such as `ssp:4`.
    pub name: String,
    /// The learning rate.
    pub rate: f64,
    /// Whether the rate was chosen for this mode rather than common to all.
    pub rate_was_chosen: bool,
    /// One run for each seed.
    pub runs: Vec<RunResult>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The seed.
    pub seed: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// What it took to reach the target; none if that never happened or there is no target.
    pub at_target: Option<Cost>,
    /// What it had taken at its end.
    pub at_end: Option<Cost>,
    /// The best test accuracy of all evaluations, 0 to 1.
    #[serde(deserialize_with = "number_or_null")]
    pub best_accuracy: f64,
    /// Mean staleness of the applied pushes, in versions.
    #[serde(deserialize_with = "number_or_null")]
    pub staleness_mean: f64,
    /// The 95th percentile of their staleness, in versions.
    #[serde(deserialize_with = "number_or_null")]
    pub staleness_p95: f64,
    /// Share of its time, 0 to 1, in which each worker waited for the servers.
    pub idle_share: Vec<f64>,
    /// Pushes that came too late and changed nothing.
    pub pushes_late: u64,
    /// Examples whose gradients went into late pushes: wasted work.
    pub examples_late: u64,
    /// What became of each client's work; empty where not federated.
    pub client_contributions: Vec<ClientContribution>,
    /// The evaluations, in order of time.
    pub curve: Vec<Point>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It used its budget, or stopped at the target.
    Completed,
    /// The loss or the values left the finite numbers, or grew without bound.
    Diverged {
        /// What was seen.
        reason: String,
    },
    /// It was stopped because it took too long.
    TimedOut {
        /// The limit.
        after_s: u64,
    },
    /// It could not go on.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// What became of one client's work in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientContribution {
    /// The client's number, which is its row in [`Comparison::class_counts`].
    pub client: u64,
    /// How often it was asked for an update.
    pub asked: u64,
    /// Updates that went into the model.
    pub aggregated: u64,
    /// Updates that came after their round had been closed.
    pub late: u64,
    /// Updates that never came.
    pub dropped: u64,
    /// Training examples that it holds.
    pub examples: u64,
    /// Accuracy of the final model on this client's own test examples, 0 to 1, if measured.
    pub accuracy: Option<f64>,
}

/// One evaluation, with everything that had been spent until then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Since the first step began.
    #[serde(deserialize_with = "number_or_null")]
    pub seconds: f64,
    /// Steps, or rounds where federated.
    pub steps: u64,
    /// Pushes, whatever became of them.
    pub pushes: u64,
    /// Examples whose gradients were computed, with repetition, also in vain.
    pub gradient_evaluations: u64,
    /// Gradients or updates, without headers.
    pub payload_bytes_up: u64,
    /// Values, without headers.
    pub payload_bytes_down: u64,
    /// UDP payload from workers to servers, with everything.
    pub wire_bytes_up: u64,
    /// UDP payload from servers to workers, with everything.
    pub wire_bytes_down: u64,
    /// Test accuracy, 0 to 1.
    #[serde(deserialize_with = "number_or_null")]
    pub accuracy: f64,
    /// Mean test loss.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
}

/// What had been spent at some moment; not in whole numbers, because a crossing lies between two evaluations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Since the first step began.
    #[serde(deserialize_with = "number_or_null")]
    pub seconds: f64,
    /// Steps, or rounds where federated.
    #[serde(deserialize_with = "number_or_null")]
    pub steps: f64,
    /// Pushes, whatever became of them.
    #[serde(deserialize_with = "number_or_null")]
    pub pushes: f64,
    /// Examples whose gradients were computed, with repetition, also in vain.
    #[serde(deserialize_with = "number_or_null")]
    pub gradient_evaluations: f64,
    /// Gradients or updates, without headers.
    #[serde(deserialize_with = "number_or_null")]
    pub payload_bytes_up: f64,
    /// Values, without headers.
    #[serde(deserialize_with = "number_or_null")]
    pub payload_bytes_down: f64,
    /// UDP payload from workers to servers, with everything.
    #[serde(deserialize_with = "number_or_null")]
    pub wire_bytes_up: f64,
    /// UDP payload from servers to workers, with everything.
    #[serde(deserialize_with = "number_or_null")]
    pub wire_bytes_down: f64,
    /// Test accuracy, 0 to 1.
    #[serde(deserialize_with = "number_or_null")]
    pub accuracy: f64,
}

impl Cost {
    /// Payload in both directions.
    pub fn payload_bytes(&self) -> f64 {
        self.payload_bytes_up + self.payload_bytes_down
    }

    /// Bytes on the wire in both directions.
    pub fn wire_bytes(&self) -> f64 {
        self.wire_bytes_up + self.wire_bytes_down
    }
}

impl From<&Point> for Cost {
    fn from(point: &Point) -> Self {
        Self {
            seconds: point.seconds,
            steps: point.steps as f64,
            pushes: point.pushes as f64,
            gradient_evaluations: point.gradient_evaluations as f64,
            payload_bytes_up: point.payload_bytes_up as f64,
            payload_bytes_down: point.payload_bytes_down as f64,
            wire_bytes_up: point.wire_bytes_up as f64,
            wire_bytes_down: point.wire_bytes_down as f64,
            accuracy: point.accuracy,
        }
    }
}

/// Something simpler that the modes are held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What it is, such as `pooled sequential SGD`.
    pub name: String,
    /// Its test accuracy at the end, 0 to 1.
    #[serde(deserialize_with = "number_or_null")]
    pub accuracy: f64,
    /// Gradient evaluations and the test accuracy after them; may be empty.
    pub curve: Vec<(u64, f64)>,
    /// What one must know to read the figure.
    pub note: String,
}

/// JSON writes NaN and infinity as null.
fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
