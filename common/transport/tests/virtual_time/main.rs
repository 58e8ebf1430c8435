//! Real quinn, real TLS and real frames over a network in memory, in virtual time: one seed, one course.
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

mod exchange;
mod network;
mod scene;

use std::collections::BTreeMap;
use std::time::Duration;

use windlass_common::rng::{Purpose, Rng};

use crate::exchange::{Course, PUSHES, VALUES, gradient, run};
use crate::network::{Conditions, Fate};
use crate::scene::WORKERS;

/// Seeds of the usual form; among so many, some acknowledgement is lost.
const USUAL: u64 = 20;

/// The usual seeds, or those that the environment variable `WINDLASS_TORTURE` names as `50` or `7..8`.
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("WINDLASS_TORTURE") else { return 0..USUAL };
    let (first, end) = text.split_once("..").unwrap_or(("0", &text));
    first.parse().expect("it is a number")..end.parse().expect("it is a number")
}

/// Loss, duplicates and overtaking of up to 4 % each, and three cuts; every other seed cuts once for longer than the 10 s
/// after which a silent connection is given up.
fn bad(seed: u64) -> Conditions {
    let mut rng = Rng::new(seed, Purpose::Disturbance);
    let mut share = || 0.01 + rng.unit() * 0.03;
    let (loss, duplication, reordering) = (share(), share(), share());
    let long = if seed.is_multiple_of(2) { 13_000 } else { 800 };
    let mut at = 0;
    let cuts = [300, long, 500].map(|lasts| {
        let from = at + 150 + rng.below(200);
        at = from + lasts;
        (Duration::from_millis(from), Duration::from_millis(at))
    });
    Conditions {
        loss,
        duplication,
        reordering,
        held_back: Duration::from_millis(4),
        delay: (Duration::from_millis(3), Duration::from_millis(6)),
        cuts: cuts.to_vec(),
    }
}

/// Every push has been settled once, in the order of its worker, and the values are their sum.
fn check(course: &Course) {
    let mut next = BTreeMap::new();
    for &(worker, sequence) in &course.settled {
        let expected = next.entry(worker).or_insert(0);
        assert_eq!(sequence, *expected, "worker {worker}");
        *expected += 1;
    }
    assert_eq!(next, (0..WORKERS).map(|worker| (worker, PUSHES)).collect());
    let mut sum = vec![0.0_f32; VALUES];
    for gradient in (0..WORKERS).flat_map(|worker| (0..PUSHES).map(move |push| gradient(worker, push))) {
        sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
    }
    assert!(course.values == sum, "the values are the sum of all gradients");
}

fn count(course: &Course, fate: Fate) -> usize {
    course.sent.iter().filter(|sent| sent.fate == fate).count()
}

#[test]
fn one_seed_is_one_course_and_nothing_is_lost_or_doubled() {
    let mut earlier: Vec<Course> = Vec::new();
    for seed in seeds() {
        let conditions = bad(seed);
        let course = run(seed, &conditions);
        check(&course);
        for fate in [Fate::Lost, Fate::Doubled, Fate::HeldBack, Fate::Cut] {
            assert!(count(&course, fate) > 0, "seed {seed}: {fate:?}");
        }
        assert!(course.overtaken > 0, "seed {seed}");
        assert_eq!(
            course.connections > u64::from(WORKERS),
            seed.is_multiple_of(2),
            "seed {seed}: {course:?}"
        );
        let again = run(seed, &conditions);
        let (first, second) = (course.transcript(), again.transcript());
        let differing = first.0.iter().zip(second.0).find(|(a, b)| a != b);
        assert!(first.0 == second.0, "seed {seed}: {differing:?}");
        let differing = first.1.iter().zip(second.1).find(|(a, b)| a != b);
        assert!(first.1 == second.1, "seed {seed}: {differing:?}");
        assert!(earlier.iter().all(|other| other.transcript().0 != first.0), "seed {seed} is another course");
        println!(
            "seed {seed}: {} events, {} datagrams, {} lost, {} overtaken, {} cut, {} connections, {} repeated, {:?}",
            course.noted.len(),
            course.sent.len(),
            count(&course, Fate::Lost),
            course.overtaken,
            count(&course, Fate::Cut),
            course.connections,
            course.repeated,
            course.took,
        );
        earlier.push(course);
    }
    let repeated: u64 = earlier.iter().map(|course| course.repeated).sum();
    assert!(
        repeated > 0 || seeds().end - seeds().start < USUAL,
        "some acknowledgement was lost, and its push sent again"
    );
}

#[test]
fn a_good_network_loses_nothing_and_time_is_that_of_its_links() {
    let course = run(1, &Conditions::good());
    check(&course);
    assert_eq!(count(&course, Fate::Passed), course.sent.len());
    assert_eq!((course.overtaken, course.connections), (0, u64::from(WORKERS)));
    for meter in &course.meters {
        assert_eq!((meter.packets_lost, meter.mtu), (0, 6_500), "{meter:?}");
        assert_eq!(meter.payload_sent, PUSHES * VALUES as u64 * 4);
    }
    // Each push-pull takes a round trip of 10 ms at least.
    assert!(course.took >= Duration::from_millis(10) * PUSHES as u32, "{:?}", course.took);
    assert!(course.took < Duration::from_secs(5), "{:?}", course.took);
}
