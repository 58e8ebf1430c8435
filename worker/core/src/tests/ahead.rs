//! Tests of two gradients in flight: what each is computed on, and when one that was computed ahead is thrown away.

use super::*;

/// Two shards and two gradients in flight, joined, with values of version 0 for steps 0 and 1.
fn ready() -> Worker {
    let mut worker = Worker::new(2, Until::Settled).with_in_flight(2);
    handle(&mut worker, Event::Joined { next: next(0, 0) });
    let pull = Some(Pull { step: Step(1), have: None });
    let sent = handle(&mut worker, Event::Pull);
    assert_eq!(sent[1], Effect::Send { shard: 1, push: None, pull });
    answer(&mut worker, [values(1, 0), values(1, 0)], 0);
    assert!(!worker.is_ahead(), "nothing has been computed yet");
    worker
}

/// The base of a push that goes to all shards, the step of its pull, and what each shard is told to be at hand.
fn pushed(sent: &[Effect]) -> (u64, u64, [Option<u64>; 2]) {
    let numbers = |effect: &Effect| match effect {
        Effect::Send { push: Some(push), pull: Some(pull), .. } => (push.base.0, pull.step.0, pull.have),
        other => panic!("{other:?}"),
    };
    let [one, other] = [numbers(&sent[0]), numbers(&sent[1])];
    assert_eq!((one.0, one.1), (other.0, other.1));
    (one.0, one.1, [one.2, other.2].map(|have| have.map(|version| version.0)))
}

fn push(worker: &mut Worker) -> (u64, u64, [Option<u64>; 2]) {
    pushed(&handle(worker, PUSH))
}

/// Both shards give values, after which the next push is for this step and the buffers have changed places.
fn answer(worker: &mut Worker, values: [Reply; 2], step: u64) {
    let incoming = worker.incoming();
    assert_ne!(incoming, worker.newest());
    let mut last = Vec::new();
    for (shard, values) in values.into_iter().enumerate() {
        assert_eq!(worker.incoming(), incoming, "what is computed on is not touched");
        last = reply(worker, shard, values);
    }
    assert_eq!(last, [Effect::Ready { step: Step(step) }]);
    assert_eq!((worker.newest(), worker.step()), (incoming, Step(step)));
}

fn acknowledge(worker: &mut Worker, sequence: u64) {
    for shard in 0..2 {
        reply(worker, shard, applied(sequence));
    }
}

/// Pushes 0 to 2 are made, and the answer to the last has not come: push 3 is computed on version 2.
fn under_way() -> Worker {
    let mut worker = ready();
    for (sequence, sent) in [(0, (0, 2, [None; 2])), (1, (0, 3, [Some(0); 2])), (2, (1, 4, [Some(1); 2]))] {
        assert_eq!(push(&mut worker), sent);
        assert!(worker.is_ahead() && worker.is_busy());
        if sequence < 2 {
            acknowledge(&mut worker, sequence);
            let step = sequence + 2;
            answer(&mut worker, [values(step, sequence + 1), values(step, sequence + 1)], step - 1);
        }
    }
    worker
}

#[test]
fn each_gradient_but_the_first_two_is_computed_on_what_came_with_the_last_push_but_one() {
    let mut worker = under_way();
    acknowledge(&mut worker, 2);
    answer(&mut worker, [values(4, 3), values(4, 4)], 3);
    assert!(worker.is_ahead());
    assert_eq!(push(&mut worker), (2, 5, [Some(2); 2]));
    acknowledge(&mut worker, 3);
    answer(&mut worker, [values(5, 5), values(5, 5)], 4);
    let bases: Vec<u64> = handle(&mut worker, PUSH)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Send { push, .. } => push.map(|push| push.base.0),
            _ => None,
        })
        .collect();
    assert_eq!(bases, [3, 4], "shards have versions of their own");
}

#[test]
fn a_connection_that_breaks_spoils_only_what_was_coming() {
    let mut worker = under_way();
    reply(&mut worker, 0, applied(2));
    reply(&mut worker, 0, values(4, 3));
    let sent = handle(&mut worker, Event::Joined { next: next(2, 2) });
    assert_eq!(pushed(&sent), (1, 4, [Some(3), None]), "it is sent again with its base");
    acknowledge(&mut worker, 2);
    answer(&mut worker, [values(4, 3), values(4, 3)], 3);
    assert!(worker.is_ahead());
    assert_eq!(push(&mut worker), (2, 5, [Some(2); 2]), "the other buffer is whole");
}

