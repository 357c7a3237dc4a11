//! The run's files: the reference driver's own, in its formats, and ours.
//!
//! | file | one line or file per |
//! |---|---|
//! | `driver.log` | what the reference prints: starts, ends, and every line of `tau2_global.log` |
//! | `logs/tau2_global.log` | model call, tool call, step |
//! | `logs/eval_global.log` | message of the driver itself |
//! | `outputs/all_domains/*.json` | simulation: status and reward |
//! | `outputs/metrics_global.json` | run that was played to its end |
//! | `events.jsonl` | [`Event`], whole, with the time as Unix seconds and as ISO 8601 with its zone |
//! | `rewards.jsonl` | attempt ([`Reward`]); what a resumed run goes by |
//!
//! The reference's times are naive local ones. Every line is written in one piece as it happens, so what a killed run
//! leaves is whole but for the last line, which is cut off when the run is resumed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::event::{Cause, Event, Finish, Moment, What};
use super::lines;
use super::plan::{Attempt, Past, PastEnd, Unit};
use crate::harness::reference::outputs::{Metrics, TaskResult};
use crate::harness::rundir::replace;

/// Attempts, one a line.
pub const REWARDS: &str = "rewards.jsonl";
/// Events, one a line.
pub const EVENTS: &str = "events.jsonl";
/// Bytes of a file's end in which its last line break is looked for.
const TAIL: u64 = 64 * 1024;

/// What the files say of the run as a whole.
#[derive(Clone, Debug)]
pub struct Header {
    /// Domains in their order.
    pub domains: Vec<String>,
    /// Repetitions of every task.
    pub trials: u32,
    /// Simulations in flight.
    pub concurrency: usize,
    /// Where the benchmark's data are.
    pub data: PathBuf,
    /// The zone of the naive times; the machine's own, as a rule.
    pub zone: TimeZone,
}

/// An attempt that is over, as a line of `rewards.jsonl`. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// What was played.
    #[serde(flatten)]
    pub unit: Unit,
    /// Which try, from 1.
    pub attempt: u32,
    /// The program's name at the gate.
    pub job_id: String,
    /// When it was handed to a worker.
    pub started_s: f64,
    /// When it was judged, or failed.
    pub finished_s: f64,
    /// Seconds of playing up to here, those of earlier runs in this directory included.
    pub elapsed_s: f64,
    /// How it ended.
    #[serde(flatten)]
    pub finish: Finish,
}

/// Writes a run's files.
#[derive(Debug)]
pub struct Outputs {
    dir: PathBuf,
    header: Header,
    driver: Lines,
    global: Lines,
    eval: Lines,
    events: Lines,
    rewards: Lines,
    /// Of the units of the plan, what is known of each that was begun.
    past: BTreeMap<Unit, Past>,
    total: usize,
    ok: usize,
    failed: usize,
    causes: BTreeMap<Cause, usize>,
    /// Seconds of playing in earlier runs in this directory.
    elapsed_before_s: f64,
    began_s: Option<f64>,
    last_s: f64,
    /// By program: when it was handed out.
    started_s: BTreeMap<String, f64>,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Units of the plan.
    pub total: usize,
    /// Played and judged, earlier runs included.
    pub ok: usize,
    /// Failed for good.
    pub failed: usize,
    /// Failed attempts by cause, of this run.
    pub causes: BTreeMap<Cause, usize>,
    /// Seconds of playing, earlier runs included.
    pub elapsed_s: f64,
}

