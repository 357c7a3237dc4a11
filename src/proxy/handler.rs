//! One request through the gate: read, decide, forward, relay.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::Config;
use super::backend::Backend;
use super::body::{Relay, Stay, Watched};
use super::error::ProxyError;
use super::flight::Flight;
use super::forward::{self, Exchange};
use super::identity::Source;
use super::infer::Conversation;
use super::outgoing::{Outgoing, strip_hop_by_hop};
use super::request::{Api, RequestView};
use super::router::GateBody;
use super::routes::{Route, Way, endpoint, stand_in};
use super::state::Proxy;
use super::verdict::Admission;
use crate::policy::BackendId;
use crate::telemetry::observe::ResponseFacts;

/// Names the backend of a request that skips the policy.
pub const BACKEND_HEADER: &str = "x-kvgate-backend";

/// Forwards a request: through the policy if it generates tokens, else to any backend that is up.
pub async fn forward(proxy: Arc<Proxy>, request: Request<Incoming>) -> Response<GateBody> {
    let generates = request.method() == http::Method::POST;
    let api = Api::of_path(request.uri().path()).filter(|_| generates);
    let outcome = match api {
        Some((api, path)) => generate(Arc::clone(&proxy), api, path, request).await,
        None => pass(Arc::clone(&proxy), request).await,
    };
    outcome.unwrap_or_else(|error| {
        proxy.metrics.refused(error.code());
        error.to_response().map(GateBody::Full)
    })
}

/// A generation request: to the policy, or along its model's route.
async fn generate(
    proxy: Arc<Proxy>,
    api: Api,
    path: &'static str,
    request: Request<Incoming>,
) -> Result<Response<GateBody>, ProxyError> {
    let (parts, body) = request.into_parts();
    let body = read(body, &proxy.config).await?;
    let view = RequestView::parse(api, &parts.headers, &body, &proxy.config.identity)?;
    if view.model.is_none() && proxy.config.require_model {
        return Err(ProxyError::MissingModel);
    }
    let asked = Asked {
        path,
        parts,
        body,
        view,
    };
    let model = asked.view.model.as_deref();
    let Some(route) = model.and_then(|model| proxy.routes.find(model)).cloned() else {
        return schedule(proxy, asked, None).await;
    };
    match &route.way {
        Way::Scheduled => {
            let asked = asked.aliased(api, &route, &proxy.config.identity)?;
            schedule(proxy, asked, Some(&route)).await
        }
        Way::Endpoints(servers) => Ok(endpoint::ask(proxy, &route, servers, asked).await),
        Way::StandIn(stand_in) => Ok(stand_in::answer(proxy, &route, stand_in, asked).await),
    }
}

/// A generation request as it was read.
#[derive(Debug)]
pub struct Asked {
    /// Its path.
    pub path: &'static str,
    /// Its line and headers.
    pub parts: Parts,
    /// Its body.
    pub body: Bytes,
    /// What the gate reads of it.
    pub view: RequestView,
}

impl Asked {
    /// The same request for the model that `route` sends in place of the one asked for.
    fn aliased(self, api: Api, route: &Route, identity: &[Source]) -> Result<Self, ProxyError> {
        let body = route.rewritten(&self.body);
        let view = RequestView {
            model: self.view.model,
            ..RequestView::parse(api, &self.parts.headers, &body, identity)?
        };
        Ok(Self { body, view, ..self })
    }
}

/// The policy decides when and where the request runs.
async fn schedule(
    proxy: Arc<Proxy>,
    asked: Asked,
    route: Option<&Route>,
) -> Result<Response<GateBody>, ProxyError> {
    let Asked {
        path,
        mut parts,
        body,
        view,
    } = asked;
    let splice = view.splice.clone().filter(|_| proxy.config.ask_for_usage);
    let place = view.priority.filter(|_| proxy.config.forward_priority);
    let conversation = conversation(&proxy, path, &view, &body);
    let (mut flight, answer) = Flight::begin(
        Arc::clone(&proxy),
        view,
        conversation.as_ref(),
        path,
        body.len() as u64,
    );
    flight.took(route);
    drop(conversation);
    let served = async {
        let Admission {
            backend: id,
            priority,
        } = flight.admission(answer).await?;
        let ranked = place.zip(priority);
        let rank = ranked.and_then(|(place, priority)| place.put(priority, &mut parts.headers));
        let splices = [rank.as_ref(), splice.as_ref()];
        let outgoing = Outgoing::new(
            parts,
            &body,
            splices,
            &proxy.backend(id).upstream.host_header,
        );
        drop(body);
        exchange(&proxy, id, outgoing).await
    };
    match served.await {
        Ok(exchange) => {
            flight.head(exchange.response.status(), exchange.retries);
            let watched = Watched {
                stay: Stay::Step(flight),
                hide_usage: splice.is_some(),
            };
            Ok(relay(proxy, exchange, Some(watched)))
        }
        Err(error) => {
            flight.fail(&error, &ResponseFacts::default());
            Err(error)
        }
    }
}

