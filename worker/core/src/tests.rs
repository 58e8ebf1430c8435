//! Tests of the order of pulls and pushes.

mod ahead;

use super::*;

/// What is asked for, beside what the encoder is told.
fn handle(worker: &mut Worker, event: Event) -> Vec<Effect> {
    let mut out = Vec::new();
    worker.handle(event, &mut out);
    out.retain(|effect| !matches!(effect, Effect::Feedback(_)));
    out
}

/// What the encoder is told.
fn told(worker: &mut Worker, event: Event) -> Vec<Feedback> {
    let mut out = Vec::new();
    worker.handle(event, &mut out);
    let told = |effect| if let Effect::Feedback(told) = effect { Some(told) } else { None };
    out.into_iter().filter_map(told).collect()
}

fn reply(worker: &mut Worker, shard: usize, reply: Reply) -> Vec<Effect> {
    handle(worker, Event::Reply { shard, reply })
}

fn values(step: u64, version: u64) -> Reply {
    Reply::Values { step: Step(step), version: Version(version), clients: Vec::new() }
}

fn applied(sequence: u64) -> Reply {
    let outcome = Outcome::Applied { version: Version(1), staleness: 0 };
    Reply::Settled { sequence: Sequence(sequence), outcome }
}

const WORK: Work = Work { client: ClientId(0), examples: 64, work: 64, loss: 0.5 };
const PUSH: Event = Event::Push { work: WORK, pull: true };

fn next(sequence: u64, step: u64) -> Resume {
    Resume { sequence: Sequence(sequence), step: Step(step) }
}

/// Two shards, joined, with values for step 0.
fn ready() -> Worker {
    let mut worker = Worker::new(2, Until::Settled);
    assert!(handle(&mut worker, Event::Joined { next: next(0, 0) }).is_empty());
    assert_eq!(handle(&mut worker, Event::Pull).len(), 2);
    assert!(reply(&mut worker, 0, values(0, 0)).is_empty());
    assert_eq!(reply(&mut worker, 1, values(0, 0)), [Effect::Ready { step: Step(0) }]);
    worker
}

#[test]
fn a_step_is_ready_when_every_shard_has_acknowledged_and_sent_values() {
    let mut worker = ready();
    let sent = handle(&mut worker, PUSH);
    let push = Push { sequence: Sequence(0), step: Step(0), base: Version(0), work: WORK };
    let pull = Pull { step: Step(1), have: Some(Version(0)) };
    assert_eq!(sent[1], Effect::Send { shard: 1, push: Some(push), pull: Some(pull) });
    assert!(reply(&mut worker, 0, Reply::Held { sequence: Sequence(0) }).is_empty());
    assert!(reply(&mut worker, 0, applied(0)).is_empty());
    assert!(reply(&mut worker, 0, values(1, 1)).is_empty());
    assert!(reply(&mut worker, 1, values(1, 1)).is_empty());
    let done = reply(&mut worker, 1, applied(0));
    assert_eq!(done, [Effect::Taken(Taken::Applied), Effect::Ready { step: Step(1) }]);
}

#[test]
fn a_shard_that_is_a_step_behind_is_asked_again() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    let late = Reply::Settled { sequence: Sequence(0), outcome: Outcome::Late { step: Step(7) } };
    reply(&mut worker, 0, late.clone());
    reply(&mut worker, 1, late);
    reply(&mut worker, 0, values(7, 7));
    let again = Pull { step: Step(7), have: Some(Version(6)) };
    assert_eq!(
        reply(&mut worker, 1, values(6, 6)),
        [Effect::Send { shard: 1, push: None, pull: Some(again) }]
    );
    assert_eq!(reply(&mut worker, 1, values(7, 7)), [Effect::Ready { step: Step(7) }]);
    assert_eq!(worker.step(), Step(7));
}

#[test]
fn a_push_that_a_shard_lacks_is_sent_again_with_its_number() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    reply(&mut worker, 0, applied(0));
    let sent = handle(&mut worker, Event::Joined { next: next(0, 0) });
    assert_eq!(sent.len(), 2);
    for effect in sent {
        let Effect::Send { push: Some(push), pull: Some(pull), .. } = effect else { panic!("{effect:?}") };
        assert_eq!((push.sequence, push.base), (Sequence(0), Version(0)));
        assert_eq!(pull.have, None, "values that were on their way are not trusted");
    }
}

#[test]
fn a_push_that_was_settled_while_away_is_not_sent_again() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    let sent = handle(&mut worker, Event::Joined { next: next(1, 1) });
    let pull = Pull { step: Step(1), have: None };
    assert_eq!(sent[0], Effect::Send { shard: 0, push: None, pull: Some(pull) });
    assert_eq!(sent.len(), 2);
    assert!(reply(&mut worker, 0, values(1, 1)).is_empty());
    let done = reply(&mut worker, 1, values(1, 1));
    assert_eq!(done, [Effect::Taken(Taken::Applied), Effect::Ready { step: Step(1) }]);
}

