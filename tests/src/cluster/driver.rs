//! Drives one worker's core: holds its values, lets it compute and forms its messages.

mod computing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use windlass_common::codec::{Codec, Patch};
use windlass_common::ids::{
    ClientId, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::layout::Layout;
use windlass_common::placement::Placement;
use windlass_common::plan::{Codecs, Mode, Plan};
use windlass_common::wire::{Body, Part, Pull, Push, Reject, Resume};
use windlass_ps_core::rules::rules;
use windlass_ps_core::shard::{Given, Reply, Request};
use windlass_ps_core::store::{OnWire, Sent};
use windlass_ps_core::{SessionId, shard};
use windlass_worker_core::{AsOf, Effect, Encoder, Event, Taken, Until, Work, Worker};

use super::brought::Brought;
use computing::{Computed, Computing};

/// A gradient that was pushed, and what it was computed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    /// The whole gradient, in layout order.
    pub computed: Vec<f32>,
    /// The same with what had been left out of earlier pushes, which is what was encoded.
    pub encoded: Vec<f32>,
    /// What the shards are sent of it, as they decode it.
    pub gradient: Vec<f32>,
    /// For each shard the version of the values that it was computed on, as the shard named it.
    pub bases: Vec<Version>,
    /// Whose data it was computed on, and what it counts.
    pub work: Work,
    /// The step it is for.
    pub step: Step,
    /// Which process of the worker has computed it, of all that there have been.
    pub process: u32,
}

/// Every gradient of a run, by who pushed it, in which life, under which number.
pub type Gradients = BTreeMap<(WorkerId, Incarnation, Sequence), Pushed>;

/// What a driver wants done.
#[derive(Debug)]
pub(crate) enum Wish {
    /// Send a request to a shard.
    Request(ShardId, Request<Brought>),
    /// Give a shard something for a checkpoint.
    Give(ShardId, Given),
    /// Let it compute for a while, and then call [`Driver::compute`].
    Compute,
    /// Note that a gradient which was computed ahead is thrown away.
    ThrownAway,
    /// Tell the coordinator that a client has gone from a round.
    Dropped(ClientId, Step),
    /// Tell the coordinator that it goes.
    Leave {
        /// Steps computed.
        steps: u64,
    },
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Joining,
    Training,
    /// It has been told that there is nothing more to do.
    Done,
    /// It has been told that another life has succeeded it. Where a dead life's request to join arrives after that of
    /// the living one, the coordinator cannot know better, and whoever started the worker has to start it again.
    Succeeded,
}

/// What a worker computes for a push.
#[derive(Clone, Debug)]
enum Way {
    /// The gradient of a batch of its own data.
    Batch,
    /// What the clients that it is told of make of the values, one push after the other.
    Rounds { seed: u64, rate: f32, dropout: f64 },
    /// What any one of its own clients makes of the values.
    AtWill { seed: u64, rate: f32, hosted: Vec<ClientId> },
}

/// One life of a worker.
#[derive(Debug)]
pub(crate) struct Driver {
    id: WorkerId,
    process: u32,
    run: RunId,
    lineage: Lineage,
    incarnation: Incarnation,
    core: Worker,
    layout: Layout,
    placement: Placement,
    /// For each buffer the values, and their version on each shard as the shard named it.
    values: [Vec<f32>; 2],
    versions: [Vec<Version>; 2],
    in_flight: u32,
    /// What it computes.
    computing: Option<Computing>,
    /// What it has computed and not pushed; the gradient is in `result`.
    computed: Option<Computed>,
    result: Vec<f32>,
    /// What was pushed last, and what the shards decode of it.
    gradient: Vec<f32>,
    sent: Vec<f32>,
    codecs: Codecs,
    encoder: Encoder,
    /// As they were written; empty where the payload is the values.
    payloads: Vec<Vec<u8>>,
    /// Whether shards decode pushes while they apply them.
    decode: bool,
    way: Way,
    /// Clients that are yet to be trained in this round.
    rest: VecDeque<ClientId>,
    steps: u64,
    /// Where shards answer this life, one session per shard.
    sessions: Vec<SessionId>,
    silent: bool,
    pub(crate) state: State,
}

