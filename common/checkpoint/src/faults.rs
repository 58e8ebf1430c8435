//! A store in memory that fails as disks and services do, for tests and simulations.
//!
//! It uses no thread and no clock: the same seed, faults and calls give the same outcome. Each operation draws from a
//! stream of its own, so that one more draw in one of them changes no other.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::sync::{Mutex, MutexGuard, PoisonError};

use windlass_common::rng::{Purpose, Rng};

use crate::error::StoreError;
use crate::name;
use crate::store::Store;

/// What befalls one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A put fails because the disk is full. Nothing has changed.
    Full,
    /// A put or delete fails because nothing may be written. Nothing has changed.
    ReadOnly,
    /// A put fails and leaves a part of the file under its name, which a good store would not.
    Torn,
    /// A put or delete returns well but is not durable: a crash may undo it, or cut the file.
    LostSync,
    /// A read returns well with one bit changed.
    FlippedBit,
    /// A read or list fails.
    Unreadable,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 6] =
        [Self::Full, Self::ReadOnly, Self::Torn, Self::LostSync, Self::FlippedBit, Self::Unreadable];

    fn befalls(self, operation: Operation) -> bool {
        match self {
            Self::Full | Self::Torn => operation == Operation::Put,
            Self::ReadOnly | Self::LostSync => matches!(operation, Operation::Put | Operation::Delete),
            Self::FlippedBit => operation == Operation::Read,
            Self::Unreadable => matches!(operation, Operation::Read | Operation::List),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Put,
    Read,
    List,
    Delete,
}

/// A change that a crash may undo.
#[derive(Clone, Debug)]
struct Unsynchronised {
    name: String,
    /// The bytes that were put, or nothing for a file that was deleted.
    bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    /// What a reader sees.
    seen: BTreeMap<String, Vec<u8>>,
    /// What a crash leaves for sure.
    durable: BTreeMap<String, Vec<u8>>,
    /// What it may leave besides, in the order of the calls.
    pending: Vec<Unsynchronised>,
    script: VecDeque<Fault>,
    rates: BTreeMap<Fault, u32>,
    operations: u64,
    befallen: BTreeMap<Fault, u64>,
}

/// A store in memory that fails by seed or by script. Without either it is a sound one.
#[derive(Debug)]
pub struct FaultyStore {
    seed: u64,
    state: Mutex<State>,
}

impl FaultyStore {
    /// An empty store without faults.
    pub fn new(seed: u64) -> Self {
        Self { seed, state: Mutex::default() }
    }

    /// Lets this fault befall so many of a thousand operations that it can befall, from now on.
    pub fn set_rate(&self, fault: Fault, per_thousand: u32) {
        self.state().rates.insert(fault, per_thousand);
    }

    /// Lets this fault befall the next operation that it can befall, after those that were scripted before it.
    pub fn script(&self, fault: Fault) {
        self.state().script.push_back(fault);
    }

    /// Forgets rates and script. What is not durable stays so.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rates.clear();
        state.script.clear();
    }

    /// Loses power. What was put durably is there afterwards; every other change, each for itself, is kept, undone
    /// or, if it is a file, cut somewhere: so that a later one may be kept and an earlier one lost.
    pub fn crash(&self) {
        let mut state = self.state();
        let mut rng = self.rng(&mut state);
        let State { seen, durable, pending, .. } = &mut *state;
        for change in pending.drain(..) {
            match (rng.below(3), change.bytes) {
                (0, _) => {}
                (1, Some(mut bytes)) => {
                    bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
                    durable.insert(change.name, bytes);
                }
                (_, Some(bytes)) => {
                    durable.insert(change.name, bytes);
                }
                (_, None) => {
                    durable.remove(&change.name);
                }
            }
        }
        seen.clone_from(durable);
    }

    /// What a reader without faults would see.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().seen.clone()
    }

    /// Changes a file for good, behind the back of whoever wrote it.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(mut bytes) = state.seen.get(name).cloned() {
            change(&mut bytes);
            state.settle(name, Some(bytes));
        }
    }

    /// How many operations each fault has befallen.
    pub fn befallen(&self) -> BTreeMap<Fault, u64> {
        self.state().befallen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rng(&self, state: &mut State) -> Rng {
        let operation = state.operations;
        state.operations += 1;
        Rng::new(self.seed, Purpose::Storage { operation })
    }

    /// Begins an operation: what befalls it, and its random numbers.
    fn begin(&self, operation: Operation) -> (MutexGuard<'_, State>, Option<Fault>, Rng) {
        let mut state = self.state();
        let mut rng = self.rng(&mut state);
        let mut fault = None;
        if state.script.front().is_some_and(|fault| fault.befalls(operation)) {
            fault = state.script.pop_front();
        }
        for (&drawn, &per_thousand) in state.rates.iter().filter(|(fault, _)| fault.befalls(operation)) {
            if rng.below(1000) < u64::from(per_thousand) {
                fault = fault.or(Some(drawn));
            }
        }
        if let Some(fault) = fault {
            *state.befallen.entry(fault).or_default() += 1;
        }
        (state, fault, rng)
    }

    fn failed(doing: &'static str, what: &str, kind: ErrorKind) -> StoreError {
        StoreError::Failed { doing, what: what.to_owned(), kind, why: kind.to_string() }
    }
}

