//! How long one engine iteration takes, and what the HTTP server adds to a request.
//!
//! `o + max(w, a·tokens) + c·Σ decode context + d·Σ chunk·(start + chunk/2) + h2·decodes`: an iteration pays
//! the weights once (`w`) unless its tokens keep the compute units busy longer (`a`), reads the KV cache of
//! every sequence that decodes (`c`), and attends from each prefilled token to all before it (`d`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The constants of one model on one device.
#[expect(clippy::struct_field_names, reason = "the unit is part of the name")]
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// `o`: fixed cost of an iteration (scheduling, launch, sampling).
    pub iteration_s: f64,
    /// `w`: reading the weights once; the floor of the compute term.
    pub weights_s: f64,
    /// `a`: compute per scheduled token.
    pub token_s: f64,
    /// `c`: per token of context of a sequence that decodes.
    pub decode_context_s: f64,
    /// `d`: per pair of a prefilled token and a token before it.
    pub prefill_pair_s: f64,
    /// `h2`: per sequence that decodes (sampling, detokenising, sending a chunk).
    pub decode_s: f64,
    /// `h0`: HTTP handling, each way.
    pub http_s: f64,
    /// `h1`: HTTP handling per prompt token (parsing, templating, tokenising).
    pub http_token_s: f64,
}

/// Qwen3-8B in bfloat16 on one H100, vLLM 0.25.1. Fitted to 22 measured cells (closed loops of 8 to 128
/// programs at 84,800 tokens of KV cache); mean error in steps/s 3 %, in latency 9 %.
pub const H100_QWEN3_8B: CostModel = CostModel {
    iteration_s: 3.18e-3,
    weights_s: 4.78e-3,
    token_s: 25.0e-6,
    decode_context_s: 21.6e-9,
    prefill_pair_s: 0.51e-9,
    decode_s: 0.129e-3,
    http_s: 2.7e-3,
    http_token_s: 1.48e-6,
};

/// The same with prefill three times as slow. An **extrapolation** towards an RTX 5090, not a measurement: it
/// exists to see what a policy does where recomputing a prefix is dear.
pub const RTX5090_QWEN3_8B: CostModel = H100_QWEN3_8B.with_prefill(3.0);

/// A random 1.3 M parameter model on a few CPU cores: the pace of the server that the engine is compared with.
pub const CPU_TINY: CostModel = CostModel {
    iteration_s: 3.6e-3,
    weights_s: 0.0,
    token_s: 0.15e-3,
    decode_context_s: 0.0,
    prefill_pair_s: 0.0,
    decode_s: 0.1e-3,
    http_s: 1.0e-3,
    http_token_s: 0.0,
};

/// What one iteration was given to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens scheduled, prefill and decode.
    pub tokens: u32,
    /// Sequences that decode one token.
    pub decodes: u32,
    /// Sum of the contexts of the sequences that decode.
    pub decode_context: u64,
    /// Sum over prefill chunks of `chunk · (start + chunk/2)`.
    pub prefill_pairs: f64,
}

impl Work {
    /// Adds a sequence that computes `chunk` tokens after `start` computed ones.
    pub fn add(&mut self, start: u32, chunk: u32) {
        self.tokens += chunk;
        if chunk == 1 {
            self.decodes += 1;
            self.decode_context += u64::from(start) + 1;
        } else {
            self.prefill_pairs += f64::from(chunk) * (f64::from(start) + f64::from(chunk) / 2.0);
        }
    }
}

impl CostModel {
    /// The presets, by the name that `--cost` takes.
    pub const PRESETS: [(&'static str, Self); 3] = [
        ("h100-qwen3-8b", H100_QWEN3_8B),
        ("rtx5090-qwen3-8b", RTX5090_QWEN3_8B),
        ("cpu-tiny", CPU_TINY),
    ];

    /// The preset called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        let found = Self::PRESETS.iter().find(|(preset, _)| *preset == name);
        found.map(|(_, cost)| *cost)
    }

    /// The constants by name.
    pub const fn constants(&self) -> [(&'static str, f64); 8] {
        [
            ("iteration_s", self.iteration_s),
            ("weights_s", self.weights_s),
            ("token_s", self.token_s),
            ("decode_context_s", self.decode_context_s),
            ("prefill_pair_s", self.prefill_pair_s),
            ("decode_s", self.decode_s),
            ("http_s", self.http_s),
            ("http_token_s", self.http_token_s),
        ]
    }

    /// The same device with prefill `factor` times as slow.
    #[must_use]
    pub const fn with_prefill(self, factor: f64) -> Self {
        Self {
            token_s: self.token_s * factor,
            prefill_pair_s: self.prefill_pair_s * factor,
            ..self
        }
    }

    /// Duration of an iteration that does `work`.
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums of context are far below 2^53"
    )]
    pub fn iteration(&self, work: &Work) -> Duration {
        let compute = self.weights_s.max(self.token_s * f64::from(work.tokens));
        let seconds = self.iteration_s
            + compute
            + self.decode_context_s * work.decode_context as f64
            + self.prefill_pair_s * work.prefill_pairs
            + self.decode_s * f64::from(work.decodes);
        Duration::from_secs_f64(seconds)
    }

    /// Time that the HTTP server takes for a request of `prompt` tokens, both ways.
    ///
    /// Spent before the request reaches the queue, although half of it belongs behind the last token: what
    /// the client waits for in total is the same.
    pub fn http(&self, prompt: u32) -> Duration {
        Duration::from_secs_f64(2.0 * self.http_s + self.http_token_s * f64::from(prompt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(work: &Work) -> f64 {
        H100_QWEN3_8B.iteration(work).as_secs_f64()
    }

    #[test]
    fn a_lone_decode_costs_the_weights_and_the_fixed_part() {
        let mut work = Work::default();
        work.add(999, 1);
        let expected = 3.18e-3 + 4.78e-3 + 1000.0 * 21.6e-9 + 0.129e-3;
        assert!((seconds(&work) - expected).abs() < 1e-8);
    }

    #[test]
    fn a_long_prefill_costs_its_tokens_instead_of_the_weights() {
        let mut work = Work::default();
        work.add(2000, 8000);
        let expected = 3.18e-3 + 8000.0 * 25e-6 + 8000.0 * 6000.0 * 0.51e-9;
        assert!((seconds(&work) - expected).abs() < 1e-8);
    }

    #[test]
    fn presets_are_found_by_name() {
        assert_eq!(CostModel::by_name("h100-qwen3-8b"), Some(H100_QWEN3_8B));
        assert_eq!(CostModel::by_name("abacus"), None);
    }
}
