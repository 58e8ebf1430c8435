//! Says which commands and flags there are.

mod checkpoint;
mod compare;
mod federated;
mod keeping;
mod recipe;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use windlass_common::exit;

pub(crate) use checkpoint::{CheckpointCommand, CheckpointFlags, ExportFlags, NowFlags, VerifyFlags};
pub(crate) use compare::{CompareFlags, ModeRate, Paper, ReproduceFlags, Rows};
pub(crate) use federated::{HostingName, StragglerWorkName, Time, WeightsName};
use keeping::excluded_by_resume;
pub(crate) use keeping::{Changes, KeepingFlags};
pub(crate) use recipe::{BatchFlag, Bound, MembershipFlag, ModeName, RateFlag, RecipeFlags, SourceFlags};

/// Trains models on sharded parameter servers over QUIC.
#[derive(Debug, Parser)]
#[command(name = "windlass", version, max_term_width = 110, after_help = exit::HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Reads the flags. A stored plan, and a run that is gone on with, exclude those that they answer.
///
/// # Errors
/// With what clap says of them, which is for people.
pub(crate) fn parse<T: Into<OsString> + Clone>(
    arguments: impl IntoIterator<Item = T>,
) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    // Those that take a recipe, as commands or below one.
    let (mut chosen, mut found) = (&mut command, matches.subcommand());
    while let Some((name, given)) = found {
        chosen = chosen.find_subcommand_mut(name).expect("it was found");
        let takes_recipe = ["plan", "model"].iter().all(|id| given.try_contains_id(id).is_ok());
        if takes_recipe && let Some(text) = contradiction(chosen, given) {
            return Err(chosen.error(ErrorKind::ArgumentConflict, text));
        }
        found = given.subcommand();
    }
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    if let (Command::Train(train), Some((_, given))) = (&mut cli.command, matches.subcommand()) {
        train.changes = Changes::of(train, given);
    }
    Ok(cli)
}

/// A flag that cannot be given beside `--plan` or `--resume`, and why.
fn contradiction(command: &clap::Command, given: &ArgMatches) -> Option<String> {
    let is_given = |id: &str| {
        let is_known = command.get_arguments().any(|flag| flag.get_id() == id);
        is_known && given.value_source(id) == Some(ValueSource::CommandLine)
    };
    // The recipe is made of several groups, and clap excludes no group of groups.
    let recipe = KeepingFlags::augment_args(RecipeFlags::augment_args(clap::Command::new("recipe")));
    let is_recipe = |id: &str| recipe.get_arguments().any(|flag| flag.get_id() == id);
    let (is_resumed, is_planned) = (is_given("resume"), is_given("plan"));
    let excluded = |id: &str| match id {
        _ if is_resumed => excluded_by_resume(id),
        _ if is_planned && is_recipe(id) => Some("the plan says that"),
        _ => None,
    };
    let with = if is_resumed { "--resume <RUN_DIR>" } else { "--plan <FILE>" };
    command.get_arguments().find_map(|flag| {
        let id = flag.get_id().as_str();
        let why = excluded(id).filter(|_| is_given(id))?;
        let flag = flag.get_long().unwrap_or_default();
        Some(format!("the argument '{with}' cannot be used with '--{flag}': {why}\n"))
    })
}

const TRAIN_EXAMPLES: &str = "\
Examples:
  windlass train
  windlass train --model cnn --passes 8
  windlass train --model 2nn --mode ssp --staleness 4 --servers 2 --workers 4 --batch 64 --passes 3 --seed 7
  windlass train --mode sync --backup 1 --optimizer momentum:mu=0.9
  windlass train --mode fedavg --model 2nn --clients 100 --fraction 0.1 --local-passes 1 --batch 10 --rounds 100 --workers 2
  windlass train --plan runs/2nn-sync-1/plan.toml
  windlass train --resume runs/2nn-sync-1
  windlass train --resume runs/2nn-sync-1 --servers 3 --workers 5
";
const COMPARE_EXAMPLES: &str = "\
Examples:
  windlass compare --modes sync,async,ssp:4,fedavg,fedbuff --clients 100 --partition shards:2 --target 0.95
  windlass compare --modes sync,ssp:8,async --step-time exp:20ms --workers 4 --passes 1 --model softmax
  windlass compare --rate auto --seeds 3 --clients 100 --target 0.95 --out runs/by-seed
