//! The control arm: admits every request at once, to the backend with the fewest requests in flight.
//!
//! Idea: no gate at all, only routing; what a plain round of vLLM servers would do.
//! Source: the reference experiment's "baseline" runs (plain vLLM, first come first served).
//! Worse when the contexts of concurrent programs exceed the KV cache: every step then recomputes its prompt.

use serde::{Deserialize, Serialize};

use super::{
    BackendId, Decisions, Event, Policy, PolicySnapshot, RejectReason, RequestId, Time, Wakeup,
};

/// The name in the registry.
pub const NAME: &str = "baseline";

/// The baseline has nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// State of the control arm: who is up, and how much each backend has in flight.
#[derive(Debug)]
pub struct Baseline {
    /// Requests in flight by backend; `None` while the backend is down.
    in_flight: Vec<Option<u32>>,
    /// The backend of each request in flight, by [`RequestId`].
    home: Vec<Option<BackendId>>,
}

impl Baseline {
    /// A baseline that knows no backend yet.
    pub const fn new(_config: Config) -> Self {
        Self {
            in_flight: Vec::new(),
            home: Vec::new(),
        }
    }
}

impl Baseline {
    fn slot(&mut self, backend: BackendId) -> &mut Option<u32> {
        if self.in_flight.len() <= backend.index() {
            self.in_flight.resize(backend.index() + 1, None);
        }
        &mut self.in_flight[backend.index()]
    }

    fn least_loaded(&self) -> Option<BackendId> {
        let up = self
            .in_flight
            .iter()
            .zip(0..)
            .filter_map(|(load, id)| Some(((*load)?, BackendId(id))));
        up.min().map(|(_, backend)| backend)
    }

    fn arrive(&mut self, request: RequestId, out: &mut Decisions) {
        let Some(backend) = self.least_loaded() else {
            return out.reject(request, RejectReason::NoBackend);
        };
        if let Some(load) = self.slot(backend) {
            *load += 1;
        }
        if self.home.len() <= request.index() {
            self.home.resize(request.index() + 1, None);
        }
        self.home[request.index()] = Some(backend);
        out.admit(request, backend);
    }

    fn finish(&mut self, request: RequestId) {
        let Some(backend) = self.home.get_mut(request.index()).and_then(Option::take) else {
            return;
        };
        if let Some(load) = self.slot(backend) {
            *load = load.saturating_sub(1);
        }
    }
}

impl Policy for Baseline {
    fn handle(&mut self, _now: Time, event: &Event, out: &mut Decisions) {
        match *event {
            Event::Arrive(arrival) => self.arrive(arrival.request, out),
            Event::Finish { request, .. } => self.finish(request),
            Event::BackendUp { backend, .. } => {
                self.slot(backend).get_or_insert(0);
            }
            Event::BackendDown { backend } => *self.slot(backend) = None,
            Event::FirstToken { .. }
            | Event::ToolGap { .. }
            | Event::Release { .. }
            | Event::Sample(_)
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
