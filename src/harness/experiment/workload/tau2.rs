//! tau2-bench itself: Python processes play its tasks, the plan and the records are ours.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{Hands, Kind, Played, Stage, Told, WorkloadOptions, load_arrivals};
use crate::harness::rundir::{DIRECT, Ending, Manifest, ProgramRecord, RunDir};
use crate::harness::tau2::environment::{self, Environment, cache_dir};
use crate::harness::tau2::event::{Cause, Event, Failure, What};
use crate::harness::tau2::outputs::{Header, Outputs, Progress, Reward, read_rewards};
use crate::harness::tau2::plan::{self, Arrivals, Rules, Schedule};
use crate::harness::tau2::pool;
use crate::harness::tau2::remote::{self, Remote};
use crate::harness::tau2::settings::{Identity, PER_WORKER, Patience, Player, Secret, Settings};

/// Workers' restarts in a run: enough for a machine that is short of memory now and then, not for a broken one.
const RESTARTS: u32 = 20;
/// What is added to the longest wait for a reply before a simulation counts as silent.
const SILENCE: Duration = Duration::from_secs(600);

/// tau2-bench, checked but not installed.
#[derive(Clone, Debug)]
pub struct Tau2 {
    workload: plan::Workload,
    arrivals: Arrivals,
    retries: u32,
    redo_errors: bool,
    identity: Identity,
    max_steps: u32,
    max_errors: u32,
    per_worker: usize,
    path: Option<PathBuf>,
    python: Option<PathBuf>,
    user_model: Option<String>,
    temperature: f64,
    max_tokens: Option<u32>,
    timeout: Duration,
}

