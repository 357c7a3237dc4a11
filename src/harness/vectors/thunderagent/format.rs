//! The format of the original scheduler's cases.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::harness::vectors::entries::Entries;
use crate::policy::estimate::CharsPerToken;

/// A file's cases.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    More(Vec<Value>),
    One(Value),
}

#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub(super) input: Input,
    pub(super) expected_decisions: Option<Vec<Value>>,
    pub(super) observed: Option<Observed>,
    #[serde(default = "yes", rename = "match")]
    pub(super) matched: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    #[serde(default)]
    pub(super) config: Settings,
    pub(super) backends: Vec<Backend>,
    #[serde(default)]
    pub(super) programs: Vec<Program>,
    pub(super) ops: Vec<Op>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) acting_token_weight: f64,
    pub(super) decay: bool,
    pub(super) mode: String,
    pub(super) ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            acting_token_weight: 1.0,
            decay: false,
            mode: "tr".to_owned(),
            ratio: CharsPerToken::DEFAULT,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) url: String,
    /// Tokens; null where the backend never told.
    pub(super) capacity: Option<u64>,
    #[serde(default = "yes")]
    pub(super) healthy: bool,
    /// Read by the original, and used for nothing.
    #[serde(default, rename = "kv_usage")]
    pub(super) _kv_usage: Option<f64>,
}

pub(super) const fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub(super) id: String,
    pub(super) status: Status,
    pub(super) state: State,
    pub(super) tokens: u64,
    pub(super) backend: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) queued_tokens: Option<u64>,
    #[serde(default = "twice")]
    pub(super) step: u32,
    #[serde(default)]
    pub(super) marked: bool,
    #[serde(default)]
    pub(super) acting_age: f64,
}

pub(super) const fn twice() -> u32 {
    2
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Acting,
    Reasoning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Active,
    Paused,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Op {
    Tick,
    Advance {
        dt: f64,
    },
    Arrive {
        id: String,
        chars: u64,
        /// Tells apart the requests of one program in the notes; events name the program.
        #[serde(default, rename = "as")]
        _label: Option<String>,
    },
    Finish {
        id: String,
        total: u64,
        #[serde(default)]
        prompt: u64,
        #[serde(default, rename = "as")]
        _label: Option<String>,
    },
    Grow {
        id: String,
        delta: u64,
    },
    Release {
        id: String,
    },
    Timeout {
        id: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Observed {
    pub(super) events: Option<Vec<Value>>,
    pub(super) after: Option<After>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    #[serde(default)]
    pub(super) programs: BTreeMap<String, Value>,
    #[serde(default)]
    pub(super) backends: Entries<Value>,
    pub(super) queue: Option<Value>,
    pub(super) ratio: Option<f64>,
}
