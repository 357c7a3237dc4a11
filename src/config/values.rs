//! Single values of the configuration: parsed, and held to their range.

use std::time::Duration;

use super::ConfigError;

pub(super) fn parse_all<T: std::str::FromStr<Err: std::fmt::Display>>(
    key: &str,
    texts: &[String],
) -> Result<Vec<T>, ConfigError> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| ConfigError::new(format!("{key}: {error}")))
    };
    texts.iter().map(parse).collect()
}

/// The longest duration accepted, 31 years: beyond some point adding one to a clock overflows.
pub(super) const MAX_SECONDS: f64 = 1e9;

pub(super) fn seconds(
    key: &str,
    value: Option<f64>,
    least: f64,
    slot: &mut Duration,
) -> Result<(), ConfigError> {
    let Some(value) = value else { return Ok(()) };
    let duration = Duration::try_from_secs_f64(value)
        .ok()
        .filter(|_| (least..=MAX_SECONDS).contains(&value));
    *slot = duration.ok_or_else(|| {
        ConfigError::new(format!(
            "{key}: {value} is out of range; write seconds, from {least} to {MAX_SECONDS}"
        ))
    })?;
    Ok(())
}

pub(super) fn count(key: &str, value: Option<usize>, slot: &mut usize) -> Result<(), ConfigError> {
    match value {
        None => {}
        Some(0) => {
            return Err(ConfigError::new(format!(
                "{key}: 0 would refuse everything; write 1 or more"
            )));
        }
        Some(value) => *slot = value,
    }
    Ok(())
}
