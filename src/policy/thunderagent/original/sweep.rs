//! What the original does every few seconds: resume, then pause; and the end of a hold that lasted too long.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Act, Entry, Original};
use crate::policy::{BackendId, Decisions, ProgramId, Time, Tokens};

impl Original {
    /// Resumes what fits, then relieves each backend above its capacity; then the resumed programs' requests go on.
    pub fn sweep(&mut self, now: Time, out: &mut Decisions) {
        self.resume_fitting(now);
        for backend in self.ids() {
            self.relieve(backend);
        }
        self.wake(out);
    }

    /// Resumes a program whose request was held for too long, fitting or not: where it was, or where the fewest
    /// programs are. Its requests go on in any case.
    pub fn force(&mut self, id: ProgramId, out: &mut Decisions) {
        if let Some(&program) = self.state(id).filter(|program| program.paused) {
            let fewest = || self.healthy().min_by_key(|id| self.on(*id));
            let home = program.origin.or_else(fewest);
            self.resume(id, home.unwrap_or(BackendId(0)));
        } else {
            self.woken.push(id);
        }
        self.wake(out);
    }

    pub(super) fn time_out(&mut self, now: Time, out: &mut Decisions) {
        while let Some(request) = self.waiting.expired(now) {
            let Some((id, _)) = self.waiting.get(request).map(|held| held.key) else {
                return;
            };
            self.timed_out += 1;
            self.force(id, out);
        }
    }

    /// Programs whose home is `backend`.
    fn on(&self, backend: BackendId) -> usize {
        let homes = self.entries().filter_map(|(_, entry)| entry.state.home);
        homes.filter(|home| *home == backend).count()
    }

    fn resume(&mut self, id: ProgramId, home: BackendId) {
        self.update(id, |entry| {
            entry.state.home = Some(home);
            entry.state.origin = None;
            entry.state.registered = true;
            entry.state.paused = false;
        });
        self.woken.push(id);
        self.note(|this| Act::Resume(id, home, this.room(home)));
    }

    pub(super) fn pause(&mut self, id: ProgramId, home: BackendId) {
        self.update(id, |entry| {
            entry.state.queued = entry.state.tokens;
            entry.state.origin = Some(home);
            entry.state.home = None;
            entry.state.registered = false;
            entry.state.paused = true;
        });
        self.note(|this| Act::Pause(id, home, this.room(home)));
    }

    /// Selects programs by class and size against the room of all backends together, then places them, largest
    /// first, each where most room is left. One that fits nowhere is passed over.
    fn resume_fitting(&mut self, now: Time) {
        let mut rooms = self.rooms(now);
        rooms.sort_by_key(|(room, _)| Reverse(*room));
        let mut picked = self.pick(rooms.iter().map(|(room, _)| *room).sum());
        picked.sort_by_key(|(tokens, _)| Reverse(*tokens));
        let least = picked.last().map_or(0, |(tokens, _)| self.need(*tokens));
        for (tokens, id) in picked {
            let need = self.need(tokens);
            let Some(&(room, backend)) = rooms.first() else {
                return;
            };
            if least > room {
                return;
            }
            if need > room {
                continue;
            }
            self.resume(id, backend);
            rooms[0].0 = room - need;
            rooms.retain(|(room, _)| *room > self.buffer());
            rooms.sort_by_key(|(room, _)| Reverse(*room));
        }
    }

    /// The healthy backends with more than a buffer of room.
    fn rooms(&self, now: Time) -> Vec<(i64, BackendId)> {
        let room = |id: BackendId| {
            if self.config.decays() {
                self.fading_room(now, id)
            } else {
                self.room(id)
            }
        };
        let rooms = self.healthy().filter_map(|id| Some((room(id)?, id)));
        rooms.filter(|(room, _)| *room > self.buffer()).collect()
    }

    fn buffer(&self) -> i64 {
        self.need(Tokens::ZERO)
    }

    /// Queued programs whose needs add up to `pool`: returning ones with a request, then new ones, then idle ones;
    /// within each, by the size they had when they were paused. One that does not fit is passed over.
    fn pick(&self, pool: i64) -> Vec<(Tokens, ProgramId)> {
        if pool == 0 || self.paused == 0 {
            return Vec::new();
        }
        let class = |entry: &Entry| match (entry.state.steps, entry.state.acting_since) {
            (1, _) => 1,
            (_, None) => 0,
            (_, Some(_)) => 2,
        };
        let paused = self.entries().filter(|(_, entry)| entry.state.paused);
        let mut queue: Vec<_> = paused
            .map(|(id, e)| (class(e), e.state.queued, e.queue_seq, e.state.tokens, id))
            .collect();
        queue.sort_unstable();
        let mut used = 0;
        let fits = |(_, _, _, tokens, id)| {
            let need = self.need(tokens);
            let fits = used + need <= pool;
            used += if fits { need } else { 0 };
            fits.then_some((tokens, id))
        };
        queue.into_iter().filter_map(fits).collect()
    }

    /// Pauses idle programs, smallest first, while `backend` is above its capacity. When none is left it marks the
    /// running ones, smallest first; that does not change the room, so it marks all.
    fn relieve(&mut self, backend: BackendId) {
        let is_over = |this: &Self| this.room(backend).is_some_and(|room| room < 0);
        if !is_over(self) {
            return;
        }
        let (mut acting, mut reasoning) = (BinaryHeap::new(), BinaryHeap::new());
        for (id, entry) in self
            .entries()
            .filter(|(_, e)| e.state.home == Some(backend))
        {
            let key = Reverse((entry.state.tokens, entry.seq, id));
            match entry.state.acting_since {
                Some(_) => acting.push(key),
                None if !entry.state.marked => reasoning.push(key),
                None => {}
            }
        }
        while is_over(self) {
            if let Some(Reverse((_, _, id))) = acting.pop() {
                self.pause(id, backend);
            } else if let Some(Reverse((tokens, _, id))) = reasoning.pop() {
                self.update(id, |entry| entry.state.marked = true);
                self.server(backend).future += tokens;
                self.note(|this| Act::Mark(id, backend, this.room(backend)));
            } else {
                return;
            }
        }
    }
}
