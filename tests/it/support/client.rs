//! A client of one request per connection, so that leaving means closing it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::within;

/// A request to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    addr: SocketAddr,
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A response whose body is read as the story goes on. Dropping it closes the connection.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    /// Body bytes received and not yet read.
    pending: Vec<u8>,
    _connection: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ask {
    pub(crate) fn new(addr: SocketAddr, method: Method, target: &str) -> Self {
        Self {
            addr,
            method,
            target: target.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends, and returns when the response's head has come.
    pub(crate) async fn send(self) -> Reply {
        within(self.try_send()).await.unwrap()
    }

    /// Sends in a task of its own. Aborting the task is a client that leaves.
    pub(crate) fn spawn(self) -> JoinHandle<Reply> {
        tokio::spawn(self.send())
    }

    /// As [`Ask::send`], where a refused or broken connection is part of the story.
    pub(crate) async fn try_send(self) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpStream::connect(self.addr).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        let driving = AbortOnDrop(tokio::spawn(async move { drop(connection.await) }));
        let mut request = http::Request::builder()
            .method(self.method)
            .uri(self.target)
            .header("host", self.addr.to_string())
            .body(Full::new(self.body))?;
        request.headers_mut().extend(self.headers);
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body,
            pending: Vec::new(),
            _connection: driving,
        })
    }
}

impl Reply {
    /// Reads exactly `expected` from the body, and no frame more than it takes.
    pub(crate) async fn expect(&mut self, expected: &[u8]) {
        while self.pending.len() < expected.len() {
            let more = within(self.chunk()).await.expect("the body goes on");
            self.pending.extend_from_slice(&more);
        }
        let rest = self.pending.split_off(expected.len());
        assert_eq!(
            String::from_utf8_lossy(&self.pending),
            String::from_utf8_lossy(expected)
        );
        self.pending = rest;
    }

    /// The next piece of the body as it came; `None` at its end, an error where it broke off.
    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        self.next()
            .await
            .map(|piece| piece.expect("an unbroken body"))
    }

    /// The rest of the body.
    pub(crate) async fn bytes(mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.pending);
        while let Some(more) = within(self.chunk()).await {
            all.extend_from_slice(&more);
        }
        all
    }

    /// The rest of the body, and whether it broke off.
    pub(crate) async fn until_end_or_break(mut self) -> (Vec<u8>, bool) {
        let mut all = std::mem::take(&mut self.pending);
        loop {
            match within(self.next()).await {
                Some(Ok(more)) => all.extend_from_slice(&more),
                Some(Err(_)) => return (all, true),
                None => return (all, false),
            }
        }
    }

    pub(crate) async fn json(self) -> Value {
        let bytes = self.bytes().await;
        let parsed = serde_json::from_slice(&bytes);
        parsed.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
    }

    /// The value of a header; empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}
