//! What fits on a backend, what gives way to a request that does not, and what the backend evicts for one that does.

use super::config::Pressure;
use super::{Continuum, UnpinWhy};
use crate::policy::ledger::Footprint;
use crate::policy::{BackendId, ProgramId, Tokens};

impl Continuum {
    /// Whether the footprint fits beside what runs and what is kept, the program's own pin given back.
    pub(super) fn fits(&self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        if self.roster.get_up(backend).is_none() || self.is_full(backend) {
            return false;
        }
        self.fits_ledger(backend, id, need) && self.fits_guard(backend, id, need, |_| true)
    }

    /// Whether the backend has its limit of requests.
    pub(super) fn is_full(&self, backend: BackendId) -> bool {
        let limit = self.config.max_in_flight;
        limit.is_some_and(|limit| self.roster.in_flight(backend) >= limit)
    }

    pub(super) fn fits_ledger(&self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        let Some(usable) = self.usable(backend) else {
            return true;
        };
        self.ledger.total_if_started(backend, Some(id), need) <= usable
    }

    /// Whether the backend can take the new tokens without touching a pinned context, of those that `stay`.
    fn fits_guard(
        &self,
        backend: BackendId,
        id: ProgramId,
        need: Footprint,
        stay: impl Fn(ProgramId) -> bool,
    ) -> bool {
        let Some(capacity) = self.capacity(backend).filter(|_| self.config.lru_guard) else {
            return true;
        };
        let new = self.ledger.added(backend, need) - self.eviction.cached(id, backend);
        let free = capacity - self.occupied(backend);
        let safe = |other| self.pins.contains(other) && stay(other);
        self.eviction.spares(backend, (new, free), id, safe)
    }

    /// Drops pins until the request fits, as far as the pressure mode allows; returns whether it then does.
    pub(super) fn relieve(&mut self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        if self.is_full(backend) {
            return false;
        }
        match self.config.pressure {
            // A pin never idles the GPU.
            Pressure::Deadlock if self.roster.in_flight(backend) > 0 => false,
            Pressure::Deadlock | Pressure::Any => self.drop_youngest(backend, id, need),
            Pressure::Seniority => self.drop_juniors(backend, id, need),
        }
    }

    /// Drops pins, the youngest program's first, until the request fits or none is left.
    fn drop_youngest(&mut self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        while let Some(victim) = self.youngest_pin(backend, Some(id)) {
            self.unpin(victim, UnpinWhy::Pressure);
            if self.fits(backend, id, need) {
                return true;
            }
        }
        false
    }

    /// Drops the fewest pins of younger programs that make room, the youngest first; none if they do not.
    fn drop_juniors(&mut self, backend: BackendId, id: ProgramId, need: Footprint) -> bool {
        let Some(from) = self.juniors_from(backend, id, need) else {
            return false;
        };
        while let Some(victim) = self.youngest_pin(backend, Some(id))
            && self.seniority(victim) >= from
        {
            self.unpin(victim, UnpinWhy::Pressure);
        }
        true
    }

    /// The seniority from which on pins must go for the request to fit; `None` if that takes a senior's.
    fn juniors_from(&self, backend: BackendId, id: ProgramId, need: Footprint) -> Option<u64> {
        let own = self.seniority(id);
        let usable = self.usable(backend)?;
        let mut total = self.ledger.total_if_started(backend, Some(id), need);
        for victim in self.ledger.idle(backend).rev() {
            let seq = self.seniority(victim);
            if seq <= own {
                return None;
            }
            let freed = self.ledger.parked(victim);
            total -= freed.map_or(Tokens::ZERO, |(_, tokens)| tokens);
            let stay = |other| self.seniority(other) < seq;
            if total <= usable && self.fits_guard(backend, id, need, stay) {
                return Some(seq);
            }
        }
        None
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
    pub(super) fn is_oversize(&self, backend: BackendId, need: Footprint) -> bool {
        self.roster.in_flight(backend) == 0
            && self
                .usable(backend)
                .is_some_and(|usable| need.tokens > usable)
    }

    /// A step ended: its context is cached until somebody needs the room.
    pub(super) fn leave_behind(
        &mut self,
        program: Option<ProgramId>,
        backend: BackendId,
        context: Tokens,
    ) {
        if self.capacity(backend).is_none() {
            return;
        }
        let shared = program.and_then(|id| self.programs.get(id.index())?.shared());
        let private = context - shared.map_or(Tokens::ZERO, |shared| shared.tokens);
        self.eviction.park(program, backend, private);
        self.evict(backend);
    }

    /// Lets the model evict what no longer fits, as vLLM does.
    pub(super) fn evict(&mut self, backend: BackendId) {
        let Some(capacity) = self.capacity(backend) else {
            return;
        };
        let over = self.occupied(backend) - capacity;
        let (pins, notes) = (&self.pins, &mut self.notes);
        self.eviction.evict(backend, over, |program, tokens| {
            if pins.contains(program) {
                notes.add(super::Note::Overwritten { program, tokens });
            }
        });
    }

    /// A pinned context was not in the cache when its program returned: nor is anything that was idle for longer.
    pub(super) fn lost_in_spite(&mut self, backend: BackendId, stamp: u64) {
        self.notes.counts.lost += 1;
        while let Some(older) = self.eviction.take_older(backend, stamp) {
            if let Some(id) = older.owner {
                self.unpin(id, UnpinWhy::Evicted);
            }
        }
    }

    /// Tokens that the model has on a backend: running, cached, and shared by them.
    fn occupied(&self, backend: BackendId) -> Tokens {
        let sums = self.ledger.sums(backend);
        sums.running + sums.shared + self.eviction.tokens(backend)
    }

    /// Tokens of a backend's KV cache; `None` while unknown.
    fn capacity(&self, backend: BackendId) -> Option<Tokens> {
        let reported = self.roster.get_up(backend)?.kv_capacity;
        self.config.kv_budget_tokens.map(Tokens).or(reported)
    }

    /// Tokens that may be promised on a backend; `None` while its capacity is unknown.
    pub(super) fn usable(&self, backend: BackendId) -> Option<Tokens> {
        let capacity = self.capacity(backend)?;
        let fraction = 1.0 - self.config.headroom;
        Some(Tokens::from_f64(capacity.as_f64() * fraction))
    }

    fn seniority(&self, id: ProgramId) -> u64 {
        let program = self.programs.get(id.index());
        program.map_or(u64::MAX, |program| program.seq)
    }
}
