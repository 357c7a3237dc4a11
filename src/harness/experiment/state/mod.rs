//! What another process may know of an experiment: who plays it, how far it is, how it ended.
//!
//! `state.json` in the experiment's directory, written whole by whoever plays it. It is for people and for
//! [`super::status`]; nothing that a resumed run needs stands only here.

mod keeper;
mod lock;

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub use keeper::{Keeper, is_due};
pub use lock::{FILE as LOCK, Lock};

use super::process::Process;

/// The file.
pub const FILE: &str = "state.json";
/// What the one who plays says, in the experiment's directory.
pub const LOG: &str = "experiment.log";

/// An experiment, as `state.json`. Times are Unix seconds of the machine's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of kvgate that wrote this.
    pub kvgate: String,
    /// Who plays it, or did.
    pub process: Process,
    /// When that began.
    pub began_s: f64,
    /// When this was written.
    pub updated_s: f64,
    /// What is being done.
    pub phase: Phase,
    /// Why it ended as it did, unless it was played to its end.
    #[serde(default)]
    pub cause: Option<String>,
    /// When the last step was served.
    #[serde(default)]
    pub last_step_s: Option<f64>,
    /// When the last task ended.
    #[serde(default)]
    pub last_task_s: Option<f64>,
    /// The log, inside the directory.
    pub log: String,
    /// The command lines by which it was played, without keys: the first, then those that went on with it.
    #[serde(default)]
    pub commands: Vec<Vec<String>>,
    /// The cells in their order.
    pub cells: Vec<Cell>,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is asked whether the experiment can be done.
    Preflight,
    /// Engine, gate and workers are started.
    Starting,
    /// Tasks are played.
    Playing,
    /// Nothing more is started; what runs may end.
    Draining,
    /// Everything was played to its end.
    Done,
    /// It could not go on.
    Failed,
    /// Somebody stopped it.
    Interrupted,
}

impl Phase {
    /// Whether nothing more comes.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Interrupted)
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Starting => "starting",
            Self::Playing => "playing",
            Self::Draining => "draining",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// One cell of the experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Its name.
    pub name: String,
    /// Its run directory inside the experiment's; empty for that itself.
    #[serde(default)]
    pub dir: String,
    /// How far it is.
    pub status: CellStatus,
    /// Tasks to play; 0 as long as nobody knows.
    #[serde(default)]
    pub total: usize,
    /// Tasks that ended well, those of earlier runs in this directory included.
    #[serde(default)]
    pub ok: usize,
    /// Tasks that failed for good.
    #[serde(default)]
    pub failed: usize,
    /// Of the tasks that are over, those of earlier runs in this directory.
    #[serde(default)]
    pub over_before: usize,
    /// When it began, in this run.
    #[serde(default)]
    pub started_s: Option<f64>,
    /// When it ended.
    #[serde(default)]
    pub ended_s: Option<f64>,
    /// Its figures in one line.
    #[serde(default)]
    pub figures: Option<String>,
    /// Why it ended as it did, unless it was played to its end.
    #[serde(default)]
    pub cause: Option<String>,
}

impl Cell {
    /// A cell that is still to be played.
    pub fn planned(name: impl Into<String>, dir: impl Into<String>, total: usize) -> Self {
        Self {
            name: name.into(),
            dir: dir.into(),
            total,
            ..Self::default()
        }
    }

    /// Tasks that are over.
    pub const fn over(&self) -> usize {
        self.ok + self.failed
    }
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellStatus {
    /// Not begun.
    #[default]
    Planned,
    /// Being played.
    Running,
    /// Played to its end.
    Done,
    /// It could not go on.
    Failed,
    /// Stopped in the middle.
    Interrupted,
}

impl CellStatus {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl State {
    /// An experiment that this process begins to play.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn begin(now_s: f64, cells: Vec<Cell>) -> anyhow::Result<Self> {
        Ok(Self {
            kvgate: env!("CARGO_PKG_VERSION").to_owned(),
            process: Process::own()?,
            began_s: now_s,
            updated_s: now_s,
            phase: Phase::Preflight,
            cause: None,
            last_step_s: None,
            last_task_s: None,
            log: LOG.to_owned(),
            commands: Vec::new(),
            cells,
        })
    }

    /// Reads `state.json` of an experiment's directory; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not whole; the message names the file.
    pub fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let damaged = || {
            format!(
                "{} is damaged; `kvgate experiment resume {}` writes it anew",
                path.display(),
                dir.display()
            )
        };
        serde_json::from_str(&text).map(Some).with_context(damaged)
    }

    /// The cell of this name.
    pub fn cell_mut(&mut self, name: &str) -> Option<&mut Cell> {
        self.cells.iter_mut().find(|cell| cell.name == name)
    }

    /// The cell that is played.
    pub fn current(&self) -> Option<&Cell> {
        let mut cells = self.cells.iter();
        cells.find(|cell| cell.status == CellStatus::Running)
    }
}

#[cfg(test)]
mod tests;
