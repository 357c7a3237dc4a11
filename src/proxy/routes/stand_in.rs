//! Answers in place of a model: a fixed text, after a latency that was drawn for the question.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::call::Call;
use super::config::StandIn;
use super::latency::STOP;
use super::table::Route;
use crate::proxy::error::ProxyError;
use crate::proxy::handler::Asked;
use crate::proxy::router::GateBody;
use crate::proxy::state::Proxy;
use crate::telemetry::observe::{BodyObserver, ResponseFacts, StreamObserver};

/// The path that a stand-in knows the answer's shape of.
const CHAT: &str = "/v1/chat/completions";

/// Bytes of text that count as a token in `usage`.
const BYTES_PER_TOKEN: usize = 4;

/// The stand-in's answer. Its client may leave while it waits.
pub async fn answer(
    proxy: Arc<Proxy>,
    route: &Arc<Route>,
    stand_in: &StandIn,
    asked: Asked,
) -> Response<GateBody> {
    let mut call = Call::begin(Arc::clone(&proxy), Arc::clone(route), &asked);
    if asked.path != CHAT {
        return call.refuse(&ProxyError::StandInPath {
            route: route.name().to_owned(),
        });
    }
    let clock = proxy.gate.clock();
    let reply = Reply::to(stand_in, &asked, clock.unix(clock.now()));
    let program = asked.view.program.as_deref();
    let latency = stand_in
        .latency
        .of(stand_in.seed, program, question(&asked));
    tokio::time::sleep(clock.machine(latency)).await;
    call.head(StatusCode::OK, 0);
    call.first_token();
    let (body, content_type, facts) = reply.render();
    call.end(&facts);
    let mut response = Response::new(GateBody::Full(Full::from(body)));
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// What the latency is drawn for: the messages, or all of a body that has none. A repeated request waits as long.
fn question(asked: &Asked) -> &[u8] {
    let messages = asked.view.messages.clone();
    messages.map_or(&asked.body, |messages| &asked.body[messages])
}

/// How often the stand-in has spoken in this conversation.
fn turns(messages: &[u8]) -> usize {
    #[derive(Deserialize)]
    struct Message {
        role: String,
    }
    let messages: Vec<Message> = serde_json::from_slice(messages).unwrap_or_default();
    let own = messages
        .iter()
        .filter(|message| message.role == "assistant");
    own.count()
}

/// What is answered, and in which form.
struct Reply {
    id: String,
    created: u64,
    model: String,
    text: String,
    prompt_tokens: usize,
    stream: bool,
    /// A stream's last chunk tells of usage.
    tells_usage: bool,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Message<'a>>,
    logprobs: Option<Value>,
    finish_reason: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
#[expect(clippy::struct_field_names, reason = "the API's names")]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Reply {
    fn to(stand_in: &StandIn, asked: &Asked, unix_s: f64) -> Self {
        let question = question(asked);
        let stop = stand_in.stop_after;
        let is_over = stop.is_some_and(|after| turns(question) >= after as usize);
        let text = if is_over { STOP } else { &stand_in.text };
        Self {
            id: format!(
                "chatcmpl-{:016x}",
                xxhash_rust::xxh3::xxh3_64_with_seed(question, stand_in.seed)
            ),
            created: std::time::Duration::try_from_secs_f64(unix_s)
                .map_or(0, |since| since.as_secs()),
            model: asked.view.model.clone().unwrap_or_default(),
            text: text.to_owned(),
            prompt_tokens: question.len().div_ceil(BYTES_PER_TOKEN),
            stream: asked.view.stream,
            // The gate found nothing to ask for: the client does so itself.
            tells_usage: asked.view.splice.is_none(),
        }
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.text.len().div_ceil(BYTES_PER_TOKEN);
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
        }
    }

    /// The body, its content type, and what the record says of it.
    fn render(&self) -> (Bytes, &'static str, ResponseFacts) {
        if self.stream {
            let body = self.events();
            let mut observer = StreamObserver::new(false);
            observer.push(body.clone(), &mut |_| {});
            observer.finish(&mut |_| {});
            return (body, "text/event-stream", observer.facts().clone());
        }
        let body = self.whole();
        let mut observer = BodyObserver::new();
        observer.push(&body);
        (body, "application/json", observer.facts().clone())
    }

    fn json(&self, object: &str, choices: &[Choice<'_>], usage: Option<Usage>) -> String {
        let completion = Completion {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        };
        // Strings and numbers always serialise.
        serde_json::to_string(&completion).unwrap_or_default()
    }

    fn whole(&self) -> Bytes {
        let choice = Choice {
            index: 0,
            message: Some(Message {
                role: Some("assistant"),
                content: Some(&self.text),
            }),
            delta: None,
            logprobs: None,
            finish_reason: Some("stop"),
        };
        let body = self.json("chat.completion", &[choice], Some(self.usage()));
        body.into()
    }

    fn events(&self) -> Bytes {
        let chunk = |delta, finish_reason| {
            let choice = Choice {
                index: 0,
                message: None,
                delta: Some(delta),
                logprobs: None,
                finish_reason,
            };
            self.json("chat.completion.chunk", &[choice], None)
        };
        let said = Message {
            role: Some("assistant"),
            content: Some(&self.text),
        };
        let nothing = Message {
            role: None,
            content: None,
        };
        let usage = || self.json("chat.completion.chunk", &[], Some(self.usage()));
        let mut chunks = vec![chunk(said, None), chunk(nothing, Some("stop"))];
        chunks.extend(self.tells_usage.then(usage));
        chunks.push("[DONE]".to_owned());
        let events: Vec<String> = chunks
            .iter()
            .map(|chunk| format!("data: {chunk}\n\n"))
            .collect();
        events.concat().into()
    }
}
