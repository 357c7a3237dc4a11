//! One request's stay in the gate, from arrival to its record.
//!
//! A [`Flight`] ends exactly once: by [`Flight::end`], by [`Flight::fail`], or, if it is dropped before either,
//! as cancelled by its client. Whichever it is, the sequencer, the gauges and the recorder hear of it together.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::control::PastStep;
use super::error::ProxyError;
use super::gate::is_held;
use super::infer::{Conversation, ReplyDigest, Ticket};
use super::request::RequestView;
use super::routes::{Role, Route};
use super::state::Proxy;
use super::verdict::{Admission, Answer, Arriving, Ending, Refusal, Verdict};
use crate::policy::{BackendId, HoldReason, Outcome, RequestId};
use crate::telemetry::metrics::ClientGone;
use crate::telemetry::observe::ResponseFacts;
use crate::telemetry::step::{CONTEXT_OVERFLOW, StepRecord, StepTimer};

/// A request between arrival and end.
#[derive(Debug)]
pub struct Flight {
    proxy: Arc<Proxy>,
    request: RequestId,
    timer: StepTimer,
    view: RequestView,
    /// Its step in an inferred program.
    ticket: Option<Ticket>,
    path: &'static str,
    step_index: u32,
    tool_gap: Option<Duration>,
    hold_reason: Option<HoldReason>,
    backend: Option<BackendId>,
    status: u16,
    retries: u8,
    policy: &'static str,
    /// The alias it came by, and whose call that is.
    route: Option<(String, Role)>,
    open: bool,
}

impl Flight {
    /// Reports an arrival to the sequencer. A `conversation` is given where the program is to be inferred.
    pub fn begin(
        proxy: Arc<Proxy>,
        mut view: RequestView,
        conversation: Option<&Conversation>,
        path: &'static str,
        body_bytes: u64,
    ) -> (Self, Answer) {
        let ticket = conversation.and_then(|conversation| proxy.infer(conversation));
        if let Some(ticket) = ticket {
            view.program = Some(ticket.program.to_string());
        }
        let arriving = Arriving {
            program: view.program.as_deref(),
            body_bytes,
            shared: view.shared,
            last_step: view.last_step,
        };
        let (arrived, now) = proxy.gate.arrive(&arriving);
        let hold_reason = match arrived.answer {
            Answer::Held(reason, _) => Some(reason),
            Answer::Now(_) => None,
        };
        let flight = Self {
            proxy,
            request: arrived.request,
            timer: StepTimer::new(now),
            view,
            ticket,
            path,
            step_index: arrived.step_index,
            tool_gap: arrived.tool_gap,
            hold_reason,
            backend: None,
            status: 0,
            retries: 0,
            policy: arrived.policy,
            route: None,
            open: true,
        };
        (flight, arrived.answer)
    }

    /// The request came by this alias.
    pub fn took(&mut self, route: Option<&Route>) {
        self.route = route.map(|route| (route.name().to_owned(), route.role));
    }

    /// Waits for the decision.
    ///
    /// # Errors
    /// The refusal, as the client will read it.
    pub async fn admission(&mut self, answer: Answer) -> Result<Admission, ProxyError> {
        let held = is_held(&answer);
        let verdict = match answer {
            Answer::Now(verdict) => verdict,
            // The sender lives in the sequencer until it speaks; it can only vanish with the whole gate.
            Answer::Held(_, verdict) => verdict.await.unwrap_or(Verdict::Refuse(Refusal::Draining)),
        };
        match verdict {
            Verdict::Admit(admission) => {
                // A request that was not held is admitted the moment it arrives.
                let now = if held {
                    self.proxy.gate.clock().now()
                } else {
                    self.timer.arrived_at()
                };
                self.timer.admitted(now);
                self.backend = Some(admission.backend);
                self.proxy.metrics.sent(admission.backend);
                Ok(admission)
            }
            Verdict::Refuse(refusal) => Err(ProxyError::refused(refusal, || self.proxy.causes())),
        }
    }

