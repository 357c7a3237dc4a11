//! The driver's log while it is written: what it tells becomes progress, and a tally for the verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use memchr::memrchr;
use tokio::sync::mpsc;

use crate::harness::reference::driver_log::{Event, Parser};
use crate::harness::reference::lines::MAX_LINE;
use crate::harness::reference::profile::{Kind, Level};

/// How much is read at once, in bytes.
const BLOCK: usize = 1 << 16;
/// Lines of the log's end that are kept for a message.
const LAST: usize = 8;
/// Characters of one of them.
const SHOWN: usize = 400;

/// What happened, and how far the run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tasks, times trials; 0 until the driver says it.
    pub total: u64,
    /// Tasks that have left the run, failed ones included.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Steps so far, of all tasks.
    pub steps: u64,
    /// The news.
    pub what: What,
}

/// What the log tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The tasks were loaded.
    Planned,
    /// A task begins: `{domain}:{task}`.
    Started(String),
    /// A task took a step.
    Step(String),
    /// A task left the run.
    Left(String),
}

/// What the log told in all.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) total: u64,
    pub(super) ok: u64,
    pub(super) error: u64,
    pub(super) steps: u64,
    /// What failed tasks died of, and how many.
    pub(super) causes: BTreeMap<String, u64>,
    /// The last lines.
    pub(super) last: Vec<String>,
    /// The last error of a task in flight.
    errors: BTreeMap<String, String>,
}

/// Reads a log that still grows.
#[derive(Debug)]
pub(super) struct Follower {
    parser: Parser,
    path: PathBuf,
    file: File,
    /// The beginning of a line whose end is not written.
    rest: Vec<u8>,
    seen: Seen,
    watch: mpsc::Sender<Progress>,
}

impl Follower {
    pub(super) fn open(path: &Path, watch: mpsc::Sender<Progress>) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            parser: Parser::new()?,
            path: path.to_owned(),
            file,
            rest: Vec::new(),
            seen: Seen::default(),
            watch,
        })
    }

    /// Reads what is new, up to the end of the last whole line; a longer line than a reader of the reference's files
    /// keeps is cut.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        let mut block = vec![0; BLOCK];
        loop {
            let read = match self.file.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    let name = || format!("cannot read {}", self.path.display());
                    return Err(error).with_context(name);
                }
            };
            self.rest.extend_from_slice(&block[..read]);
            let whole = memrchr(b'\n', &self.rest).map(|end| end + 1);
            let cut = (self.rest.len() >= MAX_LINE).then_some(self.rest.len());
            if let Some(end) = whole.or(cut) {
                let rest = self.rest.split_off(end);
                let lines = std::mem::replace(&mut self.rest, rest);
                self.lines(&lines).await;
            }
        }
    }

    /// The log will not grow any more.
    pub(super) async fn finish(mut self) -> Seen {
        let rest = std::mem::take(&mut self.rest);
        self.lines(&rest).await;
        self.seen
    }

    async fn lines(&mut self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            let mut news = Vec::new();
            self.parser.events(line, |event| {
                if let Ok(event) = event {
                    news.extend(self.seen.take(event));
                }
            });
            self.seen.keep(line);
            for progress in news {
                // Nobody may be watching.
                let _unseen = self.watch.send(progress).await;
            }
        }
    }
}

