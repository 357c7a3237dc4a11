//! How long a prompt takes to prefill, learnt from first tokens.

use crate::policy::Tokens;

/// Seconds from admission to first token as a line over the tokens that the cache did not serve.
///
/// Least squares with slow forgetting, so that a change of the backend shows after a few hundred steps.
#[derive(Clone, Copy, Debug)]
pub struct ReloadCost {
    default_s: f64,
    seen: u32,
    /// Weighted sums of 1, x, y, x², xy with x in thousands of tokens and y in seconds.
    sums: [f64; 5],
}

impl ReloadCost {
    /// Reports before the line is believed.
    pub const LEAST: u32 = 32;
    /// Weight left to a report after one more has come.
    const KEEP: f64 = 1.0 - 1.0 / 512.0;

    /// Nothing is learnt yet: every reload costs `default_s` seconds.
    pub const fn new(default_s: f64) -> Self {
        Self {
            default_s,
            seen: 0,
            sums: [0.0; 5],
        }
    }

    /// Learns that `uncached` tokens took `secs` seconds until the first token.
    pub fn observe(&mut self, uncached: Tokens, secs: f64) {
        let x = uncached.as_f64() / 1e3;
        for (sum, new) in self.sums.iter_mut().zip([1.0, x, secs, x * x, x * secs]) {
            *sum = *sum * Self::KEEP + new;
        }
        self.seen = self.seen.saturating_add(1);
    }

    /// Seconds to prefill `tokens` from nothing; at least 0.
    pub fn estimate_s(&self, tokens: Tokens) -> f64 {
        if self.seen < Self::LEAST {
            return self.default_s;
        }
        let [n, x, y, xx, xy] = self.sums;
        let spread = n * xx - x * x;
        // Reports of one length tell a mean, not a slope.
        let slope = if spread > 1e-9 * n * xx {
            ((n * xy - x * y) / spread).max(0.0)
        } else {
            0.0
        };
        let base = (y - slope * x) / n;
        (base + slope * tokens.as_f64() / 1e3).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_learnt_after_enough_reports() {
        let mut cost = ReloadCost::new(2.0);
        for tokens in 0..u64::from(ReloadCost::LEAST) {
            let before = cost.estimate_s(Tokens(50_000));
            assert!((before - 2.0).abs() < 1e-9, "the default until then");
            let tokens = Tokens(tokens * 500);
            cost.observe(tokens, 0.05 + tokens.as_f64() * 1e-4);
        }
        let learnt = cost.estimate_s(Tokens(20_000));
        assert!((learnt - 2.05).abs() < 1e-6, "{learnt}");
    }

    #[test]
    fn equal_lengths_and_a_falling_line_do_not_mislead() {
        let mut cost = ReloadCost::new(2.0);
        for _ in 0..100 {
            cost.observe(Tokens(1000), 0.3);
        }
        assert!((cost.estimate_s(Tokens(90_000)) - 0.3).abs() < 1e-6);
        for tokens in 0..1000 {
            cost.observe(Tokens(tokens * 10), 5.0 - Tokens(tokens).as_f64() / 300.0);
        }
        assert!(cost.estimate_s(Tokens(1_000_000)) >= 0.0);
    }
}
