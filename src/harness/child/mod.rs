//! Child processes that end with this program, and with all that they started.
//!
//! Each runs in a process group of its own under a [`guard`], which kills the group when this program is gone, however
//! that came; a signal to the group reaches what the child started too. [`server`] is a `kvgate` that serves HTTP.

pub mod guard;
pub mod server;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// How long the system may take to remove a killed process.
const REMOVAL: Duration = Duration::from_secs(10);
/// Bytes of a log's end that are read for a message.
const LOG_TAIL: u64 = 16 * 1024;
/// Lines of a log's end that are shown in a message.
const SHOWN_LINES: usize = 8;

/// The executable of this program. One that was replaced while it runs is still the one that runs.
///
/// # Errors
/// When the system does not say.
pub fn own_executable() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot tell the path of kvgate itself")?;
    let running = PathBuf::from("/proc/self/exe");
    let replaced = !path.exists() && running.exists();
    Ok(if replaced { running } else { path })
}

/// A child process with all that it starts. Killed when dropped.
#[derive(Debug)]
pub struct Guarded {
    guard: Child,
    /// The group that the guard leads.
    group: Option<Pid>,
    /// Closed by the system when this process ends.
    _lifeline: Option<ChildStdin>,
    over: bool,
}

/// The command that runs `argv` under a guard, to be started with [`Guarded::start`]. Its process group is out of reach
/// of a terminal's Ctrl-C, which is for this program to act on.
pub fn guarded(kvgate: &Path, argv: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(kvgate);
    command
        .args(["guard", "--"])
        .args(argv)
        .stdin(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// The one setting that a child has from the environment: a secret belongs neither in a file nor on a command line.
pub const ADMIN_TOKEN: &str = "KVGATE_ADMIN_TOKEN";

/// Keeps the environment's `KVGATE_*` settings, but for [`ADMIN_TOKEN`], from a `kvgate` that is told everything by flags
/// and file.
pub fn without_settings(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("KVGATE_") && key != ADMIN_TOKEN {
            command.env_remove(key);
        }
    }
}

impl Guarded {
    /// Starts what [`guarded`] made.
    ///
    /// # Errors
    /// When the guard cannot be started. A command that cannot be is said on its standard error.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut guard = command.spawn().context("cannot start kvgate guard")?;
        let id = guard.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: id.and_then(Pid::from_raw),
            // Taken from the child, which would close it as soon as it is waited for.
            _lifeline: guard.stdin.take(),
            guard,
            over: false,
        })
    }

    /// What it says, if that was piped and nobody took it.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.guard.stdout.take()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let status = self.guard.try_wait()?;
        Ok(status.inspect(|status| self.settle(*status)))
    }

    /// Waits until it ends. May be dropped and called again.
    ///
    /// # Errors
    /// When the system does not say.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.guard.wait().await?;
        self.settle(status);
        Ok(status)
    }

    /// Asks the group to end and waits `patience` for the child to do so; kills the group if it does not. `None` if
    /// it had to be killed.
    ///
    /// # Errors
    /// When the system does not remove it.
    pub async fn stop(&mut self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        if !self.over {
            self.signal(Signal::TERM);
        }
        if let Ok(status) = timeout(patience, self.wait()).await {
            return Ok(Some(status?));
        }
        self.signal(Signal::KILL);
        match timeout(REMOVAL, self.wait()).await {
            Ok(status) => status.map(|_| None).map_err(Into::into),
            Err(_) => bail!("a killed process is still there after {REMOVAL:?}"),
        }
    }

    /// A guard that was killed itself could not clear its group.
    fn settle(&mut self, status: ExitStatus) {
        if !self.over && status.signal().is_some() {
            self.signal(Signal::KILL);
        }
        self.over = true;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails only when the group is gone.
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.over {
            self.signal(Signal::KILL);
        }
    }
}

/// How a guarded child ended, as the rest of a sentence about it.
pub fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) if code > guard::SIGNALLED => {
            let signal = code - guard::SIGNALLED;
            format!("was killed by signal {signal}")
        }
        Some(code) => format!("ended with exit status {code}"),
        None => format!("was killed with its guard, which ended with {status}"),
    }
}

/// The last lines of a text, without empty ones.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let first = lines.len().saturating_sub(SHOWN_LINES);
    lines.get(first..).unwrap_or_default().join("\n")
}

/// The last lines of a log; `None` if it has none.
pub fn log_tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let lines = last_lines(&String::from_utf8_lossy(&bytes));
    (!lines.is_empty()).then_some(lines)
}

/// The end of a log as the end of a message: where it is, and its last lines.
pub fn log_says(path: &Path) -> String {
    match log_tail(path) {
        Some(lines) => format!("; its log {} ends:\n{lines}", path.display()),
        None => format!("; its log {} is empty", path.display()),
    }
}
