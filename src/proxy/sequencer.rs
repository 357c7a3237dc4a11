//! The synchronous half of the gate: turns what happens to requests into policy events, and decisions into
//! answers for whoever waits.
//!
//! It owns the policy, the table of programs and the table of requests. It is told the time, does no I/O and
//! never waits, so every path of it is unit-tested; [`super::gate`] puts it behind a lock and a clock.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;

use super::intern::{ProgramNames, ToolNames};
use super::request::SharedBytes;
use crate::policy::estimate::{PromptEstimator, PromptHistory};
use crate::policy::ids::name_hash;
use crate::policy::{
    Arrival, BackendId, BackendSample, Decision, Decisions, Event, GapKind, HoldReason, Outcome,
    Policy, PolicySnapshot, ProgramId, ProgramView, RejectReason, RequestId, SharedPrefix, Time,
    Tokens, Usage,
};

/// The most idle programs expired in one tick, so that a tick holds the lock for microseconds.
const EXPIRED_PER_TICK: usize = 256;

/// Bounds of the program table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// An idle program is released after this long without a request.
    pub program_idle: Duration,
    /// The most programs known at once. A newcomer then takes the place of the program that has been idle the
    /// longest; if none is idle, it is treated as a request without identity.
    pub max_programs: usize,
}

/// What the policy decided, for the task that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send the request to this backend.
    Admit(BackendId),
    /// Answer with an error.
    Refuse(Refusal),
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy refused it.
    Policy(RejectReason),
    /// The gate is shutting down.
    Draining,
}

/// A request as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// The program's name; `None` for a request without identity.
    pub program: Option<&'a str>,
    /// Size of its body in bytes, from which its tokens are estimated.
    pub body_bytes: u64,
    /// The part of the body that other programs share.
    pub shared: Option<SharedBytes>,
    /// The client said that this is the last step.
    pub last_step: bool,
}

/// What is known about a request once it has arrived.
#[derive(Debug)]
pub struct Arrived {
    /// Its id until [`Sequencer::finish`].
    pub request: RequestId,
    /// Position of the step in its program, from 0.
    pub step_index: u32,
    /// The program's tool gap before this step; `None` for a first step or beside another request.
    pub tool_gap: Option<Duration>,
    /// The decision, or the promise of one.
    pub answer: Answer,
}

/// A decision that was made at once, or one to wait for.
#[derive(Debug)]
pub enum Answer {
    /// Decided on arrival.
    Now(Verdict),
    /// Held; the verdict follows. Dropping the receiver does not cancel the request: [`Sequencer::finish`] does.
    Held(HoldReason, oneshot::Receiver<Verdict>),
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// The outcome, for the policy.
    pub outcome: Outcome,
    /// Token counts, if the backend reported them.
    pub usage: Option<Usage>,
    /// The tool that the response called.
    pub tool: Option<&'a str>,
}

impl Ending<'_> {
    /// The client left.
    pub const CANCELLED: Self = Self {
        outcome: Outcome::Cancelled,
        usage: None,
        tool: None,
    };
}

/// A program as `GET /programs` shows it.
#[derive(Clone, Debug)]
pub struct ProgramStatus {
    /// Its name.
    pub name: Box<str>,
    /// Where its last request went.
    pub backend: Option<BackendId>,
    /// Context after its last reported step.
    pub context: Tokens,
    /// Steps started.
    pub steps: u32,
    /// Requests held now.
    pub held: u32,
    /// Requests running now.
    pub running: u32,
    /// The policy's view.
    pub view: ProgramView,
}

#[derive(Debug)]
struct Program {
    name: Box<str>,
    name_hash: u64,
    backend: Option<BackendId>,
    context: Tokens,
    history: Option<PromptHistory>,
    next_step: u32,
    held: u32,
    running: u32,
    /// When its last request ended; its key in the idle index while nothing is in flight.
    idle_since: Time,
    /// Whether it ever finished a step, so that a tool gap can be measured.
    has_finished: bool,
    /// Released by the client while requests were in flight: it ends with the last of them.
    ending: bool,
}

#[derive(Debug)]
enum State {
    Free,
    /// The policy is being asked.
    Undecided,
    Held {
        reason: HoldReason,
        waiter: Option<oneshot::Sender<Verdict>>,
    },
    Admitted(BackendId),
    /// Refused; waits only for its task to let go of the id.
    Refused(Refusal),
}

#[derive(Debug)]
struct Request {
    state: State,
    program: Option<ProgramId>,
    step_index: u32,
    body_bytes: u64,
    last_step: bool,
}

