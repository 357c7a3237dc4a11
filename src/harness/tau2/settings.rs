//! How simulations are played: models, identity, bounds.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::environment::Environment;

/// Simulations that one worker process plays at once. A Python process spends about 50 ms of CPU on each LLM call,
/// so a dozen busy ones fill a core, and then the gaps that a gate sees are the client's own.
pub const PER_WORKER: usize = 10;

/// How a program names itself to the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// `job_id` and `is_last_step` in the body, as the reference does
    #[default]
    Explicit,
    /// The header `X-Program-Id`; bodies are as tau2 makes them
    Header,
    /// Not at all: the gate has to recognise it
    Inferred,
}

/// A model that plays one of the roles.
#[derive(Clone, Debug)]
pub struct Player {
    /// The model's name, as the server knows it.
    pub model: String,
    /// The server, without `/v1`.
    pub url: String,
    /// The key to send.
    pub key: Secret,
    /// Further arguments of the call: `temperature`, `max_tokens`, `timeout` (s), `num_retries`.
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

/// A key. Not printed, not written.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How simulations are played.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where tau2 is installed.
    pub environment: Environment,
    /// The run directory.
    pub dir: PathBuf,
    /// Simulations a worker process plays at once.
    pub per_worker: usize,
    /// Plays the agent: the programs that are scheduled.
    pub agent: Player,
    /// Plays the customer: programs of their own, named `JOB_ID:user`.
    pub user: Player,
    /// How programs name themselves.
    pub identity: Identity,
    /// The gate that is told when a program is over; `None` if none is.
    pub release_url: Option<String>,
    /// tau2's bound on the steps of a simulation.
    pub max_steps: u32,
    /// tau2's bound on its tool errors.
    pub max_errors: u32,
    /// A simulation that is not heard of for so long is given up; a worker that is not, killed.
    pub patience: Patience,
    /// A worker of another make that speaks the same lines; ours if absent.
    pub script: Option<PathBuf>,
    /// Restarts of worker processes in the whole run.
    pub restarts: u32,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a worker to load tau2.
    pub start: Duration,
    /// For a worker to say anything: it does so every 5 s.
    pub worker: Duration,
    /// For a simulation's next step, its longest LLM call included.
    pub simulation: Duration,
    /// For a worker to end after it was asked to.
    pub end: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(600),
            worker: Duration::from_secs(120),
            simulation: Duration::from_secs(3_600),
            end: Duration::from_secs(10),
        }
    }
}
