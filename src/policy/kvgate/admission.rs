//! Who goes next: the lines at the gate, what fits, and where.
//!
//! One line for each backend, of requests whose context is there, and one of all that start from nothing. The first
//! of a line waits for room, and nobody passes it but as said at [`Kvgate::next_cold`].

use std::cmp::Reverse;

use super::lru::{Node, Owner};
use super::returns::NO_GROUP;
use super::{Kvgate, Program};
use crate::policy::waiting::Held;
use crate::policy::{
    Arrival, BackendId, Decisions, ProgramId, RejectReason, Time, Tokens, settings,
};

/// How far down the line a request is looked for whose prefix is in use.
const AFFINE: usize = 16;

/// Which line a held request stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// Its context is on this backend. Programs that came first go first.
    Warm(BackendId),
    /// It starts from nothing, on any backend. In order of [`Kvgate::cold_key`].
    Cold,
}

/// The queue's order: the line, then the place in it.
pub(super) type Key = (Line, u64);

impl Kvgate {
    /// The line for the next request of a program.
    pub(super) fn line(&self, now: Time, program: &Program) -> Line {
        let home = program.home.filter(|home| {
            self.roster.get_up(*home).is_some()
                && self.has_context(*home, program)
                && !(self.is_somebody_overdue(now) && self.is_turn_over(now, *home, program))
        });
        home.map_or(Line::Cold, Line::Warm)
    }

    pub(super) fn key(&self, line: Line, id: ProgramId, since: Time, arrival: &Arrival) -> Key {
        match line {
            Line::Warm(_) => (line, self.programs.get(id.index()).map_or(0, |p| p.rank)),
            Line::Cold => self.cold_key(since, arrival),
        }
    }

    /// The place of a request that starts from nothing and came at `since`: that of its program's last step, as if
    /// it had come with that one's end, but the more it costs to serve the later.
    ///
    /// Whoever is served soon goes off to its next gap soon, and gaps pass side by side; so the longest unserved and
    /// the quickly served go first.
    pub(super) fn cold_key(&self, since: Time, arrival: &Arrival) -> Key {
        let served = arrival.program.and_then(|id| self.programs.get(id.index()));
        let served = served.map_or(since, |program| program.served.min(since));
        let gap = since.since(served);
        let most = settings::duration(self.config.age_s / 2.0);
        let prices = self.caches.iter().map(|cache| cache.price.prefill_s());
        let least_s = prices.fold(f64::INFINITY, f64::min);
        let tokens = self.private(arrival, self.group_of(arrival));
        let stretch = settings::duration(self.config.stretch * least_s * f64::from(tokens));
        let place = (since + stretch).since(Time::ZERO + gap.min(most));
        (Line::Cold, (Time::ZERO + place).as_nanos())
    }

    pub(super) fn head(&self, line: Line) -> Option<&Held<Key>> {
        let first = self.waiting.first_from((line, 0))?;
        Some(first).filter(|held| held.key.0 == line)
    }

    /// Whether a program's context is in use on `home`, or at least half of it is believed to be there.
    pub(super) fn has_context(&self, home: BackendId, program: &Program) -> bool {
        let shadow = &self.caches[home.index()].shadow;
        let here = program.segment.map_or(0, |segment| shadow.warm(segment));
        program.running > 0 || (here > 0 && here >= program.private / 2)
    }

    /// Whether a request that starts from nothing has waited for too long, counted from its place in the line.
    fn is_somebody_overdue(&self, now: Time) -> bool {
        let age = settings::duration(self.config.age_s);
        let first = self.head(Line::Cold);
        first.is_some_and(|held| now.since(Time::from_nanos(held.key.1)) >= age)
    }

    fn is_turn_over(&self, now: Time, home: BackendId, program: &Program) -> bool {
        let turn = self.caches[home.index()].turn(self.config.turn_loads);
        now.since(program.resident_since) >= turn
    }

    /// Seconds that a program's context takes to compute again.
    fn reload_s(&self, backend: BackendId, program: &Program) -> f64 {
        self.caches[backend.index()].price.prefill_s() * f64::from(program.private)
    }

    /// Whether what is believed of a backend's cache decides who runs there; else everything passes.
    fn is_gated(&self, backend: BackendId) -> bool {
        self.caches[backend.index()].is_gated() && !self.strangers.rule()
    }

    /// Admits whatever may go now.
    pub(super) fn fill(&mut self, now: Time, out: &mut Decisions) {
        if self.waiting.is_empty() {
            return;
        }
        for backend in self.roster.ids() {
            self.fill_warm(now, backend, out);
        }
        self.fill_cold(now, out);
    }

    /// Admits what waits for its own context on `backend`.
    pub(super) fn fill_warm(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        while self.roster.get_up(backend).is_some()
            && let Some(held) = self.head(Line::Warm(backend)).copied()
        {
            let request = held.arrival.request;
            if self.fits_warm(backend, &held.arrival) {
                self.waiting.remove(request);
                self.start(now, &held.arrival, backend, out);
            } else if self.is_better_elsewhere(now, backend, &held) {
                let key = self.cold_key(held.since, &held.arrival);
                self.waiting.rekey(request, key);
            } else {
                return;
            }
        }
    }

