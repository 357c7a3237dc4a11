//! ThunderReact: pauses programs while the KV cache is nearly full, and resumes them when it is not.
//!
//! Idea: a backend at 95 % usage takes turns away from the programs that lose least, those with the fewest steps
//! behind them; a paused program finishes what it runs, then its next request is held. Below 85 % the programs
//! with the most steps return first, a bounded number of tokens at a time.
//! Source: the reference experiment's router (`multinode_router.py`). `compat` makes its decisions ([`Reference`]);
//! `fixed` is the same idea where that stalls: holds are bounded, an idle backend takes the first waiting request at
//! once, the resume budget goes only to programs with a request waiting, a cooldown begins only when something was
//! done, requests in flight are counted and tries of one step are not, an old sample says nothing, and the band
//! between the triggers has a timeout.
//! Worse when usage is sampled rarely (it reacts to the last sample), when young programs keep arriving (a
//! first request is never held), and when long tool gaps leave paused programs' caches to be evicted anyway.
//!
//! Here: requests and routing. `pressure`: the periodic pause, resume and transfer. `programs`: the table.
//! `reference`: `compat`.

mod config;
mod pressure;
mod programs;
mod reference;
#[cfg(test)]
mod tests;

pub use config::{Config, Mode};
pub use reference::{LastActs, ProgramState, Reference};

use std::cmp::Reverse;

use super::roster::{Backend, Flight, Roster};
use super::settings;
use super::waiting::Waiting;
use super::{
    Adoption, Arrival, BackendId, Decisions, Event, HoldReason, Outcome, Policy, PolicySnapshot,
    ProgramId, ProgramView, RejectReason, RequestId, Time, Tokens, Usage, Wakeup,
};
use pressure::{Watch, cooled};
use programs::{Program, Programs, ResumeKey};

/// The name in the registry.
pub const NAME: &str = "thunderreact";

/// The policy that `config` asks for.
pub fn build(config: Config) -> Box<dyn Policy> {
    match config.mode {
        Mode::Compat => Box::new(Reference::new(config)),
        Mode::Fixed => Box::new(ThunderReact::new(config)),
    }
}

/// The policy's state in `fixed` mode.
#[derive(Debug)]
pub struct ThunderReact {
    config: Config,
    roster: Roster,
    programs: Programs,
    waiting: Waiting<ResumeKey>,
    /// By backend.
    watches: Vec<Watch>,
    /// Where the next search for a transfer target starts.
    transfer_turn: usize,
    next_look: Option<Time>,
    timed_out: u64,
    untracked: u64,
}

