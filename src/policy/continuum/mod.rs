//! Continuum: keeps a program's room in the KV cache through a tool gap, up to a time-to-live.
//!
//! Idea: first come, first served by *program*, not by request. When a step ends, the program's context stays
//! reserved for as long as waiting for its return pays; if it returns in time, it goes before newcomers and finds
//! its cache. A request waits at the gate until it fits beside what runs and what is reserved.
//! Source: "Continuum" (arXiv 2511.02230) and its public code, which pins blocks inside vLLM; here the pins are
//! virtual: an unmodified vLLM may still evict a reserved context, because its eviction is plain LRU. The guard of
//! `eviction` holds back what would make it.
//! Worse when the KV cache is plentiful (it then only adds rules), when gaps are long (rooms are given up before
//! their programs return), and for short newcomers behind a large head (nobody passes the head).
//!
//! Here: what each event does. `admission`: who runs next, and where. `pressure`: what gives way. `pins`: the
//! reservations. `ttl`: how long they last. `eviction`: what the backend does meanwhile. `notes`: what is counted.

mod admission;
mod config;
mod eviction;
mod notes;
mod pins;
mod pressure;
mod programs;
#[cfg(test)]
mod tests;
mod ttl;

pub use config::{ColdStart, Config, Pressure, TtlMode};
pub use notes::{NoPinWhy, Note, StartWhy, UnpinWhy};

use std::time::Duration;

use super::ledger::{Footprint, Ledger};
use super::roster::Roster;
use super::settings;
use super::slots::Slots;
use super::waiting::Waiting;
use super::{
    Adoption, Arrival, BackendId, Decisions, Event, GapKind, Outcome, Policy, PolicySnapshot,
    ProgramId, ProgramView, RejectReason, RequestId, Time, Tokens, Usage, Wakeup,
};
use admission::{Key, Leaving};
use eviction::Eviction;
use notes::Notes;
use pins::Pins;
use programs::{Program, Run};
use ttl::Estimates;

/// The name in the registry.
pub const NAME: &str = "continuum";

/// The policy's state.
#[derive(Debug)]
pub struct Continuum {
    config: Config,
    roster: Roster,
    ledger: Ledger,
    eviction: Eviction,
    programs: Slots<Program>,
    runs: Slots<Run>,
    next_seq: u64,
    /// Programs with a held request.
    holding: u32,
    pins: Pins,
    waiting: Waiting<Key>,
    /// Requests that were enqueued since the last decision.
    newcomers: Vec<RequestId>,
    estimates: Estimates,
    /// By backend: a senior request waits for it. Kept between calls for its allocation only.
    blocked: Vec<bool>,
    notes: Notes,
}