";
const REPRODUCE_EXAMPLES: &str = "\
Examples:
  windlass reproduce mcmahan --table 1 --rows 2nn --cell C=0.1,B=10,partition=iid
  windlass reproduce mcmahan --table 1 --rows 2nn --cell B=10 --seeds 3
";
const PLAN_EXAMPLES: &str = "\
Examples:
  windlass plan --model cnn --servers 4 > plan.toml
  windlass plan --model cnn --servers 4 --table
";
const IDENTITIES_EXAMPLES: &str = "\
A run by hand, on one machine or several:
  windlass plan --out plan.toml && windlass identities --out ids --servers 1 --workers 1
  windlass-ps --identity ids/server-0.pem --plan plan.toml --run-dir runs/by-hand
  windlass-worker --identity ids/worker-0.pem --coordinator 127.0.0.1:7171
  windlass watch --identity ids/observer.pem --coordinator 127.0.0.1:7171
";
const CHECKPOINT_EXAMPLES: &str = "\
Examples:
  windlass checkpoint now runs/2nn-sync-1
  windlass checkpoint list runs/2nn-sync-1
  windlass checkpoint verify runs/2nn-sync-1
  windlass checkpoint export runs/2nn-sync-1 --number 12 --to model.safetensors
";
const DRAIN_EXAMPLES: &str = "\
Examples:
  windlass drain 1 runs/2nn-sync-1
  windlass drain 2 host0:7171 --identity ids/observer.pem
";
const BENCH_EXAMPLES: &str = "\
Examples:
  windlass bench machine --model 2nn --mode async --workers 2
  windlass bench machine --plan runs/2nn-async-1/plan.toml
";
const TOP_EXAMPLES: &str = "\
Examples:
  windlass top runs/2nn-sync-1
  windlass top host0:7171 --identity ids/observer.pem
  windlass top runs/2nn-sync-1 --once --json
";

fn help(examples: &str) -> String {
    format!("{examples}\n{}", exit::HELP)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model here: starts servers and workers on free ports, shows the progress, scores the result
    #[command(after_help = help(TRAIN_EXAMPLES))]
    Train(Box<TrainFlags>),
    /// Train in several modes under the same conditions, and report what each gains and loses
    #[command(after_help = help(COMPARE_EXAMPLES))]
    Compare(Box<CompareFlags>),
    /// Repeat the experiments of a paper, and set the figures beside its own
    #[command(after_help = help(REPRODUCE_EXAMPLES))]
    Reproduce(ReproduceFlags),
    /// Check flags and write the plan of a run, with the placement of its model, without starting anything
    #[command(after_help = help(PLAN_EXAMPLES))]
    Plan(Box<PlanFlags>),
    /// Score the result of a run on the test data
    #[command(after_help = exit::HELP)]
    Eval(EvalFlags),
    /// Make the identities (certificates and keys) of a run whose processes are started by hand
    #[command(after_help = help(IDENTITIES_EXAMPLES))]
    Identities(IdentitiesFlags),
    /// Show the progress of a run in lines, and end as it ends
    #[command(after_help = exit::HELP)]
    Watch(WatchFlags),
    /// Keep a checkpoint of a run now; list, verify or export those that it has
    #[command(after_help = help(CHECKPOINT_EXAMPLES))]
    Checkpoint(CheckpointFlags),
    /// Empty a server of a run with standbys (--replicas 1) without stopping the training, so that it may be ended
    #[command(after_help = help(DRAIN_EXAMPLES))]
    Drain(DrainFlags),
    /// Show a run live: its workers and shards, who waits for whom, what is wrong and what to do. The key q ends it
    #[command(after_help = help(TOP_EXAMPLES))]
    Top(TopFlags),
    /// Measure what this machine can do at best, for runs to be set beside it
    #[command(after_help = help(BENCH_EXAMPLES))]
    Bench(BenchFlags),
}

/// `windlass bench`
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchFlags {
    #[command(subcommand)]
    pub(crate) what: BenchCommand,
}

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure for some seconds, with every core, the processor time that a push of such a training costs at least: its
    /// gradient, its bytes over bare QUIC, its codecs and the update. The figures are kept, and trainings with the same flags say
    /// at their end how near they came to them
    #[command(after_help = help(BENCH_EXAMPLES))]
    Machine(Box<SourceFlags>),
}

