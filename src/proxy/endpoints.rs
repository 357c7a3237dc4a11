//! The gate's own endpoints, in the shapes of the reference router where it has them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::backend::Backend;
use super::error::ProxyError;
use super::request::ViewError;
use super::scan::ScanError;
use super::state::Proxy;
use crate::telemetry::merge_backends;

/// How long the backends have to list their models.
const MODELS_TIMEOUT: Duration = Duration::from_secs(5);

/// Prometheus' text format, as vLLM declares it.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // The gate's own structures always serialise.
    let text = serde_json::to_string(value).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) fn refuse(error: &ProxyError) -> Response {
    error.to_response().map(Body::new)
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    healthy_backends: usize,
    total_backends: usize,
}

/// `GET /health`: 200 while the gate takes requests and a backend is up, else 503.
pub async fn health(State(proxy): State<Arc<Proxy>>) -> Response {
    let total_backends = proxy.backends.len();
    let healthy_backends = proxy
        .backends
        .iter()
        .filter(|backend| backend.is_up())
        .count();
    let (code, status) = match healthy_backends {
        _ if !proxy.is_ready() => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        0 => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        up if up < total_backends => (StatusCode::OK, "degraded"),
        _ => (StatusCode::OK, "healthy"),
    };
    json(
        code,
        &Health {
            status,
            healthy_backends,
            total_backends,
        },
    )
}

/// `GET /metrics`: kvgate's own series, then the backends' `vllm:` series as they were last scraped.
pub async fn metrics(State(proxy): State<Arc<Proxy>>) -> Response {
    proxy.update_metrics();
    // A backend that is down counts as well: whether series carry a backend label must not depend on it.
    let page = |backend: &Backend| (backend.name(), backend.status().metrics.unwrap_or_default());
    let pages: Vec<_> = proxy.backends.iter().map(page).collect();
    let parts: Vec<(&str, &str)> = pages
        .iter()
        .map(|(name, text)| (name.as_str(), &**text))
        .collect();
    let text = proxy.metrics.render() + &merge_backends(&parts);
    ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response()
}

/// `GET /v1/models`: the backend's own answer; with several backends or with routes, all models without repetitions,
/// the backends' first. A route for a glob names no model.
///
/// The client's `Authorization` goes along: vLLM guards this path with its API key.
pub async fn models(State(proxy): State<Arc<Proxy>>, headers: HeaderMap) -> Response {
    let key = headers.get(header::AUTHORIZATION).cloned();
    let headers = HeaderMap::from_iter(key.map(|key| (header::AUTHORIZATION, key)));
    let up: Vec<&Backend> = proxy
        .backends
        .iter()
        .filter(|backend| backend.is_up())
        .collect();
    let asked = up
        .iter()
        .map(|backend| backend.get("/v1/models", headers.clone(), MODELS_TIMEOUT));
    let mut answers = Vec::with_capacity(up.len());
    for answer in futures_util::future::join_all(asked).await {
        match answer {
            Ok((StatusCode::OK, body)) => answers.push(body),
            Ok((status, body)) if proxy.backends.len() == 1 => return as_json(status, body),
            Err(error) if proxy.backends.len() == 1 => return refuse(&error),
            // Another backend may answer.
            Ok(_) | Err(_) => {}
        }
    }
    let routed = proxy.routes.models();
    match answers.len() {
        0 => refuse(&ProxyError::NoBackend {
            causes: proxy.causes(),
        }),
        1 if routed.is_empty() => as_json(StatusCode::OK, answers.swap_remove(0)),
        _ => json(StatusCode::OK, &merge_models(&answers, &routed)),
    }
}

fn as_json(status: StatusCode, body: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<Value>,
}

fn merge_models(answers: &[Bytes], routed: &[&str]) -> ModelList {
    let mut seen = BTreeSet::new();
    let mut data = Vec::new();
    for answer in answers {
        let Ok(mut list) = serde_json::from_slice::<Value>(answer) else {
            continue;
        };
        let Some(Value::Array(models)) = list.get_mut("data").map(Value::take) else {
            continue;
        };
        let new = models
            .into_iter()
            .filter(|model| seen.insert(model["id"].as_str().map(str::to_owned)));
        data.extend(new);
    }
    for model in routed {
        if seen.insert(Some((*model).to_owned())) {
            let entry = json!({"id": model, "object": "model", "created": 0, "owned_by": "kvgate"});
            data.push(entry);
        }
    }
    ModelList {
        object: "list",
        data,
    }
}

