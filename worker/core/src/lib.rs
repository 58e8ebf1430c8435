//! Decides in which order a worker pulls and pushes, and what it repeats after it was cut off.
//!
//! [`Worker`] takes events and gives effects. It holds no values and no gradients, opens no socket and reads no clock:
//! whoever drives it moves the bytes.

use windlass_common::ids::{ClientId, Sequence, Step, Version};
use windlass_common::plan::{Mode, Plan};
use windlass_common::wire::{Outcome, Reject, Resume};

/// What can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator has admitted it, for the first time or again.
    Joined {
        /// Where it goes on.
        next: Resume,
    },
    /// The run has been taken back to a checkpoint, and the coordinator has admitted it there. Whatever it had is of another
    /// history.
    Restored {
        /// Where it goes on.
        next: Resume,
    },
    /// Values are wanted for the next step.
    Pull,
    /// A gradient is ready, computed on the values at hand.
    Push {
        /// What it was computed from.
        work: Work,
        /// Whether the values for the next step are wanted as well.
        pull: bool,
    },
    /// A shard has answered.
    Reply {
        /// Which, by number.
        shard: usize,
        /// What.
        reply: Reply,
    },
}

/// What a shard can answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A receipt: the push has arrived. The gradient must be kept.
    Held {
        /// The push.
        sequence: Sequence,
    },
    /// An acknowledgement: what became of the push.
    Settled {
        /// The push.
        sequence: Sequence,
        /// What became of it.
        outcome: Outcome,
    },
    /// Values have come, complete.
    Values {
        /// The step they are for.
        step: Step,
        /// Their version on that shard.
        version: Version,
        /// The clients that the shard still wants to be trained on them.
        clients: Vec<ClientId>,
    },
    /// The training has all its examples.
    Finished,
    /// The request had no effect.
    Rejected(Reject),
}

/// What a worker asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send this to a shard.
    Send {
        /// Which, by number.
        shard: usize,
        /// The part of the gradient for that shard, if it is to be sent.
        push: Option<Push>,
        /// What values are wanted.
        pull: Option<Pull>,
    },
    /// The values of every shard are at hand, all for this step.
    Ready {
        /// The step.
        step: Step,
    },
    /// Every shard has taken the push: the gradient may be freed. Without a pull, the request is done.
    Taken(Taken),
    /// The training has all its examples.
    Finished,
    /// The worker cannot go on.
    Failed(Reject),
}

/// What a gradient was computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Whose data; a worker that trains on the union of its clients' data gives its own number.
    pub client: ClientId,
    /// What it counts in a mean: size of the batch, or number of the client's examples.
    pub examples: u32,
    /// Examples whose gradients were computed, counted with repetition.
    pub work: u64,
    /// Mean loss over those.
    pub loss: f32,
}

/// What has become of a push when its request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// At least one shard has applied it.
    Applied,
    /// Every shard holds it until its step is closed. If that takes a new life, it is computed again.
    Held,
    /// It changes nothing: its step had been closed without it, or it is void.
    Unused,
}

/// What a push waits for before the next may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Every shard's acknowledgement.
    Settled,
    /// Every shard's receipt: a push may be held while its worker goes on to its next step.
    Held,
    /// Every shard's receipt; several pushes of a worker, one for each of its clients, are for one and the same step.
    HeldInRound,
}

impl Until {
    /// What a push waits for in this run.
    pub fn of(plan: &Plan) -> Self {
        match plan.mode {
            Mode::Fedavg(_) => Self::HeldInRound,
            Mode::Fedbuff { .. } | Mode::Softsync { .. } => Self::Held,
            Mode::Sync { .. } | Mode::Async { .. } | Mode::Ssp { .. } | Mode::Fedasync { .. } => {
                Self::Settled
            }
        }
    }
}

/// The numbers of a push to one shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Push {
    /// The running number of this worker's pushes.
    pub sequence: Sequence,
    /// The step it is for.
    pub step: Step,
    /// The version of that shard's values that it was computed on.
    pub base: Version,
    /// What it was computed from.
    pub work: Work,
}

/// The numbers of a pull from one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The step that will use the values.
    pub step: Step,
    /// The version at hand; `None` asks for everything.
    pub have: Option<Version>,
}

/// One gradient that is not acknowledged everywhere.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    sequence: Sequence,
    step: Step,
    work: Work,
}

#[derive(Clone, Debug, Default)]
struct Link {
    /// The version of this shard's values at hand.
    have: Option<Version>,
    /// The version that the gradient in flight was computed on.
    base: Version,
    /// The step that those are for.
    step: Step,
    awaits_push: bool,
    awaits_values: bool,
    taken: Option<Taken>,
    /// Who is to be trained, by this shard's account.
    clients: Vec<ClientId>,
}

