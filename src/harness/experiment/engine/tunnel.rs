//! A tunnel by the system's ssh, kept alive: reconnected with growing pauses, every gap recorded, given up in the end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::harness::child::{Guarded, ending, guarded, log_tail};

/// The gaps of a tunnel in the run directory, one a line.
pub const GAPS: &str = "tunnel_gaps.jsonl";
/// What ssh says.
const LOG: &str = "tunnel.log";
/// Pause before the first attempt to reconnect; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a tunnel that is being made is tried.
const POLL: Duration = Duration::from_millis(50);
/// How long ssh may take to end when asked.
const STOP: Duration = Duration::from_secs(5);
/// ssh must not ask, must fail where a port is taken, and must notice within 90 s that the other side is gone.
const OPTIONS: [&str; 4] = [
    "ExitOnForwardFailure=yes",
    "ServerAliveInterval=30",
    "ServerAliveCountMax=3",
    "BatchMode=yes",
];

/// A login without a tunnel must not ask, wait long for a connection, make a connection for others, or say anything but
/// why it failed. What was given for the tunnel comes before.
const LOGIN: [&str; 5] = [
    "BatchMode=yes",
    "ConnectTimeout=5",
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "LogLevel=ERROR",
];

/// Which ssh, and where to.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    pub(super) program: PathBuf,
    pub(super) host: String,
    pub(super) args: Vec<String>,
    /// The engine, seen from there.
    pub(super) remote: String,
}

/// A local port and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Route {
    pub(super) port: u16,
    pub(super) to: String,
}

impl Route {
    /// Reads `PORT:HOST:PORT`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let hint = "write it as PORT:HOST:PORT";
        let mut parts = text.splitn(2, ':');
        let port = parts.next().and_then(|port| port.parse().ok());
        let to = parts.next().unwrap_or_default();
        let far = to.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        let far = far.and_then(|(_, port)| port.parse::<u16>().ok());
        match (port, far) {
            (Some(port @ 1..), Some(1..)) => Ok(Self {
                port,
                to: to.to_owned(),
            }),
            _ => Err(hint.to_owned()),
        }
    }
}

impl Ssh {
    /// The route from a local port to the engine.
    pub(super) fn to_engine(&self, port: u16) -> anyhow::Result<Route> {
        Route::parse(&format!("{port}:{}", self.remote)).map_err(anyhow::Error::msg)
    }

    /// A command that only logs in.
    pub(super) fn login(&self) -> Vec<String> {
        let mut argv = vec![self.program.display().to_string()];
        argv.extend(self.args.iter().cloned());
        argv.extend(options(&LOGIN));
        argv.extend([self.host.clone(), "true".to_owned()]);
        argv
    }

    fn argv(&self, routes: &[Route]) -> Vec<String> {
        let mut argv = vec![self.program.display().to_string(), "-N".to_owned()];
        argv.extend(options(&OPTIONS));
        argv.extend(self.args.iter().cloned());
        for route in routes {
            argv.extend([
                "-L".to_owned(),
                format!("127.0.0.1:{}:{}", route.port, route.to),
            ]);
        }
        argv.push(self.host.clone());
        argv
    }
}

/// `-o` before each.
fn options(of: &[&str]) -> impl Iterator<Item = String> {
    of.iter()
        .flat_map(|option| ["-o".to_owned(), (*option).to_owned()])
}

/// A tunnel that was open once. Its ssh is killed when dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    argv: Vec<String>,
    gaps: Arc<AtomicUsize>,
    /// Why it was given up.
    verdict: watch::Receiver<Option<String>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// A time without a connection, as a line of [`GAPS`].
#[derive(Debug, Serialize)]
struct Gap {
    /// Unix seconds of the run.
    began_s: f64,
    /// Unix seconds of the run; absent if it was not open again when the run ended.
    ended_s: Option<f64>,
    cause: String,
}

/// What makes connections and keeps the record.
struct Keeper {
    argv: Vec<String>,
    ports: Vec<u16>,
    patience: Duration,
    kvgate: PathBuf,
    dir: PathBuf,
    clock: Clock,
    gaps: Arc<AtomicUsize>,
}

impl Tunnel {
    /// Makes the first connection, which must succeed, and keeps it from then on.
    pub(super) async fn open(
        ssh: &Ssh,
        routes: Vec<Route>,
        patience: Duration,
        kvgate: &Path,
        dir: &Path,
        clock: &Clock,
    ) -> anyhow::Result<Self> {
        for route in &routes {
            let port = route.port;
            super::plan::bind(port)
                .with_context(|| format!("port {port} of the tunnel is taken"))?;
        }
        let gaps = Arc::new(AtomicUsize::new(0));
        let argv = ssh.argv(&routes);
        let keeper = Keeper {
            argv: argv.clone(),
            ports: routes.iter().map(|route| route.port).collect(),
            patience,
            kvgate: kvgate.to_owned(),
            dir: dir.to_owned(),
            clock: *clock,
            gaps: Arc::clone(&gaps),
        };
        let first = timeout(patience, keeper.connect()).await;
        let first = first.unwrap_or_else(|_| Err(format!("no connection after {patience:?}")));
        let first = match first {
            Ok(first) => first,
            Err(why) => bail!("no tunnel to {}: {why}", ssh.host),
        };
        let (tell, verdict) = watch::channel(None);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        Ok(Self {
            argv,
            gaps,
            verdict,
            stop: Some(stop),
            task: tokio::spawn(async move {
                let kept = keeper.keep(first, &tell, stopped).await;
                if let Err(error) = &kept {
                    tell.send_replace(Some(format!("the tunnel cannot be kept: {error:#}")));
                }
                kept
            }),
        })
    }

