//! A cap on active programs, fixed or found by additive increase and multiplicative decrease.
//!
//! Idea: a program is active from its first admitted request to its release, tool gaps included; each backend
//! takes so many and no more, the others wait. The cap grows slowly while the prefix cache hits and is halved when
//! returning programs miss or vLLM preempts, as a sender's window follows a network. Nothing counts tokens.
//! Source: "Concur" (arXiv 2601.22705), congestion control on the number of active agents.
//! Worse when programs differ much in size (a slot is a slot), when they pause for long (a slot idles up to
//! `idle_s`), and in the first minutes, until the cap is found.

mod cap;
mod config;
#[cfg(test)]
mod tests;

pub use config::{Config, Mode};

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::roster::{Flight, Roster};
use super::settings;
use super::slots::Slots;
use super::waiting::{Place, Waiting};
use super::{
    Adoption, Arrival, BackendId, BackendSample, Decisions, Event, HoldReason, Policy,
    PolicySnapshot, ProgramId, ProgramView, RejectReason, RequestId, Time, Wakeup,
};
use cap::Cap;

/// The name in the registry.
pub const NAME: &str = "concurrency";

/// A slot on a backend, in one of the backend's lives.
type Slot = (BackendId, u32);

/// What is known of one program.
#[derive(Clone, Copy, Debug)]
struct Program {
    /// Seniority: position by first arrival.
    seq: u64,
    /// The slot it has; void once its backend's life is another.
    slot: Option<Slot>,
    home: Option<BackendId>,
    in_flight: u32,
    held: u32,
    /// When its last request ended.
    idle_since: Time,
}

/// A held request's place: of programs that have a slot first, then by seniority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    waits_for_slot: bool,
    seq: u64,
}

/// The policy's state.
#[derive(Debug)]
pub struct Concurrency {
    config: Config,
    roster: Roster,
    /// By backend.
    caps: Vec<Cap>,
    programs: Slots<Program>,
    next_seq: u64,
    /// Programs with a held request.
    holding: u32,
    waiting: Waiting<Key>,
    /// Programs with a slot and nothing in flight, longest idle first. Entries that no longer hold stay until they
    /// reach the front, which always holds, or until they outnumber the slots.
    idle: VecDeque<(Time, ProgramId)>,
    timed_out: u64,
    untracked: u64,
}

