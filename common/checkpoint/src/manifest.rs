//! Writes and reads the manifest, which makes a folder a checkpoint.
//!
//! Its file is one line `windlass checkpoint 1 <bytes of the body> <XXH3 of the body, 128 bits in hexadecimal>`, then
//! the body in JSON. Only the exact line that would be written for a body is accepted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Damage, StoreError};
use crate::name;
use crate::shard_file::{ShardFile, SliceEntry, hex};
use crate::store::Store;

const MAGIC: &str = "windlass checkpoint ";
/// The number of the format. Whoever changes the files or the meaning of a field raises it.
const FORMAT: u64 = 1;

/// What a checkpoint is of and which files it has.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its number, which rises over the whole run.
    pub number: u64,
    /// The name of the run.
    pub run: String,
    /// The lineage whose values these are.
    pub lineage: u64,
    /// When it was written, in microseconds since 1970.
    pub at_us: u64,
    /// The text of the plan.
    pub plan: String,
    /// Examples applied.
    pub examples: u64,
    /// Steps made.
    pub steps: u64,
    /// Rounds closed.
    pub rounds: u64,
    /// The files of the shards.
    pub files: Vec<ShardFile>,
    /// What servers and coordinator remember beside the values. It means nothing here; numbers in it come back with
    /// the same bits, but JSON knows no infinity and no NaN.
    pub state: serde_json::Value,
}

/// A slice, and the place of its file in the manifest.
pub(crate) type Placed<'a> = (usize, &'a SliceEntry);

impl Manifest {
    /// How many values each variable has.
    pub fn lengths(&self) -> BTreeMap<&str, u64> {
        let mut lengths = BTreeMap::new();
        for slice in self.files.iter().flat_map(|file| &file.slices) {
            *lengths.entry(slice.variable.as_str()).or_default() += slice.values;
        }
        lengths
    }