    /// The head of the response came.
    pub fn head(&mut self, status: StatusCode, retries: u8) {
        self.timer.first_byte(self.proxy.gate.clock().now());
        self.status = status.as_u16();
        self.retries = retries;
        if retries > 0 {
            self.proxy.metrics.retried();
        }
    }

    /// The first content came; an error's body is none.
    pub fn first_token(&mut self) {
        if !self.is_served() {
            return;
        }
        let request = self.request;
        let now = self.proxy.gate.with(|sequencer, now| {
            sequencer.first_token(now, request);
            now
        });
        self.timer.first_token(now);
    }

    /// Whether the gate has to know the reply, to recognise the program's next request.
    pub const fn is_inferred(&self) -> bool {
        self.ticket.is_some()
    }

    /// The reply has passed, though the response may not have ended yet.
    pub fn replied(&self, reply: ReplyDigest) {
        if let Some(ticket) = self.ticket {
            self.proxy.inferred_replied(ticket, reply);
        }
    }

    /// The response was read to its end.
    pub fn end(&mut self, facts: &ResponseFacts) {
        let outcome = if self.is_served() {
            facts.outcome()
        } else {
            Outcome::Failed
        };
        self.close(outcome, outcome.as_str(), facts);
    }

    /// The gate answers with an error.
    pub fn fail(&mut self, error: &ProxyError, facts: &ResponseFacts) {
        if self.status == 0 {
            self.status = error.status().as_u16();
        }
        self.close(Outcome::Failed, error.code(), facts);
    }

    fn is_served(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn close(&mut self, outcome: Outcome, word: &'static str, facts: &ResponseFacts) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let ending = Ending {
            outcome,
            usage: facts.usage,
            tool: facts.tool.as_deref(),
        };
        let now = self.proxy.gate.finish(self.request, &ending);
        if let Some(ticket) = self.ticket {
            self.proxy.inferred_finished(now, ticket);
        }
        let timer = &self.timer;
        let gauges = &self.proxy.metrics;
        if let Some(reason) = self.hold_reason {
            gauges.held_for(reason, timer.hold_s(now));
        }
        if let Some(backend) = self.backend {
            gauges.returned(backend);
        }
        // An error of the gate's own is counted by its code, where the client gets it.
        if word == outcome.as_str() {
            let request_s = now.since(timer.arrived_at()).as_secs_f64();
            gauges.finished(outcome, timer.ttft_s(), request_s);
        }
        let word = if facts.context_overflow && outcome == Outcome::Failed {
            CONTEXT_OVERFLOW
        } else {
            word
        };
        if self.proxy.recorder.is_enabled() {
            let step = self.record(word);
            self.proxy.recorder.step(timer.close(
                now,
                facts,
                |time| self.proxy.gate.clock().unix(time),
                step,
            ));
        }
        if let Some(program) = self.view.program.take() {
            self.proxy.recent.lock().push(PastStep {
                program,
                step_index: self.step_index,
                arrived: self.timer.arrived_at(),
                hold_s: self.timer.hold_s(now),
                hold_reason: self.hold_reason,
                finished: now,
                outcome: word,
            });
        }
    }

    fn record(&self, outcome: &str) -> StepRecord {
        StepRecord {
            program: self.view.program.clone(),
            step_index: self.step_index,
            policy: self.policy.to_owned(),
            backend: self.backend.map(|id| self.proxy.backend(id).name()),
            path: self.path.to_owned(),
            model: self.view.model.clone(),
            route: self.route.as_ref().map(|(name, _)| name.clone()),
            role: self.route.as_ref().map(|(_, role)| *role),
            stream: self.view.stream,
            hold_reason: self.hold_reason.map(|reason| reason.as_str().to_owned()),
            tool_gap_s: self.tool_gap.map(|gap| gap.as_secs_f64()),
            outcome: outcome.to_owned(),
            status: self.status,
            retries: self.retries,
            ..StepRecord::default()
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.open {
            let gone = if self.backend.is_some() {
                ClientGone::Running
            } else {
                ClientGone::Held
            };
            self.proxy.metrics.client_gone(gone);
            self.close(
                Outcome::Cancelled,
                Outcome::Cancelled.as_str(),
                &ResponseFacts::default(),
            );
        }
    }
}
