//! A policy that holds every step until the test opens it, and remembers what it was told.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use kvgate::policy::{
    Arrival, BackendId, Decisions, Event, HoldReason, Outcome, Policy, PolicySnapshot,
    RejectReason, RequestId, Time, Usage, Wakeup,
};
use tokio::sync::watch;

use super::within;

/// How often a shut valve looks whether it was opened.
const LOOK: Duration = Duration::from_millis(2);

/// The test's end of a valve.
pub(crate) struct Valve {
    state: watch::Sender<State>,
}

/// What both ends share.
#[derive(Debug, Default)]
struct State {
    open: bool,
    held: usize,
    told: Vec<Event>,
}

/// The policy's end.
#[derive(Debug)]
struct Shut {
    state: watch::Sender<State>,
    /// Arrival order.
    held: VecDeque<RequestId>,
    running: BTreeSet<RequestId>,
    backends: BTreeSet<BackendId>,
    limits: Limits,
    next_look: Option<Time>,
}

/// The bounds of a valve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests held; one more is rejected.
    pub(crate) held: usize,
    /// Requests with a program that run at once when the valve is open.
    pub(crate) running: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            held: 100_000,
            running: usize::MAX,
        }
    }
}

/// A shut valve: the policy for the gate, and the test's handle on it.
pub(crate) fn valve(limits: Limits) -> (Box<dyn Policy>, Valve) {
    let state = watch::Sender::new(State::default());
    let policy = Shut {
        state: state.clone(),
        held: VecDeque::new(),
        running: BTreeSet::new(),
        backends: BTreeSet::new(),
        limits,
        next_look: None,
    };
    (Box::new(policy), Valve { state })
}

impl Valve {
    /// Lets everything pass from now on.
    pub(crate) fn open(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    /// Returns when exactly `count` requests are held.
    pub(crate) async fn holds(&self, count: usize) {
        self.wait(|state| state.held == count).await;
    }

    /// Returns the first event, past or to come, for which `found` has an answer.
    pub(crate) async fn told<T>(&self, found: impl Fn(&Event) -> Option<T>) -> T {
        self.wait(|state| state.told.iter().any(|event| found(event).is_some()))
            .await;
        let state = self.state.borrow();
        state.told.iter().find_map(found).unwrap()
    }

    /// Whether an event like this came so far.
    pub(crate) fn was_told(&self, found: impl Fn(&Event) -> bool) -> bool {
        self.state.borrow().told.iter().any(found)
    }

    /// The arrivals so far, in order.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        let arrival = |event: &Event| {
            let Event::Arrive(arrival) = event else {
                return None;
            };
            Some(*arrival)
        };
        self.state
            .borrow()
            .told
            .iter()
            .filter_map(arrival)
            .collect()
    }

    /// How the first request that ended did.
    pub(crate) async fn finish(&self) -> (Outcome, Option<Usage>) {
        self.told(|event| {
            let Event::Finish { outcome, usage, .. } = event else {
                return None;
            };
            Some((*outcome, *usage))
        })
        .await
    }

    async fn wait(&self, ready: impl Fn(&State) -> bool) {
        let mut changes = self.state.subscribe();
        drop(
            within(changes.wait_for(|state| ready(state)))
                .await
                .unwrap(),
        );
    }
}

impl Policy for Shut {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        match event {
            Event::Arrive(arrival) | Event::Rearrive { arrival, .. } => self.arrive(*arrival, out),
            Event::Finish { request, .. } => {
                self.running.remove(request);
                self.held.retain(|held| held != request);
            }
            Event::BackendUp { backend, .. } => drop(self.backends.insert(*backend)),
            Event::BackendDown { backend } => drop(self.backends.remove(backend)),
            Event::Adopt(_)
            | Event::FirstToken { .. }
            | Event::ToolGap { .. }
            | Event::Release { .. }
            | Event::Sample(_)
            | Event::Tick => {}
        }
        self.release(out);
        self.next_look = (!self.held.is_empty()).then(|| now + LOOK);
        self.state.send_modify(|state| {
            state.held = self.held.len();
            if !matches!(event, Event::Tick | Event::Sample(_)) {
                state.told.push(event.clone());
            }
        });
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = self.next_look?;
        Some(Wakeup {
            at,
            why: "look whether the valve was opened",
        })
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot {
            policy: "valve",
            held: u32::try_from(self.held.len()).unwrap(),
            ..PolicySnapshot::default()
        }
    }
}

impl Shut {
    fn arrive(&mut self, arrival: Arrival, out: &mut Decisions) {
        let request = arrival.request;
        match self.backends.first() {
            Some(backend) if arrival.program.is_none() => {
                self.running.insert(request);
                out.admit(request, *backend);
            }
            None if arrival.program.is_none() => out.reject(request, RejectReason::NoBackend),
            _ if self.held.len() >= self.limits.held => {
                out.reject(request, RejectReason::QueueFull);
            }
            // With room it is admitted in this very call; law P1 wants one decision, so none is said twice.
            Some(backend) if self.state.borrow().open && self.has_room() => {
                self.running.insert(request);
                out.admit(request, *backend);
            }
            _ => {
                self.held.push_back(request);
                out.hold(request, HoldReason::NoRoom);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.running.len() < self.limits.running
    }

    /// Admits the oldest while the valve is open and there is room.
    fn release(&mut self, out: &mut Decisions) {
        let Some(backend) = self.backends.first().copied() else {
            return;
        };
        let just_held = |request: &RequestId, out: &Decisions| {
            let said = out.as_slice().iter();
            said.copied().any(|decision| decision.request() == *request)
        };
        while self.has_room() && self.state.borrow().open {
            match self.held.front().copied() {
                Some(request) if !just_held(&request, out) => {
                    self.held.pop_front();
                    self.running.insert(request);
                    out.admit(request, backend);
                }
                _ => return,
            }
        }
    }
}
