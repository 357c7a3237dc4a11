//! The run directory's writer: one thread, one bounded queue, three files.
//!
//! | file | one line per |
//! |---|---|
//! | `steps.jsonl` | request ([`StepRecord`]) |
//! | `kv_cache_timeseries.csv` | KV usage series and sample (the reference's layout) |
//! | `kv_samples.jsonl` | backend and sample, wide ([`KvRow`]) |
//!
//! A record is handed over without waiting; a full queue drops it and counts ([`Recorder::dropped`]).

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::kv_csv;
use super::scrape::Scrape;
use super::step::StepRecord;

/// One line per request.
pub const STEPS_FILE: &str = "steps.jsonl";

/// Wide samples.
pub const KV_SAMPLES_FILE: &str = "kv_samples.jsonl";

/// How many records may wait for the writer: seconds of work at any rate a gate reaches, and a few MiB.
pub const QUEUE_LIMIT: usize = 16_384;

/// How long the writer lets records gather before it writes and flushes them: one wake-up and one write for
/// many records, and a file that is at most this far behind.
const BATCH_PERIOD: Duration = Duration::from_millis(100);

/// One sample of one backend, for both KV files.
#[derive(Clone, Debug, PartialEq)]
pub struct KvRow {
    /// When the sample was taken, Unix seconds of the run's clock.
    pub at_s: f64,
    /// URL of the backend.
    pub backend: String,
    /// Port of the backend.
    pub port: u16,
    /// What its `/metrics` said; `None` when the scrape failed.
    pub scrape: Option<Scrape>,
    /// Requests that the policy held.
    pub held: u32,
    /// The policy that decided.
    pub policy: &'static str,
    /// Further numbers of the policy, by name.
    pub values: Vec<(&'static str, f64)>,
    /// Records lost so far, so that a reader of the files knows: [`Recorder::dropped`].
    pub records_dropped: u64,
}

/// Appends records to the files of one run directory. Clones share the writer.
///
/// Only [`Recorder::close`] waits for the last records: a process that exits without it may lose what it handed
/// over in its last tenth of a second.
#[derive(Clone, Debug)]
pub struct Recorder(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    dropped: AtomicU64,
    writer: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

#[derive(Debug)]
enum Message {
    Step(Box<StepRecord>),
    Kv(Box<KvRow>),
    Close,
}

impl Recorder {
    /// A recorder that appends to the files of `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// When `dir` or a file in it cannot be made or written; the message names it.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let files = Files::open(dir)?;
        let (queue, inbox) = sync_channel(QUEUE_LIMIT);
        let writer = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || files.write_all_from(&inbox))?;
        Ok(Self(Some(Arc::new(Shared {
            queue,
            dropped: AtomicU64::new(0),
            writer: Mutex::new(Some(writer)),
        }))))
    }

    /// A recorder that keeps nothing.
    pub const fn disabled() -> Self {
        Self(None)
    }

    /// Whether records go anywhere, so that a caller need not build those that do not.
    pub const fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Hands over the record of a request that is over. Never waits.
    pub fn step(&self, step: StepRecord) {
        self.send(|| Message::Step(Box::new(step)));
    }

    /// Hands over a sample of a backend. Never waits.
    pub fn kv(&self, row: KvRow) {
        self.send(|| Message::Kv(Box::new(row)));
    }

    /// Records lost so far: the queue was full, or the writer had ended.
    pub fn dropped(&self) -> u64 {
        self.0
            .as_ref()
            .map_or(0, |shared| shared.dropped.load(Ordering::Relaxed))
    }

    /// Writes what was handed over, and ends the writer; records handed over later through a clone are dropped
    /// and counted. Waits for the disk.
    ///
    /// # Errors
    /// When writing failed at some point; what could be written was.
    pub fn close(self) -> io::Result<()> {
        let Some(shared) = self.0 else {
            return Ok(());
        };
        let writer = shared
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else {
            return Ok(());
        };
        // An error says that the writer has ended by itself; joining tells why.
        let _closing = shared.queue.send(Message::Close);
        writer.thread().unpark();
        writer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the recorder's writer panicked")))
    }

