//! Whether the host of a tunnel lets us in: ssh is asked, as the tunnel will ask it.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Finding;

/// How long it may take: twice what ssh itself may wait for a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// What ssh itself fails with; any other exit status is of the host's command, so somebody let us in.
const NOT_IN: i32 = 255;

pub(super) async fn check(argv: &[String]) -> Option<Finding> {
    let (program, rest) = argv.split_first()?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).kill_on_drop(true);
    let line = argv.join(" ");
    let Ok(ended) = timeout(PATIENCE, command.output()).await else {
        return Some(Finding::warning(
            "the tunnel's host",
            format!("ssh does not say within {PATIENCE:?} whether it can be reached"),
            format!("see what `{line}` does"),
        ));
    };
    let problem = match ended {
        Ok(ended) if ended.status.code().is_some_and(|code| code != NOT_IN) => return None,
        Ok(ended) if ended.status.code().is_none() => {
            format!("{program} ended by {}", ended.status)
        }
        Ok(ended) => {
            let said = String::from_utf8_lossy(&ended.stderr);
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            last.unwrap_or("ssh cannot log in and does not say why")
                .trim()
                .to_owned()
        }
        Err(error) => format!("cannot start {program}: {error}"),
    };
    let remedy = format!("let `{line}` end without a question, or name another host with --ssh");
    Some(Finding::error("the tunnel's host", problem, remedy))
}
