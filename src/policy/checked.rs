//! The laws of [`Policy`] as assertions, around any policy. Tests and debug builds run inside it.

use std::collections::BTreeSet;

use super::slots::Slots;
use super::{
    Adoption, Arrival, BackendId, Decision, Decisions, Event, Policy, PolicySnapshot, ProgramId,
    ProgramView, RequestId, Time, Wakeup,
};

/// What the laws need to know of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It arrived in this call and waits for its one decision.
    New {
        /// Whether it belongs to a program, and so may be held.
        holdable: bool,
        /// When it arrived, at whatever policy.
        since: Time,
    },
    Held(Time),
    Running,
    /// Its id is free, but the caller may still report its end.
    Rejected,
}

/// A policy that panics as soon as a law is broken, by itself (P1, P4–P7) or by its caller (P2, and events about
/// requests that do not exist).
#[derive(Debug)]
pub struct Checked {
    inner: Box<dyn Policy>,
    now: Time,
    up: BTreeSet<BackendId>,
    requests: Slots<Phase>,
    held: BTreeSet<(Time, RequestId)>,
    running: usize,
    /// The bounds that the policy reports, as `max_held` and `hold_timeout_s` among its snapshot's values.
    max_held: Option<f64>,
    hold_timeout_s: Option<f64>,
}

impl Checked {
    /// Watches `inner`, which must not have been used yet.
    pub fn new(inner: Box<dyn Policy>) -> Self {
        let values = inner.snapshot().values;
        let value = |name| values.iter().find(|(key, _)| *key == name).map(|v| v.1);
        Self {
            max_held: value("max_held"),
            hold_timeout_s: value("hold_timeout_s"),
            inner,
            now: Time::ZERO,
            up: BTreeSet::new(),
            requests: Slots::new(),
            held: BTreeSet::new(),
            running: 0,
        }
    }

    /// Requests held now, in the order in which their holds began.
    pub fn held(&self) -> impl Iterator<Item = RequestId> {
        self.held.iter().map(|(_, request)| *request)
    }

    /// Notes what the event changes before the policy answers it.
    fn before(&mut self, now: Time, event: &Event) {
        assert!(
            now >= self.now,
            "P2: time went back from {} to {now}",
            self.now
        );
        self.now = now;
        match *event {
            Event::Arrive(arrival) => self.arrives(&arrival, now),
            Event::Rearrive { arrival, since } => self.arrives(&arrival, since),
            Event::Adopt(Adoption { arrival, .. }) => {
                self.enters(arrival.request, Phase::Running);
                self.running += 1;
            }
            Event::Finish { request, .. } => match self.requests.remove(request.index()) {
                Some(Phase::Held(since)) => {
                    self.held.remove(&(since, request));
                }
                Some(Phase::Running) => self.running -= 1,
                Some(Phase::Rejected) => {}
                None | Some(Phase::New { .. }) => {
                    broken(format_args!("event: {request:?} finishes but is unknown"));
                }
            },
            Event::BackendUp { backend, .. } => {
                self.up.insert(backend);
            }
            Event::BackendDown { backend } => {
                self.up.remove(&backend);
            }
            Event::FirstToken { .. }
            | Event::ToolGap { .. }
            | Event::Release { .. }
            | Event::Sample(_)
            | Event::Tick => {}
        }
    }

    fn arrives(&mut self, arrival: &Arrival, since: Time) {
        let holdable = arrival.program.is_some();
        self.enters(arrival.request, Phase::New { holdable, since });
    }

    fn enters(&mut self, request: RequestId, phase: Phase) {
        let old = self.requests.insert(request.index(), phase);
        assert!(
            matches!(old, None | Some(Phase::Rejected)),
            "event: {request:?} arrives while it is {old:?}"
        );
    }

    /// Laws P1 and P4, for one decision.
    fn decided(&mut self, decision: Decision) {
        let request = decision.request();
        let phase = self.requests.remove(request.index());
        match phase {
            Some(Phase::New { .. }) => {}
            Some(Phase::Held(since)) => {
                self.held.remove(&(since, request));
            }
            Some(Phase::Running | Phase::Rejected) | None => broken(format_args!(
                "P1: {decision:?} but the request does not wait: {phase:?}"
            )),
        }
        match decision {
            Decision::Admit { backend, .. } => {
                assert!(
                    self.up.contains(&backend),
                    "P4: {decision:?} but {backend:?} is down"
                );
                self.requests.insert(request.index(), Phase::Running);
                self.running += 1;
            }
            Decision::Hold { .. } => {
                let Some(Phase::New {
                    holdable: true,
                    since,
                }) = phase
                else {
                    broken(format_args!(
                        "P1: {decision:?} but the request may not be held"
                    ));
                };
                self.requests.insert(request.index(), Phase::Held(since));
                self.held.insert((since, request));
            }
            Decision::Reject { .. } => {
                self.requests.insert(request.index(), Phase::Rejected);
            }
        }
    }

    /// The laws about the state after an event: P1, P5, P6, P7.
    fn after(&self, event: &Event) {
        let wakeup = self.inner.next_wakeup();
        if let Event::Arrive(arrival) | Event::Rearrive { arrival, .. } = *event {
            let request = arrival.request;
            let phase = self.requests.get(request.index());
            let undecided = matches!(phase, Some(Phase::New { .. }));
            assert!(!undecided, "P1: {request:?} arrived and got no decision");
        }
        if matches!(event, Event::Tick) {
            let spins = wakeup.filter(|wakeup| wakeup.at <= self.now);
            assert!(
                spins.is_none(),
                "P5: after a tick at {}, {spins:?}",
                self.now
            );
            self.check_ages();
        }
        let wedged = !self.held.is_empty() && !self.up.is_empty() && self.running == 0;
        assert!(
            !wedged || wakeup.is_some(),
            "P6: {} held, a backend is up, and nothing will happen",
            self.held.len()
        );
        self.check_count();
    }

    /// Law P7 for time: a tick ends every hold that has lasted as long as allowed.
    fn check_ages(&self) {
        let (Some((since, request)), Some(bound)) = (self.held.first(), self.hold_timeout_s) else {
            return;
        };
        let age = self.now.since(*since);
        assert!(
            age < super::settings::duration(bound),
            "P7: {request:?} is held for {age:?}, allowed are {bound} s"
        );
    }

    /// Law P7 for numbers, and the policy's own count.
    fn check_count(&self) {
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        if let Some(bound) = self.max_held {
            assert!(
                f64::from(held) <= bound,
                "P7: {held} held, allowed are {bound}"
            );
        }
    }
}

impl Policy for Checked {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.before(now, event);
        let from = out.len();
        self.inner.handle(now, event, out);
        let decisions = out.as_slice().get(from..).unwrap_or_default();
        for decision in decisions {
            self.decided(*decision);
        }
        self.after(event);
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        self.inner.next_wakeup()
    }

    fn snapshot(&self) -> PolicySnapshot {
        let snapshot = self.inner.snapshot();
        let held = self.held.len();
        assert_eq!(
            u32::try_from(held),
            Ok(snapshot.held),
            "P1: the policy has lost count of its held requests"
        );
        snapshot
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        self.inner.program(program)
    }
}

#[expect(
    clippy::panic,
    reason = "the wrapper exists to panic when a law is broken"
)]
#[cold]
fn broken(law: std::fmt::Arguments<'_>) -> ! {
    panic!("{law}")
}
