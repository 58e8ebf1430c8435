//! Computes a worker's gradients, with two in flight ahead of the answers, and pushes them when their turn has come.

use windlass_common::ids::{ClientId, Step, Version};
use windlass_common::rng::{Purpose, Rng};
use windlass_worker_core::{Effect, Event, Work};

use super::{Driver, Gradients, Pushed, Way, Wish};
use crate::problem::{self, Problem};

/// A gradient that has been begun.
#[derive(Debug)]
pub(super) struct Computing {
    step: Step,
    /// The buffer whose values it is computed on, and their version on each shard.
    buffer: usize,
    bases: Vec<Version>,
    /// It is of another step or history than the next push.
    is_in_vain: bool,
}

/// A gradient that is to be pushed.
#[derive(Debug)]
pub(super) struct Computed {
    step: Step,
    bases: Vec<Version>,
    work: Work,
    /// Whether values are wanted with the push.
    pull: bool,
}

impl Driver {
    /// Every shard has answered: pushes what was computed meanwhile, or begins with the next.
    pub(super) fn ready(
        &mut self,
        step: Step,
        gradients: &mut Gradients,
        effects: &mut Vec<Effect>,
        wishes: &mut Vec<Wish>,
    ) {
        if self.core.is_ahead() {
            if let Some(computed) = self.computed.take() {
                self.push(computed, effects, gradients, wishes);
            }
            return;
        }
        if self.computed.take().is_some() || self.computing.is_some() {
            wishes.push(Wish::ThrownAway);
        }
        if let Some(computing) = &mut self.computing {
            computing.is_in_vain = true;
            return;
        }
        self.ask_whom_to_train(step, wishes);
        self.go_on(effects, wishes);
    }

    /// Values for a round are at hand: who is to be trained on them?
    fn ask_whom_to_train(&mut self, step: Step, wishes: &mut Vec<Wish>) {
        let Way::Rounds { seed, dropout, .. } = self.way else { return };
        let clients = self.core.clients();
        assert!(!clients.is_empty(), "{} is given values in a round in which it has a client", self.id);
        let gone = |client: &ClientId| {
            let purpose = Purpose::Dropout { client: client.0, round: step.0 };
            Rng::new(seed, purpose).unit() < dropout
        };
        self.rest = clients.iter().copied().filter(|client| !gone(client)).collect();
        wishes.extend(clients.iter().copied().filter(gone).map(|client| Wish::Dropped(client, step)));
    }

    /// Computes what comes next, or asks for the next values.
    pub(super) fn go_on(&mut self, effects: &mut Vec<Effect>, wishes: &mut Vec<Wish>) {
        if matches!(self.way, Way::Rounds { .. }) && self.rest.is_empty() {
            self.core.handle(Event::Pull, effects);
        } else {
            self.begin(self.core.step(), wishes);
        }
    }

    /// Begins with a gradient for this step, on the newest values.
    fn begin(&mut self, step: Step, wishes: &mut Vec<Wish>) {
        let buffer = self.core.newest();
        let bases = self.versions[buffer].clone();
        let before = self.computing.replace(Computing { step, buffer, bases, is_in_vain: false });
        assert!(before.is_none(), "{} computes one gradient at a time: {before:?}", self.id);
        wishes.push(Wish::Compute);
    }

    /// Has computed what it was about, and pushes it unless the push before is yet to be answered.
    pub(crate) fn compute(
        &mut self,
        problem: &dyn Problem,
        gradients: &mut Gradients,
        wishes: &mut Vec<Wish>,
    ) {
        let computing = self.computing.take().expect("who has computed has begun to");
        if computing.is_in_vain {
            self.begin(self.core.step(), wishes);
            return;
        }
        let Computing { step, buffer, bases, .. } = computing;
        let values = &self.values[buffer];
        assert!(values.iter().all(|w| !w.is_nan()), "{} has all values before it computes", self.id);
        let (work, pull) = match self.way.clone() {
            Way::Batch => {
                let loss = problem.gradient(self.id, step, values, &mut self.result);
                let examples = problem.examples(self.id, step);
                (Work { client: ClientId(self.id.0), examples, work: examples.into(), loss }, true)
            }
            Way::Rounds { rate, .. } => {
                let client = self.rest.pop_front().expect("who computes has a client to train");
                (self.train(problem, client, step, rate), false)
            }
            Way::AtWill { seed, rate, hosted } => {
                let mut draw = Rng::new(seed, Purpose::NextClient { worker: self.id.0, step: step.0 });
                let client = hosted[draw.below(hosted.len() as u64) as usize];
                (self.train(problem, client, step, rate), true)
            }
        };
        let computed = Computed { step, bases, work, pull };
        if self.core.is_busy() {
            self.computed = Some(computed);
            return;
        }
        let mut effects = Vec::new();
        self.push(computed, &mut effects, gradients, wishes);
        self.carry_on(effects, gradients, wishes);
    }

    fn train(&mut self, problem: &dyn Problem, client: ClientId, round: Step, rate: f32) -> Work {
        let problem::Trained { push, work, loss } =
            problem::train(problem, client, round, rate, &self.values[self.core.newest()]);
        self.result = push;
        Work { client, examples: problem.client(client).examples, work, loss }
    }

    /// Pushes what was computed, and begins with the next where that need not wait for the answer.
    fn push(
        &mut self,
        computed: Computed,
        effects: &mut Vec<Effect>,
        gradients: &mut Gradients,
        wishes: &mut Vec<Wish>,
    ) {
        let Computed { step, bases, work, pull } = computed;
        assert_eq!(step, self.core.step(), "{} pushes what it has computed for another step", self.id);
        self.steps += 1;
        std::mem::swap(&mut self.result, &mut self.gradient);
        let computed = self.gradient.clone();
        self.encode(work.client);
        let mut sent = Vec::new();
        self.core.handle(Event::Push { work, pull }, &mut sent);
        let sequence = sent.iter().find_map(|effect| match effect {
            Effect::Send { push: Some(push), .. } => Some(push.sequence),
            _ => None,
        });
        effects.extend(sent);
        let key = (self.id, self.incarnation, sequence.expect("a push is sent to every shard"));
        let (encoded, gradient, process) = (self.gradient.clone(), self.sent.clone(), self.process);
        let pushed = Pushed { computed, encoded, gradient, bases, work, step, process };
        let before = gradients.insert(key, pushed);
        assert_eq!(before, None, "a life computes each push once: {key:?}");
        if self.in_flight > 1 {
            self.begin(step.next(), wishes);
        }
    }
}
