//! One backend: its cache as believed, its prices, and the plan that follows: which idle contexts are worth keeping,
//! and how much room must stay free for them to grow.
//!
//! A token of an idle program that returns at rate `v` saves `a` seconds of prefill when it does; the same token of
//! room lets running requests, which fill `U` tokens, save `phi / U` of the engine's time. So its room is rented for
//! as long as `a · v · U > phi`. Eviction takes the longest unused first, so only the younger end of the list can
//! be kept: from the place on that makes the sum of `(a · v · U − phi) · tokens` greatest.

use std::time::Duration;

use super::capacity::Capacity;
use super::groups::Groups;
use super::lru::{Node, Owner};
use super::price::Price;
use super::returns::Returns;
use super::shadow::Shadow;
use crate::policy::{RequestId, Time, settings};

/// Changes are planned for once they are this part of the segments: exact below that many segments, and O(1) per
/// change above.
const STALE: usize = 16;
/// A program's turn is at least this long.
const LEAST_TURN_S: f64 = 2.0;
/// Return rate of a program whose request waits at the gate, per second.
const WANTED_RATE: f64 = 2.0;

/// One backend.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) shadow: Shadow,
    pub(super) price: Price,
    pub(super) capacity: Capacity,
    /// Requests that run.
    pub(super) running: u32,
    /// Those of them without a first token.
    prefilling: u32,
    /// The one of those that prefills alone since it began.
    alone: Option<RequestId>,
    /// Tokens by which the programs that run are going to grow.
    running_growth: f64,
    /// Tokens by which the programs whose room is kept are going to grow.
    kept_growth: f64,
    /// Programs whose room is kept.
    pub(super) kept: u32,
    /// Changes since the plan was made.
    stale: usize,
    planned_at: Time,
}

impl Cache {
    pub(super) fn new(prefill_s: f64) -> Self {
        Self {
            shadow: Shadow::new(),
            price: Price::new(prefill_s),
            capacity: Capacity::new(),
            running: 0,
            prefilling: 0,
            alone: None,
            running_growth: 0.0,
            kept_growth: 0.0,
            kept: 0,
            stale: 0,
            planned_at: Time::ZERO,
        }
    }

    /// A request starts with `private` tokens of its own, and its program is going to grow by `growth`.
    pub(super) fn begin(&mut self, request: RequestId, private: u32, growth: f64) {
        self.shadow.start(private);
        self.alone = (self.prefilling == 0).then_some(request);
        self.running += 1;
        self.prefilling += 1;
        self.running_growth += growth;
        self.stale += 1;
    }

    /// A request has its first token, or ended without one. Returns whether it prefilled alone.
    pub(super) fn prefilled(&mut self, request: RequestId) -> bool {
        self.prefilling = self.prefilling.saturating_sub(1);
        self.alone.take() == Some(request)
    }

    /// A request that began like this has ended.
    pub(super) fn end(&mut self, private: u32, growth: f64) {
        self.shadow.finish(private);
        self.running = self.running.saturating_sub(1);
        self.running_growth -= growth;
        if self.running == 0 {
            // Sums of fractions drift.
            self.running_growth = 0.0;
        }
        self.stale += 1;
    }

    /// Whether what the cache holds is known and foretold well enough to decide by.
    pub(super) const fn is_gated(&self) -> bool {
        self.shadow.is_known() && !self.capacity.is_distrusted()
    }

    /// Something changed that the plan does not know of.
    pub(super) const fn touch(&mut self) {
        self.stale += 1;
    }

    /// Seconds of prefill that everything that runs would take.
    fn worth(&self) -> f64 {
        self.price.prefill_s() * (float(self.shadow.running()) + 1.0)
    }

    /// The longest wait for which room is rented, in seconds: by then, running requests have made as much of it as
    /// filling it again costs.
    pub(super) fn horizon_s(&self) -> f64 {
        self.worth() / self.price.phi()
    }

    /// How long a program may come back warm while somebody is overdue: the time of `loads` of the whole cache, so that
    /// changing over costs no more than one part in that many of the engine's time.
    pub(super) fn turn(&self, loads: f64) -> Duration {
        let turn_s = loads * self.price.prefill_s() * float(self.shadow.capacity());
        settings::duration(turn_s.max(LEAST_TURN_S))
    }

    /// Tokens that must stay free for the growth of what runs and what is kept.
    pub(super) fn reserve(&self) -> f64 {
        self.running_growth.max(0.0) + self.kept_growth
    }

    /// Whether the plan no longer holds.
    pub(super) fn is_stale(&self, now: Time) -> bool {
        self.stale * STALE >= self.shadow.segments().max(1)
            || now.since(self.planned_at) >= super::RETHINK
    }

    /// Makes the plan anew. `is_over` tells of a program whose turn is over and who gets no more room.
    pub(super) fn plan(
        &mut self,
        now: Time,
        returns: &mut Returns,
        groups: &Groups,
        is_over: impl Fn(&Node) -> bool,
    ) {
        let (worth, phi) = (self.worth(), self.price.phi());
        let horizon = self.horizon_s();
        let (mut sum, mut tokens, mut growth, mut kept) = (0.0, 0, 0.0, 0);
        let (mut best, mut cut, mut protected) = (0.0, u64::MAX, 0);
        (self.kept_growth, self.kept) = (0.0, 0);
        for (node, here) in self.shadow.youngest_first() {
            tokens += u64::from(here);
            let rate = match node.owner {
                Owner::Prefix(_) => continue,
                Owner::Nobody => 0.0,
                Owner::Program(_) if node.wanted => WANTED_RATE,
                Owner::Program(_) if is_over(node) => 0.0,
                Owner::Program(id) => returns.rate(id, node.class, node.since, now),
            };
            let gain = worth * rate - phi;
            sum += gain * f64::from(here);
            if gain > 0.0 {
                growth += groups.get(node.group).growth_within(horizon);
                kept += 1;
            }
            if sum > best {
                (best, cut, protected) = (sum, node.seq(), tokens);
                (self.kept_growth, self.kept) = (growth, kept);
            }
        }
        self.shadow.protect(cut, protected);
        (self.stale, self.planned_at) = (0, now);
    }
}

#[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^53")]
const fn float(tokens: u64) -> f64 {
    tokens as f64
}
