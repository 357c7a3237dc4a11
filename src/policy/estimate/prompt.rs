//! Prompt lengths before the backend reports them.

use crate::policy::Tokens;

/// A program's last request, as far as it helps to estimate the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptHistory {
    /// Prompt length that the backend reported.
    pub prompt: Tokens,
    /// Length of the request body that carried it, bytes.
    pub body_bytes: u64,
}

/// Estimates a prompt's tokens from the length of its request body.
///
/// Bytes per token is an exponentially weighted mean over all programs, corrected by every reported usage. A
/// program that was seen before is estimated from its last prompt plus its growth, which is closer.
#[derive(Clone, Debug)]
pub struct PromptEstimator {
    bytes_per_token: f64,
}

impl PromptEstimator {
    /// Bytes per token before any report: English text and JSON are near it.
    pub const DEFAULT_BYTES_PER_TOKEN: f64 = 4.0;
    /// Weight of one report, 0–1.
    const WEIGHT: f64 = 0.05;
    /// Reports outside this range (images, empty prompts) say nothing about text and are cut to it.
    const RANGE: (f64, f64) = (0.5, 64.0);

    /// An estimator that has seen no report.
    pub const fn new() -> Self {
        Self {
            bytes_per_token: Self::DEFAULT_BYTES_PER_TOKEN,
        }
    }

    /// Bytes per token as learned so far.
    pub const fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token
    }

    /// The prompt length of a request with a body of `body_bytes`. A body that shrank gives a shorter prompt.
    pub fn estimate(&self, history: Option<PromptHistory>, body_bytes: u64) -> Tokens {
        let bytes = |n: u64| Tokens::from_f64((Tokens(n).as_f64() / self.bytes_per_token).round());
        let Some(last) = history else {
            return bytes(body_bytes);
        };
        let grown = bytes(body_bytes.saturating_sub(last.body_bytes));
        let shrunk = bytes(last.body_bytes.saturating_sub(body_bytes));
        last.prompt + grown - shrunk
    }

    /// Learns from a reported prompt length; an empty prompt teaches nothing.
    pub fn observe(&mut self, body_bytes: u64, prompt: Tokens) {
        if prompt == Tokens::ZERO {
            return;
        }
        let seen = Tokens(body_bytes).as_f64() / prompt.as_f64();
        let seen = seen.clamp(Self::RANGE.0, Self::RANGE.1);
        self.bytes_per_token += Self::WEIGHT * (seen - self.bytes_per_token);
    }
}

impl Default for PromptEstimator {
    fn default() -> Self {
        Self::new()
    }
}

/// The original ThunderAgent's estimate: one number of characters per token for every program, pulled a fifth of
/// the way to each report.
#[derive(Clone, Copy, Debug)]
pub struct CharsPerToken {
    ratio: f64,
    has_report: bool,
}

impl CharsPerToken {
    /// Characters per token before any report.
    pub const DEFAULT: f64 = 5.0;

    /// An estimator that begins with `ratio` characters per token, which the first report replaces.
    pub const fn new(ratio: f64) -> Self {
        Self {
            ratio,
            has_report: false,
        }
    }

    /// Characters per token now.
    pub const fn get(self) -> f64 {
        self.ratio
    }

    /// The tokens of a request of `chars` characters, rounded down.
    pub fn estimate(self, chars: u64) -> Tokens {
        Tokens::from_f64(Tokens(chars).as_f64() / self.ratio)
    }

    /// Learns from a reported prompt length; an empty request or prompt teaches nothing.
    pub fn observe(&mut self, chars: u64, prompt: Tokens) {
        if chars == 0 || prompt == Tokens::ZERO {
            return;
        }
        let seen = Tokens(chars).as_f64() / prompt.as_f64();
        self.ratio = if self.has_report {
            0.2 * seen + 0.8 * self.ratio
        } else {
            seen
        };
        self.has_report = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_program_is_estimated_from_its_growth() {
        let estimator = PromptEstimator::new();
        assert_eq!(estimator.estimate(None, 4000), Tokens(1000));
        let last = PromptHistory {
            prompt: Tokens(700),
            body_bytes: 4000,
        };
        assert_eq!(estimator.estimate(Some(last), 4400), Tokens(800));
        assert_eq!(estimator.estimate(Some(last), 3600), Tokens(600));
        assert_eq!(estimator.estimate(Some(last), 0), Tokens::ZERO);
    }

    #[test]
    fn reports_pull_the_ratio_to_the_truth_and_nonsense_does_not_break_it() {
        let mut estimator = PromptEstimator::new();
        for _ in 0..200 {
            estimator.observe(3000, Tokens(1000));
        }
        assert!((estimator.bytes_per_token() - 3.0).abs() < 1e-3);
        estimator.observe(10, Tokens::ZERO);
        estimator.observe(u64::MAX, Tokens(1));
        assert!(estimator.bytes_per_token() < 7.0);
    }
}