impl Concurrency {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s);
        Self {
            roster: Roster::new(),
            caps: Vec::new(),
            programs: Slots::new(),
            next_seq: 0,
            holding: 0,
            waiting: Waiting::new(config.max_held, hold),
            idle: VecDeque::new(),
            timed_out: 0,
            untracked: 0,
            config,
        }
    }

    fn arrive(&mut self, since: Time, arrival: &Arrival, out: &mut Decisions) {
        let Some(least) = self.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            self.untracked += u64::from(arrival.program.is_some());
            return self.send(arrival.request, None, least, out);
        };
        self.enter(id);
        let ahead = self.waiting.next(None).map(|((key, _), _)| key);
        let key = self.key(id);
        if ahead.is_none_or(|ahead| key < ahead)
            && let Some(backend) = self.place(id)
        {
            return self.start(arrival, id, backend, out);
        }
        if self.waiting.is_full() {
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        self.waiting.push(since, key, *arrival);
        if let Some(program) = self.programs.get_mut(id.index()) {
            program.held += 1;
            self.holding += u32::from(program.held == 1);
        }
        out.hold(arrival.request, HoldReason::ConcurrencyLimit);
    }

    fn enter(&mut self, id: ProgramId) {
        if self.programs.get(id.index()).is_some() {
            return;
        }
        let program = Program {
            seq: self.next_seq,
            slot: None,
            home: None,
            in_flight: 0,
            held: 0,
            idle_since: Time::ZERO,
        };
        self.next_seq += 1;
        self.programs.insert(id.index(), program);
    }

    /// Where a request of the program may go now: to its slot, or to a backend with a free one, its last first.
    fn place(&self, id: ProgramId) -> Option<BackendId> {
        if let Some((backend, _)) = self.slot(id) {
            return self.roster.get_up(backend).map(|_| backend);
        }
        let home = self.programs.get(id.index()).and_then(|p| p.home);
        let free = |backend: BackendId| self.caps.get(backend.index()).map_or(0, Cap::free);
        let up = self.roster.up().map(|(backend, _)| backend);
        up.filter(|backend| free(*backend) > 0)
            .min_by_key(|backend| (Some(*backend) != home, Reverse(free(*backend)), *backend))
    }

    /// The program's slot, if its backend has not been lost since.
    fn slot(&self, id: ProgramId) -> Option<Slot> {
        let slot = self.programs.get(id.index())?.slot?;
        let cap = self.caps.get(slot.0.index())?;
        (cap.life == slot.1).then_some(slot)
    }

    fn key(&self, id: ProgramId) -> Key {
        Key {
            waits_for_slot: self.slot(id).is_none(),
            seq: self.programs.get(id.index()).map_or(u64::MAX, |p| p.seq),
        }
    }

    /// Starts a request that is not held (any more). Its program takes a slot on `backend` if it has none there.
    fn start(&mut self, arrival: &Arrival, id: ProgramId, backend: BackendId, out: &mut Decisions) {
        if self.slot(id).is_none_or(|(taken, _)| taken != backend) {
            self.yield_slot(id);
            self.take_slot(arrival, id, backend);
        }
        if let Some(program) = self.programs.get_mut(id.index()) {
            program.in_flight += 1;
        }
        self.send(arrival.request, Some(id), backend, out);
    }

    /// A request runs that another policy admitted; its program has a slot, whatever the cap says.
    fn adopt(&mut self, adoption: &Adoption) {
        let Adoption {
            arrival,
            backend,
            steps,
        } = *adoption;
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let mut decided = Decisions::new();
        let Some(id) = tracked else {
            return self.send(arrival.request, None, backend, &mut decided);
        };
        self.enter(id);
        if let Some(program) = self.programs.get_mut(id.index()).filter(|_| steps > 0) {
            program.home.get_or_insert(backend);
        }
        self.start(&arrival, id, backend, &mut decided);
    }

    fn take_slot(&mut self, arrival: &Arrival, id: ProgramId, backend: BackendId) {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        let first = program.home.is_none().then_some(arrival.prompt);
        let cap = &mut self.caps[backend.index()];
        cap.take(first);
        program.slot = Some((backend, cap.life));
        program.home = Some(backend);
        // Its other held requests wait for nothing any more.
        let from = Key {
            waits_for_slot: true,
            seq: program.seq,
        };
        let to = Key {
            waits_for_slot: false,
            ..from
        };
        while let Some(held) = self.waiting.first_from(from)
            && held.key == from
        {
            self.waiting.rekey(held.arrival.request, to);
        }
    }

    fn yield_slot(&mut self, id: ProgramId) {
        if let Some((backend, _)) = self.slot(id) {
            self.caps[backend.index()].yield_one();
        }
        if let Some(program) = self.programs.get_mut(id.index()) {
            program.slot = None;
        }
    }

    fn send(
        &mut self,
        request: RequestId,
        program: Option<ProgramId>,
        backend: BackendId,
        out: &mut Decisions,
    ) {
        self.roster.start(request, Flight { backend, program });
        out.admit(request, backend);
    }

    /// Starts every held request that has a place, in order.
    fn pump(&mut self, now: Time, out: &mut Decisions) {
        self.expire(now);
        let mut at: Option<Place<Key>> = None;
        while let Some((next, request)) = self.waiting.next(at)
            && let Some(held) = self.waiting.get(request)
            && let Some(id) = held.arrival.program
        {
            let arrival = held.arrival;
            if let Some(backend) = self.place(id) {
                self.unhold(request);
                self.start(&arrival, id, backend, out);
                at = None;
            } else if next.0.waits_for_slot {
                return;
            } else {
                at = Some(next);
            }
        }
    }

    fn unhold(&mut self, request: RequestId) -> bool {
        let Some(held) = self.waiting.remove(request) else {
            return false;
        };
        let id = held.arrival.program;
        if let Some(program) = id.and_then(|id| self.programs.get_mut(id.index())) {
            program.held -= 1;
            self.holding -= u32::from(program.held == 0);
        }
        true
    }

    fn finish(&mut self, now: Time, request: RequestId) {
        if self.unhold(request) {
            return;
        }
        let flight = self.roster.finish(request);
        let Some(id) = flight.and_then(|flight| flight.program) else {
            return;
        };
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        program.in_flight -= 1;
        program.idle_since = now;
        if program.in_flight > 0 {
            return;
        }
        let slot = self.slot(id);
        // A cap that shrank takes its slots back between steps.
        if slot.is_some_and(|(backend, _)| self.caps[backend.index()].is_over()) {
            return self.yield_slot(id);
        }
        if slot.is_some() {
            self.idle.push_back((now, id));
            self.tidy();
        }
    }

    /// Programs that have been idle for too long yield their slots.
    fn expire(&mut self, now: Time) {
        let bound = settings::duration(self.config.idle_s);
        while let Some(&(since, id)) = self.idle.front()
            && now.since(since) >= bound
        {
            self.yield_slot(id);
            self.tidy();
        }
    }

    /// Keeps the front of `idle` a program that is idle since then, and the whole no longer than twice the slots.
    fn tidy(&mut self) {
        while self.idle.front().is_some_and(|front| !self.is_idle(*front)) {
            self.idle.pop_front();
        }
        let slots: u32 = self.caps.iter().map(|cap| cap.active).sum();
        if self.idle.len() > 2 * slots as usize + 64 {
            let mut idle = std::mem::take(&mut self.idle);
            idle.retain(|entry| self.is_idle(*entry));
            self.idle = idle;
        }
    }

    fn is_idle(&self, (since, id): (Time, ProgramId)) -> bool {
        let program = self.programs.get(id.index());
        let rests = program.is_some_and(|p| {
            p.in_flight == 0 && p.held == 0 && p.idle_since == since && p.slot.is_some()
        });
        rests && self.slot(id).is_some()
    }

    fn sample(&mut self, now: Time, sample: BackendSample) {
        if self.config.mode == Mode::Fixed {
            return;
        }
        self.caps[sample.backend.index()].sample(&self.config, now, sample);
        self.shrink(sample.backend);
    }

    /// Takes slots back from idle programs, the longest idle first, until the cap holds. O(idle programs) where the
    /// cap has shrunk.
    fn shrink(&mut self, backend: BackendId) {
        let mut at = 0;
        while self.caps[backend.index()].is_over()
            && let Some(&entry) = self.idle.get(at)
        {
            at += 1;
            let here = self.slot(entry.1).is_some_and(|(on, _)| on == backend);
            if here && self.is_idle(entry) {
                self.yield_slot(entry.1);
            }
        }
        self.tidy();
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now)
            && let Some(held) = self.waiting.get(request)
            && let Some(id) = held.arrival.program
        {
            let arrival = held.arrival;
            self.timed_out += 1;
            self.unhold(request);
            match self.place(id).or_else(|| self.roster.least_in_flight()) {
                Some(backend) => self.start(&arrival, id, backend, out),
                None => out.reject(request, RejectReason::NoBackend),
            }
        }
    }

    fn learn(&mut self, event: &Event) {
        self.roster.observe(event);
        let known = self.roster.len();
        if self.caps.len() < known {
            self.caps.resize(known, Cap::new(&self.config));
        }
    }
}

