//! Every error a client can get, with its status, its code and what to do about it.
//!
//! Errors of the backend are not made here: its status and body pass through untouched.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::request::ViewError;
use super::scan::ScanError;
use super::verdict::Refusal;
use crate::policy::RejectReason;

/// Seconds after which a refused client should try again.
const RETRY_AFTER_S: &str = "1";

/// Why the gate, and not the backend, answers a request.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The client's body cannot be read as a request.
    #[error("{0}; send one JSON object as the request body")]
    BadBody(#[from] ViewError),
    /// A generation request without a model.
    #[error("the request names no model; set \"model\" to one of those that GET /v1/models lists")]
    MissingModel,
    /// The body is larger than `--max-body`.
    #[error("the request body is larger than {limit} bytes; shorten it, or raise --max-body")]
    BodyTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The client's body broke off.
    #[error("the request body broke off: {0}")]
    BodyBroken(String),
    /// The client stopped sending its body.
    #[error(
        "no more of the request body came for {seconds} s; send it again, or raise --client-idle"
    )]
    BodyStalled {
        /// The limit.
        seconds: f64,
    },
    /// A stand-in is asked for something that it has no answer to.
    #[error(
        "route {route:?} is a stand-in, which knows POST /v1/chat/completions only; send that, or give the route urls"
    )]
    StandInPath {
        /// The route.
        route: String,
    },
    /// A field that one of the gate's own endpoints needs is missing.
    #[error("{0}")]
    MissingField(&'static str),
    /// `X-Kvgate-Backend` names a backend that is not configured.
    #[error("there is no backend {name:?}; configured are: {known}")]
    UnknownBackend {
        /// What the client asked for.
        name: String,
        /// The configured URLs.
        known: String,
    },
    /// Nothing is known of this program.
    #[error(
        "there is no program {name:?} here, and none of its steps was among the last; GET /programs lists those that are"
    )]
    UnknownProgram {
        /// What was asked for.
        name: String,
    },
    /// The policy cannot be changed to that.
    #[error("the policy stays as it is: {0}; send {{\"policy\": NAME, \"settings\": {{…}}}}")]
    BadPolicy(String),
    /// The secret is missing or wrong.
    #[error(
        "this needs the gate's admin token; send Authorization: Bearer and the value of --admin-token"
    )]
    Unauthorized,
    /// The gate itself has no such method on this path.
    #[error("{0}")]
    MethodNotAllowed(&'static str),
    /// The policy holds as many requests as it may.
    #[error(
        "too many requests are waiting at the gate; try again later, or raise the policy's max_held"
    )]
    QueueFull,
    /// No backend is up.
    #[error("no backend is available ({causes}); check that vLLM runs at the --backend address")]
    NoBackend {
        /// Why each backend is down.
        causes: String,
    },
    /// The gate is shutting down.
    #[error("the gate is shutting down; send the request to another instance, or try again later")]
    Draining,
    /// The backend could not be reached.
    #[error("cannot connect to {server}: {cause}; check that it runs there")]
    Connect {
        /// [`super::upstream::Upstream::title`].
        server: String,
        /// What the operating system said.
        cause: String,
        /// Whether nobody listens there. A time-out, or a lack of descriptors or ports here, says nothing of that.
        refused: bool,
    },
    /// The backend closed the connection before it answered.
    #[error(
        "{server} closed the connection before it answered: {cause}; it may have crashed, see its log"
    )]
    Closed {
        /// [`super::upstream::Upstream::title`].
        server: String,
        /// What the transport said.
        cause: String,
    },
    /// The backend did not begin to answer in time.
    #[error(
        "{server} sent no response within {seconds} s; it may be stuck, see its log, or raise --first-byte-timeout"
    )]
    FirstByteTimeout {
        /// [`super::upstream::Upstream::title`].
        server: String,
        /// The limit.
        seconds: f64,
    },
    /// The backend stopped in the middle of a response.
    #[error(
        "{server} sent nothing for {seconds} s in the middle of a response; it may be stuck, see its log, or raise --idle-timeout"
    )]
    Stalled {
        /// [`super::upstream::Upstream::title`].
        server: String,
        /// The limit.
        seconds: f64,
    },
    /// The backend died in the middle of a response.
    #[error(
        "{server} closed the connection in the middle of a response: {cause}; it may have crashed, see its log"
    )]
    DiedMidStream {
        /// [`super::upstream::Upstream::title`].
        server: String,
        /// What the transport said.
        cause: String,
    },
}

/// Status, error type and code of an error: the one place that maps them.
struct Shape {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl ProxyError {
    /// A request the sequencer refused; `causes` says why the backends are down.
    pub fn refused(refusal: Refusal, causes: impl FnOnce() -> String) -> Self {
        match refusal {
            Refusal::Policy(RejectReason::QueueFull) => Self::QueueFull,
            Refusal::Policy(RejectReason::NoBackend) => Self::NoBackend { causes: causes() },
            Refusal::Draining => Self::Draining,
        }
    }

