//! ThunderAgent's settings, with the original's constants where it has them.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// Whose decisions are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The original's, with its defects: see [`super::Original`].
    Compat,
    /// The same idea without them: see [`super::ThunderAgent`].
    #[default]
    Fixed,
}

/// Settings of both modes; `..._s` are seconds, `..._tokens` are tokens of KV cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `compat`: the original's decisions. `fixed`: the same idea with its defects mended.
    pub mode: Mode,
    /// Seconds between two sweeps. `fixed` decides at every event, and sweeps only because idle contexts fade and
    /// waits run out. Absent: 5 in `compat`, 1 in `fixed`.
    pub sweep_s: Option<f64>,
    /// What a token of an idle program weighs beside one of a running program, 0–1.
    pub acting_token_weight: f64,
    /// Whether idle contexts fade, by half every `half_life_s`, when room is made for a held program. Absent: off
    /// in `compat`, as the original ships, and on in `fixed`.
    pub decay: Option<bool>,
    /// Seconds in which an idle context fades by half. Absent: 1 in `compat`, 10 in `fixed`.
    pub half_life_s: Option<f64>,
    /// Tokens kept free for each program on a backend.
    pub buffer_tokens: u64,
    /// Seconds for which a held program with a home waits for that one only; `fixed` only.
    pub home_wait_s: f64,
    /// Once the longest-held request has waited this long, nothing passes it; `fixed` only.
    pub patience_s: f64,
    /// KV cache usage below which no running program is marked, whatever the books say, 0–1; `fixed` only.
    pub mark_usage: f64,
    /// `false`: programs are only spread, never held; `compat` only (the original's `--router default`).
    pub scheduling: bool,
    /// A request held this long is sent regardless. Absent: 1800 in `compat`, 600 in `fixed`.
    pub hold_timeout_s: Option<f64>,
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
        settings::fraction("acting_token_weight", self.acting_token_weight)?;
        settings::fraction("mark_usage", self.mark_usage)?;
        settings::seconds("sweep_s", self.sweep_s(), 0.01)?;
        settings::seconds("half_life_s", self.half_life_s(), 0.01)?;
        settings::seconds("home_wait_s", self.home_wait_s, 0.0)?;
        settings::seconds("patience_s", self.patience_s, 0.0)?;
        settings::seconds("hold_timeout_s", self.hold_timeout_s(), 0.0)?;
        settings::at_least_one("max_held", self.max_held.into())?;
        settings::at_least_one("max_programs", self.max_programs.into())
    }

    /// Seconds between two sweeps.
    pub fn sweep_s(&self) -> f64 {
        self.sweep_s.unwrap_or(match self.mode {
            Mode::Compat => 5.0,
            Mode::Fixed => 1.0,
        })
    }

    /// Whether idle contexts fade.
    pub fn decays(&self) -> bool {
        self.decay.unwrap_or(self.mode == Mode::Fixed)
    }

    /// Seconds in which an idle context fades by half.
    pub fn half_life_s(&self) -> f64 {
        self.half_life_s.unwrap_or(match self.mode {
            Mode::Compat => 1.0,
            Mode::Fixed => 10.0,
        })
    }

    /// Seconds after which a held request is sent regardless.
    pub fn hold_timeout_s(&self) -> f64 {
        self.hold_timeout_s.unwrap_or(match self.mode {
            Mode::Compat => 1800.0,
            Mode::Fixed => settings::HOLD_TIMEOUT_S,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Fixed,
            sweep_s: None,
            acting_token_weight: 1.0,
            decay: None,
            half_life_s: None,
            buffer_tokens: 100,
            home_wait_s: 8.0,
            patience_s: 60.0,
            mark_usage: 0.9,
            scheduling: true,
            hold_timeout_s: None,
            max_held: settings::MAX_HELD,
            max_programs: settings::MAX_PROGRAMS,
        }
    }
}
