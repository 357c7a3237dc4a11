//! The HTTP API: routes, and a request's way from its body to the driver and back.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{mpsc, watch};

use super::EngineConfig;
use super::body::StreamOptions;
use super::core::{Request, RequestId};
use super::driver::{Command, Snapshot};
use super::error::ApiError;
use super::job::{self, Job};
use super::metrics;
use super::reply::{Progress, Reply};
use crate::clock::Clock;

/// Longest body taken, in bytes.
const MAX_BODY: usize = 64 << 20;

/// What every handler shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: EngineConfig,
    pub(super) clock: Clock,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) snapshot: watch::Receiver<Snapshot>,
    pub(super) submitted: AtomicU64,
    pub(super) open: AtomicUsize,
}

/// The API. Unknown paths and methods are answered as vLLM's web framework does.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let not_allowed = || async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") };
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/tokenize", post(tokenize))
        .route("/v1/models", get(models))
        .route("/health", get(async || StatusCode::OK))
        .route("/ping", get(async || StatusCode::OK))
        .route("/version", get(version))
        .route("/metrics", get(show_metrics))
        .method_not_allowed_fallback(not_allowed)
        .fallback(async || detail(StatusCode::NOT_FOUND, "Not Found"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let job = job::chat(&shared.config, &body);
    generate(&shared, &headers, job).await
}

async fn completions(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let job = job::completion(&shared.config, &body);
    generate(&shared, &headers, job).await
}

async fn generate(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    job: Result<Job, ApiError>,
) -> Response {
    let started = job.and_then(|job| Generation::start(shared, headers, job));
    match started {
        Err(error) => error.into_response(),
        Ok((generation, None)) => generation.whole().await,
        Ok((generation, Some(options))) => generation.stream(options),
    }
}

/// One request in the engine. Dropping it, at the end or because the client left, takes it out.
#[derive(Debug)]
struct Generation {
    shared: Arc<Shared>,
    id: RequestId,
    progress: watch::Receiver<Progress>,
    reply: Reply,
}

impl Generation {
    fn start(
        shared: &Arc<Shared>,
        headers: &HeaderMap,
        job: Job,
    ) -> Result<(Self, Option<StreamOptions>), ApiError> {
        if shared.open.fetch_add(1, Ordering::Relaxed) >= shared.config.max_requests {
            shared.open.fetch_sub(1, Ordering::Relaxed);
            return Err(ApiError::busy());
        }
        let id = RequestId(shared.submitted.fetch_add(1, Ordering::Relaxed));
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let name = given.map_or_else(|| format!("{:016x}", id.0), str::to_owned);
        let now = shared.clock.now();
        let (progress, watched) = watch::channel(Progress::default());
        let generation = Self {
            shared: Arc::clone(shared),
            id,
            progress: watched,
            reply: Reply::new(&job, &name, unix_seconds(shared.clock.unix(now))),
        };
        let request = Request {
            id,
            priority: job.priority,
            prompt: job.prompt,
            output: job.output,
        };
        let at = now + shared.config.core.cost.http(request.prompt_tokens());
        let submit = Command::Submit {
            at,
            request,
            progress,
        };
        // A driver that is gone has dropped its receiver: the watch channel reports it to the reader.
        drop(shared.commands.send(submit));
        Ok((generation, job.stream))
    }

    /// The newest progress past `seen`; one without `finish` twice in a row means that the engine stopped.
    async fn next(&mut self, seen: Progress) -> Progress {
        if self.progress.changed().await.is_err() {
            return seen;
        }
        *self.progress.borrow_and_update()
    }

    async fn whole(mut self) -> Response {
        let mut progress = Progress::default();
        while progress.finish.is_none() {
            let next = self.next(progress).await;
            if next == progress {
                return ApiError::stopped().into_response();
            }
            progress = next;
        }
        let json = [(header::CONTENT_TYPE, "application/json")];
        (json, self.reply.full(progress)).into_response()
    }

    fn stream(self, options: StreamOptions) -> Response {
        let start = Some((self, Progress::default()));
        let frames = futures_util::stream::unfold(start, move |state| async move {
            let (mut generation, before) = state?;
            let now = generation.next(before).await;
            let over = now.finish.is_some() || now == before;
            let mut frames = String::new();
            generation.reply.push_frames(before, now, over, &mut frames);
            if over {
                if options.include_usage {
                    generation.reply.push_usage(now, &mut frames);
                }
                frames.push_str("data: [DONE]\n\n");
            }
            let rest = (!over).then_some((generation, now));
            Some((Ok::<_, Infallible>(Bytes::from(frames)), rest))
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
        (kind, Body::from_stream(frames)).into_response()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        drop(self.shared.commands.send(Command::Forget(self.id)));
    }
}

async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    #[derive(serde::Serialize)]
    struct Reply {
        count: usize,
        max_model_len: u32,
        tokens: Vec<u32>,
        token_strs: Option<()>,
    }
    let tokens = job::tokenize(&shared.config, &body)?;
    let body = Reply {
        count: tokens.len(),
        max_model_len: shared.config.max_model_len,
        tokens,
        token_strs: None,
    };
    Ok(axum::Json(body).into_response())
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let created = unix_seconds(shared.clock.unix(shared.clock.now()));
    let limit = shared.config.max_model_len;
    let cards = shared.config.models.iter().map(|model| {
        let name = serde_json::Value::from(model.as_str());
        format!(
            r#"{{"id":{name},"object":"model","created":{created},"owned_by":"vllm","root":{name},"parent":null,"max_model_len":{limit},"permission":[]}}"#
        )
    });
    let cards: Vec<_> = cards.collect();
    let list = format!(r#"{{"object":"list","data":[{}]}}"#, cards.join(","));
    ([(header::CONTENT_TYPE, "application/json")], list).into_response()
}

/// The vLLM version whose API this is.
async fn version() -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, r#"{"version":"0.32.0"}"#).into_response()
}

async fn show_metrics(State(shared): State<Arc<Shared>>) -> Response {
    let snapshot = *shared.snapshot.borrow();
    let kind = "text/plain; version=1.0.0; charset=utf-8";
    let page = metrics::render(&shared.config, &snapshot);
    ([(header::CONTENT_TYPE, kind)], page).into_response()
}

fn detail(status: StatusCode, words: &str) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (status, json, format!(r#"{{"detail":"{words}"}}"#)).into_response()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole Unix seconds, after 1970"
)]
const fn unix_seconds(seconds: f64) -> u64 {
    seconds as u64
}
