//! Finds a name and a directory for a run that no other run has.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use windlass_common::exit::Exit;

use crate::failure::{Failure, OrExit, Outcome};

/// Where runs are kept, unless a directory is named.
pub(crate) const RUNS: &str = "runs";
/// The plan's file in a run directory.
pub(crate) const PLAN_FILE: &str = "plan.toml";
/// The result's file in a run directory.
pub(crate) const MODEL_FILE: &str = "model.safetensors";
/// The summary's file in a run directory.
pub(crate) const SUMMARY_FILE: &str = "summary.json";
/// The file that says where the coordinator listens, while a run that was started here lasts.
pub(crate) const COORDINATOR_FILE: &str = "coordinator";
/// The identity by which others look at such a run.
pub(crate) const OBSERVER_FILE: &str = "observer.pem";
/// The folder of a run directory that holds what the processes wrote.
pub(crate) const LOGS: &str = "logs";
/// The folder of a run directory that holds its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The file that says where the checkpoints are, if not in the run directory.
const CHECKPOINTS_FILE: &str = "checkpoints.location";
const EVENTS_FILE: &str = "events.jsonl";
/// What server 0 has decided: it is there once the run has begun.
pub(crate) const DECISIONS_FILE: &str = "decisions.jsonl";

/// Where a run is to be kept, and under which name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// This directory, under this name.
    Named { name: String, path: PathBuf },
    /// The first that is free of `BASE-1`, `BASE-2` and so on, in this folder.
    Numbered { base: String, folder: PathBuf },
}

impl Place {
    /// What the flags say; `base` is what a run without a name is called.
    ///
    /// # Errors
    /// If the directory has no name that a run could have.
    pub(crate) fn of(name: Option<&str>, directory: Option<&Path>, base: &str) -> Outcome<Self> {
        match (name, directory) {
            (Some(name), Some(path)) => Ok(Self::Named { name: name.to_owned(), path: path.to_owned() }),
            (Some(name), None) => Ok(Self::Named { name: name.to_owned(), path: Path::new(RUNS).join(name) }),
            (None, None) => Ok(Self::Numbered { base: without_number(base).to_owned(), folder: RUNS.into() }),
            (None, Some(path)) => {
                let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                    Failure::usage(format!("--run-dir {} gives the run no name; add --name", path.display()))
                })?;
                Ok(Self::Named { name: name.to_owned(), path: path.to_owned() })
            }
        }
    }

    /// The name as far as it is known before the directory is made.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Named { name, .. } => name,
            Self::Numbered { base, .. } => base,
        }
    }

    /// Makes the directory, and says where it is and what the run is called.
    ///
    /// # Errors
    /// If it holds a run already, or cannot be made.
    pub(crate) fn claim(&self) -> Outcome<(String, PathBuf)> {
        match self {
            Self::Named { name, path } => {
                let files = [PLAN_FILE, EVENTS_FILE, DECISIONS_FILE, MODEL_FILE, SUMMARY_FILE];
                if let Some(found) = files.iter().find(|file| path.join(file).exists()) {
                    let what = format!("{} holds a run already ({found})", path.display());
                    return Err(Failure::usage(format!(
                        "{what}; choose another --run-dir or --name, or remove it"
                    )));
                }
                make(path)?;
                Ok((name.clone(), path.clone()))
            }
            Self::Numbered { base, folder } => {
                make(folder)?;
                for number in 1_u64.. {
                    let name = format!("{base}-{number}");
                    let path = folder.join(&name);
                    // Making it fails when it is there, so that two runs that start at once do not share it.
                    match fs::create_dir(&path) {
                        Ok(()) => return Ok((name, path)),
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                        Err(error) => return Err(error).or_fail(Exit::System, could_not_make(&path)),
                    }
                }
                unreachable!("there are more numbers than directories")
            }
        }
    }
}

/// Writes a file of a run directory, whole or not at all.
///
/// # Errors
/// If it cannot be written; what was there is then as it was.
pub(crate) fn write_whole(directory: &Path, name: &str, text: &str) -> Outcome<()> {
    let (path, new) = (directory.join(name), directory.join(format!(".{name}.new")));
    let written = (|| {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    })();
    written.or_fail(Exit::System, format!("could not write {}", path.display()))
}

