//! Writes what happens to pushes and members as lines of JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use windlass_common::ids::{ClientId, Lineage, ServerId, ShardId, Step, Term, WorkerId};
use windlass_common::wire::{Entry, Member, Outcome, Record, Seats, Stop, Task};
use windlass_ps_core::Time;
use windlass_ps_core::coordinator::Placed;

use crate::run_directory::RunDirectory;

/// The file's name in the run directory.
pub const EVENTS_FILE: &str = "events.jsonl";

/// The log of a run. The first failure to write is reported; training goes on without the log.
pub(crate) struct EventLog {
    file: BufWriter<File>,
    failed: bool,
}

/// One line about a push. `at_us` is microseconds since 1970 by the clock of the shard's server.
#[derive(Serialize)]
struct PushLine {
    at_us: u64,
    event: &'static str,
    number: u64,
    shard: u32,
    worker: u32,
    incarnation: u32,
    term: u64,
    sequence: u64,
    step: u64,
    base: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    staleness: Option<u64>,
    client: u32,
    examples: u32,
    work: u64,
    examples_applied: u64,
    loss: f32,
}

/// One line about who takes part from now on, and which clients have another host by that.
#[derive(Serialize)]
struct TermLine<'a> {
    at_us: u64,
    event: &'static str,
    term: u64,
    members: &'a [u32],
    incarnations: &'a [u32],
    moved_clients: &'a [u32],
    moved_to: &'a [u32],
}

/// One line about a step or round: whom it asks, or whose pushes it is closed with, in the order of their reduction.
#[derive(Serialize)]
struct RoundLine<'a> {
    at_us: u64,
    event: &'static str,
    step: u64,
    clients: &'a [u32],
    workers: &'a [u32],
}

#[derive(Serialize)]
struct DroppedLine {
    at_us: u64,
    event: &'static str,
    step: u64,
    client: u32,
}

#[derive(Serialize)]
struct MemberLine<'a> {
    at_us: u64,
    event: &'static str,
    worker: u32,
    what: &'a str,
}

#[derive(Serialize)]
struct EndLine<'a> {
    at_us: u64,
    event: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

/// One line about a checkpoint.
#[derive(Serialize)]
struct CheckpointLine<'a> {
    at_us: u64,
    event: &'static str,
    number: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
}

/// One line about what the run goes on from.
#[derive(Serialize)]
struct RestoredLine {
    at_us: u64,
    event: &'static str,
    lineage: u32,
    checkpoint: Option<u64>,
}

/// One line about which server has each shard, and which its standby, when the run goes on without a checkpoint.
#[derive(Serialize)]
struct SeatsLine {
    at_us: u64,
    event: &'static str,
    lineage: u32,
    primaries: Vec<Option<u32>>,
    standbys: Vec<Option<u32>>,
}

/// One line about a standby that has all of a shard.
#[derive(Serialize)]
struct StandbyLine {
    at_us: u64,
    event: &'static str,
    shard: u32,
    server: u32,
}

