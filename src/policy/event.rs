//! What a policy is told. One [`Event`] each time something that matters to a decision has happened.

use serde::{Deserialize, Serialize};

use super::ids::{BackendId, ProgramId, RequestId, ToolId};
use super::time::Time;
use super::units::{Ratio, Tokens};

/// Something that happened, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step's request was parsed and waits for a decision.
    Arrive(Arrival),
    /// A request that another policy held until now waits for a decision of this one, see [`super::handover`].
    Rearrive {
        /// The request, as it arrived.
        arrival: Arrival,
        /// When that was: its hold counts from there.
        since: Time,
    },
    /// A request that another policy admitted runs, see [`super::handover`]. There is nothing to decide.
    Adopt(Adoption),
    /// The first content frame of an admitted request passed: its prefill is over.
    FirstToken {
        /// The admitted request.
        request: RequestId,
    },
    /// An admitted request is over, or a held one was cancelled by its client.
    Finish {
        /// The request; its id may be used again after this event.
        request: RequestId,
        /// How it ended.
        outcome: Outcome,
        /// What the backend reported; `None` when the stream ended without a usage report.
        usage: Option<Usage>,
    },
    /// The last in-flight request of the program finished and it is not done: its tool gap begins.
    ToolGap {
        /// The program that went idle.
        program: ProgramId,
        /// What the program does meanwhile, read from the response.
        kind: GapKind,
    },
    /// The program is over (explicit release, last step, or idle expiry). Its id may be used again.
    ///
    /// Sent only when no request of the program is held or in flight.
    Release {
        /// The program that ended.
        program: ProgramId,
    },
    /// A scrape of a backend's `/metrics` succeeded.
    Sample(BackendSample),
    /// A backend answers. Sent again when its KV capacity changes.
    BackendUp {
        /// The backend.
        backend: BackendId,
        /// Tokens its KV cache holds; `None` while unknown.
        kv_capacity: Option<Tokens>,
    },
    /// A backend stopped answering. Its in-flight requests end with events of their own.
    BackendDown {
        /// The backend.
        backend: BackendId,
    },
    /// The wakeup that the policy asked for, or a later moment.
    Tick,
}

/// One request that waits for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The carrier of the step.
    pub request: RequestId,
    /// The program it belongs to; `None` for a request without identity, which is never held (law P1).
    pub program: Option<ProgramId>,
    /// [`super::ids::name_hash`] of the program's name: breaks ties the same way on every run, whatever its id.
    pub name_hash: u64,
    /// Estimated prompt length in tokens.
    pub prompt: Tokens,
    /// The part of the prompt that other programs share, when the request shows one.
    pub shared: Option<SharedPrefix>,
    /// The client said that this is the program's last step (`is_last_step`).
    pub last_step: bool,
}

/// One request that was admitted by the policy before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The request, as it arrived.
    pub arrival: Arrival,
    /// Where it runs.
    pub backend: BackendId,
    /// Steps of its program that were begun before it.
    pub steps: u32,
}

/// The leading part of a prompt (tools and system message) that programs of one kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPrefix {
    /// Equal for equal prefixes.
    pub fingerprint: u64,
    /// Estimated length in tokens; part of the arrival's `prompt`, not on top of it.
    pub tokens: Tokens,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The model ended its turn.
    Stop,
    /// The output limit was reached.
    Length,
    /// The model called tools.
    ToolCalls,
    /// The client left, while held or while running.
    Cancelled,
    /// The backend refused, broke off or timed out; or the gate rejected the request after holding it.
    Failed,
}

impl Outcome {
    /// Whether the step was served to its end.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Stop | Self::Length | Self::ToolCalls)
    }

    /// The word used in records and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Token counts of one finished request, as the backend reported them (OpenAI `usage`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Prompt length.
    pub prompt: Tokens,
    /// Part of the prompt served from the prefix cache; `None` where the backend does not say
    /// (vLLM needs `--enable-prompt-tokens-details`).
    pub cached: Option<Tokens>,
    /// Generated length.
    pub output: Tokens,
}

impl Usage {
    /// The program's context after this step: prompt and output together.
    pub fn context(self) -> Tokens {
        self.prompt + self.output
    }
}

/// What a program does in a tool gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// The response was text: somebody (a user, a user simulator) answers next.
    UserTurn,
    /// The response called this tool.
    Tool(ToolId),
}

/// One scrape of a backend, summed over its engines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendSample {
    /// The backend that was scraped.
    pub backend: BackendId,
    /// KV cache usage, 0–1 (`vllm:kv_cache_usage_perc`), the highest of its engines; `None` when absent or NaN.
    pub kv_usage: Option<Ratio>,
    /// Requests inside vLLM that run (`vllm:num_requests_running`).
    pub running: u32,
    /// Requests inside vLLM that wait (`vllm:num_requests_waiting`).
    pub waiting: u32,
    /// Preemptions since the server started (`vllm:num_preemptions_total`).
    pub preemptions: u64,
    /// Prefix cache hits since the server started, in tokens (`vllm:prefix_cache_hits_total`).
    pub prefix_hits: u64,
    /// Prefix cache look-ups since the server started, in tokens (`vllm:prefix_cache_queries_total`).
    pub prefix_queries: u64,
}
