//! Sends one request to one server and waits for the head of its response.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;

use super::error::ProxyError;
use super::outgoing::Outgoing;
use super::pool::Connection;
use super::upstream::Upstream;

/// A response whose body is still to come, and the connection it comes on.
#[derive(Debug)]
pub struct Exchange {
    /// Who answers.
    pub server: Arc<Upstream>,
    /// Status, headers and body of the server.
    pub response: Response<Incoming>,
    /// Given back to the pool once the body was read to its end; dropped to abort it.
    pub connection: Connection,
    /// Transparent retries it took: 0 or 1.
    pub retries: u8,
}

/// Sends `outgoing` and waits for the response's head, at most `limit`.
///
/// A connection that has idled may turn out closed just as it is used. If it fails before the first byte of a
/// response, the request is sent once more on a fresh connection; nothing else is ever retried.
///
/// # Errors
/// [`ProxyError::Connect`], [`ProxyError::Closed`] or [`ProxyError::FirstByteTimeout`].
pub async fn send(
    server: &Arc<Upstream>,
    outgoing: Outgoing,
    limit: Duration,
) -> Result<Exchange, ProxyError> {
    match tokio::time::timeout(limit, attempt(server, outgoing)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProxyError::FirstByteTimeout {
            server: server.title.clone(),
            seconds: limit.as_secs_f64(),
        }),
    }
}

async fn attempt(server: &Arc<Upstream>, outgoing: Outgoing) -> Result<Exchange, ProxyError> {
    let connection = server
        .pool
        .checkout()
        .await
        .map_err(|error| unreachable(server, &error))?;
    if !connection.reused {
        return exchange(server, connection, outgoing, 0).await;
    }
    let heard = connection.listen_anew();
    match exchange(server, connection, outgoing.clone(), 0).await {
        Err(ProxyError::Closed { .. }) if !heard.load(Ordering::Relaxed) => {
            let connection = server
                .pool
                .connect()
                .await
                .map_err(|error| unreachable(server, &error))?;
            exchange(server, connection, outgoing, 1).await
        }
        outcome => outcome,
    }
}

async fn exchange(
    server: &Arc<Upstream>,
    mut connection: Connection,
    outgoing: Outgoing,
    retries: u8,
) -> Result<Exchange, ProxyError> {
    match connection
        .sender
        .send_request(outgoing.into_request())
        .await
    {
        Ok(response) => Ok(Exchange {
            server: Arc::clone(server),
            response,
            connection,
            retries,
        }),
        Err(error) => Err(ProxyError::Closed {
            server: server.title.clone(),
            cause: describe(&error),
        }),
    }
}

fn unreachable(server: &Upstream, error: &io::Error) -> ProxyError {
    ProxyError::Connect {
        server: server.title.clone(),
        cause: error.to_string(),
        refused: matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
        ),
    }
}

/// hyper's own message and the cause behind it, which names what the operating system said.
pub fn describe(error: &hyper::Error) -> String {
    use std::error::Error;
    error
        .source()
        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
