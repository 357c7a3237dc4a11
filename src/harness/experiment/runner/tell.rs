//! What is heard of a cell while it is played, in words and in the state.

use std::time::UNIX_EPOCH;

use indicatif::ProgressBar;

use super::{Runner, now_s};
use crate::harness::experiment::cell::End;
use crate::harness::experiment::matrix::Planned;
use crate::harness::experiment::state::{self, CellStatus};
use crate::harness::experiment::watchdog::Level;
use crate::harness::experiment::workload::{Played, Told};
use crate::telemetry::recorder::STEPS_FILE;

impl Runner {
    pub(super) fn bar(&self, name: &str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let total = self
            .keeper
            .state()
            .cells
            .first()
            .map_or(0, |cell| cell.total);
        self.console.bar(total as u64, name)
    }

    pub(super) fn hear(&mut self, name: &str, news: Told, bar: &ProgressBar) {
        match news {
            Told::Doing(what) => bar.set_message(what),
            Told::Warning(what) => self.console.say(&format!("{name}: {what}")),
            Told::Alarm(alarm) => {
                let then = match alarm.level {
                    Level::Warn => "",
                    Level::FailTask => ": given up",
                    Level::StopCell => ": the cell is stopped",
                };
                self.console.say(&format!("{name}: {alarm}{then}"));
            }
            Told::Simulation(_) => {}
            Told::TaskEnded { played, .. } => {
                bar.set_length(played.total as u64);
                bar.set_position((played.ok + played.failed) as u64);
                bar.set_message(played.figures.clone());
                self.update(|state| {
                    // The machine's clock, not the run's, which may go faster.
                    state.last_task_s = Some(now_s());
                    if let Some(cell) = state.cell_mut(name) {
                        note(cell, &played);
                    }
                });
            }
        }
    }

    /// Looks when the gate last recorded a step.
    pub(super) fn look(&mut self, cell: &Planned) {
        let meta = cell.dir.join(STEPS_FILE).metadata();
        let written = meta.and_then(|meta| meta.modified()).ok();
        let since = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        self.update(|state| {
            if let Some(since) = since {
                state.last_step_s = Some(since.as_secs_f64());
            }
        });
    }

    pub(super) fn note_end(&mut self, name: &str, ended: &anyhow::Result<End>) {
        self.mark(name, |cell| {
            cell.ended_s = Some(now_s());
            match ended {
                Ok(end) => {
                    note(cell, &end.played);
                    cell.cause.clone_from(&end.cause);
                    cell.status = match (end.is_complete(), end.interrupted) {
                        (true, _) => CellStatus::Done,
                        (false, true) => CellStatus::Interrupted,
                        (false, false) => CellStatus::Failed,
                    };
                }
                Err(error) => {
                    cell.status = CellStatus::Failed;
                    cell.cause = Some(format!("{error:#}"));
                }
            }
        });
    }
}

fn note(cell: &mut state::Cell, played: &Played) {
    cell.total = played.total.max(cell.total);
    (cell.ok, cell.failed) = (played.ok, played.failed);
    cell.figures = Some(played.figures.clone());
}

/// How a cell ended, in words.
pub(super) fn told_of(ended: &anyhow::Result<End>) -> String {
    let end = match ended {
        Ok(end) => end,
        Err(error) => return format!("failed: {error:#}"),
    };
    let played = &end.played;
    let mut parts = vec![format!("{} of {} tasks", played.ok, played.total)];
    if played.failed > 0 {
        let causes = played.causes.iter();
        let causes: Vec<_> = causes.map(|(cause, n)| format!("{cause} {n}")).collect();
        parts.push(format!("{} failed ({})", played.failed, causes.join(", ")));
    }
    if !played.figures.is_empty() {
        parts.push(played.figures.clone());
    }
    let cause = end.cause.as_ref();
    let cut = cause.map_or_else(String::new, |cause| format!("; cut short: {cause}"));
    parts.join(", ") + &cut
}

/// How long cells took.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seconds: f64,
    cells: u32,
}

impl Pace {
    pub(super) fn add(&mut self, seconds: f64) {
        self.seconds += seconds;
        self.cells += 1;
    }

    /// How long the rest will take, for the end of a line.
    pub(super) fn eta(&self, left: usize) -> String {
        if left == 0 || self.cells == 0 {
            return String::new();
        }
        let left_s = self.seconds / f64::from(self.cells)
            * f64::from(u32::try_from(left).unwrap_or(u32::MAX));
        format!("; {left} to go, about {:.0} min", (left_s / 60.0).ceil())
    }
}
