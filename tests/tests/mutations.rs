//! Breaks one rule at a time in a copy of the cores, and shows that the hunt or a test notices.
//!
//! Each file in `mutations/` is a patch whose first line says which rule it breaks. There are two copies, each built in a
//! target folder of its own, which is kept, so that only what a patch touches is built again; they take the patches in
//! turn, since most of such a build keeps one core busy. The hunt comes first; only what it does not notice are the tests
//! asked about, and of what it is known not to notice only the one that does. `WINDLASS_MUTATIONS=NAME,NAME` breaks only
//! those rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

/// What is copied, from the root of the workspace.
const COPIED: [&str; 4] = ["common", "ps/core", "worker/core", "tests"];
/// What is not: other crates within those, and this test itself.
const LEFT_OUT: [&str; 4] =
    ["common/transport", "tests/process", "tests/mutations", "tests/tests/mutations.rs"];

/// Seeds of the hunt.
const SEEDS: &str = "0..8000";
/// The hunt takes some seconds; one that takes this long has a run that does not end.
const HUNT_WITHIN: Duration = Duration::from_secs(120);
/// These the hunt has to notice by itself.
const BY_THE_HUNT: [&str; 30] = [
    // The duplicate check.
    "duplicate-taken",
    // The order of acknowledgement.
    "acknowledged-not-applied",
    "acknowledged-not-recorded",
    // The release rule.
    "bound-loose",
    "bound-tight",
    // What a gradient is computed on that was computed ahead.
    "ahead-on-the-newest",
    "ahead-beyond-the-bound",
    // The order of reduction.
    "reduction-order",
    "round-by-arrival",
    // The quorum.
    "quorum-ignored",
    // The gap between sequences.
    "gap-taken",
    // The lineage.
    "lineage-ignored",
    // The order in which a checkpoint is written.
    "manifest-first",
    // One cut through all shards, and what it holds.
    "cut-at-once",
    "later-not-aside",
    "held-in-checkpoint",
    // What codecs have left out of the pushes that are in a checkpoint.
    "residuals-not-in-checkpoint",
    "residual-after-a-later-push",
    "residual-of-another-history",
    // The end of a pause.
    "pause-never-ends",
    // What a standby takes, and holds when it is begun.
    "fence-removed",
    "held-not-copied",
    "early-feed-taken",
    // What a primary shows.
    "acknowledged-before-standby",
    "gate-opened-early",
    "values-shown-unconfirmed",
    // Which copy is gone on with, and what it tells.
    "promoted-not-full",
    "older-copy-taken",
    "standby-over-primary",
    "records-not-told-again",
];

