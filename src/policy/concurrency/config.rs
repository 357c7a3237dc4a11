//! Settings of the concurrency policy.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// How the cap is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is `cap`.
    Fixed,
    /// It starts at `cap`, grows by `increase` and shrinks to the part `decrease`, by what the backend reports.
    #[default]
    Aimd,
}

/// Settings of [`super::Concurrency`]; `..._s` are seconds. Caps count programs per backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the cap is found.
    pub mode: Mode,
    /// Programs active on one backend at most; in mode `aimd`, at the start.
    pub cap: u32,
    /// Mode `aimd`: the lowest cap.
    pub cap_min: u32,
    /// Mode `aimd`: the highest cap.
    pub cap_max: u32,
    /// Mode `aimd`: programs by which the cap grows after a good interval in which it was reached.
    pub increase: u32,
    /// Mode `aimd`: the part that stays of the cap after a bad interval, 0–1.
    pub decrease: f64,
    /// Mode `aimd`: an interval with a lower prefix cache hit rate is bad, and so is one with a preemption; 0–1.
    /// The first steps of programs, which cannot hit, are left out.
    pub hit_rate_min: f64,
    /// Mode `aimd`: length of an interval.
    pub interval_s: f64,
    /// A program without a request for this long yields its slot.
    pub idle_s: f64,
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
            ("cap", self.cap),
            ("cap_min", self.cap_min),
            ("increase", self.increase),
            ("max_held", self.max_held),
            ("max_programs", self.max_programs),
        ] {
            settings::at_least_one(key, value.into())?;
        }
        let (low, high) = (f64::from(self.cap_min), f64::from(self.cap_max));
        settings::ordered(("cap_min", low), ("cap_max", high))?;
        settings::fraction("decrease", self.decrease)?;
        settings::fraction("hit_rate_min", self.hit_rate_min)?;
        settings::seconds("interval_s", self.interval_s, 0.0)?;
        settings::seconds("idle_s", self.idle_s, 0.0)?;
        settings::seconds("hold_timeout_s", self.hold_timeout_s, 0.0)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            cap: 16,
            cap_min: 1,
            cap_max: 4096,
            increase: 1,
            decrease: 0.5,
            hit_rate_min: 0.6,
            interval_s: 5.0,
            idle_s: 30.0,
            hold_timeout_s: settings::HOLD_TIMEOUT_S,
            max_held: settings::MAX_HELD,
            max_programs: settings::MAX_PROGRAMS,
        }
    }
}
