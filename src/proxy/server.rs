//! Listening, the background tasks, and the way out.
//!
//! Shutdown has four steps, each bounded: readiness off while serving goes on (`drain_settle`); no new requests,
//! while held and running ones go on (`drain_timeout`); what is still held is refused with an error; what still
//! runs is cut.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Config;
use super::backend::{Backend, Patience};
use super::gate::Gate;
use super::programs::Limits;
use super::router;
use super::routes::{RouteError, Routes};
use super::sampler;
use super::sequencer::Sequencer;
use super::state::Proxy;
use crate::clock::Clock;
use crate::policy::{self, BackendId, Policy};
use crate::telemetry::journal::{Journal, Line};
use crate::telemetry::recorder::Recorder;

/// Connections the kernel keeps for us until we accept them: bursts of agents connect at once.
const BACKLOG: u32 = 4096;

/// How long accepting pauses when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client's connection may be silent before the kernel asks whether its host is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long requests that were just refused have to hear of it, and connections to close.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why a gate does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}; choose another --listen address")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The run directory cannot be written.
    #[error("cannot write to the run directory {dir}: {source}; choose another --run-dir", dir = dir.display())]
    RunDir {
        /// The directory.
        dir: std::path::PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The journal cannot be written.
    #[error("cannot write the journal {path}: {source}; choose another --journal", path = path.display())]
    Journal {
        /// The file.
        path: std::path::PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A route cannot be set up.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// No backend is configured.
    #[error("no backend is configured; add --backend http://HOST:PORT")]
    NoBackends,
    /// A metric could not be registered.
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// What a drain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Held requests that were refused when the time was up.
    pub refused: usize,
    /// Whether every request ended within the time.
    pub quiet: bool,
    /// Programs that nobody released.
    pub programs: usize,
}

/// A gate that is serving.
#[derive(Debug)]
pub struct Running {
    proxy: Arc<Proxy>,
    addr: SocketAddr,
    connections: Connections,
    /// The accept loop, the alarm, the watchers and the sampler; aborted on drop.
    background: JoinSet<()>,
}

/// The client connections, and the two ways to end them.
#[derive(Clone, Debug)]
struct Connections {
    tasks: TaskTracker,
    /// No more requests: a connection ends with the one it carries.
    stop: CancellationToken,
    /// A connection ends now.
    cut: CancellationToken,
}

impl Connections {
    fn new() -> Self {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        Self {
            tasks: TaskTracker::new(),
            stop,
            cut,
        }
    }
}

impl Drop for Running {
    /// A gate that is dropped and not drained leaves no connection behind.
    fn drop(&mut self) {
        self.connections.stop.cancel();
        self.connections.cut.cancel();
    }
}

/// Starts a gate with the configured policy.
///
/// # Errors
/// [`StartError`]; nothing is left behind.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let policy = config.policy.build();
    start_with(config, policy).await
}

/// Starts a gate with a policy of the caller's.
///
/// # Errors
/// [`StartError`]; nothing is left behind.
pub async fn start_with(config: Config, policy: Box<dyn Policy>) -> Result<Running, StartError> {
    if config.backends.is_empty() {
        return Err(StartError::NoBackends);
    }
    let listener = listen(config.listen)?;
    let addr = listener.local_addr().unwrap_or(config.listen);
    let recorder = match &config.run_dir {
        Some(dir) => Recorder::create(dir).map_err(|source| StartError::RunDir {
            dir: dir.clone(),
            source,
        })?,
        None => Recorder::disabled(),
    };
    let proxy = Arc::new(assemble(config, policy, recorder)?);
    let connections = Connections::new();
    let mut background = JoinSet::new();
    spawn_watchers(&proxy, &mut background).await;
    background.spawn(accept(listener, Arc::clone(&proxy), connections.clone()));
    Ok(Running {
        proxy,
        addr,
        connections,
        background,
    })
}

fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // A restart must not wait for connections of the process before it to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| StartError::Listen { addr, source })
}

fn assemble(
    config: Config,
    policy: Box<dyn Policy>,
    recorder: Recorder,
) -> Result<Proxy, StartError> {
    let patience = Patience {
        connect: config.connect_timeout,
        idle: config.upstream_idle,
    };
    let urls = config.backends.iter().cloned().zip(0..);
    let backends: Box<[Backend]> = urls
        .map(|(url, id)| Backend::new(BackendId(id), url, patience))
        .collect();
    let routes = Routes::new(&config.routes, patience)?;
    let limits = Limits {
        program_idle: config.program_idle,
        max_programs: config.max_programs,
    };
    let mut sequencer = Sequencer::new(policy, backends.len(), limits);
    if let Some(path) = &config.journal {
        sequencer.set_journal(Some(journal(path, &config.policy)?));
    }
    let gate = Gate::new(
        sequencer,
        Clock::scaled(config.time_scale, config.time_epoch),
    );
    Ok(Proxy::new(config, gate, backends, routes, recorder)?)
}

/// A new journal that begins with the policy it is about.
fn journal(path: &Path, policy: &policy::Config) -> Result<Journal, StartError> {
    let failed = |source| StartError::Journal {
        path: path.to_owned(),
        source,
    };
    let mut journal = Journal::create(path).map_err(failed)?;
    let settings = serde_json::to_value(policy).unwrap_or_default();
    journal.record(Line::policy(policy.name(), settings));
    Ok(journal)
}