/// What a program is inferred from, if this one is to be: a chat request that names none.
fn conversation(
    proxy: &Proxy,
    path: &str,
    view: &RequestView,
    body: &[u8],
) -> Option<Conversation> {
    let wanted =
        proxy.infers_programs() && view.program.is_none() && path == "/v1/chat/completions";
    let messages = view.messages.clone().filter(|_| wanted)?;
    let conversation = Conversation::read(view.model.as_deref().unwrap_or(""), &body[messages])?;
    let seed = view.seed.clone().map(|seed| &body[seed]);
    Some(conversation.with_seed(seed))
}

/// Any other request: to the backend it names, or to one that is up.
async fn pass(
    proxy: Arc<Proxy>,
    request: Request<Incoming>,
) -> Result<Response<GateBody>, ProxyError> {
    let (mut parts, body) = request.into_parts();
    if parts.method == http::Method::CONNECT {
        return Err(ProxyError::MethodNotAllowed(
            "the gate opens no tunnels; send requests with a path",
        ));
    }
    let id = choose(&proxy, &mut parts)?;
    let body = read(body, &proxy.config).await?;
    let outgoing = Outgoing::new(
        parts,
        &body,
        [None, None],
        &proxy.backend(id).upstream.host_header,
    );
    let exchange = exchange(&proxy, id, outgoing).await?;
    Ok(relay(proxy, exchange, None))
}

fn choose(proxy: &Proxy, parts: &mut Parts) -> Result<BackendId, ProxyError> {
    let Some(name) = parts.headers.remove(BACKEND_HEADER) else {
        let up = proxy.next_up(&parts.method);
        return up
            .map(|backend| backend.id)
            .ok_or_else(|| ProxyError::NoBackend {
                causes: proxy.causes(),
            });
    };
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    let url = name.trim_end_matches('/');
    if let Some(backend) = proxy.backends.iter().find(|backend| backend.name() == url) {
        return Ok(backend.id);
    }
    let known: Vec<String> = proxy.backends.iter().map(Backend::name).collect();
    Err(ProxyError::UnknownBackend {
        name,
        known: known.join(", "),
    })
}

/// Sends to a backend; one that refuses connections is taken down at once.
async fn exchange(
    proxy: &Proxy,
    id: BackendId,
    outgoing: Outgoing,
) -> Result<Exchange, ProxyError> {
    let backend = proxy.backend(id);
    let outcome = forward::send(&backend.upstream, outgoing, proxy.config.first_byte_timeout).await;
    if let Err(ProxyError::Connect {
        cause,
        refused: true,
        ..
    }) = &outcome
    {
        backend.refused(&proxy.gate, cause);
    }
    outcome
}

/// The server's response for the client: same status, headers and bytes, but for the connection's own headers.
pub(super) fn relay(
    proxy: Arc<Proxy>,
    exchange: Exchange,
    watched: Option<Watched>,
) -> Response<GateBody> {
    let (mut parts, incoming) = exchange.response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    // The version, too, is the connection's own: hyper answers each client in its own.
    parts.version = http::Version::HTTP_11;
    if watched.as_ref().is_some_and(|watched| watched.hide_usage) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let relay = Relay::new(
        proxy,
        &parts.headers,
        exchange.server,
        (incoming, exchange.connection),
        watched,
    );
    Response::from_parts(parts, GateBody::Relay(Box::new(relay)))
}

/// The most room made for a body before its bytes have come: a client may announce more than it sends.
const FIRST_ROOM: usize = 1 << 20;

/// The whole request body, at most `max_body` bytes, in pieces that come at most `client_idle` apart. One frame,
/// the usual case, is not copied.
async fn read(mut body: Incoming, config: &Config) -> Result<Bytes, ProxyError> {
    let (limit, patience) = (config.max_body, config.client_idle);
    let too_large = || ProxyError::BodyTooLarge { limit };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(too_large());
    }
    let Some(first) = next_chunk(&mut body, patience).await? else {
        return Ok(Bytes::new());
    };
    if first.len() > limit {
        return Err(too_large());
    }
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(announced.min(FIRST_ROOM).max(first.len()));
    whole.extend_from_slice(&first);
    while let Some(chunk) = next_chunk(&mut body, patience).await? {
        if whole.len() + chunk.len() > limit {
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

async fn next_chunk(body: &mut Incoming, patience: Duration) -> Result<Option<Bytes>, ProxyError> {
    loop {
        let frame = tokio::time::timeout(patience, body.frame());
        let frame = frame.await.map_err(|_| ProxyError::BodyStalled {
            seconds: patience.as_secs_f64(),
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| ProxyError::BodyBroken(forward::describe(&error)))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}