impl Tau2 {
    pub(super) fn checked(options: &WorkloadOptions) -> Result<Self, Vec<String>> {
        let mut problems = options.only_for(Kind::Tau2);
        let default = plan::Workload::default();
        let workload = plan::Workload {
            domains: if options.domains.is_empty() {
                default.domains
            } else {
                options.domains.clone()
            },
            tasks_per_domain: options.tasks_per_domain,
            units: options.tasks,
            trials: options.trials.unwrap_or(default.trials),
            seed: options.seed.unwrap_or(default.seed),
        };
        let arrivals = arrivals(options).unwrap_or_else(|problem| {
            problems.push(problem);
            Arrivals::Closed
        });
        let timeout = options.timeout().unwrap_or_else(|problem| {
            problems.push(problem);
            Duration::ZERO
        });
        for (flag, is_none) in [
            ("--tasks", options.tasks == Some(0)),
            ("--tasks-per-domain", options.tasks_per_domain == Some(0)),
            ("--trials", options.trials == Some(0)),
            ("--per-worker", options.per_worker == Some(0)),
            ("--max-steps", options.max_steps == Some(0)),
        ] {
            if is_none {
                problems.push(format!("{flag} must be at least 1"));
            }
        }
        if let Err(problem) = workload.check_domains(environment::domains()) {
            problems.push(format!("--domains: {problem}"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            workload,
            arrivals,
            retries: options.retries.unwrap_or(2),
            redo_errors: options.redo_errors.unwrap_or(false),
            identity: options.identity.unwrap_or_default(),
            max_steps: options.max_steps.unwrap_or(200),
            max_errors: options.max_errors.unwrap_or(10),
            per_worker: options.per_worker.unwrap_or(PER_WORKER),
            path: options.tau2_path.clone(),
            python: options.tau2_python.clone(),
            user_model: options.user_model.clone(),
            temperature: options.temperature.unwrap_or(0.0),
            max_tokens: options.max_tokens,
            timeout,
        })
    }

    pub(super) fn name(&self) -> String {
        format!("tau2 {}", self.workload.domains.join(" "))
    }

    /// The identity by which programs are told apart.
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The benchmark, installed if it is not there.
    ///
    /// # Errors
    /// When it cannot be installed or found; the message says what helps.
    pub async fn environment(&self, told: &mpsc::Sender<Told>) -> anyhow::Result<Environment> {
        let (python, path, told) = (self.python.clone(), self.path.clone(), told.clone());
        let install = move || {
            let mut progress = |line: &str| {
                // Fails only when nobody listens any more.
                let _gone = told.blocking_send(Told::Doing(line.to_owned()));
            };
            match (path, python) {
                (Some(path), python) => {
                    Environment::upstream(&path, python.as_deref(), &cache_dir()?, &mut progress)
                }
                (None, Some(python)) => Environment::at(&python, None),
                (None, None) => Environment::install(&cache_dir()?, &mut progress),
            }
        };
        tokio::task::spawn_blocking(install).await?
    }

    /// How many tasks there are.
    ///
    /// # Errors
    /// When the plan is empty or names an unknown domain.
    pub fn tasks(&self, environment: &Environment) -> anyhow::Result<usize> {
        Ok(self.workload.list(&environment.catalogue)?.len())
    }

    /// An upstream checkout, if it is one.
    pub fn checkout(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    /// How a run of it is made, of so many tasks.
    pub fn manifest(&self, stage: &Stage, tasks: usize) -> Manifest {
        Manifest {
            trace: self.name(),
            seed: u64::from(self.seed(stage)),
            ..stage.manifest(tasks)
        }
    }

    /// Each repeat has another seed.
    const fn seed(&self, stage: &Stage) -> u32 {
        self.workload.seed.wrapping_add(stage.repeat)
    }

    fn settings(&self, stage: &Stage, environment: Environment) -> Settings {
        let user = self.user_model.clone();
        let gated = stage.policy != DIRECT;
        Settings {
            environment,
            dir: stage.dir.clone(),
            per_worker: self.per_worker,
            agent: self.player(stage, stage.model.clone()),
            user: self.player(stage, user.unwrap_or_else(|| stage.model.clone())),
            identity: self.identity,
            release_url: gated.then(|| stage.url.clone()),
            max_steps: self.max_steps,
            max_errors: self.max_errors,
            patience: Patience {
                simulation: self.timeout + SILENCE,
                ..Patience::default()
            },
            script: None,
            restarts: RESTARTS,
        }
    }

    fn player(&self, stage: &Stage, model: String) -> Player {
        let mut arguments = Map::new();
        arguments.insert("temperature".to_owned(), json!(self.temperature));
        arguments.insert("timeout".to_owned(), json!(self.timeout.as_secs_f64()));
        if let Some(tokens) = self.max_tokens {
            arguments.insert("max_tokens".to_owned(), Value::from(tokens));
        }
        Player {
            model,
            url: stage.url.clone(),
            key: Secret("none".to_owned()),
            arguments,
        }
    }

    /// Plays what earlier runs in this directory have left; programs that are given up by name fail.
    ///
    /// # Errors
    /// When no worker can be started or a record cannot be written.
    pub async fn play(
        &self,
        stage: &Stage,
        environment: Environment,
        hands: &Hands,
        given_up: mpsc::UnboundedReceiver<(String, Failure)>,
        told: &mpsc::Sender<Told>,
    ) -> anyhow::Result<Played> {
        let workload = plan::Workload {
            seed: self.seed(stage),
            ..self.workload.clone()
        };
        let units = workload.list(&environment.catalogue)?;
        let header = Header {
            domains: workload.domains.clone(),
            trials: workload.trials,
            concurrency: stage.concurrency,
            data: environment.data.clone(),
            zone: TimeZone::system(),
        };
        let mut outputs = Outputs::open(&stage.dir, header, &units)?;
        let rules = Rules {
            concurrency: stage.concurrency,
            arrivals: self.arrivals.clone(),
            retries: self.retries,
            redo_errors: self.redo_errors,
            id_seed: u64::from(stage.repeat),
        };
        let schedule = Schedule::new(units, rules, &outputs.past())?;
        let (remote, control) = remote::control();
        let (sender, mut events) = mpsc::channel(pool::EVENTS);
        let hand = tokio::spawn(obey(remote, hands.clone(), given_up));
        let playing = tokio::spawn(pool::play(
            self.settings(stage, environment),
            schedule,
            control,
            sender,
        ));
        while let Some(event) = events.recv().await {
            outputs.record(&event)?;
            // Fails only when nobody listens any more.
            let _gone = told.send(Told::Simulation(Box::new(event.clone()))).await;
            if let Some(news) = news(&event, &outputs) {
                let _gone = told.send(news).await;
            }
        }
        hand.abort();
        let ended = playing.await.context("the workers' keeper")?;
        let progress = outputs.finish()?;
        write_programs(&stage.dir)?;
        ended?;
        Ok(played(&progress))
    }
}

/// Passes on what the hands do.
async fn obey(
    remote: Remote,
    hands: Hands,
    mut given_up: mpsc::UnboundedReceiver<(String, Failure)>,
) {
    loop {
        tokio::select! {
            biased;
            () = hands.kill.cancelled() => {
                remote.kill();
                return;
            }
            () = hands.drain.cancelled() => break,
            Some((program, failure)) = given_up.recv() => remote.give_up(program, failure),
        }
    }
    remote.drain();
    hands.kill.cancelled().await;
    remote.kill();
}

/// What of an event is told to whoever watches the cell.
fn news(event: &Event, outputs: &Outputs) -> Option<Told> {
    match (&event.what, &event.attempt) {
        (What::Finished(finish), Some(attempt)) if finish.last_word => Some(Told::TaskEnded {
            program: attempt.job_id.clone(),
            at_s: event.at_s,
            played: played(&outputs.progress()),
        }),
        (What::WorkerReady { start_s, .. }, _) => Some(Told::Doing(format!(
            "a worker loaded tau2 in {start_s:.0} s"
        ))),
        (
            What::WorkerDied {
                error,
                simulations,
                restarted,
            },
            _,
        ) => {
            let then = if *restarted { "; restarted" } else { "" };
            Some(Told::Warning(format!(
                "a worker died with {simulations} simulations{then}: {error}"
            )))
        }
        (
            What::Cpu {
                core_share,
                busy: true,
                ..
            },
            _,
        ) => Some(Told::Warning(format!(
            "a worker takes {:.0} % of a core: the gaps that the gate sees are partly its own; lower --per-worker",
            core_share * 100.0
        ))),
        (What::ReleaseFailed { program, error }, _) => Some(Told::Warning(format!(
            "the gate was not told that {program} is over: {error}"
        ))),
        _ => None,
    }
}

fn played(progress: &Progress) -> Played {
    let minutes = progress.elapsed_s / 60.0;
    let figures = match progress.ok {
        0 => "no task ended".to_owned(),
        ok => format!(
            "{:.2} tasks/min over {:.0} s",
            per(ok, minutes),
            progress.elapsed_s
        ),
    };
    let cause = |(cause, count): (&Cause, &usize)| (cause.word().to_owned(), *count);
    Played {
        total: progress.total,
        ok: progress.ok,
        failed: progress.failed,
        causes: progress.causes.iter().map(cause).collect(),
        figures,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn per(count: usize, minutes: f64) -> f64 {
    count as f64 / minutes.max(1e-9)
}

fn arrivals(options: &WorkloadOptions) -> Result<Arrivals, String> {
    match (options.poisson, &options.arrivals) {
        (Some(per_minute), _) if !(per_minute.is_finite() && per_minute > 0.0) => Err(format!(
            "--poisson {per_minute}: must be a positive number of tasks a minute"
        )),
        (Some(per_minute), _) => Ok(Arrivals::Poisson {
            per_minute,
            seed: u64::from(options.seed.unwrap_or(300)),
        }),
        (None, Some(file)) => load_arrivals(file).map(Arrivals::Recorded),
        (None, None) => Ok(Arrivals::Closed),
    }
}

/// Writes `programs.jsonl` anew from the attempts that had the last word, as a replay would have.
fn write_programs(dir: &std::path::Path) -> anyhow::Result<()> {
    let mut lines = RunDir::at(dir).lines("programs.jsonl")?;
    for reward in read_rewards(dir)?
        .into_iter()
        .filter(|r| r.finish.last_word)
    {
        lines.push(&program(reward))?;
    }
    lines.finish()
}

fn program(reward: Reward) -> ProgramRecord {
    let failure = reward.finish.failure;
    let stopped = |cause| cause == Cause::Stopped;
    ProgramRecord {
        program: reward.job_id,
        kind: reward.unit.domain,
        started_s: reward.started_s,
        finished_s: reward.finished_s,
        steps: usize::try_from(reward.finish.llm_calls).unwrap_or(usize::MAX),
        errors: usize::from(failure.is_some()),
        ending: match &failure {
            None => Ending::Done,
            Some(failure) if stopped(failure.cause) => Ending::Cancelled,
            Some(_) => Ending::Failed,
        },
        cause: failure.map(|failure| failure.cause.word().to_owned()),
    }
}
