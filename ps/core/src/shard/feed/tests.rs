//! Feeds standbys what their primaries do, in each mode, and promotes them after anything that has happened.

use windlass_common::ids::{
    ClientId, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::layout::{Initial, Variable};
use windlass_common::optimizer::{Adam, Optimizer};
use windlass_common::plan::{Fedavg, Hosting, LocalWork, Mode, Plan, Sampler, StalenessScaling, Weights};
use windlass_common::rng::{Purpose, Rng};
use windlass_common::wire::{Entry, Feed, Member, Order, Outcome, Pull, Push, Record, Report, Task};

use super::*;
use crate::replica::{Gate, Passed, Refused, Released, Standby};
use crate::shard::{Event, Reply, Request};
use crate::{SessionId, Time, sample};

const WORKERS: u32 = 3;
const SHARD: ShardId = ShardId(0);

fn plan(mode: Mode) -> Plan {
    let mut plan = sample::plan(mode, 2, WORKERS);
    plan.cluster.replicas = 1;
    plan.optimizer = Optimizer::Adam(Adam::default());
    plan.data.train_examples = 1_000_000;
    let variable = |name| Variable::new(name, &[512], Initial::Zeros);
    plan.model.variables = vec![variable("weight"), variable("bias")];
    plan.check().unwrap();
    plan
}

fn modes() -> [Mode; 6] {
    let fedavg = Fedavg {
        rounds: 1000,
        cohort: WORKERS,
        asked: WORKERS,
        quorum: 1,
        deadline_ms: None,
        sampler: Sampler::RoundRobin,
        weights: Weights::Examples,
        hosting: Hosting::Fixed,
        local: LocalWork::default(),
    };
    [
        Mode::Sync { backup: 0 },
        Mode::Async { scaling: StalenessScaling::Inverse, compensation: None, in_flight: 1 },
        Mode::Ssp { staleness: Some(2), scaling: StalenessScaling::None, compensation: None, in_flight: 1 },
        Mode::Fedavg(fedavg),
        Mode::Async { scaling: StalenessScaling::None, compensation: Some(0.5), in_flight: 1 },
        Mode::Ssp {
            staleness: Some(2),
            scaling: StalenessScaling::Inverse,
            compensation: Some(2.0),
            in_flight: 1,
        },
    ]
}

/// What drives a primary: workers that push, come back in other lives, and a coordinator.
struct Script {
    plan: Plan,
    rng: Rng,
    lineage: Lineage,
    lives: Vec<u32>,
    term: u64,
    now: u64,
}

impl Script {
    fn new(plan: &Plan, seed: u64) -> Self {
        let rng = Rng::new(seed, Purpose::Simulation(9));
        Self {
            plan: plan.clone(),
            rng,
            lineage: Lineage(0),
            lives: vec![1; WORKERS as usize],
            term: 0,
            now: 0,
        }
    }

    fn membership(&mut self) -> Order {
        self.term += 1;
        let member = |(worker, life): (u32, &u32)| Member {
            worker: WorkerId(worker),
            incarnation: Incarnation(*life),
        };
        let members = (0..).zip(&self.lives).map(member).collect();
        Order::Membership { term: Term(self.term), members, departed: Vec::new() }
    }

    /// Everybody takes part, and the training begins.
    fn begin(&mut self, shard: &mut Shard<Vec<f32>>, out: &mut Vec<Effect>) {
        let order = self.membership();
        for order in [order, Order::Start] {
            shard.handle(Time(self.now), Event::Order(order), out);
        }
    }

    fn open(&self, shard: &Shard<Vec<f32>>) -> Order {
        let tasks = (0..WORKERS).map(|w| Task { client: ClientId(w), worker: WorkerId(w) }).collect();
        Order::Open { step: shard.state().open, tasks }
    }

    /// The next thing that happens. What a worker pushes follows from where the shard has it.
    fn next(&mut self, shard: &mut Shard<Vec<f32>>, out: &mut Vec<Effect>) {
        self.now += 1 + self.rng.below(1000);
        let now = Time(self.now);
        let worker = self.rng.below(WORKERS.into()) as u32;
        match self.rng.below(20) {
            0 => {
                self.lives[worker as usize] += 1;
                let order = self.membership();
                shard.handle(now, Event::Order(order), out);
            }
            1 => {
                let records = shard.state().pushes / 2;
                shard.handle(now, Event::Order(Order::Logged { records }), out);
            }
            2 | 3 => self.request(shard, worker, false, out),
            4 | 5 => {
                let held: Vec<Entry> = shard.held.keys().copied().collect();
                let (step, count) = (shard.state().open, self.rng.below(held.len() as u64 + 1) as usize);
                if let Mode::Fedavg(_) = self.plan.mode {
                    let cohort = held[..count].to_vec();
                    shard.handle(now, Event::Order(Order::Close { step, cohort }), out);
                    let open = self.open(shard);
                    shard.handle(now, Event::Order(open), out);
                }
            }
            6 => shard.handle(now, Event::Tick, out),
            _ => self.request(shard, worker, true, out),
        }
    }

    fn request(&mut self, shard: &mut Shard<Vec<f32>>, worker: u32, is_push: bool, out: &mut Vec<Effect>) {
        let state = shard.state();
        let row = state.workers.iter().find(|row| row.worker == WorkerId(worker)).cloned();
        let held = shard.held.keys().filter(|e| e.worker == WorkerId(worker)).count() as u64;
        let Some(row) = row else { return };
        let is_round = matches!(self.plan.mode, Mode::Fedavg(_));
        // In rounds what is held counts as pushed; now and then a round is over before a push comes.
        let sequence = if is_round { row.sequence } else { Sequence(row.sequence.0 + held) };
        let step = match &self.plan.mode {
            Mode::Fedavg(_) if state.open.0 > 0 && self.rng.below(4) == 0 => Step(state.open.0 - 1),
            Mode::Fedavg(_) => state.open,
            _ => row.step,
        };
        let lag = self.rng.below(3).min(state.version.0);
        let base = if let Mode::Sync { .. } = self.plan.mode {
            state.version
        } else {
            Version(state.version.0 - lag)
        };
        let values = shard.shape().values();
        let gradient: Vec<f32> = (0..values).map(|_| self.rng.unit() as f32 - 0.5).collect();
        let lengths = shard.shape().parts.iter().map(|part| part.values);
        let push = Push {
            sequence,
            step,
            base,
            client: ClientId(worker),
            examples: 1 + self.rng.below(5) as u32,
            work: 1,
            loss: 0.5,
            codec: self.plan.codecs.push,
            parts: shard.shape().parts.clone(),
            payload_bytes: self.plan.codecs.push.payload_bytes(lengths).1,
        };
        let pull = Pull { step: step.next(), have: None, slices: Vec::new(), codec: self.plan.codecs.pull };
        let request = Request {
            session: SessionId(worker.into()),
            run: RunId(7),
            lineage: self.lineage,
            worker: WorkerId(worker),
            term: Term(self.term),
            incarnation: Incarnation(self.lives[worker as usize]),
            push: is_push.then_some((push, gradient)),
            pull: Some(pull),
        };
        shard.handle(Time(self.now), Event::Request(request), out);
    }
}

/// A primary with its standby, which is told at once what there is to tell.
struct Pair {
    plan: Plan,
    primary: Shard<Vec<f32>>,
    standby: Standby<Vec<f32>>,
    gate: Gate,
    records: Vec<Record>,
}

impl Pair {
    fn new(plan: &Plan) -> Self {
        let primary = Shard::new(plan, RunId(7), Lineage(0), SHARD).unwrap();
        let standby = Standby::new(RunId(7), Lineage(0), SHARD);
        Self { plan: plan.clone(), primary, standby, gate: Gate::default(), records: Vec::new() }
    }

    fn tell(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Fed => {
                    let (mut feed, floats) = self.primary.next_feed().expect("one for each");
                    let number = self.gate.number();
                    // Whoever sends it on has the push as it was written, and of all else the floats.
                    let is_gradient = matches!(floats, Floats::Gradient(_));
                    let written = feed.written().map(|push| push.payload_bytes);
                    assert_eq!(written.is_some(), is_gradient, "{feed:?}");
                    assert_eq!(feed.payload_bytes(), written.unwrap_or(4 * len(&floats)), "{feed:?}");
                    let taken = self.standby.take(&self.plan, Lineage(0), number, feed, end_to_end(floats));
                    assert_eq!(taken, Ok(Some(number)));
                }
                Effect::Record(record) => self.records.push(*record),
                _ => {}
            }
        }
        if let Some(standby) = self.standby.full() {
            assert_eq!(
                standby.digest(),
                self.primary.digest(),
                "after {} pushes",
                self.primary.state().pushes
            );
        }
    }

    fn fill(&mut self) {
        let mut effects = Vec::new();
        self.primary.begin_feeding(&mut effects);
        self.primary.told_all(&mut effects);
        self.tell(&effects);
        assert!(self.standby.full().is_some());
    }
}