    /// The bytes of all shards' files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Checks that it holds these variables, with so many values each, and no others.
    ///
    /// The slices alone cannot tell that the last ones of a variable are missing; whoever knows the model can.
    ///
    /// # Errors
    /// If a variable is missing, too many, or of another length.
    pub fn fits<'a>(&self, variables: impl IntoIterator<Item = (&'a str, u64)>) -> Result<(), Damage> {
        let file = name::manifest_file(self.number);
        let mut found = self.lengths();
        for (variable, right) in variables {
            match found.remove(variable).unwrap_or(0) {
                values if values < right => {
                    return Err(Damage::Gap {
                        file,
                        variable: variable.to_owned(),
                        start: values,
                        end: right,
                    });
                }
                values if values > right => {
                    let why = format!("variable {variable} has {values} values, right are {right}");
                    return Err(Damage::Malformed { file, why });
                }
                _ => {}
            }
        }
        match found.first_key_value() {
            None => Ok(()),
            Some((variable, _)) => {
                let why = format!("it holds a variable {variable}, which the model does not have");
                Err(Damage::Malformed { file, why })
            }
        }
    }

    /// Checks that its files have the right names, and its slices cover each variable once.
    pub(crate) fn check(&self) -> Result<(), Damage> {
        let manifest = name::manifest_file(self.number);
        let mut shards = BTreeSet::new();
        for file in &self.files {
            let right = name::shard_file(self.number, file.shard);
            if file.name != right {
                let why =
                    format!("the file of shard {} is called {:?}, right is {right}", file.shard, file.name);
                return Err(Damage::malformed(&manifest, why));
            }
            if !shards.insert(file.shard) {
                return Err(Damage::malformed(&manifest, format!("shard {} has two files", file.shard)));
            }
        }
        for (variable, slices) in self.slices() {
            let mut covered = 0_u64;
            for (_, slice) in slices {
                let (file, variable) = (manifest.clone(), variable.to_owned());
                let Some(end) = slice.start.checked_add(slice.values).filter(|&end| end > slice.start) else {
                    let why =
                        format!("a slice of {variable} has {} values from {}", slice.values, slice.start);
                    return Err(Damage::Malformed { file, why });
                };
                if slice.start > covered {
                    return Err(Damage::Gap { file, variable, start: covered, end: slice.start });
                }
                if slice.start < covered {
                    return Err(Damage::Overlap {
                        file,
                        variable,
                        start: slice.start,
                        end: covered.min(end),
                    });
                }
                covered = end;
            }
        }
        Ok(())
    }

    /// The slices of each variable, in order.
    pub(crate) fn slices(&self) -> BTreeMap<&str, Vec<Placed<'_>>> {
        let mut slices: BTreeMap<&str, Vec<Placed<'_>>> = BTreeMap::new();
        for (place, file) in self.files.iter().enumerate() {
            for slice in &file.slices {
                slices.entry(&slice.variable).or_default().push((place, slice));
            }
        }
        for slices in slices.values_mut() {
            slices.sort_by_key(|(_, slice)| slice.start);
        }
        slices
    }

    /// Reads the manifest of this number and checks it. Its files are not looked at.
    pub(crate) fn read(store: &dyn Store, number: u64) -> Result<Self, Damage> {
        let file = name::manifest_file(number);
        let bytes = store.read(&file).map_err(|error| Damage::of_read(&file, error))?;
        let manifest = Self::parse(&file, &bytes)?;
        if manifest.number != number {
            let why = format!("it is of checkpoint {}, its folder's name says {number}", manifest.number);
            return Err(Damage::Malformed { file, why });
        }
        manifest.check()?;
        Ok(manifest)
    }

    fn parse(file: &str, bytes: &[u8]) -> Result<Self, Damage> {
        let malformed = |why: String| Damage::malformed(file, why);
        let shape = || malformed(format!("its first line is not \"{MAGIC}{FORMAT} BYTES CHECKSUM\""));
        let line = bytes.iter().position(|&byte| byte == b'\n').ok_or_else(shape)?;
        let (head, body) = bytes.split_at(line + 1);
        let text = str::from_utf8(&head[..line]).map_err(|_| shape())?;
        let mut words = text.strip_prefix(MAGIC).ok_or_else(shape)?.split(' ');
        let (Some(format), Some(length), Some(hash), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(shape());
        };
        if format != FORMAT.to_string() {
            return Err(malformed(format!("it is of format {format:?}, this program knows format {FORMAT}")));
        }
        let right: u64 = length.parse().map_err(|_| shape())?;
        if body.len() as u64 != right {
            let line = head.len() as u64;
            let (found, right) = (bytes.len() as u64, right.saturating_add(line));
            return Err(Damage::Length { file: file.to_owned(), found, right });
        }
        let found = hex(xxhash_rust::xxh3::xxh3_128(body));
        if found != hash {
            return Err(Damage::Checksum { file: file.to_owned(), found, right: hash.to_owned() });
        }
        if head != header(body).as_bytes() {
            return Err(shape());
        }
        serde_json::from_slice(body).map_err(|error| malformed(format!("it cannot be read: {error}")))
    }
}

fn header(body: &[u8]) -> String {
    format!("{MAGIC}{FORMAT} {} {}\n", body.len(), hex(xxhash_rust::xxh3::xxh3_128(body)))
}

/// Writes the manifest, and with it the checkpoint: all its files must have been written before.
///
/// # Errors
/// If the store cannot write it; or if it would not be believed, because its files or slices do not fit together.
pub fn write_manifest(store: &dyn Store, manifest: &Manifest) -> Result<(), StoreError> {
    let name = name::manifest_file(manifest.number);
    let unsound = |why: String| StoreError::Unsound { name: name.clone(), why };
    manifest.check().map_err(|damage| unsound(damage.to_string()))?;
    let body = serde_json::to_vec(manifest).map_err(|error| unsound(error.to_string()))?;
    store.put(&name, &[header(&body).as_bytes(), &body])
}