/// In sync every shard may have a push and none have applied it. Copies do not hold what is held.
#[test]
fn a_push_that_every_shard_has_is_taken_when_values_come_that_it_is_in() {
    use Feedback::{Forget, Taken, Undone};
    let joined = || {
        let mut worker = ready();
        handle(&mut worker, PUSH);
        assert_eq!(told(&mut worker, Event::Joined { next: next(1, 1) }), []);
        worker
    };
    let mut worker = joined();
    assert_eq!(told(&mut worker, Event::Joined { next: next(1, 1) }), [], "nor when it joins once more");
    assert_eq!(reply(&mut worker, 0, keep(1, 1)), [], "it is part of what is asked for");
    assert_eq!(reply(&mut worker, 1, keep(0, 0)), [gives(1, AsOf::Now)]);
    assert_eq!(told(&mut worker, Event::Reply { shard: 0, reply: values(1, 1) }), []);
    let done = reply(&mut worker, 1, values(1, 1));
    assert_eq!(done[0], gives(0, AsOf::Now));
    assert_eq!(told(&mut worker, Event::Joined { next: next(1, 1) }), [], "it has been told");
    let mut worker = joined();
    assert_eq!(told(&mut worker, Event::Reply { shard: 0, reply: Reply::Finished }), []);
    assert_eq!(told(&mut worker, Event::Reply { shard: 1, reply: values(1, 1) }), [Taken]);
    for (event, expected) in [
        (Event::Joined { next: next(0, 0) }, Undone),
        (Event::Restored { next: next(0, 0), from_copies: true }, Undone),
        (Event::Restored { next: next(1, 1), from_copies: true }, Taken),
        (Event::Restored { next: next(0, 0), from_copies: false }, Forget),
        (Event::Restored { next: next(1, 1), from_copies: false }, Forget),
    ] {
        let mut worker = joined();
        assert_eq!(told(&mut worker, event.clone()), [expected], "{event:?}");
        let again = Event::Joined { next: worker.next };
        assert_eq!(told(&mut worker, again), [], "it has been told");
    }
}

#[test]
fn a_push_for_a_step_that_others_are_beyond_is_not_sent_again() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    let sent = handle(&mut worker, Event::Joined { next: next(0, 4) });
    assert_eq!(sent[0], Effect::Taken(Taken::Unused));
    let pull = Pull { step: Step(4), have: None };
    assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull: Some(pull) });
}

#[test]
fn a_push_of_another_history_is_not_sent_again() {
    for until in [Until::Settled, Until::Held] {
        let mut worker = ready();
        worker.until = until;
        worker.next = next(7, 7);
        handle(&mut worker, PUSH);
        let sent = handle(&mut worker, Event::Restored { next: next(3, 3), from_copies: false });
        assert_eq!(sent[0], Effect::Taken(Taken::Unused));
        let pull = Pull { step: Step(3), have: None };
        assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull: Some(pull) });
        assert_eq!((sent.len(), worker.step()), (3, Step(3)));
    }
}

#[test]
fn one_shard_that_is_finished_ends_the_training() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    reply(&mut worker, 0, applied(0));
    reply(&mut worker, 0, Reply::Finished);
    reply(&mut worker, 1, applied(0));
    assert_eq!(reply(&mut worker, 1, values(1, 1)), [Effect::Finished]);
}

#[test]
fn the_encoder_is_told_where_a_push_counts() {
    let late = |sequence| {
        let outcome = Outcome::Late { step: Step(1) };
        Reply::Settled { sequence: Sequence(sequence), outcome }
    };
    let mut worker = ready();
    handle(&mut worker, PUSH);
    assert_eq!(told(&mut worker, Event::Reply { shard: 0, reply: applied(0) }), []);
    let unused = Feedback::Unused { shard: 1 };
    assert_eq!(told(&mut worker, Event::Reply { shard: 1, reply: late(0) }), [unused, Feedback::Taken]);
    assert_eq!(told(&mut worker, Event::Reply { shard: 1, reply: late(0) }), [], "it has been told");
}

#[test]
fn the_encoder_is_told_what_joining_again_means() {
    let pushed = |until| {
        let mut worker = ready();
        (worker.until, worker.next) = (until, next(4, 4));
        handle(&mut worker, PUSH);
        worker
    };
    use Feedback::{Forget, Taken, Undone, Unused};
    let all_unused = [Unused { shard: 0 }, Unused { shard: 1 }, Taken];
    for (until, event, expected) in [
        (Until::Settled, Event::Joined { next: next(4, 4) }, &[][..]),
        (Until::Settled, Event::Joined { next: next(4, 9) }, &all_unused),
        (Until::Held, Event::Joined { next: next(5, 5) }, &[Undone]),
        (Until::Settled, Event::Restored { next: next(3, 3), from_copies: true }, &[Forget]),
        (Until::Settled, Event::Restored { next: next(4, 4), from_copies: true }, &[Undone]),
        (Until::Settled, Event::Restored { next: next(5, 5), from_copies: true }, &[Taken]),
        (Until::Settled, Event::Restored { next: next(4, 4), from_copies: false }, &[Forget]),
        (Until::HeldInRound, Event::Restored { next: next(4, 4), from_copies: true }, &[Undone]),
        (Until::HeldInRound, Event::Restored { next: next(3, 3), from_copies: true }, &[Forget]),
    ] {
        assert_eq!(told(&mut pushed(until), event.clone()), expected, "{until:?} {event:?}");
    }
}