/// Probes every backend once, so that a gate that has started knows which are up; then keeps watching.
async fn spawn_watchers(proxy: &Arc<Proxy>, background: &mut JoinSet<()>) {
    let first: Vec<_> = (0..proxy.backends.len())
        .map(|index| {
            let proxy = Arc::clone(proxy);
            tokio::spawn(async move { proxy.backends[index].probe(&proxy.gate).await })
        })
        .collect();
    for probe in first {
        drop(probe.await);
    }
    let alarm = Arc::clone(proxy);
    background.spawn(async move { alarm.gate.run_alarm().await });
    for index in 0..proxy.backends.len() {
        let proxy = Arc::clone(proxy);
        background.spawn(async move { watch(&proxy, index).await });
    }
    let sampler = Arc::clone(proxy);
    background.spawn(async move { sampler::run(&sampler).await });
}

/// Probes one backend every scrape interval. Never returns.
async fn watch(proxy: &Proxy, index: usize) -> ! {
    let backend = &proxy.backends[index];
    let interval = proxy.gate.clock().machine(proxy.config.scrape_interval);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        ticks.tick().await;
        if !backend.probe(&proxy.gate).await {
            proxy.metrics.scrape_failed(backend.id);
        } else if std::mem::take(&mut is_first) {
            proxy.warn_of_capacity(backend);
        }
    }
}

/// Accepts until told to stop.
async fn accept(listener: TcpListener, proxy: Arc<Proxy>, connections: Connections) {
    let own = router::router(Arc::clone(&proxy));
    let slots = proxy.config.max_connections.min(Semaphore::MAX_PERMITS);
    let slots = Arc::new(Semaphore::new(slots));
    loop {
        let stream = tokio::select! {
            stream = next_connection(&listener, &slots) => stream,
            () = connections.stop.cancelled() => return,
        };
        match stream {
            Ok((stream, slot)) => {
                let stop = connections.stop.clone();
                let cut = connections.cut.clone();
                let connection = connection(stream, Arc::clone(&proxy), own.clone(), stop);
                connections.tasks.spawn(async move {
                    let _cut_or_closed = cut.run_until_cancelled(connection).await;
                    drop(slot);
                });
            }
            // Out of file descriptors, most likely: some will be closed.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next_connection(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

/// Frames leave at once; a client whose host has vanished, or that reads nothing for `patience`, is given up.
fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(patience))?;
    Ok(())
}

/// Serves one client connection until it closes or the gate stops.
async fn connection(stream: TcpStream, proxy: Arc<Proxy>, own: Router, stop: CancellationToken) {
    if let Err(error) = tune(&stream, proxy.config.idle_timeout) {
        tracing::debug!(%error, "cannot set a socket option");
    }
    let idle = proxy.config.client_idle;
    let service =
        service_fn(move |request| router::serve(Arc::clone(&proxy), own.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counts from the end of the last response: it bounds an idle connection as well as slow headers.
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client connection ended early");
    }
}

impl Running {
    /// Where clients connect.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The shared state, for looking at it from outside.
    pub const fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    /// Waits for a background task to end, which it never should: without its alarm or its accept loop a gate
    /// looks alive and is not.
    pub async fn broken(&mut self) -> String {
        match self.background.join_next().await {
            Some(Err(error)) => error.to_string(),
            Some(Ok(())) | None => "a background task has ended".to_owned(),
        }
    }

    /// Shuts the gate down in bounded time; every held or running request gets an answer or is cut.
    pub async fn drain(mut self) -> DrainReport {
        let config = &self.proxy.config;
        self.proxy.set_unready();
        tokio::time::sleep(config.drain_settle).await;
        self.proxy
            .gate
            .with(|sequencer, _| sequencer.start_draining());
        self.connections.tasks.close();
        // The accept loop and idle connections end; connections with a request end after it.
        self.connections.stop.cancel();
        let limit = config.drain_timeout;
        let finished = tokio::time::timeout(limit, self.finish()).await.is_ok();
        let refused = self.proxy.gate.with(Sequencer::refuse_held);
        let quiet = finished || tokio::time::timeout(FAREWELL, self.finish()).await.is_ok();
        self.connections.cut.cancel();
        self.connections.tasks.wait().await;
        self.background.shutdown().await;
        self.close_files();
        let programs = self
            .proxy
            .gate
            .with(|sequencer, _| sequencer.programs().len());
        DrainReport {
            refused,
            quiet,
            programs,
        }
    }

    /// Waits until every record is on disk.
    fn close_files(&self) {
        if let Err(error) = self.proxy.recorder.clone().close() {
            tracing::error!(%error, "the run directory is incomplete");
        }
        let journal = self
            .proxy
            .gate
            .with(|sequencer, _| sequencer.take_journal());
        if let Some(Err(error)) = journal.map(Journal::close) {
            tracing::error!(%error, "the journal is incomplete");
        }
    }

    async fn finish(&self) {
        self.proxy.gate.quiet().await;
        self.connections.tasks.wait().await;
    }
}
