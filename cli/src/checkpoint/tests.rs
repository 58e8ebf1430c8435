//! What the commands on checkpoints say and leave.

use std::fs;
use std::path::PathBuf;

use windlass_checkpoint::{LocalStore, Manifest, SlicePart, shard_file, write_manifest, write_shard};
use windlass_common::layout::{Initial, Variable};

use super::*;
use crate::flags::parse;
use crate::model_file;
use crate::problem::tests::plan_of_model;

/// The directory of a run with checkpoints, each of 2 shards.
struct Run {
    folder: tempfile::TempDir,
    plan: Plan,
}

impl Run {
    fn new(numbers: &[u64]) -> Self {
        let mut plan = plan_of_model("softmax", 1, 1);
        plan.model.name = "own".into();
        plan.model.variables =
            vec![Variable::new("w", &[2, 2], Initial::Zeros), Variable::new("b", &[1], Initial::Zeros)];
        let run = Self { folder: tempfile::tempdir().unwrap(), plan };
        fs::write(run.folder.path().join(PLAN_FILE), run.plan.to_text()).unwrap();
        numbers.iter().for_each(|&number| run.write(number, 4));
        run
    }

    fn store(&self) -> LocalStore {
        LocalStore::new(self.folder.path().join(CHECKPOINTS))
    }

    /// Writes a checkpoint with so many values of w, which should have 4.
    fn write(&self, number: u64, values: usize) {
        let store = self.store();
        let of =
            |variable, start, values| SlicePart { variable, start, values, states: vec![], updates: number };
        let w = [number as f32, 2.0, 3.0, 4.0];
        let files = vec![
            write_shard(&store, number, 0, &[of("w", 0, &w[..2])], &[]).unwrap(),
            write_shard(&store, number, 1, &[of("w", 2, &w[2..values]), of("b", 0, &[5.0])], &[]).unwrap(),
        ];
        let manifest = Manifest {
            number,
            run: "a-run".into(),
            lineage: 0,
            at_us: 1_735_689_599_000_000,
            plan: self.plan.to_text(),
            examples: 1_234_567,
            steps: 1000 * number,
            rounds: 0,
            files,
            state: serde_json::Value::Null,
        };
        write_manifest(&store, &manifest).unwrap();
    }

    fn place(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(CHECKPOINTS).join(name)
    }

    fn flip(&self, name: &str) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(self.file(name), bytes).unwrap();
    }

    fn command(&self, words: &[&str]) -> Outcome<()> {
        command(&self.place(), words)
    }
}