/// The programs of tests that may notice what the hunt does not.
const TESTS: [&str; 4] = ["equalities", "federated", "scenarios", "checkpoints"];
/// These the hunt does not notice within its seeds, and is not asked about: the rule and the program that notices.
const BY_TESTS: [(&str, &str); 12] = [
    ("conclusion-forgotten", "scenarios"),
    ("departed-not-voided", "scenarios"),
    ("first-shard-believed", "scenarios"),
    ("held-forgotten", "scenarios"),
    ("joiner-holds-up", "scenarios"),
    ("later-step-kept", "scenarios"),
    ("lease-ignored", "scenarios"),
    ("lost-waited-for", "scenarios"),
    ("old-number-with-backup", "scenarios"),
    ("pulled-again-otherwise", "equalities"),
    ("stale-kept", "scenarios"),
    ("step-not-made-again", "scenarios"),
];

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
    let copies = ["first", "second"].map(|name| Copy {
        work: folder.join(name).join("work"),
        target: folder.join(name).join("target"),
        root: root.clone(),
    });
    let whole = "the unpatched copy";
    copies[0].begin_with(folder.with_file_name("simulation"));
    assert_eq!(copies[0].hunt(whole), None, "without any mutation the hunt fails");
    let failed = copies[0].failing_tests(whole, &TESTS);
    assert!(failed.is_empty(), "without any mutation these fail: {failed:?}");
    copies[1].begin_like(&copies[0]);

    let mut patches: Vec<PathBuf> = fs::read_dir(root.join("tests/mutations"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    patches.sort();
    assert!(patches.len() >= 10, "there are {} patches", patches.len());
    let name = |patch: &PathBuf| patch.file_stem().unwrap().to_string_lossy().into_owned();
    for wanted in BY_THE_HUNT.into_iter().chain(BY_TESTS.map(|(name, _)| name)) {
        assert!(patches.iter().any(|patch| name(patch) == wanted), "there is no patch {wanted}");
    }
    if let Ok(only) = env::var("WINDLASS_MUTATIONS") {
        patches.retain(|patch| only.split(',').any(|one| one == name(patch)));
        assert!(!patches.is_empty(), "WINDLASS_MUTATIONS names no patch");
    }
    let (all, patches_left) = (Instant::now(), Mutex::new(patches.iter().enumerate()));
    let report = Mutex::new(Report::default());
    thread::scope(|scope| {
        for copy in &copies {
            scope.spawn(|| {
                loop {
                    let next = patches_left.lock().unwrap().next();
                    let Some((number, patch)) = next else { break };
                    let (line, noticed) = copy.noticed(&name(patch), patch);
                    report.lock().unwrap().add(number, line, (!noticed).then(|| name(patch)));
                }
                copy.refresh();
            });
        }
    });
    println!("{} mutations in {} s", patches.len(), all.elapsed().as_secs());
    let unnoticed: Vec<String> = report.into_inner().unwrap().unnoticed.into_values().collect();
    assert!(unnoticed.is_empty(), "not noticed as they should be: {}", unnoticed.join(", "));
}

/// What became of the patches, told in their order whichever copy is done first.
#[derive(Default)]
struct Report {
    untold: BTreeMap<usize, String>,
    told: usize,
    unnoticed: BTreeMap<usize, String>,
}

impl Report {
    fn add(&mut self, number: usize, line: String, unnoticed: Option<String>) {
        self.untold.insert(number, line);
        self.unnoticed.extend(unnoticed.map(|name| (number, name)));
        while let Some(line) = self.untold.remove(&self.told) {
            println!("{line}");
            self.told += 1;
        }
    }
}

/// What the hunt has found.
#[derive(Debug, PartialEq)]
struct Hunted {
    /// Played until then, in their order.
    seeds: u64,
    why: String,
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

    /// Makes the copy equal to the workspace, with what has been built there of what others wrote, if nothing has been built
    /// here yet.
    fn begin_with(&self, built: PathBuf) {
        let here = self.target.join("simulation");
        if !here.exists() && built.exists() {
            let partly = self.target.join("partly");
            drop(fs::remove_dir_all(&partly));
            for part in ["build", "deps", ".fingerprint"] {
                duplicate(&built.join(part), &partly.join(part), |name| !name.contains("windlass"));
            }
            fs::rename(&partly, &here).unwrap_or_else(|e| panic!("{}: {e}", here.display()));
        }
        self.refresh();
    }

    /// Makes the copy what another is, and what has been built of it, too, where nothing has been built yet.
    fn begin_like(&self, other: &Self) {
        let folder = self.work.parent().expect("it is not the root");
        if !folder.exists() {
            // Under its name only when it is whole.
            let partly = folder.with_extension("partly");
            drop(fs::remove_dir_all(&partly));
            duplicate(other.work.parent().expect("it is not the root"), &partly, |_| true);
            fs::rename(&partly, folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        }
        self.refresh();
    }

    /// Breaks one rule and says what noticed it, in a line to print, and whether that is what should.
    fn noticed(&self, name: &str, patch: &Path) -> (String, bool) {
        let begun = Instant::now();
        self.refresh();
        self.apply(patch);
        let known = BY_TESTS.iter().find(|(rule, _)| *rule == name).map(|(_, program)| *program);
        let (by, noticed) = match (known, known.is_none().then(|| self.hunt(name)).flatten()) {
            (_, Some(Hunted { seeds, why })) => (format!("the hunt after {seeds} seeds: {why}"), true),
            (Some(program), None) => {
                let failed = self.failing_tests(name, &[program]);
                let by = if failed.is_empty() { "NO TEST".into() } else { failed.join(", ") };
                (by, !failed.is_empty())
            }
            (None, None) => {
                let failed = self.failing_tests(name, &TESTS);
                let noticed = !failed.is_empty() && !BY_THE_HUNT.contains(&name);
                let by = if failed.is_empty() { "NO TEST".into() } else { failed.join(", ") };
                (format!("not by the hunt, but by {by}"), noticed)
            }
        };
        (format!("{name} ({} s): {by}", begun.elapsed().as_secs()), noticed)
    }

    fn apply(&self, patch: &Path) {
        let mut git = Command::new("git");
        // The copy lies within a clone but is no part of it.
        git.env("GIT_CEILING_DIRECTORIES", self.work.parent().expect("it is not the root"));
        let done = git.current_dir(&self.work).arg("apply").arg(patch).output().expect("git can be run");
        let why = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{} does not apply any more: {why}", patch.display());
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.work).env("CARGO_TARGET_DIR", &self.target).env("RUST_BACKTRACE", "0");
        cargo.env("CARGO_INCREMENTAL", "1");
        cargo
    }

    /// Builds the hunt and plays its seeds until one fails.
    fn hunt(&self, name: &str) -> Option<Hunted> {
        let mut cargo = self.cargo();
        cargo.args([
            "build",
            "--offline",
            "--profile",
            "simulation",
            "-p",
            "windlass-tests",
            "--bin",
            "hunt",
        ]);
        let built = cargo.output().expect("cargo can be run");
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{name} cannot be built:\n{errors}");

        let mut hunt = Command::new(self.target.join("simulation/hunt"));
        hunt.args(["--seeds", SEEDS, "--until-failure"]).stdout(Stdio::piped());
        let (mut child, begun) = (hunt.spawn().expect("what was built can be run"), Instant::now());
        while child.try_wait().expect("it is a child").is_none() {
            if begun.elapsed() >= HUNT_WITHIN {
                child.kill().expect("it is a child");
                child.wait().expect("it is a child");
                panic!("{name}: the hunt has not ended within {} s", HUNT_WITHIN.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let done = child.wait_with_output().expect("it has ended");
        let out = String::from_utf8_lossy(&done.stdout);
        if done.status.success() {
            return None;
        }
        // The first of those that failed: all before it have been played to their end.
        let (_, failure) = out.split_once("\nhunt --seed ").unwrap_or_else(|| panic!("{name}:\n{out}"));
        let mut lines = failure.lines();
        let seed: u64 = lines.next().and_then(|l| l.parse().ok()).expect("the hunt names the seed");
        let why = lines.nth(1).unwrap_or_default().trim().chars().take(120).collect();
        Some(Hunted { seeds: seed + 1, why })
    }

    /// Builds and runs these programs of tests, and names the tests that fail.
    fn failing_tests(&self, name: &str, programs: &[&str]) -> Vec<String> {
        let mut cargo = self.cargo();
        // A part of the seeds is enough to notice.
        cargo.env("WINDLASS_SEED_TIMES", "0.25").env_remove("WINDLASS_SEED").env_remove("UPDATE_SCENARIOS");
        cargo.args([
            "test",
            "--offline",
            "--no-fail-fast",
            "--profile",
            "simulation",
            "-p",
            "windlass-tests",
        ]);
        cargo.args(programs.iter().flat_map(|program| ["--test", program]));
        let done = cargo.output().expect("cargo can be run");
        let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
        let failed: Vec<String> = out.lines().filter_map(failed).collect();
        let ran = out.matches("test result:").count();
        assert_eq!(ran, programs.len(), "{name} cannot be built or run:\n{errors}\n{out}");
        assert_eq!(done.status.success(), failed.is_empty(), "{name}:\n{errors}\n{out}");
        failed
    }
}

/// The workspace's manifest with only the copied members.
fn reduced(manifest: &Path) -> String {
    let text = fs::read_to_string(manifest).expect("the workspace has a manifest");
    let (before, rest) = text.split_once("members = [").expect("the workspace lists its members");
    let (_, after) = rest.split_once(']').expect("the list ends");
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

/// Copies a folder with the times of its files, by which is known what has to be built again: all in it that has such a name.
fn duplicate(from: &Path, to: &Path, wanted: fn(&str) -> bool) {
    let copied = || -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if !wanted(&entry.file_name().to_string_lossy()) {
                continue;
            }
            let (entry, target) = (entry.path(), to.join(entry.file_name()));
            if entry.is_dir() {
                duplicate(&entry, &target, wanted);
            } else {
                fs::copy(&entry, &target)?;
                let modified = fs::metadata(&entry)?.modified()?;
                fs::File::options().append(true).open(&target)?.set_modified(modified)?;
            }
        }
        Ok(())
    };
    copied().unwrap_or_else(|e| panic!("{}: {e}", to.display()));
}

fn write_if_different(path: &Path, bytes: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
