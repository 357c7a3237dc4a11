//! One request's stay on a route, from arrival to its record.
//!
//! As a flight, a [`Call`] ends exactly once: by [`Call::end`], by [`Call::fail`], or, if it is dropped before either,
//! as cancelled by its client. Neither the sequencer nor the policy hears of it: a program that asks an expert is, to
//! them, in its tool gap.

use std::sync::Arc;

use http::{Response, StatusCode};

use super::balance::Seat;
use super::table::Route;
use crate::policy::Outcome;
use crate::proxy::error::ProxyError;
use crate::proxy::handler::Asked;
use crate::proxy::router::GateBody;
use crate::proxy::state::Proxy;
use crate::telemetry::observe::ResponseFacts;
use crate::telemetry::step::{CONTEXT_OVERFLOW, StepRecord, StepTimer};

/// A request between arrival and end.
#[derive(Debug)]
pub struct Call {
    proxy: Arc<Proxy>,
    route: Arc<Route>,
    program: Option<String>,
    model: Option<String>,
    stream: bool,
    path: &'static str,
    timer: StepTimer,
    /// Where it was sent, and its place there.
    sent: Option<(String, Seat)>,
    status: u16,
    retries: u8,
    open: bool,
}

impl Call {
    /// A request has arrived.
    pub fn begin(proxy: Arc<Proxy>, route: Arc<Route>, asked: &Asked) -> Self {
        let now = proxy.gate.clock().now();
        let mut timer = StepTimer::new(now);
        // Nobody holds it.
        timer.admitted(now);
        proxy.metrics.routes.begun(route.index);
        Self {
            proxy,
            route,
            program: asked.view.program.clone(),
            model: asked.view.model.clone(),
            stream: asked.view.stream,
            path: asked.path,
            timer,
            sent: None,
            status: 0,
            retries: 0,
            open: true,
        }
    }

    /// It is sent to the endpoint at `url`; to another one before, if it could not be connected to.
    pub fn sent(&mut self, url: String, seat: Seat) {
        if self.sent.replace((url, seat)).is_some() {
            self.retries = self.retries.saturating_add(1);
        }
    }

    /// The head of the response came.
    pub fn head(&mut self, status: StatusCode, retries: u8) {
        self.timer.first_byte(self.proxy.gate.clock().now());
        self.status = status.as_u16();
        self.retries = self.retries.saturating_add(retries);
    }

    /// The first content came; an error's body is none.
    pub fn first_token(&mut self) {
        if self.is_served() {
            self.timer.first_token(self.proxy.gate.clock().now());
        }
    }

    /// The response was read to its end.
    pub fn end(&mut self, facts: &ResponseFacts) {
        if self.is_served() {
            let outcome = facts.outcome();
            self.close(outcome, outcome.as_str(), facts);
        } else if facts.context_overflow {
            self.close(Outcome::Failed, CONTEXT_OVERFLOW, facts);
        } else {
            let cause = format!("http_{}", self.status);
            self.close(Outcome::Failed, &cause, facts);
        }
    }

    /// The gate answers with an error.
    pub fn fail(&mut self, error: &ProxyError, facts: &ResponseFacts) {
        if self.status == 0 {
            self.status = error.status().as_u16();
        }
        self.close(Outcome::Failed, error.code(), facts);
    }

    /// The gate answers with an error, and with nothing before it.
    pub fn refuse(mut self, error: &ProxyError) -> Response<GateBody> {
        self.fail(error, &ResponseFacts::default());
        error.to_response().map(GateBody::Full)
    }

    const fn is_served(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// Metrics count by `cause`, which says more than the outcome where an endpoint or the gate answered an error.
    fn close(&mut self, outcome: Outcome, cause: &str, facts: &ResponseFacts) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let proxy = Arc::clone(&self.proxy);
        let clock = proxy.gate.clock();
        let now = clock.now();
        let served = outcome.is_success();
        let served_s = served.then(|| now.since(self.timer.arrived_at()).as_secs_f64());
        proxy
            .metrics
            .routes
            .finished(self.route.index, cause, served_s);
        // The place is free before the client can know that the response is complete.
        let backend = self.sent.take().map(|(url, _seat)| url);
        if proxy.recorder.is_enabled() {
            let outcome = if cause.starts_with("http_") {
                outcome.as_str()
            } else {
                cause
            };
            let step = self.record(backend, outcome);
            let record = self.timer.close(now, facts, |time| clock.unix(time), step);
            proxy.recorder.step(record);
        }
    }

    fn record(&mut self, backend: Option<String>, outcome: &str) -> StepRecord {
        StepRecord {
            program: self.program.take(),
            backend,
            path: self.path.to_owned(),
            model: self.model.take(),
            route: Some(self.route.name().to_owned()),
            role: Some(self.route.role),
            stream: self.stream,
            outcome: outcome.to_owned(),
            status: self.status,
            retries: self.retries,
            ..StepRecord::default()
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let cancelled = Outcome::Cancelled;
        self.close(cancelled, cancelled.as_str(), &ResponseFacts::default());
    }
}