#[test]
fn what_was_computed_ahead_counts_when_the_push_was_settled_while_away() {
    let mut worker = under_way();
    let sent = handle(&mut worker, Event::Joined { next: next(3, 3) });
    let pull = Some(Pull { step: Step(4), have: None });
    assert_eq!(sent[0], Effect::Send { shard: 0, push: None, pull });
    reply(&mut worker, 0, values(4, 9));
    let done = reply(&mut worker, 1, values(4, 9));
    assert_eq!(done, [Effect::Taken(Taken::Applied), Effect::Ready { step: Step(3) }]);
    assert!(worker.is_ahead());
    assert_eq!(push(&mut worker), (2, 5, [Some(2); 2]));
}

#[test]
fn what_was_computed_ahead_for_another_step_is_thrown_away() {
    let mut worker = under_way();
    let sent = handle(&mut worker, Event::Joined { next: next(2, 7) });
    assert_eq!(sent[0], Effect::Taken(Taken::Unused));
    let pull = Some(Pull { step: Step(8), have: None });
    assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull });
    assert!(!worker.is_ahead(), "whoever computes may stop");
    answer(&mut worker, [values(8, 9), values(8, 9)], 7);
    assert!(!worker.is_ahead());
    assert_eq!(push(&mut worker), (9, 9, [Some(2); 2]), "it is computed on the newest values");
    acknowledge(&mut worker, 2);
    answer(&mut worker, [values(9, 10), values(9, 10)], 8);
    assert_eq!(push(&mut worker).0, 9, "and so is the one after it");
}

#[test]
fn what_was_computed_ahead_for_a_step_that_is_elsewhere_after_its_push_was_taken_is_thrown_away() {
    let mut worker = under_way();
    acknowledge(&mut worker, 2);
    handle(&mut worker, Event::Joined { next: next(3, 3) });
    assert!(worker.is_ahead());
    handle(&mut worker, Event::Joined { next: next(3, 4) });
    assert!(!worker.is_ahead());
}

#[test]
fn what_was_computed_ahead_in_another_history_is_thrown_away() {
    let mut worker = under_way();
    let sent = handle(&mut worker, Event::Restored { next: next(1, 1), from_copies: false });
    assert_eq!(sent[0], Effect::Taken(Taken::Unused));
    let pull = Some(Pull { step: Step(2), have: None });
    assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull });
    answer(&mut worker, [values(2, 1), values(2, 1)], 1);
    assert!(!worker.is_ahead());
    assert_eq!(push(&mut worker), (1, 3, [None; 2]), "neither buffer is of this history");
}

#[test]
fn who_asks_for_values_computes_on_them() {
    let mut worker = ready();
    handle(&mut worker, Event::Push { work: WORK, pull: false });
    acknowledge(&mut worker, 0);
    assert!(worker.is_ahead() && !worker.is_busy());
    let pull = Some(Pull { step: Step(2), have: None });
    assert_eq!(handle(&mut worker, Event::Pull)[0], Effect::Send { shard: 0, push: None, pull });
    answer(&mut worker, [values(2, 1), values(2, 1)], 1);
    assert!(!worker.is_ahead());
    assert_eq!(push(&mut worker).0, 1);
}

#[test]
fn at_the_end_what_was_computed_ahead_is_thrown_away() {
    let mut worker = under_way();
    acknowledge(&mut worker, 2);
    reply(&mut worker, 0, Reply::Finished);
    assert_eq!(reply(&mut worker, 1, Reply::Finished), [Effect::Finished]);
    assert!(!worker.is_ahead());
}

#[test]
fn with_one_in_flight_there_is_one_buffer_and_nothing_ahead() {
    let mut worker = super::ready();
    for sequence in 0..3 {
        assert_eq!((worker.newest(), worker.incoming(), worker.is_ahead()), (0, 0, false));
        assert_eq!(push(&mut worker), (sequence, sequence + 1, [Some(sequence); 2]));
        assert_eq!((worker.newest(), worker.incoming(), worker.is_ahead()), (0, 0, false));
        acknowledge(&mut worker, sequence);
        reply(&mut worker, 0, values(sequence + 1, sequence + 1));
        reply(&mut worker, 1, values(sequence + 1, sequence + 1));
    }
}

#[test]
#[should_panic(expected = "2 gradients in flight")]
fn where_a_receipt_is_enough_there_is_one_in_flight() {
    let _worker = Worker::new(1, Until::Held).with_in_flight(2);
}
