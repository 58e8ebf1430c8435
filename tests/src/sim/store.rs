//! Keeps named files as a disk does that is slow, full for a while, or lies about what it has written.
//!
//! What is written is there in full once the write has ended, unless the machine goes down and the disk has not kept its
//! word; others see it when the disk lets them. A file has a checksum of its bytes, by which damage is found.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use windlass_common::ids::{Lineage, ServerId, ShardId};
use windlass_common::rng::{Purpose, Rng};
use windlass_ps_core::coordinator::Complete;
use windlass_ps_core::shard::Image;

use super::config::Disk;

/// Of so many readings one finds other bytes than are there, where the disk is a bad one.
const MISREAD_ONCE_IN: u64 = 40;
/// What has been written so long ago is there whatever happens.
const SYNCED_AFTER: u64 = 5_000_000;

/// What a file is called; ordered by checkpoint, the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// A shard's part of a checkpoint.
    Part(Lineage, u64, ShardId),
    /// That a checkpoint is complete, and of what it consists.
    Manifest(Lineage, u64),
}

/// What is in a file.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Part(Rc<Image>),
    Manifest(Rc<Complete>),
}

impl Content {
    /// The same bytes for the same content.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Part(image) => {
                let mut bytes = format!("{:?}", image.state).into_bytes();
                for slice in &image.slices {
                    bytes.extend_from_slice(&slice.state.updates.to_le_bytes());
                    let floats = slice.values.iter().chain(slice.state.vectors.iter().flat_map(|v| v.iter()));
                    let floats = floats.chain(slice.reference.iter().flat_map(|r| r.iter()));
                    floats.for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
                }
                for ((client, worker), residual) in &image.residuals {
                    bytes.extend_from_slice(&[client.0.to_le_bytes(), worker.0.to_le_bytes()].concat());
                    residual.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
                }
                bytes
            }
            Self::Manifest(complete) => format!("{complete:?}").into_bytes(),
        }
    }
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[derive(Debug)]
struct File {
    writer: ServerId,
    content: Content,
    /// What is on the disk, which is not always what was written.
    bytes: Vec<u8>,
    sum: u64,
    is_written: bool,
    written_at: u64,
    visible_at: u64,
    /// Whether it is there for good as soon as it is written.
    is_synced: bool,
}

/// A disk that all servers share.
#[derive(Debug)]
pub(super) struct Store {
    disk: Disk,
    rng: Rng,
    files: BTreeMap<Name, File>,
    /// What was said to be written.
    promised: BTreeSet<Name>,
    /// Nothing can be written until then, and why.
    stuck: (u64, &'static str),
    /// The last lineage of the run, written with care.
    lineage: Option<Lineage>,
    pub(super) misread: u64,
    pub(super) lost: u64,
}

impl Store {
    pub(super) fn new(seed: u64, disk: Disk) -> Self {
        let rng = Rng::new(seed, Purpose::Simulation(5));
        let (files, promised) = (BTreeMap::new(), BTreeSet::new());
        Self { disk, rng, files, promised, stuck: (0, ""), lineage: None, misread: 0, lost: 0 }
    }

    /// Nothing can be written before this time.
    pub(super) fn stick(&mut self, until: u64) {
        let why = ["there is no space left on the device", "the folder is read-only"];
        self.stuck = (until.max(self.stuck.0), why[self.rng.below(2) as usize]);
    }

    fn is_stuck(&self, now: u64) -> Result<(), String> {
        if now < self.stuck.0 { Err(self.stuck.1.to_owned()) } else { Ok(()) }
    }

    /// How long one thing takes.
    pub(super) fn takes(&mut self) -> u64 {
        let (least, most) = self.disk.takes;
        least + self.rng.below(most - least + 1)
    }

    /// Begins to write; [`Store::written`] ends it.
    pub(super) fn write(&mut self, now: u64, name: Name, writer: ServerId, content: Content) {
        if self.is_stuck(now).is_err() {
            return;
        }
        let mut bytes = content.bytes();
        let sum = checksum(&bytes);
        if self.rng.below(1_000_000) < self.disk.damaged {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.rng.below(8);
        }
        let is_synced = self.rng.below(1_000_000) >= self.disk.unsynced;
        let (is_written, written_at, visible_at) = (false, now, u64::MAX);
        let file = File { writer, content, bytes, sum, is_written, written_at, visible_at, is_synced };
        self.files.insert(name, file);
    }

    /// A file that has been there for long.
    pub(super) fn add(&mut self, name: Name, content: Content) {
        let bytes = content.bytes();
        let (sum, writer) = (checksum(&bytes), ServerId(0));
        let (is_written, written_at, visible_at, is_synced) = (true, 0, 0, true);
        let file = File { writer, content, bytes, sum, is_written, written_at, visible_at, is_synced };
        self.files.insert(name, file);
    }

    /// What was begun has been written, or could not be.
    pub(super) fn written(&mut self, now: u64, name: Name) -> Result<u64, String> {
        self.is_stuck(now)?;
        let late = self.rng.below(self.disk.unseen + 1);
        let file = self.files.get_mut(&name).ok_or("it could not be opened")?;
        file.is_written = true;
        file.written_at = now;
        file.visible_at = now + late;
        self.promised.insert(name);
        Ok(file.sum)
    }

    /// Whether a file was said to be written, whatever has become of it since.
    pub(super) fn was_written(&self, name: Name) -> bool {
        self.promised.contains(&name)
    }

