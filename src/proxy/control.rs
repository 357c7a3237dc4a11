//! Looking at one program, and at the policy; and changing the policy while requests wait.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq;

use super::backend::Backend;
use super::endpoints::{json, refuse};
use super::error::ProxyError;
use super::request::ViewError;
use super::scan::ScanError;
use super::state::{Proxy, capacity_warning};
use crate::policy::{self, HoldReason, Time};
use crate::telemetry::journal::Line;

/// How many finished steps, of all programs together, are kept for `GET /programs/{name}`.
pub const RECENT_STEPS: usize = 10_000;

/// A finished step, as a timeline shows it.
#[derive(Clone, Debug)]
pub struct PastStep {
    /// The program's name.
    pub program: String,
    /// Position in the program.
    pub step_index: u32,
    /// When it arrived.
    pub arrived: Time,
    /// How long it was held, in seconds.
    pub hold_s: f64,
    /// Why, if it was.
    pub hold_reason: Option<HoldReason>,
    /// When it ended.
    pub finished: Time,
    /// How: an outcome or an error code.
    pub outcome: &'static str,
}

/// The last steps that ended, oldest first, at most [`RECENT_STEPS`].
#[derive(Debug, Default)]
pub struct Recent(VecDeque<PastStep>);

impl Recent {
    /// Adds a step; the oldest makes room.
    pub fn push(&mut self, step: PastStep) {
        if self.0.len() == RECENT_STEPS {
            self.0.pop_front();
        }
        self.0.push_back(step);
    }
}

#[derive(Serialize)]
struct Timeline<'a> {
    program: &'a str,
    known: bool,
    open: Vec<OpenEntry>,
    past: Vec<PastEntry>,
}

#[derive(Serialize)]
struct OpenEntry {
    step: u32,
    arrived_s: f64,
    state: &'static str,
    hold_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct PastEntry {
    step: u32,
    arrived_s: f64,
    hold_s: f64,
    hold_reason: Option<&'static str>,
    finished_s: f64,
    outcome: &'static str,
}

/// `GET /programs/{name}`: what is open of a program and why it is held, and its last steps.
pub async fn program(State(proxy): State<Arc<Proxy>>, Path(name): Path<String>) -> Response {
    let unix = |time| proxy.gate.clock().unix(time);
    let open = proxy.gate.with(|sequencer, _| sequencer.open_steps(&name));
    let past: Vec<PastEntry> = {
        let recent = proxy.recent.lock();
        let own = recent.0.iter().filter(|step| step.program == name);
        let entry = |step: &PastStep| PastEntry {
            step: step.step_index,
            arrived_s: unix(step.arrived),
            hold_s: step.hold_s,
            hold_reason: step.hold_reason.map(HoldReason::as_str),
            finished_s: unix(step.finished),
            outcome: step.outcome,
        };
        own.map(entry).collect()
    };
    if open.is_none() && past.is_empty() {
        return refuse(&ProxyError::UnknownProgram { name });
    }
    let known = open.is_some();
    let entry = |step: super::verdict::OpenStep| OpenEntry {
        step: step.step_index,
        arrived_s: unix(step.arrived),
        state: if step.held.is_some() {
            "held"
        } else {
            "running"
        },
        hold_reason: step.held.map(HoldReason::as_str),
    };
    let open = open.unwrap_or_default().into_iter().map(entry).collect();
    json(
        StatusCode::OK,
        &Timeline {
            program: &name,
            known,
            open,
            past,
        },
    )
}

#[derive(Serialize)]
struct PolicyState<'a> {
    policy: &'a str,
    settings: Value,
    held: u32,
    programs: u32,
    paused: u32,
    resident_tokens: u64,
    values: serde_json::Map<String, Value>,
    estimates: serde_json::Map<String, Value>,
    pins: serde_json::Map<String, Value>,
    warnings: Vec<String>,
}

/// `GET /policy`: its name, settings, estimates and totals, and where it cannot do what it is for.
pub async fn show(State(proxy): State<Arc<Proxy>>) -> Response {
    // A switch changes both under the gate's lock.
    let (snapshot, policy) = proxy
        .gate
        .with(|sequencer, _| (sequencer.snapshot(), proxy.policy.lock().clone()));
    let warning = |backend: &Backend| {
        let warning = capacity_warning(&policy, backend)?;
        Some(format!("{}: {warning}", backend.url))
    };
    let state = PolicyState {
        policy: snapshot.policy,
        // Plain data always serialises.
        settings: serde_json::to_value(&policy).unwrap_or_default(),
        held: snapshot.held,
        programs: snapshot.programs,
        paused: snapshot.paused,
        resident_tokens: snapshot.resident.0,
        values: named(&snapshot.values),
        estimates: named(&snapshot.estimates),
        pins: named(&snapshot.pins),
        warnings: proxy.backends.iter().filter_map(warning).collect(),
    };
    json(StatusCode::OK, &state)
}

fn named<T: Copy + Into<Value>>(told: &[(&str, T)]) -> serde_json::Map<String, Value> {
    let entries = told.iter();
    entries
        .map(|&(name, value)| (name.to_owned(), value.into()))
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    policy: String,
    /// Absent and `null` are the same: clients write what they leave open either way.
    settings: Option<serde_json::Map<String, Value>>,
}

/// `PUT /policy` with `{"policy": NAME, "settings": {…}}`: another policy takes over, and no request is lost.
pub async fn switch(State(proxy): State<Arc<Proxy>>, headers: HeaderMap, body: Bytes) -> Response {
    if !may_switch(&proxy, &headers) {
        return refuse(&ProxyError::Unauthorized);
    }
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return refuse(&ViewError::Scan(ScanError::Syntax(0)).into());
    };
    let config = match read(request) {
        Ok(config) => config,
        Err(problem) => return refuse(&ProxyError::BadPolicy(problem)),
    };
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let policy = config.build();
    proxy.gate.with(|sequencer, now| {
        sequencer.note(Line::policy(config.name(), settings));
        sequencer.switch(now, policy);
        // Under the gate's lock, so that of two switches at once the same one is the last.
        *proxy.policy.lock() = config.clone();
    });
    proxy.metrics.policy_switched();
    tracing::info!(policy = config.name(), "another policy took over");
    for backend in &proxy.backends {
        proxy.warn_of_capacity(backend);
    }
    show(State(proxy)).await
}

fn read(request: Value) -> Result<policy::Config, String> {
    let switch: Switch = serde_json::from_value(request).map_err(|error| error.to_string())?;
    let settings = Value::Object(switch.settings.unwrap_or_default());
    let config =
        policy::Config::deserialize(&switch.policy, settings).map_err(|error| error.to_string())?;
    config.validate()?;
    Ok(config)
}

fn may_switch(proxy: &Proxy, headers: &HeaderMap) -> bool {
    let Some(token) = &proxy.config.admin_token else {
        return true;
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .map_or(&[][..], |value| value.as_bytes());
    let expected = format!("Bearer {token}");
    given.ct_eq(expected.as_bytes()).into()
}
