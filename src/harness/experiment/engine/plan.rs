//! A checked plan, and the engine that it starts.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::options::Kind;
use super::probe::Probe;
use super::tunnel::{Route, Ssh, Tunnel};
use super::{Engine, Owned, gpu};
use crate::clock::Clock;
use crate::harness::child::server::Server;
use crate::harness::child::{Guarded, guarded, log_says};
use crate::harness::rundir::EngineManifest;

/// Output of an engine that is started, in the run directory.
pub const LOG: &str = "engine.log";

/// How to come by an engine: options that were checked.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) kind: Kind,
    pub(super) launch: Launch,
    pub(super) served_model: Option<String>,
    /// Local port; 0 for a free one.
    pub(super) port: u16,
    pub(super) ready: Duration,
    pub(super) stop: Duration,
    pub(super) ssh: Option<Ssh>,
    pub(super) routes: Vec<Route>,
    pub(super) patience: Duration,
    pub(super) speedup: f64,
    pub(super) kvgate: PathBuf,
    pub(super) nvidia_smi: Option<PathBuf>,
}

/// What is particular to each kind.
#[derive(Clone, Debug)]
pub(super) enum Launch {
    Embedded {
        args: Vec<String>,
        manifest: EngineManifest,
    },
    Running {
        url: String,
    },
    Vllm {
        program: PathBuf,
        model: PathBuf,
        args: Vec<String>,
    },
    Command {
        template: String,
        model: String,
    },
    Remote,
}

impl Plan {
    /// The kind of engine.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Run seconds per machine second: that of the embedded engine, 1 for every other.
    pub const fn speedup(&self) -> f64 {
        self.speedup
    }

    /// The local port of an engine that is started, or of the tunnel to it; `None` where there is none of ours, or a
    /// free one is taken.
    pub fn port(&self) -> Option<u16> {
        (self.kind != Kind::Running && self.port != 0).then_some(self.port)
    }

    /// Ports of this machine that the tunnel will listen on beside the engine's.
    pub fn forwarded_ports(&self) -> Vec<u16> {
        self.routes.iter().map(|route| route.port).collect()
    }

    /// The command that logs in where a tunnel will lead, and does nothing there; `None` without a tunnel.
    pub fn login(&self) -> Option<Vec<String>> {
        self.ssh.as_ref().map(Ssh::login)
    }

    /// The URL of an engine that runs already.
    pub fn running_url(&self) -> Option<&str> {
        match &self.launch {
            Launch::Running { url } => Some(url),
            Launch::Embedded { .. }
            | Launch::Vllm { .. }
            | Launch::Command { .. }
            | Launch::Remote => None,
        }
    }

    /// The embedded engine, if it is one.
    pub const fn manifest(&self) -> Option<&EngineManifest> {
        match &self.launch {
            Launch::Embedded { manifest, .. } => Some(manifest),
            Launch::Running { .. }
            | Launch::Vllm { .. }
            | Launch::Command { .. }
            | Launch::Remote => None,
        }
    }

    /// The name that the model must be served under, if one was asked for.
    pub fn served_model(&self) -> Option<&str> {
        self.served_model.as_deref()
    }

    /// Guards children by this executable of kvgate instead of the one that runs.
    #[must_use]
    pub fn guarded_by(mut self, kvgate: PathBuf) -> Self {
        self.kvgate = kvgate;
        self
    }

