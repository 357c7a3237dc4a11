//! Continuum's settings.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// How long a program's room is kept through a tool gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TtlMode {
    /// `ttl_fixed_s`, unless gaps of this kind last longer than `slow_tool_s` on average.
    #[default]
    Fixed,
}

/// Settings of [`super::Continuum`]; `..._s` are seconds, `..._tokens` tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the time-to-live is chosen.
    pub ttl_mode: TtlMode,
    /// The time-to-live of mode `fixed`.
    pub ttl_fixed_s: f64,
    /// Mean gap above which a kind of gap is not waited for.
    pub slow_tool_s: f64,
    /// A shorter time-to-live is none.
    pub min_pin_s: f64,
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
        settings::seconds("ttl_fixed_s", self.ttl_fixed_s, 0.0)?;
        settings::seconds("slow_tool_s", self.slow_tool_s, 0.0)?;
        settings::seconds("min_pin_s", self.min_pin_s, 0.0)?;
        settings::seconds("hold_timeout_s", self.hold_timeout_s, 0.0)?;
        settings::fraction("headroom", self.headroom)?;
        settings::at_least_one("max_held", self.max_held.into())?;
        settings::at_least_one("max_programs", self.max_programs.into())?;
        settings::at_least_one("kv_budget_tokens", self.kv_budget_tokens.unwrap_or(1))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl_mode: TtlMode::Fixed,
            ttl_fixed_s: 2.0,
            slow_tool_s: 2.0,
            min_pin_s: 0.01,
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
