//! Whether the gates can be configured: `kvgate config` is asked, which reads a configuration as `kvgate serve` does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Finding, GateNeed, Key};
use crate::harness::child::without_settings;

/// Where the configuration is read from: nothing is left behind.
const FILE: &str = "/dev/stdin";
/// Stands for the backend, which is not there yet.
const BACKEND: &str = "http://127.0.0.1:8000";
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first thing that the gate would complain of.
pub(super) async fn check(need: &GateNeed, keys: &[Key]) -> Option<Finding> {
    let what = "[gate] and [routes]";
    match complaint(need, keys).await {
        Ok(None) => None,
        Ok(Some(problem)) => Some(Finding::error(
            what,
            problem,
            "mend it in the experiment's file",
        )),
        Err(error) => Some(Finding::warning(
            what,
            format!("nobody knows whether the gate takes them: {error:#}"),
            "see what `kvgate config` says",
        )),
    }
}

async fn complaint(need: &GateNeed, keys: &[Key]) -> anyhow::Result<Option<String>> {
    let table = toml::to_string(&need.table)?;
    let mut child = command(&need.kvgate, &need.policy, keys)
        .spawn()
        .with_context(|| format!("cannot start {}", need.kvgate.display()))?;
    let mut stdin = child.stdin.take().context("a child without input")?;
    let talk = async {
        // One that ends before it has read everything says why.
        let _gone = stdin.write_all(table.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let Ok(ended) = timeout(PATIENCE, talk).await else {
        bail!("no answer within {PATIENCE:?}");
    };
    let ended = ended?;
    if ended.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let said = said.trim().trim_start_matches("kvgate: ");
    let said = said.trim_start_matches(&format!("{FILE}: "));
    Ok(Some(said.to_owned()))
}

fn command(kvgate: &Path, policy: &str, keys: &[Key]) -> Command {
    let mut command = Command::new(kvgate);
    command
        .args(["config", "--config", FILE, "--backend", BACKEND])
        .args(["--policy", policy])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    without_settings(&mut command);
    for key in keys.iter().filter(|key| !key.is_set()) {
        command.env(&key.variable, "missing");
    }
    command
}