/// Two shards, joined, with values for round 0 and these clients to train, by the account of either shard.
fn in_round(clients: [&[u32]; 2]) -> Worker {
    let mut worker = Worker::new(2, Until::HeldInRound);
    handle(&mut worker, Event::Joined { next: next(0, 0) });
    handle(&mut worker, Event::Pull);
    for (shard, clients) in clients.into_iter().enumerate() {
        let clients = clients.iter().copied().map(ClientId).collect();
        reply(&mut worker, shard, Reply::Values { step: Step(0), version: Version(0), clients });
    }
    worker
}

#[test]
fn in_a_round_receipts_are_enough_to_go_on() {
    let mut worker = in_round([&[5], &[3, 5]]);
    assert_eq!(worker.clients(), [ClientId(3), ClientId(5)]);
    for (client, sequence) in [(3, 0), (5, 1)] {
        let work = Work { client: ClientId(client), ..WORK };
        let sent = handle(&mut worker, Event::Push { work, pull: false });
        let push = Push { sequence: Sequence(sequence), step: Step(0), base: Version(0), work };
        assert_eq!(sent[0], Effect::Send { shard: 0, push: Some(push), pull: None });
        assert!(reply(&mut worker, 0, Reply::Held { sequence: Sequence(sequence) }).is_empty());
        let taken = reply(&mut worker, 1, Reply::Held { sequence: Sequence(sequence) });
        assert_eq!(taken, [Effect::Taken(Taken::Held)]);
    }
    let pull = Pull { step: Step(1), have: Some(Version(0)) };
    assert_eq!(handle(&mut worker, Event::Pull)[1], Effect::Send { shard: 1, push: None, pull: Some(pull) });
    assert!(reply(&mut worker, 0, applied(0)).is_empty(), "what became of them is of no concern");
}

#[test]
fn a_closed_round_and_a_new_life_are_told_apart_from_a_receipt() {
    let mut worker = in_round([&[3], &[3]]);
    handle(&mut worker, Event::Push { work: WORK, pull: false });
    reply(&mut worker, 0, Reply::Held { sequence: Sequence(0) });
    let late = Reply::Settled { sequence: Sequence(0), outcome: Outcome::Late { step: Step(1) } };
    assert_eq!(reply(&mut worker, 1, late), [Effect::Taken(Taken::Unused)]);

    let mut worker = in_round([&[3], &[3]]);
    handle(&mut worker, Event::Push { work: WORK, pull: false });
    assert_eq!(handle(&mut worker, Event::Joined { next: next(1, 0) }), [Effect::Taken(Taken::Unused)]);
    let pull = Pull { step: Step(0), have: Some(Version(0)) };
    assert_eq!(
        handle(&mut worker, Event::Pull)[0],
        Effect::Send { shard: 0, push: None, pull: Some(pull) },
        "the round is asked for again"
    );
}

fn keep(sequence: u64, step: u64) -> Reply {
    Reply::Keep { checkpoint: 7, next: next(sequence, step), all: false }
}

fn gives(shard: usize, of: AsOf) -> Effect {
    Effect::Give { shard, checkpoint: 7, of, all: false }
}

#[test]
fn what_was_left_out_is_given_as_of_the_last_push_of_a_checkpoint() {
    let mut worker = ready();
    handle(&mut worker, PUSH);
    assert_eq!(reply(&mut worker, 0, keep(0, 0)), [gives(0, AsOf::Now)], "the push on its way is later");
    // Shard 0 has settled it before another checkpoint, and shard 1 has it on its way.
    reply(&mut worker, 0, applied(0));
    assert_eq!(reply(&mut worker, 0, keep(1, 1)), [], "the push on its way is part of it");
    assert_eq!(reply(&mut worker, 1, applied(0))[0], gives(0, AsOf::Now));
    assert_eq!(reply(&mut worker, 1, keep(0, 0)), [gives(1, AsOf::GoneOn)], "it has been settled since");
    // Another history has other numbers.
    handle(&mut worker, Event::Restored { next: next(0, 0), from_copies: false });
    assert_eq!(reply(&mut worker, 1, keep(0, 0)), [gives(1, AsOf::Now)]);
}

#[test]
fn in_a_round_what_was_left_out_before_it_is_given() {
    let mut worker = in_round([&[3], &[3]]);
    let push = Event::Push { work: Work { client: ClientId(3), ..WORK }, pull: false };
    handle(&mut worker, push);
    assert_eq!(reply(&mut worker, 0, keep(0, 0)), [gives(0, AsOf::Before(Step(0)))]);
    for shard in [0, 1] {
        reply(&mut worker, shard, Reply::Held { sequence: Sequence(0) });
    }
    assert_eq!(reply(&mut worker, 1, keep(0, 0)), [gives(1, AsOf::Before(Step(0)))]);
    assert_eq!(reply(&mut worker, 1, keep(1, 1)), [gives(1, AsOf::Before(Step(1)))]);
}