fn end_to_end(floats: Floats<Vec<f32>>) -> Vec<f32> {
    match floats {
        Floats::None => Vec::new(),
        Floats::Gradient(gradient) => gradient,
        Floats::Pieces(pieces) => pieces.iter().flat_map(|p| p.iter().copied()).collect(),
    }
}

fn len(floats: &Floats<Vec<f32>>) -> u64 {
    match floats {
        Floats::None => 0,
        Floats::Gradient(gradient) => gradient.len() as u64,
        Floats::Pieces(pieces) => pieces.iter().map(|p| p.len() as u64).sum(),
    }
}

/// A primary that has done so many things, the standby being begun after some of them.
fn played(plan: &Plan, seed: u64, filled_after: u64, events: u64) -> (Pair, Script) {
    let (mut pair, mut script) = (Pair::new(plan), Script::new(plan, seed));
    let mut effects = Vec::new();
    script.begin(&mut pair.primary, &mut effects);
    if let Mode::Fedavg(_) = plan.mode {
        let open = script.open(&pair.primary);
        pair.primary.handle(Time(0), Event::Order(open), &mut effects);
    }
    pair.tell(&effects);
    for number in 0..events {
        if number == filled_after {
            pair.fill();
        }
        let mut effects = Vec::new();
        script.next(&mut pair.primary, &mut effects);
        pair.tell(&effects);
    }
    (pair, script)
}

