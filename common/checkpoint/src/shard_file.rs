//! Writes and opens the file of one shard: its slices of the variables, with what the optimizer remembers of them, and vectors
//! that are as long as all of them.
//!
//! The file is a safetensors file. Slice `start` of variable `v` is the tensor `values/<start>/v`, and what the
//! optimizer remembers of it under the name `s` is `state/<s>/<start>/v`; all are vectors of f32 of the same length. What codecs have left
//! out of pushes is `left/<name>`: a vector over all slices of the file end to end, in the order of the manifest.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::Kind;
use crate::error::{Damage, StoreError};
use crate::name;
use crate::store::Store;

/// The header of a safetensors file may not be larger than this, or nothing reads the file.
const HEADER_BYTES_MAX: usize = 100_000_000;
/// How the tensors of what is left out are called, before the name.
const LEFT: &str = "left/";
/// Bytes of the number before the header.
const PREFIX_BYTES: usize = 8;

/// A slice of one variable with what the optimizer remembers of it.
#[derive(Clone, Debug)]
pub struct SlicePart<'a> {
    /// The variable.
    pub variable: &'a str,
    /// Where in the variable it starts, in values.
    pub start: u64,
    /// Its values.
    pub values: &'a [f32],
    /// What the optimizer remembers, by name, one per value.
    pub states: Vec<(&'a str, &'a [f32])>,
    /// How often the optimizer has changed it.
    pub updates: u64,
}

/// What has been left out of some pushes.
#[derive(Clone, Debug)]
pub struct LeftPart<'a> {
    /// Of whose.
    pub name: String,
    /// A value for each of all the slices, end to end.
    pub values: &'a [f32],
}

/// A slice in a shard's file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SliceEntry {
    /// The variable.
    pub variable: String,
    /// Where in the variable it starts, in values.
    pub start: u64,
    /// How many values it has.
    pub values: u64,
    /// How often the optimizer has changed it.
    pub updates: u64,
}

/// A shard's file as the manifest knows it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ShardFile {
    /// Its name in the store.
    pub name: String,
    /// The shard that wrote it.
    pub shard: u32,
    /// Its length.
    pub bytes: u64,
    /// XXH3 of its bytes: 128 bits in 32 hexadecimal digits, lower case.
    pub xxh3: String,
    /// What is in it.
    pub slices: Vec<SliceEntry>,
}

/// Writes a shard's slices as a file of the checkpoint of this number, and says what the manifest must know of it.
///
/// The floats are not copied: the header is made by the `safetensors` crate from lengths alone, and the store is given
/// it and the slices' own memory, part by part. The checksum takes one pass over the same parts.
///
/// # Errors
/// If the store cannot write it, or so many slices have a header that nothing reads.
///
/// # Panics
/// If a slice is empty or there twice, or its state is named twice, has a `/` in its name or another length; or if that holds
/// for what is left out.
pub fn write_shard(
    store: &dyn Store,
    number: u64,
    shard: u32,
    slices: &[SlicePart<'_>],
    left: &[LeftPart<'_>],
) -> Result<ShardFile, StoreError> {
    let name = name::shard_file(number, shard);
    let mut tensors = Vec::new();
    let mut data: Vec<&[u8]> = Vec::new();
    let mut end = 0;
    let mut add = |name: String, values: &'_ [f32]| {
        let start = end;
        end += size_of_val(values);
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![values.len()], data_offsets: (start, end) };
        tensors.push((name, info));
    };
    for slice in slices {
        let (start, variable) = (slice.start, slice.variable);
        assert!(!slice.values.is_empty(), "the slice of {variable} at {start} is empty");
        add(tensor(&Kind::Values, start, variable), slice.values);
        data.push(bytemuck::cast_slice(slice.values));
        for &(state, values) in &slice.states {
            assert!(
                !state.contains('/'),
                "the state {state} has a name that cannot be told from a variable's"
            );
            assert_eq!(values.len(), slice.values.len(), "the state {state} of {variable} at {start}");
            add(tensor(&Kind::State(state), start, variable), values);
            data.push(bytemuck::cast_slice(values));
        }
    }
    let all: usize = slices.iter().map(|slice| slice.values.len()).sum();
    for LeftPart { name, values } in left {
        assert!(!name.contains('/'), "what is left out has the name {name}");
        assert_eq!(values.len(), all, "what is left out under the name {name}");
        add(format!("{LEFT}{name}"), values);
        data.push(bytemuck::cast_slice(values));
    }
    let distinct: BTreeSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(distinct.len(), tensors.len(), "a slice or state is there twice");
    let header = header(tensors).map_err(|why| StoreError::Unsound { name: name.clone(), why })?;
    let length = (header.len() as u64).to_le_bytes();
    let parts: Vec<&[u8]> = [&length[..], &header].into_iter().chain(data).collect();
    let mut hash = Xxh3::new();
    parts.iter().for_each(|part| hash.update(part));
    store.put(&name, &parts)?;
    let entry = |slice: &SlicePart<'_>| SliceEntry {
        variable: slice.variable.to_owned(),
        start: slice.start,
        values: slice.values.len() as u64,
        updates: slice.updates,
    };
    Ok(ShardFile {
        name,
        shard,
        bytes: parts.iter().map(|part| part.len() as u64).sum(),
        xxh3: hex(hash.digest128()),
        slices: slices.iter().map(entry).collect(),
    })
}

