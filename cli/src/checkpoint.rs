//! Lists, verifies and exports the checkpoints of a run, and asks for one.

mod now;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use windlass_checkpoint::{
    Checkpoint, Contents, Damage, ExportError, Skipped, Store, StoreError, folder, list, manifest_file,
    newest,
};
use windlass_common::exit::Exit;
use windlass_common::layout::Layout;
use windlass_common::plan::Plan;

use crate::failure::{Failure, Outcome};
use crate::figures::{bytes, grouped, moment};
use crate::flags::{CheckpointCommand, CheckpointFlags, ExportFlags, VerifyFlags};
use crate::on_runtime;
use crate::run_directory::{self, CHECKPOINTS, PLAN_FILE};

/// Does what is asked with the checkpoints of a place.
///
/// # Errors
/// If the place has none or cannot be read; if a checkpoint is damaged; if the file cannot be written.
pub(crate) fn run(flags: CheckpointFlags) -> Outcome<()> {
    match &flags.command {
        CheckpointCommand::Now(flags) => on_runtime(now::run(flags.clone())),
        CheckpointCommand::List(place) => crate::print(&table(&open(&place.place)?)?),
        CheckpointCommand::Verify(flags) => verify(flags),
        CheckpointCommand::Export(flags) => export(flags),
    }
}

/// The store at a location; of a run's directory, its folder of checkpoints or wherever else the run keeps them.
fn open(location: &str) -> Outcome<Arc<dyn Store>> {
    let path = Path::new(location);
    if location.contains("://") {
        return windlass_checkpoint::open(location).map_err(failure);
    }
    if !path.is_dir() {
        let what = if path.exists() { "is not a directory" } else { "is not there" };
        return Err(Failure::new(Exit::Input, format!("{location} {what}")));
    }
    if let Some(elsewhere) = run_directory::location(path) {
        return windlass_checkpoint::open(&elsewhere).map_err(failure);
    }
    let inner = path.join(CHECKPOINTS);
    if inner.is_dir() {
        return windlass_checkpoint::open(&inner.display().to_string()).map_err(failure);
    }
    if path.join(PLAN_FILE).exists() {
        let sentence = format!("the run in {location} has no checkpoints: there is no folder {CHECKPOINTS}");
        return Err(Failure::new(Exit::Input, sentence));
    }
    windlass_checkpoint::open(location).map_err(failure)
}

/// Which checkpoints there are, for people.
fn table(store: &Arc<dyn Store>) -> Outcome<String> {
    let listed = list(&**store).map_err(failure)?;
    if listed.is_empty() {
        return Ok(format!("no checkpoints in {}\n", store.place()));
    }
    let mut text = format!(
        "{:>10}  {:<23}  {:>7}  {:>15}  {:>13}  {:>9}  {:>5}  {:>9}\n",
        "checkpoint", "written", "lineage", "examples", "steps", "rounds", "files", "size"
    );
    for listed in listed {
        let number = listed.number;
        let _ = match listed.contents {
            Contents::Complete(summary) => writeln!(
                text,
                "{number:>10}  {:<23}  {:>7}  {:>15}  {:>13}  {:>9}  {:>5}  {:>9}",
                moment(summary.at_us),
                summary.lineage,
                grouped(summary.examples),
                grouped(summary.steps),
                grouped(summary.rounds),
                summary.files,
                bytes(summary.bytes as f64)
            ),
            Contents::Damaged(damage) => writeln!(text, "{number:>10}  damaged: {damage}"),
            Contents::Unfinished { files } => {
                writeln!(text, "{number:>10}  unfinished: {files} files and no manifest")
            }
        };
    }
    Ok(text)
}

fn verify(flags: &VerifyFlags) -> Outcome<()> {
    let store = open(&flags.place.place)?;
    let numbers = match flags.number {
        Some(number) => vec![number],
        None => finished(&store)?,
    };
    let mut damaged = Vec::new();
    for &number in &numbers {
        match opened(&store, number).and_then(|checkpoint| sound(&checkpoint).map(|_| checkpoint)) {
            Ok(checkpoint) => {
                let manifest = checkpoint.manifest();
                let size = bytes(manifest.bytes() as f64);
                crate::print(&format!(
                    "checkpoint {number} is sound: {} files, {size}\n",
                    manifest.files.len()
                ))?;
            }
            Err(Damage::Unread(error)) => return Err(failure(error)),
            Err(damage) => damaged.push(format!("checkpoint {number}: {damage}")),
        }
    }
    match (damaged.as_slice(), numbers.len()) {
        ([], 0) => Err(none_sound(&store, &[])),
        ([], _) => Ok(()),
        ([one], 1) => Err(Failure::new(Exit::Input, format!("{} is damaged: {one}", store.place()))),
        (several, all) => {
            let sentence = format!("{} of {all} checkpoints in {} are damaged", several.len(), store.place());
            Err(Failure::new(Exit::Input, sentence).with_details(damaged))
        }
    }
}

