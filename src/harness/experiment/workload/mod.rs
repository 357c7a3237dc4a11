//! What is played: tau2-bench, recorded programs, or the reference fork's driver.
//!
//! [`WorkloadOptions`] is checked into a [`Workload`], which plays itself through a gate and says what came of it as
//! a [`Played`]. Everything else of a cell is the same for all three.

pub mod recorded;
pub mod tau2;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::recorded::Recorded;
use self::tau2::Tau2;
use crate::clock::Clock;
use crate::harness::rundir::EngineManifest;
use crate::harness::tau2::settings::Identity;
use crate::harness::trace::Trace;

/// Options of the workload, as typed: flags, and keys of the table `[workload]`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[command(next_help_heading = "Workload")]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadOptions {
    /// What to play [default: tau2]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Kind>,
    /// Tasks, or programs of a trace, in all [default: all; the reference's 278]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<usize>,
    /// tau2: its domains, which take turns [default: retail telecom airline]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// tau2: the first so many tasks of each domain
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks_per_domain: Option<usize>,
    /// tau2: how often every task is played [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials: Option<u32>,
    /// Seed of the whole: tau2's own of each trial, message texts, arrivals [default: 300]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// tau2: tasks begun per minute, a Poisson process, instead of C at once; at most C in flight
    #[arg(long, value_name = "PER_MINUTE", conflicts_with = "arrivals")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poisson: Option<f64>,
    /// tau2: file with the second, one a line, at which each task may begin
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<PathBuf>,
    /// tau2: how programs name themselves to the gate [default: explicit]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// tau2: further attempts at a task that failed [default: 2]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// tau2: `resume` plays tasks that failed for good once more [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redo_errors: Option<bool>,
    /// tau2: the most steps of a simulation [default: 200]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// tau2: the most tool errors of a simulation [default: 10]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_errors: Option<u32>,
    /// tau2: simulations that one Python process plays; more of them distort the gaps that the gate sees [default: 10]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_worker: Option<usize>,
    /// tau2: an upstream checkout of tau2-bench instead of the pinned package
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau2_path: Option<PathBuf>,
    /// tau2: a Python in which tau2 is installed already
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tau2_python: Option<PathBuf>,
    /// A checkout of the reference fork: its `run_oss.py` is run as it is
    #[arg(long, value_name = "DIR", conflicts_with = "tau2_path")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oss_path: Option<PathBuf>,
    /// The fork's Python [default: an environment of our own]
    #[arg(long, value_name = "FILE", requires = "oss_path")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oss_python: Option<PathBuf>,
    /// Model that plays the customer; send it elsewhere in [routes] [default: the agent's]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_model: Option<String>,
    /// Sampling temperature of agent and customer [default: 0]
    #[arg(long, value_name = "T")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The most tokens of a reply [default: the server's]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Seconds that a client waits for one reply, hold included [default: 1800]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<f64>,
    /// replay: built-in trace (tau2, swe) or a file of JSON lines [default: tau2]
    #[arg(long, value_name = "NAME|FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// replay: put words, as many as a reply had tokens, in its place: for a model with random weights [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<bool>,
    /// replay: ask for streamed replies [default: true, but false on the embedded engine, which it slows down]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
}

/// The workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The benchmark itself, played by Python processes that are installed at first use
    #[default]
    Tau2,
    /// Recorded programs: the same prompts, replies' lengths and gaps every time, no Python
    Replay,
}

/// A workload that passed its checks.
#[derive(Clone, Debug)]
pub enum Workload {
    /// tau2-bench.
    Tau2(Tau2),
    /// Recorded programs.
    Recorded(Recorded),
}

/// Where and how a workload is played.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The gate, or the server itself.
    pub url: String,
    /// The model that is served.
    pub model: String,
    /// The run directory.
    pub dir: PathBuf,
    /// Programs in flight.
    pub concurrency: usize,
    /// Which repeat, from 0: each says something else.
    pub repeat: u32,
    /// The run's time.
    pub clock: Clock,
    /// The gate's policy, or `direct`.
    pub policy: String,
    /// Whether the engine is a model of one, and which, where it is our own.
    pub is_embedded: bool,
    /// The embedded engine.
    pub engine: Option<EngineManifest>,
    /// The cell's name, for a bar.
    pub label: String,
    /// Draw no bar.
    pub quiet: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Tasks of the plan.
    pub total: usize,
    /// Played to their end.
    pub ok: usize,
    /// Failed for good.
    pub failed: usize,
    /// Failures by cause.
    pub causes: BTreeMap<String, usize>,
    /// A line of figures.
    pub figures: String,
}