    fn send(&self, message: impl FnOnce() -> Message) {
        if let Some(shared) = &self.0
            && shared.queue.try_send(message()).is_err()
        {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The open files of a run directory.
struct Files {
    steps: BufWriter<File>,
    kv_series: BufWriter<File>,
    kv_samples: BufWriter<File>,
}

impl Files {
    fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)
            .map_err(|error| named(&error, "make the run directory", dir))?;
        let mut kv_series = append_to(&dir.join(kv_csv::FILE))?;
        if kv_series.get_ref().metadata()?.len() == 0 {
            writeln!(kv_series, "{}", kv_csv::HEADER)?;
            kv_series.flush()?;
        }
        Ok(Self {
            steps: append_to(&dir.join(STEPS_FILE))?,
            kv_series,
            kv_samples: append_to(&dir.join(KV_SAMPLES_FILE))?,
        })
    }

    /// Writes until told to close, or until every recorder is gone. A failed write is reported at the end; the
    /// records after it are still tried.
    fn write_all_from(mut self, inbox: &Receiver<Message>) -> io::Result<()> {
        let mut result = Ok(());
        while let Ok(first) = inbox.recv() {
            if !matches!(first, Message::Close) {
                std::thread::park_timeout(BATCH_PERIOD);
            }
            for message in std::iter::once(first).chain(inbox.try_iter()) {
                let written = match &message {
                    Message::Step(step) => self.step(step),
                    Message::Kv(row) => self.kv(row),
                    Message::Close => return first_error(result, self.flush()),
                };
                result = first_error(result, written);
            }
            result = first_error(result, self.flush());
        }
        result
    }

    fn step(&mut self, step: &StepRecord) -> io::Result<()> {
        json_line(&mut self.steps, step)
    }

    fn kv(&mut self, row: &KvRow) -> io::Result<()> {
        kv_csv::write(&mut self.kv_series, row)?;
        json_line(&mut self.kv_samples, &WideSample::of(row))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.steps.flush()?;
        self.kv_series.flush()?;
        self.kv_samples.flush()
    }
}

/// The first failure of two; both have been tried.
fn first_error(first: io::Result<()>, second: io::Result<()>) -> io::Result<()> {
    first.and(second)
}

fn append_to(path: &Path) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|error| named(&error, "open", path))?;
    Ok(BufWriter::new(file))
}

fn named(error: &io::Error, act: &str, path: &Path) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {act} {}: {error}", path.display()),
    )
}

fn json_line(file: &mut BufWriter<File>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

/// One line of [`KV_SAMPLES_FILE`]. The numbers of a failed scrape are `null`.
#[derive(Serialize)]
struct WideSample<'a> {
    ts: f64,
    backend: &'a str,
    kv_usage: Option<f64>,
    running: Option<u32>,
    waiting: Option<u32>,
    preemptions: Option<u64>,
    prefix_hits: Option<u64>,
    prefix_queries: Option<u64>,
    held: u32,
    policy: &'a str,
    values: serde_json::Map<String, serde_json::Value>,
    records_dropped: u64,
}

