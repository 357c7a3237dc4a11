//! The synchronous half of the gate: turns what happens to requests into policy events, and decisions into
//! answers for whoever waits.
//!
//! It owns the policy, the table of programs and the table of requests. It is told the time, does no I/O and
//! never waits, so every path of it is unit-tested; [`super::gate`] puts it behind a lock and a clock.

use tokio::sync::oneshot;

use super::intern::ToolNames;
use super::programs::{Limits, ProgramStatus, Programs, Rest, StepEnd};
use super::verdict::{Admission, Answer, Arrived, Arriving, Ending, OpenStep, Refusal, Verdict};
use crate::policy::estimate::PromptEstimator;
use crate::policy::handover::{Handover, Running};
use crate::policy::roster::Backend;
use crate::policy::{
    Adoption, Arrival, BackendId, BackendSample, Decision, Decisions, Event, GapKind, HoldReason,
    Outcome, Policy, PolicySnapshot, ProgramId, RejectReason, RequestId, SharedPrefix, Time,
    Tokens,
};
use crate::telemetry::journal::{Journal, Line};

/// The most idle programs expired in one tick, so that a tick holds the lock for microseconds.
const EXPIRED_PER_TICK: usize = 256;

#[derive(Debug)]
enum State {
    Free,
    /// The policy is being asked; after a switch of policies, about a request whose task waits already.
    Undecided {
        waiter: Option<oneshot::Sender<Verdict>>,
    },
    Held {
        reason: HoldReason,
        waiter: Option<oneshot::Sender<Verdict>>,
    },
    Admitted(Admission),
    /// Refused; waits only for its task to let go of the id.
    Refused(Refusal),
}

#[derive(Debug)]
struct Request {
    state: State,
    /// What the policy was, or will be, told about it.
    arrival: Arrival,
    step_index: u32,
    body_bytes: u64,
    arrived: Time,
    admitted: Time,
    first_token: Option<Time>,
    /// Grows from arrival to arrival.
    order: u64,
    /// Whether the present policy was told of it.
    known: bool,
}

impl Request {
    fn open(&self) -> Option<OpenStep> {
        let held = match self.state {
            State::Held { reason, .. } => Some(reason),
            State::Admitted(_) => None,
            State::Free | State::Undecided { .. } | State::Refused(_) => return None,
        };
        Some(OpenStep {
            step_index: self.step_index,
            arrived: self.arrived,
            held,
        })
    }
}

/// Owner of the policy and of everything it is told about.
#[derive(Debug)]
pub struct Sequencer {
    policy: Box<dyn Policy>,
    policy_name: &'static str,
    journal: Option<Journal>,
    now: Time,
    tools: ToolNames,
    programs: Programs,
    /// Whether the present policy was told of a program, by [`ProgramId`].
    known_programs: Vec<bool>,
    requests: Vec<Request>,
    arrivals: u64,
    free: Vec<RequestId>,
    backends: Vec<Backend>,
    in_flight: Vec<u32>,
    held: usize,
    estimator: PromptEstimator,
    decisions: Decisions,
    draining: bool,
}

impl Sequencer {
    /// A sequencer around `policy` for `backends` backends, all down until told otherwise.
    pub fn new(policy: Box<dyn Policy>, backends: usize, limits: Limits) -> Self {
        Self {
            policy_name: policy.snapshot().policy,
            policy,
            journal: None,
            now: Time::ZERO,
            tools: ToolNames::default(),
            programs: Programs::new(limits),
            known_programs: Vec::new(),
            requests: Vec::new(),
            arrivals: 0,
            free: Vec::new(),
            backends: vec![Backend::default(); backends],
            in_flight: vec![0; backends],
            held: 0,
            estimator: PromptEstimator::default(),
            decisions: Decisions::new(),
            draining: false,
        }
    }

    /// Takes a new request and asks the policy about it.
    pub fn arrive(&mut self, now: Time, arriving: &Arriving<'_>) -> Arrived {
        let now = self.advance(now);
        let program = arriving.program.and_then(|name| self.enter(now, name));
        let (step_index, tool_gap) =
            program.map_or((0, None), |id| self.programs.begin_step(now, id));
        let arrival = self.describe(program, arriving);
        let request = self.take_slot(Request {
            state: State::Undecided { waiter: None },
            arrival,
            step_index,
            body_bytes: arriving.body_bytes,
            arrived: now,
            admitted: now,
            first_token: None,
            order: self.arrivals,
            known: false,
        });
        self.arrivals += 1;
        self.requests[request.index()].arrival.request = request;
        if self.draining {
            self.requests[request.index()].state = State::Refused(Refusal::Draining);
        } else {
            self.tell_arrival(request);
        }
        Arrived {
            request,
            step_index,
            tool_gap,
            policy: self.policy_name,
            answer: self.answer(request),
        }
    }