    /// A process is no more: what it was writing stays as far as it had come. With its machine goes what the disk had only
    /// promised to keep.
    pub(super) fn crashed(&mut self, now: u64, writer: ServerId, is_machine: bool) {
        let (rng, lost) = (&mut self.rng, &mut self.lost);
        self.files.retain(|_, file| {
            let is_recent = now < file.written_at + SYNCED_AFTER;
            let is_lost = is_machine && !file.is_synced && is_recent;
            if file.writer != writer || (file.is_written && !is_lost) {
                return true;
            }
            *lost += u64::from(file.is_written);
            // A name without bytes, a part of the bytes, or nothing.
            let left = rng.below(file.bytes.len() as u64 + 1) as usize;
            file.bytes.truncate(left.min(file.bytes.len().saturating_sub(1)));
            file.visible_at = now;
            rng.below(2) == 0
        });
    }

    /// The manifests that can be seen, the newest first.
    pub(super) fn manifests(&self, now: u64) -> Vec<(Lineage, u64)> {
        let seen = self.files.iter().filter(|(_, file)| file.visible_at <= now);
        let named = seen.filter_map(|(name, _)| match name {
            Name::Manifest(lineage, number) => Some((*lineage, *number)),
            Name::Part(..) => None,
        });
        let mut manifests: Vec<_> = named.collect();
        manifests.reverse();
        manifests
    }

    /// The number above that of any checkpoint of which something can be seen.
    pub(super) fn next(&self, now: u64) -> u64 {
        let seen = self.files.iter().filter(|(_, file)| file.visible_at <= now);
        let number = |name: &Name| match name {
            Name::Part(_, number, _) | Name::Manifest(_, number) => *number,
        };
        seen.map(|(name, _)| number(name)).max().map_or(1, |number| number + 1)
    }

    /// What is in a file, if its bytes are those that were written.
    pub(super) fn read(&mut self, now: u64, name: Name) -> Result<Content, String> {
        let file = self.files.get(&name).filter(|file| file.visible_at <= now);
        let file = file.ok_or_else(|| format!("{name:?} is missing"))?;
        let mut sum = checksum(&file.bytes);
        if self.disk.damaged > 0 && self.rng.below(MISREAD_ONCE_IN) == 0 && !file.bytes.is_empty() {
            let mut misread = file.bytes.clone();
            misread[self.rng.below(file.bytes.len() as u64) as usize] ^= 1 << self.rng.below(8);
            self.misread += 1;
            sum = checksum(&misread);
        }
        if sum != file.sum {
            return Err(format!("{name:?} is damaged"));
        }
        Ok(file.content.clone())
    }

    pub(super) fn remove(&mut self, checkpoint: (Lineage, u64)) {
        self.files.retain(|name, _| match name {
            Name::Part(lineage, number, _) | Name::Manifest(lineage, number) => {
                (*lineage, *number) != checkpoint
            }
        });
    }

    /// Writes down what must stay whatever happens.
    pub(super) fn decide(&mut self, now: u64) -> Result<(), String> {
        self.is_stuck(now)
    }

    /// The last lineage.
    pub(super) fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    /// Writes down that a lineage begins, so that it stays whatever happens.
    pub(super) fn begin_lineage(&mut self, now: u64, lineage: Lineage) -> Result<(), String> {
        self.is_stuck(now)?;
        self.lineage = Some(lineage);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: ServerId = ServerId(1);
    const NAME: Name = Name::Part(Lineage(0), 1, ShardId(0));

    fn part() -> Content {
        Content::Part(Rc::new(Image::default()))
    }

    fn store(disk: Disk) -> Store {
        Store::new(1, disk)
    }

    #[test]
    fn what_a_process_was_writing_when_it_ended_cannot_be_read() {
        let mut store = store(Disk::default());
        store.write(0, NAME, S, part());
        store.crashed(5, S, false);
        assert!(store.read(5, NAME).is_err());
        store.write(6, NAME, S, part());
        assert!(store.written(7, NAME).is_ok());
        store.crashed(8, S, true);
        assert!(store.read(8, NAME).is_ok(), "a disk that keeps its word loses nothing");
    }

    #[test]
    fn a_disk_that_does_not_keep_its_word_loses_what_is_new_when_the_machine_goes_down() {
        let mut store = store(Disk { unsynced: 1_000_000, ..Disk::default() });
        let (old, other) = (Name::Manifest(Lineage(0), 1), Name::Part(Lineage(0), 1, ShardId(1)));
        for (at, name, writer) in [(0, old, S), (SYNCED_AFTER, NAME, S), (SYNCED_AFTER, other, ServerId(0))] {
            store.write(at, name, writer, part());
            assert!(store.written(at, name).is_ok());
        }
        store.crashed(SYNCED_AFTER + 1, S, false);
        assert!(store.read(SYNCED_AFTER + 1, NAME).is_ok(), "a process takes nothing with it");
        store.crashed(SYNCED_AFTER + 1, S, true);
        assert!(store.read(SYNCED_AFTER + 1, NAME).is_err());
        assert!(store.read(SYNCED_AFTER + 1, old).is_ok() && store.read(SYNCED_AFTER + 1, other).is_ok());
    }

    #[test]
    fn a_flipped_bit_is_found_and_a_full_disk_says_so() {
        let mut store = store(Disk { damaged: 1_000_000, ..Disk::default() });
        store.write(0, NAME, S, part());
        assert!(store.written(1, NAME).is_ok());
        assert!(store.read(2, NAME).unwrap_err().contains("damaged"));
        store.stick(10);
        store.write(3, NAME, S, part());
        assert!(store.written(4, NAME).is_err());
        assert!(store.begin_lineage(9, Lineage(1)).is_err() && store.lineage().is_none());
        assert!(store.begin_lineage(10, Lineage(1)).is_ok());
    }
}
