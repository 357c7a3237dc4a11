//! What every policy's `Config` needs: seconds to durations, and checks whose message names the key and the fix.

use std::time::Duration;

/// Default of `max_held`: requests a policy keeps at the gate before it refuses newcomers.
pub const MAX_HELD: u32 = 65_536;

/// Default of `max_programs`: programs a policy keeps state for before it lets newcomers pass unscheduled.
pub const MAX_PROGRAMS: u32 = 200_000;

/// Default of `hold_timeout_s`: seconds a request is held before it is sent regardless.
pub const HOLD_TIMEOUT_S: f64 = 600.0;

/// `secs` seconds as a duration; negative and NaN read as zero, overflow as the longest.
pub fn duration(secs: f64) -> Duration {
    if secs > 0.0 {
        Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    }
}

/// Accepts a fraction, 0–1.
///
/// # Errors
/// One line that names `key`, its value and the range.
pub fn fraction(key: &str, value: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{key} is {value}: set a fraction from 0.0 to 1.0, such as 0.9"
    ))
}

/// Accepts a finite number of seconds that is at least `least`.
///
/// # Errors
/// One line that names `key`, its value and the bound.
pub fn seconds(key: &str, value: f64, least: f64) -> Result<(), String> {
    if value.is_finite() && value >= least {
        return Ok(());
    }
    Err(format!("{key} is {value}: set at least {least} seconds"))
}

/// Accepts a count of one or more.
///
/// # Errors
/// One line that names `key`.
pub fn at_least_one(key: &str, value: u64) -> Result<(), String> {
    if value >= 1 {
        return Ok(());
    }
    Err(format!("{key} is 0: set 1 or more"))
}

/// Accepts `low` where it does not exceed `high`.
///
/// # Errors
/// One line that names both keys and their values.
pub fn ordered(low: (&str, f64), high: (&str, f64)) -> Result<(), String> {
    if low.1 <= high.1 {
        return Ok(());
    }
    Err(format!(
        "{} is {} and {} is {}: lower the first or raise the second",
        low.0, low.1, high.0, high.1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_key_and_the_fix() {
        let message = fraction("headroom", 1.5).unwrap_err();
        assert!(message.starts_with("headroom is 1.5: set a fraction"));
        assert!(seconds("tick_s", f64::NAN, 0.01).is_err());
        assert!(ordered(("a", 0.9), ("b", 0.8)).is_err());
        assert!(at_least_one("max_held", 0).is_err());
    }

    #[test]
    fn no_number_of_seconds_makes_a_duration_panic() {
        assert_eq!(duration(-1.0), Duration::ZERO);
        assert_eq!(duration(f64::NAN), Duration::ZERO);
        assert_eq!(duration(f64::INFINITY), Duration::MAX);
        assert_eq!(duration(1e300), Duration::MAX);
    }
}