impl Played {
    /// Whether every task has its last word.
    pub const fn is_complete(&self) -> bool {
        self.ok + self.failed == self.total
    }
}

/// What a workload tells while it is played.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// What it does before the first task, such as an installation.
    Doing(String),
    /// A program's task is over.
    TaskEnded {
        /// The program.
        program: String,
        /// When, Unix seconds of the run.
        at_s: f64,
        /// How far the whole is.
        played: Played,
    },
    /// Something to show: a worker died, a core is full.
    Warning(String),
}

/// The hands on a workload that is being played.
#[derive(Clone, Debug, Default)]
pub struct Hands {
    /// Starts nothing more; what is running ends.
    pub drain: CancellationToken,
    /// Ends everything now.
    pub kill: CancellationToken,
}

impl WorkloadOptions {
    /// The workload, with everything that has to be there loaded but the benchmark itself.
    ///
    /// # Errors
    /// Every problem at once, each naming its flag.
    pub fn check(&self) -> Result<Workload, Vec<String>> {
        match self.workload.unwrap_or_default() {
            Kind::Tau2 => Tau2::checked(self).map(Workload::Tau2),
            Kind::Replay => Recorded::checked(self).map(Workload::Recorded),
        }
    }

    /// What is set but means nothing to `kind`.
    fn only_for(&self, kind: Kind) -> Vec<String> {
        let tau2: [(&str, bool); 16] = [
            ("--domains", !self.domains.is_empty()),
            ("--tasks-per-domain", self.tasks_per_domain.is_some()),
            ("--trials", self.trials.is_some()),
            ("--poisson", self.poisson.is_some()),
            ("--arrivals", self.arrivals.is_some()),
            ("--identity", self.identity.is_some()),
            ("--retries", self.retries.is_some()),
            ("--redo-errors", self.redo_errors.is_some()),
            ("--max-steps", self.max_steps.is_some()),
            ("--max-errors", self.max_errors.is_some()),
            ("--per-worker", self.per_worker.is_some()),
            ("--tau2-path", self.tau2_path.is_some()),
            ("--tau2-python", self.tau2_python.is_some()),
            ("--oss-path", self.oss_path.is_some()),
            ("--user-model", self.user_model.is_some()),
            ("--temperature", self.temperature.is_some()),
        ];
        let replay = [
            ("--trace", self.trace.is_some()),
            ("--stand-in", self.stand_in.is_some()),
            ("--stream", self.stream.is_some()),
        ];
        let (others, wanted): (&[(&str, bool)], _) = match kind {
            Kind::Tau2 => (&replay, "replay"),
            Kind::Replay => (&tau2, "tau2"),
        };
        let set = others.iter().filter(|(_, is_set)| *is_set);
        set.map(|(flag, _)| format!("{flag} is of --workload {wanted}; take it out"))
            .collect()
    }

    /// Seconds that a client waits for a reply.
    fn timeout(&self) -> Result<Duration, String> {
        let seconds = self.request_timeout.unwrap_or(1_800.0);
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| {
                format!("--request-timeout {seconds}: must be a positive number of seconds")
            })
    }
}

impl Workload {
    /// What it is called in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Tau2(tau2) => tau2.name(),
            Self::Recorded(recorded) => recorded.name(),
        }
    }
}

/// The trace of this name.
fn load_trace(name: &str) -> Result<Arc<Trace>, String> {
    Trace::load(name)
        .map(Arc::new)
        .map_err(|error| format!("--trace: {error}"))
}

/// Lines of seconds.
fn load_arrivals(file: &Path) -> Result<Vec<f64>, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("--arrivals {}: {error}", file.display()))?;
    let number = |(at, line): (usize, &str)| {
        line.trim().parse().map_err(|_| {
            format!(
                "--arrivals {}: line {}: {line:?} is no number of seconds",
                file.display(),
                at + 1
            )
        })
    };
    text.lines().enumerate().map(number).collect()
}
