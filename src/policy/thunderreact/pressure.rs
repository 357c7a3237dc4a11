//! What ThunderReact does about KV pressure, backend by backend, every `tick_s`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::ThunderReact;
use super::programs::Program;
use crate::policy::{BackendId, Decisions, ProgramId, Ratio, Time, Tokens, settings};

/// When each kind of act last happened on one backend, and when it last told its usage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    pub(super) sampled: Option<Time>,
    pause: Option<Time>,
    resume: Option<Time>,
    transfer: Option<Time>,
}

impl ThunderReact {
    /// The time between two looks; never zero, so that a tick is always followed by a later one (law P5).
    pub(super) fn tick(&self) -> Duration {
        settings::duration(self.config.tick_s).max(Duration::from_millis(1))
    }

    /// Acts on every backend that is up, if a look is due.
    pub(super) fn look(&mut self, now: Time, out: &mut Decisions) {
        if self.next_look.is_none_or(|due| now < due) {
            return;
        }
        self.next_look = (self.programs.len() > 0).then(|| now + self.tick());
        for backend in self.roster.ids() {
            if self.roster.get_up(backend).is_some() {
                self.relieve(now, backend, out);
            }
        }
    }

    pub(super) fn watch(&mut self, backend: BackendId) -> &mut Watch {
        if self.watches.len() <= backend.index() {
            self.watches.resize(backend.index() + 1, Watch::default());
        }
        &mut self.watches[backend.index()]
    }

    fn relieve(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        let last = *self.watch(backend);
        match self.usage(now, backend) {
            Some(usage) if usage >= self.config.pause_trigger => {
                if cooled(now, last.pause, self.config.pause_cooldown_s) {
                    self.watch(backend).pause = Some(now);
                    let want = (usage - self.config.pause_target) * self.config.pause_step;
                    let want = self.share(backend, want);
                    let want = want - self.schedule_transfers(now, backend);
                    self.pause(backend, want);
                }
            }
            Some(usage) if usage < self.config.resume_trigger => {
                if self.head(backend).is_some()
                    && cooled(now, last.resume, self.config.resume_cooldown_s)
                {
                    self.watch(backend).resume = Some(now);
                    let budget = (self.config.resume_target - usage) * self.config.resume_step;
                    self.resume_some(backend, self.share(backend, budget), out);
                }
            }
            Some(_) | None => self.outlast(now, backend, out),
        }
    }

    /// Usage between the triggers, or unknown: the first in the queue goes once nothing has been paused, resumed or
    /// held for so long that the pressure may be taken to be gone.
    fn outlast(&mut self, now: Time, backend: BackendId, out: &mut Decisions) {
        let watch = *self.watch(backend);
        let patience_s = self.config.dead_band_s;
        let quiet = cooled(now, watch.pause, patience_s) && cooled(now, watch.resume, patience_s);
        if let Some(id) = self.head(backend).filter(|_| quiet) {
            self.watch(backend).resume = Some(now);
            self.resume(id, out);
        }
    }

    /// Pauses programs until their estimates add up to `want`: fewest steps first, then the largest.
    fn pause(&mut self, backend: BackendId, want: Tokens) {
        let rank = |p: &Program, tokens| (p.depth(), Reverse(tokens), Reverse(p.seq));
        let mut candidates = self.candidates(backend, want, rank);
        let mut taken = Tokens::ZERO;
        while taken < want {
            let Some(Reverse((_, id))) = candidates.pop() else {
                return;
            };
            taken += self.estimate(id);
            self.programs.update(id, |p| {
                p.pause_requested |= p.in_flight > 0;
                p.paused |= p.in_flight == 0;
            });
        }
    }

    /// Resumes programs with a request waiting until their estimates add up to `budget`. The last one may
    /// exceed it.
    fn resume_some(&mut self, backend: BackendId, budget: Tokens, out: &mut Decisions) {
        let mut spent = Tokens::ZERO;
        while spent < budget {
            let Some(id) = self.head(backend) else {
                return;
            };
            spent += self.estimate(id);
            self.resume(id, out);
        }
    }

