//! Drives one worker's core: holds its values, computes its gradients and forms its messages.

use std::collections::BTreeMap;

use windlass_common::ids::{Incarnation, Lineage, RunId, Sequence, ShardId, Version, WorkerId};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::Plan;
use windlass_common::wire::{Body, Codec, Part, Pull, Push, Reject, Welcome};
use windlass_ps_core::shard::{Reply, Request};
use windlass_ps_core::{SessionId, shard};
use windlass_worker_core::{Effect, Event, Worker};

use crate::problem::Problem;

/// A gradient that was pushed, and what it was computed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    /// The whole gradient, in layout order.
    pub gradient: Vec<f32>,
    /// For each shard the version of the values at hand, as the shard named it.
    pub bases: Vec<Version>,
    /// Size of the batch.
    pub examples: u32,
}

/// Every gradient of a run, by who pushed it, in which life, under which number.
pub type Gradients = BTreeMap<(WorkerId, Incarnation, Sequence), Pushed>;

/// What a driver wants done.
#[derive(Debug)]
pub(super) enum Wish {
    /// Send a request to a shard.
    Request(ShardId, Request<Vec<f32>>),
    /// Tell the coordinator that it goes.
    Leave {
        /// Steps computed.
        steps: u64,
    },
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Joining,
    Training,
    /// It has been told that there is nothing more to do.
    Done,
    /// It has been told that another life has succeeded it. Where a dead life's request to join arrives after that of
    /// the living one, the coordinator cannot know better, and whoever started the worker has to start it again.
    Succeeded,
}

/// One life of a worker.
#[derive(Debug)]
pub(super) struct Driver {
    id: WorkerId,
    run: RunId,
    incarnation: Incarnation,
    core: Worker,
    layout: Layout,
    placement: Placement,
    values: Vec<f32>,
    versions: Vec<Version>,
    gradient: Vec<f32>,
    examples: u32,
    steps: u64,
    /// Where shards answer this life, one session per shard.
    sessions: Vec<SessionId>,
    silent: bool,
    pub(super) state: State,
}

impl Driver {
    pub(super) fn new(id: WorkerId, run: RunId, plan: &Plan, sessions: Vec<SessionId>, silent: bool) -> Self {
        let layout = plan.layout().expect("a checked plan has a layout");
        let placement = plan.placement().expect("a checked plan can be placed");
        let (total, shards) = (layout.total() as usize, sessions.len());
        Self {
            id,
            run,
            incarnation: Incarnation(0),
            core: Worker::new(shards),
            layout,
            placement,
            values: vec![f32::NAN; total],
            versions: vec![Version(0); shards],
            gradient: vec![0.0; total],
            examples: 0,
            steps: 0,
            sessions,
            silent,
            state: State::Joining,
        }
    }

    /// Takes in what the coordinator says.
    pub(super) fn control(&mut self, body: Body, incarnation: Incarnation, wishes: &mut Vec<Wish>) {
        match body {
            Body::Welcome(welcome) => self.welcome(welcome, incarnation, wishes),
            Body::Stop(_) | Body::Refused(Reject::Ended) => self.state = State::Done,
            Body::Refused(Reject::StaleIncarnation { .. }) => self.state = State::Succeeded,
            Body::NotYet { .. } => {}
            other => panic!("{} in incarnation {incarnation} is told {other:?}", self.id),
        }
    }

    fn welcome(&mut self, welcome: Welcome, incarnation: Incarnation, wishes: &mut Vec<Wish>) {
        let plan = Plan::parse(&welcome.plan).expect("the coordinator sends a plan that can be read");
        assert_eq!(plan.hash(), welcome.plan_hash, "both sides have the same plan");
        assert_eq!(welcome.servers.len(), plan.cluster.servers as usize);
        self.incarnation = incarnation;
        self.state = State::Training;
        let mut effects = Vec::new();
        self.core.handle(Event::Joined { next: welcome.next }, &mut effects);
        self.core.handle(Event::Pull, &mut effects);
        for effect in effects {
            self.carry_out(effect, wishes);
        }
    }

    /// Takes in what a shard says. `computed` gets the gradients of the steps that can now be computed.
    pub(super) fn reply(
        &mut self,
        shard: ShardId,
        reply: Reply,
        problem: &dyn Problem,
        gradients: &mut Gradients,
        wishes: &mut Vec<Wish>,
    ) {
        use windlass_worker_core::Reply as Told;
        if self.state != State::Training {
            return;
        }
        let told = match reply {
            Reply::Held { sequence, .. } => Told::Held { sequence },
            Reply::Settled { sequence, outcome } => Told::Settled { sequence, outcome },
            Reply::Values { step, snapshot, have, slices } => {
                for (part, values) in snapshot.changed_since(have, &slices) {
                    self.take_values(part, &values);
                }
                self.versions[shard.index()] = snapshot.version;
                Told::Values { step, version: snapshot.version }
            }
            Reply::Finished { .. } => Told::Finished,
            Reply::Waiting { .. } => return,
            Reply::Rejected { reason, .. } => Told::Rejected(reason),
            Reply::NoSnapshot { .. } => panic!("a worker asks for no snapshot"),
        };
        let mut effects = Vec::new();
        self.core.handle(Event::Reply { shard: shard.index(), reply: told }, &mut effects);
        while !effects.is_empty() {
            let ready = effects.iter().any(|e| matches!(e, Effect::Ready { .. }));
            for effect in std::mem::take(&mut effects) {
                self.carry_out(effect, wishes);
            }
            if ready && !self.silent {
                self.compute(problem, &mut effects, gradients);
            }
        }
    }

