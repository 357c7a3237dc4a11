//! `kv_cache_timeseries.csv`, which gate and reference sampler write alike, by series.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

use crate::harness::reference::files::{self, KvError};
use crate::harness::reference::kv::Row;
use crate::harness::run::{FileIntake, Run, Series};
use crate::telemetry::kv_csv;

/// Reads the KV series of `dir` into `run`; the offset that the sampler's clock had, seconds east of UTC. Nothing
/// where nobody sampled.
///
/// # Errors
/// When the file is there and cannot be read; the message names it.
pub fn read(dir: &Path, run: &mut Run) -> anyhow::Result<Option<i32>> {
    let path = dir.join(kv_csv::FILE);
    let mut index: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut offset = None;
    let read = files::kv_rows(&path, |row| {
        offset = offset.or_else(|| row.offset_s());
        let name = (row.port.trim().to_owned(), engine(row).to_owned());
        let series = *index.entry(name).or_insert_with_key(|(port, engine)| {
            run.series.push(Series {
                name: series_name(port, engine),
                samples: Vec::new(),
            });
            run.series.len() - 1
        });
        if let Some(series) = run.series.get_mut(series) {
            series.samples.push(row.sample);
        }
    });
    let tally = match read {
        Err(KvError::Io(error)) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    run.intake.files.push(FileIntake {
        file: kv_csv::FILE.to_owned(),
        records: tally.samples,
        unparsed: tally.skipped,
        example: tally.example.map(|line| (None, line)),
    });
    Ok(offset)
}

/// The engine that a row's labels name. A failed scrape has none: it belongs to the port's first.
fn engine<'a>(row: &'a Row<'_>) -> &'a str {
    let labelled = row.metric.split_once("engine=\"");
    let engine = labelled.and_then(|(_, rest)| rest.split_once('"'));
    engine.map_or("0", |(engine, _)| engine)
}

fn series_name(port: &str, engine: &str) -> String {
    match engine {
        "0" => format!("port {port}"),
        engine => format!("port {port}, engine {engine}"),
    }
}