/// What goes on in a new lineage: each worker in another life, what is missing pushed again.
fn go_on(shard: Shard<Vec<f32>>, script: &mut Script, logged: u64) -> (Vec<u64>, Vec<Record>) {
    let mut effects = Vec::new();
    let mut shard = shard.into_lineage(Lineage(1), logged, &mut effects);
    script.lineage = Lineage(1);
    script.lives.iter_mut().for_each(|life| *life += 1);
    script.begin(&mut shard, &mut effects);
    let mut digests = Vec::new();
    for _ in 0..30 {
        if let Mode::Fedavg(_) = script.plan.mode {
            let open = script.open(&shard);
            shard.handle(Time(script.now), Event::Order(open), &mut effects);
        }
        script.next(&mut shard, &mut effects);
        digests.push(shard.digest());
    }
    let record = |effect: &Effect| if let Effect::Record(record) = effect { Some(*record) } else { None };
    (digests, effects.iter().filter_map(record).collect())
}

#[test]
fn a_standby_is_equal_to_its_primary_in_each_mode_and_can_be_promoted_after_anything() {
    for mode in modes() {
        let plan = plan(mode);
        for seed in 0..12 {
            for events in (6..70).step_by(4) {
                let (pair, mut script) = played(&plan, seed, seed % 6, events);
                let (_, mut again) = played(&plan, seed, seed % 6, events);
                let (told, logged) = (pair.records.clone(), pair.primary.state().pushes / 2);
                let promoted = pair.standby.into_full().expect("it has all");
                // Where pushes are held until all have come, a promoted copy holds none.
                if !pair.primary.held.keys().eq(promoted.held.keys()) {
                    assert_eq!(plan.mode, Mode::Sync { backup: 0 });
                    assert!(promoted.held.is_empty());
                    continue;
                }
                assert_eq!(
                    promoted.state(),
                    pair.primary.state(),
                    "{:?} seed {seed} after {events}",
                    plan.mode
                );
                let (digests, records) = go_on(promoted, &mut script, logged);
                let (expected, same) = go_on(pair.primary, &mut again, logged);
                assert_eq!(digests, expected, "{:?} seed {seed} after {events}", plan.mode);
                assert_eq!(records, same, "{:?} seed {seed} after {events}", plan.mode);
                // What the log may lack comes again, and first.
                let missing: Vec<Record> = told.into_iter().filter(|r| r.number > logged).collect();
                assert!(records.starts_with(&missing), "{:?} seed {seed} after {events}", plan.mode);
            }
        }
    }
}

