//! What is played: tau2-bench, recorded programs, or the reference fork's driver.
//!
//! [`WorkloadOptions`] is checked into a [`Workload`], which plays itself through a gate and says what came of it as
//! a [`Played`]. Everything else of a cell is the same for all three.

pub mod fork;
pub mod recorded;
pub mod tau2;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::fork::Fork;
use self::recorded::Recorded;
use self::tau2::Tau2;
use super::machine;
use super::oss::Python;
use super::watch::Besides;
use super::watchdog::Alarm;
use crate::clock::Clock;
use crate::harness::rundir::{EngineManifest, Manifest};
use crate::harness::tau2::environment::Environment;
use crate::harness::tau2::event::{Event, Failure};
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
    /// Model that plays the customer; send it elsewhere by `[routes]` [default: the agent's]
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

/// Prints the version of Python, and of what it talks to models with.
const VERSIONS: &str = include_str!("../python/versions.py");

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
    /// The reference fork's driver.
    Fork(Fork),
}

/// What plays a workload, where that is not kvgate itself; looked for once, before the first cell.
#[derive(Clone, Debug)]
pub enum Bench {
    /// kvgate.
    Own,
    /// An installed tau2-bench.
    Tau2(Environment),
    /// The fork's Python.
    Fork(Python),
}

impl Bench {
    /// Versions by program; what cannot be found out is left out.
    pub async fn versions(&self) -> BTreeMap<String, String> {
        let (python, tau2) = match self {
            Self::Own => return BTreeMap::new(),
            Self::Tau2(environment) => (&environment.python, Some(&environment.tau2)),
            Self::Fork(python) => (&python.interpreter, None),
        };
        let said = machine::output(python, &["-c", VERSIONS], None).await;
        let versions = said.map(|said| serde_json::from_str(&said));
        let mut versions: BTreeMap<String, String> =
            versions.ok().and_then(Result::ok).unwrap_or_default();
        versions.extend(tau2.map(|version| ("tau2".to_owned(), version.clone())));
        versions
    }

    const fn python(&self) -> Option<&Python> {
        match self {
            Self::Fork(python) => Some(python),
            Self::Own | Self::Tau2(_) => None,
        }
    }
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
    /// The embedded engine, if it is one.
    pub engine: Option<EngineManifest>,
    /// The cell's name, for a bar.
    pub label: String,
}

impl Stage {
    /// What every run's manifest has, with this many programs.
    fn manifest(&self, programs: usize) -> Manifest {
        Manifest {
            kvgate: env!("CARGO_PKG_VERSION").to_owned(),
            policy: Some(self.policy.clone()),
            concurrency: self.concurrency,
            programs,
            url: self.url.clone(),
            model: self.model.clone(),
            time_scale: self.clock.scale(),
            epoch_unix: self.clock.epoch_unix(),
            engine: self.engine.clone(),
            ..Manifest::default()
        }
    }
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
    /// What happened to a simulation; for the watchdog.
    Simulation(Box<Event>),
    /// What the watchdog saw.
    Alarm(Alarm),
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
            Kind::Tau2 => match &self.oss_path {
                Some(checkout) => Fork::checked(self, checkout).map(Workload::Fork),
                None => Tau2::checked(self).map(Workload::Tau2),
            },
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

    /// What is set but means nothing to the fork's driver.
    fn not_for_the_fork(&self) -> Vec<String> {
        let set = [
            ("--poisson", self.poisson.is_some()),
            ("--arrivals", self.arrivals.is_some()),
            ("--identity", self.identity.is_some()),
            ("--retries", self.retries.is_some()),
            ("--redo-errors", self.redo_errors.is_some()),
            ("--per-worker", self.per_worker.is_some()),
            ("--tau2-path", self.tau2_path.is_some()),
            ("--tau2-python", self.tau2_python.is_some()),
            ("--temperature", self.temperature.is_some()),
            ("--max-tokens", self.max_tokens.is_some()),
            ("--request-timeout", self.request_timeout.is_some()),
        ];
        let mut problems = self.only_for(Kind::Tau2);
        let set = set.iter().filter(|(_, is_set)| *is_set);
        problems.extend(set.map(|(flag, _)| {
            format!("{flag} is not for --oss-path, whose driver decides that itself; take it out")
        }));
        problems
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

/// Models that tau2-bench asks for besides those it is told to, with the stand-in that plays them unless [routes] says
/// who does.
const JUDGE: (&str, &str) = ("gpt-4.1-2025-04-14", "judge");

impl Workload {
    /// What it is called in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Tau2(tau2) => tau2.name(),
            Self::Recorded(recorded) => recorded.name(),
            Self::Fork(fork) => fork.name(),
        }
    }

    /// Whether a cell that was cut short goes on where it was; otherwise it begins anew.
    pub const fn goes_on(&self) -> bool {
        matches!(self, Self::Tau2(_))
    }

    /// What plays it, installed if it is not there.
    ///
    /// # Errors
    /// When it cannot be installed or found; the message says what helps.
    pub async fn bench(&self, told: &mpsc::Sender<Told>) -> anyhow::Result<Bench> {
        Ok(match self {
            Self::Recorded(_) => Bench::Own,
            Self::Tau2(tau2) => Bench::Tau2(tau2.environment(told).await?),
            Self::Fork(fork) => Bench::Fork(fork.python(told).await?),
        })
    }

