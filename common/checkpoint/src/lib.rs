//! Owns the files of checkpoints: their format, how they become durable, which one is the newest that is sound.
//!
//! A checkpoint is a folder `checkpoint-00000012` with one safetensors file per shard and a `manifest`, which is
//! written last: before it is there, the checkpoint does not exist. The manifest names every file with its length and
//! checksum and carries its own, so that a file which was torn, lost or changed is never believed.
//!
//! Nothing here knows what a shard does or what travels on the network.

#[cfg(target_endian = "big")]
compile_error!(
    "Windlass stores floats as they lie in memory, in little-endian order; this target is big-endian"
);

mod checkpoint;
mod error;
mod export;
pub mod faults;
mod history;
mod local;
mod manifest;
mod name;
#[cfg(feature = "object-store")]
mod remote;
mod shard_file;
mod store;

pub use checkpoint::{Checkpoint, Cut, Kind, Request};
pub use error::{Damage, StoreError};
pub use export::{ExportError, Tensor, export};
pub use history::{Contents, Listed, Pruner, Skipped, Summary, list, newest, prune};
pub use local::LocalStore;
pub use manifest::{Manifest, write_manifest};
pub use name::{folder, manifest_file, shard_file};
#[cfg(feature = "object-store")]
pub use remote::ObjectStore;
pub use shard_file::{LeftPart, ShardFile, SliceEntry, SlicePart, write_shard};
pub use store::{Store, open};