    /// A request whose context is there needs what running requests leave: the rest can be evicted for its growth.
    fn fits_warm(&self, backend: BackendId, arrival: &Arrival) -> bool {
        let cache = &self.caches[backend.index()];
        let private = self.private(arrival, self.group_of(arrival));
        cache.running == 0
            || !self.is_gated(backend)
            || u64::from(private) <= cache.shadow.left_by_running()
    }

    /// Whether a request waits in vain for its context on `backend`: that is gone; or there are other backends, and
    /// it has waited for as long as one of them takes to compute the context again.
    fn is_better_elsewhere(&self, now: Time, backend: BackendId, held: &Held<Key>) -> bool {
        let program = held.arrival.program;
        let Some(program) = program.and_then(|id| self.programs.get(id.index())) else {
            return true;
        };
        let others = self.roster.up().count() > 1;
        let patience = settings::duration(self.reload_s(backend, program));
        !self.has_context(backend, program) || (others && now.since(held.since) >= patience)
    }

    /// Admits what starts from nothing, as long as the next of them finds room.
    pub(super) fn fill_cold(&mut self, now: Time, out: &mut Decisions) {
        while let Some(arrival) = self.next_cold(now) {
            self.plan(now);
            let Some(backend) = self.place(&arrival) else {
                return;
            };
            self.waiting.remove(arrival.request);
            self.start(now, &arrival, backend, out);
        }
    }

    /// The first in the line; or one close behind it whose prefix is in use, while that of the first is not and it
    /// has not been passed for long.
    fn next_cold(&self, now: Time) -> Option<Arrival> {
        let patience = settings::duration(self.config.affinity_s);
        let head = self.head(Line::Cold)?;
        let goes = |held: &Held<Key>| {
            let group = self.group_of(&held.arrival);
            let mut caches = self.caches.iter();
            group == NO_GROUP
                || now.since(held.since) >= patience
                || caches.any(|cache| cache.shadow.is_used(group))
        };
        if goes(head) {
            return Some(head.arrival);
        }
        let mut place = self.waiting.place(head.arrival.request);
        for _ in 0..AFFINE {
            let Some((next, request)) = self.waiting.next(place) else {
                break;
            };
            if let Some(held) = self.waiting.get(request).filter(|held| goes(held)) {
                return Some(held.arrival);
            }
            place = Some(next);
        }
        Some(head.arrival)
    }

    /// Plans anew what is worth keeping, where that may have changed.
    fn plan(&mut self, now: Time) {
        let overdue = self.is_somebody_overdue(now);
        let loads = self.config.turn_loads;
        for cache in &mut self.caches {
            if !cache.is_stale(now) {
                continue;
            }
            let programs = &self.programs;
            let turn = cache.turn(loads);
            let is_over = |node: &Node| {
                let Owner::Program(id) = node.owner else {
                    return true;
                };
                let program = programs.get(id.index()).filter(|_| overdue);
                program.is_some_and(|program| now.since(program.resident_since) >= turn)
            };
            cache.plan(now, &mut self.returns, &self.groups, is_over);
        }
    }

    /// The backend with the most room left after a request that starts from nothing; `None` if it fits nowhere.
    fn place(&self, arrival: &Arrival) -> Option<BackendId> {
        let fitting = self.roster.up().filter_map(|(id, backend)| {
            let slack = self.slack(id, arrival)?;
            Some((slack, Reverse(backend.in_flight), Reverse(id)))
        });
        let best = fitting.max_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        best.map(|(_, _, Reverse(id))| id)
    }

    /// Tokens of room that `backend` has left after a request that starts from nothing; `None` if it does not fit.
    /// Where nothing runs it always does, and so it does where nothing is believed of the cache.
    fn slack(&self, backend: BackendId, arrival: &Arrival) -> Option<f64> {
        let cache = &self.caches[backend.index()];
        if !self.is_gated(backend) {
            return Some(f64::INFINITY);
        }
        let room = Tokens(cache.shadow.room()).as_f64();
        let slack = room - cache.reserve() - self.cold_need(backend, arrival);
        let has_room = slack >= 0.0 && self.head(Line::Warm(backend)).is_none();
        (has_room || cache.running == 0).then_some(slack)
    }

    /// Room that a request takes on `backend`, beyond what is protected there already.
    fn cold_need(&self, backend: BackendId, arrival: &Arrival) -> f64 {
        let shadow = &self.caches[backend.index()].shadow;
        let group = self.group_of(arrival);
        let prefix = shadow.prefix_need(group, self.groups.get(group).prefix);
        let program = arrival.program.and_then(|id| self.programs.get(id.index()));
        let own = program.filter(|program| program.home == Some(backend));
        let own = own.and_then(|program| program.segment);
        let own = own.map_or(0, |segment| shadow.warm_protected(segment));
        let need = u64::from(self.private(arrival, group)) + u64::from(prefix);
        Tokens(need.saturating_sub(own.into())).as_f64()
    }

    /// The bound on holding: sends what has waited long enough, or refuses it when no backend is up.
    pub(super) fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some(held) = self.waiting.remove(request) else {
                return;
            };
            self.timed_out += 1;
            let home = match held.key.0 {
                Line::Warm(home) => self.roster.get_up(home).map(|_| home),
                Line::Cold => None,
            };
            let backend = home.or_else(|| self.place(&held.arrival));
            match backend.or_else(|| self.roster.least_in_flight()) {
                Some(backend) => self.start(now, &held.arrival, backend, out),
                None => out.reject(request, RejectReason::NoBackend),
            }
        }
    }
}
