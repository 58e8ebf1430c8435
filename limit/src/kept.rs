//! Keeps what has been measured of this machine in the user's cache folder, for runs to come.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use windlass_common::plan::Plan;

use crate::Costs;
use crate::costs::has_limit;

/// Costs of a push as they were measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The costs.
    pub costs: Costs,
    /// Cores of the machine.
    pub cores: usize,
    /// When they were measured, in microseconds since 1970.
    pub at_us: u64,
}

/// The file in which they are kept: `windlass/limits.json` in `$XDG_CACHE_HOME` or else `~/.cache`. `None` where there is
/// neither.
pub fn location() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("windlass").join("limits.json"))
}

/// What the costs of a push depend on.
fn key(plan: &Plan, cores: usize) -> String {
    let (cluster, training, codecs) = (&plan.cluster, &plan.training, &plan.codecs);
    format!(
        "{} of data {} with noise {}, batch {}, {} workers of {} threads, {} shards, {}, {} up, {} down, {cores} cores",
        plan.model.name,
        plan.data.fingerprint,
        plan.clients.feature_noise,
        training.batch,
        cluster.workers,
        training.compute_threads,
        cluster.shards(),
        plan.optimizer,
        codecs.push,
        codecs.pull
    )
}

fn read(file: &Path) -> BTreeMap<String, Kept> {
    let text = fs::read_to_string(file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps the costs of a push of this plan; what was kept for such plans before is forgotten.
///
/// # Errors
/// If the file cannot be written.
pub fn keep(file: &Path, plan: &Plan, kept: Kept) -> std::io::Result<()> {
    let mut all = read(file);
    all.insert(key(plan, kept.cores), kept);
    let text = serde_json::to_string_pretty(&all).map_err(std::io::Error::other)?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("json.new");
    fs::write(&new, text + "\n")?;
    fs::rename(&new, file)
}

/// What is kept of plans like this one on a machine of so many cores, if it bounds them. A file that cannot be read has
/// nothing.
pub fn kept(file: &Path, plan: &Plan, cores: usize) -> Option<Kept> {
    has_limit(plan).then(|| read(file).remove(&key(plan, cores)))?
}
