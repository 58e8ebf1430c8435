//! Networks that break at bad moments: while workers join again, and while they leave. Nobody gives up for that.
//!
//! Datagrams take long here, so that the moments can be met. Where a loaded machine misses one, a run is disturbed a little
//! earlier or later, and must end well all the same.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use windlass_process_tests::by_hand::{ByHand, Finished};
use windlass_process_tests::model;
use windlass_process_tests::relay::Faults;

const MILLISECONDS: fn(u64) -> Duration = Duration::from_millis;
/// Ten steps, and twenty lines about pushes.
const FLAGS: &str = "--mode sync --model softmax --passes 0.02 --seed 11";
/// A little longer than the transport's idle timeout.
const BEYOND_IDLE: Duration = Duration::from_millis(11_500);

fn start(delay: Duration) -> ByHand {
    ByHand::start(1, 2, FLAGS, Some((&Faults::none(delay), 1)))
}

/// Ends in the same bytes, too.
fn ends_well(run: ByHand) -> Finished {
    let calm = ByHand::start(1, 2, FLAGS, None).finish();
    let finished = run.finish();
    assert!(finished.counts[0].cut > 0, "{:?}", finished.counts);
    assert_eq!(model(&calm.run), model(&finished.run));
    finished
}

#[test]
fn a_second_break_while_workers_join_again() {
    let mut run = start(MILLISECONDS(300));
    run.pushes(6);
    run.cut(BEYOND_IDLE);
    // Enough for a handshake, and too little for the coordinator's answer and the streams to the shards.
    std::thread::sleep(MILLISECONDS(1700));
    run.cut(BEYOND_IDLE);
    for worker in ends_well(run).workers {
        let times = worker.stderr.matches("joining again").count();
        println!("joined again {times} times");
        assert!(times > 0, "{}", worker.stderr);
    }
}

#[test]
fn a_break_of_4_s_while_workers_leave() {
    let mut run = start(MILLISECONDS(400));
    // All pushes are settled: the acknowledgements take 0.4 s, and the workers' last words another 0.4 s.
    run.pushes(20);
    std::thread::sleep(MILLISECONDS(450));
    run.cut(Duration::from_secs(4));
    ends_well(run);
}