/// A worker: what it has, what it has sent, and what it waits for.
#[derive(Clone, Debug)]
pub struct Worker {
    until: Until,
    links: Vec<Link>,
    /// The next push.
    next: Resume,
    in_flight: Option<InFlight>,
    wants_values: bool,
    /// Whether the values at hand are those for the next push's step.
    is_ready: bool,
    finished: bool,
}

impl Worker {
    /// A worker of a run with this many shards; it waits to be admitted.
    pub fn new(shards: usize, until: Until) -> Self {
        Self {
            until,
            links: vec![Link::default(); shards],
            next: Resume::default(),
            in_flight: None,
            wants_values: false,
            is_ready: false,
            finished: false,
        }
    }

    /// The step that the values at hand are for.
    pub fn step(&self) -> Step {
        self.next.step
    }

    /// Who is to be trained on the values at hand; empty where the worker trains on all that it has.
    pub fn clients(&self) -> &[ClientId] {
        // A shard lacks at least what comes after that which it has: the longest list has all that some shard lacks.
        let current = self.links.iter().filter(|l| l.step == self.next.step);
        current.map(|l| l.clients.as_slice()).max_by_key(|clients| clients.len()).unwrap_or_default()
    }

    /// Whether the shard still owes an answer.
    pub fn awaits(&self, shard: usize) -> bool {
        let link = &self.links[shard];
        link.awaits_push || link.awaits_values
    }

    /// Whether any shard still owes an answer.
    pub fn is_busy(&self) -> bool {
        (0..self.links.len()).any(|shard| self.awaits(shard))
    }