impl Driver {
    pub(crate) fn new(
        (id, process): (WorkerId, u32),
        run: RunId,
        plan: &Plan,
        sessions: Vec<SessionId>,
        silent: bool,
    ) -> Self {
        let layout = plan.layout().expect("a checked plan has a layout");
        let placement = plan.placement().expect("a checked plan can be placed");
        let (total, shards) = (layout.total() as usize, sessions.len());
        let seed = plan.seed;
        let way = match &plan.mode {
            Mode::Sync { .. } | Mode::Async { .. } | Mode::Ssp { .. } | Mode::Softsync { .. } => Way::Batch,
            Mode::Fedavg(fedavg) => {
                Way::Rounds { seed, rate: fedavg.local.rate as f32, dropout: plan.heterogeneity.dropout }
            }
            Mode::Fedbuff { local, .. } | Mode::Fedasync { local, .. } => {
                let (first, workers) = (id.0, plan.cluster.workers as usize);
                let hosted = (first..plan.clients.count).step_by(workers).map(ClientId).collect();
                Way::AtWill { seed, rate: local.rate as f32, hosted }
            }
        };
        let encoder = Encoder::of(plan, &layout, &placement);
        Self {
            id,
            process,
            run,
            lineage: Lineage(0),
            incarnation: Incarnation(0),
            core: Worker::new(shards, Until::of(plan)).with_in_flight(plan.mode.in_flight()),
            layout,
            placement,
            values: [vec![f32::NAN; total], vec![f32::NAN; total]],
            versions: [vec![Version(0); shards], vec![Version(0); shards]],
            in_flight: plan.mode.in_flight(),
            computing: None,
            computed: None,
            result: vec![0.0; total],
            gradient: vec![0.0; total],
            sent: vec![0.0; total],
            codecs: plan.codecs,
            encoder,
            payloads: vec![Vec::new(); shards],
            decode: rules(plan).0.decodes(plan.codecs.push),
            way,
            rest: VecDeque::new(),
            steps: 0,
            sessions,
            silent,
            state: State::Joining,
        }
    }

    /// The same worker with new connections.
    pub(crate) fn again(self, sessions: Vec<SessionId>) -> Self {
        Self { sessions, state: State::Joining, ..self }
    }

    /// Takes in what the coordinator says.
    pub(crate) fn control(
        &mut self,
        body: Body,
        incarnation: Incarnation,
        gradients: &mut Gradients,
        wishes: &mut Vec<Wish>,
    ) {
        match body {
            Body::Welcome(welcome) => {
                let plan = Plan::parse(&welcome.plan).expect("the coordinator sends a plan that can be read");
                assert_eq!(plan.hash(), welcome.plan_hash, "both sides have the same plan");
                assert_eq!(welcome.servers.len(), plan.cluster.servers as usize);
                self.welcome((welcome.next, false), incarnation, self.lineage, gradients, wishes);
            }
            Body::Stop(_) | Body::Refused(Reject::Ended) => self.state = State::Done,
            Body::Refused(Reject::StaleIncarnation { .. }) => self.state = State::Succeeded,
            Body::NotYet { .. } => {}
            other => panic!("{} in incarnation {incarnation} is told {other:?}", self.id),
        }
    }

    /// The coordinator has admitted it.
    pub(crate) fn welcome(
        &mut self,
        (next, from_copies): (Resume, bool),
        incarnation: Incarnation,
        lineage: Lineage,
        gradients: &mut Gradients,
        wishes: &mut Vec<Wish>,
    ) {
        let before = std::mem::replace(&mut self.incarnation, incarnation);
        let was_in = std::mem::replace(&mut self.lineage, lineage);
        self.state = State::Training;
        let mut effects = Vec::new();
        if before != Incarnation(0) && was_in != lineage {
            self.core.handle(Event::Restored { next, from_copies }, &mut effects);
            self.carry_on(effects, gradients, wishes);
            return;
        }
        self.core.handle(Event::Joined { next }, &mut effects);
        if before == Incarnation(0) {
            self.core.handle(Event::Pull, &mut effects);
        }
        self.keep_what_is_sent_again(before, &effects, gradients);
        self.carry_on(effects, gradients, wishes);
    }