#[test]
fn a_standby_has_what_workers_were_sent_where_values_go_down_in_patches() {
    for mode in modes() {
        let mut plan = plan(mode);
        plan.codecs.pull = "topk:2%".parse().unwrap();
        for filled_after in [3, 40] {
            let (pair, mut script) = played(&plan, 1, filled_after, 70);
            let (_, mut again) = played(&plan, 1, filled_after, 70);
            let logged = pair.primary.state().pushes;
            let standby = pair.standby.into_full().expect("it has all");
            let references = |shard: &Shard<Vec<f32>>| -> Vec<Vec<u32>> {
                let reference = |slice: SliceState| slice.reference.expect("there is one");
                let slices = shard.store.slices().into_iter().map(reference);
                slices.map(|slice| slice.iter().map(|x| x.to_bits()).collect()).collect()
            };
            let found = references(&standby);
            assert_eq!(found, references(&pair.primary), "{:?}", plan.mode);
            let values = standby.store.slices().into_iter().map(|slice| slice.values);
            let values: Vec<Vec<u32>> = values.map(|v| v.iter().map(|x| x.to_bits()).collect()).collect();
            assert_ne!(found, values, "{:?}: and it is not the values", plan.mode);
            if plan.mode != (Mode::Sync { backup: 0 }) {
                let (digests, _) = go_on(standby, &mut script, logged);
                let (expected, _) = go_on(pair.primary, &mut again, logged);
                assert_eq!(digests, expected, "{:?}", plan.mode);
            }
        }
    }
}

#[test]
fn a_standby_is_told_of_encoded_pushes_with_their_own_length() {
    for mode in modes() {
        let mut plan = plan(mode);
        plan.codecs.push = "int8".parse().unwrap();
        let (pair, _) = played(&plan, 1, 3, 70);
        assert_eq!(pair.standby.full().expect("it has all").digest(), pair.primary.digest());
    }
}

#[test]
fn a_held_push_takes_the_memory_of_its_gradient_and_for_a_standby_of_its_bytes() {
    let [_, _, _, fedavg, _, _] = modes();
    for (replicas, codec, of_bytes) in [(1, "int8", 1), (1, "f32", 0), (0, "int8", 0)] {
        let mut plan = plan(fedavg.clone());
        plan.cluster.replicas = replicas;
        plan.codecs.push = codec.parse().unwrap();
        let (mut shard, mut script) =
            (Shard::new(&plan, RunId(7), Lineage(0), SHARD).unwrap(), Script::new(&plan, 1));
        script.begin(&mut shard, &mut Vec::new());
        let open = script.open(&shard);
        shard.handle(Time(0), Event::Order(open), &mut Vec::new());
        let mut bytes = |shard: &mut Shard<Vec<f32>>| {
            script.now += 2_000_000;
            let mut out = Vec::new();
            shard.handle(Time(script.now), Event::Tick, &mut out);
            let standing = out.iter().find_map(|effect| match effect {
                Effect::Report(Report::Standing(standing)) => Some(standing.bytes),
                _ => None,
            });
            script.request(shard, 0, true, &mut Vec::new());
            standing.expect("it says how it stands each second")
        };
        let (before, after) = (bytes(&mut shard), bytes(&mut shard));
        let values = shard.shape().values();
        let (_, written) = plan.codecs.push.payload_bytes([values]);
        assert_eq!(after - before, 4 * values + of_bytes * written, "{replicas} standbys, {codec}");
    }
}

