//! The files of a reference run: where each is, opened and fed to the parser beside it.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::{DeserializeOwned, DeserializeSeed};

use super::driver_log::{self, Event};
use super::kv;
use super::lines::{Finder, Scanned};
use super::outputs::{Metrics, SchedulerEvent, SchedulerTimestamps, TaskResult};
use super::profile::{self, Record};

/// How much of a table is read at once, in bytes.
const BLOCK: usize = 1 << 16;

/// What everyone printed, in one file.
pub const DRIVER_LOG: &str = "driver.log";

/// The timings alone, one a line.
pub const PROFILE_LOG: &str = "logs/tau2_global.log";

/// The run's summary.
pub const METRICS: &str = "outputs/metrics_global.json";

/// Where the tasks' results are.
pub const RESULTS: &str = "outputs/all_domains";

/// What reading a log came across.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogTally {
    /// Bytes, and lines that had to be cut.
    pub scanned: Scanned,
    /// Events and records that were read.
    pub read: u64,
    /// Those of them that stood behind other text on their line.
    pub glued: u64,
    /// Completion markers that were printed as a Python tuple.
    pub tuples: u64,
    /// Records that begin as an event and cannot be read.
    pub unread: u64,
    /// The first of them.
    pub example: Option<String>,
}

impl LogTally {
    fn unread(&mut self, text: &str) {
        self.unread += 1;
        self.example.get_or_insert_with(|| text.to_owned());
    }
}

/// Reads `driver.log` and hands on its events; `None` where there is no such file.
///
/// # Errors
/// When it is there and cannot be read; the message names it.
pub fn driver_events(
    run: &Path,
    mut each: impl FnMut(Event<'_>),
) -> anyhow::Result<Option<LogTally>> {
    let parser = driver_log::Parser::new()?;
    let mut tally = LogTally::default();
    let scanned = scan(&run.join(DRIVER_LOG), &driver_log::MARKS, |line| {
        tally.glued += parser.events(line, |event| match event {
            Ok(event) => {
                tally.read += 1;
                let marker = matches!(event, Event::Left { .. });
                tally.tuples += u64::from(marker && line.contains(driver_log::TUPLE));
                each(event);
            }
            Err(text) => tally.unread(text),
        });
    })?;
    Ok(scanned.map(|scanned| LogTally { scanned, ..tally }))
}

/// Reads `logs/tau2_global.log` and hands on its records; `None` where there is no such file.
///
/// # Errors
/// When it is there and cannot be read; the message names it.
pub fn profile_records(
    run: &Path,
    mut each: impl FnMut(Record<'_>),
) -> anyhow::Result<Option<LogTally>> {
    let mut tally = LogTally::default();
    let marks = profile::LEVELS.map(|(mark, _)| mark);
    let scanned = scan(&run.join(PROFILE_LOG), &marks, |line| {
        match Record::parse(line) {
            Some(record) => {
                tally.read += 1;
                each(record);
            }
            None => tally.unread(line),
        }
    })?;
    Ok(scanned.map(|scanned| LogTally { scanned, ..tally }))
}

fn scan(
    path: &Path,
    marks: &[&str],
    mut each: impl FnMut(&str),
) -> anyhow::Result<Option<Scanned>> {
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let each = |line: &[u8]| each(String::from_utf8_lossy(line).trim_end_matches('\r'));
    let scanned = Finder::new(marks)?.lines(file, each);
    scanned
        .map(Some)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// Reads `kv_cache_timeseries.csv` and hands on its samples of KV usage.
///
/// # Errors
/// When it is missing, cannot be read, or has a cell that is too long.
pub fn kv_rows(path: &Path, mut each: impl FnMut(&kv::Row<'_>)) -> Result<kv::Tally, KvError> {
    let mut file = File::open(path)?;
    let mut reader = kv::Reader::default();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(reader.finish(&mut each)),
            Ok(read) => reader.feed(&block[..read], &mut each)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Why the samples of a run could not be read to their end.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The file could not be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no table of samples.
    #[error(transparent)]
    CellTooLong(#[from] kv::CellTooLong),
}

/// Reads `outputs/metrics_global.json`; `None` where the run did not come to its end.
///
/// # Errors
/// When it is there and malformed; the message names it.
pub fn metrics(run: &Path) -> anyhow::Result<Option<Metrics>> {
    let path = run.join(METRICS);
    open(&path)?.map(|file| json(&path, file)).transpose()
}

/// Reads `outputs/all_domains` and hands on the tasks' results in the order of their file names; how many there
/// were.
///
/// # Errors
/// When one is malformed; the message names it.
pub fn task_results(run: &Path, mut each: impl FnMut(TaskResult)) -> anyhow::Result<u64> {
    let folder = run.join(RESULTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", folder.display()));
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    let mut count = 0;
    for path in paths {
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        each(json(&path, file)?);
        count += 1;
    }
    Ok(count)
}

/// Reads `scheduler_timestamps` and hands on each job with its events; `false` where there is no such file.
///
/// # Errors
/// When it is there and malformed; the message names it.
pub fn scheduler_timestamps(
    run: &Path,
    each: impl FnMut(String, Vec<SchedulerEvent>),
) -> anyhow::Result<bool> {
    let path = run.join("scheduler_timestamps");
    let Some(file) = open(&path)? else {
        return Ok(false);
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(file));
    let read = SchedulerTimestamps(each).deserialize(&mut json);
    read.with_context(|| path.display().to_string())?;
    Ok(true)
}

fn open(path: &Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn json<T: DeserializeOwned>(path: &Path, file: File) -> anyhow::Result<T> {
    serde_json::from_reader(BufReader::new(file)).with_context(|| path.display().to_string())
}
