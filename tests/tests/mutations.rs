//! Breaks one rule at a time in a copy of the cores, and shows that a test notices.
//!
//! Each file in `mutations/` is a patch whose first line says which rule it breaks. The copy is built in a target
//! folder of its own, which is kept, so that only what a patch touches is built again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

/// What is copied, from the root of the workspace.
const COPIED: [&str; 4] = ["common", "ps/core", "worker/core", "tests"];
/// What is not: other crates within those, and this test itself.
const LEFT_OUT: [&str; 4] =
    ["common/transport", "tests/process", "tests/mutations", "tests/tests/mutations.rs"];

#[test]
fn every_broken_rule_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_path_buf();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in the target folder")
        .join("mutations");
    let copy = Copy { work: folder.join("work"), target: folder.join("target"), root };
    copy.refresh();
    let failed = copy.failing_tests("the unpatched copy");
    assert!(failed.is_empty(), "without any mutation these fail: {failed:?}");

    let mut patches: Vec<PathBuf> = fs::read_dir(copy.root.join("tests/mutations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    patches.sort();
    assert!(patches.len() >= 10, "there are {} patches", patches.len());
    let mut unnoticed = Vec::new();
    for patch in &patches {
        let name = patch.file_stem().unwrap().to_string_lossy();
        let begun = Instant::now();
        copy.refresh();
        copy.apply(patch);
        let failed = copy.failing_tests(&name);
        let noticed = if failed.is_empty() { "NOT NOTICED".into() } else { failed.join(", ") };
        println!("{name} ({} s): {noticed}", begun.elapsed().as_secs());
        if failed.is_empty() {
            unnoticed.push(name.into_owned());
        }
    }
    copy.refresh();
    assert!(unnoticed.is_empty(), "no test notices {}", unnoticed.join(", "));
}

/// A workspace of the cores and their tests alone.
struct Copy {
    root: PathBuf,
    work: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Makes the copy equal to the workspace. Files that are equal already are not touched, so that what depends on
    /// them is not built again.
    fn refresh(&self) {
        for part in COPIED {
            mirror(&self.root, &self.work, Path::new(part));
        }
        write_if_different(&self.work.join("Cargo.toml"), reduced(&self.root.join("Cargo.toml")).as_bytes());
        let lock = fs::read(self.root.join("Cargo.lock")).expect("the workspace has a lock file");
        write_if_different(&self.work.join("Cargo.lock"), &lock);
    }

    fn apply(&self, patch: &Path) {
        let mut git = Command::new("git");
        // The copy lies within a clone but is no part of it.
        git.env("GIT_CEILING_DIRECTORIES", self.work.parent().expect("it is not the root"));
        let done = git.current_dir(&self.work).arg("apply").arg(patch).output().expect("git can be run");
        let why = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{} does not apply any more: {why}", patch.display());
    }

    /// Builds and runs the tests, and names those that fail.
    fn failing_tests(&self, name: &str) -> Vec<String> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.work).env("CARGO_TARGET_DIR", &self.target).env("RUST_BACKTRACE", "0");
        // A part of the seeds is enough to notice.
        cargo.env("WINDLASS_SEED_TIMES", "0.25").env_remove("WINDLASS_SEED").env_remove("UPDATE_SCENARIOS");
        cargo.args(["test", "--offline", "--no-fail-fast", "-p", "windlass-tests"]);
        cargo.args(["--test", "equalities", "--test", "federated", "--test", "scenarios"]);
        let done = cargo.output().expect("cargo can be run");
        let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
        let failed: Vec<String> = out.lines().filter_map(failed).collect();
        let ran = out.matches("test result:").count();
        assert_eq!(ran, 3, "{name} cannot be built or run:\n{errors}\n{out}");
        assert_eq!(done.status.success(), failed.is_empty(), "{name}:\n{errors}\n{out}");
        failed
    }
}

/// The workspace's manifest with only the copied members, and without debug information, which takes time to write.
fn reduced(manifest: &Path) -> String {
    let text = fs::read_to_string(manifest).expect("the workspace has a manifest");
    let (before, rest) = text.split_once("members = [").expect("the workspace lists its members");
    let (_, after) = rest.split_once(']').expect("the list ends");
    let after = after.replace("[profile.dev]\n", "[profile.dev]\ndebug = false\n");
    format!("{before}members = {COPIED:?}{after}")
}

/// Copies what is below `part`, and removes from the copy what is not there any more.
fn mirror(from: &Path, to: &Path, part: &Path) {
    let wanted = |path: &PathBuf| !LEFT_OUT.iter().any(|left| path == Path::new(left));
    let names = |folder: &Path| -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(folder.join(part)).into_iter().flatten();
        entries
            .map(|entry| part.join(entry.expect("a folder can be listed").file_name()))
            .filter(wanted)
            .collect()
    };
    fs::create_dir_all(to.join(part)).expect("the target folder can be written");
    let here = names(from);
    for gone in names(to).difference(&here) {
        let gone = to.join(gone);
        let removed = if gone.is_dir() { fs::remove_dir_all(&gone) } else { fs::remove_file(&gone) };
        removed.unwrap_or_else(|e| panic!("{}: {e}", gone.display()));
    }
    for path in here {
        if from.join(&path).is_dir() {
            mirror(from, to, &path);
        } else {
            write_if_different(
                &to.join(&path),
                &fs::read(from.join(&path)).expect("a source file can be read"),
            );
        }
    }
}

fn write_if_different(path: &Path, bytes: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
