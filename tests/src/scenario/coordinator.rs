//! Plays commands against a coordinator, with shards that answer at once what a shard would answer.

use std::collections::BTreeMap;

use windlass_common::ids::{
    ClientId, Examples, Incarnation, Lineage, RunId, Sequence, ServerId, ShardId, Step, Term, Version,
    WorkerId,
};
use windlass_common::wire::{
    Body, Entry, Order, Outcome, Record, Report, Resume, Standing, Task, Wait, WorkerReport,
};
use windlass_ps_core::coordinator::{Complete, Coordinator, Effect, Event, Restore, RunState};
use windlass_ps_core::{SessionId, Time};

use super::command::{self, Command};
use super::shards::{plan, seconds};
use super::{Stage, words};

#[derive(Debug)]
pub(super) struct Played {
    coordinator: Coordinator,
    shards: u32,
    now: Time,
    /// What each session is called: `w0#2` is the second that worker 0 opened.
    sessions: Vec<String>,
    /// Whether the shards answer the orders that ask for an answer.
    answers: bool,
    /// The incarnations that each shard knows.
    known: BTreeMap<(ShardId, WorkerId), Incarnation>,
    /// What each shard would take next of a worker; else the first push.
    next: BTreeMap<(ShardId, WorkerId), Resume>,
}

impl Played {
    pub(super) fn open(command: &Command) -> Result<Self, String> {
        let plan = plan(command, command.or("servers", 1)?, command.or("shards_per_server", 1)?)?;
        let now = Time(1_000_000_000);
        let restore = match command.find("restored_at")? {
            Some(open) => {
                let (term, incarnations) = (Term(7), BTreeMap::from([(WorkerId(0), Incarnation(4))]));
                let state = RunState {
                    term,
                    incarnations,
                    open: Step(open),
                    rounds: open,
                    concluded: command.has("concluded"),
                    ..RunState::default()
                };
                Some(Restore {
                    placed: None,
                    checkpoint: Some(2),
                    at_us: 0,
                    members: Default::default(),
                    slowest: Step(open),
                    next: 3,
                    state,
                })
            }
            None => None,
        };
        let run = RunId(0xa);
        Ok(Self {
            shards: plan.cluster.shards(),
            coordinator: match restore {
                Some(restore) => Coordinator::restored(plan, run, Lineage(1), restore, now),
                None => Coordinator::new(plan, run, now),
            },
            now,
            sessions: Vec::new(),
            answers: command.or("answers", true)?,
            known: BTreeMap::new(),
            next: BTreeMap::new(),
        })
    }

    /// A new session of this worker, server or observer.
    fn open_session(&mut self, who: &str) -> SessionId {
        let before = self.sessions.iter().filter(|s| s.split('#').next() == Some(who)).count();
        self.sessions.push(format!("{who}#{}", before + 1));
        SessionId(self.sessions.len() as u64 - 1)
    }

    /// The newest session of `w0`, or the one meant by `w0#1`.
    fn session(&self, who: &str) -> Result<SessionId, String> {
        let at = self.sessions.iter().rposition(|s| s == who || s.split('#').next() == Some(who));
        at.map(|at| SessionId(at as u64)).ok_or_else(|| format!("{who} has not joined"))
    }

