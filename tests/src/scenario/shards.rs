//! Plays commands against the shards of a run, without a coordinator.
//!
//! A command goes to every shard unless `to=1` names one. What a worker sends is well formed unless a setting spoils it.

use std::collections::BTreeMap;

use windlass_common::ids::{
    ClientId, Incarnation, Lineage, RunId, Sequence, ShardId, Step, Term, Version, WorkerId,
};
use windlass_common::layout::{Initial, Variable};
use windlass_common::plan::{
    Checkpoints, Clients, Cluster, Codecs, Data, Every, FORMAT, Heterogeneity, Membership, Model, Partition,
    Plan, Training,
};
use windlass_common::wire::{Codec, Entry, Member, Order, Outcome, Part, Pull, Push, Report, Task};
use windlass_ps_core::ledger::Row;
use windlass_ps_core::shard::{Effect, Event, Image, Reply, Request, Shard};
use windlass_ps_core::store::{SliceValues, Snapshot};
use windlass_ps_core::{SessionId, Time};

use super::command::{self, Command};
use super::{Stage, words};
use crate::cluster::constant;

const RUN: RunId = RunId(0xa);

/// Whose a session is: a worker in one incarnation, on one of its streams; or an observer.
type Stream = (Option<WorkerId>, Incarnation, u32);

#[derive(Debug)]
pub(super) struct Shards {
    plan: Plan,
    lineage: Lineage,
    /// What each shard has taken of the last checkpoint.
    images: Vec<Option<Image>>,
    shards: Vec<Shard<Vec<f32>>>,
    now: Time,
    term: Term,
    members: BTreeMap<WorkerId, Incarnation>,
    departed: BTreeMap<WorkerId, Incarnation>,
    /// The last incarnation of each worker, of those who have gone too.
    incarnations: BTreeMap<WorkerId, Incarnation>,
    streams: Vec<Stream>,
    /// The newest push of each client by each worker that waits to be closed.
    pushed: BTreeMap<Task, Sequence>,
}

/// A plan from settings, for shards and for a coordinator.
pub(super) fn plan(command: &Command, servers: u32, shards_per_server: u32) -> Result<Plan, String> {
    let lengths: Vec<u64> = match command.find::<String>("values")? {
        Some(list) => {
            let length = |n: &str| n.parse().map_err(|_| format!("values has {n:?}"));
            list.split(',').map(length).collect::<Result<_, _>>()?
        }
        None => vec![2; (servers * shards_per_server) as usize],
    };
    let workers = command.need("workers")?;
    let variable = |(i, &len): (usize, &u64)| Variable::new(format!("v{i}"), &[len], Initial::Zeros);
    let plan = Plan {
        format: FORMAT,
        name: "scenario".into(),
        seed: 1,
        mode: command.mode()?,
        cluster: Cluster {
            servers,
            shards_per_server,
            replicas: command.or("replicas", 0)?,
            workers,
            membership: match command.or("workers_max", 0)? {
                0 => Membership::Fixed,
                workers_max => Membership::Elastic { workers_max },
            },
            join_deadline_s: command.or("join_deadline", 10)?,
            rejoin_deadline_s: command.or("rejoin_deadline", 30)?,
            lease_s: command.or("lease", 3600)?,
            stall_deadline_s: command.or("stall_deadline", 86_400)?,
        },
        clients: Clients {
            count: command.or("clients", workers)?,
            partition: Partition::Iid,
            held_out: 0.0,
            feature_noise: 0.0,
            sizes: Vec::new(),
        },
        heterogeneity: Heterogeneity::default(),
        training: Training {
            batch: 4,
            passes: 1.0,
            compute_threads: 1,
            evaluate_every: command.or("evaluate", 1 << 40)?,
            overlap: true,
        },
        codecs: Codecs::default(),
        optimizer: command.optimizer()?,
        schedule: constant(command.or("rate", 0.5)?),
        checkpoints: Checkpoints { every: command.or("checkpoints", Every::Never)?, keep: 2 },
        data: Data {
            path: String::new(),
            label_column: String::new(),
            validation: 0,
            train_examples: command.or("target", 1000)?,
            fingerprint: "0".repeat(16),
        },
        model: Model {
            name: "scenario".into(),
            variables: lengths.iter().enumerate().map(variable).collect(),
        },
    };
    plan.check().map_err(|e| e.to_string())?;
    Ok(plan)
}

