//! Sends one request to one of its route's endpoints.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, Uri, header};

use super::call::Call;
use super::table::{Endpoint, Route, Servers};
use crate::proxy::body::{Stay, Watched};
use crate::proxy::error::ProxyError;
use crate::proxy::forward::{self, Exchange};
use crate::proxy::handler::{Asked, relay};
use crate::proxy::outgoing::Outgoing;
use crate::proxy::router::GateBody;
use crate::proxy::state::Proxy;

/// The answer of an endpoint, untouched, or an error of the gate's.
pub async fn ask(
    proxy: Arc<Proxy>,
    route: &Arc<Route>,
    servers: &Servers,
    asked: Asked,
) -> Response<GateBody> {
    let body = route.rewritten(&asked.body);
    let mut call = Call::begin(Arc::clone(&proxy), Arc::clone(route), &asked);
    match send(&proxy, &mut call, servers, asked.parts, &body).await {
        Ok(exchange) => {
            call.head(exchange.response.status(), exchange.retries);
            let watched = Watched {
                stay: Stay::Call(call),
                hide_usage: false,
            };
            relay(proxy, exchange, Some(watched))
        }
        Err(error) => call.refuse(&error),
    }
}

/// Sends to the endpoint whose turn it is; to the next one if it cannot be connected to.
async fn send(
    proxy: &Proxy,
    call: &mut Call,
    servers: &Servers,
    parts: Parts,
    body: &Bytes,
) -> Result<Exchange, ProxyError> {
    let now = || proxy.gate.clock().now();
    let parts = prepared(parts, servers.bearer.as_ref());
    let mut tried = Vec::new();
    let mut failure = ProxyError::NoBackend {
        causes: "the route has no endpoint".to_owned(),
    };
    while let Some(seat) = servers.balance.seat(now(), &tried) {
        let number = seat.endpoint;
        let endpoint = &servers.endpoints[number];
        call.sent(endpoint.url.to_string(), seat);
        // Backends' pools are looked after by their probes, of which an endpoint has none.
        endpoint.upstream.pool.reap();
        let outgoing = outgoing(parts.clone(), body, endpoint);
        let limit = proxy.config.first_byte_timeout;
        match forward::send(&endpoint.upstream, outgoing, limit).await {
            Err(error @ ProxyError::Connect { .. }) => {
                servers.balance.rest(now(), number);
                tried.push(number);
                failure = error;
            }
            outcome => return outcome,
        }
    }
    Err(failure)
}

/// The client's headers as any endpoint gets them.
fn prepared(mut parts: Parts, bearer: Option<&http::HeaderValue>) -> Parts {
    // What comes compressed could not be read for the record.
    parts.headers.remove(header::ACCEPT_ENCODING);
    if let Some(bearer) = bearer {
        parts.headers.insert(header::AUTHORIZATION, bearer.clone());
    }
    parts
}

fn outgoing(mut parts: Parts, body: &Bytes, endpoint: &Endpoint) -> Outgoing {
    let mut path = endpoint.url.path(parts.uri.path());
    if let Some(query) = parts.uri.query() {
        path = format!("{path}?{query}");
    }
    // A checked base URL and a path that came in a request are a path together.
    parts.uri = Uri::try_from(path).unwrap_or(parts.uri);
    Outgoing::new(parts, body, [None, None], &endpoint.upstream.host_header)
}
