//! Settings of kvgate's own policy. What it needs to know of the engine and of the programs it measures.

use serde::{Deserialize, Serialize};

use crate::policy::settings;

/// Settings of [`super::Kvgate`]; `..._s` are seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Microseconds of prefill per token, until it has been measured.
    pub prefill_us_per_token: f64,
    /// Whether the capacity that a backend reports is corrected by how well it foretells cache hits.
    pub correct_capacity: bool,
    /// A request without a warm context that has waited this long goes before programs whose turn is over.
    pub age_s: f64,
    /// A program's turn: this many times what it takes to load the whole cache.
    pub turn_loads: f64,
    /// A request without a warm context stands in line as if it had come later, by this many times what it takes to
    /// load its context.
    pub stretch: f64,
    /// A request may be passed for this long by others whose shared prefix is in use when its own is not.
    pub affinity_s: f64,
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
        let us = self.prefill_us_per_token;
        if !(0.01..=1e5).contains(&us) {
            return Err(format!(
                "prefill_us_per_token is {us}: set microseconds from 0.01 to 100000, such as 30"
            ));
        }
        settings::seconds("age_s", self.age_s, 0.0)?;
        settings::seconds("turn_loads", self.turn_loads, 0.0)?;
        settings::seconds("stretch", self.stretch, 0.0)?;
        settings::seconds("affinity_s", self.affinity_s, 0.0)?;
        settings::seconds("hold_timeout_s", self.hold_timeout_s, 0.0)?;
        settings::at_least_one("max_held", self.max_held.into())?;
        settings::at_least_one("max_programs", self.max_programs.into())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            prefill_us_per_token: 30.0,
            correct_capacity: true,
            age_s: 300.0,
            turn_loads: 10.0,
            stretch: 15.0,
            affinity_s: 60.0,
            hold_timeout_s: settings::HOLD_TIMEOUT_S,
            max_held: settings::MAX_HELD,
            max_programs: settings::MAX_PROGRAMS,
        }
    }
}
