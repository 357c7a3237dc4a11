//! A process as it is known by its files: which one it is, whether it still lives, what it started, how to end it.
//!
//! A process id is used again after its process ended. So a process is known by its id, the moment at which it was
//! started, and the start of the machine that both are counted from.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Where the kernel tells of processes.
const PROC: &str = "/proc";
/// Differs after every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One process of this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it was started, in the kernel's ticks since the machine was.
    pub started_ticks: u64,
    /// Which start of which machine that was.
    pub boot: String,
}

/// Whether a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It does.
    Alive,
    /// It has ended.
    Ended,
    /// Nobody here can tell: it ran on another machine, or before this one was restarted.
    Elsewhere,
}

/// What the kernel says of a process in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    started_ticks: u64,
    /// Ended, and its parent has not asked how.
    zombie: bool,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// Without `/proc`.
    pub fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has this id at present.
    ///
    /// # Errors
    /// When there is none, or no `/proc`.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = stat(pid).with_context(|| format!("{PROC}/{pid}/stat tells of no process"))?;
        Ok(Self {
            pid,
            started_ticks: stat.started_ticks,
            boot: boot()?,
        })
    }

    /// Whether it lives.
    pub fn life(&self) -> Life {
        if boot().is_ok_and(|boot| boot != self.boot) {
            return Life::Elsewhere;
        }
        match stat(self.pid) {
            Some(stat) if stat.started_ticks == self.started_ticks && !stat.zombie => Life::Alive,
            _ => Life::Ended,
        }
    }

    /// Sends it a signal; `false` if it had ended.
    ///
    /// # Errors
    /// When it is another user's.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<bool> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|_| self.life() == Life::Alive) else {
            return Ok(false);
        };
        match kill_process(pid, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error).context(format!("cannot signal process {pid}")),
        }
    }

    /// What it started, and what that started, as far as they live.
    pub fn descendants(&self) -> Vec<Self> {
        let entries = fs::read_dir(PROC).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let all: Vec<(u32, Stat)> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
        let mut found = vec![self.clone()];
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|process| process.pid) {
            let children = all.iter().filter(|(_, stat)| stat.parent == parent);
            found.extend(children.map(|(pid, stat)| Self {
                pid: *pid,
                started_ticks: stat.started_ticks,
                boot: self.boot.clone(),
            }));
            next += 1;
        }
        found.split_off(1)
    }
}

fn boot() -> anyhow::Result<String> {
    let text = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(text.trim().to_owned())
}

fn stat(pid: u32) -> Option<Stat> {
    let path = Path::new(PROC).join(pid.to_string()).join("stat");
    parse(&fs::read_to_string(path).ok()?)
}

/// Reads `PID (NAME) STATE PARENT ... STARTED ...`, as in `man 5 proc_pid_stat`. The name may hold blanks and parentheses.
fn parse(line: &str) -> Option<Stat> {
    let (_, after_name) = line.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    Some(Stat {
        // Fields 3, 4 and 22 of the line.
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        started_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) b (c) Z 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let expected = Stat {
            parent: 3,
            started_ticks: 4711,
            zombie: true,
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("7 (cut sh"), None);
        assert_eq!(parse("7 (cut) S 3"), None);
    }

    #[test]
    fn a_process_lives_until_it_ends_and_its_id_is_not_taken_for_it() {
        let own = Process::own().unwrap();
        assert_eq!(own.life(), Life::Alive);
        let mut other = own;
        other.started_ticks += 1;
        assert_eq!(other.life(), Life::Ended, "the same id, started later");
        other.boot = "another".to_owned();
        assert_eq!(other.life(), Life::Elsewhere);
        assert!(!other.signal(Signal::KILL).unwrap(), "not ours to end");
    }

    #[test]
    fn a_child_is_a_descendant_and_a_zombie_has_ended() {
        let sleep = |command: &mut Command| command.stdin(Stdio::piped()).spawn().unwrap();
        let mut child = sleep(&mut Command::new("cat"));
        let process = Process::of(child.id()).unwrap();
        assert!(Process::own().unwrap().descendants().contains(&process));
        assert!(process.signal(Signal::KILL).unwrap());
        // Waits for the end, and leaves the zombie.
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert_eq!(process.life(), Life::Ended);
        child.wait().unwrap();
        assert_eq!(process.life(), Life::Ended);
    }
}
