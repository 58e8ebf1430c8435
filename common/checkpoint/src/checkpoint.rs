//! Reads the values of a checkpoint, whatever the slices they were written in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Damage;
use crate::manifest::Manifest;
use crate::name;
use crate::shard_file::{Opened, ShardFile, SliceEntry};
use crate::store::Store;

/// Which floats of a variable are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind<'a> {
    /// Its values.
    Values,
    /// What the optimizer remembers under this name.
    State(&'a str),
}

/// A part of a variable that is to be read.
#[derive(Debug)]
pub struct Request<'a> {
    /// The variable.
    pub variable: &'a str,
    /// Which floats of it.
    pub kind: Kind<'a>,
    /// The first value, counted from the start of the variable.
    pub start: u64,
    /// Where they go. Its length says how many they are.
    pub out: &'a mut [f32],
    /// How often the optimizer had changed them, once they are read: of several stored slices the smallest number,
    /// since one that is too large would make the first steps of Adam too long. 0 where `out` is empty.
    pub updates: u64,
}

/// A slice of a variable for which something is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// The variable.
    pub variable: &'a str,
    /// The first value, counted from the start of the variable.
    pub start: u64,
    /// How many.
    pub values: u64,
}

/// Floats that are in two vectors of slices which lie end to end: where they begin in each, and how many.
struct Overlap {
    from: usize,
    to: usize,
    len: usize,
}

/// What of a file's slices falls into these others.
fn overlaps(file: &ShardFile, slices: &[Cut<'_>]) -> Vec<Overlap> {
    let (mut from, mut overlaps) = (0, Vec::new());
    for stored in &file.slices {
        let mut to = 0;
        for wanted in slices {
            let start = wanted.start.max(stored.start);
            let end = (wanted.start + wanted.values).min(stored.start + stored.values);
            if wanted.variable == stored.variable && start < end {
                overlaps.push(Overlap {
                    from: from + (start - stored.start) as usize,
                    to: to + (start - wanted.start) as usize,
                    len: (end - start) as usize,
                });
            }
            to += wanted.values as usize;
        }
        from += stored.values as usize;
    }
    overlaps
}

/// A checkpoint whose manifest is sound, in its store.
#[derive(Debug)]
pub struct Checkpoint {
    store: Arc<dyn Store>,
    manifest: Manifest,
    /// The file that was read last, by its place in the manifest.
    last: Mutex<Option<(usize, Arc<Opened>)>>,
}

/// What one file has for one request.
struct Piece<'a> {
    request: usize,
    slice: &'a SliceEntry,
    /// The first and the last value but one, counted from the start of the variable.
    start: u64,
    end: u64,
}

impl Checkpoint {
    /// Opens the checkpoint of this number: reads and checks its manifest, but none of the shards' files.
    ///
    /// # Errors
    /// If there is no manifest or it is damaged.
    pub fn open(store: &Arc<dyn Store>, number: u64) -> Result<Self, Damage> {
        let manifest = Manifest::read(&**store, number)?;
        Ok(Self { store: Arc::clone(store), manifest, last: Mutex::new(None) })
    }

    /// What it is of and which files it has.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads a part of a variable, and says how often the optimizer had changed it (see [`Request::updates`]).
    ///
    /// Each shard's file is read whole and checked when it is first needed. The last one stays in memory, so that
    /// slices asked for in the order in which they were stored cost one reading of each file; [`Self::read_all`] reads
    /// each file once whatever the order, and [`Self::release`] frees it.
    ///
    /// # Errors
    /// If a file is damaged, or the checkpoint does not hold these floats. What was read so far is in `out`.
    pub fn read(&self, variable: &str, kind: Kind<'_>, start: u64, out: &mut [f32]) -> Result<u64, Damage> {
        let mut request = Request { variable, kind, start, out, updates: 0 };
        self.fill(std::slice::from_mut(&mut request))?;
        Ok(request.updates)
    }

