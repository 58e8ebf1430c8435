//! Lists the flags that say when a checkpoint is kept, and those that a run may be gone on with under.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use windlass_common::plan::{Checkpoints, Every, KEEP_MAX};

use super::TrainFlags;

/// How often a checkpoint is kept, unless a flag says otherwise. Seconds.
const EVERY_S: u64 = 60;

/// When a checkpoint is kept, and how many.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct KeepingFlags {
    /// How often a checkpoint is kept, from which the run goes on when a server is lost: 30s, 500steps (in fedavg rounds),
    /// or never
    #[arg(long, value_name = "EVERY", default_value_t = Every::Seconds(EVERY_S), help_heading = "Checkpoints")]
    pub(crate) checkpoint_every: Every,
    /// How many checkpoints stay; older ones are removed
    #[arg(long, value_name = "COUNT", default_value_t = Checkpoints::default().keep, help_heading = "Checkpoints",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(KEEP_MAX)))]
    pub(crate) keep: u32,
}

impl KeepingFlags {
    /// For runs that are begun again rather than gone on with.
    pub(crate) fn never() -> Self {
        let Checkpoints { every: checkpoint_every, keep } = Checkpoints::default();
        Self { checkpoint_every, keep }
    }

    /// As the plan has it.
    pub(crate) fn plan(self) -> Checkpoints {
        Checkpoints { every: self.checkpoint_every, keep: self.keep }
    }
}

/// The flags of `windlass train` that `--resume` may be given with.
const WITH_RESUME: [&str; 14] = [
    "resume",
    "servers",
    "shards_per_server",
    "replicas",
    "workers",
    "checkpoint_every",
    "keep",
    "checkpoints",
    "restarts",
    "connect_deadline",
    "quiet",
    "target",
    "data",
    "worker_program",
];

/// What the plan of a run that is gone on with is changed to; what is not given stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) servers: Option<u32>,
    pub(crate) shards_per_server: Option<u32>,
    pub(crate) replicas: Option<u32>,
    pub(crate) workers: Option<u32>,
    pub(crate) every: Option<Every>,
    pub(crate) keep: Option<u32>,
}

impl Changes {
    /// Those of the flags that were given.
    pub(super) fn of(flags: &TrainFlags, given: &ArgMatches) -> Self {
        let is_given = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        let (recipe, checkpoints) = (&flags.source.recipe, &flags.source.checkpoints);
        Self {
            servers: is_given("servers").then_some(recipe.servers),
            shards_per_server: is_given("shards_per_server").then_some(recipe.shards_per_server),
            replicas: is_given("replicas").then_some(recipe.replicas),
            workers: is_given("workers").then_some(recipe.workers),
            every: is_given("checkpoint_every").then_some(checkpoints.checkpoint_every),
            keep: is_given("keep").then_some(checkpoints.keep),
        }
    }
}

/// Why a flag is not possible for a run that is gone on with; `None` for one that is.
pub(super) fn excluded_by_resume(id: &str) -> Option<&'static str> {
    match id {
        _ if WITH_RESUME.contains(&id) => None,
        "plan" => Some("the run has its own plan"),
        "name" | "run_dir" => Some("the run keeps its name and its directory"),
        _ => Some("the run goes on as it was begun"),
    }
}
