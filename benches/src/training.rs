//! Runs whole trainings, as a user would, and reads what they came to.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::Value;
use windlass_common::plan::Codecs;
use windlass_common::wire::Codec;

/// Flags of `windlass train` with which nothing is evaluated in between.
pub const UNEVALUATED: [&str; 2] = ["--evaluate-every", "1000000000"];

/// The program that trains, and on what.
#[derive(Clone, Debug, Args)]
pub struct Program {
    /// The program that trains [default: beside this one].
    #[arg(long)]
    windlass: Option<PathBuf>,
    /// The data to train on.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/mnist"))]
    pub data: PathBuf,
}

/// What a training came to.
#[derive(Clone, Debug)]
pub struct Trained {
    /// Its `summary.json`.
    pub summary: Value,
    /// Checkpoints that became complete, by the log of the run.
    pub checkpoints: usize,
}

impl Trained {
    /// A number of the summary.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn figure(&self, name: &str) -> anyhow::Result<f64> {
        self.summary[name].as_f64().with_context(|| format!("the summary has no {name}"))
    }
}

impl Program {
    /// One whole training with these flags of `windlass train`.
    ///
    /// # Errors
    /// If it cannot be started, fails, or leaves no summary.
    pub fn train(&self, flags: &[&str]) -> anyhow::Result<Trained> {
        let beside = std::env::current_exe()?.with_file_name("windlass");
        let program = self.windlass.clone().unwrap_or(beside);
        let directory = tempfile::tempdir()?;
        let run = directory.path().join("run");
        let mut command = Command::new(&program);
        command
            .args(["train", "--quiet"])
            .args(flags)
            .arg("--data")
            .arg(&self.data)
            .arg("--run-dir")
            .arg(&run);
        let status = command.stdout(Stdio::null()).status().with_context(|| {
            format!("could not start {}; build it with cargo build --release", program.display())
        })?;
        ensure!(status.success(), "{} ended with {status}", program.display());
        let summary = serde_json::from_slice(&fs::read(run.join("summary.json"))?)?;
        let events = fs::read_to_string(run.join("events.jsonl"))?;
        let events = events.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let checkpoints = events.iter().filter(|event| event["event"] == "checkpoint").count();
        Ok(Trained { summary, checkpoints })
    }
}

/// How a training writes what workers push and what they pull, as in `topk:1%/int8`.
#[derive(Clone, Debug)]
pub struct CodecPair {
    push: String,
    pull: String,
    /// The same in a plan.
    pub codecs: Codecs,
}

impl CodecPair {
    /// The flags of `windlass train` for it.
    pub fn flags(&self) -> [&str; 4] {
        ["--push-codec", &self.push, "--pull-codec", &self.pull]
    }
}

impl FromStr for CodecPair {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (push, pull) =
            text.split_once('/').context("a pair of codecs is PUSH/PULL, such as topk:1%/int8")?;
        let codec = |name: &str| name.parse::<Codec>().map_err(anyhow::Error::msg);
        let codecs = Codecs { push: codec(push)?, pull: codec(pull)? };
        Ok(Self { push: push.to_owned(), pull: pull.to_owned(), codecs })
    }
}

impl Display for CodecPair {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.push, self.pull)
    }
}
