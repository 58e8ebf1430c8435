//! Writes down what one shard was asked and did, in order, and refuses what no history may contain.

use std::collections::BTreeMap;

use windlass_common::ids::{ClientId, Incarnation, Lineage, Sequence, Step, Term, Version, WorkerId};
use windlass_common::wire::{Member, Order, Outcome, Record, Report};
use windlass_ps_core::shard::{Effect, Event, Reply};
use windlass_ps_core::{SessionId, Time};

use super::kept::Kept;

/// There is nobody at this session.
const NOBODY: SessionId = SessionId(u64::MAX);

/// Something that a shard was asked or did.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A request has arrived; what follows up to [`Entry::Handled`] comes of it.
    Asked(Asked),
    /// The coordinator has decided something other than who takes part.
    Ordered(Order),
    /// Others take part from now on than before.
    Members {
        /// Who is new, or in another life.
        came: Vec<Member>,
        /// Who takes part no more.
        went: Vec<WorkerId>,
    },
    /// An observer asks for the values at an evaluation point.
    Observed {
        /// Where the answer goes.
        session: SessionId,
        /// The number of the point.
        point: u64,
    },
    /// A stream has ended: nothing more is answered there.
    Ended(SessionId),
    /// A push has been settled.
    Record(Record),
    /// Something was said.
    Told {
        /// Where to.
        session: SessionId,
        /// What.
        what: Told,
    },
    /// What the shard was when it took its part of a checkpoint that is whole by now.
    Image(Box<Kept>),
    /// The shard has taken its part of this checkpoint.
    Taken(u64),
    /// The standby is told something: the so many-th in this lineage, and whether it is all that the shard is.
    Fed {
        /// Its number.
        number: u64,
        /// Whether a copy begins with it.
        is_whole: bool,
    },
    /// The shard has been made anew, in this lineage. What it is like then, unless it has its initial values.
    Restored {
        /// From now on.
        lineage: Lineage,
        /// As the part of the checkpoint that is named in it, or as the copy is.
        kept: Option<Box<Kept>>,
        /// From what.
        from: Source,
    },
    /// One event has been dealt with in full.
    Handled {
        /// When, by the clock of the shard.
        at: Time,
        /// The newest version by then.
        newest: Version,
    },
}

/// What a shard is made anew from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A checkpoint, or its initial values.
    Checkpoint,
    /// What its primary had.
    Primary,
    /// What its standby had.
    Standby,
}

/// What a worker asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where the answer goes.
    pub session: SessionId,
    /// In which history of the run.
    pub lineage: Lineage,
    /// Who asks.
    pub worker: WorkerId,
    /// In which life.
    pub incarnation: Incarnation,
    /// The push: its number, its step and whose work it is.
    pub push: Option<(Sequence, Step, ClientId)>,
    /// The step that values are wanted for.
    pub pull: Option<Step>,
}

/// What a shard said.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// A push is held.
    Held(Sequence),
    /// A push is settled.
    Settled(Sequence, Outcome),
    /// Values.
    Values {
        /// The step they are for.
        step: Step,
        /// Their version.
        version: Version,
        /// Whom the worker is to train.
        clients: Vec<ClientId>,
    },
    /// There is nothing more to do.
    Finished,
    /// A pull is parked.
    Waiting(Step),
    /// The request had no effect.
    Rejected,
    /// There are no such values for an observer; the next there are.
    NoSnapshot(Option<u64>),
    /// An observer waits for values that are yet to come.
    NotReached,
}

/// What one shard did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    lineage: Lineage,
    entries: Vec<Entry>,
    /// What the standby has been told in this lineage, by its count.
    fed: u64,
    outcomes: BTreeMap<(WorkerId, Sequence), Outcome>,
    /// Who takes part, in which life.
    members: BTreeMap<WorkerId, Incarnation>,
    /// Whose each session is.
    sessions: BTreeMap<SessionId, WorkerId>,
    /// Where in the entries a part was taken that is not whole yet.
    taken: BTreeMap<u64, usize>,
}

impl History {
    /// Something happens to the shard.
    pub(crate) fn begin<B>(&mut self, event: &Event<B>) {
        match event {
            Event::Request(request) => {
                self.sessions.insert(request.session, request.worker);
                self.entries.push(Entry::Asked(Asked {
                    session: request.session,
                    lineage: request.lineage,
                    worker: request.worker,
                    incarnation: request.incarnation,
                    push: request.push.as_ref().map(|(p, _)| (p.sequence, p.step, p.client)),
                    pull: request.pull.as_ref().map(|p| p.step),
                }));
            }
            Event::Order(Order::Membership { members, .. }) => {
                let now: BTreeMap<_, _> = members.iter().map(|m| (m.worker, m.incarnation)).collect();
                let before = std::mem::replace(&mut self.members, now);
                let is_new = |m: &&Member| before.get(&m.worker) != Some(&m.incarnation);
                let came = members.iter().filter(is_new).copied().collect();
                let went = before.into_keys().filter(|w| !self.members.contains_key(w)).collect();
                self.entries.push(Entry::Members { came, went });
            }
            Event::Order(order) => self.entries.push(Entry::Ordered(order.clone())),
            Event::Closed { session } => self.entries.push(Entry::Ended(*session)),
            Event::PullSnapshot { session, point } => {
                self.entries.push(Entry::Observed { session: *session, point: *point });
            }
            Event::Given(_) | Event::Tick => {}
        }
    }

