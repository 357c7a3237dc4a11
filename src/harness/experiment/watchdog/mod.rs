//! When to stop waiting: the last step and the last task, per program and per cell. Pure.
//!
//! A [`Watchdog`] is told of signs of life and of the time, and answers with alarms: a program without a step, a cell
//! without a step or without the end of a task, a program that overflows its context again and again. An alarm is
//! given once; progress arms it again. Whoever listens warns, fails the task or stops the cell.

pub mod options;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use options::{Bounds, Level, Rules, WatchdogOptions};

/// Programs that are over and still known, so that a late record of one does not bring it back.
const REMEMBERED: usize = 4_096;

/// A sign of life.
#[derive(Clone, Debug, PartialEq)]
pub enum Sign {
    /// A program began, or was seen first.
    Began {
        /// Its name.
        program: String,
    },
    /// A step was served.
    Step {
        /// The program that went on; `None` for a request without identity.
        program: Option<String>,
    },
    /// A request of a program was refused because it no longer fits the model's context.
    Overflow {
        /// Its name.
        program: String,
    },
    /// A program is over, however it ended.
    Ended {
        /// Its name.
        program: String,
    },
    /// A task is over: it will not be tried again.
    Task {
        /// How long it took, if it was played to its end.
        took_s: Option<f64>,
    },
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The program was served no step.
    ProgramSilent,
    /// No task ended.
    NoTask,
    /// No program was served a step.
    NoStep,
    /// The program no longer fits the model's context, and tries on.
    ContextOverflow,
}

/// Something that somebody should hear of; a line of `watch.jsonl`. Times are Unix seconds of the run's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it was noticed.
    pub at_s: f64,
    /// Whose, if it is about one program.
    pub program: Option<String>,
    /// How far it goes.
    pub level: Level,
    /// What it is about.
    pub cause: Cause,
    /// The last sign of life.
    pub since_s: f64,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let silent_s = self.at_s - self.since_s;
        match (self.cause, self.program.as_deref().unwrap_or("a program")) {
            (Cause::ProgramSilent, program) => {
                write!(f, "{program} was served no step for {silent_s:.0} s")
            }
            (Cause::NoTask, _) => write!(f, "no task ended for {silent_s:.0} s"),
            (Cause::NoStep, _) => write!(f, "no step was served for {silent_s:.0} s"),
            (Cause::ContextOverflow, program) => {
                write!(f, "{program} overflows the model's context again and again")
            }
        }
    }
}

/// One silence, and which alarms it has given.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since_s: f64,
    warned: bool,
    acted: bool,
}

impl Silence {
    const fn from(since_s: f64) -> Self {
        Self {
            since_s,
            warned: false,
            acted: false,
        }
    }

    /// A sign of life; an older one than the last changes nothing.
    fn broken(&mut self, at_s: f64) {
        if at_s > self.since_s {
            *self = Self::from(at_s);
        }
    }

    /// When it next gives an alarm; infinite for never. `least_s` stretches both bounds.
    fn due_s(&self, bounds: &Bounds, least_s: f64) -> f64 {
        let bound = match (self.acted, self.warned) {
            // Once it was acted upon there is nothing left to warn of.
            (true, _) => f64::INFINITY,
            (false, true) => bounds.act_s,
            (false, false) => bounds.act_s.min(bounds.warn_s),
        };
        self.since_s + bound.max(least_s)
    }

    /// The level of the alarm that is due at `now_s`, which is then given.
    fn give(&mut self, now_s: f64, bounds: &Bounds, least_s: f64) -> Option<Level> {
        let over = |bound: f64| now_s >= self.since_s + bound.max(least_s);
        if !self.acted && over(bounds.act_s) {
            self.acted = true;
            return Some(bounds.action);
        }
        if !self.acted && !self.warned && over(bounds.warn_s) {
            self.warned = true;
            return Some(Level::Warn);
        }
        None
    }
}

/// What is known of a program.
#[derive(Clone, Copy, Debug)]
struct Program {
    silence: Silence,
    overflows: u32,
    /// The last sign was an overflow too many, of which nobody has heard yet.
    overflowed: bool,
    ended: bool,
}

