//! Who runs next, and where: Continuum's queue order, what fits, and what gives way.

use std::cmp::Reverse;

use super::Continuum;
use crate::policy::ledger::Footprint;
use crate::policy::roster::Flight;
use crate::policy::waiting::Place;
use crate::policy::{
    Arrival, BackendId, Decisions, HoldReason, ProgramId, RejectReason, Time, Tokens,
};

/// Programs that hold a pin go before those that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The program's room is kept for this request.
    Pinned,
    /// Everyone else.
    Other,
}

/// A held request's place: class, then the program's seniority. Requests of one program go in order of arrival.
pub(super) type Key = (Class, u64);

/// What a look at one held request came to.
enum Verdict {
    /// It can start there.
    Start(BackendId),
    /// Every backend it could use is claimed by it or by a senior.
    Wait,
}

impl Continuum {
    /// Holds an arrival of a known program, before anyone decides about it.
    pub(super) fn enqueue(&mut self, now: Time, id: ProgramId, arrival: Arrival) {
        let key = self.key(id);
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        program.held += 1;
        self.holding += u32::from(program.held == 1);
        self.waiting.push(now, key, arrival);
        self.pins.call(id, true);
    }

    /// Says what became of an arrival that was enqueued and that the pump may have started.
    pub(super) fn settle_newcomer(&mut self, id: ProgramId, new: &Arrival, out: &mut Decisions) {
        if self.waiting.get(new.request).is_none() {
            return;
        }
        if self.waiting.is_over() {
            self.waiting.remove(new.request);
            self.uncall(id);
            return out.reject(new.request, RejectReason::QueueFull);
        }
        let need = self.need(new);
        let fits = self.roster.ids().any(|b| self.fits(b, id, need));
        let reason = if fits {
            HoldReason::BehindOlder
        } else {
            HoldReason::NoRoom
        };
        out.hold(new.request, reason);
    }

    /// Starts every held request whose turn it is.
    pub(super) fn pump(&mut self, out: &mut Decisions) {
        let mut place: Option<Place<Key>> = None;
        self.unblock();
        while let Some((next, request)) = self.waiting.next(place) {
            let Some(held) = self.waiting.get(request) else {
                return;
            };
            let arrival = held.arrival;
            let Some(id) = arrival.program else {
                return;
            };
            match self.judge(&arrival, id) {
                Verdict::Start(backend) => {
                    self.waiting.remove(request);
                    self.uncall(id);
                    self.start(&arrival, backend, out);
                    self.unblock();
                    place = None;
                }
                Verdict::Wait if self.all_blocked() => return,
                Verdict::Wait => place = Some(next),
            }
        }
    }

    /// Whether a request of the program would be the first in the queue.
    pub(super) fn leads(&self, id: ProgramId) -> bool {
        let first = self.waiting.next(None);
        first.is_none_or(|((key, _), _)| self.key(id) < key)
    }

    /// Where `arrival` can start now, nobody being ahead of it.
    pub(super) fn room_for(&mut self, arrival: &Arrival, id: ProgramId) -> Option<BackendId> {
        self.unblock();
        match self.judge(arrival, id) {
            Verdict::Start(backend) => Some(backend),
            Verdict::Wait => None,
        }
    }

    /// Sends a request that is not held (any more) to `backend`; its program's pin becomes its room.
    pub(super) fn start(&mut self, arrival: &Arrival, backend: BackendId, out: &mut Decisions) {
        let program = arrival.program;
        if let Some(id) = program {
            self.unpin(id);
            if let Some(program) = self.programs.get_mut(id.index()) {
                program.in_flight += 1;
                program.home = Some(backend);
                program.between = false;
            }
        }
        let need = self.need(arrival);
        self.ledger.start(arrival.request, backend, need);
        self.roster
            .start(arrival.request, Flight { backend, program });
        out.admit(arrival.request, backend);
    }

    /// One request of the program waits no longer. Without any, its pin may expire again.
    pub(super) fn uncall(&mut self, id: ProgramId) {
        let Some(program) = self.programs.get_mut(id.index()) else {
            return;
        };
        program.held -= 1;
        if program.held == 0 {
            self.holding -= 1;
            self.pins.call(id, false);
        }
    }

    /// The backend where the program's room is kept.
    pub(super) fn pinned_on(&self, id: ProgramId) -> Option<BackendId> {
        self.ledger.parked(id).map(|(backend, _)| backend)
    }

    /// Gives the program's pin up, and the precedence that came with it.
    pub(super) fn unpin(&mut self, id: ProgramId) {
        if self.pins.drop(&mut self.ledger, id) {
            self.reclass(id);
        }
    }