    /// This comes of it. An acknowledgement must have been written down before, with that outcome.
    ///
    /// # Panics
    /// If a push is settled twice, or acknowledged otherwise than it was settled.
    pub(crate) fn end(&mut self, at: Time, effects: &[Effect], newest: Version) {
        for effect in effects {
            match effect {
                Effect::Record(record) => self.settle(record),
                // Whoever has pushed what was held before the lineage is no more.
                Effect::Reply { session, .. } if *session == NOBODY => {}
                Effect::Reply { reply: Reply::Keep { .. } | Reply::Recall { .. }, .. } => {}
                Effect::Reply { session, reply } => {
                    let what = told(reply);
                    if let Told::Settled(sequence, outcome) = what {
                        self.acknowledge(*session, sequence, outcome, newest);
                    }
                    self.entries.push(Entry::Told { session: *session, what });
                }
                Effect::Image { checkpoint, image } => {
                    let kept = Entry::Image(Box::new(Kept::of((self.lineage, *checkpoint), image)));
                    match self.taken.remove(checkpoint) {
                        Some(at) => self.entries.insert(at, kept),
                        None => self.entries.push(kept),
                    }
                }
                Effect::Report(Report::Taken { checkpoint }) => {
                    self.taken = BTreeMap::from([(*checkpoint, self.entries.len())]);
                    self.entries.push(Entry::Taken(*checkpoint));
                }
                Effect::Fed => {
                    self.fed += 1;
                    self.entries.push(Entry::Fed { number: self.fed, is_whole: false });
                }
                Effect::Report(_) | Effect::Final { .. } => {}
            }
        }
        self.entries.push(Entry::Handled { at, newest });
    }

    /// What had happened when the shard took its part of this checkpoint; none of it if there is no checkpoint.
    ///
    /// # Panics
    /// If the shard has taken no such part.
    pub(crate) fn up_to(&self, checkpoint: Option<(Lineage, u64)>) -> Self {
        let Some(checkpoint) = checkpoint else { return Self::default() };
        let is_it = |entry: &Entry| matches!(entry, Entry::Image(kept) if kept.checkpoint == checkpoint);
        let at = self.entries.iter().position(is_it).expect("a shard goes on from what it has taken");
        self.cut_at(at + 1)
    }

    /// The shard is made anew, from what it was when this history ends. What was held is void where a later push of its worker
    /// is settled, and as if it had never come otherwise.
    pub(crate) fn restore(&mut self, lineage: Lineage, kept: Option<Kept>) {
        let mut held = self.held();
        let is_before =
            |of: &Asked, r: &Record| r.worker == of.worker && of.push.is_some_and(|p| p.0 < r.sequence);
        held.retain(|of| self.records().any(|r| is_before(of, r)));
        let examples_applied = self.records().map(|r| r.examples_applied).max().unwrap_or_default();
        for asked in held {
            let Some((sequence, step, client)) = asked.push else { continue };
            self.settle(&Record {
                number: 0,
                at_us: 0,
                term: Term(0),
                worker: asked.worker,
                incarnation: asked.incarnation,
                sequence,
                step,
                base: Version(0),
                client,
                examples: 0,
                work: 0,
                examples_applied,
                loss: 0.0,
                outcome: Outcome::Void,
            });
        }
        self.begin_lineage(lineage, kept, Source::Checkpoint);
    }

    fn begin_lineage(&mut self, lineage: Lineage, kept: Option<Kept>, from: Source) {
        (self.lineage, self.fed) = (lineage, 0);
        self.members.clear();
        self.entries.push(Entry::Restored { lineage, kept: kept.map(Box::new), from });
    }

    /// The shard goes on with a copy of what it was when this history ends.
    pub(crate) fn go_on(&mut self, kept: Kept, from: Source) {
        self.begin_lineage(kept.checkpoint.0, Some(kept), from);
    }

    /// A standby is told so much, of no event: all that the shard is, or that it has all.
    pub(crate) fn feed(&mut self, told: usize, is_whole: bool) {
        for _ in 0..told {
            self.fed += 1;
            self.entries.push(Entry::Fed { number: self.fed, is_whole });
        }
    }

    /// How much the standby has been told in this lineage.
    pub(crate) fn fed(&self) -> u64 {
        self.fed
    }

