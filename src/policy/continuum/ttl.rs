//! How long a program's room is worth keeping: the time-to-live, and what it is estimated from.

use std::time::Duration;

use super::config::{ColdStart, Config, TtlMode};
use crate::policy::estimate::{Foresight, GapHistory, RecentMean, ReloadCost};
use crate::policy::{GapKind, Tokens};

/// Everything that the time-to-live depends on, learnt as steps pass.
#[derive(Debug)]
pub(super) struct Estimates {
    pub(super) gaps: GapHistory,
    pub(super) delay: RecentMean,
    pub(super) foresight: Foresight,
    pub(super) reload: ReloadCost,
    /// The times-to-live of the last pins.
    pub(super) granted: RecentMean,
}

/// The context whose reload is told among the estimates.
const TOLD_CONTEXT: Tokens = Tokens(10_000);

impl Estimates {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            gaps: GapHistory::new(),
            delay: RecentMean::new(),
            foresight: Foresight::new(),
            reload: ReloadCost::new(config.reload_default_s),
            granted: RecentMean::new(),
        }
    }

    /// Learns the length of a gap that ended.
    pub(super) fn gap_ended(&mut self, config: &Config, kind: GapKind, gap: Duration) {
        if gap.as_secs_f64() <= config.max_gap_s {
            self.gaps.observe(kind, gap);
        }
    }

    /// Seconds that a context of `tokens` is kept after a gap of `kind` began; none below `min_pin_s`.
    pub(super) fn ttl_s(&mut self, config: &Config, kind: GapKind, tokens: Tokens) -> Option<f64> {
        if kind == GapKind::UserTurn && !config.pin_user_turn {
            return None;
        }
        let ttl_s = match config.ttl_mode {
            TtlMode::Fixed => self.fixed_s(config, kind),
            TtlMode::Paper => self.paper_s(config, kind, tokens),
        };
        let ttl_s = ttl_s.min(config.ttl_max_s);
        (ttl_s > config.min_pin_s).then_some(ttl_s)
    }

    /// The public code's rule. A kind that was never seen counts as fast.
    fn fixed_s(&self, config: &Config, kind: GapKind) -> f64 {
        let mean = self.gaps.mean_s(kind);
        if mean.is_some_and(|mean| mean > config.slow_tool_s) {
            return 0.0;
        }
        config.ttl_fixed_s
    }

    /// The paper's rule: a return in time saves the reload, and the queue as far as the end can be foreseen.
    fn paper_s(&mut self, config: &Config, kind: GapKind, tokens: Tokens) -> f64 {
        let few = config.few_gaps as usize;
        let reload_s = self.reload_s(config, tokens);
        let delay_s = self.delay_s(config);
        if self.gaps.len() <= few {
            return match config.cold_start {
                ColdStart::Fixed => self.fixed_s(config, kind),
                // The best wait for exponential gaps of mean 1 s; a fresh history foresees the end.
                ColdStart::Exponential => (delay_s + reload_s).max(1.0).ln(),
            };
        }
        let benefit_s = delay_s * self.foresight(config) + reload_s;
        self.gaps.best_wait_s(kind, few, benefit_s)
    }

    /// Everything that is estimated, by name.
    pub(super) fn told(&self, config: &Config) -> Vec<(&'static str, f64)> {
        vec![
            ("gap_mean_s", self.gaps.mean_of_all_s()),
            ("ttl_mean_s", self.granted.mean_s()),
            ("queue_delay_s", self.delay_s(config)),
            ("foresight", self.foresight(config)),
            ("reload_10k_tokens_s", self.reload_s(config, TOLD_CONTEXT)),
        ]
    }

    fn reload_s(&self, config: &Config, tokens: Tokens) -> f64 {
        let learnt = || self.reload.estimate_s(tokens);
        config.reload_s.unwrap_or_else(learnt)
    }

    fn delay_s(&self, config: &Config) -> f64 {
        config.queue_delay_s.unwrap_or_else(|| self.delay.mean_s())
    }

    fn foresight(&self, config: &Config) -> f64 {
        config.foresight.unwrap_or_else(|| self.foresight.get())
    }
}
