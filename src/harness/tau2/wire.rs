//! What a worker process says and is told: one JSON object a line.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::event::{Cause, Moment};
use super::settings::{Identity, Player, Settings};

/// A line from a worker.
#[derive(Debug, Deserialize)]
pub(super) struct Said {
    /// Unix seconds.
    pub(super) at: f64,
    /// The program of the simulation that it is about.
    pub(super) job: Option<String>,
    #[serde(flatten)]
    pub(super) word: Word,
}

/// What it says.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Word {
    /// It is alive.
    Beat {
        /// CPU seconds since it began.
        cpu_s: f64,
    },
    /// It takes orders.
    Ready { pid: u32 },
    /// A simulation is over: judged, or failed with a cause.
    Result {
        reward: Option<f64>,
        termination: Option<String>,
        cause: Option<Cause>,
        error: Option<String>,
    },
    /// A simulation went on.
    #[serde(untagged)]
    Moment(Moment),
}

/// The first line that a worker is told.
#[derive(Debug, Serialize)]
pub(super) struct Opening<'a> {
    agent: Speaker,
    user: Speaker,
    identity: Identity,
    max_steps: u32,
    max_errors: u32,
    domains: &'a [String],
}

/// A player in litellm's words.
#[derive(Debug, Serialize)]
struct Speaker {
    model: String,
    arguments: Map<String, Value>,
}

/// Every further line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order<'a> {
    /// Play this.
    Play {
        job: &'a str,
        domain: &'a str,
        task_id: &'a str,
        trial: u32,
        seed: u32,
        /// Where the whole simulation is written.
        save: &'a str,
    },
    /// End this program's simulation at its next step.
    GiveUp(&'a str),
}

impl<'a> Opening<'a> {
    pub(super) fn new(settings: &Settings, domains: &'a [String]) -> Self {
        Self {
            agent: Speaker::new(&settings.agent),
            user: Speaker::new(&settings.user),
            identity: settings.identity,
            max_steps: settings.max_steps,
            max_errors: settings.max_errors,
            domains,
        }
    }
}

/// What litellm wants before a model's name, to speak OpenAI's protocol; it is not sent.
const PROTOCOL: &str = "openai/";

impl Speaker {
    fn new(player: &Player) -> Self {
        let mut arguments = player.arguments.clone();
        let url = format!("{}/v1", player.url.trim_end_matches('/'));
        arguments.insert("base_url".to_owned(), url.into());
        arguments.insert("api_key".to_owned(), player.key.0.clone().into());
        Self {
            model: format!("{PROTOCOL}{}", player.model),
            arguments,
        }
    }
}