    /// What the policy will be told; the request's id is not known yet.
    fn describe(&self, program: Option<ProgramId>, arriving: &Arriving<'_>) -> Arrival {
        let history = program.and_then(|id| self.programs.history(id));
        let shared = arriving.shared.map(|shared| SharedPrefix {
            fingerprint: shared.fingerprint,
            tokens: self.estimator.estimate(None, shared.bytes),
        });
        Arrival {
            request: RequestId(0),
            program,
            name_hash: program.map_or(0, |id| self.programs.name_hash(id)),
            prompt: self.estimator.estimate(history, arriving.body_bytes),
            shared,
            last_step: arriving.last_step,
        }
    }

    fn tell_arrival(&mut self, request: RequestId) {
        let slot = &mut self.requests[request.index()];
        slot.known = true;
        let arrival = slot.arrival;
        if let Some(id) = arrival.program {
            self.know(id);
        }
        self.tell(&Event::Arrive(arrival));
    }

    /// The present policy was told of the program.
    fn know(&mut self, program: ProgramId) {
        if self.known_programs.len() <= program.index() {
            self.known_programs.resize(program.index() + 1, false);
        }
        self.known_programs[program.index()] = true;
    }

    /// Tells the policy that a program is over, if it ever heard of it.
    fn tell_release(&mut self, program: ProgramId) {
        if self.forget_known(program) {
            self.tell(&Event::Release { program });
        }
    }

    fn is_known(&self, program: ProgramId) -> bool {
        self.known_programs.get(program.index()) == Some(&true)
    }

    fn forget_known(&mut self, program: ProgramId) -> bool {
        let known = self.known_programs.get_mut(program.index());
        known.is_some_and(|known| std::mem::replace(known, false))
    }

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

    /// Every held request, in order of arrival, as undecided again.
    fn take_held(&mut self) -> Vec<RequestId> {
        let mut held = Vec::with_capacity(self.held);
        for slot in &mut self.requests {
            if let State::Held { waiter, .. } = &mut slot.state {
                let waiter = waiter.take();
                slot.state = State::Undecided { waiter };
                held.push((slot.order, slot.arrival.request));
            }
        }
        self.held = 0;
        held.sort_unstable();
        held.into_iter().map(|(_, request)| request).collect()
    }

    /// Records every event and decision from here on.
    pub fn set_journal(&mut self, journal: Option<Journal>) {
        self.journal = journal;
    }

    /// Writes a line that is no event, such as the policy's own.
    pub fn note(&mut self, line: Line) {
        if let Some(journal) = &mut self.journal {
            journal.record(line);
        }
    }

    /// Ends the journal and hands it over, so that closing it need not hold the lock.
    pub const fn take_journal(&mut self) -> Option<Journal> {
        self.journal.take()
    }

    /// Ends a request, whatever state it is in: a held one is cancelled, a running one is over.
    pub fn finish(&mut self, now: Time, request: RequestId, ending: &Ending<'_>) {
        let now = self.advance(now);
        let slot = &mut self.requests[request.index()];
        let state = std::mem::replace(&mut slot.state, State::Free);
        let (step_index, body_bytes, known) = (slot.step_index, slot.body_bytes, slot.known);
        let arrival = slot.arrival;
        let mut ran_on = None;
        if let State::Admitted(Admission { backend, .. }) = state {
            ran_on = Some(backend);
            self.in_flight[backend.index()] -= 1;
        }
        if let (Some(usage), Outcome::Stop | Outcome::Length | Outcome::ToolCalls) =
            (ending.usage, ending.outcome)
        {
            self.estimator.observe(body_bytes, usage.prompt);
        }
        self.held -= usize::from(matches!(state, State::Held { .. }));
        if known && matches!(state, State::Held { .. } | State::Admitted(_)) {
            self.tell(&Event::Finish {
                request,
                outcome: ending.outcome,
                usage: ending.usage,
            });
        }
        self.free.push(request);
        let Some(id) = arrival.program else { return };
        let step = StepEnd {
            step_index,
            body_bytes,
            arrival,
            ran_on,
        };
        match self.programs.end_step(now, id, step, ending) {
            Rest::Over => self.tell_release(id),
            Rest::Idle if ending.outcome.is_success() && self.is_known(id) => {
                let kind = ending.tool.map_or(GapKind::UserTurn, |name| {
                    GapKind::Tool(self.tools.intern(name))
                });
                self.programs.rests(id, kind);
                self.tell(&Event::ToolGap { program: id, kind });
            }
            Rest::Idle | Rest::Busy => {}
        }
    }

