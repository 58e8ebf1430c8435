//! Opens and shuts gates, and reads what they let through.

use std::collections::VecDeque;

use windlass_common::rng::{Purpose, Rng};

use super::*;

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