impl Policy for Concurrency {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.learn(event);
        match *event {
            Event::Arrive(arrival) => {
                self.expire(now);
                return self.arrive(now, &arrival, out);
            }
            Event::Rearrive { arrival, since } => {
                self.expire(now);
                return self.arrive(since, &arrival, out);
            }
            Event::Adopt(adoption) => return self.adopt(&adoption),
            Event::Finish { request, .. } => self.finish(now, request),
            Event::Release { program } => {
                self.yield_slot(program);
                self.programs.remove(program.index());
                self.tidy();
            }
            Event::Sample(sample) => self.sample(now, sample),
            Event::BackendUp { .. } => {}
            Event::BackendDown { backend } => self.caps[backend.index()].lose(),
            Event::Tick => self.time_out(now, out),
            Event::FirstToken { .. } | Event::ToolGap { .. } => return,
        }
        self.pump(now, out);
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        // While nobody waits, a slot may as well stay taken.
        let idle = self.idle.front().filter(|_| !self.waiting.is_empty());
        let bound = settings::duration(self.config.idle_s);
        Wakeup::earliest(
            idle.map(|(since, _)| at(*since + bound, "an idle program yields its slot")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let float = |n: u64| super::Tokens(n).as_f64();
        let sum = |of: fn(&Cap) -> f64| self.caps.iter().map(of).sum::<f64>();
        PolicySnapshot {
            policy: NAME,
            held: count(self.waiting.len()),
            programs: count(self.programs.len()),
            paused: self.holding,
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s),
                ("cap", sum(|cap| cap.limit.into())),
                ("active", sum(|cap| cap.active.into())),
                ("timed_out", float(self.timed_out)),
                ("untracked", float(self.untracked)),
            ],
            estimates: vec![("hit_rate_sum", sum(|cap| cap.hit_rate))],
            ..PolicySnapshot::default()
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
