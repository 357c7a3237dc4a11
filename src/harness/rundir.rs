//! The folder of one experiment cell: file names, the harness's records, and how each file is read back.
//!
//! | file | writer | one line is |
//! |---|---|---|
//! | `manifest.json` | harness | the whole [`Manifest`] |
//! | `programs.jsonl` | replay | a [`ProgramRecord`] |
//! | `client_steps.jsonl` | replay | a [`crate::telemetry::StepRecord`] as the client saw it (no hold, no policy) |
//! | `summary.json` | harness | the whole [`super::measure::Measures`] |
//! | `steps.jsonl` | gate | a [`crate::telemetry::StepRecord`] |
//! | `kv_cache_timeseries.csv` | gate | a sample of one KV usage series, in the reference experiment's layout |
//! | `kv_samples.jsonl` | gate | a wide sample |

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::policy;

/// The policy that is none: the replay plays straight at a server.
pub const DIRECT: &str = "direct";

/// What was run, as `manifest.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of kvgate that wrote this.
    pub kvgate: String,
    /// The gate's policy, where the harness chose it; [`DIRECT`], or the name of a gate of another make.
    pub policy: Option<String>,
    /// Programs in flight at any time.
    pub concurrency: usize,
    /// Name or path of the trace.
    pub trace: String,
    /// Size of the fixed set of programs.
    pub programs: usize,
    /// Steps of that set.
    pub steps: usize,
    /// Steps of the trace that were raised to keep histories append-only.
    pub trace_repaired: usize,
    /// Whether replies were streamed.
    pub stream: bool,
    /// Seed of the message texts.
    pub seed: u64,
    /// Where requests went.
    pub url: String,
    /// The model asked for.
    pub model: String,
    /// Run seconds per machine second.
    pub time_scale: f64,
    /// Unix seconds at the start of the run.
    pub epoch_unix: f64,
    /// The engine behind the gate, where the harness started it.
    pub engine: Option<EngineManifest>,
}

impl Manifest {
    /// Whether the harness chose a policy of ours, so that the gate should have recorded the steps.
    pub fn is_gated(&self) -> bool {
        let policy = self.policy.as_deref();
        policy.is_some_and(|name| policy::Config::by_name(name).is_some())
    }
}

/// The embedded engine of a cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineManifest {
    /// Cost preset.
    pub cost: String,
    /// KV blocks.
    pub kv_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every step was served.
    Done,
    /// A step failed for good.
    Failed,
    /// The run was interrupted.
    Cancelled,
}

/// One program, as a line of `programs.jsonl`. Times are Unix seconds of the run's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramRecord {
    /// Its name, unique in the run.
    pub program: String,
    /// What sort of task it is.
    pub kind: String,
    /// Its first request was sent.
    pub started_s: f64,
    /// Its last reply arrived, or it was given up.
    pub finished_s: f64,
    /// Steps served.
    pub steps: usize,
    /// Requests that failed, retried ones included.
    pub errors: usize,
    /// How it ended.
    pub ending: Ending,
    /// The failure that ended it.
    pub cause: Option<String>,
}

/// A run directory, which need not be complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory at `path`, to read from.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the directory and proves that it can be written.
    ///
    /// # Errors
    /// When it cannot be made or written; the message names it.
    pub fn create(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let dir = Self::at(path);
        fs::create_dir_all(&dir.path)
            .with_context(|| format!("cannot make run directory {}", dir.path.display()))?;
        let probe = dir.path.join(".probe");
        fs::write(&probe, b"")
            .and_then(|()| fs::remove_file(&probe))
            .with_context(|| format!("cannot write in run directory {}", dir.path.display()))?;
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A writer of JSON lines to the file `name`, which is emptied first.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn lines(&self, name: &str) -> anyhow::Result<Lines> {
        let path = self.path.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Lines {
            out: BufWriter::new(file),
        })
    }

    /// Writes `value` as the whole of the file `name`, indented, with [`replace`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        replace(&self.path.join(name), text.as_bytes())
    }

    /// Reads `manifest.json`.
    ///
    /// # Errors
    /// When it is missing or malformed; the message names the file.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        let path = self.path.join("manifest.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} is no run directory", self.path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// Writes a whole file beside its place and renames it, so that a reader finds the old one or the new one, never half.
///
/// # Errors
/// When it cannot be written; the message names it.
pub fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, content)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Who timed the steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSource {
    /// The gate, per request.
    #[default]
    Gate,
    /// The replaying client, per request.
    Client,
    /// The reference system's agents, per transition between roles.
    Agents,
}

/// A buffered file of JSON lines. Call [`Self::finish`] to see the last write's error.
#[derive(Debug)]
pub struct Lines {
    out: BufWriter<File>,
}

impl Lines {
    /// Appends one line.
    ///
    /// # Errors
    /// When the write fails.
    pub fn push(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")?;
        Ok(())
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the write fails.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.out.flush().context("cannot write a record")
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_reads_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::create(temp.path().join("a/b")).unwrap();
        let record = ProgramRecord {
            program: "p".to_owned(),
            kind: "k".to_owned(),
            started_s: 1.0,
            finished_s: 2.5,
            steps: 3,
            errors: 0,
            ending: Ending::Done,
            cause: None,
        };
        let mut lines = dir.lines("programs.jsonl").unwrap();
        lines.push(&record).unwrap();
        lines.push(&record).unwrap();
        lines.finish().unwrap();
        let text = fs::read_to_string(dir.path().join("programs.jsonl")).unwrap();
        let read: Vec<ProgramRecord> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(read, [record.clone(), record]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named_before_anything_starts() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("file"), "").unwrap();
        let error = RunDir::create(temp.path().join("file/run")).unwrap_err();
        assert!(format!("{error:#}").contains("file/run"), "{error:#}");
    }
}
