//! How a run was made: versions, flags, seeds, hashes and environment, at its start and at its end.
//!
//! `manifest.json` of a run directory, a superset of what [`RunDir::manifest`] reads. It is written when the run begins
//! and once more, with `ended`, when it is over: a run without `ended` was killed.

mod git;
mod secrets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use futures_util::future::join;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use git::Git;

use super::machine::{self, Machine};
use crate::harness::digest::Digest;
use crate::harness::rundir::{self, RunDir};
use crate::harness::tau2::settings::Secret;

/// The file.
pub const FILE: &str = "manifest.json";

/// What the run is known by, before anything is asked.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// What every run has.
    pub run: rundir::Manifest,
    /// The command lines: the first, then those that went on; what follows a flag for a key is left out.
    pub commands: Vec<Vec<String>>,
    /// The whole of what was asked for.
    pub spec: Value,
    /// Every seed by what it is the seed of.
    pub seeds: BTreeMap<String, u64>,
    /// Versions by program, as far as they are known: `tau2`, `python`, `vllm`.
    pub versions: BTreeMap<String, String>,
    /// Folders that may be checkouts, by what they hold. Our own and the present one are looked at anyway.
    pub checkouts: BTreeMap<String, PathBuf>,
    /// Files whose content matters, by what they are: trace, requirements, the model's `config.json`.
    pub files: BTreeMap<String, PathBuf>,
    /// The engine: its kind, flags and what it says of itself.
    pub engine: Value,
    /// All of the policy's parameters, as the gate says.
    pub policy: Value,
    /// Values that must not be written, besides those of variables whose names tell.
    pub secrets: Vec<Secret>,
}

/// How a run was made, as `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What every run has.
    #[serde(flatten)]
    pub run: rundir::Manifest,
    /// When it began.
    pub began: Moment,
    /// The zone of the reference's naive times.
    pub time_zone: String,
    /// The command line that began the experiment, without keys.
    pub command: Vec<String>,
    /// Those that went on with it, up to the one that played this.
    #[serde(default)]
    pub resumed_by: Vec<Vec<String>>,
    /// When this run went on after it was cut short: its makespan holds the pauses before.
    #[serde(default)]
    pub resumed: Vec<Moment>,
    /// The whole of what was asked for.
    pub spec: Value,
    /// Every seed by what it is the seed of.
    pub seeds: BTreeMap<String, u64>,
    /// Versions by program.
    pub versions: BTreeMap<String, String>,
    /// Checkouts by what they hold. `kvgate` is the one that the program lies in, which may have moved on since.
    pub git: BTreeMap<String, Git>,
    /// Files by what they are.
    pub files: BTreeMap<String, FileRecord>,
    /// Variables that change what programs do.
    pub environment: BTreeMap<String, String>,
    /// Where it was played.
    pub machine: Machine,
    /// The engine: its kind, flags and what it says of itself.
    pub engine_detail: Value,
    /// The policy's parameters.
    pub policy_parameters: Value,
    /// How it ended; absent while it is played, and if it was killed.
    #[serde(default)]
    pub ended: Option<End>,
    /// [`Inputs::secrets`].
    #[serde(skip)]
    hidden: Vec<Secret>,
}

/// A moment, twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Unix seconds.
    pub unix_s: f64,
    /// The same to be read, in the machine's zone.
    pub time: String,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it lay.
    pub path: PathBuf,
    /// Its content; absent if it could not be read.
    #[serde(flatten)]
    pub digest: Option<Digest>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: Moment,
    /// In which way.
    pub outcome: Outcome,
    /// Why, unless it was played to its end.
    pub cause: Option<String>,
    /// The exit status that the process is about to give.
    pub exit: u8,
    /// What there was how often: tasks, steps, errors.
    pub counts: BTreeMap<String, u64>,
    /// What is no longer as it was at the start, one line each.
    pub changed: Vec<String>,
}

/// In which way a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was played to its end.
    Done,
    /// It could not go on.
    Failed,
    /// Somebody stopped it.
    Interrupted,
}

/// What is known of a run's end.
#[derive(Clone, Debug)]
pub struct Finish {
    /// In which way it ended.
    pub outcome: Outcome,
    /// Why, unless it was played to its end.
    pub cause: Option<String>,
    /// The exit status that the process is about to give.
    pub exit: u8,
    /// What there was how often.
    pub counts: BTreeMap<String, u64>,
    /// The engine as [`Inputs::engine`] described it, asked again; `None` if it can no longer be asked.
    pub engine: Option<Value>,
}

/// The command line of this process, without keys.
pub fn command_line() -> Vec<String> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    secrets::clean(
        &words.collect::<Vec<_>>(),
        &secrets::values(secrets::variables(), &[]),
    )
}