    /// Moves the program's held requests to the class that its pin gives them.
    pub(super) fn reclass(&mut self, id: ProgramId) {
        let Some(&program) = self.programs.get(id.index()) else {
            return;
        };
        if program.held == 0 {
            return;
        }
        let to = self.key(id);
        let other = match to.0 {
            Class::Pinned => Class::Other,
            Class::Other => Class::Pinned,
        };
        let from = (other, program.seq);
        while let Some(held) = self.waiting.first_from(from)
            && held.key == from
        {
            self.waiting.rekey(held.arrival.request, to);
        }
        self.pins.call(id, true);
    }

    /// The backend that suits the program best among those that are `open`: its home, else the roomiest.
    pub(super) fn best_backend(
        &self,
        id: ProgramId,
        open: impl Fn(BackendId) -> bool,
    ) -> Option<BackendId> {
        let home = self.programs.get(id.index()).and_then(|p| p.home);
        let up = self.roster.up().filter(|(backend, _)| open(*backend));
        let best = up.min_by_key(|&(backend, _)| {
            let away = Some(backend) != home;
            (away, Reverse(self.room(backend)), backend)
        });
        best.map(|(backend, _)| backend)
    }

    fn key(&self, id: ProgramId) -> Key {
        let class = match self.pinned_on(id) {
            Some(_) => Class::Pinned,
            None => Class::Other,
        };
        let seq = self.programs.get(id.index()).map_or(u64::MAX, |p| p.seq);
        (class, seq)
    }

    /// Tries the backends open to a request in order of preference, and claims those that it must wait for.
    fn judge(&mut self, arrival: &Arrival, id: ProgramId) -> Verdict {
        let need = self.need(arrival);
        let pinned = self.pinned_on(id);
        let open = |blocked: &[bool], b: BackendId| {
            !blocked[b.index()] && pinned.is_none_or(|home| home == b)
        };
        while let Some(backend) = self.best_backend(id, |b| open(&self.blocked, b)) {
            if self.fits(backend, id, need)
                || self.relieve(backend, id, need)
                || self.oversize(backend, need)
            {
                return Verdict::Start(backend);
            }
            self.blocked[backend.index()] = true;
        }
        Verdict::Wait
    }

    /// Whether the footprint fits beside what runs and what is kept, the program's own pin given back.
    fn fits(&self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        let Some(usable) = self.usable(backend) else {
            return self.roster.get_up(backend).is_some();
        };
        self.ledger.total_if_started(backend, Some(id), need) <= usable
    }

    /// A pin never idles the GPU: with nothing in flight, pins give way, the youngest program's first.
    fn relieve(&mut self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        if self.roster.in_flight(backend) > 0 {
            return false;
        }
        while let Some(victim) = self.youngest_pin(backend, Some(id)) {
            self.unpin(victim);
            self.counts.relieved += 1;
            if self.fits(backend, id, need) {
                return true;
            }
        }
        false
    }

    /// The pin on `backend` whose program arrived last, other than `spared`'s.
    pub(super) fn youngest_pin(
        &self,
        backend: BackendId,
        spared: Option<ProgramId>,
    ) -> Option<ProgramId> {
        let mut pinned = self.ledger.idle(backend).rev();
        pinned.find(|id| Some(*id) != spared)
    }

    /// A request larger than the whole cache runs alone: vLLM is the one to refuse it.
    fn oversize(&mut self, backend: BackendId, need: Footprint) -> bool {
        let alone = self.roster.in_flight(backend) == 0
            && self
                .usable(backend)
                .is_some_and(|usable| need.tokens > usable);
        self.counts.oversize += u64::from(alone);
        alone
    }

    /// Tokens that may be promised on a backend; `None` while its capacity is unknown.
    fn usable(&self, backend: BackendId) -> Option<Tokens> {
        let reported = self.roster.get_up(backend)?.kv_capacity;
        let capacity = self.config.kv_budget_tokens.map(Tokens).or(reported)?;
        let fraction = 1.0 - self.config.headroom;
        Some(Tokens::from_f64(capacity.as_f64() * fraction))
    }

    /// Usable tokens that nothing occupies; the most there can be while the capacity is unknown.
    fn room(&self, backend: BackendId) -> Tokens {
        let usable = self.usable(backend).unwrap_or(Tokens(u64::MAX));
        usable - self.ledger.sums(backend).total()
    }

    /// Prompt and room for the output, in whole blocks.
    fn need(&self, arrival: &Arrival) -> Footprint {
        let tokens = arrival.prompt + Tokens(self.config.out_reserve_tokens);
        Footprint {
            tokens: tokens.round_up_to(self.config.block_tokens),
            shared: arrival.shared,
        }
    }

    fn unblock(&mut self) {
        self.blocked.clear();
        self.blocked.resize(self.roster.len(), false);
    }

    fn all_blocked(&self) -> bool {
        self.roster.up().all(|(id, _)| self.blocked[id.index()])
    }
}
