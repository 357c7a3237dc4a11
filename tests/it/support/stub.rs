//! A stub vLLM whose every move is the test's.
//!
//! Probes (`/health`, `/metrics`, `/v1/models`) are answered by themselves; any other request becomes a
//! [`Call`], which the test answers, streams frame by frame, leaves hanging, or drops: a backend that dies.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::fixture::{self, Fixture, fixture};
use super::within;

/// Where a stub waits for the end of a request's head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// The stub. Dropping it closes the listener and every connection.
pub(crate) struct Stub {
    addr: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    probes: Arc<Mutex<Probes>>,
    accepting: JoinHandle<()>,
}

/// What probes are told.
struct Probes {
    healthy: bool,
    /// Scrapes that are refused before the next one is answered.
    refused_scrapes: u32,
    /// Whether scrapes are left to the test, as calls.
    scrapes_are_calls: bool,
    metrics: String,
    models: Vec<u8>,
    /// What `Authorization` must be on `/v1/models`.
    key: Option<String>,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as on the wire.
    pub(crate) target: String,
    /// In the order of the wire, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// How many requests this connection carried before.
    pub(crate) reused: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A request that waits for its answer. Dropping it closes the connection without a byte.
pub(crate) struct Call {
    pub(crate) request: Request,
    connection: Connection,
    give_back: oneshot::Sender<Connection>,
}

/// A response whose body is being written. Dropping it breaks the connection in mid-stream.
pub(crate) struct Streaming {
    connection: Connection,
    give_back: oneshot::Sender<Connection>,
}

struct Connection {
    socket: TcpStream,
    /// Read and not yet used.
    pending: Vec<u8>,
    served: usize,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let probes = Arc::new(Mutex::new(Probes {
            healthy: true,
            refused_scrapes: 0,
            scrapes_are_calls: false,
            metrics: fixture::read("metrics.txt"),
            models: fixture("get-v1-models").body,
            key: None,
        }));
        let (send, calls) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&probes), send));
        Self {
            addr,
            calls,
            probes,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next request that is not a probe.
    pub(crate) async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// Fails when a request has arrived that the test did not ask for.
    #[track_caller]
    pub(crate) fn assert_idle(&mut self) {
        if let Ok(call) = self.calls.try_recv() {
            panic!("unexpected request: {:?}", call.request);
        }
    }

    pub(crate) fn set_healthy(&self, healthy: bool) {
        self.probes.lock().unwrap().healthy = healthy;
    }

    /// Refuses the next `count` scrapes, and says `text` from then on.
    pub(crate) fn refuse_scrapes(&self, count: u32, text: &str) {
        let mut probes = self.probes.lock().unwrap();
        probes.refused_scrapes = count;
        text.clone_into(&mut probes.metrics);
    }

    /// Makes every further scrape a [`Call`].
    pub(crate) fn hand_over_scrapes(&self) {
        self.probes.lock().unwrap().scrapes_are_calls = true;
    }

    pub(crate) fn set_metrics(&self, text: &str) {
        text.clone_into(&mut self.probes.lock().unwrap().metrics);
    }

    pub(crate) fn set_key(&self, authorization: &str) {
        self.probes.lock().unwrap().key = Some(authorization.to_owned());
    }

    pub(crate) fn set_models(&self, body: &str) {
        self.probes.lock().unwrap().models = body.as_bytes().to_vec();
    }

    /// Closes the port and every connection: from now on the backend refuses.
    pub(crate) async fn refuse(self) -> String {
        let url = self.url();
        self.accepting.abort();
        drop(self.calls);
        // The task owns the listener; when it has ended the port is closed.
        drop(self.accepting.await);
        url
    }

    /// Answers every further request with `answer`, streamed when it is a stream, until dropped.
    pub(crate) fn answer_all(mut self, answer: Fixture) -> JoinHandle<()> {
        tokio::spawn(async move {
            let _listener = AbortOnDrop(self.accepting);
            while let Some(call) = self.calls.recv().await {
                let answer = answer.clone();
                tokio::spawn(async move { call.answer(&answer).await });
            }
        })
    }
}

impl Call {
    /// Answers with a recorded response; one that was chunked goes out frame by frame.
    pub(crate) async fn answer(self, answer: &Fixture) {
        if is_chunked(answer) {
            let mut stream = self.stream(answer).await;
            for frame in answer.frames() {
                stream.frame(&frame).await;
            }
            stream.end().await;
        } else {
            let mut connection = self.connection;
            connection.write(&head_of(answer)).await;
            connection.write(&answer.body).await;
            drop(self.give_back.send(connection));
        }
    }

    /// Writes `bytes`, whatever they are, and closes.
    pub(crate) async fn break_off_after(mut self, bytes: &[u8]) {
        self.connection.write(bytes).await;
    }

    /// Sends the head of `answer`; its body is the test's.
    pub(crate) async fn stream(self, answer: &Fixture) -> Streaming {
        let mut connection = self.connection;
        connection.write(&head_of(answer)).await;
        Streaming {
            connection,
            give_back: self.give_back,
        }
    }

