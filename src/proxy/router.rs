//! Which paths the gate answers itself; everything else is forwarded.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::ServiceExt;

use super::body::Relay;
use super::error::ProxyError;
use super::state::Proxy;
use super::{control, endpoints, handler};

/// Paths of the gate's own. To add an endpoint, add its path here and its handler in [`router`].
const OWN_PATHS: [&str; 8] = [
    "/health",
    "/metrics",
    "/v1/models",
    "/programs",
    "/programs/release",
    "/finish_session",
    "/backends",
    "/policy",
];

/// Everything below it is the gate's own: one program each.
const PROGRAMS: &str = "/programs/";

/// The body of any response of the gate.
#[derive(Debug)]
pub enum GateBody {
    /// A backend's response on its way.
    Relay(Box<Relay>),
    /// An error of the gate.
    Full(Full<Bytes>),
    /// An answer of the gate's own endpoints.
    Own(axum::body::Body),
}

impl Body for GateBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Relay(relay) => Pin::new(relay.as_mut()).poll_frame(cx).map_err(Into::into),
            Self::Full(full) => Pin::new(full).poll_frame(cx).map_err(Into::into),
            Self::Own(own) => Pin::new(own).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relay(relay) => relay.is_end_stream(),
            Self::Full(full) => full.is_end_stream(),
            Self::Own(own) => own.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relay(relay) => relay.size_hint(),
            Self::Full(full) => full.size_hint(),
            Self::Own(own) => own.size_hint(),
        }
    }
}

/// The gate's own endpoints.
pub fn router(proxy: Arc<Proxy>) -> Router {
    Router::new()
        .route("/health", get(endpoints::health))
        .route("/metrics", get(endpoints::metrics))
        .route("/v1/models", get(endpoints::models))
        .route("/programs", get(endpoints::programs))
        .route("/programs/release", post(endpoints::release))
        .route("/finish_session", post(endpoints::finish_session))
        .route("/backends", get(endpoints::backends))
        .route("/policy", get(control::show).put(control::switch))
        .route("/programs/{*name}", get(control::program))
        .method_not_allowed_fallback(endpoints::method_not_allowed)
        .with_state(proxy)
}

/// Answers one request. Generation requests skip the router: theirs is the hot path.
///
/// # Errors
/// Never: every failure is a response.
pub async fn serve(
    proxy: Arc<Proxy>,
    own: Router,
    request: Request<Incoming>,
) -> Result<Response<GateBody>, Infallible> {
    let path = request.uri().path();
    let is_own = OWN_PATHS.contains(&path) || path.starts_with(PROGRAMS);
    // A browser's preflight is for the backend to answer.
    if is_own && request.method() != Method::OPTIONS {
        let patience = proxy.config.client_idle;
        let answer = own.oneshot(request.map(axum::body::Body::new));
        let Ok(response) = tokio::time::timeout(patience, answer).await else {
            let seconds = patience.as_secs_f64();
            let stalled = ProxyError::BodyStalled { seconds };
            return Ok(stalled.to_response().map(GateBody::Full));
        };
        return Ok(response?.map(GateBody::Own));
    }
    Ok(handler::forward(proxy, request).await)
}