    /// How many tasks there are; 0 where only the driver knows.
    ///
    /// # Errors
    /// When the plan is empty or names an unknown domain.
    pub fn tasks(&self, bench: &Bench) -> anyhow::Result<usize> {
        match (self, bench) {
            (Self::Recorded(recorded), _) => Ok(recorded.programs()),
            (Self::Tau2(tau2), Bench::Tau2(environment)) => tau2.tasks(environment),
            (Self::Tau2(_) | Self::Fork(_), _) => Ok(0),
        }
    }

    /// How a run of it is made.
    ///
    /// # Errors
    /// When the plan is empty or names an unknown domain.
    pub fn manifest(&self, stage: &Stage, bench: &Bench) -> anyhow::Result<Manifest> {
        match (self, bench) {
            (Self::Recorded(recorded), _) => Ok(recorded.manifest(stage)),
            (Self::Tau2(tau2), bench) => Ok(tau2.manifest(stage, self.tasks(bench)?)),
            (Self::Fork(fork), _) => Ok(fork.manifest(stage)),
        }
    }

    /// The longest prompt with its reply, in tokens, where that is known before.
    pub fn longest_context(&self) -> Option<u32> {
        match self {
            Self::Recorded(recorded) => Some(recorded.longest_context()),
            Self::Tau2(_) | Self::Fork(_) => None,
        }
    }

    /// What else than the gate's records tells of life.
    pub const fn besides(&self) -> Besides {
        match self {
            Self::Tau2(_) => Besides::Nothing,
            Self::Recorded(_) => Besides::Programs,
            Self::Fork(_) => Besides::DriverLog,
        }
    }

    /// Folders that may be checkouts, by what they hold.
    pub fn checkouts(&self) -> BTreeMap<String, PathBuf> {
        match self {
            Self::Tau2(tau2) => tau2
                .checkout()
                .map(|path| ("tau2".to_owned(), path))
                .into_iter()
                .collect(),
            Self::Recorded(_) => BTreeMap::new(),
            Self::Fork(fork) => {
                BTreeMap::from([("run_oss".to_owned(), fork.checkout().to_owned())])
            }
        }
    }

    /// Files whose content matters, by what they are.
    pub fn files(&self) -> BTreeMap<String, PathBuf> {
        match self {
            Self::Recorded(recorded) => recorded
                .file()
                .map(|path| ("trace".to_owned(), path))
                .into_iter()
                .collect(),
            Self::Tau2(_) | Self::Fork(_) => BTreeMap::new(),
        }
    }

    /// The gate's configuration file for a run in `dir`: what was given, and routes for the models that the workload
    /// asks for under names that nobody serves.
    pub fn gate_table(
        &self,
        given: &toml::Table,
        routes: &toml::Table,
        dir: &Path,
        model: &str,
    ) -> toml::Table {
        let mut all = toml::Table::new();
        let stand_in = |who: &str| toml::Table::from_iter([("stand_in".to_owned(), who.into())]);
        match self {
            Self::Recorded(_) => {}
            Self::Tau2(_) => {
                all.insert(JUDGE.0.to_owned(), stand_in(JUDGE.1).into());
            }
            Self::Fork(fork) => {
                let names = fork.names(dir);
                let scheduled = [("backend", "scheduled"), ("model", model)];
                let scheduled = scheduled.map(|(key, value)| (key.to_owned(), value.into()));
                all.insert(names.user, stand_in("user").into());
                for expert in names.experts {
                    all.insert(expert, stand_in("expert").into());
                }
                all.insert(names.agent, toml::Table::from_iter(scheduled).into());
            }
        }
        all.extend(routes.clone());
        let mut table = given.clone();
        if !all.is_empty() {
            table.insert("routes".to_owned(), all.into());
        }
        if self.is_inferred() && !table.contains_key("infer_programs") {
            table.insert("infer_programs".to_owned(), true.into());
        }
        table
    }

    fn is_inferred(&self) -> bool {
        matches!(self, Self::Tau2(tau2) if tau2.identity() == Identity::Inferred)
    }

    /// Plays it; programs that are given up by name fail.
    ///
    /// # Errors
    /// When it cannot be begun or a record cannot be written.
    pub async fn play(
        &self,
        stage: &Stage,
        bench: &Bench,
        hands: &Hands,
        given_up: mpsc::UnboundedReceiver<(String, Failure)>,
        told: mpsc::Sender<Told>,
    ) -> anyhow::Result<Played> {
        match (self, bench) {
            (Self::Recorded(recorded), _) => recorded.play(stage, hands, given_up, &told).await,
            (Self::Tau2(tau2), Bench::Tau2(environment)) => {
                tau2.play(stage, environment.clone(), hands, given_up, &told)
                    .await
            }
            (Self::Fork(fork), bench) => fork.play(stage, bench, hands, &told).await,
            (Self::Tau2(_), _) => anyhow::bail!("tau2-bench was not looked for"),
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
