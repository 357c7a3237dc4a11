//! What a token of room is worth, and what it costs to fill it again: both measured on one backend.
//!
//! `a`, seconds of prefill per token: the slope of the time to first token against the tokens that were not cached,
//! of requests that prefilled alone. `phi`, the share of the engine's time that one more running request would
//! save: iterations have a part that does not grow with the batch, so it is that part's share of the time in which
//! running requests get one token each; `base / time per output token`.

use crate::policy::{Time, Tokens};

/// Seconds in which measured decode speed fades.
const MEMORY_S: f64 = 20.0;
/// What `phi` is until decode speed has been measured.
const PHI: f64 = 0.4;
/// The least time per token is measured in a batch too, so the part that does not grow with it is less: fitted.
const FIXED: f64 = 0.85;
/// Output tokens that must have been timed before `phi` follows them.
const LEAST_TOKENS: f64 = 1_000.0;
/// Weight left to one timed prefill after one more has come.
const KEEP: f64 = 1.0 - 1.0 / 256.0;
/// Squared tokens of spread that the prior of `a` is worth: a few prefills of a thousand tokens more or less.
const PRIOR: f64 = 4e6;
/// How much of the way up the least time per token drifts with each request, so that a slower model shows.
const DRIFT: f64 = 1e-5;

/// The measurements of one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Price {
    prior_s: f64,
    /// Weighted sums of 1, x, y, x², xy: x uncached tokens, y seconds to the first token.
    prefill: [f64; 5],
    /// Seconds of decoding and tokens decoded, fading.
    decode_s: f64,
    decode_tokens: f64,
    decoded_at: Time,
    /// The least time per output token.
    base_s: f64,
}

impl Price {
    /// Nothing measured yet; prefill is taken to cost `prior_s` seconds per token.
    pub(super) const fn new(prior_s: f64) -> Self {
        Self {
            prior_s,
            prefill: [0.0; 5],
            decode_s: 0.0,
            decode_tokens: 0.0,
            decoded_at: Time::ZERO,
            base_s: f64::INFINITY,
        }
    }

    /// A request that prefilled alone had its first token after `secs`, with `uncached` tokens to compute.
    pub(super) fn observe_prefill(&mut self, uncached: Tokens, secs: f64) {
        let x = uncached.as_f64();
        for (sum, new) in self.prefill.iter_mut().zip([1.0, x, secs, x * x, x * secs]) {
            *sum = *sum * KEEP + new;
        }
    }

    /// A request got its `tokens` tokens after the first within `secs`.
    pub(super) fn observe_decode(&mut self, now: Time, tokens: Tokens, secs: f64) {
        if tokens == Tokens::ZERO || secs <= 0.0 {
            return;
        }
        let fade = (-now.since(self.decoded_at).as_secs_f64() / MEMORY_S).exp();
        self.decoded_at = now;
        self.decode_s = self.decode_s * fade + secs;
        self.decode_tokens = self.decode_tokens * fade + tokens.as_f64();
        let each = secs / tokens.as_f64();
        if each < self.base_s {
            self.base_s = each;
        } else {
            self.base_s += DRIFT * (each - self.base_s).min(self.base_s);
        }
    }

    /// `a`: seconds of prefill per token.
    pub(super) fn prefill_s(&self) -> f64 {
        let [n, x, y, xx, xy] = self.prefill;
        if n < 1.0 {
            return self.prior_s;
        }
        let (spread, with) = (xx - x * x / n, xy - x * y / n);
        let slope = (with + PRIOR * self.prior_s) / (spread + PRIOR);
        slope.clamp(self.prior_s / 100.0, self.prior_s * 100.0)
    }

    /// `phi`: the share of the engine's time that one more running request would save, 0–1.
    pub(super) fn phi(&self) -> f64 {
        if self.decode_tokens < LEAST_TOKENS {
            return PHI;
        }
        (FIXED * self.base_s * self.decode_tokens / self.decode_s).clamp(0.02, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_learnt_whatever_the_fixed_part() {
        let mut price = Price::new(25e-6);
        assert!((price.prefill_s() - 25e-6).abs() < 1e-12);
        for n in 0..100_u64 {
            let tokens = Tokens(n % 10 * 500);
            price.observe_prefill(tokens, 0.3 + tokens.as_f64() * 75e-6);
        }
        let a = price.prefill_s();
        assert!((70e-6..=75e-6).contains(&a), "{a}");
    }

    #[test]
    fn room_is_worth_the_more_the_less_a_crowd_slows_decoding_down() {
        let mut price = Price::new(25e-6);
        let mut now = Time::ZERO;
        let mut decode = |each: f64, requests: u32| {
            for _ in 0..requests {
                now = now + std::time::Duration::from_millis(100);
                price.observe_decode(now, Tokens(100), 100.0 * each);
            }
            price.phi()
        };
        assert!((decode(8e-3, 5) - PHI).abs() < 1e-9, "too few");
        assert!(decode(8e-3, 50) > 0.8);
        let crowded = decode(24e-3, 400);
        assert!((0.25..0.4).contains(&crowded), "{crowded}");
    }
}