impl ThunderReact {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s);
        Self {
            roster: Roster::new(),
            programs: Programs::new(Tokens(config.output_estimate_tokens)),
            waiting: Waiting::new(config.max_held, hold),
            watches: Vec::new(),
            transfer_turn: 0,
            next_look: None,
            timed_out: 0,
            untracked: 0,
            config,
        }
    }

    fn arrive(&mut self, since: Time, arrival: Arrival, out: &mut Decisions) {
        let Some(least) = self.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            self.untracked += u64::from(arrival.program.is_some());
            return self.start(arrival.request, least, None, out);
        };
        let placed = self.place(arrival.name_hash).unwrap_or(least);
        self.settle(id, placed, arrival.last_step);
        let Some(&program) = self.programs.get(id) else {
            return;
        };
        let idle = self.roster.in_flight(program.backend) == 0;
        if program.paused && !idle {
            return self.hold(since, id, arrival, out);
        }
        if program.paused {
            self.resume(id, out);
        }
        self.admit(id, arrival.request, out);
    }

    /// A request runs that another policy admitted; its program lives where it runs.
    fn adopt(&mut self, adoption: &Adoption) {
        let Adoption {
            arrival,
            backend,
            steps,
        } = *adoption;
        let mut decided = Decisions::new();
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            return self.start(arrival.request, backend, None, &mut decided);
        };
        if self.programs.get(id).is_none() {
            self.programs.add(id, backend);
        }
        self.programs.update(id, |p| {
            p.backend = backend;
            p.steps = p.steps.max(steps);
            // Its prompt is what its last step left.
            if steps > 0 {
                p.context = arrival.prompt;
            }
        });
        self.admit(id, arrival.request, &mut decided);
    }

    /// Makes sure that the program is known and lives on a backend that is up; `placed` is, if it has none.
    fn settle(&mut self, id: ProgramId, placed: BackendId, last_step: bool) {
        let Some(&program) = self.programs.get(id) else {
            return self.programs.add(id, placed);
        };
        if self.roster.get_up(program.backend).is_none() {
            // Its cache is gone, and with it the reason for its pause.
            return self.programs.update(id, |p| {
                p.backend = placed;
                p.paused = false;
                p.pause_requested = false;
                p.transfer = None;
            });
        }
        let movable = !last_step && program.in_flight == 0 && !program.paused;
        if let Some(target) = program.transfer {
            let target = Some(target).filter(|to| movable && self.roster.get_up(*to).is_some());
            self.programs.update(id, |p| {
                p.backend = target.unwrap_or(p.backend);
                p.transfer = None;
            });
        }
    }

    /// The backend for a program without one: those without paused programs first, then the least load, and among
    /// equals the one that the program's name picks.
    fn place(&self, name_hash: u64) -> Option<BackendId> {
        let key = |(id, backend)| (self.programs.paused_on(id) > 0, load(backend));
        let least = self.roster.up().map(key).min()?;
        let best = || self.roster.up().filter(|entry| key(*entry) == least);
        let ties = u64::try_from(best().count()).ok()?;
        let pick = usize::try_from(name_hash.checked_rem(ties)?).ok()?;
        best().nth(pick).map(|(id, _)| id)
    }

    fn hold(&mut self, since: Time, id: ProgramId, arrival: Arrival, out: &mut Decisions) {
        if self.waiting.is_full() {
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        if arrival.last_step {
            // Its room comes back with the answer, so it goes first.
            self.rekey(id, |p| p.leaving = true);
        }
        let Some(program) = self.programs.get(id) else {
            return;
        };
        let key = self.programs.resume_key(program);
        self.waiting.push(since, key, arrival);
        self.programs.update(id, |p| p.held += 1);
        out.hold(arrival.request, HoldReason::Paused);
    }

    /// Ends the program's pause and admits what it has waiting.
    fn resume(&mut self, id: ProgramId, out: &mut Decisions) {
        let Some(&program) = self.programs.get(id) else {
            return;
        };
        let key = self.programs.resume_key(&program);
        self.programs.update(id, |p| {
            p.paused = false;
            p.pause_requested = false;
            p.leaving = false;
        });
        for _ in 0..program.held {
            let first = self.waiting.first_from(key).filter(|held| held.key == key);
            let Some(request) = first.map(|held| held.arrival.request) else {
                break;
            };
            self.waiting.remove(request);
            self.programs.update(id, |p| p.held -= 1);
            self.admit(id, request, out);
        }
    }

    fn admit(&mut self, id: ProgramId, request: RequestId, out: &mut Decisions) {
        let Some(program) = self.programs.get(id) else {
            return;
        };
        let backend = program.backend;
        self.programs.update(id, |p| p.in_flight += 1);
        self.start(request, backend, Some(id), out);
    }

    fn start(
        &mut self,
        request: RequestId,
        backend: BackendId,
        program: Option<ProgramId>,
        out: &mut Decisions,
    ) {
        self.roster.start(request, Flight { backend, program });
        out.admit(request, backend);
    }

    fn finish(
        &mut self,
        request: RequestId,
        outcome: Outcome,
        usage: Option<Usage>,
        out: &mut Decisions,
    ) {
        if let Some(held) = self.waiting.remove(request) {
            if let Some(id) = held.arrival.program {
                self.programs.update(id, |p| p.held -= 1);
            }
            return;
        }
        let Some(flight) = self.roster.finish(request) else {
            return;
        };
        if let Some(id) = flight.program {
            let usage = usage.filter(|_| outcome.is_success());
            self.programs.update(id, |p| {
                p.in_flight = p.in_flight.saturating_sub(1);
                p.context = usage.map_or(p.context, Usage::context);
                p.answered |= outcome.is_success();
                if p.in_flight == 0 {
                    p.paused |= p.pause_requested;
                    p.steps += u32::from(std::mem::take(&mut p.answered));
                }
            });
        }
        self.feed(flight.backend, out);
    }

    /// Work conservation: a backend with nothing in flight takes the program at the head of its queue.
    fn feed(&mut self, backend: BackendId, out: &mut Decisions) {
        if self.roster.in_flight(backend) == 0
            && self.roster.get_up(backend).is_some()
            && let Some(head) = self.head(backend)
        {
            self.resume(head, out);
        }
    }

    /// The program that is next to be resumed on `backend`.
    fn head(&self, backend: BackendId) -> Option<ProgramId> {
        let first = self.waiting.first_from(first_key(backend))?;
        first.arrival.program.filter(|_| first.key.0 == backend)
    }

    /// After a backend came or went: moves programs with held requests to backends that are up. They stay paused
    /// and wait there for their turn.
    fn rehome(&mut self, out: &mut Decisions) {
        for from in self.roster.ids() {
            while self.roster.get_up(from).is_none()
                && let Some(id) = self.head(from)
                && let Some(to) = self.place(0)
            {
                self.rekey(id, |p| p.backend = to);
            }
        }
        for backend in self.roster.ids() {
            self.feed(backend, out);
        }
    }

    /// Changes a program, and moves its held requests to the place in the queue that it has then.
    fn rekey(&mut self, id: ProgramId, change: impl FnOnce(&mut Program)) {
        let Some(&before) = self.programs.get(id) else {
            return;
        };
        self.programs.update(id, change);
        let Some(after) = self.programs.get(id) else {
            return;
        };
        let (from, to) = (
            self.programs.resume_key(&before),
            self.programs.resume_key(after),
        );
        let moved = if from == to { 0 } else { before.held };
        for _ in 0..moved {
            let first = self.waiting.first_from(from);
            let Some(held) = first.filter(|held| held.key == from) else {
                return;
            };
            self.waiting.rekey(held.arrival.request, to);
        }
    }

    /// Forgets a program. What it has waiting goes first, or stays for the bound on holding to end.
    fn release(&mut self, id: ProgramId, out: &mut Decisions) {
        let Some(&program) = self.programs.get(id) else {
            return;
        };
        if program.held > 0 && self.roster.get_up(program.backend).is_none() {
            return;
        }
        self.resume(id, out);
        self.programs.remove(id);
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some(held) = self.waiting.remove(request) else {
                return;
            };
            let Some(id) = held.arrival.program else {
                return;
            };
            self.programs.update(id, |p| p.held -= 1);
            self.timed_out += 1;
            if self.roster.get_up(held.key.0).is_none() {
                out.reject(request, RejectReason::NoBackend);
                continue;
            }
            self.resume(id, out);
            self.admit(id, request, out);
        }
    }
}