    /// Marks programs of `from` to continue on a backend that has room, smallest context first. Returns the
    /// tokens that will leave.
    fn schedule_transfers(&mut self, now: Time, from: BackendId) -> Tokens {
        let last = self.watch(from).transfer;
        if !cooled(now, last, self.config.transfer_cooldown_s) {
            return Tokens::ZERO;
        }
        let Some((target, usage)) = self.transfer_target(now, from) else {
            return Tokens::ZERO;
        };
        let room = self.config.transfer_target - usage;
        let budget = self.share(target, room * self.config.transfer_step);
        let rank = |p: &Program, _| (p.context, p.seq);
        let mut candidates = self.candidates(from, budget, rank);
        let mut moved = Tokens::ZERO;
        while moved < budget {
            let Some(Reverse((_, id))) = candidates.pop() else {
                break;
            };
            moved += self.estimate(id);
            self.programs.update(id, |p| p.transfer = Some(target));
        }
        self.watch(from).transfer = Some(now);
        moved
    }

    /// The next backend in turn with low usage and no paused program, and its usage.
    fn transfer_target(&mut self, now: Time, from: BackendId) -> Option<(BackendId, f64)> {
        let fits = |id: BackendId| {
            let usage = self.usage(now, id)?;
            let fits = id != from && self.programs.paused_on(id) == 0;
            (fits && usage < self.config.transfer_trigger).then_some((id, usage))
        };
        let targets = || self.roster.up().filter_map(|(id, _)| fits(id));
        let target = targets().nth(self.transfer_turn.checked_rem(targets().count())?);
        self.transfer_turn = self.transfer_turn.wrapping_add(1);
        target
    }

    /// Programs of `backend` that may be paused or moved, as a heap by `rank`; empty if nothing is wanted.
    /// O(programs), at most once per cooldown: cheaper than an index kept on every event.
    fn candidates<K: Ord>(
        &self,
        backend: BackendId,
        want: Tokens,
        rank: impl Fn(&Program, Tokens) -> K,
    ) -> BinaryHeap<Reverse<(K, ProgramId)>> {
        if want == Tokens::ZERO {
            return BinaryHeap::new();
        }
        let free = |p: &Program| {
            p.backend == backend && !p.paused && !p.pause_requested && p.transfer.is_none()
        };
        let programs = self.programs.iter().filter(|(_, p)| free(p));
        programs
            .map(|(id, p)| Reverse((rank(p, self.programs.estimate(p)), id)))
            .collect()
    }

    fn estimate(&self, id: ProgramId) -> Tokens {
        let program = self.programs.get(id);
        program.map_or(Tokens::ZERO, |p| self.programs.estimate(p))
    }

    /// The usage that the backend last told; `None` if that is too long ago.
    fn usage(&self, now: Time, backend: BackendId) -> Option<f64> {
        let sampled = self.watches.get(backend.index())?.sampled?;
        let age = now.since(sampled);
        let fresh = age <= settings::duration(self.config.sample_max_age_s);
        let sample = self.roster.get_up(backend)?.sample.filter(|_| fresh)?;
        sample.kv_usage.map(Ratio::get)
    }

    /// A fraction of the backend's KV budget, in tokens; a negative fraction is none.
    fn share(&self, backend: BackendId, fraction: f64) -> Tokens {
        let reported = self.roster.get_up(backend).and_then(|b| b.kv_capacity);
        let budget = self.config.kv_budget_tokens.map(Tokens).or(reported);
        let budget = budget.unwrap_or(Tokens(super::Config::REFERENCE_BUDGET));
        Tokens::from_f64(fraction * budget.as_f64())
    }
}

/// Whether `cooldown_s` seconds have passed since `last`.
pub(super) fn cooled(now: Time, last: Option<Time>, cooldown_s: f64) -> bool {
    last.is_none_or(|last| now.since(last) >= settings::duration(cooldown_s))
}
