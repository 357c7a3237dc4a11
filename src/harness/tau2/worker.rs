//! One worker process: started in a process group of its own, told, listened to, ended with all it started.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::environment::VARIABLES;
use super::settings::Settings;
use super::wire::Said;
use crate::harness::child::log_tail;
use crate::harness::group::Leader;

/// The scripts of a worker, and the names under which they are written into the run directory.
const SCRIPTS: [(&str, &str); 2] = [
    ("worker.py", include_str!("python/worker.py")),
    ("shim.py", include_str!("python/shim.py")),
];
/// Their folder in the run directory.
const FOLDER: &str = "tau2";

/// Which process speaks: its seat, and how many sat there before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) seat: usize,
    pub(super) generation: u32,
}

/// What is heard of a process.
#[derive(Debug)]
pub(super) enum Heard {
    /// A line.
    Said(Said),
    /// A line that is none of ours.
    Garbled(String),
    /// It closed its end: it is gone, or will be.
    Closed,
}

/// A running worker process. Killed when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    process: Leader,
    orders: Option<ChildStdin>,
    log: PathBuf,
}

/// Writes the scripts into the run directory; returns the path of the one to run.
pub(super) fn write_scripts(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = dir.join(FOLDER);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, text) in SCRIPTS {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(folder.join(SCRIPTS[0].0))
}

impl Worker {
    /// Starts a process of `script`; what it says goes to `inbox`. Its log is `logs/tau2_worker{seat}.log` in the run
    /// directory.
    pub(super) fn start(
        settings: &Settings,
        script: &Path,
        source: Source,
        inbox: mpsc::Sender<(Source, Heard)>,
    ) -> anyhow::Result<Self> {
        let logs = settings.dir.join("logs");
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("tau2_worker{}.log", source.seat));
        let errors = File::options().append(true).create(true).open(&log);
        let errors = errors.with_context(|| format!("cannot write {}", log.display()))?;
        let python = &settings.environment.python;
        let mut command = command(settings, script);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Leader::spawn(command.stderr(errors))
            .with_context(|| format!("cannot run {}", python.display()))?;
        let said = process.child().stdout.take();
        tokio::spawn(listen(
            said.context("a worker without output")?,
            source,
            inbox,
        ));
        Ok(Self {
            orders: process.child().stdin.take(),
            process,
            log,
        })
    }

    /// Tells it a line. An error means that it is gone, which is heard on the other side too.
    pub(super) async fn tell(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let orders = self.orders.as_mut().context("a worker that was ended")?;
        Ok(orders.write_all(&text).await?)
    }

    /// Asks it to end, by closing its orders, then by a signal; kills what is left.
    pub(super) async fn end(mut self, patience: Duration) {
        self.orders = None;
        // Whether it ends in time or not, its group is asked next, and killed.
        let _late = timeout(patience, self.process.wait()).await;
        let _gone = self.process.end(patience).await;
    }

    /// Kills it and all that it started; returns how it ended, with the last lines of its log.
    pub(super) async fn kill(mut self) -> String {
        let how = match self.process.kill().await {
            Ok(status) => format!("it ended with {status}"),
            Err(error) => format!("it cannot be waited for: {error}"),
        };
        match log_tail(&self.log) {
            Some(lines) => format!("{how}; its log {} ends:\n{lines}", self.log.display()),
            None => how,
        }
    }
}

fn command(settings: &Settings, script: &Path) -> Command {
    let mut command = Command::new(&settings.environment.python);
    let url = format!("{}/v1", settings.user.url.trim_end_matches('/'));
    // The models are reached directly: a proxy of the environment would stand between client and gate.
    let direct = std::env::var("NO_PROXY").unwrap_or_default();
    let hosts = [&settings.agent.url, &settings.user.url].map(|url| host(url));
    command
        .arg(script)
        .current_dir(script.parent().unwrap_or(&settings.dir))
        .envs(VARIABLES)
        .env("TAU2_DATA_DIR", &settings.environment.data)
        .envs(settings.environment.source.iter().map(|source| ("PYTHONPATH", source)))
        // What upstream's judge of assertions reads.
        .env("OPENAI_BASE_URL", url)
        .env("OPENAI_API_KEY", &settings.user.key.0)
        .env("NO_PROXY", format!("{},{direct}", hosts.join(",")));
    command
}

/// The host of a URL.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', ':']).next().unwrap_or(rest)
}

/// Hands on what a process says, until it closes its end.
async fn listen(said: ChildStdout, source: Source, inbox: mpsc::Sender<(Source, Heard)>) {
    let mut lines = BufReader::new(said).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let heard = match serde_json::from_str(&line) {
            Ok(said) => Heard::Said(said),
            Err(_) => Heard::Garbled(line),
        };
        if inbox.send((source, heard)).await.is_err() {
            return;
        }
    }
    let _nobody_listens = inbox.send((source, Heard::Closed)).await;
}