impl<'a> WideSample<'a> {
    fn of(row: &'a KvRow) -> Self {
        let scrape = row.scrape.as_ref();
        let values = row.values.iter();
        Self {
            ts: row.at_s,
            backend: &row.backend,
            kv_usage: scrape
                .and_then(|s| s.kv_usage)
                .map(crate::policy::Ratio::get),
            running: scrape.map(|s| s.running),
            waiting: scrape.map(|s| s.waiting),
            preemptions: scrape.map(|s| s.preemptions),
            prefix_hits: scrape.map(|s| s.prefix_hits),
            prefix_queries: scrape.map(|s| s.prefix_queries),
            held: row.held,
            policy: row.policy,
            values: values
                .map(|&(name, value)| (name.to_owned(), value.into()))
                .collect(),
            records_dropped: row.records_dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(index: u32) -> StepRecord {
        StepRecord {
            step_index: index,
            ..StepRecord::default()
        }
    }

    fn row(scrape: Option<Scrape>) -> KvRow {
        KvRow {
            at_s: 1_795_489_069.75,
            backend: "http://127.0.0.1:8000".to_owned(),
            port: 8000,
            scrape,
            held: 4,
            policy: "baseline",
            values: vec![("alpha", 0.5), ("beta", f64::NAN)],
            records_dropped: 7,
        }
    }

    fn scrape() -> Scrape {
        Scrape::parse(
            "vllm:gpu_cache_usage_perc{engine=\"0\",model_name=\"m\"} 1e-05\n\
             vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 1e-05\nvllm:num_requests_running 2\n",
        )
    }

    fn read(dir: &Path, file: &str) -> String {
        std::fs::read_to_string(dir.join(file)).unwrap()
    }

    #[test]
    fn nothing_is_lost_when_the_recorder_closes() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a/run");
        let recorder = Recorder::create(&run).unwrap();
        let clone = recorder.clone();
        for index in 0..1000 {
            clone.step(step(index));
        }
        recorder.close().unwrap();
        assert_eq!(clone.dropped(), 0);
        let steps: Vec<StepRecord> = read(&run, STEPS_FILE)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(steps, (0..1000).map(step).collect::<Vec<_>>());
    }

    #[test]
    fn records_after_the_close_are_counted_as_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(dir.path()).unwrap();
        let late = recorder.clone();
        recorder.close().unwrap();
        late.step(step(0));
        assert_eq!(late.dropped(), 1);
        late.close().unwrap();
    }

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let (queue, inbox) = sync_channel(2);
        let recorder = Recorder(Some(Arc::new(Shared {
            queue,
            dropped: AtomicU64::new(0),
            writer: Mutex::new(None),
        })));
        for index in 0..5 {
            recorder.step(step(index));
        }
        assert_eq!(recorder.dropped(), 3);
        assert_eq!(inbox.try_iter().count(), 2);
    }

    #[test]
    fn the_series_has_the_references_layout_and_its_header_once() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let recorder = Recorder::create(dir.path()).unwrap();
            recorder.kv(row(Some(scrape())));
            recorder.kv(row(None));
            recorder.close().unwrap();
        }
        let rows = "2026-11-24T02:57:49+00:00,1795489069,8000,vllm:gpu_cache_usage_perc{engine=\"0\";model_name=\"m\"},1e-05\n\
                    2026-11-24T02:57:49+00:00,1795489069,8000,vllm:kv_cache_usage_perc{engine=\"0\";model_name=\"m\"},1e-05\n\
                    2026-11-24T02:57:49+00:00,1795489069,8000,vllm:kv_cache_usage_perc,NaN\n";
        let expected = format!("ts_iso,ts_unix,port,metric,value\n{rows}{rows}");
        assert_eq!(read(dir.path(), kv_csv::FILE), expected);
    }

    #[test]
    fn a_wide_sample_has_the_policys_state_and_null_where_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(dir.path()).unwrap();
        recorder.kv(row(Some(scrape())));
        recorder.kv(row(None));
        recorder.close().unwrap();
        let lines: Vec<serde_json::Value> = read(dir.path(), KV_SAMPLES_FILE)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let good = serde_json::json!({
            "ts": 1_795_489_069.75, "backend": "http://127.0.0.1:8000", "kv_usage": 1e-5, "running": 2, "waiting": 0,
            "preemptions": 0, "prefix_hits": 0, "prefix_queries": 0, "held": 4, "policy": "baseline",
            "values": {"alpha": 0.5, "beta": null}, "records_dropped": 7,
        });
        assert_eq!(lines[0], good);
        assert_eq!(lines[1]["kv_usage"], serde_json::Value::Null);
        assert_eq!(lines[1]["held"], 4);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let run = file.join("run");
        let error = Recorder::create(&run).unwrap_err().to_string();
        assert!(error.contains(&run.display().to_string()), "{error}");
    }

    #[test]
    fn a_disabled_recorder_keeps_nothing() {
        let recorder = Recorder::disabled();
        recorder.step(step(0));
        assert_eq!(recorder.dropped(), 0);
        recorder.close().unwrap();
    }
}
