//! A request on its way to a backend: the client's bytes, and the headers that may pass.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri};
use http_body::{Body, Frame, SizeHint};

use super::request::{Splice, spliced};

/// Headers that speak about one connection and must not pass to the next (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Removes the headers that speak about one connection, including those that `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// A request that can be sent, and sent again.
#[derive(Clone, Debug)]
pub struct Outgoing {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: RequestBody,
}

impl Outgoing {
    /// The client's request for the backend at `authority`: same method, path, query, headers and bytes, but for
    /// the connection's own headers, `Host`, and the splices.
    pub fn new(
        parts: Parts,
        body: &Bytes,
        splices: [Option<&Splice>; 2],
        authority: &HeaderValue,
    ) -> Self {
        let mut headers = parts.headers;
        strip_hop_by_hop(&mut headers);
        headers.remove(header::EXPECT);
        headers.insert(header::HOST, authority.clone());
        let had_body = headers.contains_key(header::CONTENT_LENGTH) || !body.is_empty();
        let body = RequestBody(spliced(body, splices));
        if had_body {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.remaining()));
        }
        let uri = parts
            .uri
            .path_and_query()
            .map_or_else(Uri::default, |path| Uri::from(path.clone()));
        Self {
            method: parts.method,
            uri,
            headers,
            body,
        }
    }

    /// A bodyless request of the gate's own, with these headers beside `Host`.
    pub fn get(path: &'static str, mut headers: HeaderMap, authority: &HeaderValue) -> Self {
        headers.insert(header::HOST, authority.clone());
        Self {
            method: Method::GET,
            uri: Uri::from_static(path),
            headers,
            body: RequestBody::default(),
        }
    }

    /// The request for one attempt.
    pub fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// A body of up to five slices: the client's bytes, with splices between them.
#[derive(Clone, Debug, Default)]
pub struct RequestBody([Bytes; 5]);

impl RequestBody {
    fn remaining(&self) -> u64 {
        self.0.iter().map(|slice| slice.len() as u64).sum()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.iter_mut().find(|slice| !slice.is_empty());
        Poll::Ready(next.map(|slice| Ok(Frame::data(std::mem::take(slice)))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_connections_own_headers_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-hop"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-hop", "1"),
            ("authorization", "Bearer k"),
            ("x-custom", "v"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-custom"]);
    }

    #[test]
    fn the_length_follows_the_splice_and_the_query_stays() {
        let body = Bytes::from_static(br#"{"stream":true}"#);
        let splice = Splice {
            range: 1..1,
            insert: Bytes::from_static(b"\"a\":1,"),
        };
        let parts = Request::post("/v1/completions?x=%20y")
            .header("content-length", 15)
            .body(())
            .unwrap()
            .into_parts()
            .0;
        let outgoing = Outgoing::new(
            parts,
            &body,
            [Some(&splice), None],
            &HeaderValue::from_static("b:1"),
        );
        let request = outgoing.into_request();
        assert_eq!(request.uri(), "/v1/completions?x=%20y");
        assert_eq!(request.headers()[header::CONTENT_LENGTH], "21");
        assert_eq!(request.headers()[header::HOST], "b:1");
        assert_eq!(request.body().0.concat(), br#"{"a":1,"stream":true}"#);
    }
}