#[test]
fn compensation_makes_a_difference_to_a_primary_and_its_standby() {
    let [_, plain, _, _, compensated, _] = modes();
    let digest = |mode| played(&plan(mode), 1, 3, 70).0.primary.digest();
    let none = Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 };
    assert_ne!(plain, none);
    assert_ne!(digest(compensated), digest(none));
}

#[test]
fn scripts_do_all_that_there_is_to_tell() {
    for mode in modes() {
        let plan = plan(mode);
        let (mut late, mut void, mut applied) = (0, 0, 0);
        for seed in 0..12 {
            let (pair, _) = played(&plan, seed, 3, 70);
            for record in pair.records {
                match record.outcome {
                    windlass_common::wire::Outcome::Applied { .. } => applied += 1,
                    windlass_common::wire::Outcome::Late { .. } => late += 1,
                    windlass_common::wire::Outcome::Void => void += 1,
                }
            }
        }
        assert!(applied > 50, "{:?}: {applied} applied", plan.mode);
        let is_round = matches!(plan.mode, Mode::Fedavg(_));
        assert_eq!((late > 0, void > 0), (is_round, is_round), "{:?}: {late} late, {void} void", plan.mode);
    }
}

#[test]
fn a_standby_takes_nothing_of_another_lineage_nor_what_leaves_something_out() {
    let plan = plan(modes()[1].clone());
    let mut pair = Pair::new(&plan);
    pair.fill();
    let mut take =
        |lineage, number, feed| pair.standby.take(&plan, Lineage(lineage), number, feed, Vec::new());
    let order = || Feed::Order { at_us: 0, order: Order::Start };
    for lineage in [1, 2] {
        let (current, found) = (Lineage(0), Lineage(lineage));
        assert_eq!(take(lineage, 3, order()), Err(Refused::Lineage { shard: SHARD, current, found }));
    }
    assert_eq!(take(0, 2, order()), Err(Refused::Gap { expected: 3, found: 2 }));
    assert_eq!(take(0, 5, order()), Ok(None), "two are missing before it");
    assert_eq!(take(0, 5, order()), Err(Refused::Gap { expected: 3, found: 5 }), "it has come already");
    assert_eq!(take(0, 3, order()), Ok(Some(3)));
    assert_eq!(take(0, 4, order()), Ok(Some(5)), "with the one that waited for it");
    assert_eq!(take(0, 4, order()), Err(Refused::Gap { expected: 6, found: 4 }));
    assert!(pair.standby.full().is_some(), "what is refused changes nothing");
    let digest = pair.primary.digest() ^ 1;
    let mut take = |number, feed| pair.standby.take(&plan, Lineage(0), number, feed, Vec::new());
    assert!(matches!(take(6, Feed::Digest { version: Version(0), digest }), Err(Refused::Feed(_))));
    assert!(pair.standby.full().is_none(), "one that is other than its primary is of no use");
    let mut empty = Standby::<Vec<f32>>::new(RunId(7), Lineage(0), SHARD);
    let gap = Refused::Gap { expected: 1, found: 2 };
    assert_eq!(
        empty.take(&plan, Lineage(0), 2, order(), Vec::new()),
        Err(gap),
        "one that is not full waits for nothing"
    );
    assert_eq!(empty.take(&plan, Lineage(0), 1, order(), Vec::new()), Err(FeedError::Empty.into()));
    assert!(empty.into_full().is_none());
}