    /// Ends a program: at once if nothing of it is in flight, else with its last request. False if unknown.
    pub fn release(&mut self, now: Time, name: &str) -> bool {
        self.advance(now);
        let Some(id) = self.programs.find(name) else {
            return false;
        };
        if self.programs.end(id) == Rest::Over {
            self.tell_release(id);
        }
        true
    }

    /// A backend answers, with this KV capacity if it is known.
    pub fn backend_up(&mut self, now: Time, backend: BackendId, kv_capacity: Option<Tokens>) {
        self.advance(now);
        let view = &mut self.backends[backend.index()];
        (view.up, view.kv_capacity) = (true, kv_capacity);
        self.tell(&Event::BackendUp {
            backend,
            kv_capacity,
        });
    }

    /// A backend stopped answering.
    pub fn backend_down(&mut self, now: Time, backend: BackendId) {
        self.advance(now);
        self.backends[backend.index()].up = false;
        self.tell(&Event::BackendDown { backend });
    }

    /// A backend was scraped.
    pub fn sample(&mut self, now: Time, sample: BackendSample) {
        self.advance(now);
        self.backends[sample.backend.index()].sample = Some(sample);
        self.tell(&Event::Sample(sample));
    }

    /// The first token of an admitted request has passed.
    pub fn first_token(&mut self, now: Time, request: RequestId) {
        let now = self.advance(now);
        let slot = &mut self.requests[request.index()];
        slot.first_token.get_or_insert(now);
        if slot.known {
            self.tell(&Event::FirstToken { request });
        }
    }

    /// Wakes the policy if it asked for it, and releases programs that have been idle for too long.
    pub fn tick(&mut self, now: Time) {
        let now = self.advance(now);
        if self
            .policy
            .next_wakeup()
            .is_some_and(|wakeup| wakeup.at <= now)
        {
            self.tell(&Event::Tick);
        }
        for _ in 0..EXPIRED_PER_TICK {
            let Some(program) = self.programs.expire_idle(now) else {
                break;
            };
            self.tell_release(program);
        }
    }

    /// When [`Sequencer::tick`] is next needed.
    pub fn next_deadline(&self) -> Option<Time> {
        let wakeup = self.policy.next_wakeup().map(|wakeup| wakeup.at);
        let expiry = self.programs.next_expiry();
        wakeup.into_iter().chain(expiry).min()
    }

    /// From here on, refuses new requests; those held keep their place.
    pub const fn start_draining(&mut self) {
        self.draining = true;
    }

    /// Refuses everything that is still held; returns how many requests that was.
    pub fn refuse_held(&mut self, now: Time) -> usize {
        self.advance(now);
        // All of them first: a policy that hears of one end may admit the next, which must not run any more.
        let held = self.take_held();
        for request in &held {
            self.refuse(request.index(), Refusal::Draining);
        }
        for &request in &held {
            if self.requests[request.index()].known {
                self.tell(&Event::Finish {
                    request,
                    outcome: Outcome::Failed,
                    usage: None,
                });
            }
        }
        held.len()
    }

    /// Requests held now.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Requests that have arrived and not finished: held, running, or about to hear that they are refused.
    pub fn open(&self) -> usize {
        self.requests.len() - self.free.len()
    }

    /// Requests running on each backend, by [`BackendId`].
    pub fn in_flight(&self) -> &[u32] {
        &self.in_flight
    }

    /// Programs known now.
    pub fn program_count(&self) -> usize {
        self.programs.len()
    }

    /// Every program, in id order. O(programs).
    pub fn programs(&self) -> Vec<ProgramStatus> {
        self.programs.list(|id| self.policy.program(id))
    }

