//! Lists the flags of the commands on checkpoints.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use windlass_common::exit;

/// `windlass checkpoint`
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckpointFlags {
    #[command(subcommand)]
    pub(crate) command: CheckpointCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Keep a checkpoint now, of a run that trains, and say what it holds
    #[command(after_help = exit::HELP)]
    Now(NowFlags),
    /// Show which checkpoints there are, by their manifests
    #[command(after_help = exit::HELP)]
    List(CheckpointPlace),
    /// Read every byte of checkpoints, and say what is wrong with them
    #[command(after_help = exit::HELP)]
    Verify(VerifyFlags),
    /// Write the values of a checkpoint as one safetensors file, under the variables' own names
    #[command(after_help = exit::HELP)]
    Export(ExportFlags),
}

/// `windlass checkpoint now`
#[derive(Clone, Debug, Args)]
pub(crate) struct NowFlags {
    /// Directory of a run that `windlass train` has started on this machine, or HOST:PORT of server 0 of any run
    #[arg(value_name = "ADDRESS")]
    pub(crate) run: String,
    /// Identity file of an observer of the run [default: that of the run directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}

/// Where checkpoints are.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckpointPlace {
    /// Directory of a run, a folder with checkpoints, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
    #[arg(value_name = "PLACE")]
    pub(crate) place: String,
}

/// `windlass checkpoint verify`
#[derive(Clone, Debug, Args)]
pub(crate) struct VerifyFlags {
    #[command(flatten)]
    pub(crate) place: CheckpointPlace,
    /// Only the checkpoint of this number [default: all that are finished]
    #[arg(long, value_name = "N")]
    pub(crate) number: Option<u64>,
}

/// `windlass checkpoint export`
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportFlags {
    #[command(flatten)]
    pub(crate) place: CheckpointPlace,
    /// The file to write, which must not exist yet
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// The checkpoint of this number [default: the newest that is sound]
    #[arg(long, value_name = "N")]
    pub(crate) number: Option<u64>,
}