impl Policy for ThunderReact {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.roster.observe(event);
        match *event {
            Event::Arrive(arrival) => self.arrive(now, arrival, out),
            Event::Rearrive { arrival, since } => self.arrive(since, arrival, out),
            Event::Adopt(adoption) => self.adopt(&adoption),
            Event::Finish {
                request,
                outcome,
                usage,
            } => self.finish(request, outcome, usage, out),
            Event::Release { program } => self.release(program, out),
            Event::BackendUp { .. } | Event::BackendDown { .. } => self.rehome(out),
            Event::Tick => {
                self.time_out(now, out);
                self.look(now, out);
            }
            Event::Sample(sample) => self.watch(sample.backend).sampled = Some(now),
            Event::FirstToken { .. } | Event::ToolGap { .. } => {}
        }
        if self.next_look.is_none() && self.programs.len() > 0 {
            self.next_look = Some(now + self.tick());
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        Wakeup::earliest(
            self.next_look.map(|time| at(time, "look at the pressure")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot {
            policy: NAME,
            held: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            programs: u32::try_from(self.programs.len()).unwrap_or(u32::MAX),
            paused: self.programs.paused_total(),
            resident: self.programs.resident(),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s),
                ("timed_out", Tokens(self.timed_out).as_f64()),
                ("untracked", Tokens(self.untracked).as_f64()),
            ],
            ..PolicySnapshot::default()
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let known = self.programs.get(program);
        known.map_or_else(ProgramView::default, |p| ProgramView {
            paused: p.paused,
            pause_requested: p.pause_requested,
        })
    }
}

/// How busy a backend is: what its last sample says, waiting requests counted fourfold as the reference does,
/// and the requests of ours that the sample has not seen.
fn load(backend: &Backend) -> u32 {
    let (running, waiting) = backend.sample.map_or((0, 0), |s| (s.running, s.waiting));
    let seen = running.saturating_add(waiting);
    let unseen = backend.in_flight.saturating_sub(seen);
    running
        .saturating_add(waiting.saturating_mul(4))
        .saturating_add(unseen)
}

/// The lowest key of `backend`'s part of the queue.
const fn first_key(backend: BackendId) -> ResumeKey {
    (backend, Reverse(true), Reverse(u32::MAX), Tokens::ZERO, 0)
}