    /// What is open of a program, in order of arrival; `None` for an unknown one. O(requests).
    pub fn open_steps(&self, name: &str) -> Option<Vec<OpenStep>> {
        let id = self.programs.find(name)?;
        let own = self
            .requests
            .iter()
            .filter(|slot| slot.arrival.program == Some(id));
        let mut open: Vec<_> = own
            .filter_map(|slot| Some((slot.order, slot.open()?)))
            .collect();
        open.sort_unstable_by_key(|&(order, _)| order);
        Some(open.into_iter().map(|(_, step)| step).collect())
    }

    /// The policy's numbers.
    pub fn snapshot(&self) -> PolicySnapshot {
        let mut snapshot = self.policy.snapshot();
        let bytes = self.estimator.bytes_per_token();
        snapshot.estimates.push(("prompt_bytes_per_token", bytes));
        snapshot
    }

    fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    /// Finds or makes the program of a request; `None` if the table is full of busy programs.
    fn enter(&mut self, now: Time, name: &str) -> Option<ProgramId> {
        if let Some(id) = self.programs.find(name) {
            return Some(id);
        }
        if self.programs.is_full() {
            let oldest = self.programs.expire(now)?;
            self.tell_release(oldest);
        }
        Some(self.programs.insert(now, name))
    }

    fn take_slot(&mut self, request: Request) -> RequestId {
        if let Some(id) = self.free.pop() {
            self.requests[id.index()] = request;
            return id;
        }
        let id = RequestId(u32::try_from(self.requests.len()).unwrap_or(u32::MAX));
        self.requests.push(request);
        id
    }

    /// The decision on a request that has just arrived.
    fn answer(&mut self, request: RequestId) -> Answer {
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

    fn tell(&mut self, event: &Event) {
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

    fn refuse(&mut self, index: usize, refusal: Refusal) {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::policy::Wakeup;

    /// Holds everything until a tick, and notes what it is told.
    #[derive(Debug, Default)]
    struct Valve {
        held: Vec<RequestId>,
        told: Arc<Mutex<Vec<String>>>,
    }

    impl Policy for Valve {
        fn handle(&mut self, _now: Time, event: &Event, out: &mut Decisions) {
            let word = match event {
                Event::Arrive(arrival) | Event::Rearrive { arrival, .. } => {
                    self.held.push(arrival.request);
                    out.hold(arrival.request, HoldReason::NoRoom);
                    "arrive"
                }
                Event::Tick => {
                    for request in self.held.drain(..) {
                        out.admit_ranked(request, BackendId(0), Some(RANK));
                    }
                    "tick"
                }
                Event::Finish {
                    request, outcome, ..
                } => {
                    self.held.retain(|held| held != request);
                    outcome.as_str()
                }
                Event::ToolGap {
                    kind: GapKind::UserTurn,
                    ..
                } => "user turn",
                Event::ToolGap { .. } => "tool gap",
                Event::Release { .. } => "release",
                Event::Adopt(_) => "adopt",
                Event::FirstToken { .. }
                | Event::Sample(_)
                | Event::BackendUp { .. }
                | Event::BackendDown { .. } => return,
            };
            self.told.lock().unwrap().push(word.to_owned());
        }

        fn next_wakeup(&self) -> Option<Wakeup> {
            (!self.held.is_empty()).then_some(Wakeup {
                at: Time::from_millis(100),
                why: "test",
            })
        }

        fn snapshot(&self) -> PolicySnapshot {
            PolicySnapshot::default()
        }
    }

    const RANK: i64 = 7;
    const MS: fn(u64) -> Time = Time::from_millis;
    const SERVED: Ending<'_> = Ending {
        outcome: Outcome::Stop,
        usage: None,
        tool: None,
    };

    fn sequencer(max_programs: usize) -> (Sequencer, impl Fn() -> Vec<String>) {
        let valve = Valve::default();
        let told = Arc::clone(&valve.told);
        let limits = Limits {
            program_idle: Duration::from_secs(60),
            max_programs,
        };
        (Sequencer::new(Box::new(valve), 1, limits), move || {
            std::mem::take(&mut *told.lock().unwrap())
        })
    }

    fn step(program: Option<&str>) -> Arriving<'_> {
        Arriving {
            program,
            body_bytes: 400,
            shared: None,
            last_step: false,
        }
    }

    fn admitted(priority: Option<i64>) -> Verdict {
        Verdict::Admit(Admission {
            backend: BackendId(0),
            priority,
        })
    }

    fn verdict(arrived: Arrived) -> oneshot::Receiver<Verdict> {
        match arrived.answer {
            Answer::Held(_, verdict) => verdict,
            Answer::Now(verdict) => panic!("not held: {verdict:?}"),
        }
    }

    #[test]
    fn a_held_request_hears_of_its_admission_and_its_rank() {
        let (mut sequencer, told) = sequencer(10);
        let arrived = sequencer.arrive(MS(0), &step(Some("a")));
        let request = arrived.request;
        let mut waiting = verdict(arrived);
        assert!(waiting.try_recv().is_err());
        assert_eq!((sequencer.held(), sequencer.open()), (1, 1));
        sequencer.tick(MS(100));
        assert_eq!(waiting.try_recv(), Ok(admitted(Some(RANK))));
        assert_eq!((sequencer.held(), sequencer.in_flight()[0]), (0, 1));
        sequencer.finish(MS(200), request, &SERVED);
        assert_eq!((sequencer.open(), sequencer.in_flight()[0]), (0, 0));
        assert_eq!(told(), ["arrive", "tick", "stop", "user turn"]);
    }

    #[test]
    fn a_client_that_leaves_while_held_is_never_admitted() {
        let (mut sequencer, told) = sequencer(10);
        let arrived = sequencer.arrive(MS(0), &step(Some("a")));
        sequencer.finish(MS(1), arrived.request, &Ending::CANCELLED);
        sequencer.tick(MS(100));
        assert_eq!(
            (sequencer.held(), sequencer.open(), sequencer.in_flight()[0]),
            (0, 0, 0)
        );
        assert_eq!(told(), ["arrive", "cancelled"]);
    }

    #[test]
    fn a_retry_is_the_same_step_and_the_next_one_is_not() {
        let (mut sequencer, _) = sequencer(10);
        let mut run = |at: u64, ending: &Ending<'_>| {
            let arrived = sequencer.arrive(MS(at), &step(Some("a")));
            sequencer.tick(MS(at + 100));
            sequencer.finish(MS(at + 200), arrived.request, ending);
            (arrived.step_index, arrived.tool_gap)
        };
        assert_eq!(run(0, &Ending::CANCELLED), (0, None));
        assert_eq!(run(1000, &SERVED), (0, None));
        assert_eq!(run(3000, &SERVED), (1, Some(Duration::from_millis(1800))));
    }

