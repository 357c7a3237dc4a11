//! Continuum: keeps a program's room in the KV cache through a tool gap, up to a time-to-live.
//!
//! Idea: first come, first served by *program*, not by request. When a step ends, the program's context stays
//! reserved for a few seconds; if it returns in time, it goes before newcomers and finds its cache. A request
//! waits at the gate until it fits beside what runs and what is reserved.
//! Source: "Continuum" (arXiv 2511.02230) and its public code, which pins blocks inside vLLM; here the pins are
//! virtual: an unmodified vLLM may still evict a reserved context, because its eviction is plain LRU.
//! Worse when the KV cache is plentiful (it then only adds rules), when gaps are long (rooms are given up before
//! their programs return), and for short newcomers behind a large head (nobody passes the head).
//!
//! Here: what each event does. `admission`: who runs next, and where. `pins`: the reservations.

mod admission;
mod config;
mod pins;
#[cfg(test)]
mod tests;

pub use config::{Config, TtlMode};

use super::estimate::GapHistory;
use super::ledger::{Footprint, Ledger};
use super::roster::Roster;
use super::settings;
use super::slots::Slots;
use super::waiting::Waiting;
use super::{
    Arrival, BackendId, Decisions, Event, GapKind, Outcome, Policy, PolicySnapshot, ProgramId,
    ProgramView, RejectReason, RequestId, SharedPrefix, Time, Tokens, Usage, Wakeup,
};
use admission::Key;
use pins::Pins;

/// The name in the registry.
pub const NAME: &str = "continuum";

/// What is known of one program.
#[derive(Clone, Copy, Debug)]
struct Program {
    /// Seniority: position by first arrival.
    seq: u64,
    /// When its tool gap began, and of which kind; taken by the arrival that ends it.
    gap: Option<(Time, GapKind)>,
    /// The prefix that its prompts share with other programs'; length below, to keep the entry small.
    fingerprint: u64,
    prefix_tokens: u32,
    in_flight: u32,
    held: u32,
    home: Option<BackendId>,
    /// Its step ended well and nothing of it runs: the next `ToolGap` decides about its pin.
    between: bool,
    /// The client announced the last step: no pin after it.
    last_step: bool,
}

const _: () = assert!(
    size_of::<Option<Program>>() <= 64,
    "100,000 programs must stay within a few MB"
);

impl Program {
    const fn new(seq: u64) -> Self {
        Self {
            seq,
            gap: None,
            fingerprint: 0,
            prefix_tokens: 0,
            in_flight: 0,
            held: 0,
            home: None,
            between: false,
            last_step: false,
        }
    }

    fn shared(&self) -> Option<SharedPrefix> {
        (self.prefix_tokens > 0).then(|| SharedPrefix {
            fingerprint: self.fingerprint,
            tokens: Tokens(self.prefix_tokens.into()),
        })
    }
}

/// Numbers for the snapshot.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    timed_out: u64,
    oversize: u64,
    relieved: u64,
    untracked: u64,
}

/// The policy's state.
#[derive(Debug)]
pub struct Continuum {
    config: Config,
    roster: Roster,
    ledger: Ledger,
    programs: Slots<Program>,
    next_seq: u64,
    /// Programs with a held request.
    holding: u32,
    pins: Pins,
    waiting: Waiting<Key>,
    gaps: GapHistory,
    /// By backend: a senior request waits for it. Kept between calls for its allocation only.
    blocked: Vec<bool>,
    counts: Counts,
}