/// Owner of the policy and of everything it is told about.
#[derive(Debug)]
pub struct Sequencer {
    policy: Box<dyn Policy>,
    limits: Limits,
    now: Time,
    names: ProgramNames,
    tools: ToolNames,
    programs: Vec<Option<Program>>,
    /// Programs without a request in flight, longest idle first.
    idle: BTreeSet<(Time, ProgramId)>,
    requests: Vec<Request>,
    free: Vec<RequestId>,
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
            policy,
            limits,
            now: Time::ZERO,
            names: ProgramNames::default(),
            tools: ToolNames::default(),
            programs: Vec::new(),
            idle: BTreeSet::new(),
            requests: Vec::new(),
            free: Vec::new(),
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
        let (step_index, tool_gap) = program.map_or((0, None), |id| self.begin_step(now, id));
        let request = self.take_slot(Request {
            state: State::Undecided,
            program,
            step_index,
            body_bytes: arriving.body_bytes,
            last_step: arriving.last_step,
        });
        if self.draining {
            self.requests[request.index()].state = State::Refused(Refusal::Draining);
        } else {
            let arrival = self.describe(request, program, arriving);
            self.tell(&Event::Arrive(arrival));
        }
        Arrived {
            request,
            step_index,
            tool_gap,
            answer: self.answer(request),
        }
    }

    fn describe(
        &self,
        request: RequestId,
        program: Option<ProgramId>,
        arriving: &Arriving<'_>,
    ) -> Arrival {
        let history = program.and_then(|id| self.program(id)?.history);
        let shared = arriving.shared.map(|shared| SharedPrefix {
            fingerprint: shared.fingerprint,
            tokens: self.estimator.estimate(None, shared.bytes),
        });
        let prompt = self.estimator.estimate(history, arriving.body_bytes);
        Arrival {
            request,
            program,
            name_hash: program.map_or(0, |id| self.program(id).map_or(0, |p| p.name_hash)),
            prompt,
            shared,
            last_step: arriving.last_step,
        }
    }

    /// Ends a request, whatever state it is in: a held one is cancelled, a running one is over.
    pub fn finish(&mut self, now: Time, request: RequestId, ending: &Ending<'_>) {
        let now = self.advance(now);
        let slot = &mut self.requests[request.index()];
        let state = std::mem::replace(&mut slot.state, State::Free);
        let (program, step_index, body_bytes, last_step) = (
            slot.program,
            slot.step_index,
            slot.body_bytes,
            slot.last_step,
        );
        if let State::Admitted(backend) = state {
            self.in_flight[backend.index()] -= 1;
        }
        if let (Some(usage), Outcome::Stop | Outcome::Length | Outcome::ToolCalls) =
            (ending.usage, ending.outcome)
        {
            self.estimator.observe(body_bytes, usage.prompt);
        }
        self.held -= usize::from(matches!(state, State::Held { .. }));
        if matches!(state, State::Held { .. } | State::Admitted(_)) {
            self.tell(&Event::Finish {
                request,
                outcome: ending.outcome,
                usage: ending.usage,
            });
        }
        self.free.push(request);
        if let Some(program) = program {
            let was_running = matches!(state, State::Admitted(_));
            self.end_step(now, program, step_index, body_bytes, was_running, ending);
            self.settle(
                now,
                program,
                last_step && ending.outcome.is_success(),
                ending,
            );
        }
    }

    /// A program's request has ended: counts, context and the next step's index follow.
    fn end_step(
        &mut self,
        now: Time,
        id: ProgramId,
        step_index: u32,
        body_bytes: u64,
        was_running: bool,
        ending: &Ending<'_>,
    ) {
        let Some(program) = self.programs[id.index()].as_mut() else {
            return;
        };
        if was_running {
            program.running -= 1;
        } else {
            program.held -= 1;
        }
        program.idle_since = now;
        if ending.outcome.is_success() {
            program.has_finished = true;
            if let Some(usage) = ending.usage {
                program.context = usage.context();
                program.history = Some(PromptHistory {
                    prompt: usage.prompt,
                    body_bytes,
                });
            }
        } else if program.next_step == step_index + 1 {
            // The client's retry is the same step.
            program.next_step = step_index;
        }
    }

    /// With nothing in flight a program ends, or its tool gap begins.
    fn settle(&mut self, now: Time, id: ProgramId, done: bool, ending: &Ending<'_>) {
        let Some(program) = self.programs[id.index()].as_mut() else {
            return;
        };
        program.ending |= done;
        if program.held + program.running > 0 {
            return;
        }
        if program.ending {
            return self.forget(id);
        }
        self.idle.insert((now, id));
        if ending.outcome.is_success() {
            let kind = ending.tool.map_or(GapKind::UserTurn, |name| {
                GapKind::Tool(self.tools.intern(name))
            });
            self.tell(&Event::ToolGap { program: id, kind });
        }
    }

    /// Ends a program: at once if nothing of it is in flight, else with its last request. False if unknown.
    pub fn release(&mut self, now: Time, name: &str) -> bool {
        self.advance(now);
        let Some(id) = self.names.get(name) else {
            return false;
        };
        let Some(program) = self.programs[id.index()].as_mut() else {
            return false;
        };
        if program.held + program.running > 0 {
            program.ending = true;
        } else {
            let key = (program.idle_since, id);
            self.idle.remove(&key);
            self.forget(id);
        }
        true
    }

    /// A backend answers, with this KV capacity if it is known.
    pub fn backend_up(&mut self, now: Time, backend: BackendId, kv_capacity: Option<Tokens>) {
        self.advance(now);
        self.tell(&Event::BackendUp {
            backend,
            kv_capacity,
        });
    }

    /// A backend stopped answering.
    pub fn backend_down(&mut self, now: Time, backend: BackendId) {
        self.advance(now);
        self.tell(&Event::BackendDown { backend });
    }

    /// A backend was scraped.
    pub fn sample(&mut self, now: Time, sample: BackendSample) {
        self.advance(now);
        self.tell(&Event::Sample(sample));
    }

    /// The first token of an admitted request has passed.
    pub fn first_token(&mut self, now: Time, request: RequestId) {
        self.advance(now);
        self.tell(&Event::FirstToken { request });
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
            let Some(&(since, id)) = self.idle.first() else {
                break;
            };
            if now.since(since) < self.limits.program_idle {
                break;
            }
            self.idle.pop_first();
            self.forget(id);
        }
    }

    /// When [`Sequencer::tick`] is next needed.
    pub fn next_deadline(&self) -> Option<Time> {
        let wakeup = self.policy.next_wakeup().map(|wakeup| wakeup.at);
        let expiry = self
            .idle
            .first()
            .map(|&(since, _)| since + self.limits.program_idle);
        wakeup.into_iter().chain(expiry).min()
    }

    /// From here on, refuses new requests; those held keep their place.
    pub const fn start_draining(&mut self) {
        self.draining = true;
    }

    /// Refuses everything that is still held; returns how many requests that was.
    pub fn refuse_held(&mut self, now: Time) -> usize {
        self.advance(now);
        let mut refused = 0;
        for index in 0..self.requests.len() {
            let slot = &mut self.requests[index];
            if !matches!(slot.state, State::Held { .. }) {
                continue;
            }
            self.refuse(index, Refusal::Draining);
            let request = RequestId(u32::try_from(index).unwrap_or(u32::MAX));
            self.tell(&Event::Finish {
                request,
                outcome: Outcome::Failed,
                usage: None,
            });
            refused += 1;
        }
        refused
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
        self.names.len()
    }

    /// Every program, in id order. O(programs).
    pub fn programs(&self) -> Vec<ProgramStatus> {
        let known = self
            .programs
            .iter()
            .zip(0..)
            .filter_map(|(program, id)| Some((program.as_ref()?, ProgramId(id))));
        known
            .map(|(program, id)| ProgramStatus {
                name: program.name.clone(),
                backend: program.backend,
                context: program.context,
                steps: program.next_step,
                held: program.held,
                running: program.running,
                view: self.policy.program(id),
            })
            .collect()
    }

    /// The policy's numbers.
    pub fn snapshot(&self) -> PolicySnapshot {
        self.policy.snapshot()
    }

    fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    fn program(&self, id: ProgramId) -> Option<&Program> {
        self.programs.get(id.index())?.as_ref()
    }

    /// Finds or makes the program of a request; `None` if the table is full of busy programs.
    fn enter(&mut self, now: Time, name: &str) -> Option<ProgramId> {
        if let Some(id) = self.names.get(name) {
            return Some(id);
        }
        if self.names.len() >= self.limits.max_programs {
            let (_, oldest) = self.idle.pop_first()?;
            self.forget(oldest);
        }
        let id = self.names.insert(name);
        if self.programs.len() <= id.index() {
            self.programs.resize_with(id.index() + 1, || None);
        }
        self.programs[id.index()] = Some(Program {
            name: name.into(),
            name_hash: name_hash(name),
            backend: None,
            context: Tokens::ZERO,
            history: None,
            next_step: 0,
            held: 0,
            running: 0,
            idle_since: now,
            has_finished: false,
            ending: false,
        });
        Some(id)
    }

    /// Counts a request in; it is not yet decided, which counts as held.
    fn begin_step(&mut self, now: Time, id: ProgramId) -> (u32, Option<Duration>) {
        let Some(program) = self.programs[id.index()].as_mut() else {
            return (0, None);
        };
        let alone = program.held + program.running == 0;
        if alone {
            self.idle.remove(&(program.idle_since, id));
        }
        let gap = (alone && program.has_finished).then(|| now.since(program.idle_since));
        let index = program.next_step;
        program.next_step += 1;
        program.held += 1;
        (index, gap)
    }

    /// Tells the policy and forgets the name. Nothing of the program is in flight.
    fn forget(&mut self, id: ProgramId) {
        let Some(program) = self.programs[id.index()].take() else {
            return;
        };
        self.names.remove(&program.name);
        self.tell(&Event::Release { program: id });
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
            State::Admitted(backend) => Answer::Now(Verdict::Admit(*backend)),
            State::Held { reason, waiter } => {
                let (sender, verdict) = oneshot::channel();
                *waiter = Some(sender);
                Answer::Held(*reason, verdict)
            }
            State::Refused(refusal) => Answer::Now(Verdict::Refuse(*refusal)),
            State::Free | State::Undecided => {
                debug_assert!(false, "law P1: {request:?} arrived and got no decision");
                Answer::Now(Verdict::Refuse(Refusal::Policy(RejectReason::NoBackend)))
            }
        }
    }

    fn tell(&mut self, event: &Event) {
        let mut decisions = std::mem::take(&mut self.decisions);
        self.policy.handle(self.now, event, &mut decisions);
        for decision in decisions.drain() {
            self.apply(decision);
        }
        self.decisions = decisions;
    }

    fn apply(&mut self, decision: Decision) {
        let index = decision.request().index();
        match decision {
            Decision::Admit { backend, .. } => self.admit(index, backend),
            Decision::Hold { reason, .. } => self.hold(index, reason),
            Decision::Reject { reason, .. } => self.refuse(index, Refusal::Policy(reason)),
        }
    }

    fn admit(&mut self, index: usize, backend: BackendId) {
        let slot = &mut self.requests[index];
        if let Some(program) = slot
            .program
            .and_then(|id| self.programs[id.index()].as_mut())
        {
            program.held -= 1;
            program.running += 1;
            program.backend = Some(backend);
        }
        self.in_flight[backend.index()] += 1;
        let state = std::mem::replace(&mut slot.state, State::Admitted(backend));
        self.notify(state, Verdict::Admit(backend));
    }

    fn refuse(&mut self, index: usize, refusal: Refusal) {
        let state = std::mem::replace(&mut self.requests[index].state, State::Refused(refusal));
        self.notify(state, Verdict::Refuse(refusal));
    }

    fn hold(&mut self, index: usize, why: HoldReason) {
        match &mut self.requests[index].state {
            State::Held { reason, .. } => *reason = why,
            state @ (State::Free | State::Undecided | State::Admitted(_) | State::Refused(_)) => {
                *state = State::Held {
                    reason: why,
                    waiter: None,
                };
                self.held += 1;
            }
        }
    }

    fn notify(&mut self, before: State, verdict: Verdict) {
        let State::Held { waiter, .. } = before else {
            return;
        };
        self.held -= 1;
        if let Some(waiter) = waiter {
            // A receiver that is gone means that its task is about to finish the request.
            let _gone = waiter.send(verdict);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

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
                Event::Arrive(arrival) => {
                    self.held.push(arrival.request);
                    out.hold(arrival.request, HoldReason::NoRoom);
                    "arrive"
                }
                Event::Tick => {
                    for request in self.held.drain(..) {
                        out.admit(request, BackendId(0));
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
                _ => return,
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

    fn verdict(arrived: Arrived) -> oneshot::Receiver<Verdict> {
        match arrived.answer {
            Answer::Held(_, verdict) => verdict,
            Answer::Now(verdict) => panic!("not held: {verdict:?}"),
        }
    }

    #[test]
    fn a_held_request_hears_of_its_admission() {
        let (mut sequencer, told) = sequencer(10);
        let arrived = sequencer.arrive(MS(0), &step(Some("a")));
        let request = arrived.request;
        let mut waiting = verdict(arrived);
        assert!(waiting.try_recv().is_err());
        assert_eq!((sequencer.held(), sequencer.open()), (1, 1));
        sequencer.tick(MS(100));
        assert_eq!(waiting.try_recv(), Ok(Verdict::Admit(BackendId(0))));
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
