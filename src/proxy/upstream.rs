//! A server that requests are sent to: what it is called, and the connections to it.

use http::HeaderValue;

use super::pool::Pool;

/// A backend's or an endpoint's HTTP side.
#[derive(Debug)]
pub struct Upstream {
    /// As errors name it, such as `backend http://127.0.0.1:8000`.
    pub title: String,
    /// What requests to it carry as `Host`.
    pub host_header: HeaderValue,
    /// Connections to it.
    pub pool: Pool,
}
