//! One record per request: when it arrived, was admitted, answered and finished, and what it cost.

use serde::{Deserialize, Serialize};

use super::observe::ResponseFacts;
use crate::policy::{Time, Tokens};

/// The outcome of a request that the backend refused because it does not fit the model's context.
pub const CONTEXT_OVERFLOW: &str = "context_overflow";

/// Whose call a request with a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The agent's own: a step of its program like any other.
    Agent,
    /// An expert model that the agent asks within a step or between two.
    Expert,
    /// The simulated user.
    User,
    /// A model that judges a finished task.
    Judge,
}

/// One request, as a line of `<run>/steps.jsonl`.
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
    /// URL of the backend or endpoint that served the request; `None` if it was never admitted, or none did.
    pub backend: Option<String>,
    /// Request path, such as `/v1/chat/completions`.
    pub path: String,
    /// The `model` the client asked for.
    pub model: Option<String>,
    /// The route that the request took, as it is written in the configuration; absent for one that took none. Unless
    /// [`Role::Agent`] took it, the request was no step, and its `step_index` says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Whose call it was, where it took a route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
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
    /// How it ended: a [`crate::policy::Outcome`] word, [`CONTEXT_OVERFLOW`], or the error code given to the client.
    pub outcome: String,
    /// HTTP status given to the client; 0 if it left before one was sent.
    pub status: u16,
    /// Transparent retries on a fresh connection.
    pub retries: u8,
}

/// Notes the moments of one request, and closes its [`StepRecord`].
///
/// Each moment is noted once; later calls change nothing, so a retry keeps the first attempt's admission.
#[derive(Clone, Copy, Debug)]
pub struct StepTimer {
    arrived: Time,
    admitted: Option<Time>,
    first_byte: Option<Time>,
    first_token: Option<Time>,
}

impl StepTimer {
    /// A timer for a request that was parsed at `arrived`.
    pub const fn new(arrived: Time) -> Self {
        Self {
            arrived,
            admitted: None,
            first_byte: None,
            first_token: None,
        }
    }

    /// The policy admitted the request.
    pub fn admitted(&mut self, now: Time) {
        self.admitted.get_or_insert(now);
    }

    /// The first byte of the backend's response came.
    pub fn first_byte(&mut self, now: Time) {
        self.first_byte.get_or_insert(now);
    }

    /// The first frame with content came (streams), or the first body byte (others).
    pub fn first_token(&mut self, now: Time) {
        self.first_token.get_or_insert(now);
    }

    /// When the request was parsed.
    pub const fn arrived_at(&self) -> Time {
        self.arrived
    }

    /// From arrival to admission, or to `now` while the request is not admitted; seconds.
    pub fn hold_s(&self, now: Time) -> f64 {
        self.admitted
            .unwrap_or(now)
            .since(self.arrived)
            .as_secs_f64()
    }

    /// From arrival to the first token, hold included; seconds.
    pub fn ttft_s(&self) -> Option<f64> {
        Some(self.first_token?.since(self.arrived).as_secs_f64())
    }

    /// The record of a request that is over at `finished`: `step` with its times, durations, token counts and
    /// tool filled in. The caller has filled in who, where and how it ended; `unix` maps the run's time to Unix
    /// seconds.
    pub fn close(
        &self,
        finished: Time,
        facts: &ResponseFacts,
        unix: impl Fn(Time) -> f64,
        step: StepRecord,
    ) -> StepRecord {
        let usage = facts.usage;
        let output_tokens = usage.map(|usage| usage.output.0);
        StepRecord {
            arrived_s: unix(self.arrived),
            admitted_s: self.admitted.map(&unix),
            first_byte_s: self.first_byte.map(&unix),
            first_token_s: self.first_token.map(&unix),
            finished_s: unix(finished),
            hold_s: self.hold_s(finished),
            ttft_s: self.ttft_s(),
            ttft_backend_s: self.ttft_backend_s(),
            tpot_s: output_tokens
                .filter(|_| step.stream)
                .and_then(|tokens| self.tpot_s(finished, tokens)),
            prompt_tokens: usage.map(|usage| usage.prompt.0),
            cached_tokens: usage.and_then(|usage| usage.cached).map(|cached| cached.0),
            output_tokens,
            tool: facts.tool.clone(),
            ..step
        }
    }

    fn ttft_backend_s(&self) -> Option<f64> {
        Some(self.first_token?.since(self.admitted?).as_secs_f64())
    }

    fn tpot_s(&self, finished: Time, output_tokens: u64) -> Option<f64> {
        let gaps = output_tokens.checked_sub(1).filter(|&gaps| gaps > 0)?;
        let decode = finished.since(self.first_token?);
        Some(decode.as_secs_f64() / Tokens(gaps).as_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Usage;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    /// A run that began at Unix second 1,000.
    fn unix(time: Time) -> f64 {
        1000.0 + time.as_secs_f64()
    }

    fn facts(output: u64) -> ResponseFacts {
        ResponseFacts {
            usage: Some(Usage {
                prompt: Tokens(100),
                cached: Some(Tokens(64)),
                output: Tokens(output),
            }),
            tool: Some("grep".to_owned()),
            ..ResponseFacts::default()
        }
    }

    fn streamed() -> StepRecord {
        StepRecord {
            program: Some("p".to_owned()),
            stream: true,
            ..StepRecord::default()
        }
    }

    /// Arrived at 1 s, held for 2 s, first token 0.5 s later, over at 5.5 s.
    fn served() -> StepTimer {
        let mut timer = StepTimer::new(at(1000));
        timer.admitted(at(3000));
        timer.first_byte(at(3400));
        timer.first_token(at(3500));
        timer
    }

    #[test]
    fn a_held_stream_has_all_its_times() {
        let record = served().close(at(5500), &facts(5), unix, streamed());
        let expected = StepRecord {
            arrived_s: 1001.0,
            admitted_s: Some(1003.0),
            first_byte_s: Some(1003.4),
            first_token_s: Some(1003.5),
            finished_s: 1005.5,
            hold_s: 2.0,
            ttft_s: Some(2.5),
            ttft_backend_s: Some(0.5),
            // Two seconds for the four gaps between five tokens.
            tpot_s: Some(0.5),
            prompt_tokens: Some(100),
            cached_tokens: Some(64),
            output_tokens: Some(5),
            tool: Some("grep".to_owned()),
            ..streamed()
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn one_token_or_no_stream_has_no_tpot() {
        assert_eq!(
            served().close(at(5500), &facts(1), unix, streamed()).tpot_s,
            None
        );
        assert_eq!(
            served().close(at(5500), &facts(0), unix, streamed()).tpot_s,
            None
        );
        let whole = StepRecord::default();
        assert_eq!(
            served().close(at(5500), &facts(5), unix, whole).tpot_s,
            None
        );
    }

    #[test]
    fn a_request_that_was_never_admitted_was_held_to_its_end() {
        let timer = StepTimer::new(at(1000));
        let record = timer.close(at(8000), &ResponseFacts::default(), unix, streamed());
        assert_eq!(record.hold_s.to_bits(), 7.0_f64.to_bits());
        assert_eq!(
            (record.admitted_s, record.ttft_s, record.ttft_backend_s),
            (None, None, None)
        );
    }

    #[test]
    fn a_retry_keeps_the_first_admission() {
        let mut timer = served();
        timer.admitted(at(9000));
        timer.first_token(at(9000));
        assert_eq!(timer.ttft_s(), Some(2.5));
        assert_eq!(timer.hold_s(at(9000)).to_bits(), 2.0_f64.to_bits());
    }
}
