//! The response on its way to the client: passes bytes on as they come and watches them.
//!
//! Frames are forwarded in the buffers they were read into. What a [`Relay`] learns on the way (first token,
//! usage, tool, end) goes to its [`Flight`]; dropping it before the end is how a client leaves.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::error::ProxyError;
use super::flight::Flight;
use super::forward::describe;
use super::infer::ReplyHasher;
use super::pool::Connection;
use super::routes::Call;
use super::state::Proxy;
use super::upstream::Upstream;
use crate::clock::machine_now;
use crate::telemetry::observe::{BodyObserver, ResponseFacts, StreamObserver};

/// What is learnt from the bytes that pass.
#[derive(Debug)]
enum Watch {
    /// Nothing: not a generation request.
    Nothing,
    /// One JSON document.
    Json {
        observer: BodyObserver,
        started: bool,
    },
    /// Server-sent events.
    Events(StreamObserver),
}

impl Watch {
    fn facts(&self) -> ResponseFacts {
        match self {
            Self::Nothing => ResponseFacts::default(),
            Self::Json { observer, .. } => observer.facts().clone(),
            Self::Events(observer) => observer.facts().clone(),
        }
    }
}

/// The request that a response is for.
#[derive(Debug)]
pub enum Stay {
    /// One that the policy let pass.
    Step(Flight),
    /// One that took a route past the policy.
    Call(Call),
}

impl Stay {
    fn first_token(&mut self) {
        match self {
            Self::Step(flight) => flight.first_token(),
            Self::Call(call) => call.first_token(),
        }
    }

    fn end(&mut self, facts: &ResponseFacts) {
        match self {
            Self::Step(flight) => flight.end(facts),
            Self::Call(call) => call.end(facts),
        }
    }

    const fn is_inferred(&self) -> bool {
        matches!(self, Self::Step(flight) if flight.is_inferred())
    }
}

/// Whose response it is, and whether the gate asked for usage on the client's behalf.
#[derive(Debug)]
pub struct Watched {
    /// The request.
    pub stay: Stay,
    /// The usage frame must not reach the client.
    pub hide_usage: bool,
}

