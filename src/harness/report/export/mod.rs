//! The runs as typed tables for other programs: [`rows`] makes batches of columns, [`csv`] and [`parquet`] write them.
//!
//! | table | one row per |
//! |---|---|
//! | `runs` | run, with every figure of the comparison |
//! | `programs` | program |
//! | `steps` | step; columns that only a gate knows are null for reference runs |
//! | `calls` | LLM call, user's turn, expert, tool, tool gap |
//! | `samples` | KV usage series and sample |
//! | `loads` | backend and sample: running, waiting, held |
//!
//! Every table has `run` and `policy`; times are Unix seconds, durations seconds.

pub mod csv;
pub mod parquet;
pub mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Report;
use crate::harness::run::Run;

/// Rows written at once, so that a table of any length takes bounded memory.
pub const BATCH: usize = 1 << 16;

/// A few rows of one table.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The table's name, and its file's.
    pub table: &'static str,
    /// Name and values of each column, all equally long.
    pub columns: Vec<(&'static str, Column)>,
}

/// One column's values, with nulls.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Texts.
    Text(Vec<Option<String>>),
    /// Real numbers; NaN is a value.
    F64(Vec<Option<f64>>),
    /// Whole numbers.
    I64(Vec<Option<i64>>),
    /// Yes or no.
    Bool(Vec<Option<bool>>),
}

impl Column {
    /// How many values there are.
    pub const fn len(&self) -> usize {
        match self {
            Self::Text(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A folder with one open file per table.
#[derive(Debug)]
pub struct Folder<W> {
    dir: PathBuf,
    open: BTreeMap<&'static str, W>,
}

impl<W> Folder<W> {
    /// Files in `dir`, which is made.
    ///
    /// # Errors
    /// When it cannot be made; the message names it.
    pub fn create(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            open: BTreeMap::new(),
        })
    }
}

/// Where batches go.
pub trait Sink {
    /// Writes a batch to its table. Batches of a table have the same columns.
    ///
    /// # Errors
    /// When it cannot be written; the message names the file.
    fn write(&mut self, batch: &Batch) -> anyhow::Result<()>;

    /// Completes every file.
    ///
    /// # Errors
    /// When one cannot be written; the message names it.
    fn finish(self) -> anyhow::Result<()>;
}

/// Writes every table of `runs`, the runs of `report`, as CSV into `dir`.
///
/// # Errors
/// When a file cannot be written; the message names it.
pub fn to_csv(report: &Report, runs: &[Run], dir: &Path) -> anyhow::Result<()> {
    write(report, runs, csv::Files::create(dir)?)
}

/// Writes every table of `runs`, the runs of `report`, as Parquet into `dir`.
///
/// # Errors
/// When a file cannot be written; the message names it.
pub fn to_parquet(report: &Report, runs: &[Run], dir: &Path) -> anyhow::Result<()> {
    write(report, runs, parquet::Files::create(dir)?)
}

fn write(report: &Report, runs: &[Run], mut sink: impl Sink) -> anyhow::Result<()> {
    sink.write(&rows::runs(&report.runs))?;
    for run in runs {
        for batch in rows::of(run) {
            sink.write(&batch)?;
        }
    }
    sink.finish()
}
