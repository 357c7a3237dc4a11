//! The experiment: programs played through a gate, policy by policy, and everything that is needed to trust it.
//!
//! `kvgate experiment run` plays one cell, `matrix` policies × concurrencies × repeats; `status`, `stop` and `resume`
//! work on the directory of either. [`spec`] is what was asked for, [`preflight`] whether it can be done, [`engine`]
//! what serves the model, [`workload`] what is played, [`cell`] one run from start to report, [`matrix`] the order of
//! cells and what is left of it, [`runner`] plays them, [`watchdog`] says when to stop waiting and [`watch`] is its
//! eyes, [`manifest`] how it was made, [`results`] what came of each task, [`state`] what another process may know of
//! it, which [`status`] prints and [`stop`] goes by; [`detach`] and [`console`] are what outlives a terminal.

pub mod asking;
pub mod cell;
pub mod console;
pub mod detach;
pub mod engine;
pub mod gpu;
pub mod machine;
pub mod manifest;
pub mod matrix;
pub mod oss;
pub mod preflight;
pub mod process;
pub mod results;
pub mod runner;
pub mod spec;
pub mod state;
pub mod status;
pub mod stop;
pub mod watch;
pub mod watchdog;
pub mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::detach::DetachArgs;
use self::spec::Options;
use self::status::StatusArgs;
use self::stop::StopArgs;

/// Options of `kvgate experiment`.
#[derive(Debug, Args)]
pub struct ExperimentArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `kvgate experiment`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Play one cell: one policy at one concurrency.
    ///
    /// Starts engine and gate, plays tau2-bench (installed at first use) or recorded programs through the gate, and
    /// leaves one run directory with steps, rewards, KV samples, a manifest and a report.
    Run(Box<RunArgs>),
    /// Play policies × concurrencies × repeats, and compare them.
    ///
    /// Each cell has a fresh engine and a fresh gate at one address. Ctrl-C, a crash or a reboot costs the cell that
    /// was being played at most: `kvgate experiment resume DIR` goes on.
    Matrix(Box<RunArgs>),
    /// Tell how far an experiment is, from anywhere.
    Status(StatusArgs),
    /// End a running experiment: what is running ends, nothing more is begun.
    Stop(StopArgs),
    /// Go on with an experiment that was stopped, killed or interrupted.
    Resume(ResumeArgs),
}

/// Flags of `kvgate experiment run` and `matrix`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Experiment file; flags beat it. The sum of both is written to experiment.toml in --out
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the experiment [default: runs/experiment-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How it is run.
    #[command(flatten)]
    pub manner: Manner,
    /// What is run.
    #[command(flatten)]
    pub options: Options,
}

/// Flags of `kvgate experiment resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// The experiment's folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// How it is run.
    #[command(flatten)]
    pub manner: Manner,
}

/// How an experiment is run, whatever it is.
#[derive(Clone, Debug, Default, Args)]
pub struct Manner {
    /// In the background.
    #[command(flatten)]
    pub background: DetachArgs,
    /// Start although the preflight found errors
    #[arg(long)]
    pub force: bool,
    /// Only the preflight
    #[arg(long, conflicts_with = "detach")]
    pub check: bool,
    /// No progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// Does what the command says.
///
/// # Errors
/// What kept it from being done.
pub async fn run(args: ExperimentArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run(args) => runner::begin(*args, false).await,
        Command::Matrix(args) => runner::begin(*args, true).await,
        Command::Resume(args) => runner::resume(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Stop(args) => stop::run(args).await,
    }
}
