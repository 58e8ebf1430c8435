//! Lets servers join with copies of all kinds, and reads where the shards are put.

use windlass_common::ids::{Incarnation, RunId, Sequence, Term, Version, WorkerId};
use windlass_common::plan::{Membership, Plan, StalenessScaling};

use super::*;
use crate::coordinator::Event;
use crate::ledger::Row;
use crate::sample;

const SERVERS: u32 = 3;

fn plan() -> Plan {
    let mut plan = sample::plan(
        Mode::Async { scaling: StalenessScaling::None, compensation: None, in_flight: 1 },
        SERVERS,
        2,
    );
    plan.cluster.replicas = 1;
    plan.check().unwrap();
    plan
}

/// Of a run whose last seats were those of lineage 4, with each worker's last life known as it is in the log.
struct Joining {
    coordinator: Coordinator,
    now: Time,
    effects: Vec<Effect>,
}

impl Joining {
    fn new() -> Self {
        Self::of(plan())
    }

    fn of(plan: Plan) -> Self {
        let placed =
            Placed { lineage: Lineage(4), seats: plan.cluster.seats(), from: vec![None; 3], drained: vec![] };
        let lives = RunState {
            term: Term(3),
            incarnations: (0..2).map(|w| (WorkerId(w), Incarnation(1))).collect(),
            ..RunState::default()
        };
        let restore = Restore::from_copies(placed, lives, 1);
        let now = Time(1_000_000_000);
        let coordinator = Coordinator::restored(plan, RunId(7), Lineage(5), restore, now);
        Self { coordinator, now, effects: Vec::new() }
    }

    fn tell(&mut self, event: Event) {
        self.coordinator.handle(self.now, event, &mut self.effects);
    }

    fn server(&mut self, session: u64, server: u32, copies: Vec<Copy>) {
        let (session, address) = (SessionId(session), format!("host{server}:7171"));
        self.tell(Event::ServerJoined { session, server: ServerId(server), address, copies });
    }

    fn seconds(&mut self, seconds: u64) {
        self.now = self.now.plus_seconds(seconds);
        self.tell(Event::Tick);
    }

    fn placed(&self) -> Option<&Placed> {
        self.effects.iter().find_map(|e| if let Effect::Placed(placed) = e { Some(placed) } else { None })
    }

    fn gives_up(&self) -> bool {
        let gives_up = |e: &Effect| matches!(e, Effect::RollBack { keeps: false, .. } | Effect::End(_));
        self.effects.iter().any(gives_up)
    }
}

fn copy(shard: u32, lineage: u32, is_primary: bool) -> Copy {
    let row = |worker| Row {
        worker: WorkerId(worker),
        member: true,
        incarnation: Incarnation(4),
        sequence: Sequence(3),
        step: Step(3),
        clock: Step(3),
        outcomes: Vec::new(),
    };
    let workers = (0..2).map(row).collect();
    let state = ShardState { version: Version(6), workers, ..ShardState::default() };
    let (shard, lineage) = (ShardId(shard), Lineage(lineage));
    Copy { shard, lineage, is_primary, state, concluded: false, closed: Vec::new() }
}

/// What a server has of a run in which all were full: its own shard, and that of the server before.
fn all(server: u32) -> Vec<Copy> {
    vec![copy(server, 4, true), copy((server + SERVERS - 1) % SERVERS, 4, false)]
}

fn seats(primary: u32, standby: Option<u32>) -> Seats {
    Seats { primary: ServerId(primary), standby: standby.map(ServerId) }
}

#[test]
fn where_all_are_there_each_primary_goes_on_at_once() {
    let mut run = Joining::new();
    for server in 0..SERVERS {
        assert_eq!(run.placed(), None);
        run.server(100 + u64::from(server), server, all(server));
    }
    let placed = run.placed().unwrap();
    assert_eq!(placed.seats, plan().cluster.seats());
    assert_eq!(placed.from, vec![Some(Lineage(4)); 3]);
    let position = |is: fn(&Effect) -> bool| run.effects.iter().position(is).unwrap();
    let decided = position(|e| matches!(e, Effect::Placed(_)));
    let told = position(|e| matches!(e, Effect::Send { body: Body::Welcome(_), .. }));
    assert!(decided < told, "it is written down before anybody is told");
}