    /// Who was cut off may send a push again, in its new life and with its old number.
    fn keep_what_is_sent_again(&self, before: Incarnation, effects: &[Effect], gradients: &mut Gradients) {
        let again = effects.iter().find_map(|effect| match effect {
            Effect::Send { push: Some(push), .. } => Some(push.sequence),
            _ => None,
        });
        if let Some(sequence) = again {
            let pushed = gradients[&(self.id, before, sequence)].clone();
            gradients.insert((self.id, self.incarnation, sequence), pushed);
        }
    }

    /// Takes in what a shard says.
    pub(crate) fn reply(
        &mut self,
        shard: ShardId,
        reply: Reply,
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
            Reply::Values { step, snapshot, have, slices, clients } => {
                match Patch::of(self.codecs.pull) {
                    Some(patch) => {
                        let sent = snapshot.sent_since(have, &slices);
                        sent.for_each(|(part, sent)| self.take_sent(patch, part, sent));
                    }
                    None => {
                        let sent = snapshot.on_wire_since(have, &slices, self.codecs.pull);
                        sent.for_each(|(part, sent)| self.take_values(part, &sent));
                    }
                }
                self.versions[self.core.incoming()][shard.index()] = snapshot.version;
                Told::Values { step, version: snapshot.version, clients }
            }
            Reply::Keep { checkpoint, next, all } => Told::Keep { checkpoint, next, all },
            Reply::Recall { residuals } => {
                for (client, values) in residuals {
                    let recalled = self.encoder.recall(shard.index(), client, &values);
                    recalled.expect("a shard tells as many values as it has");
                }
                return;
            }
            Reply::Finished { .. } => Told::Finished,
            Reply::Waiting { .. } => return,
            Reply::Rejected { reason, .. } => Told::Rejected(reason),
            Reply::NoSnapshot { .. } | Reply::NotReached { .. } => panic!("a worker asks for no snapshot"),
        };
        let mut effects = Vec::new();
        self.core.handle(Event::Reply { shard: shard.index(), reply: told }, &mut effects);
        self.carry_on(effects, gradients, wishes);
    }

    /// Does what the core asks for, and what comes of that.
    fn carry_on(&mut self, mut effects: Vec<Effect>, gradients: &mut Gradients, wishes: &mut Vec<Wish>) {
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Ready { .. } if self.silent => {}
                    Effect::Ready { step } => self.ready(step, gradients, &mut effects, wishes),
                    Effect::Taken(taken) if matches!(self.way, Way::Rounds { .. }) => {
                        if taken == Taken::Unused {
                            // The round is closed, or has to be begun again.
                            self.rest.clear();
                        }
                        self.go_on(&mut effects, wishes);
                    }
                    other => self.carry_out(other, wishes),
                }
            }
        }
    }

    /// Where a slice goes.
    fn place(&mut self, part: Part) -> &mut [f32] {
        let slice = self.placement.slices()[part.slice as usize];
        let start = self.layout.range(slice.variable).start + slice.start as usize;
        &mut self.values[self.core.incoming()][start..start + part.values as usize]
    }

    fn take_values(&mut self, part: Part, sent: &OnWire) {
        let codec = self.codecs.pull;
        let place = self.place(part);
        match sent {
            OnWire::Values(values) => place.copy_from_slice(values),
            OnWire::Bytes(bytes) => {
                codec.decode_payload([place.len()], bytes, place).expect("what was encoded can be decoded");
            }
        }
    }

    /// Takes in a reference, or patches to the one at hand.
    fn take_sent(&mut self, patch: Patch, part: Part, sent: Sent<'_>) {
        let place = self.place(part);
        match sent {
            Sent::Whole(values) => place.copy_from_slice(&values),
            Sent::Patches(patches, bytes) => {
                for sent in patches {
                    patch.apply(&sent[bytes.clone()], place).expect("what was written can be applied");
                }
            }
        }
    }

    /// Encodes the gradient, and decodes it as the shards do.
    fn encode(&mut self, client: ClientId) {
        let Some(payloads) = self.encoder.encode(&mut self.gradient, client, self.core.step()) else {
            self.sent.copy_from_slice(&self.gradient);
            return;
        };
        for (shard, payload) in (0..).map(ShardId).zip(payloads) {
            self.payloads[shard.index()].clone_from(&payload);
            let slices = self.placement.of_shard(shard).to_vec();
            let lengths: Vec<usize> = slices.iter().map(|slice| slice.len as usize).collect();
            let mut decoded = vec![0.0; lengths.iter().sum()];
            let done = self.codecs.push.decode_payload(lengths.iter().copied(), &payload, &mut decoded);
            done.expect("what was encoded can be decoded");
            let mut rest = decoded.as_slice();
            for (slice, len) in slices.iter().zip(lengths) {
                let (values, later) = rest.split_at(len);
                let start = self.layout.range(slice.variable).start + slice.start as usize;
                self.sent[start..start + len].copy_from_slice(values);
                rest = later;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, wishes: &mut Vec<Wish>) {
        match effect {
            Effect::Feedback(feedback) => self.encoder.settle(feedback),
            Effect::Send { shard, push, pull } => wishes.push(self.request(shard, push, pull)),
            Effect::Give { shard, checkpoint, of, all } => self.give(shard, checkpoint, of, all, wishes),
            Effect::Ready { .. } | Effect::Taken(_) => {}
            Effect::Finished => {
                self.state = State::Done;
                (self.computing, self.computed) = (None, None);
                wishes.push(Wish::Leave { steps: self.steps });
            }
            Effect::Failed(
                Reject::StaleIncarnation { .. } | Reject::NotAdmitted { .. } | Reject::WrongLineage { .. },
            ) => {
                self.state = State::Succeeded;
            }
            Effect::Failed(reason) => {
                panic!("{} in incarnation {} is refused: {reason}", self.id, self.incarnation)
            }
        }
    }

    fn give(&mut self, shard: usize, checkpoint: u64, of: AsOf, all: bool, wishes: &mut Vec<Wish>) {
        let mut parts = Vec::new();
        if of != AsOf::GoneOn {
            let residuals = self.encoder.give(shard, of, all).into_iter();
            parts.extend(
                residuals
                    .map(|(client, values)| shard::Part::Residual { client, residual: Arc::new(values) }),
            );
        }
        parts.push(if of == AsOf::GoneOn { shard::Part::GoneOn } else { shard::Part::All });
        wishes.extend(parts.into_iter().map(|part| {
            let &mut Self { run, lineage, id: worker, incarnation, .. } = self;
            let session = self.sessions[shard];
            let given = Given { session, run, lineage, worker, incarnation, checkpoint, part };
            Wish::Give(ShardId(shard as u32), given)
        }));
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
            let windlass_worker_core::Push { sequence, step, base, work } = push;
            let Work { client, examples, work, loss } = work;
            let (codec, payload) = (self.codecs.push, &self.payloads[shard]);
            let payload_bytes = if codec == Codec::F32 { 4 * floats.len() } else { payload.len() } as u64;
            let brought = match self.decode {
                true => Brought::undecoded(codec, &parts, payload.clone()),
                false => Brought::Floats(floats),
            };
            let push =
                Push { sequence, step, base, client, examples, work, loss, codec, parts, payload_bytes };
            (push, brought)
        });
        let pull =
            pull.map(|p| Pull { step: p.step, have: p.have, slices: Vec::new(), codec: self.codecs.pull });
        let request = shard::Request {
            term: Term(0),
            session: self.sessions[shard],
            run: self.run,
            lineage: self.lineage,
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
            floats.extend_from_slice(&self.sent[start..start + slice.len as usize]);
            parts.push(Part { slice: number, values: slice.len });
        }
        (parts, floats)
    }

    /// Whether this shard owes it an answer.
    pub(crate) fn awaits(&self, shard: usize) -> bool {
        self.core.awaits(shard)
    }

    /// Whether some shard owes it an answer.
    pub(crate) fn is_busy(&self) -> bool {
        self.core.is_busy()
    }

    /// The history of the run that it takes part in.
    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The step that it is at.
    pub(crate) fn step(&self) -> Step {
        self.core.step()
    }

    /// Pushes computed.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Who owes it an answer, in words.
    pub(crate) fn waits_for(&self) -> String {
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
