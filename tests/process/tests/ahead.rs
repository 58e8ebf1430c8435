//! Two gradients in flight with real processes: what each is computed on, and that a broken connection changes nothing.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use windlass_process_tests::by_hand::ByHand;
use windlass_process_tests::relay::Faults;
use windlass_process_tests::{events, model, summary, train};

const WITHIN: Duration = Duration::from_secs(120);

/// One worker alone is sequential: each gradient but the first is computed on the values before the last step, whatever the
/// network does.
#[test]
fn one_worker_computes_on_the_values_before_its_last_step_on_any_number_of_servers() {
    let folder = tempfile::tempdir().unwrap();
    for codec in ["f32", "int8", "topk:2%"] {
        let run = |servers: u32, in_flight: u32| {
            let run = folder.path().join(format!("{codec}-{servers}-{in_flight}"));
            let flags =
                format!("--mode async --in-flight {in_flight} --model softmax --workers 1 --passes 0.2");
            train(&run, &format!("{flags} --servers {servers} --push-codec {codec} --pull-codec {codec}"))
                .end(WITHIN)
                .well();
            run
        };
        let (one, two, plain) = (run(1, 2), run(2, 2), run(1, 1));
        assert_eq!(model(&one), model(&two), "{codec}");
        assert_ne!(model(&one), model(&plain), "{codec}: with one gradient in flight it is another training");
        for run in [&one, &two] {
            let events = events(run);
            assert!(events.len() as u64 >= summary(run)["pushes"].as_u64().unwrap());
            for event in &events {
                let number = |name: &str| event[name].as_u64().unwrap();
                let missed = number("version") - 1 - number("base");
                assert_eq!(missed, u64::from(number("step") > 0), "{codec}: {event}");
            }
        }
    }
}

#[test]
fn a_break_while_a_gradient_is_computed_ahead_changes_nothing() {
    for codec in ["f32", "topk:2%"] {
        let flags = format!(
            "--mode async --in-flight 2 --model softmax --passes 0.05 --seed 5 --step-time const:20ms --pull-codec {codec}"
        );
        let calm = ByHand::start(1, 1, &flags, None).finish();
        let mut run = ByHand::start(1, 1, &flags, Some((&Faults::none(Duration::from_millis(30)), 1)));
        run.pushes(8);
        run.cut(Duration::from_secs(2));
        let finished = run.finish();
        assert!(finished.counts[0].cut > 0, "{codec}: {:?}", finished.counts);
        assert_eq!(model(&calm.run), model(&finished.run), "{codec}");
    }
}
