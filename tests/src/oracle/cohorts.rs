//! Says what steps and rounds must come to when their cohorts are known: who took part, with whose data.

use windlass_common::ids::{ClientId, Step, WorkerId};
use windlass_common::plan::{Mode, Plan, Weights};

use super::{Model, mean};
use crate::problem::{Problem, train};

/// One process does the work of each cohort in order, one step or round after the other. In a round an empty cohort
/// changes nothing and counts as a round.
///
/// # Panics
/// If the plan has neither steps nor rounds in common.
pub fn of_cohorts(plan: &Plan, problem: &dyn Problem, cohorts: &[Vec<(WorkerId, ClientId)>]) -> Vec<f32> {
    let mut model = Model::of(plan);
    let mut applied = 0_u64;
    for (number, cohort) in (0_u64..).zip(cohorts) {
        let step = Step(number);
        let one = |&(worker, client): &(WorkerId, ClientId)| -> (u32, Vec<f32>) {
            match &plan.mode {
                Mode::Sync { .. } => {
                    let mut gradient = vec![0.0; model.values.len()];
                    problem.gradient(worker, step, &model.values, &mut gradient);
                    (problem.examples(worker, step), gradient)
                }
                Mode::Fedavg(fedavg) => {
                    let rate = fedavg.local.rate as f32;
                    let weight = match fedavg.weights {
                        Weights::Examples => problem.client(client).examples,
                        Weights::Uniform => 1,
                    };
                    (weight, train(problem, client, step, rate, &model.values).push)
                }
                other => panic!("{other} has no common steps"),
            }
        };
        let pushes: Vec<(u32, Vec<f32>)> = cohort.iter().map(one).collect();
        if pushes.is_empty() {
            continue;
        }
        let weighted: Vec<(u32, &[f32])> = pushes.iter().map(|(w, push)| (*w, push.as_slice())).collect();
        let rate = match &plan.mode {
            Mode::Fedavg(fedavg) => plan.schedule.rate(number, fedavg.rounds),
            _ => plan.schedule.rate(applied, plan.examples_target().0),
        };
        model.step(&mean(&weighted), rate);
        applied += pushes.iter().map(|(examples, _)| u64::from(*examples)).sum::<u64>();
    }
    model.values
}
