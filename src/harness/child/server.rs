//! A `kvgate` that serves HTTP as a child process: started, waited for, stopped, never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::time::timeout;

use super::{Guarded, ending, guarded, log_says, own_executable, without_settings};

/// A free port of this machine.
pub const ANY_PORT: &str = "127.0.0.1:0";
/// How long a child may take to listen, and then to be ready.
const START: Duration = Duration::from_secs(15);
/// How long a child may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(10);
/// How often a child is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// A running child that serves HTTP. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    url: String,
    log: PathBuf,
    child: Guarded,
    /// Kept open, so that the child can go on writing.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Server {
    /// Starts `kvgate NAME ARGS --listen LISTEN` with its log in `dir`, and waits until `GET /health` says
    /// that it is ready. Of the environment's `KVGATE_*` settings only the admin token reaches it.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time; with the last lines of its log.
    pub async fn start(
        name: &'static str,
        listen: &str,
        args: &[String],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_as(&own_executable()?, name, listen, args, dir).await
    }

    /// [`Server::start`] of another executable of kvgate.
    ///
    /// # Errors
    /// As there.
    pub async fn start_as(
        kvgate: &Path,
        name: &'static str,
        listen: &str,
        args: &[String],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let mut child = spawn(
            kvgate,
            &[&[name, "--listen", listen].map(str::to_owned), args].concat(),
            &log,
        )?;
        let stdout = child.take_stdout().context("a child without output")?;
        let mut stdout = BufReader::new(stdout).lines();
        let url = match timeout(START, address(&mut stdout)).await {
            Ok(Ok(Some(url))) => url,
            Ok(Ok(None)) => bail!("kvgate {name} ended at once{}", log_says(&log)),
            Ok(Err(error)) => return Err(error).context("cannot read a child's output"),
            Err(_) => bail!(
                "kvgate {name} does not listen after {START:?}{}",
                log_says(&log)
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
                log_says(&server.log)
            ),
        }
        Ok(server)
    }

    /// Where it serves: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it answers to `GET PATH`.
    ///
    /// # Errors
    /// When it does not answer with JSON and success.
    pub async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("{}{path}", self.url);
        let answer = http.get(&url).timeout(START).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let answer = answer.with_context(|| format!("GET {url}"))?;
        answer.json().await.with_context(|| format!("GET {url}"))
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
                bail!("{}", self.says(&ending(status)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it ends by itself, which it should not; says how it did. May be dropped and called again.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => self.says(&ending(status)),
            Err(error) => self.says(&format!("cannot be waited for: {error}")),
        }
    }

    /// Asks it to end, so that it writes what it has, and waits for that; kills it if it takes too long.
    ///
    /// # Errors
    /// When it ended with an error, before or after it was asked.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        match self.child.stop(STOP).await? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{}", self.says(&ending(status))),
            None => bail!(
                "kvgate {} did not end within {STOP:?} and was killed",
                self.name
            ),
        }
    }

    fn says(&self, what: &str) -> String {
        format!("kvgate {} {what}{}", self.name, log_says(&self.log))
    }
}

fn spawn(kvgate: &Path, words: &[String], log: &Path) -> anyhow::Result<Guarded> {
    let stderr = File::options().append(true).create(true).open(log);
    let stderr = stderr.with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = guarded(
        kvgate,
        [kvgate.as_os_str()]
            .into_iter()
            .chain(words.iter().map(AsRef::as_ref)),
    );
    without_settings(&mut command);
    command
        .stdout(Stdio::piped())
        .stderr(stderr)
        .env("NO_COLOR", "1");
    Guarded::start(command)
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