    #[test]
    fn a_release_with_a_request_in_flight_waits_for_it() {
        let (mut sequencer, told) = sequencer(10);
        let arrived = sequencer.arrive(MS(0), &step(Some("a")));
        assert!(sequencer.release(MS(1), "a"));
        assert_eq!(sequencer.program_count(), 1);
        sequencer.tick(MS(100));
        sequencer.finish(MS(200), arrived.request, &SERVED);
        assert_eq!(sequencer.program_count(), 0);
        assert_eq!(told(), ["arrive", "tick", "stop", "release"]);
        assert!(!sequencer.release(MS(201), "a"), "already gone");
    }

    #[test]
    fn the_last_step_ends_its_program_only_if_it_was_served() {
        let (mut sequencer, _) = sequencer(10);
        let last = Arriving {
            last_step: true,
            ..step(Some("a"))
        };
        for (ending, left) in [(Ending::CANCELLED, 1), (SERVED, 0)] {
            let arrived = sequencer.arrive(MS(0), &last);
            sequencer.tick(MS(100));
            sequencer.finish(MS(200), arrived.request, &ending);
            assert_eq!(sequencer.program_count(), left);
        }
    }

    #[test]
    fn an_idle_program_expires_and_a_busy_one_does_not() {
        let (mut sequencer, _) = sequencer(10);
        let idle = sequencer.arrive(MS(0), &step(Some("idle")));
        sequencer.tick(MS(100));
        sequencer.finish(MS(200), idle.request, &SERVED);
        sequencer.arrive(MS(300), &step(Some("busy")));
        sequencer.tick(MS(60_199));
        assert_eq!(sequencer.program_count(), 2);
        sequencer.tick(MS(60_200));
        assert_eq!(sequencer.program_count(), 1);
    }