impl Shards {
    pub(super) fn open(command: &Command) -> Result<Self, String> {
        let count = command.or("shards", 1)?;
        let plan = plan(command, count, 1)?;
        let shard = |id| Shard::new(&plan, RUN, Lineage(0), ShardId(id)).map_err(|e| e.to_string());
        Ok(Self {
            shards: (0..count).map(shard).collect::<Result<_, _>>()?,
            images: vec![None; count as usize],
            lineage: Lineage(0),
            plan,
            now: Time(1_000_000_000),
            term: Term(0),
            members: BTreeMap::new(),
            departed: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            streams: Vec::new(),
            pushed: BTreeMap::new(),
        })
    }

    fn session(&mut self, stream: Stream) -> SessionId {
        let at = self.streams.iter().position(|s| *s == stream).unwrap_or_else(|| {
            self.streams.push(stream);
            self.streams.len() - 1
        });
        SessionId(at as u64)
    }

    /// How a session is called: the incarnation is named where it is not the newest, the stream where it is not the
    /// first.
    fn who(&self, session: SessionId) -> String {
        let (worker, incarnation, stream) = self.streams[session.0 as usize];
        let Some(worker) = worker else { return format!("observer{stream}") };
        let mut text = words::name(worker);
        if self.incarnations.get(&worker).is_some_and(|newest| *newest != incarnation) {
            text += &format!("@{incarnation}");
        }
        if stream != 1 {
            text += &format!(" on stream {stream}");
        }
        text
    }

    fn stream(&mut self, command: &Command) -> Result<(WorkerId, Incarnation, SessionId), String> {
        let worker = command.worker()?;
        let newest = self.incarnations.get(&worker).copied().unwrap_or(Incarnation(1));
        let incarnation = Incarnation(command.or("incarnation", newest.0)?);
        let session = self.session((Some(worker), incarnation, command.or("stream", 1)?));
        Ok((worker, incarnation, session))
    }

    fn request(&mut self, command: &Command, shard: usize) -> Result<Event<Vec<f32>>, String> {
        let (worker, incarnation, session) = self.stream(command)?;
        let newest = self.shards[shard].snapshot().version;
        let is_push = command.name == "push";
        let pull = if is_push { command.find("pull")? } else { Some(command.need("step")?) };
        let pull = pull.map(|step| -> Result<Pull, String> {
            let slices = match command.find(if is_push { "pull_slice" } else { "slice" })? {
                Some(slice) => vec![slice],
                None => Vec::new(),
            };
            Ok(Pull { step: Step(step), have: command.find("have")?.map(Version), slices, codec: Codec::F32 })
        });
        Ok(Event::Request(Request {
            session,
            run: if command.has("other-run") { RunId(0xb) } else { RUN },
            lineage: Lineage(command.or("lineage", self.lineage.0)?),
            term: self.term,
            worker,
            incarnation,
            push: is_push.then(|| self.push(command, shard, newest)).transpose()?,
            pull: pull.transpose()?,
        }))
    }