impl Outputs {
    /// Opens the files in `dir` for a run of `units`, after whatever an earlier run left there.
    ///
    /// # Errors
    /// When a file cannot be read, is not one of ours, or cannot be written.
    pub fn open(dir: &Path, header: Header, units: &[Unit]) -> anyhow::Result<Self> {
        for folder in ["logs", "outputs/all_domains"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut outputs = Self {
            driver: Lines::open(dir, "driver.log")?,
            global: Lines::open(dir, "logs/tau2_global.log")?,
            eval: Lines::open(dir, "logs/eval_global.log")?,
            events: Lines::open(dir, EVENTS)?,
            rewards: Lines::open(dir, REWARDS)?,
            dir: dir.to_owned(),
            header,
            past: units
                .iter()
                .map(|unit| (unit.clone(), Past::of(unit)))
                .collect(),
            total: units.len(),
            ok: 0,
            failed: 0,
            causes: BTreeMap::new(),
            elapsed_before_s: 0.0,
            began_s: None,
            last_s: 0.0,
            started_s: BTreeMap::new(),
        };
        for reward in read_rewards(dir)? {
            outputs.elapsed_before_s = outputs.elapsed_before_s.max(reward.elapsed_s);
            outputs.note(&reward.unit, reward.attempt, &reward.finish);
        }
        Ok(outputs)
    }

    /// What earlier runs in this directory made of the units, for [`super::plan::Schedule::new`].
    pub fn past(&self) -> Vec<Past> {
        let begun = self.past.values().filter(|past| past.attempts > 0);
        begun.cloned().collect()
    }

    /// How far the run is.
    pub fn progress(&self) -> Progress {
        Progress {
            total: self.total,
            ok: self.ok,
            failed: self.failed,
            causes: self.causes.clone(),
            elapsed_s: self.elapsed_s(self.last_s),
        }
    }

    /// Writes down what happened.
    ///
    /// # Errors
    /// When a file cannot be written; the message names it.
    pub fn record(&mut self, event: &Event) -> anyhow::Result<()> {
        self.last_s = self.last_s.max(event.at_s);
        let line = lines::event(event, &self.header.zone)?;
        self.events.push(&line)?;
        match (&event.what, event.attempt.as_deref()) {
            (What::Began { .. }, _) => self.began(event.at_s),
            (What::Started, Some(attempt)) => self.started(attempt, event.at_s),
            (What::Moment(moment), Some(attempt)) => self.moment(attempt, moment, event.at_s),
            (What::Finished(finish), Some(attempt)) => self.finished(attempt, finish, event.at_s),
            _ => Ok(()),
        }
    }

    /// Writes the run's end; `outputs/metrics_global.json` only if every unit is over.
    ///
    /// # Errors
    /// When a file cannot be written; the message names it.
    pub fn finish(&mut self) -> anyhow::Result<Progress> {
        let progress = self.progress();
        if self.ok + self.failed == self.total {
            let metrics = progress.metrics(&self.header.domains);
            let summary = Summary::new(metrics, &self.dir);
            self.write_json("outputs/metrics_global.json", &summary)?;
            self.say(&lines::complete(&summary.metrics), self.last_s)?;
            for line in lines::summary(&summary.metrics, &self.dir) {
                self.print(&line, self.last_s)?;
            }
        }
        Ok(progress)
    }

    fn elapsed_s(&self, now_s: f64) -> f64 {
        let since = self.began_s.map_or(0.0, |began_s| now_s - began_s);
        self.elapsed_before_s + since.max(0.0)
    }

    /// Notes how an attempt ended.
    fn note(&mut self, unit: &Unit, attempt: u32, finish: &Finish) {
        // A run may be resumed with fewer units than were played.
        let Some(past) = self.past.get_mut(unit) else {
            return;
        };
        // Played again on request after it had failed.
        if past.ended == Some(PastEnd::Failed) {
            self.failed -= 1;
        }
        past.attempts = past.attempts.max(attempt);
        past.ended = match (finish.last_word, &finish.failure) {
            (false, _) => None,
            (true, None) => Some(PastEnd::Done),
            (true, Some(_)) => Some(PastEnd::Failed),
        };
        match past.ended {
            None => {}
            Some(PastEnd::Done) => self.ok += 1,
            Some(PastEnd::Failed) => self.failed += 1,
        }
    }

    fn began(&mut self, at_s: f64) -> anyhow::Result<()> {
        self.began_s = Some(at_s);
        let head = lines::head(&self.header, self.past.keys(), self.total, &self.dir);
        head.iter().try_for_each(|line| self.say(line, at_s))
    }

    fn started(&mut self, attempt: &Attempt, at_s: f64) -> anyhow::Result<()> {
        self.started_s.insert(attempt.job_id.clone(), at_s);
        let line = lines::starting(&attempt.unit);
        self.driver
            .push(&lines::logged(&line, at_s, &self.header.zone))
    }

    fn moment(&mut self, attempt: &Attempt, moment: &Moment, at_s: f64) -> anyhow::Result<()> {
        if let Some(line) = lines::moment(&attempt.unit, moment, at_s, &self.header.zone) {
            self.global.push(&line)?;
            self.driver.push(&line)?;
        }
        Ok(())
    }

    fn finished(&mut self, attempt: &Attempt, finish: &Finish, at_s: f64) -> anyhow::Result<()> {
        if let Some(failure) = &finish.failure {
            *self.causes.entry(failure.cause).or_default() += 1;
        }
        self.note(&attempt.unit, attempt.number, finish);
        if finish.last_word {
            self.last_word(&attempt.unit, finish, at_s)?;
        }
        let started_s = self.started_s.remove(&attempt.job_id);
        let reward = Reward {
            unit: attempt.unit.clone(),
            attempt: attempt.number,
            job_id: attempt.job_id.clone(),
            started_s: started_s.unwrap_or(at_s),
            finished_s: at_s,
            elapsed_s: self.elapsed_s(at_s),
            finish: finish.clone(),
        };
        // Last: with this line the unit is over, and everything else about it is written.
        self.rewards.push(&serde_json::to_string(&reward)?)
    }

    /// The reference's words for a unit that is over.
    fn last_word(&mut self, unit: &Unit, finish: &Finish, at_s: f64) -> anyhow::Result<()> {
        let status = match &finish.failure {
            None => {
                let line = lines::finished(unit, finish.reward.unwrap_or(0.0));
                let line = lines::logged(&line, at_s, &self.header.zone);
                self.driver.push(&line)?;
                "ok"
            }
            Some(failure) => {
                self.say(&lines::failed(unit, failure), at_s)?;
                "error"
            }
        };
        let done = self.ok + self.failed;
        let marker = lines::task_complete(unit, status, done, self.total);
        self.driver.push(&marker)?;
        let result = TaskResult {
            domain: unit.domain.clone(),
            task_id: unit.task_id.clone(),
            trial: unit.trial,
            status: status.to_owned(),
            reward: finish.reward,
        };
        let name = format!("outputs/all_domains/{}.json", unit.file_stem());
        self.write_json(&name, &result)
    }

    /// A message of the driver, printed and logged.
    fn say(&mut self, text: &str, at_s: f64) -> anyhow::Result<()> {
        let line = lines::stamped(text, at_s, &self.header.zone);
        self.eval.push(&line)?;
        self.driver.push(&line)
    }

    /// A message of the driver that is only printed.
    fn print(&mut self, text: &str, at_s: f64) -> anyhow::Result<()> {
        self.driver
            .push(&lines::stamped(text, at_s, &self.header.zone))
    }

    /// A whole file: two blanks of indent and no line break at the end, as Python's `json.dump` writes it.
    fn write_json(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        replace(&self.dir.join(name), text.as_bytes())
    }
}

/// `outputs/metrics_global.json`, with the paths that its readers do not need.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    metrics: Metrics,
    log_dir: PathBuf,
    tau2_log: PathBuf,
    eval_log: PathBuf,
}

