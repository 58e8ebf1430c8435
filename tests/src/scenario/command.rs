//! Reads one line: a name, plain words, and settings such as `step=3`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::str::FromStr;

use windlass_common::ids::{ClientId, Sequence, Step, WorkerId};
use windlass_common::optimizer::Optimizer;
use windlass_common::plan::{Fedavg, Hosting, Mode, Sampler, Stale, StalenessScaling, Weights};
use windlass_common::wire::{Resume, Task};

use crate::cluster::local;

/// One line.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: String,
    /// Plain words after the name.
    pub(super) words: Vec<String>,
    settings: BTreeMap<String, String>,
    used: RefCell<Vec<String>>,
}

impl Command {
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let mut parts = line.split_whitespace();
        let name = parts.next().ok_or("the line is empty")?.to_owned();
        let (mut words, mut settings) = (Vec::new(), BTreeMap::new());
        for part in parts {
            match part.split_once('=') {
                Some((key, value)) => {
                    if settings.insert(key.to_owned(), value.to_owned()).is_some() {
                        return Err(format!("{key} is given twice"));
                    }
                }
                None => words.push(part.to_owned()),
            }
        }
        Ok(Self { name, words, settings, used: RefCell::default() })
    }

    /// The setting of this name, if it is there.
    pub(super) fn find<T: FromStr>(&self, key: &str) -> Result<Option<T>, String> {
        self.used.borrow_mut().push(key.to_owned());
        let Some(text) = self.settings.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{key} is {text:?}, which it cannot be"))
    }

    pub(super) fn or<T: FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        Ok(self.find(key)?.unwrap_or(default))
    }

    pub(super) fn need<T: FromStr>(&self, key: &str) -> Result<T, String> {
        self.find(key)?.ok_or_else(|| format!("{key} is missing"))
    }

    pub(super) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }

    /// The workers among the plain words; at least one.
    pub(super) fn workers(&self) -> Result<Vec<WorkerId>, String> {
        let named: Vec<WorkerId> = self.words.iter().filter_map(|word| worker(word).ok()).collect();
        if named.is_empty() { Err("it takes a worker, such as w0".into()) } else { Ok(named) }
    }

    pub(super) fn worker(&self) -> Result<WorkerId, String> {
        Ok(self.workers()?[0])
    }

    /// `next=3/4` is push 3 for step 4.
    pub(super) fn next(&self) -> Result<Resume, String> {
        let text: String = self.need("next")?;
        let wrong = || format!("next is {text:?}; write it as 3/4, push 3 for step 4");
        let (sequence, step) = text.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        Ok(Resume { sequence: Sequence(number(sequence)?), step: Step(number(step)?) })
    }

    pub(super) fn mode(&self) -> Result<Mode, String> {
        let scaling = self.or("scaling", StalenessScaling::None)?;
        match self.need::<String>("mode")?.as_str() {
            "sync" => Ok(Mode::Sync { backup: self.or("backup", 0)? }),
            "async" => {
                let (compensation, in_flight) = (self.find("compensate")?, self.or("in-flight", 1)?);
                Ok(Mode::Async { scaling, compensation, in_flight })
            }
            "ssp" => {
                let (staleness, compensation) = (self.find("staleness")?, self.find("compensate")?);
                Ok(Mode::Ssp { staleness, scaling, compensation, in_flight: self.or("in-flight", 1)? })
            }
            "softsync" => Ok(Mode::Softsync {
                buffer: self.need("buffer")?,
                scaling,
                stale: self.one_of("stale", &[("kept", Stale::Kept), ("late", Stale::Late)])?,
            }),
            "fedbuff" => Ok(Mode::Fedbuff { buffer: self.need("buffer")?, scaling, local: local(0.1) }),
            "fedasync" => Ok(Mode::Fedasync { scaling, local: local(0.1) }),
            "fedavg" => self.fedavg().map(Mode::Fedavg),
            other => Err(format!(
                "mode is {other:?}; it is sync, async, ssp, softsync, fedavg, fedbuff or fedasync"
            )),
        }
    }

    fn fedavg(&self) -> Result<Fedavg, String> {
        let cohort = self.need("cohort")?;
        Ok(Fedavg {
            rounds: self.or("rounds", 100)?,
            cohort,
            asked: self.or("asked", cohort)?,
            quorum: self.or("quorum", cohort)?,
            deadline_ms: self.find("deadline_ms")?,
            sampler: Sampler::RoundRobin,
            weights: self
                .one_of("weights", &[("examples", Weights::Examples), ("uniform", Weights::Uniform)])?,
            hosting: self.one_of("hosting", &[("fixed", Hosting::Fixed), ("balanced", Hosting::Balanced)])?,
            local: local(0.1),
        })
    }

    /// A setting that is one of these words; without it the first.
    fn one_of<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<T, String> {
        let Some(text) = self.find::<String>(key)? else { return Ok(words[0].1) };
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| format!("{key} is {text:?}, which it cannot be"))
    }

    pub(super) fn optimizer(&self) -> Result<Optimizer, String> {
        self.or("optimizer", Optimizer::default())
    }

    /// A setting that nobody asked for is a mistake.
    pub(super) fn check_all_used(&self) -> Result<(), String> {
        let used = self.used.borrow();
        match self.settings.keys().find(|key| !used.contains(key)) {
            Some(key) => Err(format!("{} knows no {key}", self.name)),
            None => Ok(()),
        }
    }
}

/// `w3` is worker 3.
pub(super) fn worker(word: &str) -> Result<WorkerId, String> {
    let number = word.strip_prefix('w').and_then(|n| n.parse().ok());
    number.map(WorkerId).ok_or_else(|| format!("{word:?} is not a worker, such as w0"))
}

/// `c3@w0` is client 3, which worker 0 trains; `w0` is a worker that pushes for itself.
pub(super) fn task(word: &str) -> Result<Task, String> {
    let Some((client, trains)) = word.split_once('@') else {
        let worker = worker(word)?;
        return Ok(Task { client: ClientId(worker.0), worker });
    };
    let number = client.strip_prefix('c').and_then(|n| n.parse().ok());
    let client = number.map(ClientId).ok_or_else(|| format!("{word:?} is no client, such as c3@w0"))?;
    Ok(Task { client, worker: worker(trains)? })
}

/// `w0,c3@w2` are two; `nobody` is none.
pub(super) fn tasks(list: &str) -> Result<Vec<Task>, String> {
    if list == "nobody" { Ok(Vec::new()) } else { list.split(',').map(task).collect() }
}

/// `w0:3,w1:2` is push 3 of worker 0 and push 2 of worker 1.
pub(super) fn before(list: &str) -> Result<Vec<(WorkerId, Sequence)>, String> {
    let one = |text: &str| -> Result<(WorkerId, Sequence), String> {
        let wrong = || format!("{text:?} is not a worker and its push, such as w0:3");
        let (who, number) = text.split_once(':').ok_or_else(wrong)?;
        Ok((worker(who)?, Sequence(number.parse().map_err(|_| wrong())?)))
    };
    list.split(',').filter(|text| !text.is_empty()).map(one).collect()
}
