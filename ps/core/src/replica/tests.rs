//! Opens and shuts gates, and reads what they let through.

use std::collections::VecDeque;

use windlass_common::plan::{Membership, Mode, StalenessScaling};
use windlass_common::rng::{Purpose, Rng};

use super::*;

#[test]
fn a_worker_and_what_serves_it_keep_to_a_core_where_each_push_passes_through_all_of_them() {
    let scaling = StalenessScaling::None;
    let modes = [
        Mode::Sync { backup: 0 },
        Mode::Async { in_flight: 1, scaling, compensation: None },
        Mode::Async { in_flight: 2, scaling, compensation: None },
    ];
    for (mode, is_alone) in modes.into_iter().zip([false, true, false]) {
        for (replicas, workers, cores) in [(0, 2, 2), (1, 2, 2), (1, 4, 2), (1, 3, 2), (1, 2, 4), (1, 2, 1)] {
            let mut plan = crate::sample::plan(mode.clone(), 2, workers);
            plan.cluster.replicas = replicas;
            let expected = is_alone && replicas == 1 && (workers as usize).is_multiple_of(cores);
            assert_eq!(plan.keeps_to_cores(cores), expected, "{mode:?}: {replicas}, {workers} on {cores}");
            plan.training.compute_threads = 2;
            assert!(!plan.keeps_to_cores(cores), "what computes on several threads needs several cores");
            plan.training.compute_threads = 1;
            plan.cluster.membership = Membership::Elastic { workers_max: 9 };
            assert!(!plan.keeps_to_cores(cores), "how many there will be is not known");
        }
    }
}

#[test]
fn nothing_is_shown_before_what_was_told_before_it_is_confirmed() {
    let told = |step| Effect::Report(Report::Taken { checkpoint: step });
    let number = |released: &Released| match released {
        Released::Effect(Effect::Report(Report::Taken { checkpoint })) => *checkpoint,
        other => panic!("{other:?}"),
    };
    for seed in 0..50 {
        let mut rng = Rng::new(seed, Purpose::Simulation(10));
        let mut gate = Gate::default();
        let is_let_through = |passed: Passed| matches!(passed, Passed::Now(_));
        assert!(is_let_through(gate.pass(told(0), |_| true)), "a gate that is open lets all through");
        gate.number();
        assert!(is_let_through(gate.pass(told(0), |_| true)));
        gate.shut();
        let (mut last, mut confirmed, mut waiting, mut shown) = (1, 0, VecDeque::new(), 0);
        for effect in 1..200 {
            match rng.below(3) {
                0 => {
                    last = gate.number();
                }
                1 => {
                    confirmed = rng.below(last + 2).max(confirmed).min(last);
                    let mut out = Vec::new();
                    gate.confirmed(confirmed, &mut out);
                    for released in &out {
                        let (needed, expected) = waiting.pop_front().unwrap();
                        assert_eq!(number(released), expected, "in their order");
                        assert!(
                            needed <= confirmed,
                            "{expected} needs {needed}, and {confirmed} is confirmed"
                        );
                        shown += 1;
                    }
                    assert!(waiting.front().is_none_or(|(needed, _)| *needed > confirmed), "and at once");
                }
                _ => match gate.pass(told(effect), |_| true) {
                    Passed::Now(_) => assert!(confirmed >= last, "nothing that was told is unconfirmed"),
                    Passed::Waits => waiting.push_back((last, effect)),
                    Passed::Begun(..) => panic!("these are no values"),
                },
            }
            assert_eq!(gate.waiting(), waiting.len());
        }
        assert!(shown > 10, "seed {seed}: {shown}");
    }
}
