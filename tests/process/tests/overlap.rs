//! Computing while bytes travel changes no byte of the result, in any codec, on any number of servers, nor when the network
//! breaks amid a gradient or amid values.
//!
//! Steps last long enough by --step-time for overlap to be used.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use windlass_process_tests::by_hand::{ByHand, Finished};
use windlass_process_tests::model;
use windlass_process_tests::relay::Faults;

/// Ten steps.
const SYNC: &str = "--mode sync --model 2nn --passes 0.02 --seed 11 --step-time const:100ms";
/// A little longer than the transport's idle timeout.
const BEYOND_IDLE: Duration = Duration::from_millis(11_500);

/// A number that the last life of a worker said when it ended.
fn said(run: &Finished, worker: usize, name: &str) -> u64 {
    let said = &run.workers[worker].stderr;
    let (_, after) = said.rsplit_once(&format!("{name}=")).expect("a worker tells how it went when it ends");
    after.split_whitespace().next().and_then(|number| number.parse().ok()).expect("it is a number")
}

fn run(servers: u32, flags: &str) -> Finished {
    ByHand::start(servers, 2, flags, None).finish()
}

fn equal_with_and_without(servers: u32, flags: &str) {
    let with = run(servers, flags);
    let without = run(servers, &format!("{flags} --no-overlap"));
    for worker in 0..2 {
        let steps = said(&with, worker, "steps");
        // Nothing is known of the first step's time. On a network that does not break, values come as they began to.
        assert_eq!(
            (said(&with, worker, "in_parts"), said(&with, worker, "given_up")),
            (steps - 1, 0),
            "{flags}"
        );
        assert_eq!(said(&without, worker, "in_parts"), 0, "{flags}");
    }
    assert_eq!(model(&with.run), model(&without.run), "{servers} servers, {flags}");
}

#[test]
fn sync_ends_in_the_same_bytes_with_overlap_and_without() {
    for codecs in [
        "",
        "--push-codec bf16 --pull-codec bf16",
        "--push-codec int8 --pull-codec int8",
        "--push-codec int8-stochastic --pull-codec f16",
        "--push-codec topk:1%",
        "--push-codec bf16 --pull-codec topk:2%",
    ] {
        for servers in [1, 2] {
            equal_with_and_without(servers, &format!("{SYNC} {codecs}"));
        }
    }
}

#[test]
fn so_does_a_convolutional_network() {
    let flags = "--mode sync --model cnn --batch 16 --passes 0.003 --seed 11 --step-time const:300ms";
    equal_with_and_without(2, flags);
}

/// Over links on which each gradient and all values take a third of a second.
#[test]
fn so_it_does_over_a_network_that_breaks_in_the_middle() {
    for (servers, codecs) in [(1, ""), (2, "--push-codec int8"), (2, "--pull-codec topk:20%")] {
        let flags = format!("{SYNC} {codecs}");
        let faults = Faults::none(Duration::from_millis(2));
        let mut broken =
            ByHand::start(servers, 2, &format!("{flags} --link-rate 20mbit"), Some((&faults, 1)));
        // Of the three thirds of a second that a step takes, a break meets now one and now another.
        for (pushes, later) in [(4 * servers as usize, 0), (10 * servers as usize, 400)] {
            broken.pushes(pushes);
            std::thread::sleep(Duration::from_millis(later));
            broken.cut(BEYOND_IDLE);
        }
        let broken = broken.finish();
        for worker in 0..2 {
            let log = &broken.workers[worker].stderr;
            assert!(log.matches("joining again").count() >= 2, "{log}");
            assert!(said(&broken, worker, "in_parts") > 5, "{log}");
            println!("worker {worker} gave up {} gradients", said(&broken, worker, "given_up"));
        }
        assert_eq!(model(&broken.run), model(&run(servers, &format!("{flags} --no-overlap")).run), "{flags}");
    }
}
