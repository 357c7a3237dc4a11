//! ThunderAgent's arithmetic: what fits where, and who has to go when too much counts on a backend.

use super::books::{Books, footprint};
use crate::policy::{Arrival, BackendId, Ratio, Time, Tokens};

impl Books {
    /// Whether starting on `backend` takes the program away from its home.
    pub(super) fn is_move(&self, arrival: &Arrival, backend: BackendId) -> bool {
        let home = arrival.program.and_then(|id| self.program(id)?.home);
        home.is_some_and(|home| home != backend)
    }

    /// Whether the request's context fits on `backend` beside what counts there. A backend with nothing in flight
    /// takes any.
    pub(super) fn fits(&self, now: Time, backend: BackendId, arrival: &Arrival) -> bool {
        if self.roster.get_up(backend).is_none() {
            return false;
        }
        let Some(room) = self.fading_room(now, backend) else {
            return true;
        };
        let total = self.ledger.sums(backend).total();
        let after = self
            .ledger
            .total_if_started(backend, None, footprint(arrival));
        let need = (after - total) + Tokens(self.config.buffer_tokens);
        need.as_f64() <= room || self.roster.in_flight(backend) == 0
    }

    /// The backend with the most room, the lowest id among equals; a backend of unknown capacity counts by its
    /// requests in flight alone, after those that are known.
    pub(super) fn roomiest(&self, now: Time, arrival: &Arrival) -> Option<BackendId> {
        let key = |id: BackendId| {
            let room = self.fading_room(now, id);
            let load = -f64::from(self.roster.in_flight(id));
            (self.fits(now, id, arrival), room.unwrap_or(load))
        };
        let more = |best: (BackendId, (bool, f64)), id: BackendId| {
            let other = key(id);
            if other > best.1 { (id, other) } else { best }
        };
        let mut up = self.roster.up().map(|(id, _)| id);
        let first = up.next()?;
        Some(up.fold((first, key(first)), more).0)
    }

    /// Tokens free on `backend`; negative when too much counts there. `None`: the capacity is unknown, which 0 is
    /// taken for too.
    fn room(&self, backend: BackendId) -> Option<f64> {
        let idle = self.ledger.sums(backend).idle;
        self.room_beside(backend, idle.as_f64())
    }

    /// The same, with idle contexts faded.
    fn fading_room(&self, now: Time, backend: BackendId) -> Option<f64> {
        if !self.config.decays() {
            return self.room(backend);
        }
        let server = self.servers.get(backend.index());
        let fading = server.map_or(0.0, |s| s.fading * self.left(now, s.faded_at));
        self.room_beside(backend, fading)
    }

    fn room_beside(&self, backend: BackendId, idle: f64) -> Option<f64> {
        let capacity = self.roster.get_up(backend)?.kv_capacity?;
        if capacity == Tokens::ZERO {
            return None;
        }
        let sums = self.ledger.sums(backend);
        let active = self.servers.get(backend.index()).map_or(0, |s| s.active);
        let buffers = Tokens(u64::from(active) * self.config.buffer_tokens);
        let counted = (sums.running + sums.shared + buffers).as_f64();
        Some(capacity.as_f64() - counted - idle * self.config.acting_token_weight)
    }

    /// The part of an idle context that is left at `now`, 0–1.
    pub(super) fn left(&self, now: Time, since: Time) -> f64 {
        (-now.since(since).as_secs_f64() / self.config.half_life_s()).exp2()
    }

    /// While more counts on `backend` than it holds: pauses idle programs, then marks running ones, smallest first.
    /// A mark counts as room at once, and is taken back when it is not needed any more.
    pub(super) fn relieve(&mut self, now: Time, backend: BackendId) {
        while self.lacks(backend) {
            let smallest = self.ledger.idle(backend).next();
            if let Some(id) = smallest {
                self.deactivate(now, id);
                continue;
            }
            if !self.is_full(backend) {
                break;
            }
            let Some(id) = self.pop_running(backend) else {
                break;
            };
            self.update(id, |p| p.marked = true);
        }
        while let Some((tokens, id)) = self.server(backend).marked.last().copied() {
            let leaving = self.server(backend).leaving - tokens;
            if self.is_full(backend) && self.lacks_beside(backend, leaving) {
                break;
            }
            self.update(id, |p| p.marked = false);
        }
    }

    /// Whether more counts on `backend` than it holds, marked programs left out.
    fn lacks(&self, backend: BackendId) -> bool {
        let server = self.servers.get(backend.index());
        self.lacks_beside(backend, server.map_or(Tokens::ZERO, |s| s.leaving))
    }

    fn lacks_beside(&self, backend: BackendId, leaving: Tokens) -> bool {
        let room = self.room(backend);
        room.is_some_and(|room| room + leaving.as_f64() < 0.0)
    }

    /// Whether the engine itself is near its capacity. Books that say so alone overcount, such as by a prefix that
    /// is shared unseen.
    fn is_full(&self, backend: BackendId) -> bool {
        let sample = self.roster.get_up(backend).and_then(|b| b.sample);
        let usage = sample.and_then(|sample| sample.kv_usage).map(Ratio::get);
        usage.is_none_or(|usage| usage >= self.config.mark_usage)
    }
}