    fn event(&mut self, command: &Command) -> Result<Event, String> {
        let first = || command.words.first().cloned().ok_or_else(|| "somebody must be named".to_owned());
        let shard = || -> Result<ShardId, String> { Ok(ShardId(command.need("shard")?)) };
        let rest = || command.words[1..].join(" ");
        let incarnation =
            || -> Result<Incarnation, String> { Ok(Incarnation(command.or("incarnation", 1)?)) };
        Ok(match command.name.as_str() {
            "server" => {
                let who = first()?;
                let number = who.strip_prefix('s').and_then(|n| n.parse().ok()).ok_or("a server is s0")?;
                let address = command.or("at", format!("host{number}:7100"))?;
                let (session, server, copies) = (self.open_session(&who), ServerId(number), Vec::new());
                Event::ServerJoined { session, server, address, copies }
            }
            "worker" => {
                let who = first()?;
                let (worker, process) = (command::worker(&who)?, command.or("process", 0)?);
                Event::WorkerJoined { worker, session: self.open_session(&who), process }
            }
            "observer" => Event::ObserverJoined { session: self.open_session(&first()?) },
            "leave" => {
                let report = WorkerReport { finished: command.has("finished"), ..WorkerReport::default() };
                Event::WorkerLeft { session: self.session(&first()?)?, report }
            }
            "lost" => Event::Lost { session: self.session(&first()?)?, why: rest(), silent: false },
            "silent" => Event::Lost { session: self.session(&first()?)?, why: rest(), silent: true },
            "heartbeat" => {
                let step = Step(command.or("step", 0)?);
                Event::Heartbeat { session: self.session(&first()?)?, step, bytes_up: 0, bytes_down: 0 }
            }
            "exited" => {
                let session = self.session(&first()?)?;
                let (worker, process) = (command::worker(&command.words[1])?, command.need("process")?);
                Event::Exited { session, worker, process, how: "its process ended".into() }
            }
            "abort" => Event::Abort { session: None, reason: command.words.join(" ") },
            "stored" => Event::Stored(Ok(())),
            "not-stored" => Event::Stored(Err(command.words.join(" "))),
            "admitted" => {
                let (worker, incarnation, next) = (command.worker()?, incarnation()?, command.next()?);
                let slowest = command.find("slowest")?.map(Step);
                let report = Report::Admitted { worker, incarnation, next, slowest };
                Event::Report { shard: shard()?, report }
            }
            "settled" => {
                let (worker, incarnation) = (command.worker()?, incarnation()?);
                Event::Report { shard: shard()?, report: Report::Settled { worker, incarnation, void: 0 } }
            }
            "arrived" => {
                let Task { client, worker } = command::task(&first()?)?;
                let entry = Entry { client, worker, sequence: Sequence(command.or("seq", 0)?) };
                let newest = self.coordinator.incarnation(worker);
                let incarnation = Incarnation(command.or("incarnation", newest.0)?);
                let step = Step(command.need("step")?);
                Event::Report { shard: shard()?, report: Report::Arrived { entry, incarnation, step } }
            }
            "applied" => {
                let (worker, examples) = (command.worker()?, Examples(command.need("examples")?));
                let record = Record {
                    number: 1,
                    term: Term(0),
                    at_us: 0,
                    worker,
                    incarnation: self.coordinator.incarnation(worker),
                    sequence: Sequence(0),
                    step: Step(0),
                    base: Version(0),
                    client: ClientId(worker.0),
                    examples: 1,
                    work: examples.0,
                    examples_applied: examples,
                    loss: 0.0,
                    outcome: Outcome::Applied { version: Version(1), staleness: 0 },
                };
                Event::Report { shard: shard()?, report: Report::Records(vec![record]) }
            }
            "dropped" => Event::Dropped {
                session: self.session(&first()?)?,
                client: ClientId(command.need("client")?),
                step: Step(command.need("step")?),
            },
            "standing" => {
                let (worker, step) = (command::worker(&first()?)?, Step(command.need("step")?));
                let missing = vec![command::worker(&command.need::<String>("missing")?)?];
                let blocked = vec![(worker, step, Wait::Pushes { step, missing })];
                let standing = Standing { parked: 1, blocked, ..Standing::default() };
                Event::Report { shard: ShardId(0), report: Report::Standing(standing) }
            }
            "conclude" => Event::Conclude { session: self.session(&first()?)? },
            "checkpoint" => Event::Checkpoint { session: self.session(&first()?)? },
            "shut-down" => Event::ShutDown { reason: command.words.join(" ") },
            "paused" => {
                let checkpoint = command.need("checkpoint")?;
                let next = command::before(&command.or("before", String::new())?)?;
                Event::Report { shard: shard()?, report: Report::Paused { checkpoint, next } }
            }
            "taken" => {
                let checkpoint = command.need("checkpoint")?;
                Event::Report { shard: shard()?, report: Report::Taken { checkpoint } }
            }
            "kept" => {
                let (checkpoint, shard) = (command.need("checkpoint")?, shard()?);
                let part = Ok(format!("part{}", shard.0));
                Event::Report { shard, report: Report::Kept { checkpoint, part } }
            }
            "not-kept" => {
                let (checkpoint, part) = (command.need("checkpoint")?, Err(command.words.join(" ")));
                Event::Report { shard: shard()?, report: Report::Kept { checkpoint, part } }
            }
            "manifest" => {
                let number = command.need("checkpoint")?;
                let why = command.words.join(" ");
                let kept = if why.is_empty() { Ok(()) } else { Err(why) };
                Event::CheckpointKept { number, kept }
            }
            "final" => {
                let (version, examples) = (Version(1), Examples(1));
                let report = Report::Final { version, examples, partial: 0, payload_bytes: 8 };
                Event::Report { shard: shard()?, report }
            }
            "tick" => {
                self.now = self.now.plus_seconds(seconds(command)?);
                Event::Tick
            }
            other => return Err(format!("a coordinator knows no {other:?}")),
        })
    }