    /// Returns when the gate has closed its end.
    pub(crate) async fn closed_by_peer(mut self) {
        within(self.connection.closed_by_peer()).await;
    }
}

impl Streaming {
    /// Writes one chunk.
    pub(crate) async fn frame(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.connection.write(&chunk).await;
    }

    /// Ends the body; the connection can carry another request.
    pub(crate) async fn end(mut self) {
        self.connection.write(b"0\r\n\r\n").await;
        drop(self.give_back.send(self.connection));
    }

    /// Returns when the gate has closed its end.
    pub(crate) async fn closed_by_peer(mut self) {
        within(self.connection.closed_by_peer()).await;
    }
}

impl Connection {
    /// A gate that left may make a write fail; the story notices by other means.
    async fn write(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes).await);
    }

    async fn closed_by_peer(&mut self) {
        let mut rest = [0; 1024];
        while matches!(self.socket.read(&mut rest).await, Ok(n) if n > 0) {}
    }

    /// Reads more into `pending`; false when the peer has closed.
    async fn fill(&mut self) -> bool {
        matches!(self.socket.read_buf(&mut self.pending).await, Ok(n) if n > 0)
    }

    /// The next request; `None` when the peer closed instead.
    async fn request(&mut self) -> Option<Request> {
        let end = loop {
            if let Some(at) = find(&self.pending, HEAD_END) {
                break at;
            }
            if !self.fill().await {
                return None;
            }
        };
        let head = String::from_utf8(self.pending[..end].to_vec()).unwrap();
        self.pending.drain(..end + HEAD_END.len());
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ').map(str::to_owned);
        let headers: Vec<_> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut request = Request {
            method: first.next()?,
            target: first.next()?,
            headers,
            body: Vec::new(),
            reused: self.served,
        };
        request.body = self.body(&request).await?;
        self.served += 1;
        Some(request)
    }

    async fn body(&mut self, request: &Request) -> Option<Vec<u8>> {
        if request.header("transfer-encoding") == Some("chunked") {
            return self.chunked().await;
        }
        let len = request.header("content-length").unwrap_or("0");
        self.take(len.parse().unwrap()).await
    }

    async fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        while self.pending.len() < len {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.pending.drain(..len).collect())
    }

    async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            while find(&self.pending, b"\r\n").is_none() {
                if !self.fill().await {
                    return None;
                }
            }
            let line_end = find(&self.pending, b"\r\n")?;
            let line = self.take(line_end + 2).await?;
            let size = String::from_utf8(line).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            body.extend(self.take(size).await?);
            self.take(2).await?;
            if size == 0 {
                return Some(body);
            }
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Nothing lingers: the peer learns at once that this backend is gone.
        drop(self.socket.set_nodelay(true));
    }
}

async fn accept(
    listener: TcpListener,
    probes: Arc<Mutex<Probes>>,
    calls: mpsc::UnboundedSender<Call>,
) {
    // A set, so that ending this task ends the connections with it.
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let connection = Connection {
            socket,
            pending: Vec::new(),
            served: 0,
        };
        connections.spawn(serve(connection, Arc::clone(&probes), calls.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    mut connection: Connection,
    probes: Arc<Mutex<Probes>>,
    calls: mpsc::UnboundedSender<Call>,
) {
    while let Some(request) = connection.request().await {
        let probe = probes.lock().unwrap().answer(&request);
        if let Some(answer) = probe {
            connection.write(&head_of(&answer)).await;
            connection.write(&answer.body).await;
            continue;
        }
        let (give_back, returned) = oneshot::channel();
        let call = Call {
            request,
            connection,
            give_back,
        };
        if calls.send(call).is_err() {
            return;
        }
        match returned.await {
            Ok(back) => connection = back,
            Err(_) => return,
        }
    }
}

impl Probes {
    fn answer(&mut self, request: &Request) -> Option<Fixture> {
        let (status, kind, body) = match request.target.as_str() {
            "/health" | "/metrics" if !self.healthy => (503, "text/plain", Vec::new()),
            "/metrics" if self.scrapes_are_calls => return None,
            "/metrics" if self.refused_scrapes > 0 => {
                self.refused_scrapes -= 1;
                (503, "text/plain", Vec::new())
            }
            "/health" => (200, "text/plain", Vec::new()),
            "/metrics" => (
                200,
                "text/plain; version=1.0.0; charset=utf-8",
                self.metrics.clone().into_bytes(),
            ),
            "/v1/models" if request.header("authorization") != self.key.as_deref() => (
                401,
                "application/json",
                br#"{"error":"Unauthorized"}"#.to_vec(),
            ),
            "/v1/models" => (200, "application/json", self.models.clone()),
            _ => return None,
        };
        let headers = [
            ("content-length", body.len().to_string()),
            ("content-type", kind.to_owned()),
        ];
        Some(Fixture {
            status,
            headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
            body,
        })
    }
}

fn is_chunked(answer: &Fixture) -> bool {
    let chunked =
        |(name, value): &(String, String)| name == "transfer-encoding" && value == "chunked";
    answer.headers.iter().any(chunked)
}

fn head_of(answer: &Fixture) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Recorded\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}
