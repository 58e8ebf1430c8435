//! Brings a coordinator into each situation and reads what it says.

use windlass_common::ids::{ClientId, Incarnation, RunId, Sequence, Step, Version};
use windlass_common::plan::{Clients, Fedavg, Hosting, LocalWork, Mode, Plan, Sampler, Weights};
use windlass_common::wire::{Entry, Order, Report, Resume, Standing, Wait, WorkerReport};

use super::*;
use crate::coordinator::{Effect, Event};
use crate::{SessionId, Time, sample};

const FIXED: Membership = Membership::Fixed;
const ELASTIC: Membership = Membership::Elastic { workers_max: 6 };
const SERVERS: u32 = 2;
const OBSERVER: SessionId = SessionId(900);

fn plan(membership: Membership, mode: Mode) -> Plan {
    let clients = if membership == FIXED { 3 } else { 6 };
    let mut plan = sample::plan(mode, SERVERS, 3);
    plan.cluster.membership = membership;
    plan.clients = Clients::one_per_worker(clients);
    plan.check().unwrap();
    plan
}

fn fedavg(quorum: u32) -> Mode {
    Mode::Fedavg(Fedavg {
        rounds: 100,
        cohort: 3,
        asked: 3,
        quorum,
        deadline_ms: None,
        sampler: Sampler::RoundRobin,
        weights: Weights::Examples,
        hosting: Hosting::Fixed,
        local: LocalWork::default(),
    })
}

/// A coordinator with shards that admit and settle at once. Worker n has session n, server n session 100 + n.
struct Run {
    coordinator: Coordinator,
    now: Time,
}

impl Run {
    fn gathering(plan: Plan) -> Self {
        let now = Time(1_000_000_000);
        let mut run = Self { coordinator: Coordinator::new(plan, RunId(7), now), now };
        for server in 0..SERVERS {
            let (session, address) = (SessionId(u64::from(100 + server)), format!("host{server}:7171"));
            run.tell(Event::ServerJoined { session, server: ServerId(server), address, copies: Vec::new() });
        }
        run.tell(Event::ObserverJoined { session: OBSERVER });
        run
    }

    /// All three have joined and a second has passed.
    fn training(plan: Plan) -> Self {
        let mut run = Self::gathering(plan);
        for worker in 0..3 {
            run.join(worker);
        }
        run.live(1, &[0, 1, 2]);
        assert_eq!(run.coordinator.status().phase, Phase::Training);
        run
    }

    fn join(&mut self, worker: u32) {
        let session = SessionId(worker.into());
        self.tell(Event::WorkerJoined { session, worker: WorkerId(worker), process: 1000 + worker });
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            self.coordinator.handle(self.now, event, &mut effects);
            let orders = effects.into_iter().filter_map(|effect| match effect {
                Effect::Order { shard, order } => Some((shard, order)),
                _ => None,
            });
            for (shard, order) in orders {
                let report = |report| Event::Report { shard, report };
                match order {
                    Order::Membership { members, departed, .. } => {
                        events.extend(members.into_iter().chain(departed).map(|m| {
                            let (worker, incarnation) = (m.worker, m.incarnation);
                            let next = Resume::default();
                            report(Report::Admitted { worker, incarnation, next, slowest: None })
                        }));
                    }
                    Order::Settle { worker, incarnation, .. } => {
                        events.push(report(Report::Settled { worker, incarnation, void: 0 }))
                    }
                    _ => {}
                }
            }
        }
    }

    /// So many seconds pass in which these workers say that they live, and both shards how they stand.
    fn live(&mut self, seconds: u64, workers: &[u32]) {
        self.live_with(seconds, workers, &Standing::default());
    }

    fn live_with(&mut self, seconds: u64, workers: &[u32], standing: &Standing) {
        for _ in 0..seconds {
            self.now = self.now.plus_seconds(1);
            for &worker in workers {
                let session = SessionId(worker.into());
                self.tell(Event::Heartbeat { session, step: Step(4), bytes_up: 1, bytes_down: 1 });
            }
            for shard in 0..SERVERS {
                let report = Report::Standing(standing.clone());
                self.tell(Event::Report { shard: ShardId(shard), report });
            }
            self.tell(Event::Tick);
        }
    }

    fn kill(&mut self, worker: u32) {
        let how = "its process was ended by SIGKILL".to_owned();
        let process = 1000 + worker;
        self.tell(Event::Exited { session: OBSERVER, worker: WorkerId(worker), process, how });
    }

    /// The push of its client for the first round arrives on every shard.
    fn push(&mut self, worker: u32) {
        let entry = Entry { client: ClientId(worker), worker: WorkerId(worker), sequence: Sequence(0) };
        for shard in 0..SERVERS {
            let report = Report::Arrived { entry, incarnation: Incarnation(1), step: Step(0) };
            self.tell(Event::Report { shard: ShardId(shard), report });
        }
    }

    fn waiting(&self) -> String {
        self.coordinator.status().waiting
    }

    fn advice(&self) -> Vec<String> {
        self.coordinator.status().advice
    }
}