    /// Lets the coordinator take in an event and the shards answer, and puts what is done into words.
    fn handle(&mut self, event: Event, lines: &mut Vec<String>) {
        let mut effects = Vec::new();
        self.coordinator.handle(self.now, event, &mut effects);
        let mut reports = Vec::new();
        let mut orders: Vec<(ShardId, Order)> = Vec::new();
        for effect in effects {
            if let Effect::Order { shard, order } = effect {
                reports.extend(self.answer(shard, &order));
                orders.push((shard, order));
                if orders.len() == self.shards as usize {
                    lines.extend(self.orders(std::mem::take(&mut orders)));
                }
            } else {
                lines.extend(self.orders(std::mem::take(&mut orders)));
                lines.extend(self.words(effect));
            }
        }
        lines.extend(self.orders(orders));
        reports
            .into_iter()
            .filter(|_| self.answers)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|report| self.handle(report, lines));
    }

    /// An order that goes to every shard takes one line.
    fn orders(&self, orders: Vec<(ShardId, Order)>) -> Vec<String> {
        match &orders[..] {
            [(_, first), ..]
                if orders.len() == self.shards as usize && orders.iter().all(|(_, o)| o == first) =>
            {
                vec![format!("order {}", words::order(first))]
            }
            _ => orders
                .iter()
                .map(|(shard, order)| format!("order {shard}: {}", words::order(order)))
                .collect(),
        }
    }

    fn answer(&mut self, shard: ShardId, order: &Order) -> Vec<Event> {
        let reports = match order {
            Order::Membership { members, departed, .. } => {
                let fresh = |m: &&windlass_common::wire::Member| {
                    self.known.insert((shard, m.worker), m.incarnation) != Some(m.incarnation)
                };
                let fresh: Vec<_> = members.iter().chain(departed).filter(fresh).copied().collect();
                let next = |worker| self.next.get(&(shard, worker)).copied().unwrap_or_default();
                fresh
                    .into_iter()
                    .map(|m| Report::Admitted {
                        worker: m.worker,
                        incarnation: m.incarnation,
                        next: next(m.worker),
                        slowest: None,
                    })
                    .collect()
            }
            Order::Settle { worker, incarnation, .. } => {
                vec![Report::Settled { worker: *worker, incarnation: *incarnation, void: 0 }]
            }
            Order::Pause { checkpoint } => vec![Report::Paused { checkpoint: *checkpoint, next: Vec::new() }],
            Order::Cut { checkpoint, .. } => vec![Report::Taken { checkpoint: *checkpoint }],
            Order::Start
            | Order::Open { .. }
            | Order::Close { .. }
            | Order::Conclude
            | Order::Finalize
            | Order::Logged { .. }
            | Order::GoOn { .. } => Vec::new(),
        };
        reports.into_iter().map(|report| Event::Report { shard, report }).collect()
    }

    fn words(&self, effect: Effect) -> Option<String> {
        Some(match effect {
            Effect::Order { .. } | Effect::Started => return None,
            // The orders to the shards say the same.
            Effect::Opened { .. } | Effect::Dealt { .. } | Effect::Closed { .. } | Effect::Term { .. } => {
                return None;
            }
            Effect::Dropped { step, client } => format!("log c{} dropped out of round {step}", client.0),
            Effect::Send { session, body } => {
                let who = &self.sessions[session.0 as usize];
                match body {
                    Body::Welcome(welcome) if welcome.servers.is_empty() => format!("welcome {who}"),
                    Body::Welcome(welcome) => {
                        format!(
                            "welcome {who} {} servers={}",
                            words::next(welcome.next),
                            welcome.servers.join(",")
                        )
                    }
                    Body::NotYet { missing } => format!("not yet {who}: {missing}"),
                    Body::Refused(reason) => format!("refused {who}: {reason}"),
                    Body::Stop(stop) => format!("stop {who}: {}", words::stop(&stop)),
                    Body::Status(status) => {
                        let waiting = if status.waiting.is_empty() {
                            String::new()
                        } else {
                            format!(", {}", status.waiting)
                        };
                        format!("status {who}: {:?}{waiting}", status.phase).to_lowercase()
                    }
                    other => format!("send {who} {other:?}"),
                }
            }
            Effect::Membership { worker, what } => format!("log {} {what}", words::name(worker)),
            // The order to the shards says the same.
            Effect::CheckpointCut { .. } => return None,
            Effect::KeepCheckpoint(complete) => {
                let Complete { number, parts, state } = *complete;
                let RunState { term, open, rounds, .. } = state;
                format!(
                    "keep checkpoint={number} term={term} open={open} rounds={rounds} parts={}",
                    parts.join(",")
                )
            }
            Effect::Checkpointed { number, failure: None } => format!("checkpoint {number} is complete"),
            Effect::Checkpointed { failure: Some(why), .. } => format!("no checkpoint: {why}"),
            Effect::RollBack { why, keeps: false } => format!("roll back: {why}"),
            Effect::RollBack { why, keeps: true } => format!("go on with the copies: {why}"),
            Effect::Placed(placed) => words::placed(&placed),
            Effect::Replicated { shard, standby } => format!("{standby} has all of {shard}"),
            Effect::Store => "store".into(),
            Effect::End(stop) => format!("end {}", words::stop(&stop)),
        })
    }
}

impl Stage for Played {
    fn play(&mut self, command: &Command) -> Result<Vec<String>, String> {
        let mut lines = Vec::new();
        if command.name == "shard-has" {
            // What a shard will say it would take next of a worker.
            self.next.insert((ShardId(command.need("shard")?), command.worker()?), command.next()?);
            return Ok(lines);
        }
        let event = self.event(command)?;
        self.handle(event, &mut lines);
        Ok(lines)
    }
}
