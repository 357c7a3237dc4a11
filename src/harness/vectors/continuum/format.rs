//! The format of Continuum's scenarios: one scenario, its settings, and the parts of an event.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::harness::vectors::entries::Entries;
use crate::policy::Tokens;
use crate::policy::continuum::{ColdStart, Config, Pressure, TtlMode};

/// One scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    #[serde(default, rename = "id")]
    _id: Value,
    /// What it shows, in words.
    #[serde(default, rename = "text")]
    _text: Value,
    #[serde(default)]
    pub(super) config: Settings,
    /// Seconds that earlier gaps of each tool lasted.
    #[serde(default)]
    pub(super) tool_history: BTreeMap<String, Vec<f64>>,
    pub(super) events: Vec<Vec<Value>>,
    /// Time goes on until here.
    pub(super) until: f64,
    pub(super) expected: Vec<Vec<Value>>,
}

/// A scenario's settings; the defaults are those of the scenarios, not of the policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    mode: TtlMode,
    #[serde(rename = "K")]
    few: u32,
    /// Seconds to prefill a lost context.
    reload: f64,
    /// Seconds that a lost context queues.
    #[serde(rename = "T")]
    delay: f64,
    eta: f64,
    /// Usable tokens by backend.
    pub(super) backends: Entries<u64>,
    pressure: Pressure,
    backfill: bool,
    lru_guard: bool,
    pin_user_turn: bool,
    hold_timeout: f64,
    #[serde(alias = "fixed_ttl")]
    ttl_fixed: f64,
    #[serde(alias = "slow_threshold", alias = "slow_tool_threshold")]
    slow_tool: f64,
    min_pin: f64,
    ttl_max: f64,
    headroom: f64,
    out_reserve: u64,
    #[serde(alias = "block")]
    block_size: u64,
    max_inflight: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        let policy = Config::default();
        Self {
            mode: TtlMode::Fixed,
            few: policy.few_gaps,
            reload: policy.reload_default_s,
            delay: 0.0,
            eta: 1.0,
            backends: Entries(vec![("b".to_owned(), 1000)]),
            pressure: Pressure::Deadlock,
            backfill: false,
            lru_guard: false,
            pin_user_turn: false,
            hold_timeout: policy.hold_timeout_s,
            ttl_fixed: policy.ttl_fixed_s,
            slow_tool: policy.slow_tool_s,
            min_pin: policy.min_pin_s,
            ttl_max: policy.ttl_max_s,
            headroom: 0.0,
            out_reserve: 0,
            block_size: 0,
            max_inflight: None,
        }
    }
}

impl Settings {
    pub(super) fn policy(&self) -> Config {
        Config {
            ttl_mode: self.mode,
            cold_start: ColdStart::Exponential,
            few_gaps: self.few,
            ttl_fixed_s: self.ttl_fixed,
            slow_tool_s: self.slow_tool,
            min_pin_s: self.min_pin,
            ttl_max_s: self.ttl_max,
            pin_user_turn: self.pin_user_turn,
            queue_delay_s: Some(self.delay),
            foresight: Some(self.eta),
            reload_s: Some(self.reload),
            pressure: self.pressure,
            lru_guard: self.lru_guard,
            backfill: self.backfill,
            max_in_flight: self.max_inflight,
            headroom: self.headroom,
            out_reserve_tokens: self.out_reserve,
            block_tokens: self.block_size,
            hold_timeout_s: self.hold_timeout,
            ..Config::default()
        }
    }
}

pub(super) fn text(event: &[Value], at: usize) -> anyhow::Result<&str> {
    let text = event.get(at).and_then(Value::as_str);
    text.with_context(|| format!("no name at {at} of {event:?}"))
}

pub(super) fn tokens(event: &[Value], at: usize) -> anyhow::Result<Tokens> {
    let whole = |tokens: f64| tokens >= 0.0 && tokens.fract() <= 0.0;
    let tokens = event.get(at).and_then(Value::as_f64);
    let tokens = tokens.filter(|tokens| whole(*tokens));
    let tokens = tokens.with_context(|| format!("no token count at {at} of {event:?}"))?;
    Ok(Tokens::from_f64(tokens))
}

/// A flag that may be left out.
pub(super) fn flag(event: &[Value], at: usize) -> anyhow::Result<Option<bool>> {
    match event.get(at) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => bail!("neither true nor false at {at} of {event:?}"),
    }
}