/// Watches one cell.
#[derive(Clone, Debug)]
pub struct Watchdog {
    rules: Rules,
    programs: BTreeMap<String, Program>,
    /// Those that are over, the oldest first.
    ended: VecDeque<String>,
    cell: Silence,
    task: Silence,
    longest_s: f64,
}

impl Watchdog {
    /// A watchdog for a cell whose workload began at `began_s`.
    pub const fn new(rules: Rules, began_s: f64) -> Self {
        Self {
            rules,
            programs: BTreeMap::new(),
            ended: VecDeque::new(),
            cell: Silence::from(began_s),
            task: Silence::from(began_s),
            longest_s: 0.0,
        }
    }

    /// Takes a sign of life. Signs may come late and out of order.
    pub fn observe(&mut self, at_s: f64, sign: Sign) {
        match sign {
            Sign::Began { program } => {
                self.program(at_s, program);
                self.cell.broken(at_s);
            }
            Sign::Step { program } => {
                if let Some(program) = program {
                    let program = self.program(at_s, program);
                    program.silence.broken(at_s);
                    // One that goes on has found a way.
                    program.overflows = 0;
                }
                self.cell.broken(at_s);
            }
            Sign::Overflow { program } => {
                let allowed = self.rules.overflows;
                let program = self.program(at_s, program);
                program.overflows = program.overflows.saturating_add(1);
                program.overflowed |= program.overflows == allowed && !program.ended;
            }
            Sign::Ended { program } => {
                let known = self.program(at_s, program.clone());
                if !std::mem::replace(&mut known.ended, true) {
                    self.ended.push_back(program);
                }
                self.forget();
            }
            Sign::Task { took_s } => {
                self.task.broken(at_s);
                self.longest_s = self.longest_s.max(took_s.unwrap_or(0.0));
            }
        }
    }

    /// The alarms that are due at `now_s`: those of programs in the order of their names, then the cell's.
    pub fn tick(&mut self, now_s: f64) -> Vec<Alarm> {
        let rules = &self.rules;
        let mut alarms = Vec::new();
        let mut alarm = |program: Option<&String>, level, cause, since_s| {
            alarms.push(Alarm {
                at_s: now_s,
                program: program.cloned(),
                level,
                cause,
                since_s,
            });
        };
        for (name, program) in &mut self.programs {
            let since_s = program.silence.since_s;
            if program.ended {
                continue;
            }
            if std::mem::take(&mut program.overflowed) {
                let cause = Cause::ContextOverflow;
                alarm(Some(name), rules.on_overflow, cause, since_s);
            }
            if let Some(level) = program.silence.give(now_s, &rules.step, 0.0) {
                alarm(Some(name), level, Cause::ProgramSilent, since_s);
            }
        }
        let longest_s = rules.task_lengths * self.longest_s;
        if let Some(level) = self.task.give(now_s, &rules.task, longest_s) {
            alarm(None, level, Cause::NoTask, self.task.since_s);
        }
        if let Some(level) = self.cell.give(now_s, &rules.cell, 0.0) {
            alarm(None, level, Cause::NoStep, self.cell.since_s);
        }
        alarms
    }

    /// When [`Self::tick`] next has an alarm, should no sign come before; infinite for never. O(programs).
    pub fn next_s(&self) -> f64 {
        let rules = &self.rules;
        let open = self.programs.values().filter(|program| !program.ended);
        let programs = open.map(|program| {
            if program.overflowed {
                return f64::NEG_INFINITY;
            }
            program.silence.due_s(&rules.step, 0.0)
        });
        let longest_s = rules.task_lengths * self.longest_s;
        let task = self.task.due_s(&rules.task, longest_s);
        let cell = self.cell.due_s(&rules.cell, 0.0);
        programs.fold(task.min(cell), f64::min)
    }

    /// What is known of a program, which begins here if nothing is.
    fn program(&mut self, at_s: f64, name: String) -> &mut Program {
        self.programs.entry(name).or_insert_with(|| Program {
            silence: Silence::from(at_s),
            overflows: 0,
            overflowed: false,
            ended: false,
        })
    }

    fn forget(&mut self) {
        while self.ended.len() > REMEMBERED {
            if let Some(name) = self.ended.pop_front() {
                self.programs.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