    pub(super) fn gaps(&self) -> usize {
        self.gaps.load(Ordering::Relaxed)
    }

    /// Waits until it is given up; says why.
    pub(super) async fn ended(&mut self) -> String {
        match self.verdict.wait_for(Option::is_some).await {
            Ok(verdict) => verdict.clone().unwrap_or_default(),
            Err(_) => "the tunnel is not kept any more".to_owned(),
        }
    }

    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        let task = &mut self.task;
        task.await.context("the tunnel is not kept any more")?
    }

    pub(super) fn describe(&self) -> Value {
        json!({"argv": self.argv, "gaps": self.gaps()})
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// One connection: ssh runs, and every local port of it accepts.
    async fn connect(&self) -> Result<Guarded, String> {
        let mut ssh = self.spawn().map_err(|error| format!("{error:#}"))?;
        let open = async {
            for port in &self.ports {
                while TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
                    tokio::time::sleep(POLL).await;
                }
            }
        };
        let ended = tokio::select! {
            () = open => None,
            ended = ssh.wait() => Some(ended),
        };
        match ended {
            None => Ok(ssh),
            Some(ended) => Err(self.cause(&ended)),
        }
    }

    fn spawn(&self) -> anyhow::Result<Guarded> {
        let log = self.dir.join(LOG);
        let file = File::options().append(true).create(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = guarded(&self.kvgate, &self.argv);
        command.stdout(file.try_clone()?).stderr(file);
        Guarded::start(command)
    }

    /// Reconnects until told to stop, or until a gap lasts longer than the patience.
    async fn keep(
        self,
        mut ssh: Guarded,
        tell: &watch::Sender<Option<String>>,
        mut stop: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        loop {
            let ended = tokio::select! {
                _ = &mut stop => {
                    ssh.stop(STOP).await?;
                    return Ok(());
                }
                ended = ssh.wait() => ended,
            };
            let began_s = self.clock.unix(self.clock.now());
            let cause = self.cause(&ended);
            tracing::warn!(cause, "the tunnel is broken; reconnecting");
            self.gaps.fetch_add(1, Ordering::Relaxed);
            let again = tokio::select! {
                _ = &mut stop => return self.record(began_s, None, cause),
                again = timeout(self.patience, self.reconnect()) => again,
            };
            let Ok(again) = again else {
                let why = format!(
                    "the tunnel was broken for {:?} and is given up (--ssh-patience-s): {cause}",
                    self.patience
                );
                self.record(began_s, None, cause)?;
                tell.send_replace(Some(why));
                return Ok(());
            };
            ssh = again;
            let now_s = self.clock.unix(self.clock.now());
            tracing::info!("the tunnel is open again");
            self.record(began_s, Some(now_s), cause)?;
        }
    }

    async fn reconnect(&self) -> Guarded {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            match self.connect().await {
                Ok(ssh) => return ssh,
                Err(why) => tracing::warn!(why, "no tunnel yet"),
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn cause(&self, ended: &std::io::Result<std::process::ExitStatus>) -> String {
        let how = match ended {
            Ok(status) => format!("ssh {}", ending(*status)),
            Err(error) => format!("ssh cannot be waited for: {error}"),
        };
        let said = log_tail(&self.dir.join(LOG)).unwrap_or_default();
        match said.lines().last() {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }

    fn record(&self, began_s: f64, ended_s: Option<f64>, cause: String) -> anyhow::Result<()> {
        let path = self.dir.join(GAPS);
        let mut line = serde_json::to_vec(&Gap {
            began_s,
            ended_s,
            cause,
        })?;
        line.push(b'\n');
        let file = File::options().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(&line))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_port_here_and_an_address_there() {
        let route = Route::parse("1910:172.27.27.153:1910").unwrap();
        assert_eq!(
            (route.port, route.to.as_str()),
            (1910, "172.27.27.153:1910")
        );
        assert_eq!(Route::parse("81:[::1]:82").unwrap().to, "[::1]:82");
        for text in [
            "1910",
            "0:there:1",
            "1:there:0",
            "1::2",
            "x:there:1",
            "1:there:99999",
        ] {
            assert!(Route::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ssh_is_told_to_fail_rather_than_ask_or_hang() {
        let ssh = Ssh {
            program: "ssh".into(),
            host: "head".to_owned(),
            args: vec!["-J".to_owned(), "gateway".to_owned()],
            remote: "127.0.0.1:8000".to_owned(),
        };
        let routes = [
            ssh.to_engine(81).unwrap(),
            Route::parse("1910:there:1910").unwrap(),
        ];
        assert_eq!(
            ssh.argv(&routes).join(" "),
            "ssh -N -o ExitOnForwardFailure=yes -o ServerAliveInterval=30 -o ServerAliveCountMax=3 \
             -o BatchMode=yes -J gateway -L 127.0.0.1:81:127.0.0.1:8000 -L 127.0.0.1:1910:there:1910 head"
        );
    }
}
