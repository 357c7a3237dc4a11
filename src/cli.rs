//! The command line: which subcommands there are, no logic.
//!
//! Options of `serve` and `config` are in [`crate::config`]; those of every other subcommand are beside what they
//! configure, in [`crate::harness`].

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::ServeOptions;
use crate::harness::calibrate::CalibrateArgs;
use crate::harness::child::guard::GuardArgs;
use crate::harness::engine::EngineArgs;
use crate::harness::experiment::ExperimentArgs;
use crate::harness::journal::JournalArgs;
use crate::harness::quickstart::QuickstartArgs;
use crate::harness::reference::scripts::ReferenceArgs;
use crate::harness::replay::ReplayArgs;
use crate::harness::report::ReportArgs;
use crate::harness::simulator::SimulateArgs;
use crate::harness::traces::TraceArgs;
use crate::harness::vectors::VectorsArgs;

/// A reverse proxy in front of vLLM that decides when each step of an agent runs.
///
/// Start here: `kvgate quickstart` compares the policies on an embedded engine, without a GPU, in about two minutes.
/// In front of a vLLM of yours: `kvgate serve --backend http://127.0.0.1:8000`, and point clients at port 1900.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands, each with its own options.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare the policies on an embedded engine: engine, gate and replay in one go, no GPU needed.
    Quickstart(QuickstartArgs),
    /// Run the gate in front of vLLM servers.
    Serve(ServeArgs),
    /// Print the effective configuration of `serve` as a TOML file, and check it.
    Config(ServeArgs),
    /// Run a model of vLLM's engine behind the same HTTP API, without a GPU.
    Engine(EngineArgs),
    /// Play tau2-bench or recorded programs through a gate, policy by policy: one command for the whole matrix.
    Experiment(ExperimentArgs),
    /// Play agent programs through a gate, or straight at a vLLM, and write a run directory.
    Replay(ReplayArgs),
    /// Compare finished runs: the active window, the whole run, and who won.
    Report(ReportArgs),
    /// Print what the reference experiment's scripts printed of its run directories.
    ///
    /// Each command has the flags of its script and its exit status. The logs tell a wall clock's time without a
    /// zone: set TZ to the zone in which the runs were made.
    Reference(ReferenceArgs),
    /// Read a journal of decisions and run a policy on it again.
    Journal(JournalArgs),
    /// Compare policies on the engine model and a virtual clock: an hour of a GPU in a second.
    Simulate(SimulateArgs),
    /// Measure a live vLLM and write the cost preset that explains it.
    Calibrate(CalibrateArgs),
    /// Draw a set of programs as a trace file, or make a built-in trace from recorded data.
    Trace(TraceArgs),
    /// Check recorded decisions of the reference schedulers against the policies here.
    CheckVectors(VectorsArgs),
    /// Run a command that ends with the process that started it.
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// Options of `kvgate serve` and `kvgate config`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// TOML file with any of the options below as keys, and a table for each policy
    #[arg(long, env = "KVGATE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The options.
    #[command(flatten)]
    pub options: ServeOptions,
}
