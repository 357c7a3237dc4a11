//! What an experiment says while it is played: to the terminal as long as there is one, and always to its log.
//!
//! A terminal may go away in the middle: a connection breaks, a window is closed. The process is then told so by
//! SIGHUP, and whatever it writes there fails. The experiment goes on, and what would have gone to the terminal goes to
//! the log.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;
use parking_lot::Mutex;
use rustix::stdio::{dup2_stderr, dup2_stdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::machine;
use super::state::LOG;
use crate::clock::Clock;

/// Where lines go.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    log: File,
    clock: Clock,
    zone: TimeZone,
    bars: MultiProgress,
    streams: Mutex<Streams>,
    hung_up: watch::Sender<bool>,
}

/// Where the process's own streams lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streams {
    stdout: Leads,
    stderr: Leads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    /// To a terminal, which may go away.
    Terminal,
    /// To a file or a pipe.
    Elsewhere,
    /// Into the log.
    Log,
}

impl Leads {
    fn of(stream: &impl IsTerminal) -> Self {
        if stream.is_terminal() {
            Self::Terminal
        } else {
            Self::Elsewhere
        }
    }
}

impl Console {
    /// The console of an experiment in `dir`. With `detached` the process's own streams lead into the log already.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn open(dir: &Path, detached: bool) -> anyhow::Result<Arc<Self>> {
        let path = dir.join(LOG);
        let streams = if detached {
            Streams {
                stdout: Leads::Log,
                stderr: Leads::Log,
            }
        } else {
            Streams {
                stdout: Leads::of(&std::io::stdout()),
                stderr: Leads::of(&std::io::stderr()),
            }
        };
        let target = if streams.stderr == Leads::Terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Ok(Arc::new(Self {
            log: open_log(&path)?,
            path,
            clock: Clock::real(),
            zone: TimeZone::system(),
            bars: MultiProgress::with_draw_target(target),
            streams: Mutex::new(streams),
            hung_up: watch::Sender::new(false),
        }))
    }

    /// The log.
    pub fn log(&self) -> &Path {
        &self.path
    }

    /// Says `text`, which may have several lines; each has the time in front in the log. Failing to is no error.
    pub fn say(&self, text: &str) {
        let now_s = self.clock.unix(self.clock.now());
        let stamp = machine::rfc3339(now_s, &self.zone);
        let mut lines = String::new();
        for line in text.lines() {
            let _ = writeln!(lines, "{stamp} {line}");
        }
        // A full disk: there is nowhere to say so but the terminal, where the text itself goes.
        let _unlogged = (&self.log).write_all(lines.as_bytes());
        if self.streams.lock().stderr == Leads::Log {
            return;
        }
        let to_terminal = || writeln!(std::io::stderr(), "{}", text.trim_end());
        if self.bars.suspend(to_terminal).is_err() {
            self.leave(|stream| stream.stderr = Leads::Terminal);
        }
    }

    /// A bar of `total` tasks; it is drawn only on a terminal.
    pub fn bar(&self, total: u64, label: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{prefix} {bar:30} {pos}/{len} {msg} ({elapsed}, ETA {eta})",
        );
        let bar = ProgressBar::new(total).with_prefix(label.to_owned());
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        self.bars.add(bar)
    }

    /// From here on SIGHUP ends nothing: what went to the terminal goes to the log.
    ///
    /// # Errors
    /// When the process cannot listen for signals.
    pub fn survive_hangup(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let console = Arc::clone(self);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                console.leave(|_| ());
            }
        });
        Ok(())
    }

    /// Waits until the terminal is gone; for ever if it stays.
    pub async fn hung_up(&self) {
        let mut hung_up = self.hung_up.subscribe();
        // The sender is ours, so that it cannot end first.
        let _gone = hung_up.wait_for(|gone| *gone).await;
    }

    /// Leads the streams that led to a terminal, and those that `also` takes for one, into the log.
    fn leave(&self, also: impl FnOnce(&mut Streams)) {
        let mut streams = self.streams.lock();
        let before = *streams;
        also(&mut streams);
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        // Fails only for want of a file descriptor, which these have.
        if streams.stdout == Leads::Terminal && dup2_stdout(&self.log).is_ok() {
            streams.stdout = Leads::Log;
        }
        if streams.stderr == Leads::Terminal && dup2_stderr(&self.log).is_ok() {
            streams.stderr = Leads::Log;
        }
        let left = *streams != before;
        drop(streams);
        if left {
            self.say("the terminal is gone; the experiment goes on and writes here");
        }
        self.hung_up.send_replace(true);
    }
}

/// Opens an experiment's log behind what is there.
pub(super) fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = File::options().append(true).create(true).open(path);
    opened.with_context(|| format!("cannot write {}", path.display()))
}
