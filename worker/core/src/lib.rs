//! Decides in which order a worker pulls and pushes, and what it repeats after it was cut off.
//!
//! [`Worker`] takes events and gives effects. It holds no values and no gradients, opens no socket and reads no clock:
//! whoever drives it moves the bytes.
//!
//! With two gradients in flight whoever drives it computes the next one while a push is on its way and is answered. It has two
//! buffers of values: it computes on the one that [`Worker::newest`] names when it begins, and puts what comes into the one
//! that [`Worker::incoming`] names. When the answer is complete, [`Worker::is_ahead`] says whether what it has computed
//! meanwhile is the gradient of the next push; if not, it is thrown away, and the next is computed on the newest values.

mod encoder;
mod event;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use windlass_common::ids::{ClientId, Sequence, Step, Version};
use windlass_common::wire::{Outcome, Resume};

pub use encoder::{Encoder, Payload};
pub use event::{AsOf, Effect, Event, Feedback, Pull, Push, Reply, Taken, Until, Work};

/// One gradient that is not acknowledged everywhere.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    sequence: Sequence,
    step: Step,
    work: Work,
}

/// A checkpoint for which a shard wants what has been left out.
#[derive(Clone, Copy, Debug)]
struct Keep {
    checkpoint: u64,
    /// The first push that is not in it.
    next: Resume,
    all: bool,
}

#[derive(Clone, Debug, Default)]
struct Link {
    /// The versions of this shard's values that the buffers hold.
    have: [Option<Version>; 2],
    /// The version that the next gradient is computed on, if that is done while the one before is in flight.
    used: Option<Version>,
    /// The version that the gradient in flight was computed on.
    base: Version,
    /// The step that the last values are for.
    step: Step,
    awaits_push: bool,
    awaits_values: bool,
    taken: Option<Taken>,
    /// A checkpoint for which something is to be given.
    keep: Option<Keep>,
    /// Who is to be trained, by this shard's account.
    clients: Vec<ClientId>,
}