impl Summary {
    fn new(metrics: Metrics, dir: &Path) -> Self {
        let logs = dir.join("logs");
        Self {
            metrics,
            tau2_log: logs.join("tau2_global.log"),
            eval_log: logs.join("eval_global.log"),
            log_dir: logs,
        }
    }
}

impl Progress {
    /// The reference's summary of a run that came to its end.
    fn metrics(&self, domains: &[String]) -> Metrics {
        let minutes = self.elapsed_s / 60.0;
        let ok = u32::try_from(self.ok).unwrap_or(u32::MAX);
        Metrics {
            domains: domains.to_vec(),
            total: self.total as u64,
            ok: self.ok as u64,
            error: self.failed as u64,
            elapsed_s: self.elapsed_s,
            tasks_per_min: if minutes > 0.0 {
                f64::from(ok) / minutes
            } else {
                0.0
            },
        }
    }
}

/// The attempts that a run directory records, in order; none where there is no `rewards.jsonl`. A last line without
/// its end is left out.
///
/// # Errors
/// When the file cannot be read or a line is none of ours; the message names it.
pub fn read_rewards(dir: &Path) -> anyhow::Result<Vec<Reward>> {
    let path = dir.join(REWARDS);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let read = |(index, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{} line {}", path.display(), index + 1))
    };
    whole.lines().enumerate().map(read).collect()
}

/// A file that grows by lines, each written at once.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens the file to append to it, without the beginning of a line that a killed run left at its end.
    fn open(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let path = dir.join(name);
        let open = || -> std::io::Result<File> {
            let mut options = File::options();
            let mut file = options.read(true).append(true).create(true).open(&path)?;
            let length = file.metadata()?.len();
            let tail = length.saturating_sub(TAIL);
            file.seek(SeekFrom::Start(tail))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n');
            let whole = whole.map_or(0, |at| at as u64 + 1);
            if tail + whole < length {
                file.set_len(tail + whole)?;
            }
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file })
    }

    fn push(&mut self, line: &str) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests;