    fn take_values(&mut self, part: Part, values: &[f32]) {
        let slice = self.placement.slices()[part.slice as usize];
        let start = self.layout.range(slice.variable).start + slice.start as usize;
        self.values[start..start + part.values as usize].copy_from_slice(values);
    }

    fn compute(&mut self, problem: &dyn Problem, effects: &mut Vec<Effect>, gradients: &mut Gradients) {
        let step = self.core.step();
        assert!(self.values.iter().all(|w| !w.is_nan()), "{} has all values before it computes", self.id);
        let loss = problem.gradient(self.id, step, &self.values, &mut self.gradient);
        self.examples = problem.examples(self.id, step);
        self.steps += 1;
        self.core.handle(Event::Push { examples: self.examples, loss, pull: true }, effects);
        let sequence = effects.iter().find_map(|effect| match effect {
            Effect::Send { push: Some(push), .. } => Some(push.sequence),
            _ => None,
        });
        let key = (self.id, self.incarnation, sequence.expect("a push is sent to every shard"));
        let (gradient, bases) = (self.gradient.clone(), self.versions.clone());
        let before = gradients.insert(key, Pushed { gradient, bases, examples: self.examples });
        assert_eq!(before, None, "a life computes each push once: {key:?}");
    }

    fn carry_out(&mut self, effect: Effect, wishes: &mut Vec<Wish>) {
        match effect {
            Effect::Send { shard, push, pull } => wishes.push(self.request(shard, push, pull)),
            Effect::Ready { .. } | Effect::Settled { .. } => {}
            Effect::Finished => {
                self.state = State::Done;
                wishes.push(Wish::Leave { steps: self.steps });
            }
            Effect::Failed(Reject::StaleIncarnation { .. }) => self.state = State::Succeeded,
            Effect::Failed(reason) => {
                panic!("{} in incarnation {} is refused: {reason}", self.id, self.incarnation)
            }
        }
    }

    fn request(
        &self,
        shard: usize,
        push: Option<windlass_worker_core::Push>,
        pull: Option<windlass_worker_core::Pull>,
    ) -> Wish {
        let id = ShardId(shard as u32);
        let push = push.map(|push| {
            let (parts, floats) = self.cut(id);
            let payload_bytes = floats.len() as u64 * 4;
            let windlass_worker_core::Push { sequence, step, base, examples, loss } = push;
            let push = Push { sequence, step, base, examples, loss, codec: Codec::F32, parts, payload_bytes };
            (push, floats)
        });
        let pull = pull.map(|p| Pull { step: p.step, have: p.have, slices: Vec::new(), codec: Codec::F32 });
        let request = shard::Request {
            session: self.sessions[shard],
            run: self.run,
            lineage: Lineage(0),
            worker: self.id,
            incarnation: self.incarnation,
            push,
            pull,
        };
        Wish::Request(id, request)
    }

    /// The part of the gradient that one shard owns.
    fn cut(&self, shard: ShardId) -> (Vec<Part>, Vec<f32>) {
        let (mut parts, mut floats) = (Vec::new(), Vec::new());
        for (number, slice) in (0_u32..).zip(self.placement.slices()).filter(|(_, s)| s.shard == shard) {
            let start = self.layout.range(slice.variable).start + slice.start as usize;
            floats.extend_from_slice(&self.gradient[start..start + slice.len as usize]);
            parts.push(Part { slice: number, values: slice.len });
        }
        (parts, floats)
    }

    /// Who owes it an answer, in words.
    pub(super) fn waits_for(&self) -> String {
        match self.state {
            State::Joining => "is not welcomed by the coordinator".into(),
            State::Done => "is done".into(),
            State::Succeeded => "has been succeeded".into(),
            State::Training if self.silent => "keeps silent".into(),
            State::Training => {
                let shards: Vec<String> = (0..self.sessions.len())
                    .filter(|&shard| self.core.awaits(shard))
                    .map(|shard| ShardId(shard as u32).to_string())
                    .collect();
                format!("at step {} waits for {}", self.core.step(), shards.join(", "))
            }
        }
    }
}