    #[test]
    fn a_full_table_forgets_the_longest_idle_program_and_never_a_busy_one() {
        let (mut sequencer, _) = sequencer(1);
        let first = sequencer.arrive(MS(0), &step(Some("a")));
        let second = sequencer.arrive(MS(1), &step(Some("b")));
        assert_eq!(sequencer.program_count(), 1, "b passes without a place");
        for request in [first.request, second.request] {
            sequencer.finish(MS(2), request, &Ending::CANCELLED);
        }
        sequencer.arrive(MS(3), &step(Some("c")));
        let names: Vec<_> = sequencer.programs().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["c".into()]);
    }

    #[test]
    fn requests_without_identity_are_not_pooled_into_one_program() {
        let (mut sequencer, _) = sequencer(10);
        sequencer.arrive(MS(0), &step(None));
        sequencer.arrive(MS(0), &step(None));
        assert_eq!((sequencer.open(), sequencer.program_count()), (2, 0));
    }

    #[test]
    fn another_policy_takes_over_what_is_held_and_lets_what_runs_finish() {
        let (mut sequencer, _) = sequencer(10);
        let running = sequencer.arrive(MS(0), &step(Some("running")));
        sequencer.backend_up(MS(0), BackendId(0), None);
        sequencer.tick(MS(100));
        let first = sequencer.arrive(MS(101), &step(Some("first")));
        let second = sequencer.arrive(MS(102), &step(Some("second")));
        let (first, second) = (
            (first.request, verdict(first)),
            (second.request, verdict(second)),
        );
        let config = crate::policy::Config::by_name("baseline").unwrap();
        sequencer.switch(MS(103), config.build());
        assert_eq!((sequencer.held(), sequencer.in_flight()[0]), (0, 3));
        for (request, mut verdict) in [first, second] {
            assert_eq!(verdict.try_recv(), Ok(admitted(None)));
            sequencer.finish(MS(200), request, &SERVED);
        }
        sequencer.finish(MS(201), running.request, &SERVED);
        assert!(sequencer.release(MS(202), "running"));
        assert_eq!((sequencer.open(), sequencer.in_flight()[0]), (0, 0));
    }

    #[test]
    fn another_policy_is_told_of_what_runs_and_is_idle_and_hears_how_it_ends() {
        let (mut sequencer, _) = sequencer(10);
        sequencer.backend_up(MS(0), BackendId(0), None);
        let idle = sequencer.arrive(MS(0), &step(Some("idle")));
        let running = sequencer.arrive(MS(0), &step(Some("running")));
        sequencer.tick(MS(100));
        sequencer.first_token(MS(150), running.request);
        sequencer.finish(MS(200), idle.request, &SERVED);
        let held = sequencer.arrive(MS(300), &step(Some("held")));
        let valve = Valve::default();
        let told = Arc::clone(&valve.told);
        sequencer.switch(MS(400), Box::new(valve));
        let told = || std::mem::take(&mut *told.lock().unwrap());
        assert_eq!(told(), ["adopt", "adopt", "stop", "user turn", "arrive"]);
        sequencer.finish(MS(500), running.request, &SERVED);
        sequencer.finish(MS(500), held.request, &Ending::CANCELLED);
        assert!(sequencer.release(MS(600), "idle"));
        assert_eq!(told(), ["stop", "user turn", "cancelled", "release"]);
    }

    #[test]
    fn a_held_request_stays_held_and_waits_on_under_another_policy() {
        let (mut one, _) = sequencer(10);
        let arrived = one.arrive(MS(0), &step(Some("a")));
        let mut waiting = verdict(arrived);
        one.switch(MS(1), Box::new(Valve::default()));
        assert_eq!(one.held(), 1);
        assert!(waiting.try_recv().is_err());
        one.tick(MS(100));
        assert_eq!(waiting.try_recv(), Ok(admitted(Some(RANK))));
    }

    #[test]
    fn a_drain_refuses_newcomers_at_once_and_the_held_when_told() {
        let (mut sequencer, told) = sequencer(10);
        let arrived = sequencer.arrive(MS(0), &step(Some("a")));
        let request = arrived.request;
        let mut waiting = verdict(arrived);
        sequencer.start_draining();
        let late = sequencer.arrive(MS(1), &step(Some("b")));
        assert!(matches!(
            late.answer,
            Answer::Now(Verdict::Refuse(Refusal::Draining))
        ));
        assert!(
            waiting.try_recv().is_err(),
            "a held request keeps its place"
        );
        assert_eq!(sequencer.refuse_held(MS(2)), 1);
        assert_eq!(waiting.try_recv(), Ok(Verdict::Refuse(Refusal::Draining)));
        for request in [request, late.request] {
            sequencer.finish(MS(3), request, &Ending::CANCELLED);
        }
        assert_eq!((sequencer.open(), sequencer.held()), (0, 0));
        assert_eq!(
            told(),
            ["arrive", "failed"],
            "the policy hears of each request once"
        );
    }
}
