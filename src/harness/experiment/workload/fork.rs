//! The reference fork's own driver, as a black box.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Bench, Hands, Played, Stage, Told, WorkloadOptions};
use crate::clock::Clock;
use crate::harness::child::own_executable;
use crate::harness::experiment::oss::{
    self, Names, PROGRESS, Progress, Python, Settings, Verdict, What,
};
use crate::harness::rundir::Manifest;
use crate::harness::tau2::environment::cache_dir;
use crate::harness::tau2::plan;

/// From asking the driver to end to killing it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The reference's customer and judge.
const USER: &str = "gpt-5";

/// The fork's driver, checked but not started.
#[derive(Clone, Debug)]
pub struct Fork {
    checkout: PathBuf,
    python: Option<PathBuf>,
    domains: Vec<String>,
    tasks: Option<u32>,
    trials: u32,
    max_steps: u32,
    user: String,
}

impl Fork {
    pub(super) fn checked(options: &WorkloadOptions, checkout: &Path) -> Result<Self, Vec<String>> {
        let mut problems = options.not_for_the_fork();
        if options.tasks.is_some() {
            problems.push(
                "--tasks is not for --oss-path, whose driver counts by domain: use --tasks-per-domain"
                    .to_owned(),
            );
        }
        let tasks = options.tasks_per_domain.map(u32::try_from).transpose();
        let Ok(tasks) = tasks else {
            problems.push("--tasks-per-domain is too large".to_owned());
            return Err(problems);
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let domains = if options.domains.is_empty() {
            plan::Workload::default().domains
        } else {
            options.domains.clone()
        };
        Ok(Self {
            checkout: checkout.to_owned(),
            python: options.oss_python.clone(),
            domains,
            tasks,
            trials: options.trials.unwrap_or(1),
            max_steps: options.max_steps.unwrap_or(200),
            user: options
                .user_model
                .clone()
                .unwrap_or_else(|| USER.to_owned()),
        })
    }

    pub(super) fn name(&self) -> String {
        format!("run_oss {}", self.domains.join(" "))
    }

    /// The checkout.
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// The domains that are played.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// What runs the driver, installed if it is not there.
    ///
    /// # Errors
    /// When it cannot be installed; the message says what helps.
    pub async fn python(&self, told: &mpsc::Sender<Told>) -> anyhow::Result<Python> {
        let (fork, told) = (self.clone(), told.clone());
        let find = move || {
            let cache = cache_dir()?;
            let mut progress = |line: &str| {
                // Fails only when nobody listens any more.
                let _gone = told.blocking_send(Told::Doing(line.to_owned()));
            };
            let own = fork.python.as_deref();
            Python::find(&fork.checkout, &fork.domains, own, &cache, &mut progress)
        };
        tokio::task::spawn_blocking(find).await?
    }

    fn settings(&self, stage: &Stage, python: Python) -> anyhow::Result<Settings> {
        Ok(Settings {
            checkout: self.checkout.clone(),
            python,
            kvgate: own_executable()?,
            dir: stage.dir.clone(),
            gate: stage.url.clone(),
            policy: stage.policy.clone(),
            user: self.user.clone(),
            domains: self.domains.clone(),
            tasks: self.tasks,
            trials: self.trials,
            concurrency: u32::try_from(stage.concurrency)?,
            max_steps: self.max_steps,
            patience: PATIENCE,
        })
    }

    /// The names under which the driver calls models, for a run in `dir`.
    pub fn names(&self, dir: &Path) -> Names {
        Names::of(dir, &self.user)
    }

    /// How a run of it is made. How many programs there will be only the driver knows.
    pub fn manifest(&self, stage: &Stage) -> Manifest {
        Manifest {
            trace: self.name(),
            ..stage.manifest(0)
        }
    }

    /// Plays to the end; a program cannot be given up in it.
    ///
    /// # Errors
    /// When the driver cannot be started or followed, or something is missing that it needs.
    pub async fn play(
        &self,
        stage: &Stage,
        bench: &Bench,
        hands: &Hands,
        told: &mpsc::Sender<Told>,
    ) -> anyhow::Result<Played> {
        let python = bench
            .python()
            .context("the fork's Python was not looked for")?;
        let settings = self.settings(stage, python.clone())?;
        let missing = oss::preflight(&settings);
        anyhow::ensure!(missing.is_empty(), "{}", missing.join("\n"));
        let (sender, mut progress) = mpsc::channel(PROGRESS);
        // The driver cannot be asked to start nothing more.
        let cancel = CancellationToken::new();
        let mut playing = Box::pin(oss::play(&settings, sender, cancel.clone()));
        let verdict = loop {
            tokio::select! {
                verdict = &mut playing => break verdict?,
                () = hands.drain.cancelled(), if !cancel.is_cancelled() => cancel.cancel(),
                () = hands.kill.cancelled(), if !cancel.is_cancelled() => cancel.cancel(),
                Some(news) = progress.recv() => tell(&news, told).await,
            }
        };
        drop(playing);
        Ok(played(&verdict))
    }
}

async fn tell(news: &Progress, told: &mpsc::Sender<Told>) {
    let What::Left(program) = &news.what else {
        return;
    };
    let clock = Clock::real();
    let ended = Told::TaskEnded {
        program: program.clone(),
        at_s: clock.unix(clock.now()),
        played: Played {
            total: count(news.total),
            ok: count(news.done - news.failed.min(news.done)),
            failed: count(news.failed),
            ..Played::default()
        },
    };
    // Fails only when nobody listens any more.
    let _gone = told.send(ended).await;
}

fn played(verdict: &Verdict) -> Played {
    let mut played = Played {
        total: count(verdict.total),
        ok: count(verdict.ok),
        failed: count(verdict.error),
        figures: verdict
            .why
            .clone()
            .unwrap_or_else(|| format!("{} tasks", verdict.ok)),
        ..Played::default()
    };
    if verdict.error > 0 {
        played.causes.insert("driver".to_owned(), played.failed);
    }
    played
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