#[test]
fn a_copy_that_has_not_been_told_that_it_has_all_is_not_full() {
    let plan = plan(modes()[3].clone());
    let (mut pair, mut script) = played(&plan, 3, 1000, 20);
    let mut effects = Vec::new();
    pair.primary.begin_feeding(&mut effects);
    pair.tell(&effects);
    assert!(pair.standby.full().is_none());
    let mut effects = Vec::new();
    script.next(&mut pair.primary, &mut effects);
    pair.primary.told_all(&mut effects);
    pair.tell(&effects);
    assert!(pair.standby.full().is_some());
    // Begun anew, it has not all until it is told so again.
    let mut effects = Vec::new();
    pair.primary.begin_feeding(&mut effects);
    pair.gate = Gate::default();
    pair.tell(&effects);
    assert!(pair.standby.full().is_none());
}

#[test]
fn nobody_waits_for_a_point_beyond_the_end_on_a_copy() {
    let [_, _, _, fedavg, ..] = modes();
    let mut pair = Pair::new(&plan(fedavg));
    pair.primary.handle(Time(0), Event::Order(Order::Conclude), &mut Vec::new());
    pair.fill();
    let mut copy = pair.standby.into_full().expect("it has all").into_lineage(Lineage(1), 0, &mut Vec::new());
    let (session, mut effects) = (SessionId(9), Vec::new());
    copy.handle(Time(1), Event::PullSnapshot { session, point: 1 << 40 }, &mut effects);
    let is_told =
        |e: &Effect| matches!(e, Effect::Reply { reply: crate::shard::Reply::NoSnapshot { next: None }, .. });
    assert!(effects.iter().any(is_told), "{effects:?}");
}

#[test]
fn values_are_begun_past_acknowledgements_and_nothing_else() {
    let mut pair = Pair::new(&plan(modes()[1].clone()));
    let snapshot = pair.primary.snapshot();
    let session = SessionId(3);
    let to = |reply| Effect::Reply { session, reply };
    let values = || {
        let (snapshot, step) = (snapshot.clone(), Step(1));
        to(Reply::Values { step, snapshot, have: None, slices: Vec::new(), clients: Vec::new() })
    };
    let settled = || to(Reply::Settled { sequence: Sequence(0), outcome: Outcome::Void });
    let recall = || to(Reply::Recall { residuals: Vec::new() });
    let unconfirmed = || {
        let mut gate = Gate::default();
        gate.shut();
        gate.number();
        gate
    };
    let mut gate = unconfirmed();
    assert!(matches!(gate.pass(settled(), |_| true), Passed::Waits));
    assert!(
        matches!(gate.pass(values(), |_| true), Passed::Begun(to, Reply::Values { .. }) if to == session)
    );
    assert!(matches!(gate.pass(values(), |_| true), Passed::Waits), "in the middle of others");
    let mut shown = Vec::new();
    gate.confirmed(1, &mut shown);
    let [Released::Effect(first), Released::End(ended), Released::Effect(last)] = shown.as_slice() else {
        panic!("{shown:?}");
    };
    assert_eq!(*ended, session);
    let is_settled = matches!(first, Effect::Reply { reply: Reply::Settled { .. }, .. });
    assert!(is_settled && matches!(last, Effect::Reply { reply: Reply::Values { .. }, .. }));
    gate.number();
    assert!(matches!(gate.pass(values(), |_| true), Passed::Begun(..)), "what was shown bars nothing");

    let mut gate = unconfirmed();
    assert!(matches!(gate.pass(recall(), |_| true), Passed::Waits));
    assert!(matches!(gate.pass(values(), |_| true), Passed::Waits), "what it says is to be known before");
    assert!(
        matches!(unconfirmed().pass(values(), |to| to != session), Passed::Waits),
        "they are not to be begun"
    );
}
