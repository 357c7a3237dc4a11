//! The control arm: admits every request at once, to the backend with the fewest requests in flight.
//!
//! Idea: no gate at all, only routing; what a plain round of vLLM servers would do.
//! Source: the reference experiment's "baseline" runs (plain vLLM, first come first served).
//! Worse when the contexts of concurrent programs exceed the KV cache: every step then recomputes its prompt.

use serde::{Deserialize, Serialize};

use super::roster::{Flight, Roster};
use super::{
    Adoption, Arrival, BackendId, Decisions, Event, Policy, PolicySnapshot, RejectReason, Time,
    Wakeup,
};

/// The name in the registry.
pub const NAME: &str = "baseline";

/// The baseline has nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// State of the control arm: the backends and what runs on them.
#[derive(Debug, Default)]
pub struct Baseline {
    roster: Roster,
}

impl Baseline {
    fn start(&mut self, arrival: &Arrival, backend: BackendId) {
        let program = arrival.program;
        self.roster
            .start(arrival.request, Flight { backend, program });
    }
}

impl Policy for Baseline {
    fn handle(&mut self, _now: Time, event: &Event, out: &mut Decisions) {
        self.roster.observe(event);
        match *event {
            Event::Arrive(arrival) | Event::Rearrive { arrival, .. } => {
                let Some(backend) = self.roster.least_in_flight() else {
                    return out.reject(arrival.request, RejectReason::NoBackend);
                };
                self.start(&arrival, backend);
                out.admit(arrival.request, backend);
            }
            Event::Adopt(Adoption {
                arrival, backend, ..
            }) => self.start(&arrival, backend),
            Event::Finish { request, .. } => drop(self.roster.finish(request)),
            Event::FirstToken { .. }
            | Event::ToolGap { .. }
            | Event::Release { .. }
            | Event::Sample(_)
            | Event::BackendUp { .. }
            | Event::BackendDown { .. }
            | Event::Tick => {}
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        None
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot {
            policy: NAME,
            ..PolicySnapshot::default()
        }
    }
}
