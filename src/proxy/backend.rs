//! The backends: where they are, whether they answer, and what their last scrape said.
//!
//! A task per backend probes it: scrapes `/metrics` and tells the gate. A refused connection takes a backend down
//! at once; anything softer (a slow or failing scrape) only after [`FAILURES_TO_DOWN`] in a row, since vLLM's
//! metrics can take seconds under load.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;

use super::error::ProxyError;
use super::forward::{self, Exchange};
use super::gate::Gate;
use super::outgoing::Outgoing;
use super::pool::{Pool, PoolConfig};
use super::upstream::Upstream;
use crate::policy::BackendId;
use crate::telemetry::scrape::Scrape;

/// Failed scrapes in a row after which a backend counts as down.
pub const FAILURES_TO_DOWN: u32 = 3;

/// How long a scrape may take.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest `/metrics` page read, in bytes; a larger one counts as a failed scrape.
const MAX_SCRAPE_BYTES: usize = 16 << 20;

/// Root URL of a vLLM server: `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendUrl {
    authority: String,
    host_header: HeaderValue,
}

/// A backend URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a backend address: {problem}; write http://HOST:PORT")]
pub struct BackendUrlError {
    url: String,
    problem: &'static str,
}

impl BackendUrl {
    /// `host:port`, to connect to.
    fn address(&self) -> String {
        let has_port = self
            .authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port {
            self.authority.clone()
        } else {
            format!("{}:80", self.authority)
        }
    }

    /// The port, as samples are labelled.
    pub fn port(&self) -> u16 {
        self.authority
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or(80)
    }
}

impl FromStr for BackendUrl {
    type Err = BackendUrlError;

    fn from_str(url: &str) -> Result<Self, BackendUrlError> {
        let wrong = |problem| BackendUrlError {
            url: url.to_owned(),
            problem,
        };
        let uri: http::Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(wrong("TLS to a backend is not spoken here")),
            _ => return Err(wrong("it does not begin with http://")),
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong(
                "it has a path, and the gate forwards every path under the server's root",
            ));
        }
        let authority = uri
            .authority()
            .ok_or_else(|| wrong("it names no host"))?
            .to_string();
        let host_header = authority
            .parse()
            .map_err(|_| wrong("its host cannot be sent in a header"))?;
        Ok(Self {
            authority,
            host_header,
        })
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// What is known of a backend now.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether requests are sent to it.
    pub up: bool,
    /// Why it is down.
    pub cause: String,
    /// Its last successful scrape, as text; shared, so that `/metrics` need not copy it.
    pub metrics: Option<Arc<str>>,
    /// The same, parsed.
    pub scrape: Option<Arc<Scrape>>,
    /// Failed scrapes since the last good one.
    pub failures: u32,
}

/// One vLLM server.
#[derive(Debug)]
pub struct Backend {
    /// Its place in the configuration.
    pub id: BackendId,
    /// Where it is.
    pub url: BackendUrl,
    /// Connections to it.
    pub upstream: Arc<Upstream>,
    status: Mutex<Status>,
}

/// How the gate connects to its backends.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long a connection may idle and still be used.
    pub idle: Duration,
}

impl Backend {
    /// A backend that is down until its first scrape.
    pub fn new(id: BackendId, url: BackendUrl, patience: Patience) -> Self {
        let config = PoolConfig {
            address: url.address(),
            idle_timeout: patience.idle,
            connect_timeout: patience.connect,
            tls: None,
        };
        let upstream = Upstream {
            title: format!("backend {url}"),
            host_header: url.host_header.clone(),
            pool: Pool::new(config),
        };
        let status = Status {
            cause: "not reached yet".to_owned(),
            ..Status::default()
        };
        Self {
            id,
            url,
            upstream: Arc::new(upstream),
            status: Mutex::new(status),
        }
    }

    /// The URL, as records and errors name the backend.
    pub fn name(&self) -> String {
        self.url.to_string()
    }

    /// What is known of it now.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// Whether requests are sent to it.
    pub fn is_up(&self) -> bool {
        self.status.lock().up
    }

    /// Takes the backend down at once: a connection to it was refused.
    ///
    /// The gate is told under the status' lock, here and in `scraped`, so that it hears of changes in
    /// the order in which they were made. Nobody takes the two locks the other way round.
    pub fn refused(&self, gate: &Gate, cause: &str) {
        let mut status = self.status.lock();
        cause.clone_into(&mut status.cause);
        if std::mem::replace(&mut status.up, false) {
            gate.with(|sequencer, now| sequencer.backend_down(now, self.id));
        }
    }