#[test]
fn a_standby_is_promoted_when_its_primary_stays_away() {
    let mut run = Joining::new();
    run.server(100, 0, all(0));
    run.server(102, 2, all(2));
    assert_eq!(run.placed(), None, "the primary of shard 1 may be about to come");
    run.seconds(SEATED_WITHIN_S);
    let placed = run.placed().unwrap();
    let expected = [seats(0, Some(2)), seats(2, Some(0)), seats(2, Some(0))];
    assert_eq!(placed.seats, expected);
    assert_eq!(run.coordinator.primary(ShardId(1)), ServerId(2));
}

#[test]
fn a_copy_of_who_was_deposed_is_not_taken() {
    let mut run = Joining::new();
    run.server(100, 0, all(0));
    let mut old = all(1);
    old.iter_mut().for_each(|copy| copy.lineage = Lineage(3));
    run.server(101, 1, old);
    run.seconds(SEATED_WITHIN_S);
    assert_eq!(run.placed(), None, "shard 1 may be on the server that is missing");
    assert!(!run.gives_up());
    run.server(102, 2, Vec::new());
    assert!(run.gives_up(), "nobody has all of shard 1 and 2: {:?}", run.effects);
}

#[test]
fn a_server_that_was_not_told_of_its_seat_still_has_the_copy_that_it_was_chosen_for() {
    let placed = Placed {
        lineage: Lineage(4),
        seats: plan().cluster.seats(),
        from: vec![Some(Lineage(2)), Some(Lineage(3)), Some(Lineage(3))],
        drained: vec![],
    };
    let is_sound = |server, shard, lineage| placed.is_sound(ServerId(server), &copy(shard, lineage, true));
    assert!(is_sound(0, 0, 2) && is_sound(1, 1, 3) && is_sound(2, 0, 4));
    assert!(!is_sound(1, 0, 2), "another server was not chosen");
    assert!(!is_sound(0, 0, 3), "another copy was not chosen");
}

#[test]
fn who_joins_before_the_copies_do_has_a_life_that_none_of_them_knows() {
    let mut run = Joining::new();
    let session = SessionId(1);
    run.tell(Event::WorkerJoined { session, worker: WorkerId(0), process: 1 });
    for server in 0..SERVERS {
        run.server(100 + u64::from(server), server, all(server));
    }
    // The shards have heard of life 4, which is in no log: a shard answers only for one that is new to it.
    assert_eq!(run.coordinator.incarnation(WorkerId(0)), Incarnation(5));
    let is_told = |e: &Effect| match e {
        Effect::Order { order: Order::Membership { members, .. }, .. } => {
            members.iter().any(|m| m.worker == WorkerId(0) && m.incarnation == Incarnation(5))
        }
        _ => false,
    };
    assert_eq!(run.effects.iter().filter(|e| is_told(e)).count(), SERVERS as usize);
    run.tell(Event::WorkerJoined { session: SessionId(2), worker: WorkerId(1), process: 1 });
    assert_eq!(run.coordinator.incarnation(WorkerId(1)), Incarnation(5));
}

#[test]
fn a_server_that_comes_back_before_its_end_is_noticed_gives_up_nothing() {
    let mut run = Joining::new();
    run.server(100, 0, all(0));
    run.server(101, 1, all(1));
    run.server(201, 1, Vec::new());
    assert!(!run.gives_up(), "{:?}", run.effects);
    run.tell(Event::Lost { session: SessionId(101), why: "it is gone".into(), silent: false });
    run.server(102, 2, all(2));
    let placed = run.placed().expect("all are there");
    assert_eq!(
        placed.seats[1],
        seats(2, Some(0)),
        "the standby is promoted: the primary has nothing any more"
    );
    assert!(!run.gives_up(), "{:?}", run.effects);
}

#[test]
fn who_went_with_a_server_is_settled_where_workers_come_and_go() {
    let mut elastic = plan();
    elastic.cluster.membership = Membership::Elastic { workers_max: 2 };
    let mut run = Joining::of(elastic);
    run.tell(Event::WorkerJoined { session: SessionId(1), worker: WorkerId(0), process: 1 });
    for server in 0..SERVERS {
        run.server(100 + u64::from(server), server, all(server));
    }
    // Worker 1 may have pushed to some shards only, and never come back: all are told of a life that nobody has.
    let is_told = |e: &Effect| match e {
        Effect::Order { order: Order::Membership { departed, .. }, .. } => {
            departed.iter().any(|m| m.worker == WorkerId(1) && m.incarnation == Incarnation(5))
        }
        _ => false,
    };
    assert_eq!(run.effects.iter().filter(|e| is_told(e)).count(), SERVERS as usize);
}
