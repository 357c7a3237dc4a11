//! ThunderAgent: pauses and resumes programs by the KV tokens that it counts for each.
//!
//! Idea: a program occupies its context on one backend, running or idle. When the contexts there exceed the
//! capacity, idle programs are paused, smallest first (prefill grows with the square, so many small ones cost less
//! to bring back), then running ones are marked to pause when they finish. A paused program's next request is held
//! until its context fits; returning programs go before new ones, small before large.
//! Source: ThunderAgent (arXiv 2602.13692) and its implementation; `compat` makes that implementation's decisions
//! ([`Original`]), `fixed` is the same idea decided at every event, with requests counted, marks that count as room,
//! idle contexts that fade by half every 10 s, a home that is waited for a while, and every wait bounded.
//! Worse when contexts are far larger than their prefix shared with others suggests, when tool gaps are shorter
//! than the time in which the engine would have evicted anyway, and, smallest first being its rule, for large
//! programs: those wait longest.
//!
//! Here: requests and the queue. `books`: what is counted where. `room`: what fits, and who is paused or marked
//! when too much counts. `original`: `compat`.

mod books;
mod config;
mod original;
mod room;
#[cfg(test)]
mod tests;

pub use config::{Config, Mode};
pub use original::{Act, Original, ProgramState};

use std::collections::VecDeque;
use std::time::Duration;

use super::waiting::{Held, Waiting};
use super::{
    Arrival, BackendId, Decisions, Event, HoldReason, Outcome, Policy, PolicySnapshot, ProgramId,
    ProgramView, RejectReason, RequestId, Time, Tokens, Usage, Wakeup, settings,
};
use books::Books;

/// The name in the registry.
pub const NAME: &str = "thunderagent";

/// The policy that `config` asks for.
pub fn build(config: Config) -> Box<dyn Policy> {
    match config.mode {
        Mode::Compat => Box::new(Original::new(config)),
        Mode::Fixed => Box::new(ThunderAgent::new(config)),
    }
}

/// Which backends a held request waits for; those that wait for one come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Home(BackendId),
    Anywhere,
}

/// Returning programs, then new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Returning,
    New,
}

/// The queue's order: within a place by class, then smallest first, then by arrival.
type Key = (Place, Class, Tokens);

/// The policy's state in `fixed` mode.
#[derive(Debug)]
pub struct ThunderAgent {
    config: Config,
    books: Books,
    waiting: Waiting<Key>,
    /// Holds that began with a wait for home, oldest first. Entries of requests that have left stay until their
    /// turn, or until they outnumber the held ones.
    homesick: VecDeque<(Time, RequestId)>,
    next_sweep: Option<Time>,
    timed_out: u64,
    untracked: u64,
    moved: u64,
}

impl ThunderAgent {
    /// A policy that knows no backend and no program yet.
    pub fn new(config: Config) -> Self {
        let hold = settings::duration(config.hold_timeout_s());
        Self {
            books: Books::new(config.clone()),
            waiting: Waiting::new(config.max_held, hold),
            homesick: VecDeque::new(),
            next_sweep: None,
            timed_out: 0,
            untracked: 0,
            moved: 0,
            config,
        }
    }

    fn arrive(&mut self, now: Time, since: Time, mut arrival: Arrival, out: &mut Decisions) {
        let Some(least) = self.books.roster.least_in_flight() else {
            return out.reject(arrival.request, RejectReason::NoBackend);
        };
        let tracked = arrival.program.filter(|id| id.0 < self.config.max_programs);
        let Some(id) = tracked else {
            self.untracked += u64::from(arrival.program.is_some());
            arrival.program = None;
            return self.start(now, &arrival, least, out);
        };
        let program = self.books.meet(id);
        arrival.prompt = arrival.prompt.max(program.tokens);
        let active = program.home.filter(|_| program.active);
        let roomiest = || self.books.roomiest(now, &arrival).unwrap_or(least);
        let here = program.home.unwrap_or_else(roomiest);
        let (class, reason) = match program.steps {
            0 => (Class::New, HoldReason::NoRoom),
            _ => (Class::Returning, HoldReason::Paused),
        };
        let place = program.home.map_or(Place::Anywhere, Place::Home);
        let key = (place, class, arrival.prompt);
        if active.is_some() || self.passes(now, here, key, &arrival) {
            return self.start(now, &arrival, here, out);
        }
        if self.waiting.is_full() {
            return out.reject(arrival.request, RejectReason::QueueFull);
        }
        self.waiting.push(since, key, arrival);
        if program.home.is_some() {
            self.homesick.push_back((since, arrival.request));
        }
        out.hold(arrival.request, reason);
    }