    /// Reads many parts, such as all of a shard's, file by file: each is read once, and none stays in memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_all(&self, requests: &mut [Request<'_>]) -> Result<(), Damage> {
        let result = self.fill(requests);
        self.release();
        result
    }

    /// What was left out of pushes, by name: a value for each of these slices, end to end; 0 where a file has nothing under a
    /// name that another has. Each file is read once.
    ///
    /// # Errors
    /// If a file is damaged.
    pub fn left(&self, slices: &[Cut<'_>]) -> Result<BTreeMap<String, Vec<f32>>, Damage> {
        let all: usize = slices.iter().map(|slice| slice.values as usize).sum();
        let mut found = BTreeMap::new();
        for (number, file) in self.manifest.files.iter().enumerate() {
            let opened = self.opened(number)?;
            let overlaps = overlaps(file, slices);
            for name in opened.left() {
                let floats = opened.floats_left(&name, file)?;
                let out = found.entry(name).or_insert_with(|| vec![0.0; all]);
                for &Overlap { from, to, len } in &overlaps {
                    let out: &mut [u8] = bytemuck::cast_slice_mut(&mut out[to..to + len]);
                    out.copy_from_slice(&floats[4 * from..4 * (from + len)]);
                }
            }
        }
        self.release();
        Ok(found)
    }

    /// Frees the file that was read last.
    pub fn release(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Checks every file anew: that it is there, its length and checksum, that it holds the slices that the manifest
    /// names, each with the same states as the others of its variable.
    ///
    /// That the slices cover each variable without gap or overlap was checked when it was opened; how long the
    /// variables are is known to the model alone, see [`Manifest::fits`].
    ///
    /// # Errors
    /// With the first damage that is found.
    pub fn verify(&self) -> Result<(), Damage> {
        let mut states = BTreeMap::new();
        for file in &self.manifest.files {
            Opened::read(&*self.store, file)?.check(file, &mut states)?;
        }
        Ok(())
    }

    fn fill(&self, requests: &mut [Request<'_>]) -> Result<(), Damage> {
        let mut by_file: BTreeMap<usize, Vec<Piece<'_>>> = BTreeMap::new();
        let slices = self.manifest.slices();
        for (number, request) in requests.iter_mut().enumerate() {
            request.updates = 0;
            let gap = |start, end| Damage::Gap {
                file: name::manifest_file(self.manifest.number),
                variable: request.variable.to_owned(),
                start,
                end,
            };
            let end = request.start.checked_add(request.out.len() as u64);
            let end = end.ok_or_else(|| gap(request.start, u64::MAX))?;
            let slices = slices.get(request.variable).map_or(&[][..], Vec::as_slice);
            let mut next = request.start;
            let first = slices.partition_point(|(_, slice)| slice.start + slice.values <= next);
            for &(file, slice) in slices[first..].iter().take_while(|(_, slice)| slice.start < end) {
                let upto = end.min(slice.start + slice.values);
                request.updates =
                    if next == request.start { slice.updates } else { request.updates.min(slice.updates) };
                by_file.entry(file).or_default().push(Piece {
                    request: number,
                    slice,
                    start: next,
                    end: upto,
                });
                next = upto;
            }
            if next < end {
                return Err(gap(next, end));
            }
        }
        for (file, pieces) in by_file {
            let opened = self.opened(file)?;
            for piece in pieces {
                let request = &mut requests[piece.request];
                let floats = opened.floats(&request.kind, piece.slice)?;
                let range = |start: u64| (piece.start - start) as usize..(piece.end - start) as usize;
                let (from, to) = (range(piece.slice.start), range(request.start));
                let out = bytemuck::cast_slice_mut(&mut request.out[to]);
                out.copy_from_slice(&floats[from.start * 4..from.end * 4]);
            }
        }
        Ok(())
    }

    /// A file of the manifest, from the store unless it is the one that was read last.
    fn opened(&self, file: usize) -> Result<Arc<Opened>, Damage> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = last.as_ref().filter(|(place, _)| *place == file) {
            return Ok(Arc::clone(opened));
        }
        // First it is freed, so that never two are in memory.
        *last = None;
        let opened = Arc::new(Opened::read(&*self.store, &self.manifest.files[file])?);
        *last = Some((file, Arc::clone(&opened)));
        Ok(opened)
    }
}