/// `windlass drain`
#[derive(Clone, Debug, Args)]
pub(crate) struct DrainFlags {
    /// Number of the server; server 0 has the coordinator and cannot be emptied
    #[arg(value_name = "SERVER")]
    pub(crate) server: u32,
    /// Directory of a run that `windlass train` has started on this machine, or HOST:PORT of server 0 of any run
    #[arg(value_name = "ADDRESS")]
    pub(crate) run: String,
    /// Identity file of an observer of the run [default: that of the run directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}

/// `windlass train`
#[derive(Clone, Debug, Args)]
pub(crate) struct TrainFlags {
    #[command(flatten)]
    pub(crate) source: SourceFlags,
    /// Go on with the run in this directory from its newest sound checkpoint, or from its beginning if it has none. Other
    /// numbers of servers, shards and workers are possible
    #[arg(long, value_name = "RUN_DIR", help_heading = "This run")]
    pub(crate) resume: Option<PathBuf>,
    /// Where checkpoints are kept: a folder, or s3://BUCKET/PREFIX [default: the folder checkpoints of the run directory;
    /// with --resume, where they were]
    #[arg(long, value_name = "LOCATION", help_heading = "Checkpoints")]
    pub(crate) checkpoints: Option<String>,
    /// What --resume changes of the plan
    #[arg(skip)]
    pub(crate) changes: Changes,
    /// Directory for what the run leaves: plan, events, model, summary, logs of the processes [default: runs/NAME]
    #[arg(long, value_name = "DIR", help_heading = "This run")]
    pub(crate) run_dir: Option<PathBuf>,
    /// fedavg: end when the test accuracy has reached this, from 0 to 1
    #[arg(long, value_name = "ACCURACY", help_heading = "This run")]
    pub(crate) target: Option<f64>,
    /// How often each worker that dies is restarted; where checkpoints are kept, each server too
    #[arg(long, value_name = "TIMES", default_value_t = 2, help_heading = "This run")]
    pub(crate) restarts: u32,
    /// How long each process tries to reach the coordinator, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "This run",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) connect_deadline: u64,
    /// Show no progress, only the closing summary
    #[arg(long, short, help_heading = "This run")]
    pub(crate) quiet: bool,
}

/// `windlass plan`
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanFlags {
    #[command(flatten)]
    pub(crate) source: SourceFlags,
    /// Write the plan to this file, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) out: Option<PathBuf>,
    /// Write the table of the placement to standard output, and the plan only to the file of --out [without it: the
    /// table goes to standard error]
    #[arg(long, help_heading = "Output")]
    pub(crate) table: bool,
}

/// `windlass eval`
#[derive(Clone, Debug, Args)]
pub(crate) struct EvalFlags {
    /// Directory of a finished run
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Folder or CSV file with the test data [default: where the run's plan says]
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Print one JSON object instead of words
    #[arg(long)]
    pub(crate) json: bool,
}

/// `windlass identities`
#[derive(Clone, Debug, Args)]
pub(crate) struct IdentitiesFlags {
    /// Directory for the files server-N.pem, worker-N.pem and observer.pem; those that exist are never replaced
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Number of server processes
    #[arg(long, value_name = "COUNT", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(windlass_common::plan::SERVERS_MAX)))]
    pub(crate) servers: u32,
    /// Number of worker processes
    #[arg(long, value_name = "COUNT", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(windlass_common::plan::WORKERS_MAX)))]
    pub(crate) workers: u32,
    /// Name that the certificate of the run's authority carries
    #[arg(long, value_name = "RUN", default_value = "by-hand")]
    pub(crate) name: String,
}

/// `windlass watch`
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchFlags {
    /// Directory of a run that `windlass train` has started on this machine
    #[arg(value_name = "RUN", required_unless_present = "coordinator", conflicts_with = "coordinator")]
    pub(crate) run: Option<String>,
    /// Address of server 0, for a run that was started by hand
    #[arg(long, value_name = "HOST:PORT", requires = "identity")]
    pub(crate) coordinator: Option<String>,
    /// Identity file of an observer of the run [default: that of RUN]
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Folder or CSV file with the run's data, to evaluate its snapshots here [default: no evaluation]
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// How long to wait for the coordinator and all servers, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) connect_deadline: u64,
    /// Show no progress, only the outcome
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// `windlass top`
#[derive(Clone, Debug, Args)]
pub(crate) struct TopFlags {
    /// Directory of a run that `windlass train` has started on this machine, or HOST:PORT of server 0 of any run
    #[arg(value_name = "ADDRESS")]
    pub(crate) run: String,
    /// Identity file of an observer of the run [default: that of the run directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Print how the run stands now, and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON object per line instead of a screen, one a second; docs/operating.md tells its fields
    #[arg(long)]
    pub(crate) json: bool,
    /// How long to wait for the coordinator, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) connect_deadline: u64,
}

#[cfg(test)]
mod tests {
    use windlass_common::plan::Every;

    use super::*;

    fn train(flags: &str) -> Result<TrainFlags, String> {
        let arguments = ["windlass", "train"].into_iter().chain(flags.split_whitespace());
        match parse(arguments).map_err(|error| error.to_string())?.command {
            Command::Train(train) => Ok(*train),
            other => panic!("{other:?} is not to train"),
        }
    }

    #[test]
    fn a_checkpoint_is_kept_each_minute_unless_flags_say_otherwise() {
        let of = |flags| train(flags).unwrap().source.checkpoints.plan();
        assert_eq!((of("").every, of("").keep), (Every::Seconds(60), 2));
        let given = of("--checkpoint-every 500steps --keep 7");
        assert_eq!((given.every, given.keep), (Every::Steps(500), 7));
        assert_eq!(of("--checkpoint-every never").every, Every::Never);
        assert_eq!(KeepingFlags::never().plan(), windlass_common::plan::Checkpoints::default());
        for wrong in ["--checkpoint-every 30", "--checkpoint-every 0s", "--keep 0", "--keep 1001"] {
            assert!(train(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_run_that_is_gone_on_with_takes_only_what_may_change() {
        let flags = train("--resume runs/x").unwrap();
        assert_eq!((flags.resume, flags.changes), (Some("runs/x".into()), Changes::default()));
        let all = "--resume runs/x --servers 3 --shards-per-server 2 --replicas 1 --workers 5 --checkpoint-every 30s --keep 4 \
                   --checkpoints s3://b/x --restarts 1 --connect-deadline 20 --quiet --target 0.9 --data d \
                   --worker-program w";
        let flags = train(all).unwrap();
        let expected = Changes {
            servers: Some(3),
            shards_per_server: Some(2),
            replicas: Some(1),
            workers: Some(5),
            every: Some(Every::Seconds(30)),
            keep: Some(4),
        };
        assert_eq!((flags.changes, flags.checkpoints.as_deref()), (expected, Some("s3://b/x")));
        for (flag, why) in [
            ("--seed 2", "the run goes on as it was begun"),
            ("--mode sync", "the run goes on as it was begun"),
            ("--clients 3", "the run goes on as it was begun"),
            ("--workers-max 3", "the run goes on as it was begun"),
            ("--step-time const:1ms", "the run goes on as it was begun"),
            ("--name y", "the run keeps its name and its directory"),
            ("--run-dir y", "the run keeps its name and its directory"),
            ("--plan y", "the run has its own plan"),
        ] {
            let error = train(&format!("{flag} --resume runs/x")).unwrap_err();
            let name = flag.split(' ').next().unwrap();
            let sentence = format!("'--resume <RUN_DIR>' cannot be used with '{name}': {why}");
            assert!(error.contains(&sentence), "{error}");
        }
    }

    #[test]
    fn a_stored_plan_says_itself_when_checkpoints_are_kept() {
        for flag in ["--checkpoint-every 30s", "--keep 3", "--seed 2"] {
            let error = train(&format!("--plan p.toml {flag}")).unwrap_err();
            let name = flag.split(' ').next().unwrap();
            assert!(error.contains(&format!("'{name}': the plan says that")), "{error}");
        }
        // Where they are kept is no matter of the plan.
        assert!(train("--plan p.toml --checkpoints d").unwrap().checkpoints.is_some());
    }
}