impl Continuum {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s);
        Self {
            roster: Roster::new(),
            ledger: Ledger::new(),
            programs: Slots::new(),
            next_seq: 0,
            holding: 0,
            pins: Pins::new(),
            waiting: Waiting::new(config.max_held, hold),
            gaps: GapHistory::new(),
            blocked: Vec::new(),
            counts: Counts::default(),
            config,
        }
    }

    fn arrive(&mut self, now: Time, arrival: Arrival, out: &mut Decisions) {
        let Some(least) = self.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            self.counts.untracked += u64::from(arrival.program.is_some());
            let anonymous = Arrival {
                program: None,
                ..arrival
            };
            return self.start(&anonymous, least, out);
        };
        self.note_arrival(now, id, &arrival);
        // Most returns in time are first in the queue and fit: they need not enter it.
        if self.leads(id)
            && let Some(backend) = self.room_for(&arrival, id)
        {
            self.start(&arrival, backend, out);
            return self.pump(out);
        }
        self.enqueue(now, id, arrival);
        self.pump(out);
        self.settle_newcomer(id, &arrival, out);
    }

    /// Learns from an arrival: seniority, the gap that it ends, the prefix that it shows.
    fn note_arrival(&mut self, now: Time, id: ProgramId, arrival: &Arrival) {
        if self.programs.get(id.index()).is_none() {
            self.programs
                .insert(id.index(), Program::new(self.next_seq));
            self.next_seq += 1;
        }
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        if let Some((began, kind)) = program.gap.take() {
            self.gaps.observe(kind, now.since(began));
        }
        if let Some(shared) = arrival.shared {
            program.fingerprint = shared.fingerprint;
            program.prefix_tokens = u32::try_from(shared.tokens.0).unwrap_or(u32::MAX);
        }
        program.last_step |= arrival.last_step;
    }

    fn finish(
        &mut self,
        now: Time,
        request: RequestId,
        (outcome, usage): (Outcome, Option<Usage>),
        out: &mut Decisions,
    ) {
        if let Some(held) = self.waiting.remove(request) {
            if let Some(id) = held.arrival.program {
                self.uncall(id);
            }
            self.expire(|expires| expires <= now);
            return self.pump(out);
        }
        let Some(flight) = self.roster.finish(request) else {
            return;
        };
        let ran = self.ledger.finish(request);
        let context = usage.map(Usage::context).or(ran);
        let pinned = flight.program.is_some_and(|id| {
            let at = (id, flight.backend);
            self.step_ended(now, at, outcome.is_success(), context)
        });
        // With a pin, the `ToolGap` that follows says whether it stays; who runs next is decided then, or at
        // the wakeup that is due at once.
        if !pinned {
            self.pump(out);
        }
    }

    /// A request of a program ended. Returns whether the program's room is kept: until this very moment, which the
    /// `ToolGap` that comes with it may extend.
    fn step_ended(
        &mut self,
        now: Time,
        (id, backend): (ProgramId, BackendId),
        success: bool,
        context: Option<Tokens>,
    ) -> bool {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return false;
        };
        program.in_flight = program.in_flight.saturating_sub(1);
        program.between = success && program.in_flight == 0 && !program.last_step;
        let (Some(tokens), true) = (context, program.between) else {
            program.between = false;
            self.unpin(id);
            return false;
        };
        if self.roster.get_up(backend).is_none() {
            return false;
        }
        let footprint = Footprint {
            tokens,
            shared: program.shared(),
        };
        let who = (id, program.seq);
        self.pins
            .keep(&mut self.ledger, who, (backend, footprint), now);
        self.reclass(id);
        true
    }

    /// The program's tool gap begins: its room is kept for the time-to-live of this kind of gap.
    fn tool_gap(&mut self, now: Time, id: ProgramId, kind: GapKind, out: &mut Decisions) {
        let ttl_s = self.ttl_s(kind);
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        if !std::mem::take(&mut program.between) {
            return;
        }
        if program.held == 0 {
            program.gap = Some((now, kind));
        }
        if ttl_s > self.config.min_pin_s {
            self.pins.extend(id, now + settings::duration(ttl_s));
        } else {
            self.unpin(id);
        }
        self.pump(out);
    }

    /// The time-to-live after a gap of `kind` began, in seconds. An unknown kind counts as fast.
    fn ttl_s(&self, kind: GapKind) -> f64 {
        match self.config.ttl_mode {
            TtlMode::Fixed => {
                let slow = self
                    .gaps
                    .mean_s(kind)
                    .is_some_and(|mean| mean > self.config.slow_tool_s);
                if slow { 0.0 } else { self.config.ttl_fixed_s }
            }
        }
    }

    fn release(&mut self, id: ProgramId, out: &mut Decisions) {
        self.unpin(id);
        self.programs.remove(id.index());
        self.pump(out);
    }

    /// Drops the pins whose time is over; returns whether there were any.
    fn expire(&mut self, over: impl Fn(Time) -> bool) -> bool {
        let mut any = false;
        while let Some((expires, id)) = self.pins.next_expiry()
            && over(expires)
        {
            self.unpin(id);
            any = true;
        }
        any
    }

    /// A backend is gone, and every context on it.
    fn lose(&mut self, backend: BackendId) {
        while let Some(id) = self.youngest_pin(backend, None) {
            self.unpin(id);
        }
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some(held) = self.waiting.remove(request) else {
                return;
            };
            self.counts.timed_out += 1;
            let Some(id) = held.arrival.program else {
                return;
            };
            self.uncall(id);
            match self.best_backend(id, |_| true) {
                Some(backend) => self.start(&held.arrival, backend, out),
                None => out.reject(request, RejectReason::NoBackend),
            }
        }
    }
}

impl Policy for Continuum {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        // A request that arrives in the moment of expiry still finds its room; a later one does not, however
        // late the tick.
        let late = self.expire(|expires| expires < now);
        self.roster.observe(event);
        match *event {
            Event::Arrive(arrival) => self.arrive(now, arrival, out),
            Event::Finish {
                request,
                outcome,
                usage,
            } => self.finish(now, request, (outcome, usage), out),
            Event::ToolGap { program, kind } => self.tool_gap(now, program, kind, out),
            Event::Release { program } => self.release(program, out),
            Event::BackendUp { .. } => self.pump(out),
            Event::BackendDown { backend } => {
                self.lose(backend);
                self.pump(out);
            }
            Event::Tick => {
                self.expire(|expires| expires <= now);
                self.time_out(now, out);
                self.pump(out);
            }
            Event::FirstToken { .. } | Event::Sample(_) => {}
        }
        if late {
            self.pump(out);
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
                ("timed_out", float(self.counts.timed_out)),
                ("oversize", float(self.counts.oversize)),
                ("relieved", float(self.counts.relieved)),
                ("untracked", float(self.counts.untracked)),
            ],
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
