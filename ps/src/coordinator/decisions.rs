//! Remembers, durably and before anybody is told, what a coordinator that is started again must not have forgotten.
//!
//! One line of JSON per decision, each synced. A last line that is torn was never acted upon.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use windlass_common::ids::{Incarnation, Lineage, RunId, Term, WorkerId};
use windlass_common::wire::Member;
use windlass_ps_core::Time;
use windlass_ps_core::coordinator::{Placed, RunState};

/// The file's name in the run directory.
pub const DECISIONS_FILE: &str = "decisions.jsonl";

/// How long a coordinator that is ending may keep the log.
const IN_USE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
enum Line {
    /// The run is in this lineage from now on, and goes on from this checkpoint.
    Lineage {
        at_us: u64,
        run: String,
        lineage: Lineage,
        checkpoint: Option<u64>,
        /// It goes on from the copies that servers have, if they have all.
        #[serde(default)]
        copies: bool,
    },
    /// These servers have the shards from now on.
    Placed { at_us: u64, placed: Placed },
    /// These take part from now on.
    Term { at_us: u64, term: Term, members: Vec<(WorkerId, Incarnation)> },
}

/// What has been decided so far.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// The run, once it has begun.
    pub(crate) run: Option<RunId>,
    pub(crate) lineage: Lineage,
    /// The last term, and the last life of each worker.
    pub(crate) lives: RunState,
    /// Where the shards were decided to be last, if the run has not been told to begin with a checkpoint since.
    pub(crate) placed: Option<Placed>,
}

/// The log of decisions of a run.
#[derive(Debug)]
pub(crate) struct Decisions {
    file: File,
    /// Up to here it is whole. What a write that failed left behind it is taken away by the next.
    sound: u64,
}

impl Decisions {
    /// Opens the log in a run directory, and reads what it holds.
    ///
    /// # Errors
    /// If it cannot be read or made, or a line before the last is none.
    pub(crate) fn open(directory: &Path) -> io::Result<(Self, Decided)> {
        let path = directory.join(DECISIONS_FILE);
        let is_new = !path.exists();
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        lock(&file)?;
        if is_new {
            File::open(directory)?.sync_all()?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut decided = Decided::default();
        let mut sound = 0;
        while let Some(length) = bytes[sound..].iter().position(|&b| b == b'\n') {
            let line = &bytes[sound..sound + length];
            match serde_json::from_slice(line) {
                Ok(line) => decided.take(line),
                Err(error) => {
                    let what = format!("{DECISIONS_FILE} is damaged at byte {sound}: {error}");
                    return Err(io::Error::new(ErrorKind::InvalidData, what));
                }
            }
            sound += length + 1;
        }
        Ok((Self { file, sound: sound as u64 }, decided))
    }

    /// Whether a run has begun in this directory.
    pub(crate) fn exist(directory: &Path) -> bool {
        directory.join(DECISIONS_FILE).metadata().is_ok_and(|file| file.len() > 0)
    }

    pub(crate) fn lineage(
        &mut self,
        now: Time,
        run: RunId,
        lineage: Lineage,
        checkpoint: Option<u64>,
        copies: bool,
    ) -> io::Result<()> {
        self.write(&Line::Lineage { at_us: now.0, run: run.to_string(), lineage, checkpoint, copies })
    }

    pub(crate) fn placed(&mut self, now: Time, placed: &Placed) -> io::Result<()> {
        self.write(&Line::Placed { at_us: now.0, placed: placed.clone() })
    }

    pub(crate) fn term(&mut self, now: Time, term: Term, members: &[Member]) -> io::Result<()> {
        let members = members.iter().map(|m| (m.worker, m.incarnation)).collect();
        self.write(&Line::Term { at_us: now.0, term, members })
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.set_len(self.sound)?;
        self.file.seek(SeekFrom::Start(self.sound))?;
        self.file.write_all(&text)?;
        self.file.sync_data()?;
        self.sound += text.len() as u64;
        Ok(())
    }
}

/// Two coordinators would decide against each other. One that has just ended in this process may not be gone yet.
fn lock(file: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begun.elapsed() < IN_USE => thread::sleep(IN_USE / 40),
            Err(TryLockError::WouldBlock) => {
                let what = format!("{DECISIONS_FILE} is in use by another server 0");
                return Err(io::Error::new(ErrorKind::ResourceBusy, what));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

impl Decided {
    fn take(&mut self, line: Line) {
        match line {
            Line::Placed { placed, .. } => self.placed = Some(placed),
            Line::Lineage { run, lineage, copies, .. } => {
                if !copies {
                    self.placed = None;
                }
                self.run = u64::from_str_radix(&run, 16).ok().map(RunId);
                self.lineage = self.lineage.max(lineage);
            }
            Line::Term { term, members, .. } => {
                self.lives.term = self.lives.term.max(term);
                for (worker, incarnation) in members {
                    let last = self.lives.incarnations.entry(worker).or_default();
                    *last = incarnation.max(*last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_whole_after_one_that_could_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = Decisions::open(folder.path()).unwrap();
        log.lineage(Time(1), RunId(7), Lineage(0), None, false).unwrap();
        // What a full disk has taken of a line that is longer than the next.
        let path = folder.path().join(DECISIONS_FILE);
        let torn = format!("{{\"decision\":\"{}", "x".repeat(1000));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
        log.lineage(Time(2), RunId(7), Lineage(1), None, false).unwrap();
        drop(log);
        assert_eq!(Decisions::open(folder.path()).unwrap().1.lineage, Lineage(1));
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 2);
    }

    #[test]
    fn what_was_decided_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Decisions::exist(folder.path()));
        let (mut log, decided) = Decisions::open(folder.path()).unwrap();
        assert_eq!(decided.run, None);
        log.lineage(Time(1), RunId(7), Lineage(0), None, false).unwrap();
        let member =
            |worker, incarnation| Member { worker: WorkerId(worker), incarnation: Incarnation(incarnation) };
        log.term(Time(2), Term(1), &[member(0, 1), member(1, 1)]).unwrap();
        log.term(Time(3), Term(2), &[member(0, 2)]).unwrap();
        log.lineage(Time(4), RunId(7), Lineage(1), Some(3), false).unwrap();
        drop(log);
        assert!(Decisions::exist(folder.path()));
        // A line that was being written.
        let path = folder.path().join(DECISIONS_FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"decision\":\"lin"].concat()).unwrap();
        let (mut log, decided) = Decisions::open(folder.path()).unwrap();
        let error = Decisions::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another server 0"), "{error}");
        assert_eq!((decided.run, decided.lineage), (Some(RunId(7)), Lineage(1)));
        let lives = [(WorkerId(0), Incarnation(2)), (WorkerId(1), Incarnation(1))].into();
        assert_eq!((decided.lives.term, decided.lives.incarnations), (Term(2), lives));
        log.lineage(Time(5), RunId(7), Lineage(2), None, false).unwrap();
        drop(log);
        assert_eq!(Decisions::open(folder.path()).unwrap().1.lineage, Lineage(2));
        std::fs::write(&path, [b"{\"decision\":\n", &whole[..]].concat()).unwrap();
        let error = Decisions::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("decisions.jsonl is damaged at byte 0"), "{error}");
    }
}
