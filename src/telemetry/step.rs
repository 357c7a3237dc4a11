//! One record per request: when it arrived, was admitted, answered and finished, and what it cost.

use serde::{Deserialize, Serialize};

/// One request of one step, as a line of `<run>/steps.jsonl`.
///
/// Times are Unix seconds of the run's clock, `None` where the moment was never reached; durations are seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The program's name as the client sent it; `None` for a request without identity.
    pub program: Option<String>,
    /// Position of the step in its program, from 0; a retry of a step has the same index.
    pub step_index: u32,
    /// The policy that decided.
    pub policy: String,
    /// URL of the backend that served the request; `None` if it was never admitted.
    pub backend: Option<String>,
    /// Request path, such as `/v1/chat/completions`.
    pub path: String,
    /// The `model` the client asked for.
    pub model: Option<String>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// The request was parsed.
    pub arrived_s: f64,
    /// The policy admitted it.
    pub admitted_s: Option<f64>,
    /// The first byte of the backend's response came.
    pub first_byte_s: Option<f64>,
    /// The first frame with content came (streams), or the first body byte (others).
    pub first_token_s: Option<f64>,
    /// The response ended, the client left, or the request was refused.
    pub finished_s: f64,
    /// From arrival to admission, or to the end if it was never admitted.
    pub hold_s: f64,
    /// Why it was held, if it was: a [`crate::policy::HoldReason`] word.
    pub hold_reason: Option<String>,
    /// TTFT: arrival to first token, hold included (what the client feels).
    pub ttft_s: Option<f64>,
    /// TTFT counted from admission; compares with `vllm:time_to_first_token_seconds`.
    pub ttft_backend_s: Option<f64>,
    /// TPOT: (end − first token) / (output tokens − 1); absent below 2 tokens or without a stream.
    pub tpot_s: Option<f64>,
    /// Prompt length in tokens, from `usage`.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens served from the prefix cache, from `usage.prompt_tokens_details.cached_tokens`.
    pub cached_tokens: Option<u64>,
    /// Generated tokens, from `usage`.
    pub output_tokens: Option<u64>,
    /// Tool called by the response.
    pub tool: Option<String>,
    /// The program's tool gap before this step; absent for its first step or with another in flight.
    pub tool_gap_s: Option<f64>,
    /// How it ended: a [`crate::policy::Outcome`] word or the error code given to the client.
    pub outcome: String,
    /// HTTP status given to the client; 0 if it left before one was sent.
    pub status: u16,
    /// Transparent retries on a fresh connection.
    pub retries: u8,
}