    /// What a copy has done that was told so much in this lineage; all of it where none is named.
    pub(crate) fn done_by_copy(&self, told: Option<u64>) -> Self {
        let begins =
            self.entries.iter().rposition(|entry| matches!(entry, Entry::Restored { .. })).unwrap_or(0);
        let is_next = |entry: &Entry| matches!((entry, told), (Entry::Fed { number, .. }, Some(told)) if *number > told);
        let next = self.entries[begins..].iter().position(is_next);
        let mut end = next.map_or(self.entries.len(), |next| begins + next);
        // An event of which the copy has done nothing is none of its history.
        let begins = |entry: &Entry| {
            matches!(
                entry,
                Entry::Asked(_)
                    | Entry::Ordered(_)
                    | Entry::Members { .. }
                    | Entry::Observed { .. }
                    | Entry::Ended(_)
            )
        };
        let handled = |entry: &Entry| matches!(entry, Entry::Handled { .. });
        let whole = self.entries[..end].iter().rposition(handled).map_or(0, |at| at + 1);
        let whole = self.entries[whole..end].iter().rposition(begins).map_or(end, |at| whole + at);
        let is_change =
            |entry: &Entry| matches!(entry, Entry::Fed { .. } | Entry::Record(_) | Entry::Restored { .. });
        if !self.entries[whole..end].iter().any(is_change) {
            end = whole;
        }
        self.cut_at(end)
    }

    fn cut_at(&self, end: usize) -> Self {
        let entries = self.entries[..end].to_vec();
        let mut history = Self { entries, sessions: self.sessions.clone(), ..Self::default() };
        let outcomes = history.records().map(|r| ((r.worker, r.sequence), r.outcome)).collect();
        history.outcomes = outcomes;
        history
    }

    /// The requests whose pushes are held at the end.
    fn held(&self) -> Vec<Asked> {
        let (mut asked, mut held) = (BTreeMap::new(), BTreeMap::new());
        for entry in &self.entries {
            match entry {
                Entry::Asked(this) => {
                    asked.insert(this.session, *this);
                }
                Entry::Told { session, what: Told::Held(sequence) } => {
                    if let Some(this) =
                        asked.get(session).filter(|a| a.push.is_some_and(|p| p.0 == *sequence))
                    {
                        held.entry((this.worker, *sequence)).or_insert(*this);
                    }
                }
                Entry::Record(record) => {
                    held.remove(&(record.worker, record.sequence));
                }
                _ => {}
            }
        }
        held.into_values().collect()
    }

    fn settle(&mut self, record: &Record) {
        let push = (record.worker, record.sequence);
        let before = self.outcomes.insert(push, record.outcome);
        assert_eq!(
            before, None,
            "{} sequence {} is settled twice: {record:?}",
            record.worker, record.sequence
        );
        self.entries.push(Entry::Record(*record));
    }

    fn acknowledge(&self, session: SessionId, sequence: Sequence, outcome: Outcome, newest: Version) {
        let worker = self.sessions.get(&session).expect("who is told has asked");
        let recorded = self.outcomes.get(&(*worker, sequence));
        assert_eq!(recorded, Some(&outcome), "{worker} is told that its push {sequence} is {outcome:?}");
        if let Outcome::Applied { version, .. } = outcome {
            assert!(version <= newest, "{worker} is told of version {version} before it exists");
        }
    }

    /// All of it.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whose session this is, if it has asked for something.
    pub fn worker_of(&self, session: SessionId) -> Option<WorkerId> {
        self.sessions.get(&session).copied()
    }

    /// The pushes that were settled, in order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            _ => None,
        })
    }

    /// Whether the shard has been made anew.
    pub fn is_restored(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry, Entry::Restored { .. }))
    }

    /// Whether a push was void on this shard in what it has been made anew from.
    pub fn was_void_when_restored(&self, worker: WorkerId, sequence: Sequence) -> bool {
        let is_it = |entry: &Entry| matches!(entry, Entry::Restored { from: Source::Checkpoint, .. });
        let last = self.entries.iter().rposition(is_it);
        let is_this = |entry: &Entry| matches!(entry, Entry::Record(r) if (r.worker, r.sequence, r.outcome) == (worker, sequence, Outcome::Void));
        self.entries[..last.unwrap_or(0)].iter().any(is_this)
    }

    /// What became of a push.
    pub fn outcome(&self, worker: WorkerId, sequence: Sequence) -> Option<Outcome> {
        self.outcomes.get(&(worker, sequence)).copied()
    }
}

fn told(reply: &Reply) -> Told {
    match reply {
        Reply::Held { sequence, .. } => Told::Held(*sequence),
        Reply::Settled { sequence, outcome } => Told::Settled(*sequence, *outcome),
        Reply::Values { step, snapshot, clients, .. } => {
            Told::Values { step: *step, version: snapshot.version, clients: clients.clone() }
        }
        Reply::Finished { .. } => Told::Finished,
        Reply::Waiting { step, .. } => Told::Waiting(*step),
        Reply::Rejected { .. } => Told::Rejected,
        Reply::NoSnapshot { next } => Told::NoSnapshot(*next),
        Reply::NotReached { .. } => Told::NotReached,
        Reply::Keep { .. } | Reply::Recall { .. } => unreachable!("they are no answers"),
    }
}
