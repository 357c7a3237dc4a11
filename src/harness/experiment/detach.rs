//! An experiment in the background: the same command once more, in a session of its own.
//!
//! The parent starts it, shows what it says until it has passed its preflight, and leaves. The child has no terminal,
//! so that none can take it along; its output is the experiment's log.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{getpid, getsid, setsid};
use tokio::process::{Child, Command};

use super::console::open_log;
use super::state::{LOG, Phase, State};

/// How often the parent looks at what the child has got to.
const POLL: Duration = Duration::from_millis(50);
/// The flag that asks for it, and the hidden one that the child is started with.
const ASKED: &str = "--detach";
const CHILD: &str = "--detached";

/// Whether to play in the background.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DetachArgs {
    /// Play in the background: closing the terminal, or losing the connection, does not end it.
    ///
    /// Returns as soon as the preflight is passed, with exit status 0, or with what is wrong. `experiment.log` in the
    /// run directory has what would have been printed; `kvgate experiment status` tells how far it is, and
    /// `kvgate experiment stop` ends it.
    #[arg(long)]
    pub detach: bool,

    /// The directory that the parent chose; only the child of `--detach` is given it
    #[arg(long, value_name = "DIR", hide = true)]
    pub detached: Option<PathBuf>,
}

/// A command to be played in the background.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// The experiment's directory, which exists.
    pub dir: PathBuf,
}

impl Launch {
    /// This very command line, to be played in `dir`.
    ///
    /// # Errors
    /// When the program's own file is unknown.
    pub fn again(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: std::env::current_exe().context("cannot tell where kvgate is")?,
            args: child_args(std::env::args_os().skip(1), dir),
            dir: dir.to_owned(),
        })
    }

    /// Starts it and waits until it has passed its preflight; what it says meanwhile goes to `out`, and then how to
    /// see and to stop it. The status is 0, or that of a child that ended before.
    ///
    /// # Errors
    /// When it cannot be started or its log cannot be written.
    pub async fn start(&self, out: &mut impl Write) -> anyhow::Result<ExitCode> {
        let path = self.dir.join(LOG);
        let log = open_log(&path)?;
        let mut shown = log.metadata().map_or(0, |meta| meta.len());
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("NO_COLOR", "1")
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = child.id().context("the child ended at once")?;
        loop {
            let ended = child.try_wait()?;
            let passed = self.has_passed(pid);
            shown += show(&path, shown, out);
            if let Some(status) = ended {
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(ExitCode::from(code.unwrap_or(1)));
            }
            if passed {
                let dir = self.dir.display();
                // A terminal that is gone has nobody to tell.
                let _gone = writeln!(
                    out,
                    "process {pid} plays {dir} in the background\n  log     {}\n  status  kvgate experiment status \
                     {dir}\n  stop    kvgate experiment stop {dir}",
                    path.display()
                );
                leave(child);
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the child says that it is past its preflight.
    fn has_passed(&self, pid: u32) -> bool {
        let state = State::read(&self.dir).ok().flatten();
        state.is_some_and(|state| state.process.pid == pid && state.phase != Phase::Preflight)
    }
}

/// The child goes on without us.
fn leave(child: Child) {
    drop(child);
}

/// Called first by the child: gives it a session of its own.
///
/// # Errors
/// When it is the leader of a process group, which only a shell makes it.
pub fn settle() -> anyhow::Result<()> {
    match setsid() {
        Ok(_) => Ok(()),
        Err(_) if getsid(None).is_ok_and(|session| session == getpid()) => Ok(()),
        Err(error) => bail!("cannot leave the terminal's session: {error}; start it with {ASKED}"),
    }
}

/// The arguments with `--detach` replaced by what the child is told.
fn child_args(args: impl Iterator<Item = OsString>, dir: &Path) -> Vec<OsString> {
    let mut told = false;
    let mut made = Vec::new();
    let tell = |made: &mut Vec<OsString>| made.extend([CHILD.into(), dir.as_os_str().to_owned()]);
    for arg in args {
        if arg == OsStr::new(ASKED) && !told {
            tell(&mut made);
            told = true;
        } else {
            made.push(arg);
        }
    }
    if !told {
        tell(&mut made);
    }
    made
}

/// Copies what stands in the log behind `from`; how much that was.
fn show(path: &Path, from: u64, out: &mut impl Write) -> u64 {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    let _gone = out.write_all(&text).and_then(|()| out.flush());
    read.map_or(0, |bytes| bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_is_given_the_directory_in_place_of_the_wish() {
        let made = |args: &[&str]| -> Vec<String> {
            let args = args.iter().map(OsString::from);
            let made = child_args(args, Path::new("runs/x"));
            made.into_iter()
                .map(|arg| arg.into_string().unwrap())
                .collect()
        };
        assert_eq!(
            made(&["experiment", "run", "--detach", "--tasks", "4"]),
            ["experiment", "run", "--detached", "runs/x", "--tasks", "4"]
        );
        assert_eq!(
            made(&["experiment", "run"]),
            ["experiment", "run", "--detached", "runs/x"],
            "the wish stood in a file"
        );
    }
}