/// A worker: what it has, what it has sent, and what it waits for.
#[derive(Clone, Debug)]
pub struct Worker {
    until: Until,
    /// Gradients that are computed while one is on its way: 0 or 1.
    ahead: u64,
    links: Vec<Link>,
    /// The buffer with the newest values at hand.
    newest: usize,
    /// The next push.
    next: Resume,
    in_flight: Option<InFlight>,
    /// A push that every shard has, by what was said when the worker joined again. It may only be held, and comes to nothing
    /// where the run goes on from copies without it; values that come are made with it.
    held: Option<InFlight>,
    /// The last push of this life and history that every shard has taken, and its step.
    taken: Option<Resume>,
    /// The first push that was made for the step of the last.
    round: Resume,
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
            ahead: 0,
            newest: 0,
            links: vec![Link::default(); shards],
            next: Resume::default(),
            in_flight: None,
            held: None,
            taken: None,
            round: Resume::default(),
            wants_values: false,
            is_ready: false,
            finished: false,
        }
    }

    /// The same worker with so many gradients in flight, of which one is computed: 1, as it is without this, or 2.
    ///
    /// # Panics
    /// If it is another number, or 2 where a receipt is enough to go on.
    pub fn with_in_flight(self, in_flight: u32) -> Self {
        let is_possible = in_flight == 1 || in_flight == 2 && self.until == Until::Settled;
        assert!(is_possible, "{in_flight} gradients in flight where a push waits until {:?}", self.until);
        Self { ahead: u64::from(in_flight - 1), ..self }
    }

    /// The step of the next push. With one gradient in flight the values at hand are for that.
    pub fn step(&self) -> Step {
        self.next.step
    }

    /// Who is to be trained on the values at hand; empty where the worker trains on all that it has.
    pub fn clients(&self) -> &[ClientId] {
        // A shard lacks at least what comes after that which it has: the longest list has all that some shard lacks.
        let current = self.links.iter().filter(|l| l.step == self.next.step);
        current.map(|l| l.clients.as_slice()).max_by_key(|clients| clients.len()).unwrap_or_default()
    }

    /// The buffer, 0 or 1, with the newest values at hand: a gradient that is begun now is computed on these, and what comes
    /// meanwhile does not touch them. With one gradient in flight there is only buffer 0.
    pub fn newest(&self) -> usize {
        self.newest
    }

    /// The buffer into which values come.
    pub fn incoming(&self) -> usize {
        if self.ahead == 0 { self.newest } else { 1 - self.newest }
    }

    /// Whether the gradient that is or was computed while the last push was on its way is that of the next push. Otherwise
    /// there is none, or it is of another step or history: the next is computed on the values at hand.
    pub fn is_ahead(&self) -> bool {
        self.links.iter().all(|link| link.used.is_some())
    }

    /// A gradient that was computed ahead is not that of the next push after all: that is computed on the newest values.
    pub fn throw_away(&mut self) {
        self.links.iter_mut().for_each(|link| link.used = None);
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
            Event::Restored { next, from_copies } => self.restored(next, from_copies, out),
            Event::Pull => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                self.wants_values = true;
                self.throw_away();
                // In a round, who asks again has no further client to train in this one.
                let is_done = self.until == Until::HeldInRound && self.is_ready;
                let step = if is_done { self.next.step.next() } else { self.next.step };
                self.pull_from_all(step, out);
            }
            Event::Push { work, pull } => {
                assert!(!self.is_busy(), "one request is in flight at a time");
                let Resume { sequence, step } = self.next;
                if self.round.step != step {
                    self.round = self.next;
                }
                self.wants_values = pull;
                self.in_flight = Some(InFlight { sequence, step, work });
                let computes_on = self.newest;
                for link in &mut self.links {
                    let newest =
                        link.have[computes_on].expect("a gradient is computed on values that were pulled");
                    link.base = link.used.unwrap_or(newest);
                    link.used = (self.ahead > 0).then_some(newest);
                }
                self.send_push(out);
            }
            Event::Reply { shard, reply } => self.reply(shard, reply, out),
        }
    }

    fn joined(&mut self, next: Resume, out: &mut Vec<Effect>) {
        let (busy, incoming) = (self.is_busy(), self.incoming());
        for link in &mut self.links {
            if link.awaits_values {
                // What was on its way may have come in part: what is in that buffer is of no one version.
                link.have[incoming] = None;
            }
            (link.awaits_push, link.awaits_values) = (false, false);
            link.keep = None;
        }
        self.is_ready = false;
        if self.until != Until::Settled {
            // Whatever the shards held of this worker is void, and so is what was on its way: it is computed again.
            self.next = next;
            if self.in_flight.take().is_some() {
                out.push(Effect::Feedback(Feedback::Undone));
                out.push(Effect::Taken(Taken::Unused));
            }
            if busy && self.wants_values {
                self.pull_from_all(next.step, out);
            }
            return;
        }
        if self.held.is_some_and(|held| held.sequence >= next.sequence) {
            self.held = None;
            out.extend([Effect::Feedback(Feedback::Undone), Effect::Taken(Taken::Unused)]);
        }
        let still_counts = |p: &InFlight| p.sequence >= next.sequence && p.step >= next.step;
        if self.in_flight.as_ref().is_some_and(still_counts) {
            // Some shard lacks it and it still counts: it is sent again to all, who know it by its number.
            self.send_push(out);
            return;
        }
        let computed = self.in_flight.map_or(self.next.step, |pushed| pushed.step.next());
        if computed != next.step {
            self.throw_away();
        }
        self.next = next;
        if let Some(pushed) = self.in_flight.take() {
            // It has been settled on every shard while this worker was away, or the others are beyond its step.
            if pushed.sequence < next.sequence {
                self.held = Some(pushed);
                if !self.wants_values {
                    self.take_held(out);
                }
            } else {
                let all = 0..self.links.len();
                out.extend(all.map(|shard| Effect::Feedback(Feedback::Unused { shard })));
                self.take(pushed, Taken::Unused, out);
            }
        }
        if busy && self.wants_values {
            self.pull_from_all(next.step, out);
        }
    }

    /// What is left out of this push goes into the next one.
    fn take(&mut self, pushed: InFlight, taken: Taken, out: &mut Vec<Effect>) {
        self.taken = Some(Resume { sequence: pushed.sequence, step: pushed.step });
        out.push(Effect::Feedback(Feedback::Taken));
        self.give_what_is_due(out);
        out.push(Effect::Taken(taken));
    }

    fn take_held(&mut self, out: &mut Vec<Effect>) {
        if let Some(held) = self.held.take() {
            self.take(held, Taken::Applied, out);
        }
    }

    fn restored(&mut self, next: Resume, from_copies: bool, out: &mut Vec<Effect>) {
        let busy = self.is_busy();
        for link in &mut self.links {
            (link.awaits_push, link.awaits_values) = (false, false);
            (link.have, link.used) = ([None; 2], None);
            (link.taken, link.keep) = (None, None);
        }
        self.taken = None;
        (self.is_ready, self.finished) = (false, false);
        let (last, held) = (std::mem::replace(&mut self.next, next), self.held.take());
        // Pushes for a round that is not over are made again, and the encoder remembers what was before them.
        let is_same_round = self.until == Until::HeldInRound && next.sequence >= self.round.sequence;
        let feedback = match next.sequence.cmp(&last.sequence) {
            // Even where it is at the same push as before, that may be of another history; shards tell what had been left out.
            _ if !from_copies => Feedback::Forget,
            Ordering::Less if is_same_round => Feedback::Undone,
            Ordering::Less if held.is_some_and(|held| held.sequence == next.sequence) => Feedback::Undone,
            Ordering::Less => Feedback::Forget,
            Ordering::Equal if held.is_some() => Feedback::Taken,
            Ordering::Equal => Feedback::Undone,
            Ordering::Greater => Feedback::Taken,
        };
        if feedback == Feedback::Forget {
            self.round = next;
        }
        out.push(Effect::Feedback(feedback));
        if self.in_flight.take().or(held).is_some() {
            let is_applied = held.is_some() && feedback == Feedback::Taken;
            out.push(Effect::Taken(if is_applied { Taken::Applied } else { Taken::Unused }));
        }
        if busy && self.wants_values {
            self.pull_from_all(next.step, out);
        }
    }

    fn send_push(&mut self, out: &mut Vec<Effect>) {
        let InFlight { sequence, step, work } = self.in_flight.expect("there is a push to send");
        let (wanted, incoming) = (self.used_by(step.next()), self.incoming());
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_push = true;
            link.awaits_values = self.wants_values;
            link.taken = None;
            let push = Some(Push { sequence, step, base: link.base, work });
            let pull = self.wants_values.then_some(Pull { step: wanted, have: link.have[incoming] });
            out.push(Effect::Send { shard, push, pull });
        }
    }

    /// The step that uses the values which are there when the push for `step` is next. What is computed ahead is not yet
    /// computed on them by then.
    fn used_by(&self, step: Step) -> Step {
        Step(step.0 + self.ahead)
    }

    fn pull_from_all(&mut self, next: Step, out: &mut Vec<Effect>) {
        self.is_ready = false;
        let (step, incoming) = (self.used_by(next), self.incoming());
        for (shard, link) in self.links.iter_mut().enumerate() {
            link.awaits_values = true;
            let pull = Some(Pull { step, have: link.have[incoming] });
            out.push(Effect::Send { shard, push: None, pull });
        }
    }

    fn reply(&mut self, shard: usize, reply: Reply, out: &mut Vec<Effect>) {
        let (expected, incoming) = (self.in_flight.map(|p| p.sequence), self.incoming());
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
                if !is_applied {
                    out.push(Effect::Feedback(Feedback::Unused { shard }));
                }
                link.taken = Some(if is_applied { Taken::Applied } else { Taken::Unused });
                self.taken_if_by_all(out);
            }
            Reply::Values { step, version, clients } => {
                link.awaits_values = false;
                link.have[incoming] = Some(version);
                link.step = step;
                link.clients = clients;
            }
            Reply::Keep { checkpoint, next, all } => {
                link.keep = Some(Keep { checkpoint, next, all });
                self.give_what_is_due(out);
                return;
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
        let taken = match (is(Taken::Applied), is(Taken::Unused)) {
            (true, _) => Taken::Applied,
            (false, true) => Taken::Unused,
            (false, false) => Taken::Held,
        };
        self.take(pushed, taken, out);
    }

    /// Gives what is asked for as soon as no push is in flight whose settling is part of it.
    fn give_what_is_due(&mut self, out: &mut Vec<Effect>) {
        for (shard, link) in self.links.iter_mut().enumerate() {
            let Some(Keep { checkpoint, next, all }) = link.keep else { continue };
            let pushed = self.in_flight.or(self.held);
            let is_of_it = pushed.is_some_and(|pushed| pushed.sequence < next.sequence);
            let of = match (self.until, self.taken) {
                // What is held may come to nothing, and what it has sent is gone then whichever push is named.
                (Until::Held, _) => AsOf::Now,
                _ if is_of_it => continue,
                (Until::Settled, Some(taken)) if taken.sequence >= next.sequence => AsOf::GoneOn,
                (Until::Settled, _) => AsOf::Now,
                (Until::HeldInRound, Some(taken)) if taken.step > next.step => AsOf::GoneOn,
                (Until::HeldInRound, _) => AsOf::Before(next.step),
            };
            link.keep = None;
            out.push(Effect::Give { shard, checkpoint, of, all });
        }
    }

    /// Every shard has answered. Where one closed a step that another had not yet closed, their values are for
    /// different steps: those behind are asked again.
    fn answered(&mut self, out: &mut Vec<Effect>) {
        if self.finished {
            self.take_held(out);
            self.wants_values = false;
            self.throw_away();
            out.push(Effect::Finished);
            return;
        }
        let (step, incoming) = (self.links.iter().map(|l| l.step).max().unwrap_or_default(), self.incoming());
        for (shard, link) in self.links.iter_mut().enumerate().filter(|(_, l)| l.step < step) {
            link.awaits_values = true;
            let pull = Some(Pull { step, have: link.have[incoming] });
            out.push(Effect::Send { shard, push: None, pull });
        }
        if !self.is_busy() {
            self.take_held(out);
            self.wants_values = false;
            self.next.step = Step(step.0.saturating_sub(self.ahead));
            (self.is_ready, self.newest) = (true, incoming);
            out.push(Effect::Ready { step: self.next.step });
        }
    }
}
