//! Another policy takes over: it is told of everything that the sequencer knows.

use super::{Sequencer, State};
use crate::policy::handover::{Handover, Running};
use crate::policy::{Adoption, Event, Policy, RequestId, Time};
use crate::proxy::verdict::Admission;
use crate::telemetry::journal::Line;

impl Sequencer {
    /// Puts another policy in charge, which must not have been used yet. It is told of everything that runs, is idle
    /// or waits, see [`crate::policy::handover`]. O(requests + programs).
    pub fn switch(&mut self, now: Time, policy: Box<dyn Policy>) {
        let now = self.advance(now);
        self.policy_name = policy.snapshot().policy;
        self.policy = policy;
        let handover = self.hand_over();
        self.known_programs.clear();
        for request in &mut self.requests {
            request.known = !matches!(request.state, State::Free | State::Refused(_));
        }
        for (at, event) in handover.past(now) {
            self.tell_past(at, event);
        }
        for program in handover.programs() {
            self.know(program);
        }
        for event in handover.present() {
            self.tell(&event);
        }
    }

    /// What there is for another policy to know. What is held is undecided from here on.
    fn hand_over(&mut self) -> Handover {
        let held = self.take_held();
        let held = held.iter().map(|request| &self.requests[request.index()]);
        let held = held.map(|slot| (slot.arrived, slot.arrival)).collect();
        let running = self.requests.iter().filter_map(|slot| {
            let State::Admitted(Admission { backend, .. }) = slot.state else {
                return None;
            };
            let steps = |id| self.programs.steps_before(id);
            Some(Running {
                adoption: Adoption {
                    arrival: slot.arrival,
                    backend,
                    steps: slot.arrival.program.map_or(0, steps),
                },
                admitted: slot.admitted,
                first_token: slot.first_token,
            })
        });
        let free = RequestId(u32::try_from(self.requests.len()).unwrap_or(u32::MAX));
        Handover {
            backends: self.backends.clone(),
            running: running.collect(),
            idle: self.programs.idle(free).collect(),
            held,
        }
    }

    /// Tells a policy that takes over of something that happened before.
    fn tell_past(&mut self, at: Time, event: Event) {
        self.policy.handle(at, &event, &mut self.decisions);
        debug_assert!(self.decisions.is_empty(), "decided by the past: {event:?}");
        self.note(Line::Told { at, event });
    }
}
