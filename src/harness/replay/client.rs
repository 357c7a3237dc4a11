//! HTTP to the gate (or to any OpenAI-compatible server): one attempt of a step, the model list, the release.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::header::{self, HeaderValue};
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;

use super::reply::{Assembler, Reply, parse_whole};
use crate::clock::Clock;
use crate::policy::Time;

/// Kept-alive connections are given up after this idle time, below vLLM's own 5 s.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Most characters of an error body that are kept as the cause.
const CAUSE_CHARS: usize = 300;
/// Where gates of other makes, which do not read the body's `program_id`, find the program.
const SESSION: &str = "x-session-id";

/// Sends steps to one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    clock: Clock,
    timeout: Duration,
}

/// A step that was served, and when.
#[derive(Debug)]
pub struct Served {
    /// The reply.
    pub reply: Reply,
    /// The response's head came.
    pub first_byte: Time,
    /// The first frame with content came; for a reply in one piece, its end.
    pub first_token: Time,
}

/// A step that was not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    /// HTTP status; 0 if none came.
    pub status: u16,
    /// What happened, in words.
    pub cause: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

/// The body of `GET /v1/models`.
#[derive(Debug, Deserialize)]
pub struct Models {
    /// The models that are served.
    pub data: Vec<Model>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// The most tokens of a request, prompt and output together; vLLM says it, others may not.
    #[serde(default)]
    pub max_model_len: Option<u64>,
}

impl Client {
    /// A client of the server at `url` (scheme, host and port); each request may take `timeout` of the run.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(url: &str, clock: Clock, timeout: Duration) -> anyhow::Result<Self> {
        ensure!(
            url.starts_with("http://"),
            "--url {url:?} must be http://HOST:PORT"
        );
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .pool_idle_timeout(POOL_IDLE)
            .build()?;
        Ok(Self {
            http,
            base: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
            clock,
            timeout: clock.machine(timeout),
        })
    }

    /// The models that the server lists.
    ///
    /// # Errors
    /// When the server cannot be reached or has no list.
    pub async fn models(&self) -> anyhow::Result<Vec<Model>> {
        let url = format!("{}/v1/models", self.base);
        let response = self.http.get(&url).timeout(Duration::from_secs(10)).send();
        let response = response
            .await
            .with_context(|| format!("cannot reach {url}"))?;
        let models: Models = response
            .error_for_status()
            .with_context(|| format!("no models from {url}"))?
            .json()
            .await
            .with_context(|| format!("no model list from {url}"))?;
        Ok(models.data)
    }

    /// The first model that the server lists, with what it says of it.
    ///
    /// # Errors
    /// As [`Self::models`], and when the list is empty.
    pub async fn first_model(&self) -> anyhow::Result<Model> {
        let first = self.models().await?.into_iter().next();
        first.with_context(|| {
            format!(
                "{}/v1/models lists no models; name one with --model",
                self.base
            )
        })
    }

    /// The server's metrics, as text.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let url = format!("{}/metrics", self.base);
        let response = self.http.get(&url).timeout(Duration::from_secs(10)).send();
        let response = response
            .await
            .with_context(|| format!("cannot reach {url}"))?;
        let response = response.error_for_status();
        let text = response
            .with_context(|| format!("no metrics from {url}"))?
            .text();
        text.await.with_context(|| format!("no metrics from {url}"))
    }

    /// Sends one chat completion, of `program` if it is one's, and reads the reply to its end.
    ///
    /// # Errors
    /// [`StepError`] for anything but a complete reply.
    pub async fn step(
        &self,
        program: Option<&str>,
        body: Bytes,
        stream: bool,
    ) -> Result<Served, StepError> {
        let post = self.http.post(format!("{}/v1/chat/completions", self.base));
        let response = named(post, program)
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(self.timeout)
            .body(body)
            .send()
            .await
            .map_err(|error| StepError::lost(0, &error))?;
        let status = response.status();
        let first_byte = self.clock.now();
        if status != StatusCode::OK {
            let body = response.text().await.unwrap_or_default();
            return Err(StepError::refused(status, &body));
        }
        if stream {
            return self.read_stream(response, first_byte).await;
        }
        let bytes = response.bytes().await;
        let bytes = bytes.map_err(|error| StepError::lost(200, &error))?;
        Ok(Served {
            reply: parse_whole(&bytes).map_err(StepError::garbled)?,
            first_byte,
            first_token: self.clock.now(),
        })
    }

    async fn read_stream(
        &self,
        response: reqwest::Response,
        first_byte: Time,
    ) -> Result<Served, StepError> {
        let mut chunks = response.bytes_stream();
        let mut assembler = Assembler::default();
        let mut first_token = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| StepError::lost(200, &error))?;
            assembler.feed(&chunk).map_err(StepError::garbled)?;
            if first_token.is_none() && assembler.has_content() {
                first_token = Some(self.clock.now());
            }
        }
        Ok(Served {
            reply: assembler.finish().map_err(StepError::garbled)?,
            first_byte,
            first_token: first_token.unwrap_or_else(|| self.clock.now()),
        })
    }

    /// Tells the gate that a program is over: `POST /programs/release`, and where that is not found, vllm-router's
    /// `POST /finish_session`. A server without programs answers 404 to both, which is as good.
    ///
    /// # Errors
    /// In words, when the server cannot be reached or fails.
    pub async fn release(&self, program: &str) -> Result<(), String> {
        let release = self
            .http
            .post(format!("{}/programs/release", self.base))
            .json(&serde_json::json!({ "program_id": program }));
        if told(release).await? {
            return Ok(());
        }
        let finish = self
            .http
            .post(format!("{}/finish_session", self.base))
            .query(&[("session_id", program)]);
        told(finish).await.map(|_| ())
    }
}

/// Names the program in a header, where it can stand in one.
fn named(request: RequestBuilder, program: Option<&str>) -> RequestBuilder {
    match program.map(HeaderValue::from_str) {
        Some(Ok(name)) => request.header(SESSION, name),
        Some(Err(_)) | None => request,
    }
}

/// Whether a server took what it was told; `false` if it has no such endpoint.
async fn told(request: RequestBuilder) -> Result<bool, String> {
    let sent = request.timeout(Duration::from_secs(10)).send().await;
    match sent.map(|response| response.status()) {
        Ok(status) if status.is_success() => Ok(true),
        Ok(StatusCode::NOT_FOUND) => Ok(false),
        Ok(status) => Err(format!("release answered {status}")),
        Err(error) => Err(root_cause(&error)),
    }
}

impl StepError {
    /// The connection failed, or time ran out.
    fn lost(status: u16, error: &reqwest::Error) -> Self {
        Self {
            status,
            cause: root_cause(error),
            retryable: true,
        }
    }

    /// The server answered with an error.
    fn refused(status: StatusCode, body: &str) -> Self {
        let cause: String = body.trim().chars().take(CAUSE_CHARS).collect();
        Self {
            status: status.as_u16(),
            cause: format!("{status}: {cause}"),
            retryable: status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The reply is incomplete or no reply.
    const fn garbled(cause: String) -> Self {
        Self {
            status: 200,
            cause,
            retryable: true,
        }
    }
}

/// The innermost cause of an error, which names what the outer ones only wrap.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no reply within --timeout-s".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
