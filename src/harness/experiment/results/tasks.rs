//! Which tasks a run had, and how each ended, by whoever played them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::harness::reference::driver_log::{Event, Parser};
use crate::harness::reference::outputs::TaskResult;
use crate::harness::reference::profile::Kind;
use crate::harness::report::load::{lines, reference};
use crate::harness::rundir::{Ending, ProgramRecord};
use crate::harness::tau2::outputs::{REWARDS, Reward, read_rewards};
use crate::harness::tau2::plan::Unit;

/// A replay's programs.
const PROGRAMS: &str = "programs.jsonl";
/// What the reference's driver says of each task.
const RESULTS: &str = "outputs/all_domains";
/// What it says in passing.
const DRIVER_LOG: &str = "driver.log";

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Played to its end, and judged where there is a judge.
    Ok,
    /// Failed for good.
    Error,
    /// The run ended before it.
    Unfinished,
}

impl Status {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Unfinished => "unfinished",
        }
    }
}

/// A task and what it came to; `None` is what nobody said. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Task {
    /// The program's name at the gate.
    pub(super) program: Option<String>,
    /// Its domain, or what sort of program it is.
    pub(super) kind: String,
    /// Its name in its domain.
    pub(super) id: Option<String>,
    pub(super) trial: Option<u32>,
    pub(super) seed: Option<u32>,
    /// The last attempt, from 1.
    pub(super) attempt: Option<u32>,
    pub(super) status: Status,
    pub(super) reward: Option<f64>,
    pub(super) cause: Option<String>,
    pub(super) termination: Option<String>,
    pub(super) started_s: Option<f64>,
    pub(super) finished_s: Option<f64>,
    pub(super) steps: Option<u64>,
    pub(super) llm_calls: Option<u64>,
}

/// The tasks of the run in `dir`, in a fixed order.
///
/// # Errors
/// When a file cannot be read or there is none; the message names it.
pub(super) fn read(dir: &Path) -> anyhow::Result<Vec<Task>> {
    if dir.join(REWARDS).is_file() {
        return of_tau2(dir);
    }
    if dir.join(PROGRAMS).is_file() {
        return of_replay(dir);
    }
    if dir.join(RESULTS).is_dir() {
        return of_driver(dir);
    }
    bail!(
        "{} has neither {REWARDS}, {PROGRAMS} nor {RESULTS}/: nothing says which tasks were played",
        dir.display()
    )
}

/// The last attempt at each unit.
fn of_tau2(dir: &Path) -> anyhow::Result<Vec<Task>> {
    let mut last: BTreeMap<Unit, Reward> = BTreeMap::new();
    for reward in read_rewards(dir)? {
        last.insert(reward.unit.clone(), reward);
    }
    Ok(last.into_values().map(of_reward).collect())
}

fn of_reward(reward: Reward) -> Task {
    let (unit, finish) = (reward.unit, reward.finish);
    Task {
        program: Some(reward.job_id),
        kind: unit.domain,
        id: Some(unit.task_id),
        trial: Some(unit.trial),
        seed: Some(unit.seed),
        attempt: Some(reward.attempt),
        status: match (&finish.failure, finish.last_word) {
            (_, false) => Status::Unfinished,
            (None, true) => Status::Ok,
            (Some(_), true) => Status::Error,
        },
        reward: finish.reward,
        cause: finish
            .failure
            .map(|failure| failure.cause.word().to_owned()),
        termination: finish.termination,
        started_s: Some(reward.started_s),
        finished_s: Some(reward.finished_s),
        steps: Some(u64::from(finish.steps)),
        llm_calls: Some(u64::from(finish.llm_calls)),
    }
}

fn of_replay(dir: &Path) -> anyhow::Result<Vec<Task>> {
    let mut tasks = Vec::new();
    lines::json(dir, PROGRAMS, |record: ProgramRecord| {
        tasks.push(of_record(record));
    })?;
    Ok(tasks)
}

