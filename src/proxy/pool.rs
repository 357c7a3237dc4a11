//! Connections to one server: a stack of idle ones, newest on top.
//!
//! vLLM's server closes a connection that idles for 5 s. A connection is used again only while it has idled for
//! less than that (3 s by default), and the caller is told that it was, so that a failure before the first byte
//! can be retried once on a fresh connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::outgoing::RequestBody;
use super::routes::tls::Tls;
use crate::clock::machine_now;

/// The most idle connections kept; one more is closed.
const MAX_IDLE: usize = 1024;

/// How long an idle connection may take to be ready for a request. One that still sends the body of an exchange
/// that the backend has answered early may never be.
const READY_WAIT: Duration = Duration::from_millis(20);

/// Where a server listens and how patient the gate is with its connections.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// `host:port`.
    pub address: String,
    /// How long a connection may idle and still be used.
    pub idle_timeout: Duration,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How the connection is encrypted; `None` for one that is not.
    pub tls: Option<Tls>,
}

/// A connection in use. Dropping it closes it, which aborts the request on it.
#[derive(Debug)]
pub struct Connection {
    /// Sends one request at a time.
    pub sender: SendRequest<RequestBody>,
    /// Whether it has carried a request before.
    pub reused: bool,
    /// Whether a byte of the backend has come since [`Connection::listen_anew`].
    heard: Arc<AtomicBool>,
    /// The task that drives the socket; aborted with the connection.
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Forgets what was heard so far; the returned flag turns true with the next byte of the backend.
    pub fn listen_anew(&self) -> Arc<AtomicBool> {
        self.heard.store(false, Ordering::Relaxed);
        Arc::clone(&self.heard)
    }
}

/// A socket that notes whether anything came.
#[derive(Debug)]
struct Heard<S> {
    socket: S,
    heard: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.socket).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// The idle connections to one server.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

impl Pool {
    /// An empty pool.
    pub const fn new(config: PoolConfig) -> Self {
        Self {
            config,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// An idle connection that is still good, or a new one.
    ///
    /// # Errors
    /// What the operating system said about the new connection, or `TimedOut`.
    pub async fn checkout(&self) -> io::Result<Connection> {
        while let Some(mut connection) = self.pop() {
            // Ready at once, unless the server has closed it meanwhile or its last exchange is not over.
            let ready = tokio::time::timeout(READY_WAIT, connection.sender.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                return Ok(connection);
            }
        }
        self.connect().await
    }

    /// A new connection.
    ///
    /// # Errors
    /// What the operating system said, or `TimedOut`.
    pub async fn connect(&self) -> io::Result<Connection> {
        // Boxed, so that a request does not carry the size of a handshake from its arrival to its end.
        tokio::time::timeout(self.config.connect_timeout, Box::pin(self.open()))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting timed out"))?
    }

    async fn open(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(&self.config.address).await?;
        stream.set_nodelay(true)?;
        match &self.config.tls {
            None => drive(stream).await,
            Some(tls) => drive(tls.encrypt(stream).await?).await,
        }
    }

    /// Keeps a connection whose response was read to its end.
    pub fn give_back(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.reused = true;
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((connection, machine_now()));
        }
    }

    /// Closes connections that have idled too long; the oldest are at the bottom.
    pub fn reap(&self) {
        let mut idle = self.idle.lock();
        let stale = idle
            .iter()
            .take_while(|(_, since)| self.is_stale(*since))
            .count();
        idle.drain(..stale);
    }

    fn pop(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let (connection, since) = idle.pop()?;
        if self.is_stale(since) {
            // Everything below is older still.
            idle.clear();
            return None;
        }
        Some(connection)
    }

    fn is_stale(&self, since: Instant) -> bool {
        machine_now().saturating_duration_since(since) >= self.config.idle_timeout
    }
}

/// Speaks HTTP over a socket, in a task of its own.
async fn drive<S>(socket: S) -> io::Result<Connection>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let heard = Arc::new(AtomicBool::new(false));
    let socket = Heard {
        socket,
        heard: Arc::clone(&heard),
    };
    let (sender, driver) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(async move {
        // An error here reaches the request as well, which reports it.
        drop(driver.await);
    });
    Ok(Connection {
        sender,
        reused: false,
        heard,
        _driver: AbortOnDropHandle::new(driver),
    })
}
