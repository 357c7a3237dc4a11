//! What happens while simulations are played, as the pool tells it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::Attempt;

/// Something that happened. Times are Unix seconds, durations milliseconds, as the workers measure them.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When: the end of what took time.
    pub at_s: f64,
    /// The worker process, from 0; `None` for what concerns them all.
    pub worker: Option<usize>,
    /// The simulation it belongs to; `None` for what concerns a whole worker.
    pub attempt: Option<Arc<Attempt>>,
    /// What.
    pub what: What,
}

/// What happened. In `events.jsonl` the variant is the field `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A worker process has loaded tau2 and takes simulations.
    WorkerReady {
        /// Its process id.
        pid: u32,
        /// Seconds from its start.
        start_s: f64,
    },
    /// Every worker is ready: arrivals are counted from here.
    Began {
        /// Worker processes.
        workers: usize,
    },
    /// A worker ended before it was asked to, or did not answer and was killed. Its simulations fail with
    /// [`Cause::WorkerDied`].
    WorkerDied {
        /// How, with the last lines of its log.
        error: String,
        /// Simulations that it was playing.
        simulations: usize,
        /// Whether another takes its place.
        restarted: bool,
    },
    /// CPU time that a worker took since the last such event.
    Cpu {
        /// CPU seconds since the process began.
        cpu_s: f64,
        /// Share of one core, since the last such event.
        core_share: f64,
        /// Above [`BUSY_SHARE`]: what a gate measures between this worker's requests is then the worker's own
        /// queueing, not the agents'.
        busy: bool,
        /// Simulations that it plays.
        simulations: usize,
    },
    /// A simulation was handed to a worker.
    Started,
    /// The gate could not be told that a program is over: it ends there when it has been idle long enough.
    ReleaseFailed {
        /// The program.
        program: String,
        /// Why.
        error: String,
    },
    /// An attempt is over, judged or failed.
    Finished(Finish),
    /// A simulation went on.
    #[serde(untagged)]
    Moment(Moment),
}

/// What a worker tells of a simulation while it plays it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Moment {
    /// A model answered, or failed to.
    Llm {
        /// Whom the model played.
        role: Role,
        /// tau2's step number.
        step: u32,
        /// The thread that played it.
        thread: u64,
        /// The model asked for.
        model: String,
        /// With tau2's and its client's own work and retries.
        duration_ms: f64,
        /// From the reply's usage.
        prompt_tokens: Option<u64>,
        /// From the reply's usage.
        completion_tokens: Option<u64>,
        /// Tool calls in the reply.
        tool_calls: u32,
        /// Why there is no reply.
        error: Option<String>,
    },
    /// A tool ran.
    Tool {
        /// tau2's step number.
        step: u32,
        /// The thread that ran it.
        thread: u64,
        /// The tool.
        name: String,
        /// Who called it.
        requestor: Role,
        /// How long it took.
        duration_ms: f64,
        /// Whether it answered with an error.
        error: bool,
    },
    /// tau2 passed a message on: one step of the simulation.
    Step {
        /// Its number.
        step: u32,
        /// The thread that played it.
        thread: u64,
        /// With the model's or the tools' time.
        duration_ms: f64,
        /// Who spoke in it.
        from: Party,
        /// Who speaks next.
        to: Party,
    },
    /// A simulation's last step is over; its judgement is not.
    Played {
        /// Steps.
        steps: u32,
        /// From its first step.
        duration_ms: f64,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// tau2's reward, 0 to 1; `None` if the attempt failed.
    pub reward: Option<f64>,
    /// tau2's word for the end of the conversation.
    pub termination: Option<String>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// tau2's steps.
    pub steps: u32,
    /// Replies and failures of models.
    pub llm_calls: u32,
    /// From the moment at which it was handed to a worker.
    pub duration_ms: f64,
    /// Whether this is the last word on the unit: if not, it is played again, now or by a later run.
    pub last_word: bool,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// To count by.
    pub cause: Cause,
    /// In words.
    pub error: String,
}

/// Causes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The conversation no longer fits the model's context.
    ContextOverflow,
    /// A model was not reached or answered with an error, its client's retries included.
    Llm,
    /// A model did not answer in time.
    Timeout,
    /// tau2 itself failed.
    Tau2,
    /// The worker process ended.
    WorkerDied,
    /// Nothing was heard of the simulation for too long.
    Silent,
    /// It was given up from outside, by a watchdog.
    GivenUp,
    /// The run was stopped.
    Stopped,
}

impl Cause {
    /// Its name in tables and records.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ContextOverflow => "context_overflow",
            Self::Llm => "llm",
            Self::Timeout => "timeout",
            Self::Tau2 => "tau2",
            Self::WorkerDied => "worker_died",
            Self::Silent => "silent",
            Self::GivenUp => "given_up",
            Self::Stopped => "stopped",
        }
    }

    /// Whether another attempt may go better.
    pub const fn may_pass(self) -> bool {
        match self {
            Self::Llm | Self::Timeout | Self::Tau2 | Self::WorkerDied | Self::Silent => true,
            Self::ContextOverflow | Self::GivenUp | Self::Stopped => false,
        }
    }
}

/// Whom a model plays, or who calls a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The customer-service agent.
    Agent,
    /// The simulated customer.
    User,
    /// The judge of a finished conversation.
    Judge,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// The agent.
    Agent,
    /// The user.
    User,
    /// The tools.
    Env,
}

impl Party {
    /// The reference's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::User => "user",
            Self::Env => "env",
        }
    }
}

/// Share of a core above which a worker process distorts what is measured.
pub const BUSY_SHARE: f64 = 0.8;
