//! Many cells on many threads, with the rows in a file from which a broken-off run goes on.
//!
//! Which thread ran a cell leaves no trace: rows are written in the order of the grid, so the file and the tables
//! are the same bytes whatever the number of threads.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use crate::harness::simulate::{Cell, Measured, ProgramRun};
use crate::harness::stdout;

/// What makes a cell: equal keys give equal rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// The contender, with its settings.
    pub policy: String,
    /// The shape or the trace.
    pub shape: String,
    /// Programs at once.
    pub concurrency: u32,
    /// Programs in the set.
    pub programs: usize,
    /// KV capacity in tokens.
    pub kv_tokens: u32,
    /// Cost preset.
    pub cost: String,
    /// Factor on the preset's prefill cost.
    pub prefill: f64,
    /// How answers come back.
    pub history: String,
    /// Factor on the KV capacity that the policy is told.
    pub believed_capacity: f64,
    /// Share of the programs without identity, 0–1.
    pub anonymous: f64,
    /// Factor on the gaps that the policy believes in; older rows do not say it.
    #[serde(default = "as_it_is")]
    pub believed_gaps: f64,
    /// Seed of the programs.
    pub seed: u64,
}

/// The factor of a belief that is right.
const fn as_it_is() -> f64 {
    1.0
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was run.
    #[serde(flatten)]
    pub key: Key,
    /// What it measured.
    #[serde(flatten)]
    pub measured: Measured,
}

/// How one program of one cell fared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgramRow<'a> {
    /// What was run.
    #[serde(flatten)]
    pub key: &'a Key,
    /// The program.
    #[serde(flatten)]
    pub run: &'a ProgramRun,
}

/// A cell to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its key.
    pub key: Key,
    /// Who.
    pub contender: Contender,
    /// On what.
    pub cell: Cell,
}

/// The rows of a file by key; none if it does not exist, or is none that keeps them.
///
/// # Errors
/// A file that cannot be read, or a line that is no row.
pub fn known(path: &Path) -> anyhow::Result<BTreeMap<String, Row>> {
    if !path.exists() || !stdout::is_kept(path) {
        return Ok(BTreeMap::new());
    }
    let by_name = |row: Row| Ok((name(&row.key)?, row));
    read(path)?.into_iter().map(by_name).collect()
}

/// The rows of a file, in its order.
///
/// # Errors
/// A file that cannot be read, or a line that is no row.
pub fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = |(index, line): (usize, std::io::Result<String>)| {
        serde_json::from_str(&line?)
            .with_context(|| format!("{}, line {}: no row", path.display(), index + 1))
    };
    BufReader::new(file).lines().enumerate().map(row).collect()
}

/// The key as text, to look rows up by.
///
/// # Errors
/// Never in practice: the key holds strings and finite numbers.
pub fn name(key: &Key) -> anyhow::Result<String> {
    Ok(serde_json::to_string(key)?)
}

/// Where the rows go.
#[derive(Debug, Default)]
pub struct Output {
    /// One line a cell.
    pub rows: Option<File>,
    /// One line a program.
    pub programs: Option<File>,
}

impl Output {
    /// Opens the files to append to.
    ///
    /// # Errors
    /// A file that cannot be written; the message names it.
    pub fn open(rows: Option<&Path>, programs: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let append = || OpenOptions::new().create(true).append(true).open(path);
            let file = stdout::at(path).map_or_else(append, Ok);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        Ok(Self {
            rows: rows.map(open).transpose()?,
            programs: programs.map(open).transpose()?,
        })
    }

    fn write(&mut self, row: &Row, programs: &[ProgramRun]) -> anyhow::Result<()> {
        if let Some(file) = &mut self.rows {
            // One call a line: a run that is broken off leaves whole lines.
            file.write_all(format!("{}\n", serde_json::to_string(row)?).as_bytes())?;
        }
        if let Some(file) = &mut self.programs {
            let mut text = String::new();
            for run in programs {
                let row = ProgramRow { key: &row.key, run };
                text.push_str(&serde_json::to_string(&row)?);
                text.push('\n');
            }
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

type Done = (usize, Measured, Vec<ProgramRun>);

/// Runs the jobs on `threads` threads and hands the rows on in the jobs' order.
///
/// # Errors
/// A row that cannot be written.
pub fn run(
    jobs: &[Job],
    threads: usize,
    bar: &ProgressBar,
    output: &mut Output,
) -> anyhow::Result<Vec<Row>> {
    let next = AtomicUsize::new(0);
    let (sender, inbox) = mpsc::channel::<Done>();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else {
                        return;
                    };
                    let (measured, programs) = job.contender.measure(&job.cell);
                    if sender.send((index, measured, programs)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let rows = in_order(jobs, &inbox, bar, output);
        // A row that could not be written ends the run: no thread takes another job.
        next.store(jobs.len(), Ordering::Relaxed);
        rows
    })
}

/// Takes what is done in any order and hands it on in the jobs'.
fn in_order(
    jobs: &[Job],
    inbox: &mpsc::Receiver<Done>,
    bar: &ProgressBar,
    output: &mut Output,
) -> anyhow::Result<Vec<Row>> {
    let mut early = BTreeMap::new();
    let mut rows = Vec::new();
    while let Ok((index, measured, programs)) = inbox.recv() {
        bar.inc(weight(&jobs[index].cell));
        early.insert(index, (measured, programs));
        while let Some((measured, programs)) = early.remove(&rows.len()) {
            let key = jobs[rows.len()].key.clone();
            let row = Row { key, measured };
            output.write(&row, &programs)?;
            rows.push(row);
        }
    }
    Ok(rows)
}

/// How long a cell takes, in a unit of its own: steps are alike, and each is looked at beside the others that run.
pub fn weight(cell: &Cell) -> u64 {
    cell.programs as u64 * u64::from(cell.concurrency.min(64))
}

/// A bar over the weight of `jobs`, drawn on a terminal only, and not when `quiet`.
pub fn progress_bar(jobs: &[Job], quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(jobs.iter().map(|job| weight(&job.cell)).sum());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent} %, {eta} left") {
        bar.set_style(style);
    }
    bar
}