    fn push(&self, command: &Command, shard: usize, newest: Version) -> Result<(Push, Vec<f32>), String> {
        let shape = self.shards[shard].shape();
        let mut parts = shape.parts.clone();
        let mut floats = vec![command.or("value", 1.0)?; shape.values() as usize];
        let mut payload_bytes = shape.values() * 4;
        if command.has("without-last-slice") {
            let last = parts.pop().map_or(0, |part| part.values);
            floats.truncate(floats.len() - last as usize);
            payload_bytes -= last * 4;
        }
        if command.has("first-slice-twice") {
            parts.insert(0, parts[0]);
        }
        if command.has("slices-reversed") {
            parts.reverse();
        }
        let Part { slice, values } = parts.first().copied().unwrap_or(Part { slice: 0, values: 0 });
        if let Some(first) = parts.first_mut() {
            *first = Part { slice: command.or("slice", slice)?, values: command.or("values", values)? };
        }
        if let Some(count) = command.find("floats")? {
            floats.resize(count, 0.0);
        }
        let examples = command.or("examples", 4)?;
        let push = Push {
            sequence: Sequence(command.need("seq")?),
            step: Step(command.need("step")?),
            base: Version(command.or("base", newest.0)?),
            client: ClientId(command.or("client", command.worker()?.0)?),
            examples,
            work: command.or("work", examples.into())?,
            loss: 0.0,
            codec: Codec::F32,
            parts,
            payload_bytes: command.or("payload", payload_bytes)?,
        };
        Ok((push, floats))
    }

    /// All shards are made anew from what they have taken of the last checkpoint; whoever joins does so in another lineage.
    fn restore(&mut self) -> Result<(), String> {
        self.lineage = self.lineage.next();
        for (number, image) in (0..).zip(&self.images) {
            let image = image.clone().ok_or_else(|| format!("shard {number} has taken no checkpoint"))?;
            let shard = Shard::restored(&self.plan, RUN, self.lineage, ShardId(number), image);
            self.shards[number as usize] = shard.map_err(|e| e.to_string())?;
        }
        self.members.clear();
        self.departed.clear();
        self.pushed.clear();
        Ok(())
    }

    fn order(&mut self, command: &Command) -> Result<Order, String> {
        Ok(match command.name.as_str() {
            "join" | "gone" | "depart" => {
                for worker in command.workers()? {
                    if command.name == "gone" {
                        self.members.remove(&worker);
                        continue;
                    }
                    let incarnation = self.incarnations.entry(worker).or_insert(Incarnation(0));
                    *incarnation = incarnation.next();
                    let (to, from) = match command.name.as_str() {
                        "depart" => (&mut self.departed, &mut self.members),
                        _ => (&mut self.members, &mut self.departed),
                    };
                    from.remove(&worker);
                    to.insert(worker, *incarnation);
                }
                self.term = self.term.next();
                let member = |(&worker, &incarnation)| Member { worker, incarnation };
                let (members, departed) = (&self.members, &self.departed);
                Order::Membership {
                    term: self.term,
                    members: members.iter().map(member).collect(),
                    departed: departed.iter().map(member).collect(),
                }
            }
            "start" => Order::Start,
            "settle" => {
                let worker = command.worker()?;
                let incarnation = self.incarnations.get(&worker).copied().unwrap_or_default();
                Order::Settle {
                    worker,
                    incarnation,
                    next: command.next()?,
                    void_missing: command.has("void"),
                }
            }
            "close" => {
                let cohort: String = command.need("cohort")?;
                let entry = |Task { client, worker }| {
                    let sequence = self.pushed.get(&Task { client, worker }).copied().unwrap_or_default();
                    Entry { client, worker, sequence }
                };
                let cohort = command::tasks(&cohort)?.into_iter().map(entry).collect();
                Order::Close { step: Step(command.need("step")?), cohort }
            }
            "open" => {
                let tasks: String = command.need("tasks")?;
                Order::Open { step: Step(command.need("step")?), tasks: command::tasks(&tasks)? }
            }
            "conclude" => Order::Conclude,
            "finalize" => Order::Finalize,
            "pause" => Order::Pause { checkpoint: command.or("checkpoint", 1)? },
            "cut" => Order::Cut {
                checkpoint: command.or("checkpoint", 1)?,
                before: command::before(&command.or("before", String::new())?)?,
            },
            "go-on" => Order::GoOn { checkpoint: command.or("checkpoint", 1)? },
            other => return Err(format!("shards know no {other:?}")),
        })
    }

