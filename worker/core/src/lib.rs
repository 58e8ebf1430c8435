//! Decides in which order a worker pulls and pushes, and what it repeats after it was cut off.
//!
//! [`Worker`] takes events and gives effects. It holds no values and no gradients, opens no socket and reads no clock:
//! whoever drives it moves the bytes.

use windlass_common::ids::{Sequence, Step, Version};
use windlass_common::wire::{Outcome, Reject, Resume};

/// What can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The coordinator has admitted it, for the first time or again.
    Joined {
        /// Where it goes on.
        next: Resume,
    },
    /// Values are wanted for the next step.
    Pull,
    /// A gradient is ready, computed on the values at hand.
    Push {
        /// Size of the batch.
        examples: u32,
        /// Mean loss of the batch.
        loss: f32,
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
    /// Every shard has acknowledged the push: the gradient may be freed. Without a pull, the request is done.
    Settled {
        /// Whether at least one shard has applied it.
        applied: bool,
    },
    /// The training has all its examples.
    Finished,
    /// The worker cannot go on.
    Failed(Reject),
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
    /// Size of the batch.
    pub examples: u32,
    /// Mean loss of the batch.
    pub loss: f32,
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
    examples: u32,
    loss: f32,
}

#[derive(Clone, Debug, Default)]
struct Link {
    /// The version of this shard's values at hand.
    have: Option<Version>,
    /// The version that the gradient in flight was computed on.
    base: Version,
    /// The step that those are for.
    step: Step,
    awaits_outcome: bool,
    awaits_values: bool,
    applied: bool,
}

/// A worker: what it has, what it has sent, and what it waits for.
#[derive(Clone, Debug)]
pub struct Worker {
    links: Vec<Link>,
    /// The next push.
    next: Resume,
    in_flight: Option<InFlight>,
    wants_values: bool,
    finished: bool,
}

impl Worker {
    /// A worker of a run with this many shards; it waits to be admitted.
    pub fn new(shards: usize) -> Self {
        Self {
            links: vec![Link::default(); shards],
            next: Resume::default(),
            in_flight: None,
            wants_values: false,
            finished: false,
        }
    }

    /// The step that the values at hand are for.
    pub fn step(&self) -> Step {
        self.next.step
    }

    /// Whether the shard still owes an answer.
    pub fn awaits(&self, shard: usize) -> bool {
        let link = &self.links[shard];
        link.awaits_outcome || link.awaits_values
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
            Event::Pull => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                self.wants_values = true;
                self.pull_from_all(self.next.step, out);
            }
            Event::Push { examples, loss, pull } => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                let Resume { sequence, step } = self.next;
                self.wants_values = pull;
                self.in_flight = Some(InFlight { sequence, step, examples, loss });
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
            (link.awaits_outcome, link.awaits_values) = (false, false);
        }
        let pushed = self.in_flight.map(|p| p.sequence);
        if pushed.is_some_and(|sequence| sequence >= next.sequence) {
            // Some shard lacks it and it still counts: it is sent again to all, who know it by its number.
            self.send_push(out);
            return;
        }
        self.next = next;
        if self.in_flight.take().is_some() {
            // It has been settled on every shard while this worker was away.
            out.push(Effect::Settled { applied: true });
        }
        if busy && self.wants_values {
            self.pull_from_all(next.step, out);
        }
    }

    fn send_push(&mut self, out: &mut Vec<Effect>) {
        let InFlight { sequence, step, examples, loss } = self.in_flight.expect("there is a push to send");
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_outcome = true;
            link.awaits_values = self.wants_values;
            link.applied = false;
            let push = Some(Push { sequence, step, base: link.base, examples, loss });
            let pull = self.wants_values.then_some(Pull { step: step.next(), have: link.have });
            out.push(Effect::Send { shard, push, pull });
        }
    }

    fn pull_from_all(&mut self, step: Step, out: &mut Vec<Effect>) {
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_values = true;
            out.push(Effect::Send { shard, push: None, pull: Some(Pull { step, have: link.have }) });
        }
    }

    fn reply(&mut self, shard: usize, reply: Reply, out: &mut Vec<Effect>) {
        let expected = self.in_flight.map(|p| p.sequence);
        let link = &mut self.links[shard];
        match reply {
            Reply::Held { .. } => return,
            Reply::Settled { sequence, outcome } => {
                if !link.awaits_outcome || expected != Some(sequence) {
                    return;
                }
                link.awaits_outcome = false;
                link.applied = matches!(outcome, Outcome::Applied { .. });
                if !self.links.iter().any(|l| l.awaits_outcome) {
                    self.settled(out);
                }
            }
            Reply::Values { step, version } => {
                link.awaits_values = false;
                link.have = Some(version);
                link.step = step;
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

    fn settled(&mut self, out: &mut Vec<Effect>) {
        let pushed = self.in_flight.take().expect("what is settled was in flight");
        self.next = Resume { sequence: pushed.sequence.next(), step: pushed.step.next() };
        out.push(Effect::Settled { applied: self.links.iter().any(|l| l.applied) });
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
        Reply::Values { step: Step(step), version: Version(version) }
    }

    fn applied(sequence: u64) -> Reply {
        let outcome = Outcome::Applied { version: Version(1), staleness: 0 };
        Reply::Settled { sequence: Sequence(sequence), outcome }
    }

    const PUSH: Event = Event::Push { examples: 64, loss: 0.5, pull: true };

    fn next(sequence: u64, step: u64) -> Resume {
        Resume { sequence: Sequence(sequence), step: Step(step) }
    }

    /// Two shards, joined, with values for step 0.
    fn ready() -> Worker {
        let mut worker = Worker::new(2);
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
        let push = Push { sequence: Sequence(0), step: Step(0), base: Version(0), examples: 64, loss: 0.5 };
        let pull = Pull { step: Step(1), have: Some(Version(0)) };
        assert_eq!(sent[1], Effect::Send { shard: 1, push: Some(push), pull: Some(pull) });
        assert!(reply(&mut worker, 0, Reply::Held { sequence: Sequence(0) }).is_empty());
        assert!(reply(&mut worker, 0, applied(0)).is_empty());
        assert!(reply(&mut worker, 0, values(1, 1)).is_empty());
        assert!(reply(&mut worker, 1, values(1, 1)).is_empty());
        let done = reply(&mut worker, 1, applied(0));
        assert_eq!(done, [Effect::Settled { applied: true }, Effect::Ready { step: Step(1) }]);
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
        assert_eq!(sent[0], Effect::Settled { applied: true });
        let pull = Pull { step: Step(1), have: None };
        assert_eq!(sent[1], Effect::Send { shard: 0, push: None, pull: Some(pull) });
        assert_eq!(sent.len(), 3);
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
}
