//! What the reference router does about KV pressure, backend by backend, every `tick_s`.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::cooled;
use super::{Config, Entry, ProgramState, Reference, Server};
use crate::policy::{BackendId, Decisions, ProgramId, Time, Tokens, settings};

impl Reference {
    pub(super) fn look(&mut self, now: Time, out: &mut Decisions) {
        if self.next_look.is_some_and(|due| now < due) {
            return;
        }
        self.next_look = Some(now + self.interval());
        for backend in self.ids() {
            self.relieve(now, backend, out);
        }
    }

    pub(super) fn interval(&self) -> Duration {
        settings::duration(self.config.tick_s).max(Duration::from_millis(1))
    }

    fn relieve(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        let Server {
            usage, last, up, ..
        } = self.servers[backend.index()];
        if usage >= self.config.pause_trigger {
            if cooled(now, last.pause, self.config.pause_cooldown_s) {
                self.last_acts(backend).pause = Some(now);
                let want = self.tokens(usage - self.config.pause_target, self.config.pause_step);
                let leaving = self.schedule_transfers(now, backend);
                self.pause(backend, want - leaving.as_f64());
            }
        } else if usage < self.config.resume_trigger
            && up
            && cooled(now, last.resume, self.config.resume_cooldown_s)
        {
            self.last_acts(backend).resume = Some(now);
            let budget = self.tokens(self.config.resume_target - usage, self.config.resume_step);
            self.resume_some(backend, budget, out);
        }
    }

    /// A part of the budget in tokens, multiplied in the router's order: rounding decides who is last.
    fn tokens(&self, fraction: f64, step: f64) -> f64 {
        let budget = self
            .config
            .kv_budget_tokens
            .unwrap_or(Config::REFERENCE_BUDGET);
        fraction.max(0.0) * Tokens(budget).as_f64() * step
    }

    /// Pauses programs until their estimates reach `want`: fewest steps first, then the largest, then the latest.
    fn pause(&mut self, backend: BackendId, want: f64) {
        if want <= 0.0 {
            return;
        }
        let order = |e: &Entry| (e.state.steps, Reverse(e.state.context), Reverse(e.seq));
        self.take(backend, want, ProgramState::is_free, order, |_, state| {
            state.pause_requested |= state.in_flight;
            state.paused |= !state.in_flight;
        });
    }

    /// Resumes programs until their estimates reach `budget`: most steps first, then the smallest.
    fn resume_some(&mut self, backend: BackendId, budget: f64, out: &mut Decisions) {
        let order = |e: &Entry| (Reverse(e.state.steps), e.state.context, e.seq);
        let mut resumed = Vec::new();
        let paused = |state: &ProgramState| state.paused;
        self.take(backend, budget, paused, order, |id, _| resumed.push(id));
        for id in resumed {
            self.resume(backend, id, out);
        }
    }

    /// Marks programs of `from` to continue on a backend that has room, smallest first. Returns their tokens.
    fn schedule_transfers(&mut self, now: Time, from: BackendId) -> Tokens {
        let last = self.servers[from.index()].last.transfer;
        if !cooled(now, last, self.config.transfer_cooldown_s) {
            return Tokens::ZERO;
        }
        let Some(target) = self.transfer_target(from) else {
            return Tokens::ZERO;
        };
        let room = self.config.transfer_target - self.servers[target.index()].usage;
        let budget = self.tokens(room, self.config.transfer_step);
        let order = |e: &Entry| (e.state.context, e.seq);
        let free = ProgramState::is_free;
        let moved = self.take(from, budget, free, order, |_, state| {
            state.transfer = Some(target);
        });
        if moved > Tokens::ZERO {
            self.last_acts(from).transfer = Some(now);
        }
        moved
    }

    /// The next backend in turn with low usage and no paused program.
    fn transfer_target(&mut self, from: BackendId) -> Option<BackendId> {
        let fits = |(id, server): &(BackendId, &Server)| {
            *id != from && server.paused == 0 && server.usage < self.config.transfer_trigger
        };
        let targets = || self.up().filter(fits);
        let place = self.turn.checked_rem(targets().count())?;
        let target = targets().nth(place).map(|(id, _)| id);
        self.turn = self.turn.wrapping_add(1);
        target
    }

    /// Changes programs of `backend` in `order` until the estimates of those changed reach `want`.
    fn take<K: Ord>(
        &mut self,
        backend: BackendId,
        want: f64,
        fits: impl Fn(&ProgramState) -> bool,
        order: impl Fn(&Entry) -> K,
        mut change: impl FnMut(ProgramId, &mut ProgramState),
    ) -> Tokens {
        let programs = self.servers[backend.index()].programs.iter();
        let fitting = programs.filter(|(_, entry)| fits(&entry.state));
        let mut queue: Vec<_> = fitting
            .filter_map(|(index, e)| Some((order(e), u32::try_from(index).ok()?)))
            .collect();
        queue.sort_unstable();
        let mut taken = Tokens::ZERO;
        for (_, id) in queue {
            if taken.as_f64() >= want {
                break;
            }
            let id = ProgramId(id);
            self.update(backend, id, |state| change(id, state));
            let state = self.program_on(backend, id).unwrap_or_default();
            taken += self.estimate(&state);
        }
        taken
    }
}
