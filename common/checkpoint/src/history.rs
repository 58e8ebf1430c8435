//! Finds the checkpoints of a store: which there are, the newest that is sound, those that may go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Damage, StoreError};
use crate::manifest::Manifest;
use crate::name;
use crate::store::Store;

/// A checkpoint that is not to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its number.
    pub number: u64,
    /// What is wrong with it.
    pub why: Damage,
}

/// A folder of a store that is or was to become a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub number: u64,
    /// What is known of it.
    pub contents: Contents,
}

/// What is known of a checkpoint from its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Its manifest is sound and its files are there. Their bytes were not looked at.
    Complete(Summary),
    /// Its manifest is damaged or a file is missing.
    Damaged(Damage),
    /// It has no manifest: it is being written, or its writer died.
    Unfinished {
        /// The files that are there.
        files: usize,
    },
}

/// The figures of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Files of shards.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When it was written, in microseconds since 1970.
    pub at_us: u64,
    /// The lineage of its values.
    pub lineage: u64,
    /// Examples applied.
    pub examples: u64,
    /// Steps made.
    pub steps: u64,
    /// Rounds closed.
    pub rounds: u64,
}

/// The newest checkpoint whose every file is whole, and those that are newer but are not.
///
/// A folder without a manifest is no checkpoint and is passed over in silence.
///
/// # Errors
/// If the store cannot be read. That is no reason to fall back on an older checkpoint, and none is looked for.
pub fn newest(store: &Arc<dyn Store>) -> Result<(Option<Checkpoint>, Vec<Skipped>), StoreError> {
    let mut skipped = Vec::new();
    for (number, files) in folders(&**store)?.into_iter().rev() {
        if !files.contains(&name::manifest_file(number)) {
            continue;
        }
        let sound = Checkpoint::open(store, number).and_then(|found| found.verify().map(|()| found));
        match sound {
            Ok(checkpoint) => return Ok((Some(checkpoint), skipped)),
            Err(Damage::Unread(error)) => return Err(error),
            Err(why) => skipped.push(Skipped { number, why }),
        }
    }
    Ok((None, skipped))
}

/// Every checkpoint by its manifest, in order of number.
///
/// # Errors
/// If the store cannot be read.
pub fn list(store: &dyn Store) -> Result<Vec<Listed>, StoreError> {
    let listed = |(number, files): (u64, BTreeSet<String>)| {
        let contents = if files.contains(&name::manifest_file(number)) {
            match Manifest::read(store, number).and_then(|manifest| summary(&manifest, &files)) {
                Ok(summary) => Contents::Complete(summary),
                Err(Damage::Unread(error)) => return Err(error),
                Err(damage) => Contents::Damaged(damage),
            }
        } else {
            Contents::Unfinished { files: files.len() }
        };
        Ok(Listed { number, contents })
    };
    folders(store)?.into_iter().map(listed).collect()
}

fn summary(manifest: &Manifest, there: &BTreeSet<String>) -> Result<Summary, Damage> {
    if let Some(file) = manifest.files.iter().find(|file| !there.contains(&file.name)) {
        return Err(Damage::Missing { file: file.name.clone() });
    }
    Ok(Summary {
        files: manifest.files.len(),
        bytes: manifest.bytes(),
        at_us: manifest.at_us,
        lineage: manifest.lineage,
        examples: manifest.examples,
        steps: manifest.steps,
        rounds: manifest.rounds,
    })
}

/// Takes old checkpoints away, and remembers which are sound, so that each is read once and not at every turn.
#[derive(Clone, Debug, Default)]
pub struct Pruner {
    sound: BTreeSet<u64>,
}

impl Pruner {
    /// Notes a checkpoint that this process has just written, every file and the manifest.
    pub fn written(&mut self, number: u64) {
        self.sound.insert(number);
    }

    /// Takes away what is older than the newest `keep` sound checkpoints (at least one), and what was begun and not
    /// finished. `running`, which is being written, is left alone, with all that is newer.
    ///
    /// A damaged checkpoint counts as none; it goes when it is older than those that are kept. The manifest of each
    /// goes first, so that it is never half there. Gives the numbers that have gone.
    ///
    /// # Errors
    /// If the store cannot be read, and then nothing has gone; or if it cannot be written.
    pub fn prune(
        &mut self,
        store: &Arc<dyn Store>,
        keep: usize,
        running: Option<u64>,
    ) -> Result<Vec<u64>, StoreError> {
        let folders = folders(&**store)?;
        let mut kept = 0;
        let mut gone = Vec::new();
        for (&number, files) in folders.iter().rev() {
            if running.is_some_and(|running| number >= running) {
                continue;
            }
            if kept >= keep.max(1) || !files.contains(&name::manifest_file(number)) {
                gone.push(number);
            } else if self.is_sound(store, number, files)? {
                kept += 1;
            }
        }
        gone.reverse();
        for &number in &gone {
            self.sound.remove(&number);
            let manifest = name::manifest_file(number);
            store.delete(&manifest)?;
            for file in folders[&number].iter().filter(|file| **file != manifest) {
                store.delete(file)?;
            }
        }
        store.sweep(running.map(name::folder).as_deref())?;
        Ok(gone)
    }

    fn is_sound(
        &mut self,
        store: &Arc<dyn Store>,
        number: u64,
        files: &BTreeSet<String>,
    ) -> Result<bool, StoreError> {
        let sound = Checkpoint::open(store, number).and_then(|checkpoint| {
            summary(checkpoint.manifest(), files)?;
            if self.sound.contains(&number) { Ok(()) } else { checkpoint.verify() }
        });
        match sound {
            Ok(()) => {
                self.sound.insert(number);
                Ok(true)
            }
            Err(Damage::Unread(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// Takes old checkpoints away as [`Pruner::prune`] does, reading those that stay.
///
/// # Errors
/// As [`Pruner::prune`].
pub fn prune(store: &Arc<dyn Store>, keep: usize, running: Option<u64>) -> Result<Vec<u64>, StoreError> {
    Pruner::default().prune(store, keep, running)
}

/// The files of each checkpoint's folder. What has another name is not ours.
fn folders(store: &dyn Store) -> Result<BTreeMap<u64, BTreeSet<String>>, StoreError> {
    let mut folders: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for file in store.list()? {
        if let Some(number) = name::number_of(&file) {
            folders.entry(number).or_default().insert(file);
        }
    }
    Ok(folders)
}