fn of_record(record: ProgramRecord) -> Task {
    Task {
        program: Some(record.program),
        kind: record.kind,
        id: None,
        trial: None,
        seed: None,
        attempt: None,
        status: match record.ending {
            Ending::Done => Status::Ok,
            Ending::Failed => Status::Error,
            Ending::Cancelled => Status::Unfinished,
        },
        reward: None,
        cause: record.cause,
        termination: None,
        started_s: Some(record.started_s),
        finished_s: Some(record.finished_s),
        steps: Some(record.steps as u64),
        llm_calls: None,
    }
}

/// What `driver.log` says of a task and its trials together.
#[derive(Clone, Debug, Default)]
struct Said {
    /// The last error of each trial.
    errors: BTreeMap<u32, String>,
    steps: u64,
    llm_calls: u64,
}

fn of_driver(dir: &Path) -> anyhow::Result<Vec<Task>> {
    let results = task_results(&dir.join(RESULTS))?;
    let mut trials: BTreeMap<String, usize> = BTreeMap::new();
    for result in &results {
        *trials
            .entry(name(&result.domain, &result.task_id))
            .or_default() += 1;
    }
    let mut said = driver_log(dir)?;
    let tasks = results.into_iter().map(|result| {
        let name = name(&result.domain, &result.task_id);
        let mut task = of_result(result);
        let said = said
            .as_mut()
            .map(|said| said.entry(name.clone()).or_default());
        if let Some(said) = said {
            task.cause = task.trial.and_then(|trial| said.errors.remove(&trial));
            // The log does not tell one trial's steps from another's.
            if trials.get(&name) == Some(&1) {
                task.steps = Some(said.steps);
                task.llm_calls = Some(said.llm_calls);
            }
        }
        task
    });
    Ok(tasks.collect())
}

/// A task's name in the driver's records.
fn name(domain: &str, task: &str) -> String {
    format!("{domain}:{task}")
}

/// The files of a folder, in the order of their names.
fn task_results(folder: &Path) -> anyhow::Result<Vec<TaskResult>> {
    let failed = || format!("cannot read {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        paths.push(entry.with_context(failed)?.path());
    }
    paths.retain(|path| path.extension() == Some("json".as_ref()));
    paths.sort();
    let read = |path: PathBuf| {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    };
    paths.into_iter().map(read).collect()
}

/// What `driver.log` says of each task, by its name; `None` without one.
fn driver_log(dir: &Path) -> anyhow::Result<Option<BTreeMap<String, Said>>> {
    let parser = Parser::new()?;
    let mut said: BTreeMap<String, Said> = BTreeMap::new();
    let log = lines::each(dir, DRIVER_LOG, |_, line| {
        parser.events(line, |event| match event {
            Ok(Event::Failed {
                domain,
                task,
                trial,
                error,
                ..
            }) => {
                let said = said.entry(name(domain, task)).or_default();
                said.errors.insert(trial, reference::cause(error));
            }
            Ok(Event::Record(record)) => {
                let steps = u64::from(record.kind == Some(Kind::StepComplete));
                let llm_calls = u64::from(record.kind.is_some_and(is_model));
                if steps + llm_calls > 0 {
                    let said = said.entry(record.task.to_owned()).or_default();
                    said.steps += steps;
                    said.llm_calls += llm_calls;
                }
            }
            _ => {}
        });
        true
    })?;
    Ok(log.map(|_| said))
}

/// Whether a model answered, whomever it played.
const fn is_model(kind: Kind) -> bool {
    match kind {
        Kind::LlmCall | Kind::ExpertCall | Kind::UserSim | Kind::Evaluator => true,
        Kind::ToolCall | Kind::StepComplete => false,
    }
}

fn of_result(result: TaskResult) -> Task {
    Task {
        program: None,
        kind: result.domain,
        id: Some(result.task_id),
        trial: Some(result.trial),
        seed: None,
        attempt: None,
        status: if result.status == "ok" {
            Status::Ok
        } else {
            Status::Error
        },
        reward: result.reward,
        cause: None,
        termination: None,
        started_s: None,
        finished_s: None,
        steps: None,
        llm_calls: None,
    }
}
