//! Writes what a run leaves behind: its plan, its model and its summary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use windlass_checkpoint::Tensor;
use windlass_common::ids::{ShardId, VariableId};
use windlass_common::plan::Plan;

/// The plan's file in the run directory.
pub const PLAN_FILE: &str = "plan.toml";
/// The result's file in the run directory.
pub const MODEL_FILE: &str = "model.safetensors";
/// The summary's file in the run directory.
pub const SUMMARY_FILE: &str = "summary.json";

/// Where a run leaves what it made.
#[derive(Clone, Debug)]
pub(crate) struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes the directory and writes the plan. One that holds a result is left as it is.
    pub(crate) fn create(path: &Path, plan: &Plan) -> anyhow::Result<Self> {
        let model = path.join(MODEL_FILE);
        anyhow::ensure!(
            !model.exists(),
            "{} holds a finished run; name another directory with --run-dir",
            path.display()
        );
        fs::create_dir_all(path).with_context(|| format!("could not make {}", path.display()))?;
        let directory = Self(path.to_owned());
        directory.write(PLAN_FILE, plan.to_text().as_bytes())?;
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file whole or not at all.
    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let (path, temporary) = (self.0.join(name), self.0.join(format!(".{name}.new")));
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        })();
        written.with_context(|| format!("could not write {}", path.display()))
    }

    pub(crate) fn write_summary(&self, summary: &impl serde::Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(summary).map_err(io::Error::from)?;
        self.write(SUMMARY_FILE, text.as_bytes()).map_err(io::Error::other)
    }

    /// Writes the model under its variables' own names. `shards` holds each shard's slices end to end.
    pub(crate) fn write_model(
        &self,
        plan: &Plan,
        shards: &BTreeMap<ShardId, Vec<f32>>,
    ) -> anyhow::Result<()> {
        let (layout, placement) = (plan.layout()?, plan.placement()?);
        let mut values = vec![0.0_f32; layout.total() as usize];
        for (&shard, part) in shards {
            let mut rest = part.as_slice();
            for slice in placement.of_shard(shard) {
                let (now, later) = rest.split_at(slice.len as usize);
                let start = layout.range(slice.variable).start + slice.start as usize;
                values[start..start + now.len()].copy_from_slice(now);
                rest = later;
            }
        }
        let tensors = (0_u32..).zip(layout.variables()).map(|(id, variable)| {
            let values = &values[layout.range(VariableId(id))];
            (variable.name.as_str(), Tensor::new(variable.shape.iter().copied(), values))
        });
        // No metadata: the library writes it in the order of a hash map, and equal models must give equal files.
        let bytes = safetensors::serialize(tensors, None)?;
        self.write(MODEL_FILE, &bytes)
    }
}
