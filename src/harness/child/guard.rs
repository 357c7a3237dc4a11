//! `kvgate guard -- COMMAND`: runs a command that must not outlive the process that started it.
//!
//! A child that only its parent's hand ends lives on when the parent is killed: a vLLM keeps the GPU, a gate its port.
//! The guard stands between the two. Its standard input is a pipe whose other end only the parent holds; when the
//! parent is gone, in whatever way, the system closes the pipe, and the guard kills its process group, in which the
//! command and all that it starts are.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::Context;
use clap::Args;
use rustix::process::{
    Signal, getpgid, getpgrp, getppid, kill_current_process_group, kill_process_group, setpgid,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// What a shell adds to a signal's number to make an exit status of it.
pub(super) const SIGNALLED: i32 = 128;

/// What to run.
#[derive(Clone, Debug, Args)]
pub struct GuardArgs {
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// Runs the command until it ends, or until whoever holds the other end of standard input is gone; nothing of its
/// process group is left then. Signals that ask to end are the command's to heed: it gets them itself, as a member of
/// the group. The status is the command's; 128 and a signal's number if it died of one.
///
/// # Errors
/// When standard input is no pipe, or the command cannot be started.
pub async fn run(args: GuardArgs) -> anyhow::Result<ExitCode> {
    // A no-op for whom the parent made a leader already; fails for the leader of a session, who is one.
    let _leads = setpgid(None, None);
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let parent = pipe::Receiver::from_owned_fd(stdin)
        .context("guard: standard input must be a pipe from the process to end with")?;
    let _deaf = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ]
    .map(signal);
    let (program, rest) = args.command.split_first().context("guard: no command")?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    tokio::select! {
        status = child.wait() => {
            let status = status?;
            clear_group();
            Ok(code(status))
        }
        () = closed(parent) => {
            kill_current_process_group(Signal::KILL)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Resolves when nobody holds the other end any more.
async fn closed(mut parent: pipe::Receiver) {
    let mut nothing = [0; 64];
    while parent.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
}

/// Kills what the command left behind. The guard steps out of the group first, so that it can still tell how the
/// command ended; where it cannot, because its parent is gone, nobody is left to be told.
fn clear_group() {
    let group = getpgrp();
    let _alone = getpgid(getppid()).and_then(|parents| setpgid(None, Some(parents)));
    // Fails when there is nobody left in it.
    let _empty = kill_process_group(group, Signal::KILL);
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(SIGNALLED + status.signal()?));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