    /// Takes in what has happened and adds what is to be done to `out`.
    ///
    /// # Panics
    /// If values or a push are asked for while an earlier request is not done, or a push before the first values.
    pub fn handle(&mut self, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Joined { next } => self.joined(next, out),
            Event::Restored { next } => self.restored(next, out),
            Event::Pull => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                self.wants_values = true;
                // In a round, who asks again has no further client to train in this one.
                let is_done = self.until == Until::HeldInRound && self.is_ready;
                let step = if is_done { self.next.step.next() } else { self.next.step };
                self.pull_from_all(step, out);
            }
            Event::Push { work, pull } => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                let Resume { sequence, step } = self.next;
                self.wants_values = pull;
                self.in_flight = Some(InFlight { sequence, step, work });
                for link in &mut self.links {
                    link.base = link.have.expect("a gradient is computed on values that were pulled");
                }
                self.send_push(out);
            }
            Event::Reply { shard, reply } => self.reply(shard, reply, out),
        }
    }

    fn joined(&mut self, next: Resume, out: &mut Vec<Effect>) {
        let busy = self.is_busy();
        for link in &mut self.links {
            if link.awaits_values {
                // What was on its way may have come in part: the values at hand are of no one version.
                link.have = None;
            }
            (link.awaits_push, link.awaits_values) = (false, false);
        }
        self.is_ready = false;
        if self.until != Until::Settled {
            // Whatever the shards held of this worker is void, and so is what was on its way.
            self.next = next;
            if self.in_flight.take().is_some() {
                out.push(Effect::Taken(Taken::Unused));
            }
            if busy && self.wants_values {
                self.pull_from_all(next.step, out);
            }
            return;
        }
        let still_counts = |p: &InFlight| p.sequence >= next.sequence && p.step >= next.step;
        if self.in_flight.as_ref().is_some_and(still_counts) {
            // Some shard lacks it and it still counts: it is sent again to all, who know it by its number.
            self.send_push(out);
            return;
        }
        self.next = next;
        if let Some(pushed) = self.in_flight.take() {
            // It has been settled on every shard while this worker was away, or the others are beyond its step.
            let is_settled = pushed.sequence < next.sequence;
            out.push(Effect::Taken(if is_settled { Taken::Applied } else { Taken::Unused }));
        }
        if busy && self.wants_values {
            self.pull_from_all(next.step, out);
        }
    }

    fn restored(&mut self, next: Resume, out: &mut Vec<Effect>) {
        let busy = self.is_busy();
        for link in &mut self.links {
            (link.awaits_push, link.awaits_values) = (false, false);
            link.have = None;
            link.taken = None;
        }
        (self.is_ready, self.finished) = (false, false);
        self.next = next;
        if self.in_flight.take().is_some() {
            out.push(Effect::Taken(Taken::Unused));
        }
        if busy && self.wants_values {
            self.pull_from_all(next.step, out);
        }
    }

    fn send_push(&mut self, out: &mut Vec<Effect>) {
        let InFlight { sequence, step, work } = self.in_flight.expect("there is a push to send");
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_push = true;
            link.awaits_values = self.wants_values;
            link.taken = None;
            let push = Some(Push { sequence, step, base: link.base, work });
            let pull = self.wants_values.then_some(Pull { step: step.next(), have: link.have });
            out.push(Effect::Send { shard, push, pull });
        }
    }

    fn pull_from_all(&mut self, step: Step, out: &mut Vec<Effect>) {
        self.is_ready = false;
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_values = true;
            out.push(Effect::Send { shard, push: None, pull: Some(Pull { step, have: link.have }) });
        }
    }

    fn reply(&mut self, shard: usize, reply: Reply, out: &mut Vec<Effect>) {
        let expected = self.in_flight.map(|p| p.sequence);
        let link = &mut self.links[shard];
        match reply {
            Reply::Held { sequence } => {
                if self.until == Until::Settled || !link.awaits_push || expected != Some(sequence) {
                    return;
                }
                link.awaits_push = false;
                link.taken = Some(Taken::Held);
                self.taken_if_by_all(out);
            }
            Reply::Settled { sequence, outcome } => {
                if !link.awaits_push || expected != Some(sequence) {
                    return;
                }
                link.awaits_push = false;
                let is_applied = matches!(outcome, Outcome::Applied { .. });
                link.taken = Some(if is_applied { Taken::Applied } else { Taken::Unused });
                self.taken_if_by_all(out);
            }
            Reply::Values { step, version, clients } => {
                link.awaits_values = false;
                link.have = Some(version);
                link.step = step;
                link.clients = clients;
            }
            Reply::Finished => {
                link.awaits_values = false;
                self.finished = true;
            }
            Reply::Rejected(reason) => {
                out.push(Effect::Failed(reason));
                return;
            }
        }
        if self.wants_values && !self.is_busy() {
            self.answered(out);
        }
    }

    fn taken_if_by_all(&mut self, out: &mut Vec<Effect>) {
        if self.links.iter().any(|l| l.awaits_push) {
            return;
        }
        let pushed = self.in_flight.take().expect("what is taken was in flight");
        let is_same_step = self.until == Until::HeldInRound;
        let step = if is_same_step { pushed.step } else { pushed.step.next() };
        self.next = Resume { sequence: pushed.sequence.next(), step };
        let is = |taken| self.links.iter().any(|l| l.taken == Some(taken));
        out.push(Effect::Taken(match (is(Taken::Applied), is(Taken::Unused)) {
            (true, _) => Taken::Applied,
            (false, true) => Taken::Unused,
            (false, false) => Taken::Held,
        }));
    }

    /// Every shard has answered. Where one closed a step that another had not yet closed, their values are for
    /// different steps: those behind are asked again.
    fn answered(&mut self, out: &mut Vec<Effect>) {
        if self.finished {
            self.wants_values = false;
            out.push(Effect::Finished);
            return;
        }
        let step = self.links.iter().map(|l| l.step).max().unwrap_or_default();
        for (shard, link) in self.links.iter_mut().enumerate().filter(|(_, l)| l.step < step) {
            link.awaits_values = true;
            out.push(Effect::Send { shard, push: None, pull: Some(Pull { step, have: link.have }) });
        }
        if !self.is_busy() {
            self.wants_values = false;
            self.next.step = step;
            self.is_ready = true;
            out.push(Effect::Ready { step });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(worker: &mut Worker, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        worker.handle(event, &mut out);
        out
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
            let Effect::Send { push: Some(push), pull: Some(pull), .. } = effect else {
                panic!("{effect:?}")
            };
            assert_eq!((push.sequence, push.base), (Sequence(0), Version(0)));
            assert_eq!(pull.have, None, "values that were on their way are not trusted");
        }
    }

    #[test]
    fn a_push_that_was_settled_while_away_is_not_sent_again() {
        let mut worker = ready();
        handle(&mut worker, PUSH);
        let sent = handle(&mut worker, Event::Joined { next: next(1, 1) });
        assert_eq!(sent[0], Effect::Taken(Taken::Applied));
        let pull = Pull { step: Step(1), have: None };
        assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull: Some(pull) });
        assert_eq!(sent.len(), 3);
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
            let sent = handle(&mut worker, Event::Restored { next: next(3, 3) });
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
        assert_eq!(
            handle(&mut worker, Event::Pull)[1],
            Effect::Send { shard: 1, push: None, pull: Some(pull) }
        );
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
}
