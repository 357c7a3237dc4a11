//! Continuum's settings.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// How long a program's room is kept through a tool gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TtlMode {
    /// `ttl_fixed_s`, unless gaps of this kind last longer than `slow_tool_s` on average: the public code.
    Fixed,
    /// As long as waiting pays: the paper's cost model over the gaps seen so far.
    #[default]
    Paper,
}

/// The time-to-live of mode `paper` while too few gaps are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColdStart {
    /// As in mode `fixed`.
    #[default]
    Fixed,
    /// The paper's: the best wait if gaps were exponential with a mean of one second.
    Exponential,
}

/// Which pins give way to a request that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pressure {
    /// All, the youngest program's first, but only while the backend would otherwise idle.
    #[default]
    Deadlock,
    /// Those of programs younger than the request's, at any time, and only if they make enough room.
    Seniority,
    /// All, the youngest program's first, at any time.
    Any,
}

/// Settings of [`super::Continuum`]; `..._s` are seconds, `..._tokens` tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the time-to-live is chosen.
    pub ttl_mode: TtlMode,
    /// What mode `paper` does while it knows at most `few_gaps` gaps.
    pub cold_start: ColdStart,
    /// Gaps, of one kind or of all, that are too few to judge by.
    pub few_gaps: u32,
    /// The time-to-live of mode `fixed`.
    pub ttl_fixed_s: f64,
    /// Mean gap above which mode `fixed` does not wait for a kind of gap.
    pub slow_tool_s: f64,
    /// A shorter time-to-live is none.
    pub min_pin_s: f64,
    /// No time-to-live is longer.
    pub ttl_max_s: f64,
    /// A longer gap teaches nothing: its program was as good as over.
    pub max_gap_s: f64,
    /// Whether room is kept while somebody answers, rather than a tool.
    pub pin_user_turn: bool,
    /// Mode `paper`: seconds that a lost context queues; absent: the mean of the last ones.
    pub queue_delay_s: Option<f64>,
    /// Mode `paper`: how foreseeable a program's end is, −1 to 1; absent: as learnt from ended programs.
    pub foresight: Option<f64>,
    /// Mode `paper`: seconds to prefill a lost context; absent: as learnt from first tokens.
    pub reload_s: Option<f64>,
    /// Seconds to prefill a lost context until enough first tokens are seen.
    pub reload_default_s: f64,
    /// Which pins give way to a request that does not fit.
    pub pressure: Pressure,
    /// Admit nothing whose new tokens would, by the backend's order of eviction, overwrite a pinned context.
    pub lru_guard: bool,
    /// Let a request start although a senior waits for the same backend.
    pub backfill: bool,
    /// Requests in flight per backend at most; absent: no limit.
    pub max_in_flight: Option<u32>,
    /// Part of the KV cache that is never promised, 0–1.
    pub headroom: f64,
    /// Tokens of one backend's KV cache; absent: as the backend reports. Without either, everything fits.
    pub kv_budget_tokens: Option<u64>,
    /// Room for a step's output, on top of its prompt.
    pub out_reserve_tokens: u64,
    /// KV block size to which a step's need is rounded up; 0: no rounding.
    pub block_tokens: u64,
    /// A request held this long is sent regardless.
    pub hold_timeout_s: f64,
    /// Requests held at most; further ones are refused.
    pub max_held: u32,
    /// Programs known at most (ids below it); requests of further ones pass unscheduled.
    pub max_programs: u32,
}

impl Config {
    /// Checks every setting.
    ///
    /// # Errors
    /// One line that names the key and the fix.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [
            ("ttl_fixed_s", self.ttl_fixed_s),
            ("slow_tool_s", self.slow_tool_s),
            ("min_pin_s", self.min_pin_s),
            ("ttl_max_s", self.ttl_max_s),
            ("max_gap_s", self.max_gap_s),
            ("queue_delay_s", self.queue_delay_s.unwrap_or(0.0)),
            ("reload_s", self.reload_s.unwrap_or(0.0)),
            ("reload_default_s", self.reload_default_s),
            ("hold_timeout_s", self.hold_timeout_s),
        ] {
            settings::seconds(key, value, 0.0)?;
        }
        let foresight = self.foresight.unwrap_or(0.0);
        if !(-1.0..=1.0).contains(&foresight) {
            return Err(format!("foresight is {foresight}: set -1.0 to 1.0"));
        }
        settings::fraction("headroom", self.headroom)?;
        settings::at_least_one("max_held", self.max_held.into())?;
        settings::at_least_one("max_programs", self.max_programs.into())?;
        settings::at_least_one("max_in_flight", self.max_in_flight.unwrap_or(1).into())?;
        settings::at_least_one("kv_budget_tokens", self.kv_budget_tokens.unwrap_or(1))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl_mode: TtlMode::default(),
            cold_start: ColdStart::default(),
            few_gaps: 100,
            ttl_fixed_s: 2.0,
            slow_tool_s: 2.0,
            min_pin_s: 0.01,
            ttl_max_s: 60.0,
            max_gap_s: 3600.0,
            pin_user_turn: true,
            queue_delay_s: None,
            foresight: None,
            reload_s: None,
            reload_default_s: 2.0,
            pressure: Pressure::default(),
            lru_guard: true,
            backfill: false,
            max_in_flight: None,
            headroom: 0.05,
            kv_budget_tokens: None,
            out_reserve_tokens: 512,
            block_tokens: 16,
            hold_timeout_s: settings::HOLD_TIMEOUT_S,
            max_held: settings::MAX_HELD,
            max_programs: settings::MAX_PROGRAMS,
        }
    }
}