    /// Lets one shard take in an event, and puts what it does into words.
    fn handle(&mut self, shard: usize, event: Event<Vec<f32>>) -> Vec<String> {
        let pull = match &event {
            Event::Request(r) => r.pull.as_ref().map(|p| (r.session, p.step)),
            _ => None,
        };
        let mut effects = Vec::new();
        self.shards[shard].handle(self.now, event, &mut effects);
        let mut lines = Vec::new();
        let mut recorded = Vec::new();
        let mut answered = false;
        for effect in &effects {
            if let Effect::Image { image, .. } = effect {
                self.images[shard] = Some((**image).clone());
            }
            if let Effect::Report(Report::Arrived { entry, .. }) = effect {
                let Entry { client, worker, sequence } = *entry;
                self.pushed.insert(Task { client, worker }, sequence);
            }
            if let Effect::Record(record) = effect {
                recorded.push((record.worker, record.sequence));
            }
            if let Effect::Reply { session, reply } = effect {
                let is_answer =
                    matches!(reply, Reply::Values { .. } | Reply::Finished { .. } | Reply::Rejected { .. });
                answered |= is_answer && pull.is_some_and(|(asker, _)| asker == *session);
            }
            lines.extend(self.effect(effect, &recorded));
        }
        if let Some((session, step)) = pull.filter(|_| !answered) {
            lines.push(format!("parked {} step={step}", self.who(session)));
        }
        if self.shards.len() > 1 {
            lines.iter_mut().for_each(|line| *line = format!("shard {shard}: {line}"));
        }
        lines
    }

    fn effect(&self, effect: &Effect, recorded: &[(WorkerId, Sequence)]) -> Option<String> {
        Some(match effect {
            Effect::Reply { session, reply } => self.reply(*session, reply, recorded),
            Effect::Report(Report::Admitted { worker, incarnation, next, .. }) => {
                format!("admitted {} incarnation={incarnation} {}", words::name(*worker), words::next(*next))
            }
            Effect::Report(Report::Settled { worker, incarnation, void }) => {
                let void = if *void == 0 { String::new() } else { format!(" void={void}") };
                format!("settled {} incarnation={incarnation}{void}", words::name(*worker))
            }
            Effect::Report(Report::Standing(_)) => return None,
            Effect::Report(Report::Arrived { entry, step, .. }) => {
                format!("arrived {} step={step}", words::client(entry.client, entry.worker))
            }
            Effect::Report(Report::Paused { checkpoint, next }) => {
                format!("paused checkpoint={checkpoint} before {}", words::before(next))
            }
            Effect::Report(Report::Taken { checkpoint }) => format!("taken checkpoint={checkpoint}"),
            Effect::Image { checkpoint, image } => image_in_words(*checkpoint, image),
            Effect::Report(other) => format!("{other:?}"),
            // Nobody is told of these; of all others the reply speaks.
            Effect::Record(r) if r.outcome == Outcome::Void => {
                format!("recorded void {} push={} step={}", words::name(r.worker), r.sequence, r.step)
            }
            Effect::Record(_) => return None,
            Effect::Fed => "fed".into(),
            Effect::Final { snapshot, partial } => {
                let Snapshot { version, examples, .. } = snapshot;
                format!(
                    "final version={version} examples={examples} partial={partial} {}",
                    values(snapshot, None, &[])
                )
            }
        })
    }