impl Continuum {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s);
        Self {
            roster: Roster::new(),
            ledger: Ledger::new(),
            eviction: Eviction::default(),
            programs: Slots::new(),
            runs: Slots::new(),
            next_seq: 0,
            holding: 0,
            pins: Pins::new(),
            waiting: Waiting::new(config.max_held, hold),
            newcomers: Vec::new(),
            estimates: Estimates::new(&config),
            blocked: Vec::new(),
            notes: Notes::default(),
            config,
        }
    }

    /// Keeps a [`Note`] of everything that happens from here on, without bound, for [`Self::take_notes`].
    pub fn keep_notes(&mut self) {
        self.notes.keep();
    }

    /// What happened since the last call, in order; nothing unless [`Self::keep_notes`] was called.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.notes.take()
    }

    /// Takes one event without deciding who runs next; an arrival stays undecided. For a caller that has several
    /// events of one moment: [`Self::decide`] must follow the last of them, at the same `now`.
    pub fn absorb(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.take_in(now, event, false, out);
    }

    /// Decides who runs next, and what becomes of the arrivals since the last call.
    pub fn decide(&mut self, now: Time, out: &mut Decisions) {
        self.pump(now, out);
        self.time_out(now, out);
        self.settle_newcomers(out);
    }

    /// The backend says that a program's context is gone from its cache, as vLLM's KV events do: its pin protects
    /// nothing any more. Decide afterwards.
    pub fn evicted(&mut self, id: ProgramId) {
        if let Some(backend) = self.pinned_on(id) {
            self.eviction.take(id, backend);
        }
        self.unpin(id, UnpinWhy::Evicted);
    }

    /// Learns a gap that was measured elsewhere, as if it had ended here.
    pub fn remember_gap(&mut self, kind: GapKind, gap: Duration) {
        self.estimates.gap_ended(&self.config, kind, gap);
    }

    /// Says whether the program's next arrival, which is due now, repeats a step that its backend failed, and goes
    /// before everyone else; without a word, it does if the policy saw the failure.
    pub fn expect_retry(&mut self, now: Time, id: ProgramId, retry: bool) {
        if let Some(program) = self.enter(now, id) {
            program.failed = retry;
        }
    }

    /// Takes one event; `alone` if it is the only one of its moment. Returns whether there is something to decide.
    fn take_in(&mut self, now: Time, event: &Event, alone: bool, out: &mut Decisions) -> bool {
        // A request that arrives in the moment of expiry still finds its room; a later one does not, however
        // late the tick. Among events of one moment only the tick at their end lets pins expire.
        let late = alone && self.expire(|expires| expires < now);
        self.roster.observe(event);
        let due = match *event {
            Event::Arrive(arrival) => self.arrive(now, (now, arrival), alone, out),
            Event::Rearrive { arrival, since } => self.arrive(now, (since, arrival), alone, out),
            Event::Adopt(adoption) => self.adopt(now, &adoption),
            Event::Finish {
                request,
                outcome,
                usage,
            } => self.finish(now, request, (outcome, usage), alone),
            Event::ToolGap { program, kind } => self.tool_gap(now, program, kind),
            Event::Release { program } => self.release(program),
            Event::BackendUp { .. } => true,
            Event::BackendDown { backend } => self.lose(backend),
            Event::Tick => {
                self.expire(|expires| expires <= now);
                true
            }
            Event::FirstToken { request } => self.first_token(now, request),
            Event::Sample(_) => false,
        };
        due | late
    }

    fn arrive(
        &mut self,
        now: Time,
        (since, arrival): (Time, Arrival),
        alone: bool,
        out: &mut Decisions,
    ) -> bool {
        let Some(least) = self.roster.least_in_flight() else {
            out.reject(arrival.request, RejectReason::NoBackend);
            return false;
        };
        let Some(id) = arrival.program.filter(|id| id.0 < self.config.max_programs) else {
            self.notes.counts.untracked += u64::from(arrival.program.is_some());
            let leaving = Leaving::anonymous(now, arrival);
            self.start(now, &leaving, (least, StartWhy::Fits), out);
            return false;
        };
        let key = self.note_arrival(since, id, &arrival);
        // Most returns in time are first in the queue and fit: they need not enter it.
        if alone
            && self.leads(key)
            && let Some(start) = self.place_for(&arrival, id)
        {
            let leaving = Leaving {
                arrival,
                key: Some(key),
                since,
            };
            self.start(now, &leaving, start, out);
        } else {
            self.enqueue(since, key, arrival);
        }
        true
    }

    /// A request runs that another policy admitted: it counts as if it had started here.
    fn adopt(&mut self, now: Time, adoption: &Adoption) -> bool {
        let Adoption {
            arrival,
            backend,
            steps,
        } = *adoption;
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let leaving = match tracked {
            None => Leaving::anonymous(now, arrival),
            Some(id) => Leaving {
                arrival,
                key: Some(self.note_arrival(now, id, &arrival)),
                since: now,
            },
        };
        // Steps are told after the start, which learns from programs that come back how long they queued.
        self.start(
            now,
            &leaving,
            (backend, StartWhy::Fits),
            &mut Decisions::new(),
        );
        if let Some(program) = tracked.and_then(|id| self.programs.get_mut(id.index())) {
            program.steps = program.steps.max(steps);
        }
        false
    }

    /// The program, known from here on.
    fn enter(&mut self, now: Time, id: ProgramId) -> Option<&mut Program> {
        if self.programs.get(id.index()).is_none() {
            let program = Program::new(now, self.next_seq);
            self.programs.insert(id.index(), program);
            self.next_seq += 1;
        }
        self.programs.get_mut(id.index())
    }

    /// Learns from an arrival: seniority, the gap that it ends, the prefix that it shows. Returns its place.
    fn note_arrival(&mut self, now: Time, id: ProgramId, arrival: &Arrival) -> Key {
        let mut gap = None;
        let mut retry = false;
        if let Some(program) = self.enter(now, id) {
            retry = std::mem::take(&mut program.failed);
            if !retry {
                gap = program.gap.take();
            }
            if let Some(shared) = arrival.shared {
                program.shares(shared);
            }
        }
        if let Some((began, kind)) = gap {
            let gap = now.since(began);
            self.estimates.gap_ended(&self.config, kind, gap);
        }
        let key = self.key(id);
        if retry { key.as_retry() } else { key }
    }

    fn finish(
        &mut self,
        now: Time,
        request: RequestId,
        (outcome, usage): (Outcome, Option<Usage>),
        alone: bool,
    ) -> bool {
        if let Some(held) = self.waiting.remove(request) {
            if let Some(id) = held.arrival.program {
                self.uncall(id);
            }
            if alone {
                self.expire(|expires| expires <= now);
            }
            return true;
        }
        let Some(flight) = self.roster.finish(request) else {
            return false;
        };
        let run = self.runs.remove(request.index());
        let ran = self.ledger.finish(request);
        let context = usage.map(Usage::context).or(ran).unwrap_or_default();
        self.leave_behind(flight.program, flight.backend, context);
        if let (Some(run), Some(usage)) = (run, usage) {
            self.learn(flight.backend, run, usage);
        }
        let Some(id) = flight.program else {
            return true;
        };
        let last = run.is_some_and(|run| run.last_step);
        let kept = self.step_ended(id, outcome, last)
            && self.keep_room(now, id, (flight.backend, context));
        // With a pin, the `ToolGap` that follows says whether it stays; who runs next is decided then, or at
        // the wakeup that is due at once.
        !kept
    }

    /// A request of a program ended. Returns whether its tool gap may begin.
    fn step_ended(&mut self, id: ProgramId, outcome: Outcome, last: bool) -> bool {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return false;
        };
        let success = outcome.is_success();
        program.in_flight = program.in_flight.saturating_sub(1);
        program.steps += u32::from(success);
        program.failed |= outcome == Outcome::Failed;
        program.between = success && program.in_flight == 0 && !last;
        let why = match program.in_flight {
            0 => NoPinWhy::Failed,
            _ => NoPinWhy::SiblingRuns,
        };
        if program.between {
            return true;
        }
        self.unpin(id, UnpinWhy::Dropped);
        self.notes.add(if success && last {
            Note::Ended { program: id }
        } else {
            Note::NotPinned { program: id, why }
        });
        false
    }

    /// Keeps the program's room until this very moment, which the `ToolGap` that comes with it may extend.
    fn keep_room(
        &mut self,
        now: Time,
        id: ProgramId,
        (backend, tokens): (BackendId, Tokens),
    ) -> bool {
        let up = self.roster.get_up(backend).is_some();
        let Some(program) = self.programs.get(id.index()).filter(|_| up) else {
            return false;
        };
        let who = (id, program.seq);
        let footprint = Footprint {
            tokens,
            shared: program.shared(),
        };
        self.pins
            .keep(&mut self.ledger, who, (backend, footprint), now);
        self.reclass(id);
        true
    }

    /// The program's tool gap begins: its room is kept for the time-to-live of this kind of gap.
    fn tool_gap(&mut self, now: Time, id: ProgramId, kind: GapKind) -> bool {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return false;
        };
        if !std::mem::take(&mut program.between) {
            return false;
        }
        if program.held == 0 {
            program.gap = Some((now, kind));
        }
        let Some(tokens) = self.pins.tokens(id) else {
            return true;
        };
        let ttl_s = self.estimates.ttl_s(&self.config, kind, tokens);
        let Some(ttl_s) = ttl_s else {
            self.unpin(id, UnpinWhy::Ttl);
            let why = NoPinWhy::NoTtl;
            self.notes.add(Note::NotPinned { program: id, why });
            return true;
        };
        self.estimates.granted.observe(ttl_s);
        let until = now + settings::duration(ttl_s);
        self.pins.confirm(id, until);
        self.notes.add(Note::Pinned {
            program: id,
            tokens,
            until,
        });
        true
    }

    fn release(&mut self, id: ProgramId) -> bool {
        self.unpin(id, UnpinWhy::Release);
        self.eviction.orphan(id);
        if let Some(program) = self.programs.remove(id.index()) {
            self.estimates.foresight.observe(program.steps);
        }
        true
    }

    /// Drops the pins whose time is over; returns whether there were any.
    fn expire(&mut self, over: impl Fn(Time) -> bool) -> bool {
        let mut any = false;
        while let Some((expires, id)) = self.pins.next_expiry()
            && over(expires)
        {
            self.unpin(id, UnpinWhy::Ttl);
            any = true;
        }
        any
    }

    /// A backend is gone, and every context on it.
    fn lose(&mut self, backend: BackendId) -> bool {
        while let Some(id) = self.youngest_pin(backend, None) {
            self.unpin(id, UnpinWhy::Dropped);
        }
        self.eviction.clear(backend);
        true
    }

    /// A prefill is over. It teaches what a reload costs, unless it queued inside the backend.
    fn first_token(&mut self, now: Time, request: RequestId) -> bool {
        let flight = self.roster.flight(request);
        let backend = flight.and_then(|flight| self.roster.get_up(flight.backend));
        let calm = backend.is_some_and(|b| b.sample.is_none_or(|sample| sample.waiting == 0));
        if let Some(run) = self.runs.get_mut(request.index())
            && calm
            && run.prefill.is_none()
        {
            run.prefill = Some(now.since(run.admitted));
        }
        false
    }

    /// Learns from what the cache served: what a reload costs, and whether a pin was in vain.
    fn learn(&mut self, backend: BackendId, run: Run, usage: Usage) {
        let Some(cached) = usage.cached else {
            return;
        };
        if let Some(prefill) = run.prefill {
            let uncached = usage.prompt - cached;
            self.estimates
                .reload
                .observe(uncached, prefill.as_secs_f64());
        }
        let Some((expected, stamp)) = run.pinned else {
            return;
        };
        if cached.0 < expected.0 / 2 {
            self.lost_in_spite(backend, stamp);
        }
    }
}

impl Policy for Continuum {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        if self.take_in(now, event, true, out) {
            self.decide(now, out);
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        let expiry = self.pins.next_expiry();
        Wakeup::earliest(
            expiry.map(|(time, _)| at(time, "a pin expires")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let float = |n: u64| Tokens(n).as_f64();
        let counts = self.notes.counts;
        PolicySnapshot {
            policy: NAME,
            held: count(self.waiting.len()),
            programs: count(self.programs.len()),
            paused: self.holding,
            resident: self.ledger.resident(),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s),
                ("pins", count(self.pins.len()).into()),
                ("pinned", float(counts.pinned)),
                ("pin_lost", float(counts.lost)),
                ("pin_overwritten", float(counts.overwritten)),
                ("lru_guarded", float(counts.guarded)),
                ("timed_out", float(counts.timed_out)),
                ("oversize", float(counts.oversize)),
                ("untracked", float(counts.untracked)),
            ],
            estimates: self.estimates.told(&self.config),
            pins: counts.pins(),
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let held = self.programs.get(program.index()).map_or(0, |p| p.held);
        ProgramView {
            paused: held > 0,
            pause_requested: false,
        }
    }
}