/// A program as the reference router shows it.
#[derive(Serialize)]
struct ProgramEntry {
    backend: Option<String>,
    context_len: u64,
    step: u32,
    inflight: bool,
    paused: bool,
    pause_requested: bool,
}

/// `GET /programs`: every program by name.
pub async fn programs(State(proxy): State<Arc<Proxy>>) -> Response {
    let programs = proxy.gate.with(|sequencer, _| sequencer.programs());
    let entry = |program: &super::programs::ProgramStatus| ProgramEntry {
        backend: program.backend.map(|id| proxy.backend(id).name()),
        context_len: program.context.0,
        step: program.steps,
        inflight: program.running > 0,
        paused: program.view.paused || program.held > 0,
        pause_requested: program.view.pause_requested,
    };
    let table: BTreeMap<&str, ProgramEntry> =
        programs.iter().map(|p| (&*p.name, entry(p))).collect();
    json(StatusCode::OK, &table)
}

#[derive(Serialize)]
struct Released<'a> {
    job_id: &'a str,
    released: bool,
}

/// `POST /programs/release` with `{"job_id": …}` or `{"program_id": …}`: the program is over.
pub async fn release(State(proxy): State<Arc<Proxy>>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return refuse(&ViewError::Scan(ScanError::Syntax(0)).into());
    };
    let named = ["job_id", "program_id"]
        .into_iter()
        .find_map(|key| text(&request[key]));
    let Some(name) = named else {
        let help = "missing job_id; send {\"job_id\": \"…\"} or {\"program_id\": \"…\"}";
        return refuse(&ProxyError::MissingField(help));
    };
    end(&proxy, &name)
}

/// The query of `POST /finish_session`.
#[derive(Debug, Deserialize)]
pub struct FinishSession {
    session_id: Option<String>,
}

/// `POST /finish_session?session_id=…`: the program is over, as clients of other routers say it.
pub async fn finish_session(
    State(proxy): State<Arc<Proxy>>,
    Query(query): Query<FinishSession>,
) -> Response {
    match query.session_id.filter(|id| !id.is_empty()) {
        Some(name) => end(&proxy, &name),
        None => refuse(&ProxyError::MissingField(
            "missing session_id; send /finish_session?session_id=…",
        )),
    }
}

fn end(proxy: &Proxy, name: &str) -> Response {
    let released = proxy.release(name);
    json(
        StatusCode::OK,
        &Released {
            job_id: name,
            released,
        },
    )
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

#[derive(Default, Serialize)]
struct BackendEntry {
    healthy: bool,
    usage: f64,
    program_count: u32,
    inflight: u32,
    paused_count: u32,
}

/// `GET /backends`: every backend by URL.
pub async fn backends(State(proxy): State<Arc<Proxy>>) -> Response {
    let (programs, in_flight) = proxy
        .gate
        .with(|sequencer, _| (sequencer.programs(), sequencer.in_flight().to_vec()));
    let mut table: BTreeMap<String, BackendEntry> = BTreeMap::new();
    for (backend, inflight) in proxy.backends.iter().zip(in_flight) {
        let status = backend.status();
        let usage = status
            .scrape
            .and_then(|scrape| scrape.kv_usage)
            .map_or(0.0, crate::policy::Ratio::get);
        let entry = BackendEntry {
            healthy: status.up,
            usage,
            inflight,
            ..BackendEntry::default()
        };
        table.insert(backend.name(), entry);
    }
    for program in &programs {
        let Some(entry) = program
            .backend
            .and_then(|id| table.get_mut(&proxy.backend(id).name()))
        else {
            continue;
        };
        entry.program_count += 1;
        entry.paused_count += u32::from(program.view.paused);
    }
    json(StatusCode::OK, &table)
}

/// Any other method on a path of the gate's own.
pub async fn method_not_allowed() -> Response {
    refuse(&ProxyError::MethodNotAllowed(
        "this path is the gate's own and does not take this method; see the README",
    ))
}
