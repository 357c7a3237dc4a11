//! The watchdog's settings: as typed, and as rules with their defaults.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Of the longest task seen so far, how many may pass without the end of another.
const TASK_LENGTHS: f64 = 3.0;
/// Context overflows in a row at which a program is no longer waited for.
const OVERFLOWS: u32 = 2;

/// When to stop waiting, as typed. Each is also a key of `[watchdog]` in `experiment.toml`. Times are seconds of the
/// run, 0 is never.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchdogOptions {
    /// Warn of a program that was served no step for so long, in seconds; 0 never [default: 900]
    #[arg(long, value_name = "S", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_warn_s: Option<f64>,
    /// Give such a program up (see --on-step) after so long, in seconds; 0 never [default: 3600]
    #[arg(long, value_name = "S", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_fail_s: Option<f64>,
    /// Warn when no task has ended for so long, and for three times the longest task seen; 0 never [default: 1800]
    #[arg(long, value_name = "S", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_warn_s: Option<f64>,
    /// Stop the cell (see --on-task) when that lasts so long; 0 never [default: 7200]
    #[arg(long, value_name = "S", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_stop_s: Option<f64>,
    /// Stop the cell (see --on-cell) when no program at all was served a step for so long; more than the longest gap
    /// between arrivals; 0 never [default: 1800]
    #[arg(long, value_name = "S", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell_stop_s: Option<f64>,
    /// What is done about a program after --step-fail-s [default: fail-task]
    #[arg(long, value_name = "WHAT", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_step: Option<Level>,
    /// What is done after --task-stop-s [default: stop-cell]
    #[arg(long, value_name = "WHAT", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_task: Option<Level>,
    /// What is done after --cell-stop-s [default: stop-cell]
    #[arg(long, value_name = "WHAT", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_cell: Option<Level>,
    /// What is done about a program that overflows its context twice [default: fail-task]
    #[arg(long, value_name = "WHAT", help_heading = "Watchdog")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_overflow: Option<Level>,
}

/// How far an alarm goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Said and written down
    Warn,
    /// The program's task fails with the cause, and the others go on
    #[value(alias = "fail_task")]
    FailTask,
    /// The cell ends with the cause
    #[value(alias = "stop_cell")]
    StopCell,
}

/// Two bounds on a silence, in seconds; infinite ones are never reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Warned of after so long.
    pub warn_s: f64,
    /// Acted upon after so long.
    pub act_s: f64,
    /// How.
    pub action: Level,
}

/// When to stop waiting.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Between two steps of a program.
    pub step: Bounds,
    /// Between the ends of two tasks.
    pub task: Bounds,
    /// The bounds of `task` are at least so many times the longest task seen.
    pub task_lengths: f64,
    /// Between two steps of any programs.
    pub cell: Bounds,
    /// Context overflows in a row at which a program is no longer waited for.
    pub overflows: u32,
    /// What is done about it then.
    pub on_overflow: Level,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            step: Bounds {
                warn_s: 900.0,
                act_s: 3_600.0,
                action: Level::FailTask,
            },
            task: Bounds {
                warn_s: 1_800.0,
                act_s: 7_200.0,
                action: Level::StopCell,
            },
            task_lengths: TASK_LENGTHS,
            cell: Bounds {
                warn_s: f64::INFINITY,
                act_s: 1_800.0,
                action: Level::StopCell,
            },
            overflows: OVERFLOWS,
            on_overflow: Level::FailTask,
        }
    }
}

impl WatchdogOptions {
    /// The rules, with defaults where nothing was said.
    ///
    /// # Errors
    /// Names the flag to mend: a time that is negative or no number, or a task to be failed where no program is
    /// meant.
    pub fn rules(&self) -> Result<Rules, String> {
        let default = Rules::default();
        let bounds = |warn: (&str, Option<f64>), act: (&str, Option<f64>), on, or: Bounds| {
            Ok::<_, String>(Bounds {
                warn_s: seconds(warn, or.warn_s)?,
                act_s: seconds(act, or.act_s)?,
                action: Option::unwrap_or(on, or.action),
            })
        };
        let rules = Rules {
            step: bounds(
                ("--step-warn-s", self.step_warn_s),
                ("--step-fail-s", self.step_fail_s),
                self.on_step,
                default.step,
            )?,
            task: bounds(
                ("--task-warn-s", self.task_warn_s),
                ("--task-stop-s", self.task_stop_s),
                self.on_task,
                default.task,
            )?,
            cell: bounds(
                ("", None),
                ("--cell-stop-s", self.cell_stop_s),
                self.on_cell,
                default.cell,
            )?,
            on_overflow: self.on_overflow.unwrap_or(default.on_overflow),
            ..default
        };
        for (flag, bounds) in [("--on-task", rules.task), ("--on-cell", rules.cell)] {
            if bounds.action == Level::FailTask {
                return Err(format!(
                    "{flag} cannot be fail-task, for it is about no task in particular: choose warn or stop-cell"
                ));
            }
        }
        Ok(rules)
    }
}

/// A time as typed; 0 is never.
fn seconds((flag, typed): (&str, Option<f64>), default: f64) -> Result<f64, String> {
    match typed {
        None => Ok(default),
        Some(0.0) => Ok(f64::INFINITY),
        Some(seconds) if seconds > 0.0 && seconds.is_finite() => Ok(seconds),
        Some(seconds) => Err(format!("{flag} is {seconds}: give seconds, or 0 for never")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_file_reads_as_the_flags_do() {
        let text = "step_fail_s = 60.0\ntask_stop_s = 0\non_step = \"stop_cell\"\n";
        let options: WatchdogOptions = toml::from_str(text).unwrap();
        let rules = options.rules().unwrap();
        assert_eq!(rules.step.action, Level::StopCell);
        assert!((rules.step.act_s - 60.0).abs() < f64::EPSILON);
        assert!(rules.task.act_s.is_infinite(), "0 is never");
        assert!((rules.step.warn_s - Rules::default().step.warn_s).abs() < f64::EPSILON);
        assert!(toml::from_str::<WatchdogOptions>("step_fails = 1").is_err());
        let written = toml::to_string(&WatchdogOptions::default()).unwrap();
        assert_eq!(written, "", "what was not said is not written");
    }

    #[test]
    fn a_time_that_is_none_is_refused_by_its_flag() {
        for wrong in [-1.0, f64::NAN, f64::INFINITY] {
            let options = WatchdogOptions {
                cell_stop_s: Some(wrong),
                ..WatchdogOptions::default()
            };
            let error = options.rules().unwrap_err();
            assert!(error.starts_with("--cell-stop-s is "), "{error}");
        }
    }

    #[test]
    fn a_cell_that_stands_still_cannot_fail_a_task_of_its_own() {
        let options = WatchdogOptions {
            on_cell: Some(Level::FailTask),
            ..WatchdogOptions::default()
        };
        let error = options.rules().unwrap_err();
        assert!(
            error.starts_with("--on-cell cannot be fail-task"),
            "{error}"
        );
    }
}