/// A response body between a backend and a client.
#[derive(Debug)]
pub struct Relay {
    proxy: Arc<Proxy>,
    server: Arc<Upstream>,
    /// The backend's side; `None` once it has ended.
    incoming: Option<(Incoming, Connection)>,
    watch: Watch,
    stay: Option<Stay>,
    /// What an inferred program's next request will be recognised by, until it is known.
    reply: Option<Box<ReplyHasher>>,
    pending: VecDeque<Bytes>,
    /// How long the backend may be silent now, and when that is over.
    limit: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Relay {
    /// A relay for a response with these headers. `watched` is `None` for requests outside the policy.
    pub fn new(
        proxy: Arc<Proxy>,
        headers: &HeaderMap,
        server: Arc<Upstream>,
        incoming: (Incoming, Connection),
        watched: Option<Watched>,
    ) -> Self {
        let (stay, watch) = match watched {
            None => (None, Watch::Nothing),
            Some(watched) if is_event_stream(headers) => (
                Some(watched.stay),
                Watch::Events(StreamObserver::new(watched.hide_usage)),
            ),
            Some(watched) => {
                let watch = Watch::Json {
                    observer: BodyObserver::new(),
                    started: false,
                };
                (Some(watched.stay), watch)
            }
        };
        let is_inferred = stay.as_ref().is_some_and(Stay::is_inferred);
        let reply = is_inferred.then(|| match watch {
            Watch::Events(_) => Box::new(ReplyHasher::streamed()),
            Watch::Json { .. } | Watch::Nothing => Box::new(ReplyHasher::whole()),
        });
        // vLLM sends the head of a stream at once, and the first frame after its queue and the prefill.
        let limit = match watch {
            Watch::Nothing => proxy.config.idle_timeout,
            Watch::Json { .. } | Watch::Events(_) => proxy
                .config
                .idle_timeout
                .max(proxy.config.first_byte_timeout),
        };
        let silence = Box::pin(tokio::time::sleep(limit));
        let incoming = Some(incoming);
        let mut relay = Self {
            proxy,
            server,
            incoming,
            watch,
            stay,
            reply,
            pending: VecDeque::new(),
            limit,
            silence,
        };
        relay.notice_end();
        relay
    }

    /// Takes one chunk from the backend.
    fn pass(&mut self, chunk: Bytes) {
        let replied = self.reply.as_mut().is_some_and(|reply| {
            reply.push(&chunk);
            reply.is_done()
        });
        let first = match &mut self.watch {
            Watch::Nothing => {
                self.pending.push_back(chunk);
                false
            }
            Watch::Json { observer, started } => {
                observer.push(&chunk);
                self.pending.push_back(chunk);
                !std::mem::replace(started, true)
            }
            Watch::Events(observer) => {
                observer.push(chunk, &mut |bytes| self.pending.push_back(bytes))
            }
        };
        if first && let Some(stay) = &mut self.stay {
            stay.first_token();
        }
        if replied {
            self.note_reply();
        }
    }

    /// The reply is complete. The client may act on it before the response has ended.
    fn note_reply(&mut self) {
        let reply = self.reply.take().and_then(|reply| reply.digest());
        if let (Some(reply), Some(Stay::Step(flight))) = (reply, &self.stay)
            && self.watch.facts().outcome().is_success()
        {
            flight.replied(reply);
        }
    }

    /// A body of known length ends with its last byte: nobody polls it again.
    fn notice_end(&mut self) {
        if self
            .incoming
            .as_ref()
            .is_some_and(|(incoming, _)| incoming.is_end_stream())
        {
            self.complete();
        }
    }

    /// The backend's response is complete.
    fn complete(&mut self) {
        if let Watch::Events(observer) = &mut self.watch {
            observer.finish(&mut |bytes| self.pending.push_back(bytes));
        }
        if let Some((_, connection)) = self.incoming.take() {
            self.server.pool.give_back(connection);
        }
        self.note_reply();
        if let Some(mut stay) = self.stay.take() {
            stay.end(&self.watch.facts());
        }
    }

    /// The backend died or fell silent. A stream ends with an error event; anything else is cut, since its
    /// length was promised.
    fn broke(&mut self, error: &ProxyError) -> Option<std::io::Error> {
        self.incoming = None;
        let facts = self.watch.facts();
        match self.stay.take() {
            Some(Stay::Call(mut call)) => call.fail(error, &facts),
            Some(Stay::Step(mut flight)) => {
                self.proxy.metrics.refused(error.code());
                flight.fail(error, &facts);
            }
            None => self.proxy.metrics.refused(error.code()),
        }
        if let Watch::Events(observer) = &mut self.watch {
            let mid_frame = observer.is_mid_frame();
            observer.finish(&mut |bytes| self.pending.push_back(bytes));
            if mid_frame {
                // Ends the frame that broke off, so that the error is one of its own.
                self.pending.push_back(Bytes::from_static(b"\n\n"));
            }
            self.pending.push_back(error.to_event());
            return None;
        }
        Some(std::io::Error::other(error.to_string()))
    }

    /// The next frame of the backend, or the reason why there will be none.
    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        let Some((incoming, _)) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.limit = self.proxy.config.idle_timeout;
                self.silence
                    .as_mut()
                    .reset((machine_now() + self.limit).into());
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|e| ProxyError::DiedMidStream {
                        server: self.server.title.clone(),
                        cause: describe(&e),
                    })
                }))
            }
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(cx));
                Poll::Ready(Some(Err(ProxyError::Stalled {
                    server: self.server.title.clone(),
                    seconds: self.limit.as_secs_f64(),
                })))
            }
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    content_type.is_some_and(|value| value.starts_with(b"text/event-stream"))
}

impl Body for Relay {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(bytes) = self.pending.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.incoming.is_none() {
                return Poll::Ready(None);
            }
            match ready!(self.poll_incoming(cx)) {
                None => self.complete(),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        self.pass(chunk);
                        self.notice_end();
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => {
                    if let Some(cut) = self.broke(&error) {
                        return Poll::Ready(Some(Err(cut)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_none() && self.pending.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.watch, &self.incoming) {
            (Watch::Events(_), _) | (_, None) => SizeHint::default(),
            (_, Some((incoming, _))) => incoming.size_hint(),
        }
    }
}
