//! Scores snapshots of a run on a thread of its own, as they become available.

use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use windlass_common::exit::Exit;
use windlass_common::plan::Plan;
use windlass_worker::client::ClientError;
use windlass_worker::models::Score;
use windlass_worker::observer::{SnapshotReader, SnapshotSeen};

use crate::failure::{OrExit, Outcome};
use crate::judge::Judge;

/// How good the model was at some point of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Evaluation {
    /// Examples applied; where shards differ, on the one that has least.
    pub(crate) examples: u64,
    /// Pushes settled; where shards differ, on the one that has least.
    pub(crate) pushes: u64,
    /// When the values were made, in microseconds since 1970; where shards differ, on the last.
    pub(crate) at_us: u64,
    /// Optimizer steps applied, where all shards show one and the same.
    pub(crate) step: Option<u64>,
    /// Share of the test examples that were recognised, 0 to 1.
    pub(crate) accuracy: f64,
    /// Mean cross-entropy over the test examples, in nats.
    pub(crate) loss: f64,
    /// What the values have in common: "one step", or "newest of each shard".
    pub(crate) consistent: &'static str,
}

impl Evaluation {
    pub(crate) fn new(plan: &Plan, examples: u64, step: u64, score: &Score) -> Self {
        let common = plan.mode.has_common_steps();
        Self {
            examples,
            pushes: 0,
            at_us: 0,
            step: common.then_some(step),
            accuracy: score.accuracy(),
            loss: score.loss(),
            consistent: if common { "one step" } else { "newest of each shard" },
        }
    }
}

impl Evaluation {
    /// One as a summary holds it; `None` if that is none.
    pub(crate) fn stored(plan: &Plan, value: &serde_json::Value) -> Option<Self> {
        let count = |name: &str| value[name].as_u64();
        let score = |name: &str| value[name].as_f64();
        let (examples, pushes, at_us) = (count("examples")?, count("pushes")?, count("at_us")?);
        let none = Self::new(plan, examples, count("step").unwrap_or(0), &Score::default());
        Some(Self { pushes, at_us, accuracy: score("accuracy")?, loss: score("loss")?, ..none })
    }
}

/// What the evaluator has to say.
#[derive(Debug)]
pub(crate) enum Judged {
    Evaluated(Evaluation),
    /// The values at these examples were gone when the evaluator had time for them.
    Skipped {
        examples: u64,
    },
    /// The values can no longer be had, for this reason.
    Lost(String),
    /// There will be no further evaluations, for this reason.
    Failed(String),
}

/// The values that were scored last; if they are the result, they need not be scored again.
#[derive(Debug)]
pub(crate) struct Last {
    pub(crate) values: Vec<f32>,
    pub(crate) score: Score,
}

/// An evaluator at work. Its thread ends soon after this value is gone.
pub(crate) struct Evaluator {
    judged: mpsc::UnboundedReceiver<Judged>,
    thread: Option<JoinHandle<Option<Last>>>,
    _wanted: oneshot::Sender<()>,
}

impl Evaluator {
    /// Starts scoring the snapshots of a run, from this evaluation point on: 0 is the model before the first step. Of a run
    /// that has gone on from a checkpoint the first one may not be there, which is not worth a word. Must be called on the
    /// runtime.
    ///
    /// It fetches a snapshot over its own connection and computes on one thread, so that training waits for nothing.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(
        judge: Arc<Judge>,
        plan: Plan,
        mut reader: SnapshotReader,
        first: u64,
    ) -> Outcome<Self> {
        let handle = Handle::current();
        // A message per evaluation point, each of which takes a while to compute or to be reached.
        let (sender, judged) = mpsc::unbounded_channel();
        let (wanted, mut unwanted) = oneshot::channel();
        let work = move || {
            let mut last = None;
            let mut values = Vec::new();
            let mut point = first;
            loop {
                let pulled = handle.block_on(async {
                    tokio::select! {
                        biased;
                        _ = &mut unwanted => None,
                        pulled = reader.pull(point, &mut values) => Some(pulled),
                    }
                });
                let Some(pulled) = pulled else { return last };
                let (judged, next) = match pulled {
                    Ok(SnapshotSeen::Values { step, examples_min, pushes_min, at_us, .. }) => {
                        match judge.score(&values, 1) {
                            Ok(score) => {
                                let evaluation = Evaluation {
                                    pushes: pushes_min,
                                    at_us,
                                    ..Evaluation::new(&plan, examples_min.0, step.0, &score)
                                };
                                last = Some(Last { values: std::mem::take(&mut values), score });
                                (Judged::Evaluated(evaluation), Some(point + 1))
                            }
                            Err(error) => (Judged::Failed(error.to_string()), None),
                        }
                    }
                    Ok(SnapshotSeen::Skipped { next: Some(next) }) if point == first && first > 0 => {
                        point = next.max(point + 1);
                        continue;
                    }
                    Ok(SnapshotSeen::Skipped { next: Some(next) }) => {
                        let examples = point.saturating_mul(plan.training.evaluate_every);
                        (Judged::Skipped { examples }, Some(next.max(point + 1)))
                    }
                    Ok(SnapshotSeen::Skipped { next: None }) => return last,
                    // Other servers, or these once more, would say the same.
                    Err(error @ ClientError::Protocol { .. }) => (Judged::Failed(error.to_string()), None),
                    Err(error) => (Judged::Lost(error.to_string()), None),
                };
                let (Ok(()), Some(next)) = (sender.send(judged), next) else { return last };
                point = next;
            }
        };
        let thread = std::thread::Builder::new().name("evaluator".into()).spawn(work);
        Ok(Self {
            judged,
            _wanted: wanted,
            thread: Some(thread.or_fail(Exit::System, "could not start the evaluator's thread")?),
        })
    }

    /// The next result, or none when there will be no more. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Judged> {
        self.judged.recv().await
    }

    /// What was scored last. To be asked for after the last result.
    pub(crate) fn into_last(mut self) -> Option<Last> {
        self.thread.take()?.join().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::tests::plan_of_model;

    #[test]
    fn an_evaluation_comes_back_from_a_summary() {
        let plan = plan_of_model("softmax", 1, 1);
        let score = Score { examples: 8, correct: 6, loss_sum: 4.0 };
        let evaluation = Evaluation { pushes: 3, at_us: 9, ..Evaluation::new(&plan, 640, 10, &score) };
        let stored = serde_json::to_value(&evaluation).unwrap();
        assert_eq!(Evaluation::stored(&plan, &stored), Some(evaluation));
        assert_eq!(Evaluation::stored(&plan, &serde_json::json!({"examples": 1})), None);
    }
}