    /// Whether a request that arrives fits on `backend`, and nothing that waits for it fits and goes first.
    fn passes(&self, now: Time, backend: BackendId, key: Key, arrival: &Arrival) -> bool {
        let goes_first = |held: &Held<Key>| {
            let earlier = (held.key.1, held.key.2) <= (key.1, key.2);
            earlier && self.books.fits(now, backend, &held.arrival)
        };
        self.books.fits(now, backend, arrival)
            && !self.is_reserved(now, backend)
            && !self.lines(backend).any(goes_first)
    }

    fn start(&mut self, now: Time, arrival: &Arrival, backend: BackendId, out: &mut Decisions) {
        self.books.start(now, arrival, backend);
        out.admit(arrival.request, backend);
        self.books.relieve(now, backend);
    }

    fn finish(
        &mut self,
        now: Time,
        request: RequestId,
        (outcome, usage): (Outcome, Option<Usage>),
        out: &mut Decisions,
    ) {
        if self.waiting.remove(request).is_some() {
            // What stood behind it may go.
            return self.fill_all(now, out);
        }
        if let Some(backend) = self.books.finish(now, request, outcome, usage) {
            self.books.relieve(now, backend);
            self.fill(now, backend, out);
        }
    }

    /// Starts held requests on `backend` as long as one of those that are first in their line fits.
    fn fill(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        while self.books.roster.get_up(backend).is_some()
            && let Some(arrival) = self.next(now, backend)
        {
            self.waiting.remove(arrival.request);
            self.moved += u64::from(self.books.is_move(&arrival, backend));
            self.start(now, &arrival, backend, out);
        }
    }

    fn fill_all(&mut self, now: Time, out: &mut Decisions) {
        for backend in self.books.roster.ids() {
            self.fill(now, backend, out);
        }
    }

    /// The held request that goes to `backend` next, if one fits. On the backend that the longest-held request is
    /// to go to, nothing passes it once it has waited for `patience_s`.
    fn next(&self, now: Time, backend: BackendId) -> Option<Arrival> {
        let fits = |held: &&Held<Key>| self.books.fits(now, backend, &held.arrival);
        if self.is_reserved(now, backend) {
            return self.waiting.oldest().filter(fits).map(|held| held.arrival);
        }
        let best = self.lines(backend).filter(fits);
        let best = best.min_by_key(|held| (held.key.1, held.key.2));
        best.map(|held| held.arrival)
    }

    /// Whether the longest-held request is overdue and is to go to `backend`.
    fn is_reserved(&self, now: Time, backend: BackendId) -> bool {
        let patience = settings::duration(self.config.patience_s);
        let oldest = self.waiting.oldest();
        let overdue = oldest.filter(|held| now.since(held.since) >= patience);
        overdue.is_some_and(|held| self.target(now, held) == Some(backend))
    }

    /// The first of each line that waits for `backend`.
    fn lines(&self, backend: BackendId) -> impl Iterator<Item = &Held<Key>> {
        let lines = [
            (Place::Home(backend), Class::Returning),
            (Place::Home(backend), Class::New),
            (Place::Anywhere, Class::Returning),
            (Place::Anywhere, Class::New),
        ];
        lines.into_iter().filter_map(|line| self.head(line))
    }

    fn head(&self, (place, class): (Place, Class)) -> Option<&Held<Key>> {
        let first = self.waiting.first_from((place, class, Tokens::ZERO))?;
        Some(first).filter(|held| (held.key.0, held.key.1) == (place, class))
    }

    /// Where a held request is to go.
    fn target(&self, now: Time, held: &Held<Key>) -> Option<BackendId> {
        match held.key.0 {
            Place::Home(home) => Some(home),
            Place::Anywhere => self.books.roomiest(now, &held.arrival),
        }
    }