    fn reply(&self, session: SessionId, reply: &Reply, recorded: &[(WorkerId, Sequence)]) -> String {
        let who = self.who(session);
        match reply {
            Reply::Held { sequence, step } => format!("held {who} push={sequence} step={step}"),
            Reply::Settled { sequence, outcome } => {
                let told = words::outcome(&who, *sequence, *outcome);
                let (worker, ..) = self.streams[session.0 as usize];
                let new = recorded.iter().any(|push| Some(push.0) == worker && push.1 == *sequence);
                if new { told } else { told + " (again)" }
            }
            Reply::Values { step, snapshot, have, slices, clients } => {
                let Snapshot { version, examples, .. } = snapshot;
                let values = values(snapshot, *have, slices);
                let told = format!("values {who} step={step} version={version} examples={examples} {values}");
                if clients.is_empty() { told } else { format!("{told} for {}", words::clients(clients)) }
            }
            Reply::Keep { .. } | Reply::Recall { .. } => format!("asks {who} or tells it: {reply:?}"),
            Reply::Finished { examples } => format!("finished {who} examples={examples}"),
            Reply::Waiting { step, wait } => format!("wait {who} step={step} ({})", words::wait(wait)),
            Reply::Rejected { sequence: Some(sequence), reason } => {
                format!("rejected {who} push={sequence}: {reason}")
            }
            Reply::Rejected { sequence: None, reason } => format!("rejected {who}: {reason}"),
            Reply::NotReached { point, position } => {
                format!("wait {who} point={point} (it is at {position})")
            }
            Reply::NoSnapshot { next } => match next {
                Some(next) => format!("no snapshot {who}, the next one is {next}"),
                None => format!("no snapshot {who}"),
            },
        }
    }
}

/// The slices that go out, each in brackets.
fn values(snapshot: &Snapshot, have: Option<Version>, slices: &[u32]) -> String {
    let slice = |(_, values): (Part, SliceValues)| format!("[{}]", words::floats(&values));
    let text: Vec<String> = snapshot.changed_since(have, slices).map(slice).collect();
    if text.is_empty() { "nothing new".into() } else { text.join(" ") }
}

impl Stage for Shards {
    fn play(&mut self, command: &Command) -> Result<Vec<String>, String> {
        let to: Option<usize> = command.find("to")?;
        let shards = 0..self.shards.len();
        let shards: Vec<usize> = shards.filter(|shard| to.is_none_or(|to| to == *shard)).collect();
        let mut lines = Vec::new();
        match command.name.as_str() {
            "push" | "pull" => {
                for shard in shards {
                    let event = self.request(command, shard)?;
                    lines.extend(self.handle(shard, event));
                }
            }
            "snapshot" => {
                let session = self.session((None, Incarnation(0), command.or("observer", 0)?));
                let point = command.need("point")?;
                for shard in shards {
                    lines.extend(self.handle(shard, Event::PullSnapshot { session, point }));
                }
            }
            "closed" => {
                let (_, _, session) = self.stream(command)?;
                shards
                    .into_iter()
                    .for_each(|shard| lines.extend(self.handle(shard, Event::Closed { session })));
            }
            "restore" => self.restore()?,
            "tick" => {
                self.now = self.now.plus_seconds(seconds(command)?);
                shards.into_iter().for_each(|shard| lines.extend(self.handle(shard, Event::Tick)));
            }
            _ => {
                let order = self.order(command)?;
                for shard in shards {
                    lines.extend(self.handle(shard, Event::Order(order.clone())));
                }
            }
        }
        Ok(lines)
    }
}

/// `3s` is three seconds.
pub(super) fn seconds(command: &Command) -> Result<u64, String> {
    let text = command.words.first().and_then(|word| word.strip_suffix('s'));
    text.and_then(|n| n.parse().ok()).ok_or_else(|| "it takes a time, such as 3s".into())
}

/// What a checkpoint holds of a shard: its values, and of each worker its clock and the push that it makes next.
fn image_in_words(checkpoint: u64, image: &Image) -> String {
    let state = &image.state;
    let worker = |row: &Row| {
        let Row { worker, sequence, step, clock, outcomes, .. } = row;
        let known = outcomes.len();
        format!(" {} push={sequence} step={step} clock={clock} outcomes={known}", words::name(*worker))
    };
    let floats: Vec<f32> = image.slices.iter().flat_map(|slice| slice.values.to_vec()).collect();
    format!(
        "image checkpoint={checkpoint} version={} step={} examples={} partial={} [{}]{}",
        state.version,
        state.open,
        state.examples,
        state.partial,
        words::floats(&floats),
        state.workers.iter().map(worker).collect::<Vec<_>>().join(";")
    )
}
