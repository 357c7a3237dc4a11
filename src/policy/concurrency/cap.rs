//! One backend's cap on active programs, and how it moves.

use super::config::{Config, Mode};
use crate::policy::{BackendSample, Time, Tokens, settings};

/// One backend's slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cap {
    /// Programs that may be active.
    pub(super) limit: u32,
    /// Programs that are.
    pub(super) active: u32,
    /// Grows when the backend is lost: slots taken before no longer count.
    pub(super) life: u32,
    /// The sample at which the current interval began.
    began: Option<(Time, BackendSample)>,
    /// Prompt tokens of first steps in this interval.
    first_steps: Tokens,
    /// Every slot was taken at some moment of this interval.
    reached: bool,
    /// Hit rate of the last interval that had one, 0–1.
    pub(super) hit_rate: f64,
}

impl Cap {
    pub(super) fn new(config: &Config) -> Self {
        let bounds = match config.mode {
            Mode::Fixed => (1, u32::MAX),
            Mode::Aimd => (config.cap_min, config.cap_max),
        };
        Self {
            limit: config.cap.clamp(bounds.0, bounds.1),
            active: 0,
            life: 0,
            began: None,
            first_steps: Tokens::ZERO,
            reached: false,
            hit_rate: 1.0,
        }
    }

    pub(super) const fn free(&self) -> u32 {
        self.limit.saturating_sub(self.active)
    }

    /// More programs are active than may be: the cap has shrunk, or a hold has timed out.
    pub(super) const fn is_over(&self) -> bool {
        self.active > self.limit
    }

    /// A program becomes active; `first` is its prompt if this is its first step.
    pub(super) fn take(&mut self, first: Option<Tokens>) {
        self.active += 1;
        self.reached |= self.active >= self.limit;
        self.first_steps += first.unwrap_or_default();
    }

    pub(super) fn yield_one(&mut self) {
        self.active = self.active.saturating_sub(1);
    }

    /// The backend is gone, and every context on it.
    pub(super) fn lose(&mut self) {
        self.active = 0;
        self.life = self.life.wrapping_add(1);
        self.began = None;
    }

    /// Takes a sample and, at the end of an interval, moves the cap.
    pub(super) fn sample(&mut self, config: &Config, now: Time, sample: BackendSample) {
        let Some((since, first)) = self.began else {
            return self.begin(now, sample);
        };
        // Counters that fall belong to a server that was restarted.
        if sample.prefix_queries < first.prefix_queries || sample.preemptions < first.preemptions {
            return self.begin(now, sample);
        }
        if now.since(since) < settings::duration(config.interval_s) {
            return;
        }
        let looked_up = Tokens(sample.prefix_queries - first.prefix_queries) - self.first_steps;
        let hits = Tokens(sample.prefix_hits.saturating_sub(first.prefix_hits));
        if looked_up > Tokens::ZERO {
            self.hit_rate = (hits.as_f64() / looked_up.as_f64()).min(1.0);
        }
        let misses = looked_up > Tokens::ZERO && self.hit_rate < config.hit_rate_min;
        if misses || sample.preemptions > first.preemptions {
            // From what was there: a cap that was not reached has not caused the trouble.
            let from = f64::from(self.limit.min(self.active.max(1)));
            let limit = Tokens::from_f64(from * config.decrease).0;
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            self.limit = limit.clamp(config.cap_min, config.cap_max);
        } else if self.reached {
            let limit = self.limit.saturating_add(config.increase);
            self.limit = limit.min(config.cap_max);
        }
        self.begin(now, sample);
    }

    fn begin(&mut self, now: Time, sample: BackendSample) {
        self.began = Some((now, sample));
        self.first_steps = Tokens::ZERO;
        self.reached = self.active >= self.limit;
    }
}
