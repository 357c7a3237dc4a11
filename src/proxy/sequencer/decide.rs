//! Asks the policy, and makes answers for whoever waits of what it decides.

use tokio::sync::oneshot;

use super::{Sequencer, State};
use crate::policy::{Decision, Event, HoldReason, RejectReason, RequestId};
use crate::proxy::verdict::{Admission, Answer, Refusal, Verdict};
use crate::telemetry::journal::Line;

impl Sequencer {
    /// The decision on a request that has just arrived.
    pub(super) fn answer(&mut self, request: RequestId) -> Answer {
        match &mut self.requests[request.index()].state {
            State::Admitted(admission) => Answer::Now(Verdict::Admit(*admission)),
            State::Held { reason, waiter } => {
                let (sender, verdict) = oneshot::channel();
                *waiter = Some(sender);
                Answer::Held(*reason, verdict)
            }
            State::Refused(refusal) => Answer::Now(Verdict::Refuse(*refusal)),
            State::Free | State::Undecided { .. } => {
                debug_assert!(false, "law P1: {request:?} arrived and got no decision");
                Answer::Now(Verdict::Refuse(Refusal::Policy(RejectReason::NoBackend)))
            }
        }
    }

    pub(super) fn tell(&mut self, event: &Event) {
        let mut decisions = std::mem::take(&mut self.decisions);
        self.policy.handle(self.now, event, &mut decisions);
        if let Some(journal) = &mut self.journal {
            journal.record(Line::Event {
                at: self.now,
                event: event.clone(),
                decisions: decisions.as_slice().to_vec(),
            });
        }
        for decision in decisions.drain() {
            self.apply(decision);
        }
        self.decisions = decisions;
    }

    fn apply(&mut self, decision: Decision) {
        let index = decision.request().index();
        match decision {
            Decision::Admit {
                backend, priority, ..
            } => self.admit(index, Admission { backend, priority }),
            Decision::Hold { reason, .. } => self.hold(index, reason),
            Decision::Reject { reason, .. } => self.refuse(index, Refusal::Policy(reason)),
        }
    }

    fn admit(&mut self, index: usize, admission: Admission) {
        let backend = admission.backend;
        let slot = &mut self.requests[index];
        if let Some(id) = slot.arrival.program {
            self.programs.admit(id, backend);
        }
        self.in_flight[backend.index()] += 1;
        slot.admitted = self.now;
        let state = std::mem::replace(&mut slot.state, State::Admitted(admission));
        self.notify(state, Verdict::Admit(admission));
    }

    pub(super) fn refuse(&mut self, index: usize, refusal: Refusal) {
        let state = std::mem::replace(&mut self.requests[index].state, State::Refused(refusal));
        self.notify(state, Verdict::Refuse(refusal));
    }

    fn hold(&mut self, index: usize, why: HoldReason) {
        match &mut self.requests[index].state {
            State::Held { reason, .. } => *reason = why,
            State::Undecided { waiter } => {
                let waiter = waiter.take();
                self.requests[index].state = State::Held {
                    reason: why,
                    waiter,
                };
                self.held += 1;
            }
            State::Free | State::Admitted(_) | State::Refused(_) => {
                debug_assert!(false, "law P1: request {index} is decided and held again");
            }
        }
    }

    fn notify(&mut self, before: State, verdict: Verdict) {
        let waiter = match before {
            State::Held { waiter, .. } => {
                self.held -= 1;
                waiter
            }
            State::Undecided { waiter } => waiter,
            State::Free | State::Admitted(_) | State::Refused(_) => None,
        };
        if let Some(waiter) = waiter {
            // A receiver that is gone means that its task is about to finish the request.
            let _gone = waiter.send(verdict);
        }
    }
}