    /// Requests that have waited for their home long enough wait for any backend.
    fn leave_home(&mut self, now: Time) {
        let patience = settings::duration(self.config.home_wait_s);
        while let Some(&(since, request)) = self.homesick.front()
            && now.since(since) >= patience
        {
            self.homesick.pop_front();
            self.settle_for_anywhere(since, request);
        }
        if self.homesick.len() > 2 * self.waiting.len() + 64 {
            let waiting = &self.waiting;
            self.homesick.retain(|(since, request)| {
                waiting.get(*request).is_some_and(|h| h.since == *since)
            });
        }
    }

    fn settle_for_anywhere(&mut self, since: Time, request: RequestId) {
        if let Some(held) = self.waiting.get(request).filter(|held| held.since == since) {
            let (_, class, tokens) = held.key;
            self.waiting
                .rekey(request, (Place::Anywhere, class, tokens));
        }
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some(held) = self.waiting.remove(request) else {
                return;
            };
            self.timed_out += 1;
            let home = match held.key.0 {
                Place::Home(home) => self.books.roster.get_up(home).map(|_| home),
                Place::Anywhere => None,
            };
            match home.or_else(|| self.books.roomiest(now, &held.arrival)) {
                Some(backend) => self.start(now, &held.arrival, backend, out),
                None => out.reject(request, RejectReason::NoBackend),
            }
        }
    }

    /// A backend is lost, and with it every context there: what waits for it waits for any other.
    fn lose(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        self.books.lose(now, backend);
        for class in [Class::Returning, Class::New] {
            while let Some(held) = self.head((Place::Home(backend), class)) {
                self.settle_for_anywhere(held.since, held.arrival.request);
            }
        }
        self.fill_all(now, out);
    }

    fn interval(&self) -> Duration {
        settings::duration(self.config.sweep_s()).max(Duration::from_millis(1))
    }
}

impl Policy for ThunderAgent {
    fn handle(&mut self, now: Time, event: &Event, out: &mut Decisions) {
        self.books.roster.observe(event);
        match *event {
            Event::Arrive(arrival) => self.arrive(now, now, arrival, out),
            Event::Rearrive { arrival, since } => self.arrive(now, since, arrival, out),
            Event::Adopt(adoption) => self.books.adopt(now, &adoption),
            Event::Finish {
                request,
                outcome,
                usage,
            } => self.finish(now, request, (outcome, usage), out),
            Event::Release { program } => {
                if let Some(home) = self.books.release(now, program) {
                    self.fill(now, home, out);
                }
            }
            Event::Sample(sample) => self.books.relieve(now, sample.backend),
            Event::BackendUp { backend, .. } => {
                self.books.relieve(now, backend);
                self.fill(now, backend, out);
            }
            Event::BackendDown { backend } => self.lose(now, backend, out),
            Event::Tick => {
                self.time_out(now, out);
                if self.next_sweep.is_some_and(|due| due <= now) {
                    self.next_sweep = None;
                    self.leave_home(now);
                    self.fill_all(now, out);
                }
            }
            Event::FirstToken { .. } | Event::ToolGap { .. } => {}
        }
        if self.waiting.is_empty() {
            self.next_sweep = None;
        } else {
            self.next_sweep = Some(self.next_sweep.unwrap_or_else(|| now + self.interval()));
        }
    }

    fn next_wakeup(&self) -> Option<Wakeup> {
        let at = |at, why| Wakeup { at, why };
        Wakeup::earliest(
            self.next_sweep.map(|time| at(time, "idle contexts fade")),
            self.waiting.deadline().map(|time| at(time, "hold timeout")),
        )
    }

    fn snapshot(&self) -> PolicySnapshot {
        PolicySnapshot {
            policy: NAME,
            held: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            programs: self.books.programs(),
            paused: self.books.inactive(),
            resident: self.books.ledger.resident(),
            values: vec![
                ("max_held", self.config.max_held.into()),
                ("hold_timeout_s", self.config.hold_timeout_s()),
                ("marked", self.books.marked().into()),
                ("moved", Tokens(self.moved).as_f64()),
                ("timed_out", Tokens(self.timed_out).as_f64()),
                ("untracked", Tokens(self.untracked).as_f64()),
            ],
            ..PolicySnapshot::default()
        }
    }

    fn program(&self, program: ProgramId) -> ProgramView {
        let known = self.books.program(program);
        known.map_or_else(ProgramView::default, |p| ProgramView {
            paused: !p.active,
            pause_requested: p.marked,
        })
    }
}