impl Moment {
    /// The moment `unix_s`, in the machine's zone.
    pub fn at(unix_s: f64) -> Self {
        Self {
            unix_s,
            time: machine::rfc3339(unix_s, &TimeZone::system()),
        }
    }
}

impl FileRecord {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            digest: Digest::of_file(path).ok(),
        }
    }
}

impl Record {
    /// Looks at everything, at the beginning of a run. What cannot be found out is left out.
    pub async fn begin(inputs: Inputs, now_s: f64) -> Self {
        let mut checkouts = inputs.checkouts;
        let mut files = inputs.files;
        if let Ok(program) = std::env::current_exe() {
            if let Some(folder) = program.parent() {
                checkouts
                    .entry("kvgate".to_owned())
                    .or_insert_with(|| folder.to_owned());
            }
            files.entry("kvgate".to_owned()).or_insert(program);
        }
        if let Ok(here) = std::env::current_dir() {
            checkouts.entry("here".to_owned()).or_insert(here);
        }
        let mut versions = inputs.versions;
        versions.insert("kvgate".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let mut commands = inputs
            .commands
            .iter()
            .map(|line| secrets::without_keys(line));
        let command = commands.next().unwrap_or_default();
        let (machine, git) = join(Machine::ask(), git::all(&checkouts)).await;
        Self {
            run: inputs.run,
            began: Moment::at(now_s),
            time_zone: zone_name(),
            command,
            resumed_by: commands.collect(),
            resumed: Vec::new(),
            spec: inputs.spec,
            seeds: inputs.seeds,
            versions,
            git,
            files: digests(files).await,
            environment: secrets::listed(secrets::variables()),
            machine,
            engine_detail: inputs.engine,
            policy_parameters: inputs.policy,
            ended: None,
            hidden: inputs.secrets,
        }
    }

    /// The command lines by which the experiment was played, up to this: the first, then those that went on.
    pub fn commands(self) -> Vec<Vec<String>> {
        let mut commands = self.resumed_by;
        commands.insert(0, self.command);
        commands
    }

    /// Notes that `before`, which was cut short, goes on with this: it began when that did, and by its command.
    pub fn go_on(&mut self, before: Self) {
        if self.command != before.command {
            let later = std::mem::replace(&mut self.command, before.command);
            self.resumed_by.insert(0, later);
        }
        self.resumed = before.resumed;
        self.resumed
            .push(std::mem::replace(&mut self.began, before.began));
    }

    /// Notes how the run ended, and what is no longer as it was.
    pub async fn end(&mut self, finish: Finish, now_s: f64) {
        let mut changed = Vec::new();
        let checkouts = self
            .git
            .iter()
            .map(|(name, git)| (name.clone(), git.folder.clone()));
        let git = git::all(&checkouts.collect()).await;
        for (name, before) in &self.git {
            changed.extend(git::change(name, before, git.get(name)));
        }
        let paths = self
            .files
            .iter()
            .map(|(name, file)| (name.clone(), file.path.clone()));
        let files = digests(paths.collect()).await;
        for (name, before) in &self.files {
            if files.get(name) != Some(before) {
                changed.push(format!(
                    "{name}: {} has another content",
                    before.path.display()
                ));
            }
        }
        if finish
            .engine
            .as_ref()
            .is_some_and(|engine| *engine != self.engine_detail)
        {
            changed.push("engine: it says something else of itself".to_owned());
        }
        self.ended = Some(End {
            at: Moment::at(now_s),
            outcome: finish.outcome,
            cause: finish.cause,
            exit: finish.exit,
            counts: finish.counts,
            changed,
        });
    }

    /// Writes it into a run directory, whole or not at all, and without the value of any key that this process knows.
    ///
    /// # Errors
    /// When it cannot be written; the message names the file.
    pub fn write(&self, dir: &RunDir) -> anyhow::Result<()> {
        let mut value = serde_json::to_value(self)?;
        secrets::scrub(
            &mut value,
            &secrets::values(secrets::variables(), &self.hidden),
        );
        dir.write_json(FILE, &value)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// When it is missing or malformed; the message names the file.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// Whole files, read beside what the process does else.
async fn digests(paths: BTreeMap<String, PathBuf>) -> BTreeMap<String, FileRecord> {
    let read = move || {
        let records = paths
            .into_iter()
            .map(|(name, path)| (name, FileRecord::of(&path)));
        records.collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// The zone's name, or its offset where it has none.
fn zone_name() -> String {
    let zone = TimeZone::system();
    let offset = || {
        jiff::Timestamp::UNIX_EPOCH
            .to_zoned(zone.clone())
            .offset()
            .to_string()
    };
    zone.iana_name().map_or_else(offset, str::to_owned)
}

#[cfg(test)]
mod tests;
