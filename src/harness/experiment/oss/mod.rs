//! The reference fork's driver as a black box, with everything it needs written for it.
//!
//! `run_oss.py` plays the tasks by itself; what it is given is the [`model_config`] whose every endpoint is the gate,
//! a folder that stands for the agent's checkpoint (the driver sends tools only to a model that is an existing path),
//! a tokenizer where there is none, and its environment. Its log is followed while it runs, and its end is judged by
//! what it left: it exits with 0 even when tasks have failed. Nothing is written into the checkout.
//!
//! What another layer does for it: the gate serves the model [`Names::agent`] as the scheduled one and routes
//! [`Names::user`] and [`Names::experts`].

mod driver;
mod follow;
mod layout;
pub mod model_config;
mod preflight;
mod python;
mod verdict;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use follow::{Progress, What};
pub use preflight::{MODULES, lacks, preflight};
pub use python::Python;
pub use verdict::Verdict;

/// A good size for the channel of progress; while it is full the log is not read on, and the driver goes on.
pub const PROGRESS: usize = 1_024;

/// What the driver is asked to play, and with what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The fork's checkout: the folder that holds `evaluation/tau2-bench/run_oss.py`.
    pub checkout: PathBuf,
    /// What runs it.
    pub python: Python,
    /// This program's executable, which guards the driver: it goes when this process does, however that comes.
    pub kvgate: PathBuf,
    /// The run directory; a new one.
    pub dir: PathBuf,
    /// The gate, `http://HOST:PORT`.
    pub gate: String,
    /// The policy, which names the model config's file.
    pub policy: String,
    /// The model that plays the customer and the judge, as the driver is to call it; the reference's is `gpt-5`.
    pub user: String,
    /// Domains, which take turns in this order.
    pub domains: Vec<String>,
    /// So many tasks of each domain; all if absent.
    pub tasks: Option<u32>,
    /// How often each task is played.
    pub trials: u32,
    /// Tasks in flight.
    pub concurrency: u32,
    /// The driver's bound on the steps of a task.
    pub max_steps: u32,
    /// From asking the driver to end to killing it.
    pub patience: Duration,
}

/// Names under which the driver calls models. The gate has to know them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The agent's: the path of a folder. It stands for the model that is scheduled.
    pub agent: String,
    /// The customer's and the judge's.
    pub user: String,
    /// The experts', in the order of `expert-1` to `expert-3`.
    pub experts: [String; 3],
}

impl Names {
    /// Those of a run in `dir` whose customer is `user`.
    pub fn of(dir: &Path, user: &str) -> Self {
        Self {
            agent: layout::checkpoint(dir).display().to_string(),
            user: user.to_owned(),
            experts: model_config::EXPERTS.map(str::to_owned),
        }
    }
}

impl Settings {
    /// Under which names models will be called.
    pub fn names(&self) -> Names {
        Names::of(&self.dir, &self.user)
    }
}

/// Plays to the end and judges it. Progress is sent as the driver's log tells it; a receiver that is gone changes
/// nothing. When `cancel` comes, the driver and all it started are ended, and what was written stays.
///
/// # Errors
/// When the driver cannot be given what it needs, started, or followed. Tasks that fail are no error but a verdict.
pub async fn play(
    settings: &Settings,
    watch: mpsc::Sender<Progress>,
    cancel: CancellationToken,
) -> anyhow::Result<Verdict> {
    let driver = driver::Driver::start(settings)?;
    driver.play(settings, watch, cancel).await
}
