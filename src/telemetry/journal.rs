//! The flight recorder: every event the policy was told and every decision it made, one JSON line each.
//!
//! A journal replays: the same policy on the same events makes the same decisions (law P3), so a recorded day is
//! a test of tomorrow's code. Lines are handed to a writer thread over a bounded queue; when it is full, the
//! journal says how many lines are missing rather than hold up a request.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::{Decision, Event, Time};

/// The format's version; a reader refuses another.
pub const VERSION: u32 = 1;

/// How many lines may wait for the writer: some tens of MiB.
const QUEUE_LIMIT: usize = 65_536;

/// A line is on disk at most this long after the writer took it.
const FLUSH_PERIOD: Duration = Duration::from_millis(200);

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// A policy takes over: the first line, and again wherever it is switched.
    Policy {
        /// The format's version, [`VERSION`].
        version: u32,
        /// The policy's name in the registry.
        name: String,
        /// Its settings, as `kvgate config` prints them.
        settings: serde_json::Value,
    },
    /// The policy was told something.
    Event {
        /// When, in the run's time.
        at: Time,
        /// What.
        event: Event,
        /// What it decided in that call, in order.
        decisions: Vec<Decision>,
    },
    /// A policy that takes over was told of what had happened before; nothing is decided by that.
    Told {
        /// When it happened.
        at: Time,
        /// What.
        event: Event,
    },
    /// Lines are missing here: the disk could not follow.
    Gap {
        /// How many.
        lost: u64,
    },
}

impl Line {
    /// The line with which `name` takes over.
    pub fn policy(name: &str, settings: serde_json::Value) -> Self {
        Self::Policy {
            version: VERSION,
            name: name.to_owned(),
            settings,
        }
    }
}

/// A journal being written. Dropping it closes the file without waiting; [`Journal::close`] waits.
#[derive(Debug)]
pub struct Journal {
    sender: SyncSender<Line>,
    writer: JoinHandle<io::Result<()>>,
    lost: u64,
}

impl Journal {
    /// Starts a journal in a new file, or over an old one.
    ///
    /// # Errors
    /// The file cannot be written, or the thread not started.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        let (sender, inbox) = sync_channel(QUEUE_LIMIT);
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || write_all(&inbox, BufWriter::new(file)))?;
        Ok(Self {
            sender,
            writer,
            lost: 0,
        })
    }

    /// Hands a line to the writer without waiting.
    pub fn record(&mut self, line: Line) {
        if self.lost > 0 && self.sender.try_send(Line::Gap { lost: self.lost }).is_ok() {
            self.lost = 0;
        }
        if self.lost > 0 || self.sender.try_send(line).is_err() {
            self.lost += 1;
        }
    }

    /// Waits until everything handed over is on disk.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn close(self) -> io::Result<()> {
        drop(self.sender);
        self.writer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the journal's writer has died")))
    }
}

fn write_all(inbox: &Receiver<Line>, mut file: BufWriter<File>) -> io::Result<()> {
    loop {
        match inbox.recv_timeout(FLUSH_PERIOD) {
            Ok(line) => {
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
            }
            Err(RecvTimeoutError::Timeout) => file.flush()?,
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}

/// A journal that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A line is none of a journal's.
    #[error("line {number} is no journal line: {problem}")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// The lines of a journal, in order. A last line that was cut off, as by a crash, ends it without an error.
///
/// # Errors
/// Each item may be a [`ReadError`]; the iterator can go on after one.
pub fn lines(reader: impl BufRead) -> impl Iterator<Item = Result<Line, ReadError>> {
    let mut reader = reader;
    let mut number = 0;
    std::iter::from_fn(move || {
        let mut text = String::new();
        match reader.read_line(&mut text) {
            Ok(0) => return None,
            Ok(_) => number += 1,
            Err(error) => return Some(Err(error.into())),
        }
        if !text.ends_with('\n') {
            return None;
        }
        let line = serde_json::from_str(&text);
        Some(line.map_err(|error| ReadError::Line {
            number,
            problem: error.to_string(),
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Arrival, BackendId, GapKind, Outcome, ProgramId, RequestId, Tokens, ToolId, Usage,
    };

    fn event(at: u64, event: Event, decisions: Vec<Decision>) -> Line {
        Line::Event {
            at: Time::from_millis(at),
            event,
            decisions,
        }
    }

    fn story() -> Vec<Line> {
        let request = RequestId(0);
        let arrival = Arrival {
            request,
            program: Some(ProgramId(3)),
            prompt: Tokens(100),
            shared: None,
            last_step: false,
            name_hash: 0,
        };
        let usage = Some(Usage {
            prompt: Tokens(101),
            cached: None,
            output: Tokens(7),
        });
        vec![
            Line::policy("baseline", serde_json::json!({})),
            event(
                0,
                Event::BackendUp {
                    backend: BackendId(0),
                    kv_capacity: Some(Tokens(1000)),
                },
                vec![],
            ),
            event(
                1,
                Event::Arrive(arrival),
                vec![Decision::Admit {
                    request,
                    priority: None,
                    backend: BackendId(0),
                }],
            ),
            event(
                2,
                Event::Finish {
                    request,
                    outcome: Outcome::ToolCalls,
                    usage,
                },
                vec![],
            ),
            event(
                2,
                Event::ToolGap {
                    program: ProgramId(3),
                    kind: GapKind::Tool(ToolId(1)),
                },
                vec![],
            ),
            event(9, Event::Tick, vec![]),
        ]
    }

    #[test]
    fn what_is_recorded_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::create(&path).unwrap();
        for line in story() {
            journal.record(line);
        }
        journal.close().unwrap();
        let file = io::BufReader::new(File::open(&path).unwrap());
        assert_eq!(lines(file).collect::<Result<Vec<_>, _>>().unwrap(), story());
    }

    #[test]
    fn a_line_cut_off_by_a_crash_ends_the_journal_and_a_broken_one_is_named() {
        let whole = serde_json::to_string(&story()[0]).unwrap();
        let cut = format!("{whole}\n{{\"line\":\"ev");
        assert_eq!(lines(cut.as_bytes()).map(Result::unwrap).count(), 1);
        let broken = format!("{whole}\nnonsense\n");
        let error = lines(broken.as_bytes()).nth(1).unwrap().unwrap_err();
        assert!(
            error.to_string().starts_with("line 2 is no journal line"),
            "{error}"
        );
    }
}
