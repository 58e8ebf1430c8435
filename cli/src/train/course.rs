//! Follows where a run stands when it has been taken back to a checkpoint.

use windlass_common::ids::{Examples, Step};
use windlass_common::plan::Plan;
use windlass_common::wire::Status;

use crate::evaluator::Evaluation;
use crate::figures::grouped;

/// Whether the run has been taken back since `before` was seen, or has gone on from what an earlier process left.
pub(super) fn was_taken_back(before: Option<&Status>, now: &Status) -> bool {
    let lineage = before.map(|status| status.checkpoints.lineage).unwrap_or_default();
    now.checkpoints.lineage > lineage
}

/// From where a run goes on that was taken back, and what of it is lost, as far as that was seen.
pub(super) fn sentence(before: Option<&Status>, now: &Status) -> String {
    let from = match now.checkpoints.newest {
        Some(checkpoint) => format!("checkpoint {}", checkpoint.number),
        None => "the beginning".to_owned(),
    };
    if now.checkpoints.is_kept {
        return "the run goes on from what the other servers have: nothing is lost".into();
    }
    let counts = |steps: u64, examples: u64| {
        let plural = if steps == 1 { "" } else { "s" };
        format!("{} step{plural} ({} examples)", grouped(steps), grouped(examples))
    };
    match before {
        Some(before) => {
            let steps = before.steps.saturating_sub(now.steps);
            let examples = before.examples.0.saturating_sub(now.examples.0);
            let lost = counts(steps, examples);
            let verb = if steps == 1 { "is" } else { "are" };
            format!("the run goes on from {from}: {lost} {verb} lost")
        }
        None if now.steps == 0 => format!("the run goes on from {from}"),
        None => {
            let done = counts(now.steps, now.examples.0);
            format!("the run goes on from {from}: {done} have been done")
        }
    }
}

/// Takes away the evaluations of what is done once more, so that the list stays in the order of examples.
pub(super) fn forget(evaluations: &mut Vec<Evaluation>, now: &Status) {
    evaluations.retain(|evaluation| evaluation.examples < now.examples.0);
}

/// The evaluation point with which the evaluations go on.
pub(super) fn next_point(plan: &Plan, evaluations: &[Evaluation], now: &Status, is_back: bool) -> u64 {
    let every = plan.training.evaluate_every.max(1);
    if is_back {
        // The shards keep the values that they go on with for the point that those have passed last.
        return plan.goal().position(Step(now.rounds), now.examples) / every;
    }
    let of = |e: &Evaluation| plan.goal().position(Step(e.step.unwrap_or(0)), Examples(e.examples));
    evaluations.last().map_or(0, |last| of(last) / every + 1)
}

#[cfg(test)]
mod tests {
    use windlass_common::ids::Lineage;

    use super::*;
    use crate::asked::tests::kept;
    use crate::problem::tests::plan_of_model;
    use crate::show::tests::status;

    fn back(examples: u64, checkpoint: Option<u64>) -> Status {
        let mut status = status(examples, 100_000);
        status.checkpoints.lineage = Lineage(1);
        status.checkpoints.newest = checkpoint.map(|number| kept(number, examples));
        status
    }

    fn evaluation(examples: u64) -> Evaluation {
        let (accuracy, loss, consistent) = (0.5, 1.0, "one step");
        Evaluation { examples, pushes: 1, at_us: 1, step: Some(examples / 64), accuracy, loss, consistent }
    }

    #[test]
    fn what_is_lost_is_said() {
        let before = status(120_000, 200_000);
        assert!(was_taken_back(Some(&before), &back(76_800, Some(3))));
        assert!(!was_taken_back(Some(&before), &before) && !was_taken_back(None, &before));
        assert!(!was_taken_back(Some(&back(1, None)), &back(76_800, Some(3))));
        assert_eq!(
            sentence(Some(&before), &back(76_800, Some(3))),
            "the run goes on from checkpoint 3: 432 steps (43,200 examples) are lost"
        );
        assert_eq!(
            sentence(Some(&before), &back(0, None)),
            "the run goes on from the beginning: 1,200 steps (120,000 examples) are lost"
        );
        assert_eq!(
            sentence(None, &back(76_800, Some(3))),
            "the run goes on from checkpoint 3: 768 steps (76,800 examples) have been done"
        );
        assert_eq!(sentence(None, &back(0, None)), "the run goes on from the beginning");
        let mut kept = back(100_000, None);
        kept.checkpoints.is_kept = true;
        let nothing = "the run goes on from what the other servers have: nothing is lost";
        assert_eq!(sentence(Some(&status(100_000, 100_000)), &kept), nothing);
    }

    #[test]
    fn evaluations_go_on_where_the_run_does() {
        let mut plan = plan_of_model("softmax", 1, 1);
        plan.training.evaluate_every = 600;
        let mut evaluations: Vec<Evaluation> = [0, 640, 1_216, 1_800].map(evaluation).into();
        let now = back(1_216, Some(1));
        assert_eq!(next_point(&plan, &evaluations, &now, false), 4);
        forget(&mut evaluations, &now);
        assert_eq!(evaluations.iter().map(|e| e.examples).collect::<Vec<_>>(), [0, 640]);
        assert_eq!(next_point(&plan, &evaluations, &now, true), 2, "what was kept is judged again");
        forget(&mut evaluations, &back(0, None));
        assert!(evaluations.is_empty());
        assert_eq!(next_point(&plan, &evaluations, &back(0, None), true), 0);
        assert_eq!(next_point(&plan, &evaluations, &now, false), 0);
    }
}
