//! Sends one request to one backend and waits for the head of its response.

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Response;
use hyper::body::Incoming;

use super::backend::Backend;
use super::error::ProxyError;
use super::outgoing::Outgoing;
use super::pool::Connection;

/// A response whose body is still to come, and the connection it comes on.
#[derive(Debug)]
pub struct Exchange {
    /// Status, headers and body of the backend.
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
    backend: &Backend,
    outgoing: Outgoing,
    limit: Duration,
) -> Result<Exchange, ProxyError> {
    match tokio::time::timeout(limit, attempt(backend, outgoing)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProxyError::FirstByteTimeout {
            backend: backend.name(),
            seconds: limit.as_secs_f64(),
        }),
    }
}

async fn attempt(backend: &Backend, outgoing: Outgoing) -> Result<Exchange, ProxyError> {
    let connection = backend
        .pool
        .checkout()
        .await
        .map_err(|error| unreachable(backend, &error))?;
    if !connection.reused {
        return exchange(backend, connection, outgoing, 0).await;
    }
    let heard = connection.listen_anew();
    match exchange(backend, connection, outgoing.clone(), 0).await {
        Err(ProxyError::Closed { .. }) if !heard.load(Ordering::Relaxed) => {
            let connection = backend
                .pool
                .connect()
                .await
                .map_err(|error| unreachable(backend, &error))?;
            exchange(backend, connection, outgoing, 1).await
        }
        outcome => outcome,
    }
}

async fn exchange(
    backend: &Backend,
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
            response,
            connection,
            retries,
        }),
        Err(error) => Err(ProxyError::Closed {
            backend: backend.name(),
            cause: describe(&error),
        }),
    }
}

fn unreachable(backend: &Backend, error: &io::Error) -> ProxyError {
    ProxyError::Connect {
        backend: backend.name(),
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