/// The numbers of those that have a manifest. The others are told of.
fn finished(store: &Arc<dyn Store>) -> Outcome<Vec<u64>> {
    let mut numbers = Vec::new();
    for listed in list(&**store).map_err(failure)? {
        match listed.contents {
            Contents::Unfinished { .. } => {
                crate::remark(&format!("note: {} is unfinished and is not looked at", folder(listed.number)));
            }
            Contents::Complete(_) | Contents::Damaged(_) => numbers.push(listed.number),
        }
    }
    Ok(numbers)
}

/// Opens a checkpoint, and says of one that is not there which there are.
fn opened(store: &Arc<dyn Store>, number: u64) -> Result<Checkpoint, Damage> {
    Checkpoint::open(store, number).map_err(|damage| match damage {
        Damage::Missing { file } if file == manifest_file(number) => {
            let there = list(&**store).unwrap_or_default();
            let there: Vec<String> = there.iter().map(|listed| listed.number.to_string()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            Damage::Malformed { file, why: format!("it is not there; {} has {there}", store.place()) }
        }
        other => other,
    })
}

/// Checks every file of a checkpoint, and that it holds the model of its plan, whose layout this gives.
fn sound(checkpoint: &Checkpoint) -> Result<Layout, Damage> {
    let layout = layout(checkpoint)?;
    checkpoint.verify()?;
    Ok(layout)
}

fn layout(checkpoint: &Checkpoint) -> Result<Layout, Damage> {
    let manifest = checkpoint.manifest();
    let malformed = |why: String| Damage::Malformed { file: manifest_file(manifest.number), why };
    let plan = Plan::parse(&manifest.plan).map_err(|error| malformed(format!("its plan: {error}")))?;
    let layout = plan.layout().map_err(|error| malformed(format!("its plan: {error}")))?;
    let lengths =
        layout.variables().iter().map(|variable| (variable.name.as_str(), variable.shape.iter().product()));
    manifest.fits(lengths)?;
    Ok(layout)
}

fn export(flags: &ExportFlags) -> Outcome<()> {
    if flags.to.exists() {
        return Err(Failure::usage(format!(
            "--to {} is there already, and is not replaced",
            flags.to.display()
        )));
    }
    let store = open(&flags.place.place)?;
    let checkpoint = match flags.number {
        Some(number) => opened(&store, number).map_err(|damage| damaged(&store, &damage))?,
        None => {
            let (found, skipped) = newest(&store).map_err(failure)?;
            for Skipped { number, why } in &skipped {
                crate::remark(&format!("note: checkpoint {number} is damaged and is skipped: {why}"));
            }
            found.ok_or_else(|| none_sound(&store, &skipped))?
        }
    };
    let layout = layout(&checkpoint).map_err(|damage| damaged(&store, &damage))?;
    let shapes =
        layout.variables().iter().map(|variable| (variable.name.as_str(), variable.shape.as_slice()));
    windlass_checkpoint::export(&checkpoint, shapes, &flags.to).map_err(|error| match error {
        ExportError::Damage(damage) => damaged(&store, &damage),
        error @ ExportError::Write { .. } => {
            Failure { exit: Exit::System, error: error.into(), details: Vec::new() }
        }
    })?;
    let manifest = checkpoint.manifest();
    crate::print(&format!(
        "{} holds checkpoint {} of {}: {} variables, {} values, after {} examples\n",
        flags.to.display(),
        manifest.number,
        manifest.run,
        layout.variables().len(),
        grouped(layout.total()),
        grouped(manifest.examples)
    ))
}

fn none_sound(store: &Arc<dyn Store>, skipped: &[Skipped]) -> Failure {
    let what = if skipped.is_empty() { "no finished checkpoint" } else { "no sound checkpoint" };
    Failure::new(Exit::Input, format!("there is {what} in {}", store.place()))
}

fn damaged(store: &Arc<dyn Store>, damage: &Damage) -> Failure {
    match damage {
        Damage::Unread(error) => failure(error.clone()),
        damage => Failure::new(Exit::Input, format!("in {}: {damage}", store.place())),
    }
}

/// What a store did not do, with the exit code that fits.
fn failure(error: StoreError) -> Failure {
    let exit = match &error {
        StoreError::Location { .. } | StoreError::Name { .. } => Exit::Usage,
        StoreError::Failed { what, .. } if what.contains("://") => Exit::Network,
        StoreError::Failed { .. } | StoreError::Missing { .. } | StoreError::Unsound { .. } => Exit::Input,
    };
    Failure { exit, error: error.into(), details: Vec::new() }
}

#[cfg(test)]
mod tests;