    fn shape(&self) -> Shape {
        let client = |status, code, param| Shape {
            status,
            kind: "invalid_request_error",
            code,
            param,
        };
        let server = |status, code| Shape {
            status,
            kind: "server_error",
            code,
            param: None,
        };
        let backend = |status, code| Shape {
            status,
            kind: "upstream_error",
            code,
            param: None,
        };
        match self {
            Self::BadBody(ViewError::Scan(ScanError::NotAnObject)) => {
                client(StatusCode::BAD_REQUEST, "body_not_an_object", None)
            }
            Self::BadBody(ViewError::Scan(_)) => {
                client(StatusCode::BAD_REQUEST, "invalid_json", None)
            }
            Self::BadBody(ViewError::NameTooLong(_)) => client(
                StatusCode::BAD_REQUEST,
                "program_id_too_long",
                Some("program_id"),
            ),
            Self::MissingModel => client(StatusCode::BAD_REQUEST, "missing_model", Some("model")),
            Self::BodyTooLarge { .. } => {
                client(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None)
            }
            Self::BodyBroken(_) => client(StatusCode::BAD_REQUEST, "body_broken", None),
            Self::BodyStalled { .. } => client(StatusCode::REQUEST_TIMEOUT, "body_stalled", None),
            Self::UnknownProgram { .. } => client(StatusCode::NOT_FOUND, "unknown_program", None),
            Self::BadPolicy(_) => client(StatusCode::BAD_REQUEST, "bad_policy", Some("policy")),
            Self::Unauthorized => client(StatusCode::UNAUTHORIZED, "unauthorized", None),
            Self::StandInPath { .. } => client(StatusCode::BAD_REQUEST, "stand_in_path", None),
            Self::MissingField(_) => client(StatusCode::BAD_REQUEST, "missing_field", None),
            Self::UnknownBackend { .. } => client(StatusCode::BAD_REQUEST, "unknown_backend", None),
            Self::MethodNotAllowed(_) => {
                client(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None)
            }
            Self::QueueFull => Shape {
                status: StatusCode::TOO_MANY_REQUESTS,
                kind: "rate_limit_error",
                code: RejectReason::QueueFull.as_str(),
                param: None,
            },
            Self::NoBackend { .. } => server(
                StatusCode::SERVICE_UNAVAILABLE,
                RejectReason::NoBackend.as_str(),
            ),
            Self::Draining => server(StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::Connect { .. } => backend(StatusCode::BAD_GATEWAY, "backend_unreachable"),
            Self::Closed { .. } => backend(StatusCode::BAD_GATEWAY, "backend_closed"),
            Self::FirstByteTimeout { .. } => {
                backend(StatusCode::GATEWAY_TIMEOUT, "backend_timeout")
            }
            Self::Stalled { .. } => backend(StatusCode::GATEWAY_TIMEOUT, "backend_stalled"),
            Self::DiedMidStream { .. } => backend(StatusCode::BAD_GATEWAY, "backend_died"),
        }
    }

    /// The HTTP status the client gets, where none was sent yet.
    pub fn status(&self) -> StatusCode {
        self.shape().status
    }

    /// The word for records and metric labels.
    pub fn code(&self) -> &'static str {
        self.shape().code
    }

    /// The error as OpenAI clients expect it.
    pub fn to_json(&self) -> String {
        let Shape {
            kind, code, param, ..
        } = self.shape();
        let message = self.to_string();
        let envelope = Envelope {
            error: Body {
                message: &message,
                r#type: kind,
                param,
                code,
            },
        };
        // Strings always serialise.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// The error as the last event of a stream that has already begun. No `[DONE]` follows: a client must not
    /// take the stream for complete.
    pub fn to_event(&self) -> Bytes {
        Bytes::from(format!("data: {}\n\n", self.to_json()))
    }

    /// The error as a response.
    pub fn to_response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.to_json()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if matches!(
            self,
            Self::QueueFull | Self::Draining | Self::NoBackend { .. }
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_shape_openai_clients_parse() {
        let error = ProxyError::MissingModel;
        let json: serde_json::Value = serde_json::from_str(&error.to_json()).unwrap();
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(json["error"]["param"], "model");
        assert_eq!(json["error"]["code"], "missing_model");
        assert!(
            json["error"]["message"]
                .as_str()
                .unwrap()
                .contains("GET /v1/models")
        );
    }

    #[test]
    fn a_refusal_that_passes_says_when_to_come_back() {
        let response = ProxyError::refused(Refusal::Policy(RejectReason::QueueFull), String::new)
            .to_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], RETRY_AFTER_S);
        let down = ProxyError::refused(Refusal::Policy(RejectReason::NoBackend), || {
            "http://b: refused".to_owned()
        });
        assert!(down.to_string().contains("http://b: refused"));
    }
}