fn header(tensors: Vec<(String, TensorInfo)>) -> Result<Vec<u8>, String> {
    let metadata = Metadata::new(None, tensors).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(PREFIX_BYTES), b' ');
    if header.len() > HEADER_BYTES_MAX {
        return Err(format!("its header has {} bytes, at most {HEADER_BYTES_MAX} can be read", header.len()));
    }
    Ok(header)
}

fn tensor(kind: &Kind<'_>, start: u64, variable: &str) -> String {
    match kind {
        Kind::Values => format!("values/{start}/{variable}"),
        Kind::State(state) => format!("state/{state}/{start}/{variable}"),
    }
}

/// A checksum as it is written.
pub(crate) fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

/// A shard's file in memory, whole and with the right checksum.
#[derive(Debug)]
pub(crate) struct Opened {
    name: String,
    bytes: Vec<u8>,
    /// Where in the bytes the tensors begin.
    data: usize,
    metadata: Metadata,
}

impl Opened {
    /// Reads a file and checks that its bytes are those that were written.
    pub(crate) fn read(store: &dyn Store, file: &ShardFile) -> Result<Self, Damage> {
        let name = &file.name;
        let bytes = store.read(name).map_err(|error| Damage::of_read(name, error))?;
        if bytes.len() as u64 != file.bytes {
            return Err(Damage::Length { file: name.clone(), found: bytes.len() as u64, right: file.bytes });
        }
        let found = hex(xxhash_rust::xxh3::xxh3_128(&bytes));
        if found != file.xxh3 {
            return Err(Damage::Checksum { file: name.clone(), found, right: file.xxh3.clone() });
        }
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|error| {
            Damage::malformed(name, format!("it is not a sound safetensors file: {error}"))
        })?;
        Ok(Self { name: name.clone(), data: PREFIX_BYTES + header, bytes, metadata })
    }

    /// The bytes of the floats of one slice.
    pub(crate) fn floats(&self, kind: &Kind<'_>, slice: &SliceEntry) -> Result<&[u8], Damage> {
        let tensor = tensor(kind, slice.start, &slice.variable);
        let damage = |found: String| {
            let right = format!("{} values of F32", slice.values);
            Damage::malformed(&self.name, format!("the tensor {tensor} {found}, right are {right}"))
        };
        let info = self.metadata.info(&tensor).ok_or_else(|| damage("is not there".to_owned()))?;
        if info.dtype != Dtype::F32 || info.shape != [slice.values as usize] {
            return Err(damage(format!("is {:?} of {:?}", info.shape, info.dtype)));
        }
        let (start, end) = info.data_offsets;
        Ok(&self.bytes[self.data + start..self.data + end])
    }

    /// The names under which there is what was left out.
    pub(crate) fn left(&self) -> Vec<String> {
        let names = self.metadata.offset_keys();
        names.iter().filter_map(|name| name.strip_prefix(LEFT)).map(str::to_owned).collect()
    }

    /// The bytes of what was left out under this name: as many floats as the file's slices have.
    pub(crate) fn floats_left(&self, name: &str, file: &ShardFile) -> Result<&[u8], Damage> {
        let all: u64 = file.slices.iter().map(|slice| slice.values).sum();
        let info = self.metadata.info(&format!("{LEFT}{name}"));
        let info = info.filter(|info| info.dtype == Dtype::F32 && info.shape == [all as usize]);
        let info = info.ok_or_else(|| {
            Damage::malformed(&self.name, format!("the tensor {LEFT}{name} is not {all} values of F32"))
        })?;
        let (start, end) = info.data_offsets;
        Ok(&self.bytes[self.data + start..self.data + end])
    }

    /// Checks that it holds these slices, what was left out and nothing else, and adds each variable's states to `states`: all slices of
    /// a variable have the same ones.
    pub(crate) fn check(
        &self,
        file: &ShardFile,
        states: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), Damage> {
        let malformed = |why: String| Err(Damage::malformed(&self.name, why));
        let mut slices: BTreeMap<(u64, &str), (&SliceEntry, BTreeSet<String>)> = BTreeMap::new();
        for slice in &file.slices {
            self.floats(&Kind::Values, slice)?;
            slices.insert((slice.start, &slice.variable), (slice, BTreeSet::new()));
        }
        let names = self.metadata.offset_keys();
        for name in &names {
            if let Some(left) = name.strip_prefix(LEFT) {
                self.floats_left(left, file)?;
                continue;
            }
            let Some((state, start, variable)) = parse(name) else {
                return malformed(format!("the tensor {name} is no slice"));
            };
            let Some((slice, found)) = slices.get_mut(&(start, variable)) else {
                return malformed(format!("the tensor {name} is of a slice that the manifest does not name"));
            };
            if let Some(state) = state {
                self.floats(&Kind::State(state), slice)?;
                found.insert(state.to_owned());
            }
        }
        for (slice, found) in slices.into_values() {
            let right = states.entry(slice.variable.clone()).or_insert_with(|| found.clone());
            if *right != found {
                let (variable, start) = (&slice.variable, slice.start);
                return malformed(format!(
                    "the slice of {variable} at {start} has the states {found:?}, others of it {right:?}"
                ));
            }
        }
        Ok(())
    }
}

/// State, start and variable of a tensor's name.
fn parse(tensor: &str) -> Option<(Option<&str>, u64, &str)> {
    let (state, slice) = match tensor.split_once('/')? {
        ("values", slice) => (None, slice),
        ("state", rest) => rest.split_once('/').map(|(state, slice)| (Some(state), slice))?,
        _ => return None,
    };
    let (start, variable) = slice.split_once('/')?;
    Some((state, start.parse().ok()?, variable))
}