    /// Starts it, or looks for it, and waits until `/health` and `/v1/models` answer. Its output goes to [`LOG`] in
    /// `dir`, the gaps of a tunnel to `tunnel_gaps.jsonl` there, in `clock`'s time. Nothing is left of it on an error
    /// or when `cancel` comes first.
    ///
    /// # Errors
    /// When a port is taken, a process ends or does not get ready in time (with the end of its log), or another model
    /// is served than the one asked for.
    pub async fn start(
        &self,
        dir: &Path,
        clock: &Clock,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Engine> {
        let started = Box::pin(self.started(dir, clock));
        let interrupted = || anyhow::anyhow!("interrupted while the engine was getting ready");
        let ended = cancel.run_until_cancelled(started).await;
        ended.ok_or_else(interrupted)?
    }

    async fn started(&self, dir: &Path, clock: &Clock) -> anyhow::Result<Engine> {
        let port = self.choose_port()?;
        let held = match (self.kind, &self.nvidia_smi) {
            (Kind::Vllm | Kind::Command, Some(program)) => {
                Some(gpu::Watch::begin(program.clone()).await?)
            }
            _ => None,
        };
        let mut routes = self.routes.clone();
        if let (Kind::Ssh, Some(ssh)) = (self.kind, &self.ssh) {
            routes.insert(0, ssh.to_engine(port)?);
        }
        let tunnel = match &self.ssh {
            Some(ssh) => {
                Some(Tunnel::open(ssh, routes, self.patience, &self.kvgate, dir, clock).await?)
            }
            None => None,
        };
        let (url, argv, owned) = self.launch(port, dir).await?;
        let engine = Engine {
            kind: self.kind,
            url,
            argv,
            models: Vec::new(),
            model: String::new(),
            facts: super::probe::Facts::default(),
            owned,
            tunnel,
            port: (self.kind.is_owned() && port != 0).then_some(port),
            stop: self.stop,
            gpu: held,
        };
        self.await_ready(engine).await
    }

    async fn await_ready(&self, mut engine: Engine) -> anyhow::Result<Engine> {
        let mut missing = String::new();
        let probe = Probe::new(engine.url())?;
        let models = tokio::select! {
            why = engine.ended() => bail!("the engine did not get ready: {why}"),
            models = timeout(self.ready, probe.ready(&mut missing)) => models,
        };
        let Ok(models) = models else {
            let log = engine.log_says();
            bail!(
                "the engine at {} is not ready after {:?} (--engine-ready-s): {missing}{log}",
                engine.url(),
                self.ready
            );
        };
        engine.models = models;
        engine.facts = probe.facts().await;
        let first = engine.models.first().map(|model| model.id.clone());
        engine.model = self.served_model.clone().or(first).unwrap_or_default();
        engine.expect_model(&engine.model)?;
        Ok(engine)
    }

    /// The port to use, after a look at whether it is free.
    fn choose_port(&self) -> anyhow::Result<u16> {
        // The embedded engine takes a free one by itself.
        if self.kind == Kind::Running || (self.kind == Kind::Embedded && self.port == 0) {
            return Ok(0);
        }
        match bind(self.port) {
            Ok(port) => Ok(port),
            Err(error) => bail!(
                "port {} of the engine is taken ({error}): end what listens there, or choose another --engine-port",
                self.port
            ),
        }
    }

    async fn launch(
        &self,
        port: u16,
        dir: &Path,
    ) -> anyhow::Result<(String, Vec<String>, Option<Owned>)> {
        let local = format!("http://127.0.0.1:{port}");
        match &self.launch {
            Launch::Running { url } => Ok((url.clone(), Vec::new(), None)),
            Launch::Remote => Ok((local, Vec::new(), None)),
            Launch::Embedded { args, .. } => {
                let listen = format!("127.0.0.1:{port}");
                let server = Server::start_as(&self.kvgate, "engine", &listen, args, dir).await?;
                let argv = ["kvgate", "engine", "--listen", &listen].map(str::to_owned);
                let url = server.url().to_owned();
                let argv = [&argv, &args[..]].concat();
                Ok((url, argv, Some(Owned::Embedded(server))))
            }
            Launch::Vllm { program, .. } => {
                let argv = self.argv(port, dir);
                let process = self.spawn(&argv, program.parent(), dir)?;
                Ok((local, argv, Some(process)))
            }
            Launch::Command { .. } => {
                let argv = self.argv(port, dir);
                let process = self.spawn(&argv, None, dir)?;
                Ok((local, argv, Some(process)))
            }
        }
    }

    /// The command line of an engine that is started from outside this program.
    fn argv(&self, port: u16, dir: &Path) -> Vec<String> {
        match &self.launch {
            Launch::Vllm {
                program,
                model,
                args,
            } => {
                let mut argv = vec![program.display().to_string(), "serve".to_owned()];
                argv.push(model.display().to_string());
                let flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"];
                argv.extend(flags.map(str::to_owned));
                argv.extend(["--port".to_owned(), port.to_string()]);
                argv.extend(["--gpu-memory-utilization", "0.95"].map(str::to_owned));
                let flags = ["--enable-prompt-tokens-details", "--no-enable-log-requests"];
                argv.extend(flags.map(str::to_owned));
                let name = self.served_model.iter();
                argv.extend(name.flat_map(|name| ["--served-model-name".to_owned(), name.clone()]));
                argv.extend(args.iter().cloned());
                argv
            }
            Launch::Command { template, model } => {
                let command = template
                    .replace("{port}", &port.to_string())
                    .replace("{model}", &quoted(model))
                    .replace("{run_dir}", &quoted(&dir.display().to_string()));
                vec!["/bin/sh".to_owned(), "-c".to_owned(), command]
            }
            Launch::Embedded { .. } | Launch::Running { .. } | Launch::Remote => Vec::new(),
        }
    }

    /// Starts it; `bin` is the folder of its environment's programs.
    fn spawn(&self, argv: &[String], bin: Option<&Path>, dir: &Path) -> anyhow::Result<Owned> {
        let log = dir.join(LOG);
        let file = File::options().append(true).create(true).open(&log);
        let mut file = file.with_context(|| format!("cannot write {}", log.display()))?;
        // So that the end of an earlier engine's output is not taken for this one's.
        writeln!(file, "$ {}", argv.join(" "))
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = guarded(&self.kvgate, argv);
        if let Some(bin) = bin {
            // What activating the environment would do: compilers are looked for there.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        command
            // Where a vLLM with Continuum writes its timestamps as it ends.
            .env("RUN_OUTPUT_DIR", dir)
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Owned::Process {
            process: Guarded::start(command)?,
            log,
        })
    }
}

/// Binds to `port` of every address, or a free one of this machine for 0, and lets it go again; returns the port.
pub(super) fn bind(port: u16) -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    Ok(listener.local_addr()?.port())
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Owned {
    pub(super) async fn ended(&mut self) -> String {
        match self {
            Self::Embedded(server) => server.ended().await,
            Self::Process { process, log } => match process.wait().await {
                Ok(status) => format!(
                    "it {}{}",
                    crate::harness::child::ending(status),
                    log_says(log)
                ),
                Err(error) => format!("it cannot be waited for: {error}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::EngineOptions;
    use super::*;

    #[test]
    fn a_vllm_is_started_as_the_reference_starts_it_and_further_arguments_come_last() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("env/bin")).unwrap();
        std::fs::create_dir(at("model")).unwrap();
        std::fs::write(at("model/config.json"), "{}").unwrap();
        std::fs::write(at("env/bin/vllm"), "#!/bin/sh\n").unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(at("env/bin/vllm"), mode).unwrap();
        let options = EngineOptions {
            vllm: Some(at("env")),
            model_path: Some(at("model")),
            vllm_arg: vec!["--tool-call-parser=llama3_json".to_owned()],
            served_model: Some("mine".to_owned()),
            ..EngineOptions::default()
        };
        let plan = options.check().unwrap();
        let here = temp.path().display().to_string();
        assert_eq!(
            plan.argv(8000, Path::new("run"))
                .join(" ")
                .replace(&here, "."),
            "./env/bin/vllm serve ./model --enable-auto-tool-choice --tool-call-parser hermes --port 8000 \
             --gpu-memory-utilization 0.95 --enable-prompt-tokens-details --no-enable-log-requests \
             --served-model-name mine --tool-call-parser=llama3_json"
        );
    }

    #[test]
    fn what_a_template_stands_for_is_quoted_where_the_shell_needs_it() {
        let options = EngineOptions {
            engine_cmd: Some("serve {model} --port={port} >{run_dir}/x".to_owned()),
            served_model: Some("it's".to_owned()),
            ..EngineOptions::default()
        };
        let plan = options.check().unwrap();
        let argv = plan.argv(81, Path::new("/my runs/a"));
        assert_eq!(argv[2], r"serve 'it'\''s' --port=81 >'/my runs/a'/x");
    }
}
