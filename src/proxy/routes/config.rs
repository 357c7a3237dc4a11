//! What a route needs to know, checked. Where the values come from is [`crate::config`]'s affair.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::{HeaderValue, Uri};

use super::latency::Latency;
use super::pattern::Pattern;
use crate::telemetry::step::Role;

/// One route.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// The models that it is for; also its name in records and metrics.
    pub pattern: Pattern,
    /// Whose calls these are.
    pub role: Role,
    /// What `model` is replaced by on the way; `None` leaves it.
    pub model: Option<String>,
    /// Top-level fields of the body that do not go along.
    pub drop_fields: Vec<String>,
    /// Where its requests go.
    pub target: Target,
}

/// Where a route's requests go.
#[derive(Clone, Debug)]
pub enum Target {
    /// To other servers, past the policy.
    Endpoints(Endpoints),
    /// Nowhere: the gate answers.
    StandIn(StandIn),
    /// To the gate's backends, through the policy, as if the client had asked for the other model.
    Scheduled,
}

/// OpenAI-compatible servers that serve one model.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Where they are, at least one.
    pub urls: Vec<EndpointUrl>,
    /// What they are told in place of the client's `Authorization`; `None` leaves it.
    pub key: Option<ApiKey>,
    /// A PEM file with certificates that are trusted beside the public ones.
    pub ca_file: Option<PathBuf>,
}

/// A secret from the environment. Neither its `Debug` nor any message shows it.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// The environment variable it came from.
    pub variable: String,
    bearer: HeaderValue,
}

impl ApiKey {
    /// The key in `variable`; `None` if no header can carry it.
    pub fn new(variable: String, key: &str) -> Option<Self> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
        bearer.set_sensitive(true);
        (!key.is_empty()).then_some(Self { variable, bearer })
    }

    /// The value of `Authorization`.
    pub const fn bearer(&self) -> &HeaderValue {
        &self.bearer
    }
}

/// A fixed answer after a drawn latency.
#[derive(Clone, Debug, PartialEq)]
pub struct StandIn {
    /// How long it takes.
    pub latency: Latency,
    /// Another seed draws other latencies.
    pub seed: u64,
    /// What it says.
    pub text: String,
    /// After this many turns of its own it says [`super::latency::STOP`] instead.
    pub stop_after: Option<u32>,
}

/// Base URL of an OpenAI-compatible API, as its clients take it: `https://api.openai.com/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUrl {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Its host, without a port.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What requests carry as `Host`.
    pub host_header: HeaderValue,
    /// Path without a slash at its end; empty at a server's root.
    base: String,
}

/// A URL that cannot be used. It is not repeated: it may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EndpointUrlError(&'static str);

impl FromStr for EndpointUrl {
    type Err = EndpointUrlError;

    fn from_str(url: &str) -> Result<Self, EndpointUrlError> {
        const FORM: EndpointUrlError =
            EndpointUrlError("it is no URL; write http://HOST:PORT/v1 or https://HOST/v1");
        let uri: Uri = url.parse().map_err(|_| FORM)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(FORM),
        };
        let authority = uri.authority().ok_or(FORM)?;
        if authority.as_str().contains('@') {
            return Err(EndpointUrlError(
                "it holds a user or a key; name the key's variable in api_key_env",
            ));
        }
        if uri.query().is_some() {
            return Err(EndpointUrlError(
                "it has a query; leave away what follows the `?`",
            ));
        }
        let base = uri.path().trim_end_matches('/');
        if base.ends_with("/completions") {
            return Err(EndpointUrlError(
                "it is that of one call; write the base URL, up to /v1",
            ));
        }
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            host_header: authority.as_str().parse().map_err(|_| FORM)?,
            base: base.to_owned(),
        })
    }
}

impl EndpointUrl {
    /// `host:port`, to connect to.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The path of a request that came for `path`: below the base URL, of which the client's `/v1` is a part.
    pub fn path(&self, path: &str) -> String {
        let below = path.strip_prefix("/v1").filter(|_| !self.base.is_empty());
        format!("{}{}", self.base, below.unwrap_or(path))
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let host = String::from_utf8_lossy(self.host_header.as_bytes());
        write!(f, "{scheme}://{host}{}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_what_openai_clients_take_or_a_servers_root() {
        for (url, address, path) in [
            (
                "https://api.openai.com/v1",
                "api.openai.com:443",
                "/v1/chat/completions",
            ),
            (
                "https://api.openai.com/v1/",
                "api.openai.com:443",
                "/v1/chat/completions",
            ),
            (
                "http://127.0.0.1:1910",
                "127.0.0.1:1910",
                "/v1/chat/completions",
            ),
            ("http://host/api/v1", "host:80", "/api/v1/chat/completions"),
            ("http://[::1]:9/x", "[::1]:9", "/x/chat/completions"),
        ] {
            let parsed: EndpointUrl = url.parse().unwrap();
            assert_eq!(parsed.address(), address);
            assert_eq!(parsed.path("/v1/chat/completions"), path);
            assert_eq!(parsed.to_string(), url.trim_end_matches('/'));
        }
    }

    #[test]
    fn a_url_that_cannot_work_says_what_to_write_and_shows_no_secret() {
        for (url, remedy) in [
            ("api.openai.com", "https://HOST/v1"),
            ("ftp://host", "https://HOST/v1"),
            ("https://sk-secret@host/v1", "api_key_env"),
            ("https://host/v1?key=sk-secret", "query"),
            ("https://host/v1/chat/completions", "base URL"),
        ] {
            let error = url.parse::<EndpointUrl>().unwrap_err().to_string();
            assert!(error.contains(remedy), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = ApiKey::new("OPENAI_API_KEY".to_owned(), "sk-secret").unwrap();
        assert_eq!(key.bearer(), "Bearer sk-secret");
        let shown = format!("{key:?}");
        assert!(shown.contains("OPENAI_API_KEY") && !shown.contains("secret"));
        for unusable in ["", "two\nlines"] {
            assert!(ApiKey::new("K".to_owned(), unusable).is_none());
        }
    }
}
