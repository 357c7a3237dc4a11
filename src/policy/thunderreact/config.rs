//! ThunderReact's settings, with the reference router's constants as defaults.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// Whose decisions are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The reference's, with its defects: see [`super::Reference`].
    Compat,
    /// The same idea without them: see [`super::ThunderReact`].
    #[default]
    Fixed,
}

/// Settings of [`super::ThunderReact`]. Usages are fractions of the KV cache, 0–1; `..._s` are seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `compat`: the reference router's decisions. `fixed`: the same idea with its defects mended.
    pub mode: Mode,
    /// Seconds between two looks at the pressure.
    pub tick_s: f64,
    /// Usage from which programs are paused.
    pub pause_trigger: f64,
    /// Usage that pausing aims for.
    pub pause_target: f64,
    /// Least time between two pauses on one backend.
    pub pause_cooldown_s: f64,
    /// Part of the distance to the target that one pause covers, 0–1.
    pub pause_step: f64,
    /// Usage below which programs are resumed. Between it and `pause_trigger` only `dead_band_s` helps; in `compat`
    /// nothing does.
    pub resume_trigger: f64,
    /// Between the triggers, the oldest held request goes once this long has passed without a pause or resume on
    /// its backend; `fixed` only.
    pub dead_band_s: f64,
    /// A sample older than this says nothing; `fixed` only.
    pub sample_max_age_s: f64,
    /// Usage that resuming aims for.
    pub resume_target: f64,
    /// Least time between two resumes on one backend.
    pub resume_cooldown_s: f64,
    /// Part of the distance to the target that one resume covers, 0–1.
    pub resume_step: f64,
    /// Usage below which another backend takes programs over from one under pressure.
    pub transfer_trigger: f64,
    /// Usage to which transfers may fill that backend.
    pub transfer_target: f64,
    /// Least time between two transfers away from one backend.
    pub transfer_cooldown_s: f64,
    /// Part of the distance to the target that one transfer covers, 0–1.
    pub transfer_step: f64,
    /// Tokens of one backend's KV cache; absent: as the backend reports (`fixed`), and if it does not, the
    /// reference router's constant [`Config::REFERENCE_BUDGET`] (`compat`: always).
    pub kv_budget_tokens: Option<u64>,
    /// Tokens added to a program's context for the output of its next step.
    pub output_estimate_tokens: u64,
    /// A request held this long is sent regardless; `fixed` only, the reference has no bound.
    pub hold_timeout_s: f64,
    /// Requests held at most; further ones are refused.
    pub max_held: u32,
    /// Programs known at most (ids below it); requests of further ones pass unscheduled.
    pub max_programs: u32,
}

impl Config {
    /// The reference router's KV budget in tokens (`KV_CACHE_TOKEN_BUDGET`), made for a larger GPU than most.
    pub const REFERENCE_BUDGET: u64 = 788_976;

    /// Checks every setting.
    ///
    /// # Errors
    /// One line that names the key and the fix.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [
            ("pause_trigger", self.pause_trigger),
            ("pause_target", self.pause_target),
            ("pause_step", self.pause_step),
            ("resume_trigger", self.resume_trigger),
            ("resume_target", self.resume_target),
            ("resume_step", self.resume_step),
            ("transfer_trigger", self.transfer_trigger),
            ("transfer_target", self.transfer_target),
            ("transfer_step", self.transfer_step),
        ] {
            settings::fraction(key, value)?;
        }
        settings::seconds("tick_s", self.tick_s, 0.01)?;
        settings::seconds("pause_cooldown_s", self.pause_cooldown_s, 0.0)?;
        settings::seconds("resume_cooldown_s", self.resume_cooldown_s, 0.0)?;
        settings::seconds("transfer_cooldown_s", self.transfer_cooldown_s, 0.0)?;
        settings::seconds("dead_band_s", self.dead_band_s, 0.0)?;
        settings::seconds("sample_max_age_s", self.sample_max_age_s, 0.0)?;
        settings::seconds("hold_timeout_s", self.hold_timeout_s, 0.0)?;
        settings::at_least_one("max_held", self.max_held.into())?;
        settings::at_least_one("max_programs", self.max_programs.into())?;
        settings::at_least_one("kv_budget_tokens", self.kv_budget_tokens.unwrap_or(1))?;
        settings::ordered(
            ("resume_trigger", self.resume_trigger),
            ("pause_trigger", self.pause_trigger),
        )
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Fixed,
            tick_s: 0.5,
            pause_trigger: 0.95,
            pause_target: 0.90,
            pause_cooldown_s: 2.5,
            pause_step: 0.2,
            resume_trigger: 0.85,
            dead_band_s: 30.0,
            sample_max_age_s: 10.0,
            resume_target: 0.90,
            resume_cooldown_s: 10.0,
            resume_step: 0.2,
            transfer_trigger: 0.50,
            transfer_target: 0.70,
            transfer_cooldown_s: 10.0,
            transfer_step: 0.2,
            kv_budget_tokens: None,
            output_estimate_tokens: 500,
            hold_timeout_s: settings::HOLD_TIMEOUT_S,
            max_held: settings::MAX_HELD,
            max_programs: settings::MAX_PROGRAMS,
        }
    }
}