/// These wait for step 4, for which the pushes of the others are missing.
fn waits(waiters: &[u32], missing: &[u32]) -> Standing {
    let missing: Vec<WorkerId> = missing.iter().copied().map(WorkerId).collect();
    let wait = |&w: &u32| (WorkerId(w), Step(5), Wait::Pushes { step: Step(4), missing: missing.clone() });
    let blocked: Vec<_> = waiters.iter().map(wait).collect();
    Standing {
        version: Version(4),
        open: Step(4),
        parked: waiters.len() as u32,
        blocked,
        ..Standing::default()
    }
}

#[test]
fn a_healthy_run_gives_no_advice() {
    for mode in [Mode::Sync { backup: 0 }, fedavg(2)] {
        for membership in [FIXED, ELASTIC] {
            let mut run = Run::gathering(plan(membership, mode.clone()));
            run.live(4, &[]);
            assert_eq!(run.advice(), [""; 0], "a moment of gathering is usual");
            for worker in 0..3 {
                run.join(worker);
            }
            for _ in 0..5 {
                run.live(1, &[0, 1, 2]);
                run.live_with(1, &[0, 1, 2], &waits(&[0], &[1, 2]));
                assert_eq!((run.waiting(), run.advice()), (String::new(), Vec::new()));
            }
        }
    }
}

#[test]
fn who_is_missing_at_the_start_is_named() {
    let mut run = Run::gathering(plan(
        FIXED,
        Mode::Async { scaling: Default::default(), compensation: None, in_flight: 1 },
    ));
    run.join(1);
    run.live(10, &[]);
    assert_eq!(run.waiting(), "waiting for worker 0, worker 2 to join");
    let sentence = "The training has not begun after 10 s: waiting for worker 0, worker 2 to join. Start what is missing, or \
                    look at its log, within 50 s, or the run fails.";
    assert_eq!(run.advice(), [sentence]);

    let mut run = Run::gathering(plan(ELASTIC, Mode::Sync { backup: 0 }));
    run.join(5);
    run.live(10, &[]);
    assert_eq!(run.waiting(), "waiting for 2 more workers to join");
}

#[test]
fn a_dead_worker_is_waited_for_in_a_fixed_membership() {
    let mut run = Run::training(plan(FIXED, Mode::Sync { backup: 0 }));
    run.kill(1);
    run.live_with(3, &[0, 2], &waits(&[0, 2], &[1]));
    assert_eq!(run.waiting(), "waiting for worker 1 (its process was ended by SIGKILL) to come back");
    let sentence = "Worker 1 is dead (its process was ended by SIGKILL). Worker 0 and worker 2 wait for it. Start it again \
                    with the same identity within 27 s, or the run fails; windlass train restarts by itself what dies.";
    assert_eq!(run.advice(), [sentence]);
    run.join(1);
    run.live(1, &[0, 1, 2]);
    assert_eq!((run.waiting(), run.advice()), (String::new(), Vec::new()));
}

#[test]
fn a_silent_worker_is_waited_for_until_it_wakes_up() {
    let mut run = Run::training(plan(FIXED, Mode::Sync { backup: 0 }));
    run.live_with(7, &[0, 2], &waits(&[0, 2], &[1]));
    assert_eq!(run.waiting(), "waiting for worker 1 (nothing was heard of it for 5 s) to come back");
    let sentence = "Worker 1 has been silent for 7 s: its process is stopped or hangs, or it cannot be reached. Worker 0 and \
                    worker 2 wait for it. Wake it (kill -CONT), or end it and start it again with the same identity within \
                    28 s, or the run fails; windlass train restarts by itself what dies.";
    assert_eq!(run.advice(), [sentence]);
    run.live(1, &[0, 1, 2]);
    assert_eq!((run.waiting(), run.advice()), (String::new(), Vec::new()));
}

#[test]
fn an_elastic_run_goes_on_without_who_has_gone() {
    let mut run = Run::training(plan(ELASTIC, Mode::Sync { backup: 0 }));
    run.kill(1);
    run.live(6, &[0]);
    assert_eq!(run.waiting(), "");
    let dead = "Worker 1 is dead (its process was ended by SIGKILL) and takes no part any more; the training goes on without \
                it. To have it back, start it again.";
    let silent = "Worker 2 takes no part any more (nothing was heard of it for 5 s); the training goes on without it. If it \
                  wakes up it joins again; if it hangs, end it and start it again.";
    assert_eq!(run.advice(), [dead, silent]);
    run.tell(Event::WorkerLeft { session: SessionId(0), report: WorkerReport::default() });
    run.live(4, &[]);
    assert_eq!(run.waiting(), "no worker takes part; waiting for one to join");
    let nobody =
        "No worker takes part, and nothing is trained. Start one within 26 s, or the run fails.".to_owned();
    assert_eq!(run.advice().last(), Some(&nobody));
    assert!(!run.advice()[0].contains("goes on without it"), "{:?}", run.advice());
    run.join(4);
    run.live(1, &[4]);
    assert!(!run.advice().contains(&nobody));
}