impl Seen {
    /// Takes an event in; what is worth telling of it.
    fn take(&mut self, event: Event<'_>) -> Option<Progress> {
        let what = match event {
            Event::Scheduled { total_tasks, .. } => {
                self.total = total_tasks;
                What::Planned
            }
            Event::Started { domain, task, .. } => What::Started(format!("{domain}:{task}")),
            Event::Record(record) if record.level == Level::Error => {
                let cause = error_name(record.text).to_owned();
                self.errors.insert(record.task.to_owned(), cause);
                return None;
            }
            Event::Record(record) if record.kind == Some(Kind::StepComplete) => {
                self.steps += 1;
                What::Step(record.task.to_owned())
            }
            Event::Failed {
                domain,
                task,
                error,
                ..
            } => {
                let cause = self.errors.remove(&format!("{domain}:{task}"));
                let cause = cause.unwrap_or_else(|| error_name(error).to_owned());
                *self.causes.entry(cause).or_default() += 1;
                return None;
            }
            Event::Left {
                domain,
                task,
                status,
                ..
            } => {
                let task = format!("{domain}:{task}");
                self.errors.remove(&task);
                *if status == "ok" {
                    &mut self.ok
                } else {
                    &mut self.error
                } += 1;
                What::Left(task)
            }
            Event::Loaded { .. }
            | Event::Finished { .. }
            | Event::Complete { .. }
            | Event::Record(_) => {
                return None;
            }
        };
        Some(Progress {
            total: self.total,
            done: self.ok + self.error,
            failed: self.error,
            steps: self.steps,
            what,
        })
    }

    fn keep(&mut self, line: &str) {
        let line: String = line.trim().chars().take(SHOWN).collect();
        if line.is_empty() {
            return;
        }
        if self.last.len() == LAST {
            self.last.remove(0);
        }
        self.last.push(line);
    }
}

/// The exception's name in a text, else the text's beginning: `LLM call failed permanently: TimeoutError: ..`.
fn error_name(text: &str) -> &str {
    let name = |word: &&str| {
        let word = word.trim_end_matches(':');
        word.ends_with("Error") && word.len() > "Error".len()
    };
    let named = text.split_whitespace().find(name);
    let begin = text.split(['.', ':']).next().unwrap_or(text);
    named.map_or(begin, |word| word.trim_end_matches(':'))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LEFT: &str = "('[TAU2_TASK_COMPLETE] domain=retail trial=0 task_id=5 status=error completed_global=1 \
        total_global=2',)\n";

    #[tokio::test]
    async fn a_line_is_read_once_when_it_is_whole_and_the_last_one_at_the_end() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("driver.log");
        let mut log = File::create(&path).unwrap();
        let (watch, mut told) = mpsc::channel(8);
        let mut follower = Follower::open(&path, watch).unwrap();
        let (begin, end) = LEFT.split_at(40);
        log.write_all(begin.as_bytes()).unwrap();
        follower.read().await.unwrap();
        assert!(told.try_recv().is_err(), "half a line tells nothing");
        log.write_all(end.as_bytes()).unwrap();
        follower.read().await.unwrap();
        let progress = told.try_recv().unwrap();
        assert_eq!((progress.done, progress.failed), (1, 1));
        assert_eq!(progress.what, What::Left("retail:5".to_owned()));
        log.write_all(LEFT.trim_end().as_bytes()).unwrap();
        follower.read().await.unwrap();
        assert_eq!(follower.finish().await.error, 2);
    }

    #[tokio::test]
    async fn a_real_log_is_followed_to_what_its_summary_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join("tests/fixtures/reference/real-driver-run/driver.log");
        let (watch, told) = mpsc::channel(1);
        drop(told);
        let mut follower = Follower::open(&path, watch).unwrap();
        follower.read().await.unwrap();
        let seen = follower.finish().await;
        assert_eq!(
            (seen.total, seen.ok, seen.error, seen.steps),
            (18, 15, 3, 206)
        );
        assert_eq!(seen.causes.values().sum::<u64>(), 3, "{:?}", seen.causes);
        assert!(
            seen.causes.contains_key("ContextLengthExceededError"),
            "{:?}",
            seen.causes
        );
        assert_eq!(seen.last.len(), LAST);
    }

    #[test]
    fn an_error_is_named_by_its_exception_else_by_its_beginning() {
        let wrapped = "LLM call failed permanently: MaxRetriesExceededError: Auth error (401)";
        assert_eq!(error_name(wrapped), "MaxRetriesExceededError");
        assert_eq!(
            error_name("1 validation error for M"),
            "1 validation error for M"
        );
        assert_eq!(error_name("Error code: 500 - x"), "Error code");
    }
}
