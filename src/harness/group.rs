//! A child process that leads a process group of its own, ended with all that it started; and how many files it may
//! open.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process_group, setrlimit};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A running leader of a group. The group is killed when this is dropped.
#[derive(Debug)]
pub struct Leader {
    child: Child,
    /// `None` once the group was killed.
    group: Option<Pid>,
}

impl Leader {
    /// Starts a command as the leader of a new group: out of reach of a terminal's Ctrl-C, which is its owner's to act
    /// on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: id.and_then(Pid::from_raw),
            child,
        })
    }

    /// The process itself, for its pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until it ends by itself; what it started may go on. May be dropped and called again.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks the group to end, by TERM, and kills what is left of it when its leader has ended or `patience` is over.
    ///
    /// # Errors
    /// When the leader cannot be waited for.
    pub async fn end(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        // Whether it heeds that or not, what is left is killed.
        let _late = timeout(patience, self.child.wait()).await;
        self.kill().await
    }

    /// Kills the group. A leader that has ended already keeps its own status.
    ///
    /// # Errors
    /// When the leader cannot be waited for.
    pub async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.group = None;
        self.child.wait().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails only when the group is gone.
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Lets this process, and those that it starts from now on, open as many files as they may: a request takes two
/// sockets, and many shells start at 1024.
///
/// # Errors
/// When the system refuses.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// How many files a process may open at most; `None` if any number.
pub fn most_open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}
