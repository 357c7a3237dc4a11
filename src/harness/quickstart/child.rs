//! A child process of this program: started on a free port, waited for, stopped, never left behind.

use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A free port of this machine.
pub const ANY_PORT: &str = "127.0.0.1:0";
/// How long a child may take to listen, and then to be ready.
const START: Duration = Duration::from_secs(15);
/// How long a child may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(10);
/// How often a child is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a child's log that are shown when it fails.
const LOG_LINES: usize = 5;

/// A running child that serves HTTP. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    url: String,
    log: std::path::PathBuf,
    child: Child,
    /// Kept open, so that the child can go on writing.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts `kvgate NAME ARGS --listen LISTEN` with its log in `dir`, and waits until `GET /health` says
    /// that it is ready. The environment's `KVGATE_*` settings do not reach it.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time; with the last lines of its log.
    pub async fn start(
        name: &'static str,
        listen: &str,
        args: &[String],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let stderr =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("KVGATE_") {
                command.env_remove(key);
            }
        }
        let mut child = command
            .arg(name)
            .args(["--listen", listen])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .env("NO_COLOR", "1")
            .kill_on_drop(true)
            // Out of reach of a terminal's Ctrl-C, which is the parent's to act on: it stops the children itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start kvgate {name}"))?;
        let stdout = child.stdout.take().context("a child without output")?;
        let mut stdout = BufReader::new(stdout).lines();
        let url = match timeout(START, address(&mut stdout)).await {
            Ok(Ok(Some(url))) => url,
            Ok(Ok(None)) => bail!("kvgate {name} ended at once{}", tail(&log)),
            Ok(Err(error)) => return Err(error).context("cannot read a child's output"),
            Err(_) => bail!(
                "kvgate {name} does not listen after {START:?}{}",
                tail(&log)
            ),
        };
        let mut server = Self {
            name,
            url,
            log,
            child,
            _stdout: stdout,
        };
        match timeout(START, server.ready()).await {
            Ok(ready) => ready?,
            Err(_) => bail!(
                "kvgate {name} is not ready after {START:?}{}",
                tail(&server.log)
            ),
        }
        Ok(server)
    }

    /// Where it serves: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("{}/health", self.url);
        loop {
            let answer = http.get(&url).timeout(START).send().await;
            if answer.is_ok_and(|response| response.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "kvgate {} ended with {status}{}",
                    self.name,
                    tail(&self.log)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end, so that it writes what it has, and waits for that; kills it if it takes too long.
    ///
    /// # Errors
    /// When it ended with an error, before or after it was asked.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.terminate();
        let Ok(status) = timeout(STOP, self.child.wait()).await else {
            self.child.kill().await?;
            bail!(
                "kvgate {} did not end within {STOP:?} and was killed",
                self.name
            );
        };
        let status: ExitStatus = status?;
        if !status.success() {
            bail!(
                "kvgate {} ended with {status}{}",
                self.name,
                tail(&self.log)
            );
        }
        Ok(())
    }

    fn terminate(&self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // Fails only when the child has ended, which the wait that follows reports.
            let _ended = kill_process(pid, Signal::TERM);
        }
    }
}

/// The URL in the line with which a child says that it listens; `None` if it ends without one.
async fn address(stdout: &mut Lines<BufReader<ChildStdout>>) -> std::io::Result<Option<String>> {
    while let Some(line) = stdout.next_line().await? {
        if let Some(url) = line.strip_prefix("listening on ") {
            return Ok(Some(url.trim().to_owned()));
        }
    }
    Ok(None)
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines.len().saturating_sub(LOG_LINES);
    match lines.get(last..) {
        Some(lines) if !lines.is_empty() => format!(":\n{}", lines.join("\n")),
        _ => String::new(),
    }
}