    /// Scrapes once and tells the gate what changed; false if the scrape failed.
    pub async fn probe(&self, gate: &Gate) -> bool {
        self.upstream.pool.reap();
        match self.scrape().await {
            Ok((text, scrape)) => {
                self.scraped(gate, text, scrape);
                true
            }
            Err(error) => {
                self.failed(gate, &error);
                false
            }
        }
    }

    fn scraped(&self, gate: &Gate, text: Arc<str>, scrape: Scrape) {
        let sample = scrape.sample(self.id);
        let capacity = scrape.kv_capacity;
        let mut status = self.status.lock();
        let before = status.scrape.as_ref().map(|scrape| scrape.kv_capacity);
        let changed = !status.up || before != Some(capacity);
        *status = Status {
            up: true,
            cause: String::new(),
            metrics: Some(text),
            scrape: Some(Arc::new(scrape)),
            failures: 0,
        };
        gate.with(|sequencer, now| {
            if changed {
                sequencer.backend_up(now, self.id, capacity);
            }
            sequencer.sample(now, sample);
        });
    }

    fn failed(&self, gate: &Gate, error: &ProxyError) {
        let hard = matches!(error, ProxyError::Connect { refused: true, .. });
        let down = {
            let mut status = self.status.lock();
            status.failures += 1;
            if !status.up {
                status.cause = error.to_string();
            }
            hard || status.failures >= FAILURES_TO_DOWN
        };
        if down {
            self.refused(gate, &error.to_string());
        }
    }

    async fn scrape(&self) -> Result<(Arc<str>, Scrape), ProxyError> {
        let (status, body) = self
            .get("/metrics", HeaderMap::new(), SCRAPE_TIMEOUT)
            .await?;
        let text = match status.as_u16() {
            200 => String::from_utf8_lossy(&body).into(),
            // A server without metrics, or with metrics that are not for us, is still a server.
            401 | 403 | 404 | 405 | 501 => Arc::from(""),
            code => {
                let cause = format!("/metrics answered with status {code}");
                return Err(ProxyError::Closed {
                    server: self.upstream.title.clone(),
                    cause,
                });
            }
        };
        let scrape = Scrape::parse(&text);
        Ok((text, scrape))
    }

    /// A request of the gate's own, answered whole.
    ///
    /// # Errors
    /// As [`forward::send`], and [`ProxyError::DiedMidStream`] or [`ProxyError::Stalled`] for the body.
    pub async fn get(
        &self,
        path: &'static str,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<(http::StatusCode, Bytes), ProxyError> {
        let outgoing = Outgoing::get(path, headers, &self.upstream.host_header);
        let Exchange {
            response,
            connection,
            ..
        } = forward::send(&self.upstream, outgoing, limit).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_SCRAPE_BYTES).collect();
        match tokio::time::timeout(limit, body).await {
            Ok(Ok(body)) => {
                self.upstream.pool.give_back(connection);
                Ok((status, body.to_bytes()))
            }
            Ok(Err(error)) => Err(ProxyError::DiedMidStream {
                server: self.upstream.title.clone(),
                cause: error.to_string(),
            }),
            Err(_) => Err(ProxyError::Stalled {
                server: self.upstream.title.clone(),
                seconds: limit.as_secs_f64(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_servers_root() {
        let url: BackendUrl = "http://127.0.0.1:8000/".parse().unwrap();
        assert_eq!(url.to_string(), "http://127.0.0.1:8000");
        assert_eq!(
            (url.address().as_str(), url.port()),
            ("127.0.0.1:8000", 8000)
        );
        assert_eq!(
            "http://gpu-box".parse::<BackendUrl>().unwrap().address(),
            "gpu-box:80"
        );
    }

    #[test]
    fn an_address_that_cannot_work_says_what_to_write() {
        for (url, problem) in [
            ("127.0.0.1:8000", "http://HOST:PORT"),
            ("https://host", "TLS"),
            ("http://host:8000/v1", "path"),
            ("nonsense", "http://HOST:PORT"),
        ] {
            let error = url.parse::<BackendUrl>().unwrap_err().to_string();
            assert!(error.contains(problem), "{url}: {error}");
        }
    }
}