/// A log to go on with. A last line that is not whole was being written when its writer died.
fn open_whole(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut byte = [0];
    while end > 0 {
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        end -= 1;
    }
    file.set_len(end)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

impl EventLog {
    /// Begins the log of a run, or goes on with it.
    pub(crate) fn open(directory: &RunDirectory, goes_on: bool) -> io::Result<Self> {
        let path = directory.path().join(EVENTS_FILE);
        let file = match goes_on {
            true => open_whole(&path)?,
            false => File::create(path)?,
        };
        Ok(Self { file: BufWriter::with_capacity(1 << 16, file), failed: false })
    }

    pub(crate) fn push(&mut self, shard: ShardId, record: &Record) {
        let (event, version, staleness) = match record.outcome {
            Outcome::Applied { version, staleness } => ("applied", Some(version.0), Some(staleness)),
            Outcome::Late { .. } => ("late", None, None),
            Outcome::Void => ("void", None, None),
        };
        self.line(&PushLine {
            at_us: record.at_us,
            event,
            number: record.number,
            shard: shard.0,
            worker: record.worker.0,
            incarnation: record.incarnation.0,
            term: record.term.0,
            sequence: record.sequence.0,
            step: record.step.0,
            base: record.base.0,
            version,
            staleness,
            client: record.client.0,
            examples: record.examples,
            work: record.work,
            examples_applied: record.examples_applied.0,
            loss: record.loss,
        });
    }

    pub(crate) fn membership(&mut self, now: Time, worker: WorkerId, what: &str) {
        self.line(&MemberLine { at_us: now.0, event: "membership", worker: worker.0, what });
    }

    pub(crate) fn term(&mut self, now: Time, term: Term, members: &[Member], moved: &[Task]) {
        let (members, incarnations): (Vec<u32>, Vec<u32>) =
            members.iter().map(|m| (m.worker.0, m.incarnation.0)).unzip();
        let (moved_clients, moved_to): (Vec<u32>, Vec<u32>) =
            moved.iter().map(|t| (t.client.0, t.worker.0)).unzip();
        self.line(&TermLine {
            at_us: now.0,
            event: "term",
            term: term.0,
            members: &members,
            incarnations: &incarnations,
            moved_clients: &moved_clients,
            moved_to: &moved_to,
        });
    }

    pub(crate) fn started(&mut self, now: Time) {
        self.line(&EndLine { at_us: now.0, event: "started", reason: "" });
    }

    pub(crate) fn opened(&mut self, now: Time, step: Step, tasks: &[Task]) {
        let (clients, workers): (Vec<u32>, Vec<u32>) = tasks.iter().map(|t| (t.client.0, t.worker.0)).unzip();
        self.round(now, "opened", step, &clients, &workers);
    }

    pub(crate) fn dealt(&mut self, now: Time, step: Step, tasks: &[Task]) {
        let (clients, workers): (Vec<u32>, Vec<u32>) = tasks.iter().map(|t| (t.client.0, t.worker.0)).unzip();
        self.round(now, "dealt", step, &clients, &workers);
    }

    pub(crate) fn closed(&mut self, now: Time, step: Step, cohort: &[Entry]) {
        let (clients, workers): (Vec<u32>, Vec<u32>) =
            cohort.iter().map(|e| (e.client.0, e.worker.0)).unzip();
        let event = if cohort.is_empty() { "abandoned" } else { "closed" };
        self.round(now, event, step, &clients, &workers);
    }

    fn round(&mut self, now: Time, event: &'static str, step: Step, clients: &[u32], workers: &[u32]) {
        self.line(&RoundLine { at_us: now.0, event, step: step.0, clients, workers });
    }

    pub(crate) fn dropped(&mut self, now: Time, step: Step, client: ClientId) {
        self.line(&DroppedLine { at_us: now.0, event: "dropped", step: step.0, client: client.0 });
    }

    pub(crate) fn ended(&mut self, now: Time, stop: &Stop) {
        let reason = match stop {
            Stop::Completed => "completed",
            Stop::Failed { reason } => reason,
        };
        self.line(&EndLine { at_us: now.0, event: "ended", reason });
    }

    /// From here on the run is in this lineage: what came after the checkpoint, here above, counts no more.
    pub(crate) fn restored(&mut self, now: Time, lineage: Lineage, checkpoint: Option<u64>) {
        self.line(&RestoredLine { at_us: now.0, event: "restored", lineage: lineage.0, checkpoint });
    }

    /// From here on the run is in this lineage, from what servers have: all that is here above counts.
    pub(crate) fn went_on(&mut self, now: Time, placed: &Placed) {
        let servers = |of: &dyn Fn(&Seats) -> Option<u32>| placed.seats.iter().map(of).collect();
        self.line(&SeatsLine {
            at_us: now.0,
            event: "went on",
            lineage: placed.lineage.0,
            primaries: servers(&|seats| Some(seats.primary.0)),
            standbys: servers(&|seats| seats.standby.map(|server| server.0)),
        });
    }

    /// The standby of a shard has all of it.
    pub(crate) fn replicated(&mut self, now: Time, shard: ShardId, standby: ServerId) {
        self.line(&StandbyLine { at_us: now.0, event: "replicated", shard: shard.0, server: standby.0 });
    }

    pub(crate) fn interrupted(&mut self, now: Time, why: &str) {
        self.line(&EndLine { at_us: now.0, event: "interrupted", reason: why });
    }

    pub(crate) fn rolled_back(&mut self, now: Time, why: &str) {
        self.line(&EndLine { at_us: now.0, event: "rolled back", reason: why });
    }

    pub(crate) fn checkpoint(&mut self, now: Time, number: u64, failure: Option<&str>) {
        let event = if failure.is_none() { "checkpoint" } else { "no checkpoint" };
        self.line(&CheckpointLine { at_us: now.0, event, number, reason: failure.unwrap_or_default() });
    }

    /// The file, with all that has been written so far on its way: whoever syncs it makes that durable.
    pub(crate) fn for_sync(&mut self) -> Option<File> {
        self.flush();
        self.file.get_ref().try_clone().ok()
    }

    /// Makes durable what has been written; false if that is not known.
    pub(crate) fn sync(&mut self) -> bool {
        self.flush();
        let result = self.file.get_ref().sync_data();
        self.check(result);
        !self.failed
    }

    pub(crate) fn flush(&mut self) {
        let result = self.file.flush();
        self.check(result);
    }

    fn line(&mut self, line: &impl Serialize) {
        let written = serde_json::to_writer(&mut self.file, line).map_err(io::Error::from);
        let result = written.and_then(|()| self.file.write_all(b"\n"));
        self.check(result);
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !self.failed
        {
            self.failed = true;
            tracing::error!(%error, file = EVENTS_FILE, "the log of the run is incomplete");
        }
    }
}