/// Runs `windlass checkpoint` with these words after it.
fn command(place: &str, words: &[&str]) -> Outcome<()> {
    let words = words.iter().map(|&word| if word == "PLACE" { place } else { word });
    match parse(["windlass", "checkpoint"].into_iter().chain(words)).unwrap().command {
        crate::flags::Command::Checkpoint(flags) => run(flags),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_table_tells_of_each() {
    let run = Run::new(&[1, 2, 12]);
    run.flip("checkpoint-00000002/manifest");
    fs::remove_file(run.file("checkpoint-00000012/manifest")).unwrap();
    let text = table(&open(&run.place()).unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4);
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(words[..8], ["1", "2024-12-31", "23:59:59", "UTC", "0", "1,234,567", "1,000", "0"]);
    assert_eq!(words[8], "2");
    assert!(
        lines[2].starts_with("         2  damaged: checkpoint-00000002/manifest has the checksum "),
        "{text}"
    );
    assert_eq!(lines[3], "        12  unfinished: 2 files and no manifest");
    // The folder of the checkpoints itself is a place too.
    let inner = run.folder.path().join(CHECKPOINTS);
    assert_eq!(table(&open(inner.to_str().unwrap()).unwrap()).unwrap(), text);
    run.command(&["list", "PLACE"]).unwrap();
    // A run that keeps them elsewhere says where.
    let other = Run::new(&[]);
    run_directory::keep_location(other.folder.path(), inner.to_str().unwrap()).unwrap();
    assert_eq!(table(&open(&other.place()).unwrap()).unwrap(), text);
}

#[test]
fn places_without_checkpoints_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let failed = |place: &str| {
        let failure = open(place).unwrap_err();
        (failure.exit, failure.sentence())
    };
    assert_eq!(failed(&format!("{path}/no")), (Exit::Input, format!("{path}/no is not there")));
    assert_eq!(failed("ftp://x").0, Exit::Usage);
    assert_eq!(table(&open(&path).unwrap()).unwrap(), format!("no checkpoints in {path}\n"));
    let failure = command(&path, &["verify", "PLACE"]).unwrap_err();
    assert_eq!(
        (failure.exit, failure.sentence()),
        (Exit::Input, format!("there is no finished checkpoint in {path}"))
    );
    fs::write(folder.path().join(PLAN_FILE), "").unwrap();
    let why = format!("the run in {path} has no checkpoints: there is no folder checkpoints");
    assert_eq!(failed(&path), (Exit::Input, why));
    #[cfg(not(feature = "object-store"))]
    assert!(failed("s3://bucket/x").1.contains("--features object-store"));
}

#[test]
fn what_is_damaged_is_named() {
    let run = Run::new(&[1, 2, 3]);
    run.command(&["verify", "PLACE"]).unwrap();
    run.flip(&shard_file(2, 1));
    run.command(&["verify", "PLACE", "--number", "1"]).unwrap();
    let failure = run.command(&["verify", "PLACE", "--number", "2"]).unwrap_err();
    assert_eq!(failure.exit, Exit::Input);
    assert!(failure.sentence().contains("checkpoint-00000002/shard-001.safetensors has the checksum "));
    let failure = run.command(&["verify", "PLACE"]).unwrap_err();
    assert!(failure.sentence().starts_with("1 of 3 checkpoints in "), "{}", failure.sentence());
    assert_eq!(failure.details.len(), 1);
    assert!(
        failure.details[0].contains("checkpoint-00000002/shard-001.safetensors"),
        "{:?}",
        failure.details
    );
    let failure = run.command(&["verify", "PLACE", "--number", "7"]).unwrap_err();
    assert!(failure.sentence().contains("checkpoint-00000007/manifest: it is not there; "));
    assert!(failure.sentence().ends_with(" has 1, 2, 3"), "{}", failure.sentence());
}

#[test]
fn a_checkpoint_of_another_model_than_its_plans_is_not_sound() {
    let run = Run::new(&[]);
    run.write(1, 3);
    let failure = run.command(&["verify", "PLACE"]).unwrap_err();
    assert!(
        failure.sentence().contains("nothing holds the values 3..4 of variable w"),
        "{}",
        failure.sentence()
    );
}

#[test]
fn the_newest_sound_one_is_exported_as_a_model() {
    let run = Run::new(&[1, 2, 3]);
    run.flip(&shard_file(3, 0));
    let out = run.folder.path().join("out.safetensors");
    let to = out.display().to_string();
    run.command(&["export", "PLACE", "--to", &to]).unwrap();
    assert_eq!(model_file::load(&out, &run.plan).unwrap(), [2.0, 2.0, 3.0, 4.0, 5.0]);
    let failure = run.command(&["export", "PLACE", "--to", &to]).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    fs::remove_file(&out).unwrap();
    run.command(&["export", "PLACE", "--to", &to, "--number", "1"]).unwrap();
    assert_eq!(model_file::load(&out, &run.plan).unwrap()[0], 1.0);
    fs::remove_file(&out).unwrap();
    let failure = run.command(&["export", "PLACE", "--to", &to, "--number", "3"]).unwrap_err();
    assert_eq!(failure.exit, Exit::Input);
    assert!(
        failure.sentence().contains("checkpoint-00000003/shard-000.safetensors"),
        "{}",
        failure.sentence()
    );
    assert!(!out.exists());
    let nowhere = run.folder.path().join("no/where").display().to_string();
    assert_eq!(run.command(&["export", "PLACE", "--to", &nowhere]).unwrap_err().exit, Exit::System);
    for number in [1, 2] {
        run.flip(&shard_file(number, 0));
    }
    let failure = run.command(&["export", "PLACE", "--to", &to]).unwrap_err();
    assert_eq!(failure.exit, Exit::Input);
    assert!(failure.sentence().starts_with("there is no sound checkpoint in "), "{}", failure.sentence());
}