impl State {
    /// Makes a change that no crash undoes; nor does one that it has replaced come back.
    fn settle(&mut self, name: &str, bytes: Option<Vec<u8>>) {
        self.pending.retain(|change| change.name != name);
        for files in [&mut self.seen, &mut self.durable] {
            match &bytes {
                Some(bytes) => files.insert(name.to_owned(), bytes.clone()),
                None => files.remove(name),
            };
        }
    }
}

impl Store for FaultyStore {
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        name::parts(name)?;
        let mut bytes = parts.concat();
        let (mut state, fault, mut rng) = self.begin(Operation::Put);
        match fault {
            Some(Fault::Full) => return Err(Self::failed("write", name, ErrorKind::StorageFull)),
            Some(Fault::ReadOnly) => return Err(Self::failed("write", name, ErrorKind::ReadOnlyFilesystem)),
            Some(Fault::Torn) => {
                bytes.truncate(rng.below((bytes.len() as u64).max(1)) as usize);
                state.settle(name, Some(bytes));
                return Err(Self::failed("write", name, ErrorKind::Other));
            }
            Some(Fault::LostSync) => {
                state.seen.insert(name.to_owned(), bytes.clone());
                state.pending.push(Unsynchronised { name: name.to_owned(), bytes: Some(bytes) });
            }
            _ => state.settle(name, Some(bytes)),
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        name::parts(name)?;
        let (state, fault, mut rng) = self.begin(Operation::Read);
        if fault == Some(Fault::Unreadable) {
            return Err(Self::failed("read", name, ErrorKind::Other));
        }
        let missing = || StoreError::Missing { place: self.place(), name: name.to_owned() };
        let mut bytes = state.seen.get(name).cloned().ok_or_else(missing)?;
        if fault == Some(Fault::FlippedBit) && !bytes.is_empty() {
            let bit = rng.below(bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        Ok(bytes)
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        let (state, fault, _) = self.begin(Operation::List);
        match fault {
            Some(_) => Err(Self::failed("list", &self.place(), ErrorKind::Other)),
            None => Ok(state.seen.keys().cloned().collect()),
        }
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        name::parts(name)?;
        let (mut state, fault, _) = self.begin(Operation::Delete);
        match fault {
            Some(Fault::ReadOnly) => {
                return Err(Self::failed("delete", name, ErrorKind::ReadOnlyFilesystem));
            }
            Some(Fault::LostSync) => {
                state.seen.remove(name);
                state.pending.push(Unsynchronised { name: name.to_owned(), bytes: None });
            }
            _ => state.settle(name, None),
        }
        Ok(())
    }

    fn place(&self) -> String {
        "memory with faults".to_owned()
    }
}