#[test]
fn who_left_of_its_own_will_is_no_trouble() {
    let mut run = Run::training(plan(
        ELASTIC,
        Mode::Async { scaling: Default::default(), compensation: None, in_flight: 1 },
    ));
    run.tell(Event::WorkerLeft { session: SessionId(2), report: WorkerReport::default() });
    run.live(3, &[0, 1]);
    assert_eq!((run.waiting(), run.advice()), (String::new(), Vec::new()));
}

#[test]
fn a_worker_that_lives_and_holds_others_up_is_named_when_that_is_unusual() {
    let mut run = Run::training(plan(FIXED, Mode::Sync { backup: 0 }));
    // Five steps in a second: three seconds are unusual.
    run.live_with(3, &[0, 1, 2], &waits(&[0, 2], &[1]));
    assert_eq!(run.advice(), [""; 0]);
    run.live_with(1, &[0, 1, 2], &waits(&[0, 2], &[1]));
    let sentence = "Worker 0 and worker 2 wait for worker 1 since 3 s. It lives and is at step 4, so it computes slowly or \
                    hangs: look at its log. It is given up when it has made no step for 600 s.";
    assert_eq!(run.advice(), [sentence]);

    // Five steps in a hundred seconds: ten are nothing.
    let mut slow = Run::training(plan(FIXED, Mode::Sync { backup: 0 }));
    slow.live(100, &[0, 1, 2]);
    slow.live_with(11, &[0, 1, 2], &waits(&[0, 2], &[1]));
    assert_eq!(slow.advice(), [""; 0]);
    slow.live_with(60, &[0, 1, 2], &waits(&[0, 2], &[1]));
    assert!(slow.advice()[0].starts_with("Worker 0 and worker 2 wait for worker 1 since 70 s."));
}

#[test]
fn a_silent_shard_and_a_long_queue_are_named() {
    let mut run = Run::training(plan(
        FIXED,
        Mode::Async { scaling: Default::default(), compensation: None, in_flight: 1 },
    ));
    for _ in 0..4 {
        run.now = run.now.plus_seconds(1);
        let report = Report::Standing(Standing { queue: 200, ..Standing::default() });
        run.tell(Event::Report { shard: ShardId(0), report });
        run.tell(Event::Tick);
    }
    let silent = "Shard 1 has not been heard of for 4 s: look whether server 1 at host1:7171 is stopped, overloaded or cut \
                  off. The run cannot go on without it.";
    let queue = "200 requests wait for shard 0: its server is slower than the workers. If it stays so, take more servers or \
                 shards, or fewer workers, in the next run.";
    assert_eq!(run.advice(), [silent, queue]);
}

#[test]
fn rounds_go_on_without_a_lost_worker_where_a_quorum_is_enough() {
    let mut run = Run::training(plan(FIXED, fedavg(2)));
    run.kill(1);
    // The two others train, and those that are done wait for who is not, too.
    for standing in [waits(&[], &[]), waits(&[0], &[1, 2])] {
        run.live_with(3, &[0, 2], &standing);
        assert_eq!(run.waiting(), "");
        assert!(run.advice()[0].contains("The rounds go on without its clients. Start it again"));
    }
    let closed = run.coordinator.status().rounds;
    run.push(0);
    assert_eq!(run.waiting(), "");
    run.push(2);
    assert_eq!(run.coordinator.status().rounds, closed + 1, "two are a quorum");
}

#[test]
fn a_round_without_a_quorum_waits_for_the_lost() {
    let mut run = Run::training(plan(FIXED, fedavg(2)));
    run.kill(1);
    run.kill(2);
    assert_eq!(run.waiting(), "", "worker 0 trains its client");
    run.push(0);
    run.live_with(3, &[0], &waits(&[0], &[1, 2]));
    let why = "its process was ended by SIGKILL";
    assert_eq!(run.waiting(), format!("waiting for worker 1 ({why}), worker 2 ({why}) to come back"));
    let sentence = format!(
        "Worker 1 is dead ({why}). Worker 0 waits for it. The open round has no quorum without its clients, and is abandoned \
         in 27 s. Start it again with the same identity."
    );
    assert_eq!(run.advice()[0], sentence);
    run.join(2);
    run.live(1, &[0, 2]);
    assert_eq!(run.waiting(), "", "worker 2 makes the quorum");
    assert!(run.advice()[0].contains("The rounds go on without its clients."));
    run.kill(2);
    run.kill(0);
    assert!(run.waiting().starts_with("waiting for worker 0 ("), "{}", run.waiting());
    assert!(run.advice()[0].contains("or the run fails"), "nobody is left to go on");
}

#[test]
fn a_round_that_needs_everybody_waits_for_the_lost() {
    let mut run = Run::training(plan(FIXED, fedavg(3)));
    run.kill(1);
    run.live(1, &[0, 2]);
    assert_eq!(run.waiting(), "waiting for worker 1 (its process was ended by SIGKILL) to come back");
    assert!(run.advice()[0].contains("within 29 s, or the run fails"));
}