/// Remembers where the checkpoints of a run are that are not in its directory, and says how it is told to servers.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn keep_location(directory: &Path, location: &str) -> Outcome<String> {
    // Whoever goes on with the run may be somewhere else.
    let location = match location.contains("://") {
        true => location.to_owned(),
        false => {
            let path = std::path::absolute(location).or_fail(Exit::Usage, "--checkpoints")?;
            path.to_str()
                .ok_or_else(|| Failure::usage("--checkpoints is no valid UTF-8 with the path to it"))?
                .to_owned()
        }
    };
    write_whole(directory, CHECKPOINTS_FILE, &format!("{location}\n"))?;
    Ok(location)
}

/// Whether server 0 has begun the run in this directory, so that it can only go on with it.
pub(crate) fn has_begun(directory: &Path) -> bool {
    directory.join(DECISIONS_FILE).metadata().is_ok_and(|file| file.len() > 0)
}

/// Where the checkpoints of a run are, if not in its directory.
pub(crate) fn location(directory: &Path) -> Option<String> {
    let text = fs::read_to_string(directory.join(CHECKPOINTS_FILE)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn make(path: &Path) -> Outcome<()> {
    fs::create_dir_all(path).or_fail(Exit::System, could_not_make(path))
}

fn could_not_make(path: &Path) -> String {
    format!("could not make the directory {}", path.display())
}

/// A name without the number that an earlier run was given.
fn without_number(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((base, number)) if !base.is_empty() && number.parse::<u64>().is_ok() => base,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_without_a_name_get_the_next_number() {
        let folder = tempfile::tempdir().unwrap();
        let place = |base: &str| Place::Numbered { base: base.into(), folder: folder.path().join("runs") };
        let names: Vec<String> = (0..3).map(|_| place("a-sync").claim().unwrap().0).collect();
        assert_eq!(names, ["a-sync-1", "a-sync-2", "a-sync-3"]);
        assert_eq!(place("b").claim().unwrap().0, "b-1");
        assert!(folder.path().join("runs/b-1").is_dir());
    }

    #[test]
    fn runs_that_start_at_once_get_different_names() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Numbered { base: "x".into(), folder: folder.path().into() };
        let names: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| place.claim().unwrap().0)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(names.len(), 16);
    }

    #[test]
    fn a_directory_with_a_run_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine");
        let place = Place::of(None, Some(&path), "base").unwrap();
        assert_eq!(place.claim().unwrap(), ("mine".to_owned(), path.clone()));
        fs::write(path.join(EVENTS_FILE), "").unwrap();
        let failure = place.claim().unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.sentence().contains("holds a run already (events.jsonl)"));
    }

    #[test]
    fn where_checkpoints_are_is_remembered_wherever_one_stands() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(location(folder.path()), None);
        assert_eq!(keep_location(folder.path(), "s3://bucket/run").unwrap(), "s3://bucket/run");
        assert_eq!(location(folder.path()).as_deref(), Some("s3://bucket/run"));
        let kept = keep_location(folder.path(), "kept/here").unwrap();
        assert!(kept.starts_with('/') && kept.ends_with("/kept/here"), "{kept}");
        assert_eq!(location(folder.path()), Some(kept));
        assert_eq!(keep_location(folder.path(), "").unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        write_whole(folder.path(), PLAN_FILE, "first").unwrap();
        // What cannot be put in place leaves what was there.
        fs::create_dir(folder.path().join(".plan.toml.new")).unwrap();
        assert_eq!(write_whole(folder.path(), PLAN_FILE, "second").unwrap_err().exit, Exit::System);
        assert_eq!(fs::read_to_string(folder.path().join(PLAN_FILE)).unwrap(), "first");
    }

    #[test]
    fn names_come_from_flags_or_the_directory() {
        let of = |name, path: Option<&str>| Place::of(name, path.map(Path::new), "2nn-sync-7");
        assert_eq!(of(Some("n"), Some("d")).unwrap(), Place::Named { name: "n".into(), path: "d".into() });
        assert_eq!(of(Some("n"), None).unwrap(), Place::Named { name: "n".into(), path: "runs/n".into() });
        assert_eq!(of(None, Some("x/d/")).unwrap().name(), "d");
        let numbered = Place::Numbered { base: "2nn-sync".into(), folder: "runs".into() };
        assert_eq!(of(None, None).unwrap(), numbered);
        assert!(of(None, Some("..")).is_err());
        assert_eq!(without_number("7"), "7");
        assert_eq!(without_number("a-b"), "a-b");
    }
}
